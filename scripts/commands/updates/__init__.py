"""Changes to a running TorchServe that lose no request: scripts/deploy, scripts/scale, and a stop that drains."""
