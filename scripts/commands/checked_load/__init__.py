"""Load on a running TorchServe whose every answer is checked against its request.

samples.py has requests with known answers; load.py sends them on connections that are kept; kill_workers.py kills
workers meanwhile, and says what came of it.
"""
