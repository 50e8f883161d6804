"""Bytes -> text by charset or byte order mark; what is JSON where nothing says so."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.protocol import charsets
from handlers.protocol.errors import RequestError

WORD = "größe €"
UTF16, UTF32 = codecs.BOM_UTF16_LE, codecs.BOM_UTF32_BE


def refused(work: object, *arguments: object) -> RequestError:
    assert callable(work)
    with pytest.raises(RequestError) as caught:
        work(*arguments)
    return caught.value


@pytest.mark.parametrize(
    ("data", "charset"),
    [
        (WORD.encode(), None),
        (WORD.encode(), "utf-8"),
        (WORD.encode(), "UTF8"),
        (WORD.encode(), "utf-8, utf8"),  # declared twice, and alike
        (codecs.BOM_UTF8 + WORD.encode(), None),
        (codecs.BOM_UTF8 + WORD.encode(), "utf-8"),
        (codecs.BOM_UTF8 + WORD.encode(), "utf-8-sig"),
        (WORD.encode("utf-16-le"), "utf-16le"),
        (WORD.encode("utf-16-be"), "UTF-16BE"),
        (UTF16 + WORD.encode("utf-16-le"), None),
        (UTF16 + WORD.encode("utf-16-le"), "utf-16"),
        (UTF16 + WORD.encode("utf-16-le"), "utf-16-le"),
        (UTF32 + WORD.encode("utf-32-be"), None),
        (UTF32 + WORD.encode("utf-32-be"), "utf-32"),
        (WORD.encode("cp1252"), "windows-1252"),
        (WORD.encode("iso-8859-15"), "ISO-8859-15"),
        (WORD.encode("gb18030"), "gb18030"),
        (WORD.encode("utf-7"), "utf-7"),
    ],
)
def test_texts_are_read_by_their_charset(data: bytes, charset: str | None) -> None:
    assert charsets.text(data, charset) == WORD
    assert charsets.text(bytearray(data), charset) == WORD


@pytest.mark.parametrize(
    ("data", "charset", "status", "said"),
    [
        (b"a", "nonsense", 415, "'nonsense'"),
        (b"a", "", 415, "charset"),
        (b"61", "hex", 415, "'hex'"),  # codecs of Python that are no charsets
        (b"a", "rot13", 415, "'rot13'"),
        (b"a", "unicode_escape", 415, "charset"),
        (b"a", "idna", 415, "charset"),
        (b"a", "../os", 415, "charset"),
        (b"a", "utf-8, utf-16le", 415, "different charsets, 'utf-8' and 'utf-16le'; declare one"),
        (b"a", "klingon, utf-8", 415, "unknown charset 'klingon'"),
        (b"\xff", None, 400, "not UTF-8: byte 0 of 1"),
        (codecs.BOM_UTF8 + b"\xff", None, 400, "not UTF-8: byte 3 of 4"),
        (b"\x81", "windows-1252", 400, "cp1252: byte 0 of 1"),
        ("é".encode(), "us-ascii", 400, "ascii: byte 0 of 2"),
        (b"abc", "utf-16le", 400, "UTF-16-LE"),
        (b"abcd", "utf-16", 400, "utf-16le or utf-16be"),
        (b"a\0b\0", None, 400, "NUL"),
        (b"a\0b\0", "utf-8", 400, "NUL"),
        (UTF16 + b"a\0", "utf-8", 400, "byte order mark of utf-16-le"),
        (UTF16 + b"a\0", "utf-16be", 400, "byte order mark"),
        (codecs.BOM_UTF8 + b"a", "latin-1", 400, "byte order mark"),
    ],
)
def test_what_is_not_as_declared_is_refused(data: bytes, charset: str | None, status: int, said: str) -> None:
    error = refused(charsets.text, data, charset)
    assert error.status == status
    assert said in error.message


@pytest.mark.parametrize("charset", [None, "utf-8"])
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (gzip.compress(b"text", mtime=0), "gzip"),
        (bz2.compress(b"text"), "bzip2"),
        (lzma.compress(b"text"), "xz"),
        (zlib.compress(b"text"), "zlib"),
        (b"\x28\xb5\x2f\xfd\0", "zstd"),
    ],
)
def test_compressed_texts_are_refused_by_name(data: bytes, name: str, charset: str | None) -> None:
    error = refused(charsets.text, data, charset)
    assert (error.status, f"({name})" in error.message, "uncompressed" in error.message) == (415, True, True)


def test_several_arrays_in_one_file_are_refused_as_such() -> None:
    stream = io.BytesIO()
    np.savez(stream, first=np.zeros(3), second=np.ones(2))
    for data in (stream.getvalue(), bytearray(stream.getvalue())):
        error = refused(charsets.refuse_compressed, data, "the body")
        assert (error.status, "compressed" in error.message) == (415, False)
        assert "the body is a .npz file, which holds several arrays; send one as a .npy file" in error.message


def test_a_declared_charset_goes_before_a_look_of_compression() -> None:
    assert charsets.text("xœuvre".encode("cp1252"), "cp1252") == "xœuvre"


@given(
    st.binary(max_size=12),
    st.sampled_from([None, "utf-8", "utf-16", "cp1252", "utf-7", "nonsense", "hz", "utf-32le"]),
)
def test_any_bytes_are_read_or_refused(data: bytes, charset: str | None) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(charsets.text(data, charset), str)


# What a body without a telling content type is, for a model of texts. A RequestError's name, or what JSON holds.
UNDECLARED = [
    ('"a"', "a"),
    (' \n["a", "b"]\n', ["a", "b"]),
    ('{"text": "a"}', {"text": "a"}),
    ('{"instances": []}', {"instances": []}),
    ("[1]", [1]),
    ("[]", []),
    ("{}", {}),
    ("42", 42),
    ("-4.5e3", -4500.0),
    ("null", None),
    ("true", True),
    # Texts.
    ("plain", charsets.NOT_JSON),
    ("", charsets.NOT_JSON),
    ("42 is the answer", charsets.NOT_JSON),
    ("007", charsets.NOT_JSON),
    ("1,5", charsets.NOT_JSON),
    ("nullable", charsets.NOT_JSON),
    ("NaN", charsets.NOT_JSON),
    ('"Yes," she said.', charsets.NOT_JSON),
    ('"Yes."\n"No."', charsets.NOT_JSON),
    ("'a'", charsets.NOT_JSON),
    ("[MASK] is a city.", charsets.NOT_JSON),
    ("[1] A footnote.", charsets.NOT_JSON),
    ("[[wiki]]", charsets.NOT_JSON),
    ("{name} is here.", charsets.NOT_JSON),
    # JSON that is broken, or several of it.
    ('{"text": "a"', "InvalidJson"),
    ('{"text": "a"}\n{"text": "b"}', "InvalidJson"),
    ('["a", "b",]', "InvalidJson"),
    ("{'text': 'a'}", "InvalidJson"),
    ("['a']", "InvalidJson"),
    ('[{"text": "a"}, ', "InvalidJson"),
    ('{"inputs": []}\x01\x02', "InvalidJson"),
]


@pytest.mark.parametrize(("sent", "found"), UNDECLARED)
@pytest.mark.parametrize("kind", [str, str.encode, lambda text: bytearray(text.encode())])
def test_json_that_nothing_announces(sent: str, found: object, kind: object) -> None:
    assert callable(kind)
    if found == "InvalidJson":
        error = refused(charsets.undeclared_json, kind(sent), "the body")
        assert (type(error).__name__, "text/plain" in error.message) == ("InvalidJson", True)
    else:
        assert charsets.undeclared_json(kind(sent), "the body") == found


def test_bytes_of_an_image_are_no_json() -> None:
    for data in (b"\xff\xd8\xff", b"\x89PNG", b"GIF89a", b"\x93NUMPY", b"BM", b"{\xff", b'"\xff"'):
        assert charsets.undeclared_json(data, "the body") is charsets.NOT_JSON


@pytest.mark.parametrize(
    ("data", "charset"),
    [
        (b'["\xc3\xa9"]', None),
        (b'\xef\xbb\xbf["\xc3\xa9"]', None),
        (b'["\xe9"]', "iso-8859-1"),
        ('["é"]'.encode("utf-16"), None),
        ('["é"]'.encode("utf-16-le"), "utf-16le"),
    ],
)
def test_json_is_read_by_its_charset(data: bytes, charset: str | None) -> None:
    assert charsets.json(data, charset, "the body") == ["é"]


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", ("", None)),
        (" Text/Plain ; x=y", ("text/plain", None)),
        ('text/plain; CHARSET="UTF-16LE"', ("text/plain", "utf-16le")),
        ("text/plain;charset=utf-8;charset=utf-8", ("text/plain", "utf-8")),
        ("text/plain;charset=a;charset=b", ("text/plain", "a, b")),
        ("text/plain; charset", ("text/plain", "")),
    ],
)
def test_content_types(header: str, wanted: tuple[str, str | None]) -> None:
    assert charsets.content_type(header) == wanted
