"""The one report of weights that do not fit a network."""

from __future__ import annotations

from handlers.misfits import listed, loading_misfits, misfits, report


def test_all_is_well() -> None:
    assert report(misfits({"a": (2, 3)}, {"a": (2, 3)})) == ""
    assert report({}) == report({"missing": []}) == ""


def test_missing_unexpected_and_misshapen_are_named_with_their_shapes() -> None:
    found = {"b": (1,), "c": (2, 3), "d": ()}
    wanted = {"a": (4,), "b": (1,), "c": (3, 2)}
    assert (
        report(misfits(found, wanted)) == "missing: a (4,); unexpected: d (); misshapen: c is (2, 3), wanted (3, 2)"
    )


def test_what_transformers_reports() -> None:
    info = {"missing_keys": {"b", "a"}, "unexpected_keys": {"c"}, "mismatched_keys": {("d", (1,), (2,))}}
    assert report(loading_misfits(info)) == "missing: a, b; unexpected: c; misshapen: d is (1,), wanted (2,)"


def test_long_lists_end_in_a_count() -> None:
    assert listed(range(3), most=3) == "0, 1, 2"
    assert listed(range(4), most=3) == "0, 1, 2, ... (4 in all)"
    assert report({"missing": map(str, range(30))}).endswith("19, ... (30 in all)")
