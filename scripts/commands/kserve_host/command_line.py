"""The command line of scripts/serve-kserve, and what is refused before a model loads. Imports no KServe."""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from archive_paths import existing
from server.addresses import obstacle

DESCRIPTION = """\
Serve model archives by KServe's own model server, without TorchServe and without Java.

Most people need only --http_port, --host and the options that follow --host. The others are KServe's own.
"""
EPILOG = """\
examples:
  scripts/serve-kserve model_store/digits.mar
  scripts/serve-kserve --http_port 9080 model_store/digits.mar model_store/sentences.mar
  curl -X POST -T archive/digits/samples/seven.png http://127.0.0.1:9080/predictions/digits

There are no tokens: whoever reaches the port is answered. docs/kserve-triton.md has more.

Exit status: 0 after Ctrl-C; 1 if an archive cannot be served, with the reason; 2 for a wrong command line.
"""
MOST_BYTES = 16 << 20  # as TorchServe has it in this tree's config.properties
MOST_WAITING = 1000
WITHOUT_KSERVE = "KServe's other options are shown here when KServe is installed, which the first start does."


def parser(kserves: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """The command line.

    Args:
        kserves: the parser of KServe's own options, which become options here; None if KServe is not installed. Then
            only two of them are known.
    """
    raw = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(
        prog="scripts/serve-kserve",
        description=DESCRIPTION,
        epilog=EPILOG if kserves else f"{WITHOUT_KSERVE}\n\n{EPILOG}",
        formatter_class=raw,
        parents=[kserves] if kserves else [],
    )
    if kserves is None:
        found.add_argument("--http_port", type=int, default=8080, metavar="PORT", help="(default: %(default)s)")
        found.add_argument("--model_name", metavar="NAME", help="of the one model (default: the archive's)")
    found.set_defaults(model_name=None)
    found.add_argument(
        "archive", nargs="+", type=existing, metavar="FILE.mar",
        help="an archive, a folder that one was unpacked into, or a folder with .mar files (KServe's /mnt/models); a "
        "file name alone may lie in model_store/",
    )  # fmt: skip
    found.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    found.add_argument("--device", help="cpu, cuda, or cuda:1 (default: as the archive says)")
    found.add_argument("--digest", metavar="sha256:...", help="refuse an archive with another content digest")
    found.add_argument("--edited-settings", action="store_true", help="take an edited model-config.yaml")
    found.add_argument("--other-version", action="store_true", help="take an archive of other handlers than these")
    found.add_argument(
        "--max-waiting",
        type=int,
        default=MOST_WAITING,
        metavar="N",
        help="requests that may wait; the next one gets a 503 (default: %(default)s)",
    )
    found.add_argument(
        "--max-body-bytes",
        type=int,
        default=MOST_BYTES,
        metavar="N",
        help="a larger body gets a 413 (default: %(default)s)",
    )
    return found


def archives(chosen: argparse.Namespace) -> list[Path]:
    """Return the archives that the command line names.

    Raises ValueError for a folder that holds none, and for two archives of one name.
    """
    found: list[Path] = []
    for path in chosen.archive:
        if not path.is_dir() or (path / "MAR-INF").is_dir():
            found.append(path)
            continue
        inside = sorted(path.glob("*.mar"))
        if not inside:
            raise ValueError(f"{path} holds no .mar, and is no unpacked archive")
        found += inside
    if len(found) > 1 and (chosen.model_name or chosen.digest):
        raise ValueError("--model_name and --digest are for one archive")
    _refuse_same_names(found)
    return found


def refuse_address(host: str, port: int) -> None:
    """Raises OSError if the server cannot listen there."""
    if blocked := obstacle(host, port):
        raise OSError(blocked.told("choose another one with --http_port", "choose one of them with --host"))


def _refuse_same_names(paths: Sequence[Path]) -> None:
    by_path = {path: _name(path) for path in paths}
    twice = [name for name, count in Counter(by_path[path] for path in paths).items() if count > 1]
    if twice:
        same = [path for path in paths if by_path[path] == twice[0]]
        raise ValueError(
            f"{' and '.join(map(str, same))} have the same model name, {twice[0]!r}; wanted: archives of different "
            "names (scripts/package ... --name), or a server for each"
        )


def _name(path: Path) -> str:
    """The model's name as it was packaged; the file's for what is no archive, which loading then refuses."""
    try:
        if path.is_dir():
            text = (path / "provenance.json").read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                text = archive.read("provenance.json")
        return str(json.loads(text)["name"])
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        return str(path)


def arguments(words: Sequence[str]) -> None:
    """Refuse a wrong command line before KServe is installed; print the help. Raises SystemExit.

    An option that is not known here may be one of KServe's, which checks it later.
    """
    found = parser()
    archive = next(action for action in found._actions if action.dest == "archive")
    archive.type = Path  # as long as an option's value may be taken for an archive
    if not found.parse_known_args(words)[1]:
        check(parser().parse_args(words))


def check(chosen: argparse.Namespace) -> list[Path]:
    """Return the archives to serve. Raises SystemExit with status 2 for what the parser alone does not see."""
    try:
        return archives(chosen)
    except ValueError as error:
        print(f"scripts/serve-kserve: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
