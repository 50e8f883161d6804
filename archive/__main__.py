"""`python -m archive`, which `scripts/package` calls. See archive/options.py for what it takes."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import yaml

from archive import contents, options, package
from archive.checkpoints.guards import described, is_failure
from archive.checkpoints.sources import HUB_CONFIGS, HUB_TEXT, locate

# Options that name files: where those lie on this machine is nobody's business.
PATHS = ("weights", "labels", "parity_data", "tokenizer")
TRACEBACK = "PACKAGING_TRACEBACK"
PRESET_FOLDERS = {"resnet101": "resnet101", "bert-large": "bert_large"}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = options.parser()
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "show":
            print(contents.show(chosen.mar))
        elif chosen.command == "verify":
            print(f"{chosen.mar}: unchanged since it was packaged, {contents.verify(chosen.mar)}")
        else:
            _package(chosen)
    except BaseException as error:
        if not is_failure(error):
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        print(f"error: {_told(error, chosen)}", file=sys.stderr)
        return 1
    return 0


def _told(error: BaseException, chosen: argparse.Namespace) -> str:
    """The message for a person, whatever was raised."""
    if isinstance(
        error, (ValueError, OSError)
    ):  # CheckpointError, PackagingError, ArchiveError, SettingsError; files
        return str(error) or type(error).__name__
    source = vars(chosen).get("weights") or vars(chosen).get("mar") or chosen.command
    return (
        f"{source} cannot be served: {described(error)}. Nothing was put in place. Wanted: a checkpoint as "
        f"save_pretrained writes it; the environment variable {TRACEBACK}=1 shows where this happened"
    )


def _package(chosen: argparse.Namespace) -> None:
    started = time.monotonic()
    for key in PATHS[1:]:
        path = vars(chosen).get(key)
        if path is not None and not Path(path).exists():
            raise ValueError(f"--{key.replace('_', '-')} {path}: there is no such file or folder")
    source = None if chosen.weights is None else locate(chosen.weights, chosen.revision, HUB_TEXT)
    chosen.name = chosen.name or _default_name(chosen.weights)
    if not options.is_name(chosen.name):
        raise ValueError(f"{chosen.name!r} cannot name a model; --name takes letters, digits, '_', '-' and '.'")
    target = chosen.export_path / f"{chosen.name}.mar"
    asked = {key: value for key, value in vars(chosen).items() if key not in ("force", "export_path")}
    recorded = {key: _recorded(key, value) for key, value in asked.items()}
    given = (source, chosen.parity_data, *(vars(chosen).get(key) for key in ("labels", "tokenizer")))
    files = [Path(path) for path in given if path is not None]
    if source is not None and source.is_file():  # its architecture and preprocessing may be read from beside it
        files += [source.parent / name for name in HUB_CONFIGS]
    inputs = package.inputs_digest(recorded, files)
    digest = None if chosen.force else package.up_to_date(target, inputs)
    if digest:
        print(f"{target} is up to date: {digest}")
        return
    print(f"packaging {chosen.name} from {chosen.weights or 'random weights'}")
    job = _job(chosen)
    mar = package.build(
        job, chosen.export_path, inputs, {k: v for k, v in recorded.items() if v not in ("None", False)}
    )
    size_mb = mar.stat().st_size / 1e6
    print(f"{mar}: {size_mb:.1f} MB in {time.monotonic() - started:.0f} s, {contents.read_provenance(mar)['digest']}")


def _recorded(key: str, value: object) -> object:
    """An option as the provenance keeps it; of a local path its last part."""
    if isinstance(value, (int, float, list)):
        return value
    path = Path(str(value)).expanduser()
    return path.absolute().name if value is not None and key in PATHS and path.exists() else str(value)


def _default_name(weights: str) -> str:
    path = Path(weights)
    return (path.stem if path.is_file() else path.resolve().name if path.is_dir() else weights.split("/")[-1]).lower()


def _job(chosen: argparse.Namespace) -> Any:
    """Heavy imports (torch, transformers) start here: asking whether anything has changed needs none."""
    _quiet()
    from archive import recipes

    preset = _preset(chosen.command)
    kind = preset.get("kind", chosen.command)
    makers = {"image-classifier": recipes.image_job, "image-encoder": recipes.image_encoder_job}
    make = makers.get(kind, recipes.text_job)
    return make(chosen, preset)


def _preset(command: str) -> dict[str, Any]:
    if command not in PRESET_FOLDERS:
        return {}
    path = Path(__file__).parent / PRESET_FOLDERS[command] / "preset.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _quiet() -> None:
    """Our own steps tell the progress; transformers' bars and advice would run across them."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
