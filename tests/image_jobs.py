"""Loads what packaging has settled, without making an archive of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from archive import carried_samples
from archive.trial_run import TrialContext
from handlers import settings
from handlers.image_classifier import ImageClassifier


def served(job: Any, folder: Path, **changes: Any) -> ImageClassifier:
    """The handler of an archive of this job, loaded here."""
    folder.mkdir()
    job.write_files(folder)
    carried_samples.write(job, folder)
    section = yaml.safe_load(yaml.safe_dump(settings.write(job.settings)))
    handler = ImageClassifier()
    config = {"handler": {**section, "device": "cpu", "precision": "fp32", **changes}}
    handler.initialize(TrialContext(folder, "model", config))
    return handler
