"""What scripts/bench_serving is made of: loads, load generators, servers to ask, what is measured, and the report."""
