"""The tokenizer's special tokens, from its own files."""

from __future__ import annotations

import json
from pathlib import Path

FILES = ("special_tokens_map.json", "tokenizer_config.json")


def special_token(folder: Path, name: str) -> str | None:
    """Return the token that the tokenizer's files give this name, such as "mask_token"; None if there is none."""
    for file in FILES:
        path = folder / file
        token = json.loads(path.read_text(encoding="utf-8")).get(name) if path.is_file() else None
        if token:
            return str(token["content"] if isinstance(token, dict) else token)
    return None
