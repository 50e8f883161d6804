"""A simulation of TorchServe hosts: calibrated on one measured host, then asked about many."""
