"""Packaging in this process, with each archive's trial run in a fork of a warm Python: seconds less per archive."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from archive import package
from handlers import cpus
from tests import warm_python


@contextlib.contextmanager
def warm_trials() -> Iterator[None]:
    """Let the trial runs of this process begin with torch and transformers imported, and without the handlers."""
    environment = {cpus.WAIT_POLICY: cpus.PATIENT, **os.environ}
    with warm_python.running(environment) as command, pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "FRESH_PYTHON", command)
        yield
