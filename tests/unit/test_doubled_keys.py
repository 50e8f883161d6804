"""A key that came twice in an object is found, wherever it is, and nothing else is taken for one."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.protocol import doubled_keys
from handlers.protocol.doubled_keys import LARGE
from handlers.protocol.errors import InvalidJson

NAMES = st.text('ab:\\"u03{}', max_size=3)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text('a:\\"u03{}é', max_size=8))
# Documents whose objects are lists of pairs, so that a key may be there twice.
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: ("list", items)),
        st.lists(st.tuples(NAMES, inner), max_size=4).map(lambda pairs: ("object", pairs)),
    ),
    max_leaves=12,
)


def written(document: Any, escape: bool) -> str:
    """Return the document as JSON; escape: write each colon of a string as an escape."""
    if not isinstance(document, tuple):
        text = json.dumps(document)
        return text.replace(":", "\\u003a") if escape else text
    kind, items = document
    if kind == "list":
        return "[" + ",".join(written(item, escape) for item in items) + "]"
    return "{" + ",".join(f"{written(name, escape)}:{written(value, escape)}" for name, value in items) + "}"


def has_doubles(document: Any) -> bool:
    if not isinstance(document, tuple):
        return False
    kind, items = document
    names = [name for name, _ in items] if kind == "object" else []
    values = [value for _, value in items] if kind == "object" else items
    return len(set(names)) < len(names) or any(map(has_doubles, values))


def is_refused(source: bytes | bytearray | str) -> bool:
    try:
        doubled_keys.refuse(source, orjson.loads(source), "the body")
    except InvalidJson:
        return True
    return False


@given(DOCUMENTS, st.booleans(), st.booleans())
def test_exactly_the_documents_with_a_doubled_key_are_refused(document: Any, escape: bool, large: bool) -> None:
    text = written(document, escape) + " " * (LARGE * large)
    for source in (text, text.encode(), bytearray(text.encode())):
        assert is_refused(source) == has_doubles(document)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c'"),
        ('{"a": 1, "\\u0061": 2}', "'a'"),
        ('{"' + "k" * 90 + '": 1, "' + "k" * 90 + '": 2}', f"'{'k' * 40}'"),
        ('{"": 1, "": 2}', "''"),
    ],
)
def test_the_key_is_named(source: str, named: str) -> None:
    with pytest.raises(InvalidJson, match=f"the body has the key {named} twice"):
        doubled_keys.refuse(source, orjson.loads(source), "the body")


def test_a_document_that_is_nested_deeply_is_refused_without_a_name() -> None:
    source = '{"a":' * 1000 + '{"b":1,"b":2}' + "}" * 1000
    with pytest.raises(InvalidJson, match=r"has .*key.* twice"):
        doubled_keys.refuse(source, orjson.loads(source), "the body")


def test_no_more_is_looked_at_than_has_to_be() -> None:
    """The list of numbers is not copied: all colons have been found above it."""
    source = orjson.dumps({"inputs": [{"name": "x", "data": [7] * 100_000}]})
    parsed = orjson.loads(source)
    tracemalloc.start()
    doubled_keys.refuse(source, parsed, "the body")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(source)
