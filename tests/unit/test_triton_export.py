"""What scripts/export-triton writes. tests/e2e/test_triton_host.py has Triton read it."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from triton_host import binary_tensors, export

from handlers.hosts.unpacking import check, unpack
from tests.made_archives import added_files, code_files, write_mar

IMAGES = {"batchSize": 8, "maxBatchDelay": 5, "maxWorkers": 2, "handler": {"task": "classification", "maxInputs": 64}}
PAIRS = {"batchSize": 128, "handler": {"task": "sequence-classification", "maxInputs": 64, "device": "cuda"}}
RECORD = {
    "fingerprint": {
        "tensorrt": "8.6.1",
        "cuda": "12.1",
        "compute_capability": "9.0",
        "gpu": "NVIDIA H200",
        "onnx": "0",
        "buckets": [1, 8, 64],
        "image_size": 224,
        "precision": "fp16",
    },
    "sha256": "0",
}


def made(folder: Path, settings: Mapping[str, Any], kind: str = "image-classifier", **files: bytes) -> Path:
    """An archive without weights: the exporter does not load it. files: a double underscore is a slash."""
    named = {name.replace("__", "/").replace("_dot_", "."): data for name, data in files.items()}
    return write_mar(
        folder / "tiny.mar",
        {**code_files(kind), "model-config.yaml": json.dumps(dict(settings)).encode(), **named},
        kind,
    )


def run(*arguments: object) -> int:
    return export.main(list(map(str, arguments)))


def test_a_repository_holds_the_whole_archive_for_everybody(tmp_path: Path) -> None:
    assert run(made(tmp_path, IMAGES), tmp_path / "repository") == 0
    model = tmp_path / "repository" / "tiny"
    assert sorted(path.name for path in model.iterdir()) == ["1", "config.pbtxt"]
    assert sorted(path.name for path in (model / "1").iterdir()) == ["archive", "binary_tensors.py", "model.py"]
    listed = check(model / "1" / "archive")
    assert f'"{listed.digest}"' in (model / "config.pbtxt").read_text()
    assert stat.S_IMODE((model / "1" / "archive").stat().st_mode) & 0o055 == 0o055


def test_the_config_has_the_archives_settings(tmp_path: Path) -> None:
    run(made(tmp_path, IMAGES), tmp_path / "repository", "--name", "other", "--max-waiting", 7)
    text = (tmp_path / "repository" / "other" / "config.pbtxt").read_text()
    for line in (
        'name: "other"',
        "max_batch_size: 64",
        "max_queue_delay_microseconds: 5000",
        "max_queue_size: 7",
        "count: 2 kind: KIND_AUTO",
        'name: "image" data_type: TYPE_STRING dims: [1] optional: true',
        'name: "pixels" data_type: TYPE_FP32 dims: [3, -1, -1] allow_ragged_batch: true optional: true',
        'name: "scores" data_type: TYPE_FP32 dims: [-1]',
        'name: "indices" data_type: TYPE_INT64 dims: [-1]',
    ):
        assert line in text


def test_edited_settings_are_said_to_be_so(tmp_path: Path) -> None:
    """The model's own check of the archive would refuse them else."""
    folder = tmp_path / "folder"
    unpack(made(tmp_path, IMAGES), folder)
    text = {}
    for name, settings in (("as-packaged", IMAGES), ("edited", {**IMAGES, "maxBatchDelay": 3})):
        (folder / "model-config.yaml").write_text(json.dumps(settings))
        assert run(folder, tmp_path / "repository", "--name", name, "--edited-settings") == 0
        text[name] = (tmp_path / "repository" / name / "config.pbtxt").read_text()
    assert 'key: "edited_settings" value { string_value: "true" }' in text["edited"]
    assert "edited_settings" not in text["as-packaged"]
    assert "max_queue_delay_microseconds: 3000" in text["edited"]


def test_pairs_and_a_batch_that_is_larger_than_a_request(tmp_path: Path) -> None:
    run(made(tmp_path, PAIRS, "text-encoder"), tmp_path / "repository")
    text = (tmp_path / "repository" / "tiny" / "config.pbtxt").read_text()
    assert "max_batch_size: 128" in text
    assert "kind: KIND_GPU" in text
    assert 'name: "text" data_type: TYPE_STRING dims: [1] }' in text
    assert 'name: "text_pair" data_type: TYPE_STRING dims: [1] optional: true' in text


@pytest.mark.parametrize(("converter", "dims"), [("onnx", "[224, 224, 3]"), ("torch2trt", "[3, 224, 224]")])
def test_a_plan_becomes_a_second_model(
    tmp_path: Path, converter: str, dims: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.made_archives.added_files", with_converter(converter))
    mar = made(
        tmp_path,
        IMAGES,
        plan__model_dot_plan=b"a plan",
        plan__model_dot_json=json.dumps(RECORD).encode(),
        config_dot_json=json.dumps({"id2label": {str(index): "x" for index in range(1000)}}).encode(),
    )
    assert run(mar, tmp_path / "repository") == 0
    model = tmp_path / "repository" / "tiny-tensorrt"
    assert (model / "1" / "model.plan").read_bytes() == b"a plan"
    text = (model / "config.pbtxt").read_text()
    for line in (
        'backend: "tensorrt"',
        "max_batch_size: 64",
        f'name: "images" data_type: TYPE_FP16 dims: {dims}',
        'name: "logits" data_type: TYPE_FP16 dims: [1000]',
        "preferred_batch_size: [1, 8, 64]",
        'profile: [ "0", "1", "2" ]',
        "TensorRT '8.6.1'",
    ):
        assert line in text


def with_converter(converter: str) -> Any:
    """added_files with the packaging option that says what made the plan."""

    def added(files: dict[str, bytes], name: str, kind: str) -> dict[str, bytes]:
        from handlers.hosts import contents

        found = added_files(files, name, kind)
        provenance = json.loads(found[contents.PROVENANCE]) | {"options": {"converter": converter}}
        provenance["seal"] = contents.seal(provenance)
        return {**found, contents.PROVENANCE: json.dumps(provenance).encode()}

    return added


def test_another_version_goes_beside_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mar, repository = made(tmp_path, IMAGES), tmp_path / "repository"
    assert run(mar, repository) == 0
    assert run(mar, repository) == 1
    assert "is there already" in capsys.readouterr().err
    assert run(mar, repository, "--version", 2) == 0
    assert sorted(path.name for path in (repository / "tiny").iterdir()) == ["1", "2", "config.pbtxt"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--digest", "sha256:0"], "is wanted"),
        (["--name", "../other"], "cannot name a model"),
        (["--version", "0"], "numbers from 1"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made(tmp_path, IMAGES), tmp_path / "repository", *options) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_a_damaged_archive_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mar = made(tmp_path, {"handler": {"task": "classification", "device": "abacus"}})
    assert run(mar, tmp_path / "repository") == 1
    assert "model-config.yaml of the archive cannot be read" in capsys.readouterr().err
    write_mar(mar, code_files("image-classifier"), extra={"handlers/extra.py": b""})
    assert run(mar, tmp_path / "repository") == 1
    assert "added handlers/extra.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    "array",
    [
        np.array([[b"\xff\x00"], [b""]], dtype=object),
        np.array([["日本語".encode()]], dtype=object),
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
        np.arange(2, dtype=np.float16),
    ],
)
def test_tensors_come_back_as_they_were_sent(array: NDArray[Any]) -> None:
    headers, body = binary_tensors.written([("a", array)], ["b"], {"top_k": 1})
    head = json.loads(body[: int(headers[binary_tensors.HEADER])])
    assert head["parameters"] == {"top_k": 1, "binary_data_output": True}
    assert head["outputs"] == [{"name": "b"}]
    answer = json.dumps({"outputs": head["inputs"]}).encode()
    raw = body[int(headers[binary_tensors.HEADER]) :]
    found = binary_tensors.read({binary_tensors.HEADER.lower(): str(len(answer))}, answer + raw)
    np.testing.assert_array_equal(found["a"], array)
    assert found["a"].dtype == array.dtype


def test_strings_stay_strings() -> None:
    """So base64 of an image is told from an image's file."""
    headers, body = binary_tensors.written([("image", np.array([[b"YQ=="]], dtype=object))], [], {})
    assert int(headers[binary_tensors.HEADER]) == len(body)
    assert json.loads(body)["inputs"][0]["data"] == ["YQ=="]
