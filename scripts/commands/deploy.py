"""Replace the version that serves a model, without a lost request: what scripts/deploy does."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import archive_paths
from argument_types import positive, seconds
from server.client import Client
from server.errors import ServerError
from server.options import add_server_options, client_of, explained
from updates import comparison, deployment
from updates.interrupts import Interrupted, Interrupts
from updates.locking import locked

NOT_UNDONE = 3
DESCRIPTION = """\
Have the archive FILE serve the model NAME, in place of the version that serves now. No request is lost or fails.

The new version is registered beside the old one and gets as many workers. It is warmed up, and both are asked the
same samples. If the answers agree, the new version becomes the default. The old one finishes what it has, and is
removed. If a step fails, or at Ctrl-C or SIGTERM, all steps are taken back and the old version serves as before.

NAME must be registered: this command replaces a model. docs/quickstart.md says how to add one to a running server.
"""
EPILOG = """\
examples:
  scripts/deploy digits model_store/digits-2.mar                         samples are made by the model's kind
  scripts/deploy digits new.mar --sample a.png --sample b.png            compare with pictures of your own
  scripts/deploy digits retrained.mar --compare labels                   scores may differ, labels may not
  scripts/deploy digits other.mar --accept-difference                    the model is meant to answer differently
  scripts/deploy digits new.mar --dry-run                                what would be done; nothing changes
  scripts/deploy digits --remove 2.0                                     remove a version that is not the default

Samples: .json, .txt, .npy and pictures, by the name's ending.
Both versions are in memory for some time. If they do not fit, the command says so and changes nothing.
Requests that name the old version (/predictions/NAME/VERSION) would get a 404 when it is removed. If some come
meanwhile, the command goes back; --keep-old leaves the old version beside the new one.
A restart of TorchServe loads what it is told to: give scripts/serve, or torchserve --models, the new file.

Exit status: 0 if the new version serves; 1 if not, and all is as before; 2 for a wrong command line; 3 if something
could not be taken back: the last line says what is left to do.
"""


def main() -> int:
    chosen = parser().parse_args()
    interrupts = Interrupts()
    interrupts.listen()
    try:
        with locked(chosen.folder):
            return run(chosen, client_of(chosen), interrupts)
    except deployment.NotUndone as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_UNDONE
    except Interrupted:
        print("stopped; all is as before", file=sys.stderr)
        return 1
    except (OSError, ServerError) as error:
        print(f"error: {explained(error, chosen)}\nall is as before", file=sys.stderr)
        return 1


def run(chosen: argparse.Namespace, client: Client, interrupts: Interrupts) -> int:
    """Do what the command line says. Raises what Deployment.run raises."""
    started = time.monotonic()
    if chosen.remove:
        deployment.remove(client, chosen.name, chosen.remove, chosen.drain_timeout)
        print(f"{chosen.name}: removed version {chosen.remove}")
        return 0
    work = deployment.Deployment(client, wishes(chosen, client), _say, interrupts)
    work.plan()
    if chosen.dry_run:
        print("nothing was changed")
        return 0
    work.run()
    print(f"done in {time.monotonic() - started:.1f} s")
    return 0


def wishes(chosen: argparse.Namespace, client: Client) -> deployment.Wishes:
    """The options, as Deployment takes them."""
    store = chosen.model_store or chosen.folder / client.config.get("model_store", "model_store")
    return deployment.Wishes(
        name=chosen.name,
        file=chosen.file,
        store=store,
        sample_files=chosen.sample,
        workers=chosen.workers,
        compare_by=chosen.compare,
        accept_difference=chosen.accept_difference,
        keep_old=chosen.keep_old,
        ignore_memory=chosen.ignore_memory,
        load_timeout_s=chosen.timeout,
        drain_timeout_s=chosen.drain_timeout,
    )


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = _Parser(
        prog="scripts/deploy",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("name", metavar="NAME", help="the model's name in requests, as in /predictions/NAME")
    found.add_argument(
        "file", metavar="FILE", nargs="?", type=archive_paths.path, help="the archive; copied to the model store"
    )
    found.add_argument("--dry-run", action="store_true", help="look, say what would be done, and change nothing")
    found.add_argument(
        "--remove", metavar="VERSION", help="remove a version that is not the default, and nothing else"
    )
    _add_comparison(found.add_argument_group("comparison"))
    limits = found.add_argument_group("workers and waits")
    limits.add_argument(
        "--workers", type=positive, metavar="N", help="workers of the new version (default: as many as the old one)"
    )
    limits.add_argument("--keep-old", action="store_true", help="leave the old version registered, with its workers")
    limits.add_argument(
        "--ignore-memory", action="store_true", help="try even if both versions do not fit into memory together"
    )
    limits.add_argument(
        "--timeout",
        type=seconds,
        default=900.0,
        metavar="S",
        help="seconds for the workers to load (default: %(default)g)",
    )
    limits.add_argument(
        "--drain-timeout",
        type=seconds,
        default=180.0,
        metavar="S",
        help="seconds for the old version to finish what it has (default: %(default)g)",
    )
    server = found.add_argument_group("server")
    server.add_argument(
        "--model-store",
        type=Path,
        metavar="DIR",
        help="the model store of TorchServe (default: model_store of --ts-config)",
    )
    add_server_options(server)
    return found


def _add_comparison(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sample",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a request to compare with; repeatable",
    )
    group.add_argument(
        "--compare",
        choices=(comparison.ANSWERS, comparison.LABELS),
        default=comparison.ANSWERS,
        help="answers: labels and scores, vectors by direction; labels: the likeliest label alone (default: answers)",
    )
    group.add_argument("--accept-difference", action="store_true", help="go on if answers differ, and say how")


class _Parser(argparse.ArgumentParser):
    """Wants FILE unless --remove is given."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        chosen = super().parse_args(args, namespace)
        if (chosen.file is None) == (chosen.remove is None):
            self.error("one of FILE and --remove VERSION is wanted")
        return chosen


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
