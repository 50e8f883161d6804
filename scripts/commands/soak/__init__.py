"""Hours of mixed traffic on a real TorchServe while it is changed and harmed: scripts/soak."""
