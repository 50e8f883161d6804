"""How scripts/bench_serving and scripts/tune read their options."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from argument_types import checked, parts

from serving_bench import archives, layouts
from serving_bench.archives import Archive
from serving_bench.peers import stock
from serving_bench.plan import PEERS


@checked
def archive(text: str) -> Archive:
    """FILE.mar or NAME=FILE.mar."""
    return archives.read(text)


@checked
def counts(text: str) -> list[int]:
    """Whole numbers from 1: "1,16,64"."""
    found = parts(text)
    if not all(part.isascii() and part.isdigit() and int(part) for part in found):
        raise ValueError(f"{text!r}; wanted: whole numbers from 1, separated by commas")
    return [int(part) for part in found]


@checked
def servers(text: str) -> list[str]:
    """How many TorchServes: "one,per-gpu,2"."""
    found = parts(text)
    for part in found:
        if part not in (layouts.ONE, layouts.PER_GPU) and not (part.isascii() and part.isdigit() and int(part)):
            raise ValueError(f"{part!r}; wanted: {layouts.ONE}, {layouts.PER_GPU}, or a whole number from 1")
    return found


@checked
def switches(text: str) -> list[bool | None]:
    """With and without: "off,on"."""
    words = {"off": False, "on": True}
    if unknown := [part for part in parts(text) if part not in words]:
        raise ValueError(f"{unknown[0]!r}; wanted: off, on, or off,on")
    return [words[part] for part in parts(text)]


@checked
def rates(text: str) -> list[str]:
    """Rates of the open loop, "500,70%"; none for "none"."""
    if text == "none":
        return []
    found = parts(text)
    for part in found:
        with contextlib.suppress(ValueError):
            if 0 < float(part.removesuffix("%")) < float("inf"):
                continue
        raise ValueError(f"{part!r}; wanted: requests/s (500), a share of the most (70%), or none")
    return found


@checked
def peers(text: str) -> list[str]:
    """Names of peers: "stock,litserve"."""
    found = parts(text)
    for part in found:
        if part not in PEERS:
            raise ValueError(f"{part!r}; wanted: {', '.join(PEERS)}")
    return found


@checked
def peer_python(text: str) -> tuple[str, Path]:
    """A peer and the interpreter that runs it: "triton=/opt/triton/bin/python"."""
    name, _, path = text.partition("=")
    known = [other for other in PEERS if other != stock.NAME]
    if name not in known or not path:
        raise ValueError(
            f"{text!r}; wanted: NAME=PATH with one of {', '.join(known)} ({stock.NAME} runs in the same TorchServe)"
        )
    if not os.access(path, os.X_OK) or Path(path).is_dir():
        raise ValueError(f"{path!r} is no program; wanted: the path of an interpreter, such as venv/bin/python")
    return name, Path(path).absolute()  # resolved, a virtual environment's would be the one beneath it


@checked
def size(text: str) -> tuple[int, int]:
    """Width and height in pixels: "500x375"."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise ValueError(f"{text!r}; wanted: WIDTHxHEIGHT in pixels, such as 500x375")
    return int(found[1]), int(found[2])


@checked
def point_seconds(text: str) -> float:
    """Seconds of a point, 1 or more: wrk counts whole ones."""
    found = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0
    if found < 1:
        raise ValueError(f"{text!r}; wanted: seconds, 1 or more")
    return found


def _pair(separator: str, wanted: str) -> Callable[[str], tuple[str, str]]:
    @checked
    def read(text: str) -> tuple[str, str]:
        key, found, value = text.partition(separator)
        if not found or not key.strip():
            raise ValueError(f"{text!r}; wanted: {wanted}")
        return key.strip(), value.strip()

    return read


header: Callable[[str], tuple[str, str]] = _pair(":", "NAME: VALUE")
setting: Callable[[str], tuple[str, str]] = _pair("=", "KEY=VALUE, such as job_queue_size=1024")
