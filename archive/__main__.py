"""`python -m archive`, which `scripts/package` calls: runs one command. Its options are in command_line.py."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from archive import command_line, early_checks, fingerprint, inspection, package
from archive.checkpoints.errors import is_failure, one_line
from archive.checkpoints.locations import HUB_CONFIGS, HUB_TEXT, locate
from archive.options import (
    ImageClassifierOptions,
    ImageEncoderOptions,
    InspectionOptions,
    PackagingOptions,
    SigningOptions,
    TextOptions,
)

if TYPE_CHECKING:
    from archive.models import PackagedModel  # imports torch
    from archive.signing.keys import PrivateKey  # imports cryptography

TRACEBACK = "PACKAGING_TRACEBACK"  # an environment variable
NO_HINTS = "PACKAGING_NO_HINTS"  # an environment variable, for programs that serve the archive themselves
# Options that name files. Their folders on this machine are private, so the last part of a path is recorded.
PATHS = ("weights", "labels", "parity_data", "tokenizer")


def arguments(words: list[str]) -> None:
    """Raise SystemExit for a wrong command line, and after the help: scripts/setup asks before it installs."""
    command_line.parse(words)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes those of this process.

    Returns:
        The exit status: 0, or 1 after an error, whose message is on stderr.
    """
    options = command_line.parse(arguments)
    try:
        if isinstance(options, InspectionOptions):
            _inspect(options)
        elif isinstance(options, SigningOptions):
            _sign(options)
        else:
            _package(options)
    except BaseException as error:
        if isinstance(error, BrokenPipeError):  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
            return 1
        if not is_failure(error):
            raise
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        print(f"error: {_message(error, options)}", file=sys.stderr)
        return 1
    return 0


def _inspect(options: InspectionOptions) -> None:
    if options.command == "show":
        print(inspection.show(options.mar))
    else:
        print(f"{options.mar}: unchanged since it was packaged, {inspection.verify(options.mar)}")


def _sign(options: SigningOptions) -> None:
    from archive.signing import commands  # imports cryptography, which packaging without signing does not need

    for line in commands.run(options):
        print(line)


def _message(error: BaseException, options: PackagingOptions | InspectionOptions | SigningOptions) -> str:
    """Return what a person reads, whatever was raised."""
    if isinstance(error, (ValueError, OSError)):  # this project's own errors are ValueErrors; files raise OSErrors
        return str(error) or type(error).__name__
    if isinstance(options, (InspectionOptions, SigningOptions)):
        return f"{type(error).__name__}: {one_line(error)}"
    source = options.weights or options.command
    return (
        f"{source} cannot be served: {one_line(error)}. Nothing was put in place. Wanted: a checkpoint as "
        f"save_pretrained writes it; the environment variable {TRACEBACK}=1 shows where this happened"
    )


def _package(options: PackagingOptions) -> None:
    started = time.monotonic()
    _refuse_absent_files(options)
    sources = _sources(options)
    if not command_line.is_name(options.name):
        raise ValueError(f"{options.name!r} cannot name a model; --name takes letters, digits, '_', '-' and '.'")
    key = _signing_key(options)  # before minutes are spent on packaging
    target = options.export_path / f"{options.name}.mar"
    recorded = recorded_options(options)
    inputs = fingerprint.inputs_digest(recorded, sources)
    digest = None if options.force else fingerprint.up_to_date(target, inputs)
    if digest:
        print(f"{target} is up to date: {digest}")
    else:
        early_checks.run(options, sources[0] if options.weights else None)
        print(f"packaging {options.name} from {options.weights or 'random weights'}")
        _build(options, inputs, recorded, started)
        _remove_signature(target)
    _keep_signature(target, key)


def _build(options: PackagingOptions, inputs: str, recorded: Mapping[str, object], started: float) -> None:
    mar = package.build(_model(options), options.export_path, inputs, kept_options(recorded))
    size_mb = mar.stat().st_size / 1e6
    digest = inspection.read_provenance(mar)["digest"]
    print(f"{mar}: {size_mb:.1f} MB in {time.monotonic() - started:.1f} s, {digest}")
    if not os.environ.get(NO_HINTS):
        print(next_steps(mar, is_text=isinstance(options, TextOptions)))


def next_steps(mar: Path, *, is_text: bool) -> str:
    """Return the commands that try and serve an archive, for a person."""
    mar = mar.relative_to(Path.cwd()) if mar.is_relative_to(Path.cwd()) else mar
    try_it = f'scripts/predict {mar} --text "one text"' if is_text else f"scripts/predict {mar} photo.jpg"
    return f"try it:    {try_it}\nserve it:  scripts/serve {mar}"


def _signing_key(options: PackagingOptions) -> PrivateKey | None:
    if options.sign is None:
        return None
    from archive.signing import commands

    return commands.open_key(options.sign)


def _remove_signature(mar: Path) -> None:
    """Remove that of the archive before this one: whoever checks it would take this archive for a forged one."""
    path = mar.with_name(mar.name + inspection.SIGNATURE)
    if path.exists():
        path.unlink()
        print(f"removed {path}: it was the signature of the archive before this one")


def _keep_signature(mar: Path, key: PrivateKey | None) -> None:
    if key is not None:
        from archive.signing import commands

        for line in commands.keep_signed(mar, key):
            print(line)


def _refuse_absent_files(options: PackagingOptions) -> None:
    for option, path in options.files.items():
        if not path.exists():
            raise ValueError(f"{option} {path}: there is no such file or folder")


def _sources(options: PackagingOptions) -> list[Path]:
    """Return the files and folders that decide what is packaged. A Hub id is downloaded."""
    if options.weights is None:
        return list(options.files.values())
    source = locate(options.weights, options.revision, HUB_TEXT)
    # A file's architecture and preprocessing may be read from files in the same folder.
    neighbours = [source.parent / name for name in HUB_CONFIGS] if source.is_file() else []
    return [source, *options.files.values(), *neighbours]


def recorded_options(options: PackagingOptions) -> dict[str, object]:
    """Return the options as the inputs digest has them, in the command line's order."""
    return {key: _recorded(key, value) for key, value in options.given.items()}


def kept_options(recorded: Mapping[str, object]) -> dict[str, object]:
    """Return the recorded options that were given or have a default, which is what the provenance keeps."""
    return {key: value for key, value in recorded.items() if value not in ("None", False)}


def _recorded(key: str, value: object) -> object:
    if isinstance(value, (int, float, list)):
        return value
    path = Path(str(value)).expanduser()
    return path.absolute().name if value is not None and key in PATHS and path.exists() else str(value)


def _model(options: PackagingOptions) -> PackagedModel:
    """Heavy imports (torch, transformers) start here: asking whether anything has changed needs none."""
    _quiet()
    from archive import resolve

    if isinstance(options, ImageClassifierOptions):
        return resolve.image_model(options)
    if isinstance(options, ImageEncoderOptions):
        return resolve.image_encoder_model(options)
    return resolve.text_model(cast(TextOptions, options))


def _quiet() -> None:
    """Silence transformers' progress bars and advice: packaging prints its own steps."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
