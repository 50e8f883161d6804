"""Serve archives with Ray Serve on this machine: what scripts/serve-ray does."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from argument_types import checked, port, positive
from ray_host import archives, local, signals
from ray_host.options import AppOptions
from server.paths import ROOT, python_path
from server.ports import why_taken

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

There are no tokens: whoever reaches the port is answered. So the port is open for this machine alone, unless --host
says otherwise.

Exit status: 0 after Ctrl-C; 1 if a model cannot be served; 2 for a wrong command line.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    found = parser()
    chosen = found.parse_args(arguments)
    if bool(chosen.archives) == bool(chosen.config):
        found.error("wanted: archives, or --config FILE.yaml")
    if chosen.digest and len(chosen.archives) != 1:
        found.error("--digest is of one archive; for several, see --config")
    signals.listen()
    try:
        return run(chosen)
    except KeyboardInterrupt:
        print(f"\nstopping: {signals.HOW}", flush=True)
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        signals.listen_again()
        local.stop()


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(
        prog="scripts/serve-ray", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw
    )
    found.add_argument("archives", nargs="*", metavar="[NAME=]FILE.mar", help="what to serve; a path or a URL")
    found.add_argument("--config", type=Path, metavar="FILE.yaml", help="a file for `serve deploy`, in their place")
    found.add_argument("--port", type=port, default=8080, metavar="PORT", help="(default: %(default)s)")
    found.add_argument("--host", default=local.HERE, help="address to listen at (default: %(default)s)")
    found.add_argument(
        "--grpc-port",
        type=port,
        metavar="PORT",
        help="answer gRPC, too; the fronts behind it listen on all addresses of this machine (default: no gRPC)",
    )
    found.add_argument(
        "--fronts",
        type=positive,
        metavar="N",
        help="processes that read requests (default: one for 4 cores, and 3 per GPU at most; one without a GPU)",
    )
    each = found.add_argument_group("for each model")
    each.add_argument(
        "--replicas", type=replicas, default=(1, None), metavar="N[:MOST]", help="processes; with MOST, by the load"
    )
    each.add_argument(
        "--gpus",
        type=float,
        metavar="SHARE",
        help="of a GPU per replica, to 1; 0: the CPU (default: 1 if there is one)",
    )
    each.add_argument("--cpus", type=positive, metavar="N", help="threads per replica (default: an equal share)")
    each.add_argument("--batch-size", type=positive, metavar="N", help="(default: the archive's)")
    each.add_argument("--batch-delay-ms", type=float, metavar="MS", help="(default: the archive's)")
    each.add_argument("--digest", metavar="sha256:...", help="refuse an archive with another content digest")
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


def run(chosen: argparse.Namespace) -> int:
    """Serve until Ctrl-C. Raises ValueError, OSError, RuntimeError."""
    args = args_of(chosen)
    options = AppOptions.of(args)
    for model in options.models:  # before Ray is started
        archives.head(archives.local(model.archive, model.digest))
    local.clear_left()
    if reason := why_taken(chosen.host, chosen.port):
        raise OSError(f"{chosen.host}:{chosen.port} is taken ({reason}); choose another one with --port")
    if chosen.grpc_port and (reason := why_taken("0.0.0.0", chosen.grpc_port)):  # noqa: S104 - Ray Serve listens there
        raise OSError(f"port {chosen.grpc_port} is taken ({reason}); choose another one with --grpc-port")
    os.environ["PYTHONPATH"] = python_path()
    started = time.monotonic()
    logs = local.start(chosen.host, chosen.port, _most_replicas(options), chosen.grpc_port)
    print(f"Ray is there after {time.monotonic() - started:.1f} s (its logs: {logs}); loading", flush=True)
    local.run(args, logs)
    print(f"all models are ready after {time.monotonic() - started:.1f} s", flush=True)
    print(next_steps(chosen.host, chosen.port), flush=True)
    while True:
        signal.pause()


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
    share = max(1, cpus.usable() // ((most or fewest) * len(chosen.archives)))
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
    return {"models": models, **_fronts(chosen), "front_num_cpus": 0}


def next_steps(host: str, number: int) -> str:
    """What to type next."""
    address = f"http://{host}:{number}"
    return f"""
Serving until Ctrl-C. In another terminal, from {ROOT}:

  curl {address}/models                    names and versions; /models/NAME says how one runs, and why
  curl -T archive/digits/samples/seven.png {address}/predictions/digits
  curl -H "Content-Type: application/json" -d '["one sentence", "and another"]' {address}/predictions/sentences
"""


def _fronts(chosen: argparse.Namespace) -> dict[str, int]:
    return {} if chosen.fronts is None else {"fronts": chosen.fronts}


def _named(word: str) -> dict[str, Any]:
    """[NAME=]FILE.mar. A "=" that comes after a "/" is the path's own."""
    name, equals, rest = word.partition("=")
    if equals and name and "/" not in name:
        return {"name": name, "archive": _absolute(rest)}
    return {"archive": _absolute(word)}


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
    """A path that holds in the replicas, too: they run in another folder."""
    return archive if "://" in archive else str(Path(archive).resolve())


def _most_replicas(options: AppOptions) -> int:
    """CPUs that Ray has to count for all replicas to be placed."""
    return round(sum((model.max_replicas or model.replicas) * max(1, model.num_cpus) for model in options.models))


if __name__ == "__main__":
    sys.exit(main())
