"""The bill of materials in an archive: valid CycloneDX, and true."""

from __future__ import annotations

import configparser
import hashlib
import importlib.metadata
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from archive import inspection, sbom

ROOT = Path(__file__).parents[2]


def bill(mar: Path) -> dict[str, Any]:
    with zipfile.ZipFile(mar) as archive:
        content: dict[str, Any] = json.loads(archive.read(inspection.SBOM))
    return content


def components(mar: Path) -> dict[str, dict[str, Any]]:
    return {one["bom-ref"]: one for one in bill(mar)["components"]}


@pytest.mark.parametrize("fixture", ["digits_mar", "tiny_mar"])
def test_it_is_valid_cyclonedx(fixture: str, request: pytest.FixtureRequest) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    found = json.dumps(bill(request.getfixturevalue(fixture)))
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(found) is None
    assert validator.validate_str(found.replace("machine-learning-model", "another")) is not None


def test_it_names_handlers_weights_and_packages(digits_mar: Path) -> None:
    found = components(digits_mar)
    provenance = inspection.read_provenance(digits_mar)
    assert bill(digits_mar)["metadata"]["component"]["name"] == "digits"
    assert found["handlers"]["version"] == importlib.metadata.version(sbom.PROJECT)
    assert len(found["handlers"]["properties"][0]["value"].partition("+")[0]) == 40
    with zipfile.ZipFile(digits_mar) as archive:
        digest = hashlib.sha256(archive.read("model.safetensors")).hexdigest()
    weights = found["weights"]
    assert (weights["type"], weights["name"]) == ("machine-learning-model", "digits")
    assert weights["hashes"] == [{"alg": "SHA-256", "content": digest}]
    about = {one["name"]: one["value"] for one in weights["properties"]}
    assert about["checkpoint:sha256"] == provenance["weights"]["sha256"]
    for name in sbom.REQUIRED:
        version = importlib.metadata.version(name)
        assert (found[name]["version"], found[name]["scope"]) == (version, "required")
        assert found[name]["purl"] == f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    assert found["huggingface-hub"]["scope"] == "required"  # transformers needs it
    assert found["onnxruntime"]["scope"] == "optional"


def test_every_package_that_is_needed_is_named(digits_mar: Path) -> None:
    found = components(digits_mar)
    needs = {one["ref"]: one.get("dependsOn", []) for one in bill(digits_mar)["dependencies"]}
    assert needs["archive"] == ["handlers", "weights"]
    assert {one for needed in needs.values() for one in needed} <= found.keys()
    assert "tokenizers" in needs["transformers"]


def test_the_list_is_that_of_setup_cfg() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [line for line in setup["options"]["install_requires"].splitlines() if line and not line.startswith("#")]
    assert {Requirement(line).name for line in lines} <= set(sbom.REQUIRED)


def test_it_is_sealed_and_shown_and_outside_the_content_digest(digits_mar: Path) -> None:
    files = inspection.read_provenance(digits_mar)["files"]
    assert inspection.SBOM in files
    assert inspection.content_digest("a", "1", files) == inspection.content_digest(
        "a", "1", {name: digest for name, digest in files.items() if name != inspection.SBOM}
    )
    assert f"sbom     {inspection.SBOM}: CycloneDX 1.6, " in inspection.show(digits_mar)


def test_a_checkout_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sbom, "ROOT", tmp_path)
    assert sbom._commit() is None
    (tmp_path / ".git").mkdir()
    assert sbom._commit() is None
