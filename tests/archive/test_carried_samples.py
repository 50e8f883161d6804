"""What an archive carries for its workers to compare their engines with, and that they do."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from archive import inspection
from archive.carried_samples import spread
from archive.trial_run import TrialContext
from handlers import engines
from handlers.engines import EngineSpec
from handlers.image_classifier import ImageClassifier
from handlers.selection import references
from handlers.text_encoder import TextEncoder

HEADS = {
    "sequence-classification": transformers.BertForSequenceClassification,
    "token-classification": transformers.BertForTokenClassification,
    "fill-mask": transformers.BertForMaskedLM,
    "sparse-embeddings": transformers.BertForMaskedLM,
}


def test_the_last_digits_of_a_cpu_are_no_part_of_the_digest() -> None:
    files = {"model.safetensors": "0", inspection.CARRIED_SAMPLES: "1"}
    digest = inspection.content_digest("a", "1.0", files)
    assert inspection.CARRIED_SAMPLES == references.FILE
    assert digest == inspection.content_digest("a", "1.0", {**files, inspection.CARRIED_SAMPLES: "2"})
    assert digest != inspection.content_digest("a", "1.0", {**files, "model.safetensors": "2"})


def test_a_changed_reference_is_told(digits_mar: Path, tmp_path: Path) -> None:
    """Though it is no part of the content digest."""
    with zipfile.ZipFile(digits_mar) as source, zipfile.ZipFile(tmp_path / "changed.mar", "w") as target:
        for name in source.namelist():
            target.writestr(name, b"other" if name == inspection.CARRIED_SAMPLES else source.read(name))
    assert inspection.verify(digits_mar)
    with pytest.raises(inspection.ArchiveError, match=r"changed parity\.safetensors"):
        inspection.verify(tmp_path / "changed.mar")


@pytest.mark.parametrize(
    ("samples", "count", "found"), [("abc", 7, "abc"), ("abcdefg", 3, "adg"), ("abcdefgh", 7, "abcdefh")]
)
def test_samples_are_spread_from_the_first_to_the_last(samples: str, count: int, found: str) -> None:
    assert "".join(spread(samples, count)) == found


@pytest.mark.parametrize("fixture", ["digits_mar", "tiny_mar"])
def test_a_worker_compares_its_engine_with_the_archives_own_reference(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with zipfile.ZipFile(request.getfixturevalue(fixture)) as archive:
        archive.extractall(tmp_path)
    config = yaml.safe_load((tmp_path / "model-config.yaml").read_text(encoding="utf-8"))
    config["handler"] |= {"device": "cpu", "precision": "fp32"}
    for when in ("here", "earlier"):
        handler = ImageClassifier() if fixture == "digits_mar" else TextEncoder()
        handler.initialize(TrialContext(tmp_path, "model", config))
        checked = handler.model.description["engine"]["checked"]
        assert (checked["when"], checked["against"]) == (when, references.OF_ARCHIVE)
        assert checked.get("relativeError", 0) < 1e-4
        assert checked.get("leastCosine", 1) > 0.99999
    found = references.of(handler.model.spec)
    if isinstance(found, references.Texts):
        assert max(map(len, found.ids)) == 48, "one text is as long as the model takes"


@pytest.mark.parametrize("task", HEADS)
def test_every_task_is_packaged_from_its_own_checkpoint_with_its_reference(
    task: str, tiny_bert: Path, package: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_bert, folder, ignore=shutil.ignore_patterns("modules.json", "model.safetensors"))
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(tiny_bert)
    if "classification" in task:
        config.id2label = {0: "O", 1: "B-X", 2: "I-X"}
    HEADS[task](config).save_pretrained(folder)  # type: ignore[no-untyped-call, unused-ignore]
    options = ("--task", task) if task == "sparse-embeddings" else ()  # else the checkpoint's head says it
    package("text-encoder", "--weights", folder, "--name", "headed", *options, "--export-path", tmp_path)
    figures = inspection.read_provenance(tmp_path / "headed.mar")["parity"]["fp32"]
    assert figures["passed"]
    assert figures.get("max_relative_error", 0) < 1e-5
    assert figures.get("min_cosine", 1) > 0.99999
    with zipfile.ZipFile(tmp_path / "headed.mar") as archive:
        archive.extractall(tmp_path / "archive")
    config_file = tmp_path / "archive" / inspection.CONFIG
    assert yaml.safe_load(config_file.read_text(encoding="utf-8"))["handler"]["task"] == task
    spec = EngineSpec("text-encoder", tmp_path / "archive", torch.device("cpu"), "fp32", task=task)
    found = references.of(spec)
    assert found.source == references.OF_ARCHIVE
    assert isinstance(found, references.Texts)
    assert task != "sparse-embeddings" or {row.shape for row in found.outputs} == {(1, config.vocab_size)}
    assert found.compare(engines.load("fused", spec), spec).passed
