"""Compare an answer under load with the answer to the same request sent alone.

Batches of other sizes round differently, so numbers are compared within bounds.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving_bench.answer_forms import parsed

VECTOR = 8  # a list of so many numbers or more is a vector, compared by its direction
LEAST_COSINE = 0.999
MOST_DIFFERENCE = 0.02  # between probabilities, or scores
ENCODED = 64  # a string of so many characters or more may be numbers in base64


def difference(found: bytes, wanted: bytes) -> str | None:
    """What differs, in a few words; None if both mean the same."""
    try:
        content = parsed(wanted)
    except ValueError:
        return _of_bytes(found, wanted)
    try:
        return _of_json(parsed(found), content)
    except ValueError:
        return "is no JSON"


def _of_json(found: Any, wanted: Any) -> str | None:
    if isinstance(wanted, list) and isinstance(found, list):
        return _of_lists(found, wanted)
    if isinstance(wanted, dict) and isinstance(found, dict):
        if len(wanted) > 1 and all(map(_is_number, wanted.values())) and all(map(_is_number, found.values())):
            return _of_lists(_ranked(found), _ranked(wanted))  # {label: probability}, as TorchServe's own handlers
        if found.keys() != wanted.keys():
            return f"has keys {sorted(found)}, not {sorted(wanted)}"
        return next((reason for key in wanted if (reason := _of_json(found[key], wanted[key]))), None)
    if _is_number(wanted) and _is_number(found):
        return (
            None
            if abs(found - wanted) <= MOST_DIFFERENCE * max(1, abs(wanted))
            else f"has {found:.4g}, not {wanted:.4g}"
        )
    if isinstance(wanted, str) and isinstance(found, str) and len(wanted) >= ENCODED:
        return None if found == wanted else _of_strings(found, wanted)
    return None if found == wanted else "differs"


def _of_lists(found: Sequence[Any], wanted: Sequence[Any]) -> str | None:
    if _is_ranking(wanted) and _is_ranking(found):
        return _of_rankings(found, wanted)
    if len(found) != len(wanted):
        return f"has {len(found)} entries, not {len(wanted)}"
    if len(wanted) >= VECTOR and all(map(_is_number, wanted)) and all(map(_is_number, found)):
        return _of_vectors(np.asarray(found, np.float64), np.asarray(wanted, np.float64))
    return next((reason for pair in zip(found, wanted, strict=True) if (reason := _of_json(*pair))), None)


def _of_rankings(found: Sequence[Any], wanted: Sequence[Any]) -> str | None:
    """Compare the likeliest label and its score; of two labels about as likely, either may come first."""
    reason = _of_json(_score(found[0]), _score(wanted[0]))
    if reason is None and found[0].get("label") != wanted[0].get("label"):
        near = [item.get("label") for item in wanted if _score(wanted[0]) - _score(item) <= MOST_DIFFERENCE]
        reason = None if found[0].get("label") in near else "has another label first"
    return reason


def _is_ranking(value: Sequence[Any]) -> bool:
    """Whether these are labels with scores, as classifiers answer, and not entities, which carry their position."""
    return bool(value) and all(
        isinstance(item, dict) and "label" in item and "start" not in item and _is_number(_score(item))
        for item in value
    )


def agree(one: bytes, other: bytes) -> bool | None:
    """Whether two servers' answers to the same request mean the same; None if their forms cannot be compared.

    Of each input only the likeliest label counts, or its vector's direction: preprocessing may differ a little from
    server to server.
    """
    meanings = [_meanings(_content(answer)) for answer in (one, other)]
    if meanings == [[], []]:
        return _of_bytes(one, other) is None if _are_numbers(one, other) else None
    for index, raw in enumerate((one, other)):
        meanings[index] = meanings[index] or _as_vectors(raw, meanings[1 - index])
    if not all(meanings) or type(meanings[0][0]) is not type(meanings[1][0]):
        return None
    if isinstance(meanings[0][0], str):
        return bool(meanings[0] == meanings[1])
    if [len(vector) for vector in meanings[0]] != [len(vector) for vector in meanings[1]]:
        return False
    return all(_of_vectors(*pair) is None for pair in zip(*meanings, strict=True))


def _content(answer: bytes) -> Any:
    try:
        return parsed(answer)
    except ValueError:
        return None


def _meanings(value: Any) -> list[Any]:
    """The likeliest label of each input, or the vector of each, however deep they lie."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return _meanings(json.loads(value))
        return []
    if isinstance(value, dict) and len(value) > 1 and all(map(_is_number, value.values())):
        return [str(_ranked(value)[0]["label"])]
    if isinstance(value, dict):
        inside = value.get("predictions") or value.get("output") or value.get("outputs") or value.get("data")
        return [str(value["label"])] if "label" in value else _meanings(inside)
    if isinstance(value, list) and value:
        if len(value) >= VECTOR and all(map(_is_number, value)):
            return [np.asarray(value, np.float64)]
        found = [_meanings(item) for item in value]
        return found[0] if _is_ranking(value) else [meaning for of_item in found for meaning in of_item]
    return []


def _as_vectors(raw: bytes, like: list[Any]) -> list[Any]:
    """Raw numbers as vectors of the lengths of `like`; none if they are not as many."""
    if not like or isinstance(like[0], str):
        return []
    ends = np.cumsum([len(vector) for vector in like])
    for kind in ("<f4", "<f2"):
        if len(raw) == ends[-1] * np.dtype(kind).itemsize:
            return list(np.split(np.frombuffer(raw, kind).astype(np.float64), ends[:-1]))
    return []


def _are_numbers(one: bytes, other: bytes) -> bool:
    """Whether two answers without JSON may be raw vectors: as long as each other, and not tiny."""
    return len(one) == len(other) >= VECTOR * 2 and all(_content(answer) is None for answer in (one, other))


def _ranked(scores: Mapping[str, float]) -> list[dict[str, Any]]:
    found = [{"label": label, "score": score} for label, score in scores.items()]
    return sorted(found, key=lambda item: -float(item["score"]))


def _score(item: Any) -> Any:
    return item.get("probability", item.get("score"))


def _of_bytes(found: bytes, wanted: bytes) -> str | None:
    """Equal, or the same numbers as .npy, float32 or float16."""
    if found == wanted:
        return None
    if len(found) != len(wanted):
        return f"has {len(found)} bytes, not {len(wanted)}"
    if wanted.startswith(b"\x93NUMPY"):
        arrays = [np.load(io.BytesIO(data), allow_pickle=False) for data in (found, wanted)]
        return _of_vectors(*(array.astype(np.float64).ravel() for array in arrays))
    kinds = [kind for kind in ("<f4", "<f2") if len(wanted) % np.dtype(kind).itemsize == 0]
    differences = [
        _of_vectors(*(np.frombuffer(data, kind).astype(np.float64) for data in (found, wanted))) for kind in kinds
    ]
    return differences[0] if differences and None not in differences else None if differences else "differs"


def _of_strings(found: str, wanted: str) -> str | None:
    """Which may hold JSON, or numbers in base64."""
    with contextlib.suppress(ValueError):
        return _of_json(json.loads(found), json.loads(wanted))
    try:
        return _of_bytes(base64.b64decode(found, validate=True), base64.b64decode(wanted, validate=True))
    except binascii.Error:
        return "has another text"


def _of_vectors(found: Any, wanted: Any) -> str | None:
    if not np.isfinite(found).all():
        return "has numbers that are not finite"
    norms = float(np.linalg.norm(found) * np.linalg.norm(wanted))
    if norms == 0 or not math.isfinite(norms):
        return None if np.array_equal(found, wanted) else "differs"
    cosine = float(found @ wanted) / norms
    return None if cosine >= LEAST_COSINE else f"has a cosine of {cosine:.4f} to it"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
