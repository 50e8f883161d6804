"""What scripts/bench_model is made of.

A command (image_command.py, text_command.py; shared_command.py has what they share) reads options. Its workload
(resnets.py, texts.py) makes inputs, and counts what they cost to compute (layers.py). engine_loading.py loads an
engine of handlers/engines or a peer (image_peers.py, text_peers.py, text_tensorrt.py, compiling.py). sweep.py times
each engine at each point (points.py) with timing.py. results.py holds the content of the JSON, and report.py makes
table, CSV and picture of it (line_chart.py, bar_chart.py). kernel_times.py profiles, conditions.py names machine and
versions. A new kind of model is a new command and a new workload.
"""
