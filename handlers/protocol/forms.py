"""Forms in parts, and gRPC's map: which names are inputs, and whether TorchServe has lost a part."""

from __future__ import annotations

import re
from typing import Any

from handlers.near_names import did_you_mean
from handlers.protocol.errors import InvalidInput, InvalidOption
from handlers.protocol.interface import Interface
from handlers.protocol.row import Row
from handlers.protocol.wording import names_of

# Fields that are inputs though they come without a file's name: text, text_2, data; 0, 1, 2. Others may be options.
INPUT_NAMES = re.compile(
    r"(?:body|data|file|input|part|sentence|text)?[_-]?\d+|body|data|file|input|sentence|text(?:_pair)?"
)
# What the value of an option may look like, and no image does.
OPTION_LIKE = re.compile(rb"[ -~]{0,100}")
PART_HEADERS = 2048  # bytes that a part's headers may have: a file's name comes percent-encoded, maybe twice


def refuse_unknown_field(name: str, value: object, content_type: str, model: Interface) -> None:
    """Raises InvalidOption for a field that is no file and may be a misspelt option."""
    if content_type or _names_input(name, value, model):
        return
    near = did_you_mean([name], list(model.options))
    raise InvalidOption(
        f"unknown field {names_of([name])}{near}; inputs are called data, text, file, text1, text2, ... or come as "
        f"files, with a name and a content type of their own; known options: {model.option_names}"
    )


def _names_input(name: str, value: object, model: Interface) -> bool:
    """Whether a field that is no file can be an input: it may be an option, misspelt.

    A text may be anything, so its field needs a known name. An image is known by its bytes.
    """
    if INPUT_NAMES.fullmatch(name):
        return True
    return not model.takes_texts and not (isinstance(value, (bytes, bytearray)) and OPTION_LIKE.fullmatch(value))


def refuse_lost_parts(row: Row) -> None:
    """Raises InvalidInput if bytes of the request are clearly missing: TorchServe keeps one part of each name.

    A part costs its boundary, its name and its own headers, so bytes of the request's Content-Length beyond that
    belong to parts that never arrived here. A lost part of less than PART_HEADERS goes unseen.
    """
    declared = row.header("content-length")
    if not (declared.isascii() and declared.isdigit() and len(declared) < 20):
        return
    lengths = [_length(value) for value in row.parameters.values()]
    arrived = sum(length for length in lengths if length is not None)
    boundary = len(row.header("content-type"))
    around = boundary + sum(PART_HEADERS + boundary + len(name) for name in row.parameters)
    if None not in lengths and int(declared) - arrived > around:
        raise InvalidInput(
            f"{declared} bytes came and {arrived} of them in {len(lengths)} distinct parts: parts with the same name "
            "replace each other; give each part a name of its own"
        )


def _length(value: Any) -> int | None:
    """Bytes that a part had on the wire; None for JSON that TorchServe has parsed, whose length nobody knows here."""
    if isinstance(value, str):  # TorchServe hands text parts over decoded
        return len(value.encode("utf-8", "replace"))
    return len(value) if isinstance(value, (bytes, bytearray)) else None
