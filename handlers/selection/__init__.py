"""Which engine serves. Candidates are compared with fp32, and timed, on the device that serves.

candidates: which engines can run a model here. choosing: the one that serves. verification: the first candidate that
gives fp32's outputs. gpu_timing and cpu_timing: the fastest of those that do. references, deviations and tolerances:
what outputs are compared with, how far off they are, and how far off they may be. results_cache: results on disk.
compared_here: another comparison with fp32, if the result on disk is another machine's.
"""
