"""Write a model archive into a model repository of NVIDIA Triton: what scripts/export-triton does."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from archive_paths import existing

from handlers.hosts.contents import CONFIG, ArchiveError, Contents
from handlers.hosts.unpacking import archive_folder, settings_were_edited
from triton_host import config
from triton_host.config import Plan

HERE = Path(__file__).parent
COPIED = ("model.py", "binary_tensors.py")
PLAN, RECORD = "plan/model.plan", "plan/model.json"  # handlers/engines/plans.py
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
DESCRIPTION = """\
Write a model archive into a model repository of NVIDIA Triton. Every file of the archive is checked first. The model
runs in Triton's Python backend with the handlers that the archive carries, and Triton batches its requests. If the
archive holds a TensorRT plan, a second model NAME-tensorrt runs it in Triton's own backend.
"""
EPILOG = """\
examples:
  scripts/export-triton model_store/digits.mar triton-models
  scripts/export-triton model_store/digits.mar triton-models --name numbers --version 2
  tritonserver --model-repository triton-models                serves what was written

docs/kserve-triton.md says what Triton needs, and how to ask it.

Exit status: 0 after the paths of the folders that were written; 1 if the archive is refused, with the reason; 2 for a
wrong command line.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parser().parse_args(arguments)
    try:
        for path in export(chosen):
            print(path)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(
        prog="scripts/export-triton", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw
    )
    found.add_argument(
        "archive",
        type=existing,
        metavar="FILE.mar",
        help="an archive, or a folder that one was unpacked into; a file name alone may lie in model_store/",
    )
    found.add_argument("repository", type=Path, metavar="REPOSITORY", help="a folder; it is made if it is not there")
    found.add_argument("--name", help="name of the model in Triton (default: the archive's)")
    found.add_argument(
        "--version", type=int, default=1, metavar="N", help="version of the model in Triton (default: %(default)s)"
    )
    found.add_argument("--digest", metavar="sha256:...", help="refuse an archive with another content digest")
    found.add_argument("--edited-settings", action="store_true", help="take an edited model-config.yaml")
    found.add_argument(
        "--max-waiting",
        type=int,
        default=1000,
        metavar="N",
        help="requests that may wait; the next one is refused (default: %(default)s)",
    )
    return found


def export(chosen: argparse.Namespace) -> list[Path]:
    """Write the models, and return their folders. Raises ValueError or OSError; then nothing was put in place."""
    with archive_folder(chosen.archive, edited_settings=chosen.edited_settings) as (folder, listed):
        name = _refuse(chosen, listed)
        settings, text = _described(folder, listed, name, chosen.max_waiting)
        with _placed(chosen.repository / name, chosen.version, text) as version:
            for file in COPIED:
                shutil.copyfile(HERE / file, version / file)
            shutil.copytree(folder, version / "archive", ignore=shutil.ignore_patterns("__pycache__"))
        written = [chosen.repository / name]
        if (folder / PLAN).is_file():
            written.append(_export_plan(folder, chosen, settings, f"{name}-tensorrt", listed))
        return written


def _refuse(chosen: argparse.Namespace, listed: Contents) -> str:
    """The model's name. Raises ValueError for what cannot be exported."""
    name = chosen.name or listed.name
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a model; --name takes letters, digits, '_', '-' and '.'")
    if chosen.version < 1:
        raise ValueError(f"--version {chosen.version}: Triton's versions are numbers from 1")
    if chosen.digest not in (None, listed.digest):
        raise ArchiveError(f"{chosen.archive} has the content digest {listed.digest}, and {chosen.digest} is wanted")
    if "handlers/hosts/loading.py" not in listed.files:
        raise ValueError(f"the handlers in {chosen.archive} are too old to run without TorchServe; package it again")
    return name


def _described(folder: Path, listed: Contents, name: str, max_waiting: int) -> tuple[dict[str, Any], str]:
    """The archive's settings, and the model's config.pbtxt. Raises ArchiveError."""
    try:
        settings = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        edited = settings_were_edited(folder, listed)
        return settings, config.of_archive(listed, settings, name, max_waiting=max_waiting, are_edited=edited)
    except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise ArchiveError(f"{CONFIG} of the archive cannot be read ({type(error).__name__})") from None


def _export_plan(
    folder: Path, chosen: argparse.Namespace, settings: dict[str, Any], name: str, listed: Contents
) -> Path:
    delay_us = round(float(settings.get("maxBatchDelay") or 0) * 1000)
    text = config.of_plan(plan_of(folder, listed), name, delay_us)
    with _placed(chosen.repository / name, chosen.version, text) as version:
        shutil.copyfile(folder / PLAN, version / "model.plan")
    return Path(chosen.repository / name)


def plan_of(folder: Path, listed: Contents) -> Plan:
    """Return what an archive's plan is for. Raises ArchiveError if its record does not say."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))["fingerprint"]
        network = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Plan(
            buckets=tuple(map(int, found["buckets"])),
            image_size=int(found["image_size"]),
            classes=len(network["id2label"]),
            # A plan of torch2trt reads (N, 3, S, S), see handlers/engines/tensorrt.py.
            channels_last=listed.provenance.get("options", {}).get("converter") != "torch2trt",
            tensorrt=str(found["tensorrt"]),
            gpu=str(found["gpu"]),
            compute_capability=str(found["compute_capability"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(f"{RECORD} does not say what the plan is for ({type(error).__name__})") from None


@contextlib.contextmanager
def _placed(model: Path, version: int, text: str) -> Iterator[Path]:
    """Yield a folder that becomes the version's when all is written. Triton passes over names that are no numbers.

    Args:
        model: the model's folder in the repository.
        text: of its config.pbtxt.

    Raises FileExistsError if the version is there.
    """
    target = model / str(version)
    if target.exists():
        raise FileExistsError(f"{target} is there already; remove it, or name another version: --version N")
    model.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=model) as folder:
            made = Path(folder) / "version"
            made.mkdir()
            yield made
            described = Path(folder) / "config.pbtxt"
            described.write_text(text, encoding="utf-8")
            _open_to_others(Path(folder))
            described.replace(model / "config.pbtxt")
            made.rename(target)
    finally:
        with contextlib.suppress(OSError):  # it holds other versions
            model.rmdir()


def _open_to_others(folder: Path) -> None:
    """Give the files the permissions of this user's other files: an archive is unpacked for its user alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if stat.S_ISDIR(path.stat().st_mode) else 0o666) & ~mask)


if __name__ == "__main__":
    sys.exit(main())
