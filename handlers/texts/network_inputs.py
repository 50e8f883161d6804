"""What a network can be given, by its config.json and its tokenizer's: how many positions, which token types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Networks of these types give the first token the position pad_token_id + 1.
_AFTER_PADDING = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod"),
    *("mpnet", "data2vec-text", "ibert", "longformer", "luke", "esm"),
)


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Tokens that the network has positions for; None for a network without a table of positions.

    Args:
        config: config.json's content.
    """
    unused = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in _AFTER_PADDING else 0
    rows = config.get("max_position_embeddings")
    return None if rows is None else int(rows) - unused


def refuse_positions(config: Mapping[str, Any], max_tokens: int) -> None:
    """Raises ValueError if `max_tokens` is more than the network has positions for.

    Args:
        config: config.json's content.
        max_tokens: the setting maxTokens.
    """
    most = positions_of(config)
    if most is not None and max_tokens > most:
        raise ValueError(f"maxTokens is {max_tokens}, and the network has positions for {most}")


def has_token_types(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether the network gets the tokenizer's token types; otherwise it gets zeros.

    It does not if it has at most one token type, or if the tokenizer's config leaves them out of its outputs.

    Args:
        config: config.json's content.
        folder: of the archive or checkpoint.
    """
    names = tokenizer_config(folder).get("model_input_names")
    return config.get("type_vocab_size") not in (0, 1) and (names is None or "token_type_ids" in names)


def tokenizer_config(folder: Path) -> Mapping[str, Any]:
    """tokenizer_config.json's content; empty if there is no such file."""
    path = folder / "tokenizer_config.json"
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
