"""Ask an archive in this process, without a server: what scripts/predict does."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archive_paths import existing, located
from argument_types import positive

from archive.near_options import Parser
from archive.progress import LiveLine
from archive.trial_run import MEASURING_LOGGER, passing_on

DESCRIPTION = """\
Load a model archive into this process, and print its answers. No TorchServe and no Java are needed. Every file of the
archive is checked first; the answers are those that TorchServe gives.

An INPUT is a file, or - for the standard input. For a model of images it is an image or a .npy file; for a model of
texts it is one text, or with --lines one text per line.
"""
EPILOG = """\
examples:
  scripts/predict model_store/digits.mar archive/digits/samples/*.png
  scripts/predict model_store/digits.mar --top 1 --json photo.jpg | jq .answer
  scripts/predict model_store/sentences.mar --text "Where is my parcel?" --text "My order has not arrived."
  scripts/predict reranker.mar --pair "a query" "a document"
  scripts/predict sentences.mar --lines --json < texts.txt -

Exit status: 0 if every input got an answer; 1 if one did not, or if the archive cannot be loaded; 2 for a wrong
command line, or a file that is not there; 130 if stopped.
"""
# Runs this file with the archive's own handlers first on the path. The folder of this file comes last.
CARRIED = "import sys, runpy; sys.path.insert(0, sys.argv[1]); sys.path.append(sys.argv[2]); file = sys.argv[3]; "
CARRIED += "sys.argv[:4] = [file]; runpy.run_path(file, run_name='__main__')"
NO_FILE = "there is no file {name!r}; a text itself is given with --text"
SHOWN = 48  # characters of a text that name it
NUMBERS = 6  # of an embedding


@dataclass(frozen=True)
class Named:
    """An input as the model gets it, and what names it: its file, or the text itself.

    name: for people, in one line. source: for programs.
    """

    name: str
    source: object
    value: object


def main(words: Sequence[str] | None = None) -> int:
    chosen = arguments(words)
    try:
        if chosen.carried_code:
            return run_carried(chosen, sys.argv[1:] if words is None else words)
        return run(chosen)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says. Raises SystemExit for a wrong one, and after the help."""
    found = parser()
    chosen = found.parse_intermixed_args(words)
    if not (chosen.inputs or chosen.text or chosen.pair):
        found.error("no input came; wanted: files, - for the standard input, --text or --pair")
    for path in chosen.inputs:
        if path != "-" and not Path(path).exists():
            found.error(NO_FILE.format(name=path))
    return chosen


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    found = Parser(prog="scripts/predict", description=DESCRIPTION, formatter_class=raw)
    found.epilog = EPILOG
    found.add_argument(
        "archive",
        type=existing,
        metavar="FILE.mar",
        help="an archive, or a folder that one was unpacked into; a file name alone may lie in model_store/",
    )
    found.add_argument("inputs", metavar="INPUT", nargs="*", help="a file, or - for the standard input")
    found.add_argument("--text", action="append", default=[], help="a text itself; may come several times")
    found.add_argument("--pair", action="append", default=[], nargs=2, metavar="TEXT", help="a pair of texts")
    found.add_argument("--lines", action="store_true", help="each line of an INPUT is a text")
    answers = found.add_argument_group("answers")
    answers.add_argument("--top", type=positive, metavar="N", help="the N likeliest classes or labels")
    answers.add_argument(
        "--option", action="append", default=[], type=option, metavar="NAME=VALUE",
        help="an option of docs/api.md, such as truncate=true",
    )  # fmt: skip
    answers.add_argument("--json", action="store_true", help="one JSON object per input and line")
    loading = found.add_argument_group("loading")
    loading.add_argument("--device", help="cpu, cuda, or cuda:1 (default: as the archive says)")
    loading.add_argument("--precision", help="fp32, fp16, bf16, fp8 or auto (default: as the archive says)")
    loading.add_argument("--engine", help="an engine by name (default: as the archive says)")
    loading.add_argument("--digest", metavar="sha256:...", help="refuse an archive with another content digest")
    loading.add_argument("--edited-settings", action="store_true", help="take an edited model-config.yaml")
    version = loading.add_mutually_exclusive_group()
    version.add_argument(
        "--carried-code",
        action="store_true",
        help="run the handlers that the archive carries, not those of this tree",
    )
    version.add_argument("--other-version", action="store_true", help="take an archive of other handlers than these")
    return found


def option(text: str) -> tuple[str, str]:
    """A name and a value: "truncate=true"."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: NAME=VALUE, such as truncate=true")
    return name, value


def run(chosen: argparse.Namespace) -> int:
    """Load, ask and print; the exit status. Raises ValueError or OSError if the archive cannot be loaded."""
    from handlers import RequestError

    started = time.monotonic()
    progress(f"{chosen.archive}: checking and loading")
    live = LiveLine()
    with contextlib.closing(live), passing_on(MEASURING_LOGGER, live.show):
        loaded = load(chosen)
    with loaded as model:
        told = model.describe()
        how = f"{told['engine']['name']}, {told['precision']['name']}, {told['device']['name']}"
        progress(f"loaded in {time.monotonic() - started:.1f} s: {how}")
        inputs = inputs_of(chosen, model.interface.takes_texts)
        options = dict(chosen.option) | ({"top_k": chosen.top} if chosen.top else {})
        try:
            answers = model.predict([item.value for item in inputs], return_errors=True, **options)
        except RequestError as error:
            raise ValueError(f"{'--top: ' if chosen.top else ''}{error.message}") from None
    for item, answer in zip(inputs, answers, strict=True):
        show(item, answer, as_json=chosen.json)
    return int(any(isinstance(answer, RequestError) for answer in answers))


def load(chosen: argparse.Namespace) -> Any:
    """Return the loaded model. Raises ValueError or OSError if the archive cannot be loaded."""
    from handlers import load_archive

    return load_archive(
        chosen.archive,
        device=chosen.device,
        precision=chosen.precision,
        engine=chosen.engine,
        digest=chosen.digest,
        edited_settings=chosen.edited_settings,
        allow_other_version=chosen.other_version,
    )


def run_carried(chosen: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Unpack the archive, and run this program again in a process that imports the handlers from it."""
    from handlers.hosts.unpacking import archive_folder

    with archive_folder(chosen.archive, edited_settings=chosen.edited_settings) as (folder, _):
        if not (folder / "handlers" / "hosts" / "loading.py").is_file():
            raise ValueError(f"the handlers in {chosen.archive} are too old to run without TorchServe")
        rest = [
            str(folder) if Path(located(word)) == chosen.archive else word
            for word in arguments
            if word != "--carried-code"
        ]
        here = Path(__file__).resolve()
        progress(f"{chosen.archive}: unpacked and checked; its own handlers run now")
        command = [sys.executable, "-c", CARRIED, str(folder), str(here.parent), str(here), *rest]
        return subprocess.run(command, check=False).returncode


def inputs_of(chosen: argparse.Namespace, takes_texts: bool) -> list[Named]:
    """The inputs of the command line, in the order files, texts, pairs. Raises ValueError or OSError."""
    if not takes_texts and (chosen.text or chosen.pair or chosen.lines):
        raise ValueError("the model takes images; --text, --pair and --lines are for models of texts")
    found: list[Named] = []
    for name in chosen.inputs:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        if chosen.lines:
            lines = [line for line in data.decode("utf-8-sig").splitlines() if line.strip()]
            found += [Named(short(line), line, line) for line in lines]
        else:
            found.append(Named(name, name, data))
    found += [Named(short(text), text, text) for text in chosen.text]
    return found + [Named(f"{short(one)} + {short(two)}", [one, two], (one, two)) for one, two in chosen.pair]


def show(item: Named, answer: object, *, as_json: bool) -> None:
    """Print one answer, or the error in its place."""
    import orjson

    from handlers import RequestError

    if as_json:
        told = {"error": answer.body()} if isinstance(answer, RequestError) else {"answer": answer}
        print(orjson.dumps({"input": item.source, **told}, option=orjson.OPT_SERIALIZE_NUMPY).decode(), flush=True)
    elif isinstance(answer, RequestError):
        print(f"{item.name}: error: {answer.message}", file=sys.stderr)
    else:
        print(f"{item.name}: {for_people(answer)}", flush=True)


def for_people(answer: Any) -> str:
    """An answer in one line; in several, if it is a list of answers."""
    if hasattr(answer, "dtype"):
        numbers = " ".join(f"{value:.4f}" for value in answer[:NUMBERS])
        return f"{len(answer)} numbers of length {float((answer**2).sum() ** 0.5):.4f}: {numbers} ..."
    if not isinstance(answer, list):
        return str(answer)
    if all(isinstance(item, dict) for item in answer):
        return ", ".join(map(part_of, answer)) or "nothing found"
    return "\n".join(["", *(f"  {for_people(item)}" for item in answer)])


def part_of(item: dict[str, Any]) -> str:
    """A class, a label, an entity or a filling."""
    score = item.get("probability", item.get("score"))
    text = f" {item['text']!r}" if "text" in item else ""
    return f"{item.get('label', item.get('token_str'))}{text} {score:.4f}"


def short(text: str) -> str:
    """A text's beginning, in quotes."""
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def progress(line: str) -> None:
    """Print a line for whoever waits; the standard output has the answers alone."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
