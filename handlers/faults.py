"""Faults on demand, to try what a worker and TorchServe do with them. Off unless an environment variable is set.

TORCHSERVE_FAST_FAULTS names a folder. A file in it is a fault, by its name; no request can cause one. The next run of
the network meets it:

| file | its text | what happens |
|---|---|---|
| `oom` | a number | as long as the file is there, batches of more inputs raise OutOfMemoryError |
| `slow` | seconds | as long as the file is there, each run takes so much longer |
| `hang` | | one run never ends |
| `hang-locked` | | the same, with Python's lock held, so that no other thread runs |
| `lost-gpu` | | one run loses the GPU's context; on a CPU PyTorch is made to say so |
| `nan` | | the outputs of the first input of one run are NaN |
| `exit` | | the process ends in the middle of one run, without a word, as by kill -9 |

A fault that happens once removes its file first, so that the next worker does not meet it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

VARIABLE = "TORCHSERVE_FAST_FAULTS"
FOREVER_S = 1_000_000
Run = Callable[[Any], torch.Tensor]


def around(run: Run) -> Run:
    """Return `run` itself; with faults around it if the environment variable is set."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return run
    logger.critical("FAULTS ARE INJECTED: %s is set. Files in %s make this worker fail on purpose", VARIABLE, folder)

    def run_with_faults(batch: Any) -> torch.Tensor:
        _Faults(Path(folder)).before(batch)
        outputs = run(batch)
        return _Faults(Path(folder)).after(outputs)

    return run_with_faults


class _Faults:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def before(self, batch: Any) -> None:
        """Do what happens instead of a run. batch: as the engine takes it; its len is the number of inputs."""
        if (most := self._text("oom")) and len(batch) > int(most):
            raise torch.OutOfMemoryError(f"an injected fault: CUDA out of memory for {len(batch)} inputs")
        if seconds := self._text("slow"):
            time.sleep(float(seconds))
        if self._once("hang"):
            time.sleep(FOREVER_S)
        if self._once("hang-locked"):
            ctypes.PyDLL(None).sleep(FOREVER_S)
        if self._once("exit"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._once("lost-gpu"):
            _lose_gpu()

    def after(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return a run's outputs, spoilt or not."""
        if self._once("nan"):
            outputs = outputs.clone()
            outputs[0] = float("nan")
        return outputs

    def _text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""

    def _once(self, name: str) -> bool:
        """Whether the file was there; it is gone now. Of several workers one meets the fault."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / name).unlink()
            logger.critical("an injected fault: %s", name)
            return True
        return False


def _lose_gpu() -> None:
    """Lose the context by reading beyond a tensor. Without a GPU, make PyTorch speak as after such a loss."""
    if torch.cuda.is_available():
        torch.zeros(4, device="cuda")[torch.tensor([99], device="cuda")].cpu()

    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered (injected)")

    torch.cuda.is_initialized, torch.cuda.synchronize = (lambda: True), lost  # type: ignore[assignment]
    lost()
