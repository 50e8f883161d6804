"""Serve the same archives by one TorchServe per GPU, behind one nginx: what scripts/deployment/per-gpu does."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from argument_types import port, positive, seconds
from per_gpu import plan
from per_gpu.stack import Stack
from server import mps
from server.errors import ServerError
from server.paths import CONFIG, MODEL_STORE, ROOT
from server.ports import HOST

PROGRAMS = ("/usr/sbin", str(ROOT / ".venv" / "debian" / "usr" / "sbin"))  # not on each PATH
DESCRIPTION = """\
Start one TorchServe per GPU, each with the same archives, and one nginx that balances over them. Clients see one
server with one set of keys. Without Kubernetes this is how a host with several GPUs answers many small requests:
TorchServe's front end is one Java process, which does not keep several GPUs busy.
"""
EPILOG = """\
examples:
  scripts/deployment/per-gpu resnet101=resnet101.mar --tls certificates --keys keys
  scripts/deployment/per-gpu digits=digits.mar --servers 2        two servers, without GPUs too

Server K has the ports from --first-port + 10 x K on: inference, management, metrics, gRPC inference, gRPC management,
and two of its own nginx. All but --port listen on loopback. minWorkers and the other settings of an archive apply to
each server, and so do Java's heap (JAVA_HEAP) and the other variables in scripts/deployment/start.

Messages go to standard error, and nginx's line per request to standard output. Clients are let in when all servers
are ready. A server that ends later is started again, while the others serve. If one cannot start at the beginning,
everything ends, and the message says why. SIGTERM: nginx takes no new connections, all that it has accepted is
answered, and then all servers end at the same time.

Exit status: 0 after SIGTERM or Ctrl-C, 1 for a failure, 2 for a wrong command line.
"""


def main() -> int:
    chosen = parser().parse_args()
    os.umask(0o077)  # keys and tokens are written
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: asked.set())
    try:
        check(chosen)
        found = plan.plans(
            plan.visible_devices(os.environ), chosen.servers, chosen.first_port, chosen.folder, chosen.metrics_host
        )
        plan.check_ports(found, chosen.host, chosen.port)
        if plan.LENT_PORTS.exists() and (note := plan.lent(found, plan.LENT_PORTS.read_text(encoding="ascii"))):
            say(note)
        with mps.chosen(True if chosen.mps else None) as extra:
            Stack(chosen, found, {**os.environ, **extra}, say).run(asked)
    except (OSError, ValueError, ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = argparse.ArgumentParser(
        prog="scripts/deployment/per-gpu",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("models", nargs="+", metavar="NAME=FILE.mar", help="archives of the model store")
    add("--servers", type=positive, metavar="N", help="TorchServes (default: one per GPU)")
    add("--model-store", type=Path, default=MODEL_STORE, metavar="DIR", help="(default: %(default)s)")
    add("--folder", type=Path, default=ROOT / "run" / "per-gpu", metavar="DIR",
        help="to run in: keys, logs, a folder per server (default: %(default)s)")  # fmt: skip
    add("--ts-config", type=Path, default=CONFIG, metavar="FILE", help="(default: %(default)s)")
    add("--first-port", type=port, default=9000, metavar="PORT", help="(default: %(default)s)")
    add("--metrics-host", default=HOST, metavar="HOST", help="where metrics are shown (default: %(default)s)")
    add("--host", metavar="HOST", help="where clients ask (default: all addresses with --tls, else 127.0.0.1)")
    add("--port", type=port, default=8443, metavar="PORT", help="for clients (default: %(default)s)")
    add("--tls", type=Path, metavar="DIR", help="folder with tls.crt and tls.key; without it, no TLS and no gRPC")
    add("--keys", type=Path, metavar="FILE", help="a client's key a line (default: one is made, in the folder)")
    add("--mps", action="store_true", help="share each GPU by NVIDIA's MPS, with a control daemon of its own")
    add("--nginx", metavar="FILE", help="the program (default: the PATH's)")
    add("--drain-s", type=float, default=0.0, metavar="S",
        help="nginx takes connections for so long after SIGTERM; load balancers need it (default: 0)")  # fmt: skip
    add("--stop-s", type=seconds, default=140.0, metavar="S",
        help="seconds for the requests in work at a stop (default: %(default)g)")  # fmt: skip
    return found


def check(chosen: argparse.Namespace) -> None:
    """Fill in what depends on other options. Raises ValueError for what is missing here."""
    for name in ("folder", "model_store", "ts_config", "tls", "keys"):
        if (path := getattr(chosen, name)) is not None:
            setattr(chosen, name, path.resolve())
    for model in chosen.models:
        name, _, file = model.partition("=")
        if not name or not file or not (chosen.model_store / file).exists():
            raise ValueError(f"{model!r}: NAME=FILE.mar is wanted, with a file in {chosen.model_store}")
    where = os.pathsep.join([os.environ.get("PATH", ""), *PROGRAMS])
    chosen.nginx = shutil.which(chosen.nginx or "nginx", path=where)
    if chosen.nginx is None:
        raise ValueError("there is no nginx here; install it, or name it with --nginx")
    chosen.host = chosen.host or ("0.0.0.0" if chosen.tls else HOST)  # noqa: S104, keys and TLS guard it
    if chosen.mps:
        mps.check()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
