"""Run nginx in front of the TorchServe on this machine: TLS, inference only, and keys of the clients' own.

TorchServe makes a new token at each start, and each replica has another one. A client behind a load balancer cannot
know which to send. So clients may have keys that last: one a line in a file. nginx replaces a key by the token of its
TorchServe, and hands nothing on that has no key. Without such a file clients send TorchServe's token itself.

Files that change (the token, keys, a renewed certificate) are read again within seconds. SIGTERM drains: for DRAIN_S
seconds requests are still taken, because load balancers need time; then nginx answers what it has, and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
KEY = re.compile(r"[A-Za-z0-9._~+/=-]{32,256}")
ADDRESSES = {"rest": "127.0.0.1:8080", "grpc": "127.0.0.1:7070"}
LOOK_EVERY_S = 1.0
EPILOG = """\
example, with TorchServe running in this folder, a certificate in certificates/ and keys in the file keys:
  mkdir -p run/nginx
  .venv/bin/python scripts/deployment/front.py --folder run/nginx --torchserve . --tls certificates --keys keys

docs/deployment.md says more. Exit status: 0 after SIGTERM or Ctrl-C; 1 for a failure, with the reason; 2 for a wrong
command line.
"""


class FrontError(RuntimeError):
    """nginx cannot run as asked; the message says what is wanted."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="scripts/deployment/front.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--folder",
        type=Path,
        default=Path("/run/nginx"),
        help="folder that nginx runs in; it must exist (default: %(default)s)",
    )
    made.add_argument(
        "--torchserve",
        type=Path,
        default=Path("/run/torchserve"),
        help="folder that TorchServe was started in; it holds key_file.json (default: %(default)s)",
    )
    made.add_argument("--tls", type=Path, help="folder with tls.crt and tls.key; without it, HTTP without TLS")
    made.add_argument(
        "--keys",
        type=Path,
        help="file with the keys of clients, one per line; # begins a comment (default: clients send the token)",
    )
    made.add_argument("--port", type=int, default=8443, help="port for clients (default: %(default)s)")
    made.add_argument("--host", help="address to listen on (default: all)")
    made.add_argument(
        "--rest",
        default=ADDRESSES["rest"],
        help="address of TorchServe's inference API, or several with commas (default: %(default)s)",
    )
    made.add_argument(
        "--grpc",
        default=ADDRESSES["grpc"],
        help="address of its gRPC port, or several with commas (default: %(default)s)",
    )
    made.add_argument("--processes", type=int, default=2, help="nginx's worker processes (default: %(default)s)")
    made.add_argument("--nginx", default="nginx", help="the program nginx (default: from the PATH)")
    made.add_argument(
        "--drain-s",
        type=float,
        default=10.0,
        help="seconds after SIGTERM in which new connections are still taken (default: %(default)s)",
    )
    return made


def client_keys(text: str) -> list[str]:
    """The keys in a file's text. Raises FrontError for one that is too short, or has other characters."""
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    for number, key in enumerate(keys, 1):
        if not KEY.fullmatch(key):
            raise FrontError(
                f"key {number} of {len(keys)}: 32 to 256 letters, digits or characters of ._~+/=- are wanted"
            )
    return keys


def token_map(keys: Iterable[str], token: str) -> str:
    """tokens.map: nginx replaces each key by the token. Expressions, because plain text matches in any case."""
    return "".join(f'"~^Bearer \\Q{key}\\E$" "Bearer {token}";\n' for key in sorted(set(keys)))


def servers(name: str, addresses: str) -> str:
    """The content of nginx's upstream block `name`. addresses: one, or several with commas between them.

    Several are those of scripts/deployment/per-gpu. Each answers 502 if its TorchServe has not got the request. It is
    left out for 2 s then. The zone lets all of nginx's processes count a server's requests together.
    """
    first, *others = addresses.split(",")
    if not others:
        return f"server {first};"
    lines = [f"server {address} max_fails=1 fail_timeout=2s;" for address in (first, *others)]
    return "\n    ".join([f"zone {name} 128k;", "least_conn;", *lines])


def write_configuration(chosen: argparse.Namespace) -> None:
    """Lay nginx's files into the folder to run in, with the addresses that were asked for."""
    target = chosen.folder / "torchserve"
    target.mkdir(parents=True, exist_ok=True)
    changes = {
        f"server {ADDRESSES['rest']};": servers("torchserve_rest", chosen.rest),
        f"server {ADDRESSES['grpc']};": servers("torchserve_grpc", chosen.grpc),
        "listen 8443": f"listen {chosen.host}:{chosen.port}" if chosen.host else f"listen {chosen.port}",
    }
    if "," in chosen.rest:
        changes |= {
            "keepalive 64;": "keepalive 512;",
            "_next_upstream off;": "_next_upstream http_502 non_idempotent;",
        }
    for source in ("http.conf", "locations.conf", "tls.conf" if chosen.tls else "plain.conf", "tokens.map"):
        text = (HERE / "nginx" / source).read_text(encoding="utf-8")
        for old, new in changes.items():
            text = text.replace(old, new)
        name = "server.conf" if source in ("tls.conf", "plain.conf") else source
        _write(target / name, text)
    text = (HERE / "nginx" / "nginx.conf").read_text(encoding="utf-8")
    text = text.replace("worker_processes 2;", f"worker_processes {chosen.processes};")
    _write(chosen.folder / "nginx.conf", text)


def write_secrets(chosen: argparse.Namespace) -> None:
    """Lay certificate and tokens beside them. Raises OSError or ValueError where a file is not there yet, or half."""
    if chosen.tls:
        for name in ("tls.crt", "tls.key"):
            _write(chosen.folder / "torchserve" / name, (chosen.tls / name).read_text(encoding="utf-8"))
    if chosen.keys:
        keys = client_keys(chosen.keys.read_text(encoding="utf-8"))
        token = json.loads((chosen.torchserve / "key_file.json").read_text(encoding="utf-8"))["inference"]["key"]
        _write(chosen.folder / "torchserve" / "tokens.map", token_map(keys, token))


def state_of(chosen: argparse.Namespace) -> list[bytes | None]:
    """The content of all files that may change while nginx runs; None for one that is not there."""
    files = [chosen.tls / "tls.crt", chosen.tls / "tls.key"] if chosen.tls else []
    files += [chosen.keys, chosen.torchserve / "key_file.json"] if chosen.keys else []
    return [path.read_bytes() if path.is_file() else None for path in files]


def wait_for_secrets(chosen: argparse.Namespace) -> list[bytes | None]:
    """Write the secrets as soon as all of them are there; what they were."""
    while True:
        state = state_of(chosen)
        try:
            write_secrets(chosen)
            return state
        except (OSError, ValueError, KeyError):
            time.sleep(LOOK_EVERY_S)  # TorchServe writes its tokens when it starts, perhaps after us


def follow(chosen: argparse.Namespace, process: subprocess.Popen[bytes], known: list[bytes | None]) -> int:
    """Reload nginx when a file has changed, until it ends; its exit status."""
    while process.poll() is None:
        time.sleep(LOOK_EVERY_S)
        state = state_of(chosen)
        if state == known or None in state:
            continue
        try:
            write_secrets(chosen)
        except (OSError, ValueError, KeyError, FrontError) as error:
            print(f"not taken: {type(error).__name__} in a file that changed", file=sys.stderr, flush=True)
        else:
            process.send_signal(signal.SIGHUP)
        known = state
    return process.returncode


def pass_on(process: subprocess.Popen[bytes]) -> None:
    """Hand nginx's log on, until it ends. It opens its standard output by name, which only a pipe of ours allows."""
    assert process.stdout is not None  # noqa: S101, for the types
    while data := os.read(process.stdout.fileno(), 1 << 16):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def main() -> int:
    chosen = parser().parse_args()
    os.umask(0o077)
    try:
        write_configuration(chosen)
        known = wait_for_secrets(chosen)
    except FrontError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    command = [chosen.nginx, "-p", f"{chosen.folder}/", "-c", "nginx.conf", "-e", "stderr", *_as_root()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    logs = threading.Thread(target=pass_on, args=(process,), daemon=True)
    logs.start()

    def drain(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(chosen.drain_s)
        process.send_signal(signal.SIGQUIT)

    signal.signal(signal.SIGTERM, drain)
    signal.signal(signal.SIGINT, drain)
    status = follow(chosen, process, known)
    logs.join(timeout=5)
    return status


def _as_root() -> list[str]:
    """What nginx needs if root runs it: its workers could not read this folder as the user that they change to."""
    if os.geteuid() != 0:
        return []
    print("note: this runs as root; a user of its own is safer", file=sys.stderr, flush=True)
    return ["-g", "user root;"]


def _write(path: Path, text: str) -> None:
    """Replace a file at once, so that nginx never reads half of it."""
    half = path.with_name(f".{path.name}.new")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


if __name__ == "__main__":
    sys.exit(main())
