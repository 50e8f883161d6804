"""TorchServe's logs as JSON (scripts/deployment/log4j2-json.xml), brought into the form of its plain ones."""

from __future__ import annotations

import json


def plain(text: str) -> str:
    """The lines of a log, each JSON object as the plain line that it stands for; other lines stay as they are."""
    return "\n".join(_line(line) if line.startswith("{") else line for line in text.splitlines())


def _line(line: str) -> str:
    """One object as a line. What is no object of that form, perhaps because only half is written, stays."""
    try:
        found = json.loads(line)
        head = f"{found['time']} [{found['level']:<5}] {found['thread']} {found['logger']} - {found['message']}"
        return "\n".join([head, *found["exception"].splitlines()])
    except (ValueError, KeyError, TypeError, AttributeError):
        return line
