"""What scripts/bench_model is made of.

A workload (resnets.py) says what is run and what it costs; runners.py loads an engine; sweep.py times each engine at
each point with clocks.py, and report.py writes what came out. A new kind of model is a new workload.
"""
