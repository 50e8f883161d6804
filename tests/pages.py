"""The Markdown pages of README and docs/: their code blocks, answers that they show, links, and anchors."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RUN = ("bash", "python")  # languages whose blocks are commands of this project
MORE = "..."

_FENCE = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\]\([^)]*\))*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
_HEADING = re.compile(r"^(#{1,6}) +(.*?) *#*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    line: of its first fence, from 1. language: "" if there is none. notest: why it is not run, "" if it is.
    answer: what the block shows as its output: the text of a `json` block that follows at once, or None.
    """

    page: Path
    line: int
    language: str
    notest: str
    text: str
    answer: str | None = None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in _FENCE.finditer(text):
        language, _, attributes = match[3].strip().partition(" ")
        notest = dict(_ATTRIBUTE.findall(attributes)).get("notest", "")
        block = Block(page, text.count("\n", 0, match.start()) + 1, language, notest, match[4])
        if language == "json" and found and not text[end : match.start()].strip():
            shown = found[-1]
            found[-1] = Block(shown.page, shown.line, shown.language, shown.notest, shown.text, block.text)
        found.append(block)
        end = match.end()
    return found


def prose(page: Path) -> str:
    """A page's text without its blocks and code spans."""
    return re.sub(r"(`+)(?:(?!`).)+?\1", "", _FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.DOTALL)


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links and pictures, as they are written."""
    yield from _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The names that GitHub, and Sphinx's reader of Markdown, give to a page's headings."""
    seen: Counter[str] = Counter()
    names = set()
    for _, title in _HEADING.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        names.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def unlike(shown: str, came: str) -> str | None:
    """Where a JSON answer differs from the one that a page shows; None if it does not.

    Keys, strings and whole numbers have to be the same, numbers with a point need not. `...` in the shown one stands
    for more items, more keys, or more of a string.
    """
    return _unlike(json.loads(_whole(shown)), json.loads(came), "the answer")


def _whole(shown: str) -> str:
    """JSON of an answer that is shown in part: `...` becomes a last item, or a last key."""
    return re.sub(r"(?<!\")\.\.\.(?!\")", '"..."', re.sub(r"(?<!\")\.\.\.(?=\s*\})", '"...": 0', shown))


def _unlike(shown: Any, came: Any, at: str) -> str | None:
    if isinstance(shown, dict) and isinstance(came, dict):
        keys = set(shown) - {MORE}
        if (keys - set(came)) if MORE in shown else (keys != set(came)):
            return f"{at} has the keys {sorted(came)}"
        return next(filter(None, (_unlike(shown[key], came[key], f"{at}.{key}") for key in sorted(keys))), None)
    if isinstance(shown, list) and isinstance(came, list):
        items = [item for item in shown if item != MORE]
        if len(came) < len(items) or (MORE not in shown and len(came) != len(items)):
            return f"{at} has {len(came)} items"
        pairs = zip(items, came, strict=False)
        return next(filter(None, (_unlike(a, b, f"{at}[{i}]") for i, (a, b) in enumerate(pairs))), None)
    if isinstance(shown, str) and isinstance(came, str):
        pattern = ".*".join(map(re.escape, shown.split(MORE)))
        return None if re.fullmatch(pattern, came, re.DOTALL) else f"{at} is {came!r}"
    if type(shown) is type(came):
        return None if isinstance(shown, float) or shown == came else f"{at} is {came!r}"
    return f"{at} is {came!r}"
