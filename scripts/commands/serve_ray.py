"""Serve archives with Ray Serve on this machine: what scripts/serve-ray does."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import archive_paths
import yaml
from argument_types import checked, port, positive
from ray_host import archives, checks, local, next_steps, signals
from ray_host.options import DIGEST, AppOptions
from ray_host.sharing import LOAD_WAIT_S
from server.paths import python_path

from archive.near_options import Parser
from handlers import cpus

DESCRIPTION = """\
Serve model archives with Ray Serve on this machine, until Ctrl-C. No TorchServe and no Java are needed, and archives
are served as they are. The paths are TorchServe's: /predictions/NAME, with all protocols of docs/api.md behind it.

For several machines, see docs/ray.md: the same settings, in scripts/deployment/ray/cluster.yaml.
"""
EPILOG = """\
examples:
  scripts/serve-ray model_store/digits.mar model_store/sentences.mar
  scripts/serve-ray --port 9080 --replicas 2 model_store/digits.mar
  scripts/serve-ray --replicas 1:4 --gpus 0.5 bert=model_store/bert-large.mar    autoscaling; two replicas on each GPU
  scripts/serve-ray --digest sha256:... s3://bucket/bert-large.mar               needs s3fs
  scripts/serve-ray --config scripts/deployment/ray/cluster.yaml                 try a cluster's file here
  scripts/serve-ray --multiplex 2 a.mar b.mar c.mar                              two of them are loaded at a time

There are no tokens: whoever reaches the port is answered. So the port is open for this machine alone, unless --host
says otherwise.

Exit status: 0 after Ctrl-C; 1 if a model cannot be served; 2 for a wrong command line or --config file.
"""


def main(words: Sequence[str] | None = None) -> int:
    chosen = arguments(words)
    signals.listen()
    try:
        return run(chosen)
    except checks.CommandError as error:
        print(f"scripts/serve-ray: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopping: {signals.HOW}", flush=True)
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        signals.listen_again()
        local.stop()


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says. Raises SystemExit for a wrong one, and after the help."""
    found = parser()
    chosen = found.parse_args(words)
    if bool(chosen.archives) == bool(chosen.config):
        found.error("wanted: archives, or --config FILE.yaml")
    if chosen.digest and len(chosen.archives) != 1:
        found.error("--digest is of one archive; for several, see --config")
    if chosen.config and (chosen.multiplex or chosen.load_wait):
        found.error("--multiplex and --load-wait are for archives; a file has the keys multiplex and load_wait_s")
    if chosen.load_wait and not chosen.multiplex:
        found.error("--load-wait is for --multiplex; without it all models are loaded at the start")
    try:
        checks.different(chosen.port, chosen.grpc_port)
        for word in chosen.archives:
            _named(word)
    except checks.CommandError as error:
        print(f"scripts/serve-ray: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return chosen


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    found = Parser(prog="scripts/serve-ray", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    found.add_argument(
        "archives",
        nargs="*",
        metavar="[NAME=]FILE.mar",
        help="what to serve: a path, a file name in model_store/, or a URL",
    )
    found.add_argument("--config", type=Path, metavar="FILE.yaml", help="a file for `serve deploy`, in their place")
    found.add_argument("--port", type=port, default=8080, metavar="PORT", help="(default: %(default)s)")
    found.add_argument("--host", default=local.HERE, help="address to listen at (default: %(default)s)")
    found.add_argument(
        "--grpc-port",
        type=port,
        metavar="PORT",
        help="answer gRPC, too, at --host (default: no gRPC)",
    )
    found.add_argument(
        "--fronts",
        type=positive,
        metavar="N",
        help="processes that read requests (default: one for 4 cores, and 3 per GPU at most; one without a GPU)",
    )
    found.add_argument(
        "--multiplex",
        type=positive,
        metavar="N",
        help="all models share the replicas, and N are loaded in each at a time: a request loads its model, and the "
        "least recently asked one is dropped; --replicas, --gpus and --cpus are of the shared replicas",
    )
    found.add_argument(
        "--load-wait",
        type=positive,
        metavar="SECONDS",
        help=f"with --multiplex: until a request whose model still loads gets a 503 (default: {LOAD_WAIT_S:g})",
    )
    each = found.add_argument_group("for each model")
    each.add_argument(
        "--replicas", type=replicas, default=(1, None), metavar="N[:MOST]", help="processes; with MOST, by the load"
    )
    each.add_argument(
        "--gpus",
        type=share,
        metavar="SHARE",
        help="of a GPU per replica, to 1; 0: the CPU (default: 1 if there is one)",
    )
    each.add_argument("--cpus", type=positive, metavar="N", help="threads per replica (default: an equal share)")
    each.add_argument("--batch-size", type=positive, metavar="N", help="(default: the archive's)")
    each.add_argument("--batch-delay-ms", type=milliseconds, metavar="MS", help="(default: the archive's)")
    each.add_argument(
        "--digest", type=digest, metavar="sha256:...", help="refuse an archive with another content digest"
    )
    each.add_argument("--edited-settings", action="store_true", help="take an edited model-config.yaml")
    each.add_argument("--other-version", action="store_true", help="take an archive of other handlers than these")
    return found


@checked
def replicas(text: str) -> tuple[int, int | None]:
    """A number of processes, or the fewest and the most: 2, or 1:4."""
    fewest, colon, most = text.partition(":")
    if not (fewest.isdecimal() and (most.isdecimal() or not colon)) or int(fewest) < 1:
        raise ValueError(f"{text!r}; wanted: a number from 1, or the fewest and the most, such as 1:4")
    if colon and int(most) < int(fewest):
        raise ValueError(f"{text!r}; the most are fewer than the fewest")
    return int(fewest), int(most) if colon else None


@checked
def share(text: str) -> float:
    """A share of a GPU: 0 to 1."""
    found = _number(text)
    if not 0 <= found <= 1:
        raise ValueError(f"{text!r}; wanted: 0 to 1, as a replica runs on one GPU; --replicas 2 takes two")
    return found


@checked
def milliseconds(text: str) -> float:
    """A time from 0 ms."""
    found = _number(text)
    if not 0 <= found < math.inf:
        raise ValueError(f"{text!r}; wanted: milliseconds from 0, such as 2 or 0.5")
    return found


@checked
def digest(text: str) -> str:
    """A content digest."""
    if not DIGEST.fullmatch(text):
        raise ValueError(f"{text!r}; wanted: sha256: and 64 hex digits, as `scripts/package show` prints it")
    return text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def run(chosen: argparse.Namespace) -> int:
    """Serve until Ctrl-C. Raises ValueError, OSError, RuntimeError."""
    args, options = wanted(chosen)
    local.clear_left()
    checks.ports(chosen.host, chosen.port, chosen.grpc_port)
    models = checks.heads(options)
    names = ", ".join(dict.fromkeys(name for name, _ in models))
    print(f"starting Ray for {names}; this takes about 10 s", flush=True)
    os.environ["PYTHONPATH"] = python_path()
    started = time.monotonic()
    logs = local.start(chosen.host, chosen.port, _most_replicas(options), chosen.grpc_port)
    print(f"Ray runs after {time.monotonic() - started:.1f} s; the models load (logs: {logs})", flush=True)
    local.run(args, logs)
    what = (
        "the replicas are ready, and load models when they are asked,"
        if options.multiplex
        else "all models are ready"
    )
    print(f"{what} after {time.monotonic() - started:.1f} s", flush=True)
    print(next_steps.text(served(options, models), chosen.host, chosen.port, chosen.grpc_port), flush=True)
    while True:
        signal.pause()


def wanted(chosen: argparse.Namespace) -> tuple[dict[str, Any], AppOptions]:
    """Return the application's args, and what they say. Raises OSError, and CommandError for wrong ones."""
    try:
        args = args_of(chosen)
        return args, AppOptions.of(args)
    except checks.CommandError:
        raise
    except ValueError as error:
        raise checks.CommandError(error) from None


def served(options: AppOptions, models: Sequence[tuple[str, archives.Head]]) -> list[next_steps.Served]:
    """Return the models that are ready. models: names, and what the archives say, in the order of the options."""
    return [
        next_steps.Served(name, told.version, archives.local(model.archive, model.digest))
        for model, (name, told) in zip(options.models, models, strict=True)
    ]


def args_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """The `args` of the application. Raises ValueError or OSError for a file that holds none."""
    if chosen.config:
        try:
            found: dict[str, Any] = yaml.safe_load(chosen.config.read_text(encoding="utf-8"))["applications"][0][
                "args"
            ]
        except (yaml.YAMLError, LookupError, TypeError) as error:
            raise ValueError(f"{chosen.config} has no args of an application: {type(error).__name__}") from None
        return {**_with_absolute(found), **_fronts(chosen), "front_num_cpus": 0}
    fewest, most = chosen.replicas
    processes = (most or fewest) * (1 if chosen.multiplex else len(chosen.archives))
    share = max(1, cpus.usable() // processes)
    common = {
        "replicas": fewest,
        "max_replicas": most,
        "num_gpus": chosen.gpus,
        "num_cpus": chosen.cpus or share,
        "batch_size": chosen.batch_size,
        "max_delay_ms": chosen.batch_delay_ms,
        "digest": chosen.digest,
        "edited_settings": chosen.edited_settings,
        "allow_other_version": chosen.other_version,
    }
    models = [{**_named(word), **common} for word in chosen.archives]
    return {"models": models, **_fronts(chosen), **_multiplex(chosen), "front_num_cpus": 0}


def _fronts(chosen: argparse.Namespace) -> dict[str, int]:
    return {} if chosen.fronts is None else {"fronts": chosen.fronts}


def _multiplex(chosen: argparse.Namespace) -> dict[str, int]:
    given = {"multiplex": chosen.multiplex, "load_wait_s": chosen.load_wait}
    return {name: value for name, value in given.items() if value is not None}


def _named(word: str) -> dict[str, Any]:
    """[NAME=]FILE.mar. Raises CommandError for an archive that is not there, or a name that is none."""
    name, file = archive_paths.split(word)
    return {**({"name": checks.name(name)} if name else {}), "archive": checks.absolute(file)}


def _with_absolute(args: dict[str, Any]) -> dict[str, Any]:
    """The args with absolute paths. What AppOptions refuses stays as it is."""
    models = args.get("models")
    if not isinstance(models, list):
        return args
    return {**args, "models": [_with_absolute_archive(model) for model in models]}


def _with_absolute_archive(model: Any) -> Any:
    is_given = isinstance(model, dict) and isinstance(model.get("archive"), str) and model["archive"]
    return {**model, "archive": _absolute(model["archive"])} if is_given else model


def _absolute(archive: str) -> str:
    """A path of a file for several machines, as it holds in the replicas: they run in another folder."""
    return archive if archive_paths.is_url(archive) else str(Path(archive).resolve())


def _most_replicas(options: AppOptions) -> int:
    """CPUs that Ray has to count for all replicas to be placed."""
    return round(sum((model.max_replicas or model.replicas) * max(1, model.num_cpus) for model in options.placed))


if __name__ == "__main__":
    sys.exit(main())
