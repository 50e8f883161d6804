"""Completes and checks tokenizers that exist as a model of the sentencepiece library only.

transformers rebuilds such a tokenizer from the model's pieces. What it leaves out is put back here. A tokenizer that
still splits sample texts differently than the library is refused, because slightly wrong tokens give slightly wrong
answers.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import normalizers

from archive.checkpoints.errors import CheckpointError

PACKAGES = ("sentencepiece", "google.protobuf")
SAMPLES = Path(__file__).parents[1] / "samples" / "texts.txt"
# Texts that conversions often get wrong: compatibility characters, runs of blanks, unknown characters, other scripts.
ODD = (
    "ﬁne Ⅷ ½ ① ™",
    "ＦＵＬＬ width",
    "two  blanks and   three",
    " leading, trailing ",
    "1,000 of 2,500,000 in 1999.",
    "数学は美しい。 Привет, мир! 😀 مرحبا",
    "a\tb\nc",
    "e-mail: jane.doe@example.com (or 'so')",
)


def refuse_without_library(file: str) -> None:
    """Raise CheckpointError if the packages that read sentencepiece's models are not installed."""
    absent = [name for name in PACKAGES if not _found(name)]
    if absent:
        raise CheckpointError(
            f"its tokenizer is a sentencepiece model alone ({file}), which takes the packages sentencepiece and "
            "protobuf to read: scripts/setup sentencepiece installs them; or give the folder a tokenizer.json"
        )


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def complete(tokenizer: Any, file: Path) -> None:
    """Make `tokenizer`, which transformers converted from `file`, split texts as the sentencepiece library does.

    Raises CheckpointError if it still does not.
    """
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    charsmap = _charsmap(model)
    if charsmap and '"Precompiled"' not in tokenizer.backend_tokenizer.to_str():
        backend = tokenizer.backend_tokenizer
        held = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap), *held])
    for text in _texts():
        _compare(tokenizer, model, text, file.name)


def _charsmap(model: Any) -> bytes:
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    proto.ParseFromString(model.serialized_model_proto())
    return bytes(proto.normalizer_spec.precompiled_charsmap)


def _texts() -> Iterator[str]:
    yield from ODD
    yield from SAMPLES.read_text(encoding="utf-8").splitlines()


def _compare(tokenizer: Any, model: Any, text: str, file: str) -> None:
    wanted = [
        tokenizer.unk_token if model.is_unknown(piece) else model.id_to_piece(piece)
        for piece in model.encode(_prepared(tokenizer, text))
    ]
    came = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    if came != wanted:
        raise CheckpointError(
            f"{type(tokenizer).__name__}, as transformers converts it from {file}, splits {text!r} into {came}, and "
            f"the sentencepiece model into {wanted}. Wanted: a tokenizer.json of the checkpoint's own in the folder"
        )


def _prepared(tokenizer: Any, text: str) -> str:
    """Return the text as the model's own code changes it before the sentencepiece model sees it."""
    steps = PREPARED.get(type(tokenizer).__name__, ())
    for step in steps:
        text = step(tokenizer, text)
    return text


def _albert(tokenizer: Any, text: str) -> str:
    """Prepare a text for ALBERT. Source: google-research/albert, tokenization.py, preprocess_text."""
    text = " ".join(text.strip().split()).replace("``", '"').replace("''", '"')
    if not tokenizer.keep_accents:
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return text.lower() if tokenizer.do_lower_case else text


def _lower(tokenizer: Any, text: str) -> str:
    return text.lower() if getattr(tokenizer, "do_lower_case", False) else text


PREPARED: dict[str, tuple[Callable[[Any, str], str], ...]] = {
    "AlbertTokenizer": (_albert,),
    "DebertaV2Tokenizer": (_lower,),
    "RemBertTokenizer": (_lower,),
}
