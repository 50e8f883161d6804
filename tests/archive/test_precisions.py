"""A precision in which a network raises is missing parity with its reason, and stops packaging only if asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DebertaConfig, DebertaForSequenceClassification

from archive import inspection
from archive import package as packaging
from handlers import placement

# transformers 5.20 scripts a part of DeBERTa with TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

Run = Callable[..., tuple[int, str]]
Package = Callable[..., str]
ROOT = Path(__file__).parents[2]
RAISES = """

class _Raising(TorchEager):
    def load(self, spec):
        if error := {errors}.get(spec.precision):
            raise error("no kernel of that kind")
        return super().load(spec)


ENGINE = _Raising()
"""


@pytest.fixture
def raising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """raising(precision=error, ...) -> this tree, with an engine that raises in those precisions."""

    def make(**errors: str) -> None:
        tree = tmp_path / "tree"
        for name in ("handlers", "archive"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        engine = tree / "handlers" / "engines" / "torch_eager.py"
        written = "{" + ", ".join(f'"{precision}": {error}' for precision, error in errors.items()) + "}"
        engine.write_text(engine.read_text(encoding="utf-8") + RAISES.format(errors=written))
        monkeypatch.setattr(packaging, "ROOT", tree)

    return make


@pytest.mark.parametrize(
    "errors",
    [{"bf16": "RuntimeError"}, {"fp16": "ValueError", "bf16": "KeyError"}],
    ids=["one", "all but fp32"],
)
def test_a_precision_that_raises_is_left_out(
    raising: Callable[..., None], package: Package, digits: Path, tmp_path: Path, errors: dict[str, str]
) -> None:
    raising(**errors)
    options = ("--weights", digits, "--parity-data", digits / "samples", "--export-path", tmp_path / "store")
    printed = package("image-classifier", *options)
    provenance = inspection.read_provenance(tmp_path / "store" / "digits.mar")
    shown = inspection.show(tmp_path / "store" / "digits.mar")
    for precision, error in errors.items():
        assert f"{precision} FAILED: it does not run: {error}" in printed
        assert provenance["parity"][precision]["passed"] is False
        assert "no kernel of that kind" in provenance["parity"][precision]["problem"]
        assert f"{precision}: FAILED" in shown
    assert set(provenance["engines"]) == {"fp32", "fp16", "bf16"} - errors.keys()


def test_a_precision_that_raises_and_was_asked_for_is_refused(
    raising: Callable[..., None], run: Run, digits: Path, tmp_path: Path
) -> None:
    raising(bf16="RuntimeError")
    options = ("--weights", digits, "--parity-data", digits / "samples", "--export-path", tmp_path / "store")
    status, printed = run("image-classifier", *options, "--precision", "bf16")
    assert status == 1
    assert "bf16 FAILED: it does not run: RuntimeError: no kernel of that kind" in printed.partition("error: ")[2]
    assert list((tmp_path / "store").iterdir()) == []


def test_fp32_has_to_run(raising: Callable[..., None], run: Run, digits: Path, tmp_path: Path) -> None:
    raising(fp32="RuntimeError")
    options = ("--weights", digits, "--parity-data", digits / "samples", "--export-path", tmp_path / "store")
    status, printed = run("image-classifier", *options, "--engine", "torch_eager")
    assert status == 1
    assert "RuntimeError: no kernel of that kind" in printed.partition("error: ")[2]


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_debertas_first_version_raises_in_fp16(
    tiny_bert: Path, package: Package, tmp_path: Path, precision: str
) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "deberta"))
    (folder / "modules.json").unlink()
    vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_position_embeddings": 64}
    torch.manual_seed(0)
    config = DebertaConfig(vocab_size=vocabulary, **size, **relative)  # type: ignore[arg-type]
    DebertaForSequenceClassification(config).save_pretrained(folder)
    package("text-encoder", "--weights", folder, "--export-path", tmp_path, "--precision", precision)
    parity = inspection.read_provenance(tmp_path / "deberta.mar")["parity"]
    assert parity["fp32"]["passed"]
    chosen, _ = placement.choose_precision("auto", torch.device("cuda", 0), parity)
    assert (chosen == "fp16") == parity["fp16"]["passed"]
