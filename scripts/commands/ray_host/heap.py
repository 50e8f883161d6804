"""Memory that is free in this process, and that the system does not have back yet."""

from __future__ import annotations

import ctypes
import logging

logger = logging.getLogger("ray.serve")


def give_back() -> None:
    """Give free memory back to the system, as far as the C library can; glibc alone can, others do nothing.

    glibc keeps what was freed in pieces. In a process that loads and drops models in turn that is as much as some
    models (docs/ray.md).
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        logger.info("the C library has no malloc_trim; memory of dropped models may stay with the process")
        return
    trim(0)
