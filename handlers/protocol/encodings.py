"""In which form embeddings are sent to the client: numbers in JSON, base64 in JSON, or raw bytes.

JSON has as many digits as the precision holds: fewer bytes are sent, and no digit is made up. Base64 and raw bytes
are little-endian and exact: float32 as computed, or float16 at half the size.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handlers.protocol.errors import InvalidOption, NotAcceptable
from handlers.protocol.options import one_of

JSON, RAW, NPY = "application/json", "application/octet-stream", "application/x-npy"
MEDIA_TYPES = (JSON, RAW, NPY)
ENCODINGS = ("float", "base64")
# An option that an adapter alone can set: a vector per token, not per text.
TOKEN_VECTORS = "token_vectors"  # noqa: S105 - tokens of a text
EXACT = "exact"  # encoding_format of an answer that is not JSON: values as computed, not rounded to DIGITS
DTYPES: dict[object, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
# Significant decimal digits with which two neighbouring values of the type differ.
DIGITS = {"fp32": 9, "fp16": 5, "bf16": 4, "fp8": 5}


def media_type(accept: str, offered: Sequence[str] = MEDIA_TYPES) -> str:
    """Return the media type that the client prefers, by RFC 9110, section 12.5.1.

    Args:
        accept: the request's header Accept; "" if it did not come.
        offered: media types of answers, the default first.

    Raises NotAcceptable if none of them is acceptable.
    """
    if not accept or accept == "*/*":
        return offered[0]
    wishes: dict[str, float] = {}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        if kind:
            wishes.setdefault(kind, _quality(parameters))
    if not wishes:
        return offered[0]
    order = {kind: index for index, kind in enumerate(wishes)}
    best: tuple[float, int] | None = None
    chosen = offered[0]
    for known in offered:
        wish = next((kind for kind in (known, f"{known.split('/')[0]}/*", "*/*") if kind in wishes), None)
        if wish is None or wishes[wish] <= 0:
            continue
        rank = (wishes[wish], -order[wish])
        if best is None or rank > best:
            best, chosen = rank, known
    if best is None:
        raise NotAcceptable(f"the answer can come as {' or '.join(offered)}; the header Accept allows none of these")
    return chosen


def _quality(parameters: Sequence[str]) -> float:
    """A wish's weight, 0 to 1; one that cannot be read counts as no wish."""
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = float(parameter[2:])
            except ValueError:
                return 0.0
            return quality if 0 <= quality <= 1 else 0.0
    return 1.0


def check(options: Mapping[str, Any], form: str) -> None:
    """Raises InvalidOption for options that contradict each other or the answer's form."""
    encoding = options.get("encoding_format")
    if encoding and form != JSON:
        raise InvalidOption(f"encoding_format works for JSON answers alone, and Accept asks for {form}; drop one")
    if "dtype" in options and form == JSON and encoding != "base64":
        raise InvalidOption(f"dtype works only with encoding_format base64, or with Accept: {RAW} or {NPY}")


OPTIONS = {"encoding_format": one_of(ENCODINGS), "dtype": one_of(("float32", "float16"))}


def as_base64(row: NDArray[Any], options: Mapping[str, Any]) -> str:
    """Return one embedding, (hidden,), as base64 of its little-endian values."""
    return base64.b64encode(_typed(row, options).tobytes()).decode("ascii")


def as_bytes(rows: Sequence[NDArray[Any]], options: Mapping[str, Any], kind: str) -> tuple[bytes, dict[str, str]]:
    """Return the embeddings of one request as bytes, and the response headers with their shape and type.

    Args:
        rows: N embeddings, (hidden,) each.
        options: the request's; "dtype" is float32 or float16.
        kind: RAW for the values alone, row by row; NPY for a NumPy file, which holds its shape and type itself.
    """
    values = _typed(np.stack(rows), options)
    headers = {"X-Shape": ",".join(map(str, values.shape)), "X-Dtype": values.dtype.name}
    if kind == RAW:
        return values.tobytes(), headers
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    return stream.getvalue(), headers


def _typed(values: NDArray[Any], options: Mapping[str, Any]) -> NDArray[Any]:
    typed: NDArray[Any] = np.ascontiguousarray(values, DTYPES[options.get("dtype", "float32")])
    return typed
