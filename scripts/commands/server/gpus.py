"""What tells a process which GPUs of this machine it may use."""

from __future__ import annotations

DEVICES = "CUDA_VISIBLE_DEVICES"
# CUDA would number the fastest GPU 0, nvidia-smi numbers them by their bus.
BY_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
