"""Names that are spelt almost right: which known name was meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection

NEAR = 0.75  # ratio of difflib.SequenceMatcher from which a name is taken for another one
LONGEST = 40  # characters of a name that are looked at


def nearest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that was probably meant; None if none is near. Case, "-" and "_" do not count."""
    by_letters = {_letters(one): one for one in known}
    found = difflib.get_close_matches(_letters(name[:LONGEST]), by_letters, 1, NEAR)
    return by_letters[found[0]] if found else None


def did_you_mean(names: Collection[str], known: Collection[str]) -> str:
    """Return '; did you mean "a", "b"?' with the known names that were probably meant; "" if there are none."""
    meant = [near for name in sorted(names)[:5] if (near := nearest(name, known))]
    return f"; did you mean {', '.join(f'{near!r}' for near in dict.fromkeys(meant))}?" if meant else ""


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
