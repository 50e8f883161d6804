"""What scripts/bench_model is made of.

A command (image_command.py, text_command.py) reads options; its workload (resnets.py, texts.py) says what is run and
what it costs (layers.py); runners.py loads an engine or a peer (image_peers.py, text_peers.py, text_plans.py);
sweep.py times each at each point (points.py) with clocks.py, and report.py writes what came out, with its picture
from lines.py or bars.py. kernels.py profiles. A new kind of model is a new command and a new workload.
"""
