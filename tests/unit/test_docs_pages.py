"""README and docs/: links lead somewhere, blocks are run or say why not, quoted messages are in the code."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT, RUN, anchors, blocks, links, unlike

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
CODE = ("handlers", "archive", "scripts")
# What a quoted message leaves open: a number, a name, a list.
OPEN = re.compile(r"\.\.\.|…|<[^>]*>")


@pages
def test_links_lead_to_files_and_headings(page: Path) -> None:
    missing = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):  # the network is not asked
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert not missing


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 130


@pages
def test_every_block_says_its_language(page: Path) -> None:
    """Blocks that are indented, or without a language, would be run by nobody and coloured as anything."""
    assert not [block.where for block in blocks(page) if not block.language]


@pages
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    for block in blocks(page):
        if block.language in RUN and block.notest:
            print(f"{block.where}: not run: {block.notest}")
            assert len(block.notest.split()) >= 2, f"{block.where}: {block.notest!r} is no reason"


def test_most_blocks_are_run() -> None:
    found = [block for page in PAGES for block in blocks(page) if block.language in RUN]
    skipped = [block for block in found if block.notest and "tests/" not in block.notest]  # those others run count
    assert len(skipped) <= len(found) / 2, "\n".join(f"{block.where}: {block.notest}" for block in skipped)


@pytest.mark.parametrize(
    ("shown", "came"),
    [
        ('[{"label": "7", "probability": 0.9}, ...]', '[{"label": "7", "probability": 0.8}, {"label": "1"}]'),
        ('{"code": 400, "message": "the text has 502 ..."}', '{"code": 400, "message": "the text has 502 tokens"}'),
        ('{"name": "...", ...}', '{"name": "cudnn", "why": "asked for"}'),
    ],
)
def test_an_answer_like_the_one_shown(shown: str, came: str) -> None:
    assert unlike(shown, came) is None


@pytest.mark.parametrize(
    ("shown", "came", "problem"),
    [
        ('[{"label": "7"}]', '[{"label": "7"}, {"label": "1"}]', "the answer has 2 items"),
        ('[{"label": "7"}, ...]', '[{"label": "1"}]', "the answer[0].label is '1'"),
        ('{"label": "7"}', '{"label": "7", "index": 7}', "the answer has the keys ['index', 'label']"),
        ('{"label": "7", ...}', '{"index": 7}', "the answer has the keys ['index']"),
        ('{"code": 400}', '{"code": 500}', "the answer.code is 500"),
        ("[0.5]", '["0.5"]', "the answer[0] is '0.5'"),
    ],
)
def test_an_answer_unlike_the_one_shown(shown: str, came: str, problem: str) -> None:
    assert unlike(shown, came) == problem


@pytest.mark.skipif(not TROUBLESHOOTING.is_file(), reason="no such page")
def test_quoted_messages_are_those_of_the_code() -> None:
    """A message in the first column of troubleshooting.md's tables is what somebody searches for: word for word.

    Rows of messages that are TorchServe's, Java's or the driver's say so, with an asterisk behind the message.
    """
    quoted = re.findall(r"^\| `([^`]*)` \|", TROUBLESHOOTING.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 30
    unknown = [message for message in quoted if not _is_said(message)]
    assert not unknown, "reworded in the code? Then reword it in docs/troubleshooting.md: " + "\n".join(unknown)


def _is_said(message: str) -> bool:
    parts = [part.strip() for part in OPEN.split(message.replace("\\|", "|")) if len(part.strip()) > 3]
    return bool(parts) and any(_in_order(parts, text) for text in _messages())


def _in_order(parts: list[str], text: str) -> bool:
    at = 0
    for part in parts:
        at = text.find(part, at) + 1
        if not at:
            return False
    return True


@cache
def _messages() -> list[str]:
    """The string literals of the code, whole, each value in an f-string left open; and what scripts/setup says."""
    texts = []
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            texts += [_text(node) for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.JoinedStr))]
    return [*texts, (ROOT / "scripts" / "setup").read_text(encoding="utf-8")]


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"
