"""Folders whose tokenizer is a sentencepiece model alone, against the sentencepiece library itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers

from archive import command_line, resolve
from archive.checkpoints import sentencepiece_models, text_checkpoints
from archive.checkpoints.errors import CheckpointError
from archive.options import TextOptions
from handlers.settings import TextSettings
from handlers.texts.payloads import Text
from handlers.texts.tokenization import Tokenizer

# transformers 5.20 scripts a part of DeBERTa with TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

SAMPLES = Path(__file__).parents[2] / "archive" / "samples" / "texts.txt"
# Pieces with which each family's models begin, and where transformers puts the model's pieces in its vocabulary.
SPECIAL: dict[str, dict[str, Any]] = {
    "XLMRoberta": {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
    "Camembert": {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
    "Albert": {
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": -1,
        "eos_id": -1,
        "control_symbols": ["[CLS]", "[SEP]"],
        "user_defined_symbols": ["[MASK]"],
        "normalization_rule_name": "nmt_nfkc_cf",
    },
    "DebertaV2": {
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "pad_piece": "[PAD]",
        "bos_piece": "[CLS]",
        "eos_piece": "[SEP]",
        "unk_piece": "[UNK]",
    },
}
FILES = {
    "XLMRoberta": "sentencepiece.bpe.model",
    "Camembert": "sentencepiece.bpe.model",
    "Albert": "spiece.model",
    "DebertaV2": "spm.model",
}
OFFSET = {"XLMRoberta": 1, "Camembert": 4, "Albert": 0, "DebertaV2": 0}
UNKNOWN = {"XLMRoberta": 3, "Camembert": 3, "Albert": 1, "DebertaV2": 3}
TEXTS = [*SAMPLES.read_text(encoding="utf-8").splitlines(), *sentencepiece_models.ODD, "Kraków costs ½ of ﬁve  euros"]


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    """folder_of(family, **settings of the trainer) -> a masked-word checkpoint with a sentencepiece model alone."""
    library = pytest.importorskip("sentencepiece", reason="needs the extra sentencepiece")
    pytest.importorskip("google.protobuf", reason="needs the extra sentencepiece")

    def make(family: str, **trainer: Any) -> Path:
        folder = tmp_path / family
        folder.mkdir()
        settings = {**SPECIAL[family], "vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2, **trainer}
        library.SentencePieceTrainer.train(input=str(SAMPLES), model_prefix=str(folder / "model"), **settings)
        (folder / "model.vocab").unlink()
        (folder / "model.model").rename(folder / FILES[family])
        size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        ids = {"pad_token_id": 1, "max_position_embeddings": 514} if OFFSET[family] else {"pad_token_id": 0}
        config = getattr(transformers, f"{family}Config")(vocab_size=410, **size, **ids)
        torch.manual_seed(0)
        getattr(transformers, f"{family}ForMaskedLM")(config).save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("family", SPECIAL)
def test_ids_are_those_of_the_sentencepiece_library(
    folder_of: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    import sentencepiece

    folder = folder_of(family)
    command = ["text-encoder", "--weights", str(folder), "--name", "model", "--device", "cpu"]
    model = resolve.text_model(cast("TextOptions", command_line.parse(command)))
    model.write_files(tmp_path / "stage")
    tokenizer = Tokenizer(tmp_path / "stage", TextSettings(max_tokens=model.settings.max_tokens))
    library = sentencepiece.SentencePieceProcessor(model_file=str(folder / FILES[family]))
    for text in TEXTS:
        (encoded,) = tokenizer.encode([Text(text, None, False)])
        prepared = sentencepiece_models._prepared(model.checkpoint.tokenizer, text)
        pieces = library.encode(prepared)
        wanted = [UNKNOWN[family] if library.is_unknown(piece) else piece + OFFSET[family] for piece in pieces]
        assert getattr(encoded, "ids", None) is not None, encoded
        assert encoded.ids[1:-1] == wanted, text  # type: ignore[union-attr]


def test_what_conversion_does_not_reproduce_is_refused(folder_of: Callable[..., Path]) -> None:
    """transformers takes every model of XLM-R for a Unigram one."""
    folder = folder_of("XLMRoberta", model_type="bpe")
    with pytest.raises(CheckpointError, match=r"as transformers converts it from sentencepiece\.bpe\.model, splits"):
        text_checkpoints.read(str(folder))


@pytest.mark.parametrize("file", ["spm.model", "spiece.model", "sentencepiece.bpe.model"])
def test_without_the_library_the_message_names_the_extra(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setattr(sentencepiece_models, "_found", lambda name: name != "sentencepiece")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_bert / name).read_bytes())
    (tmp_path / file).write_bytes(b"\x0a\x0e\x0a\x05")
    with pytest.raises(CheckpointError, match=r"sentencepiece model alone .*: scripts/setup sentencepiece "):
        text_checkpoints.read(str(tmp_path))


def test_a_model_that_is_none(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("XLMRoberta")
    path = folder / FILES["XLMRoberta"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"sentencepiece\.bpe\.model"):
        text_checkpoints.read(str(folder))
    path.write_text(json.dumps({"not": "a model"}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"its tokenizer \(sentencepiece\.bpe\.model\) cannot be loaded"):
        text_checkpoints.read(str(folder))
