"""The Markdown pages of README and docs/: their code blocks, their links, and the anchors that links may name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RUN = ("bash", "python")  # languages whose blocks are commands of this project

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
