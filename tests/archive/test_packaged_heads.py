"""A whole archive of a sentence-transformers folder with prompts and modules behind the pooling."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from archive import reference_embeddings

Package = Callable[..., str]
PROMPTS = {"query": "Represent this: ", "passage": "passage: "}


@pytest.fixture
def folder(tiny_bert: Path, tmp_path: Path) -> Path:
    """The tiny BERT with a Dense and a LayerNorm between pooling and Normalize, and a default prompt not pooled."""
    path = Path(shutil.copytree(tiny_bert, tmp_path / "sentences"))
    modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
    kinds = {"2_Dense": {"in_features": 32, "out_features": 8}, "3_LayerNorm": {"dimension": 8}, "4_Normalize": {}}
    modules = [*modules[:2], *({"path": name, "type": f"sentence_transformers.models.{name[2:]}"} for name in kinds)]
    torch.manual_seed(2)
    weights = {
        "2_Dense": {"linear.weight": torch.randn(8, 32), "linear.bias": torch.randn(8)},
        "3_LayerNorm": {"norm.weight": torch.randn(8), "norm.bias": torch.randn(8)},
    }
    for name, tensors in weights.items():
        (path / name).mkdir()
        (path / name / "config.json").write_text(json.dumps(kinds[name]), encoding="utf-8")
        save_file(tensors, path / name / "model.safetensors")
    (path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    whole = {"prompts": PROMPTS, "default_prompt_name": "query", "truncate_dim": 6}
    (path / "config_sentence_transformers.json").write_text(json.dumps(whole), encoding="utf-8")
    return path


def command(folder: Path, store: Path) -> tuple[object, ...]:
    return ("text-encoder", "--weights", folder, "--name", "heads", "--export-path", store, "--dimensions", "4")


def test_the_archive_carries_all_and_passes_the_gate(package: Package, folder: Path, tmp_path: Path) -> None:
    printed = package(*command(folder, tmp_path / "store"))
    assert "texts get the prompt 'query' before them" in printed
    assert "behind every engine: Dense 32 -> 8, Tanh; LayerNorm 8" in printed
    with zipfile.ZipFile(tmp_path / "store" / "heads.mar") as archive:
        assert "embedding_head.safetensors" in archive.namelist()
        settings = yaml.safe_load(archive.read("model-config.yaml"))["handler"]
        parity = json.loads(archive.read("provenance.json"))["parity"]
    assert settings["prompts"] == {**PROMPTS, "document": ""}
    assert (settings["defaultPromptName"], settings["truncateDim"], settings["dimensions"]) == ("query", 6, [4])
    assert settings["pooling"] == {"modes": ["mean"], "normalize": True, "includePrompt": False}
    assert parity["fp32"]["min_cosine"] > 0.99999


@pytest.mark.parametrize("part", ["head", "prompt"])
def test_the_gate_sees_a_wrong_head_and_a_wrong_prompt(
    run: Callable[..., tuple[int, str]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    if part == "head":
        monkeypatch.setattr(reference_embeddings, "_through", lambda head, pooled: pooled[:8])
    else:
        monkeypatch.setattr(
            reference_embeddings, "with_prompt", lambda text, settings: f"And now, Represent this: {text}"
        )
    status, printed = run(*command(folder, tmp_path / "store"))
    assert status != 0
    assert "parity" in printed
