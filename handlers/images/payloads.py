"""What a client sent -> image files, and the limits of one request."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from handlers.images import formats
from handlers.protocol import charsets
from handlers.protocol.errors import EmptyRequest, InvalidInput, PayloadTooLarge, RequestError
from handlers.protocol.wording import kind_of, names_of

WANTED = (
    "an image (JPEG, PNG, WebP, GIF, BMP or TIFF) or a ready .npy tensor, as the raw body, as multipart parts, "
    'or in base64 as JSON: a string, {"b64": "..."}, a list of those, or {"instances": [...]}'
)


def file_of(payload: object) -> bytes:
    """One input's bytes: those that came, or those that its JSON value holds in base64.

    Raises EmptyRequest or InvalidInput.
    """
    return bytes(payload) if isinstance(payload, (bytes, bytearray)) else from_base64(payload)


def from_base64(value: object) -> bytes:
    """The image bytes in a JSON value: base64, a data URL, or `{"b64": base64}`.

    Raises EmptyRequest or InvalidInput.
    """
    if isinstance(value, dict):
        if value.keys() != {"b64"}:
            raise InvalidInput(f'an object with keys {names_of(value)} came; wanted: {{"b64": "..."}}')
        value = value["b64"]
    if not isinstance(value, str):
        raise InvalidInput(f"{kind_of(value)} came where an image belongs; wanted: {WANTED}")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(
            f"a string of {len(value)} characters came that is not base64; wanted: the image's file in base64"
        ) from None
    if not data:
        raise EmptyRequest("an empty string came where an image belongs")
    charsets.refuse_compressed(data, "the image")
    return data


def refuse_together(files: Sequence[bytes], max_pixels: int) -> None:
    """Refuse a request whose images, each small enough, take too long to decode together.

    Args:
        files: the request's image files.
        max_pixels: of all of them.

    Raises PayloadTooLarge.
    """
    if len(files) > 1 and (pixels := sum(map(decoded_pixels, files))) > max_pixels:
        raise PayloadTooLarge(
            f"the request's {len(files)} images have {pixels} pixels together; at most {max_pixels} are decoded for "
            "one request; send fewer at a time, or smaller ones"
        )


def refuse_stack_in_list(counts: Sequence[int]) -> None:
    """Refuse several files of which one holds several images: nobody could tell whose answer is whose.

    Args:
        counts: images in each file of a request.

    Raises InvalidInput.
    """
    if len(counts) > 1 and max(counts) > 1:
        raise InvalidInput(
            f"one of {len(counts)} inputs is a .npy file of {max(counts)} images; send such a file alone, or images "
            "one by one"
        )


def decoded_pixels(data: bytes) -> int:
    """Pixels that decoding goes over, by the header; 0 for a file that will be refused or has no such header."""
    try:
        picture = formats.survey(data)
    except RequestError:
        return 0
    return picture.pixels * picture.scans if picture.scans > formats.MAX_PASSES else picture.pixels
