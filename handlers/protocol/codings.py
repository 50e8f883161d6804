"""Content-Encoding: a body that the client compressed -> the body itself, within a bound."""

from __future__ import annotations

import dataclasses
import zlib

from handlers.protocol.errors import InvalidInput, PayloadTooLarge
from handlers.protocol.row import Row

# Bytes that a body may have when it is decompressed: config.properties' max_request_size, which no handler sees.
MOST = 16 * 2**20
# Values of Content-Encoding, and zlib's number for each format. "deflate" is zlib's own (RFC 9110, 8.4.1.2).
FORMATS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def decoded(row: Row) -> Row:
    """Return the row with its body decompressed, and the row itself if its body needs nothing or cannot be decoded.

    What is left coded is refused by Row.refuse_codings. The parts of a form are left: TorchServe could not read them.

    Raises InvalidInput or PayloadTooLarge.
    """
    if "content-encoding" not in row.headers:
        return row
    coding = row.header("content-encoding").strip().lower()
    body = row.parameters.get("body")
    if coding not in FORMATS or row.is_multipart or not isinstance(body, (bytes, bytearray)):
        return row
    headers = {name: value for name, value in row.headers.items() if name != "content-encoding"}
    return dataclasses.replace(
        row, parameters={**row.parameters, "body": _decompressed(body, coding)}, headers=headers
    )


def _decompressed(body: bytes | bytearray, coding: str) -> bytes:
    """One stream, whole: nothing is missing, and nothing follows it."""
    stream = zlib.decompressobj(FORMATS[coding])
    try:
        plain = stream.decompress(body, MOST + 1)
    except zlib.error:
        raise InvalidInput(f"the body came with content-encoding {coding} and cannot be decoded as such") from None
    if len(plain) > MOST:
        raise PayloadTooLarge(f"the body has more than {MOST} bytes when it is decompressed, which is the most")
    if not stream.eof:
        raise InvalidInput(f"the body came with content-encoding {coding} and is cut off, after {len(body)} bytes")
    if stream.unused_data:
        raise InvalidInput(f"{len(stream.unused_data)} bytes follow the body's {coding} stream; wanted: one stream")
    return plain
