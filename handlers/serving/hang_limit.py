"""How long one batch may take on the GPU, by the settings, before the worker is taken to hang."""

from __future__ import annotations

import logging
from typing import Any

import torch

from handlers.loading import PARITY_GATE
from handlers.protocol.context import Context
from handlers.serving.watchdog import Watchdog

logger = logging.getLogger(__name__)

TORCHSERVE_TIMEOUT_S = 120  # the responseTimeout of an archive whose model-config.yaml names none
AUTO = -1


def load_watchdog(context: Context, setting: int, device: torch.device, description: dict[str, Any]) -> Watchdog:
    """Return the watchdog of a worker that has loaded its model, and note its limit in the description.

    Args:
        setting: hangTimeout.
        device: the network's.
        description: the model's.
    """
    response_s = int((context.model_yaml_config or {}).get("responseTimeout") or TORCHSERVE_TIMEOUT_S)
    if context.system_properties.get(PARITY_GATE):
        seconds, why = 0.0, "packaging waits as long as it takes"
    elif setting != AUTO:
        seconds, why = float(setting), "as set"
    elif "host" in context.system_properties:
        seconds, why = 0.0, "no limit: this process is not TorchServe's, so it is not ended unasked"
    elif device.type == "cuda":
        seconds, why = response_s / 2, f"half of responseTimeout, {response_s} s"
    else:
        seconds, why = 0.0, "no limit: a large batch may rightly take long on a CPU"
    if seconds >= response_s:
        why = f"as set; but TorchServe itself ends the worker after {response_s} s (responseTimeout)"
        logger.warning("hangTimeout is %g s, %s", seconds, why)
    description["hangTimeout"] = {"seconds": seconds, "why": why}
    return Watchdog(seconds)
