"""Package the two demo archives, serve them with TorchServe, and ask them: what scripts/serve does."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from argument_types import port
from demo import DIGITS, SENTENCES, package_demo
from demo_answers import digits_answers, sentences_answers, show_answers
from server.client import Client
from server.config import config_on_port
from server.errors import ServerError
from server.paths import CONFIG, MODEL_STORE, ROOT
from server.process import Server
from server.signed import add_verify_key, refuse_unsigned_store
from updates import stopping

READY_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60.0
DESCRIPTION = """\
Package the two demo archives (a digit classifier and a sentence encoder) unless they are up to date, serve them with
TorchServe, send each a request, show the answers, and serve on until Ctrl-C.
"""
EPILOG = """\
examples:
  scripts/serve                  on the ports of config.properties: 8080, 8081 (management), 8082 (metrics)
  scripts/serve --port 9080      on 9080, and on 9081 and 9082, or free ports in their place if they are taken
  scripts/serve --check          only check that the answers are right

If a model does not load, the reason is printed in one line, with the path of the log. If requests hang or fail later,
scripts/ready says which model does not answer, and why.

Exit status: 0 after Ctrl-C; with --check, 0 if all answers were right; else 1; 2 for a wrong command line.
"""


def main() -> int:
    chosen = parser().parse_args()
    # A shell starts background jobs with SIGINT ignored; a terminal that closes sends SIGHUP.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    models = [f"{name}={name}.mar" for name in (DIGITS, SENTENCES)]
    try:
        server = Server(ROOT, config_file_of(chosen), MODEL_STORE, models)
    except OSError as error:  # --ts-config cannot be read
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        return run(server, chosen.check, chosen.verify_key)
    except KeyboardInterrupt:
        stop_gracefully(server)
        return 0
    except (OSError, ServerError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        server.stop()


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = argparse.ArgumentParser(
        prog="scripts/serve",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--check", action="store_true", help="stop after the answers")
    found.add_argument(
        "--port",
        type=port,
        metavar="PORT",
        help="serve predictions there, management on the next port and metrics on the one after (default: the ports "
        "of --ts-config)",
    )
    found.add_argument(
        "--ts-config",
        type=Path,
        default=CONFIG,
        metavar="FILE",
        help="a config.properties of your own (default: %(default)s)",
    )
    add_verify_key(found, "start only if it has signed all archives of the model store")
    return found


def stop_gracefully(server: Server) -> None:
    """Refuse new requests and wait for those in work; a second Ctrl-C does not wait."""
    if server.process is None:
        return
    print("\nstopping: requests in work are answered first; Ctrl-C again stops at once", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        client = replace(server.client, timeout_s=STOP_TIMEOUT_S)
        stopping.drain(client, STOP_TIMEOUT_S, lambda line: print(f"  {line}", flush=True))


def config_file_of(chosen: argparse.Namespace) -> Path:
    """The config.properties to serve with; one is written if --port is given. Raises OSError."""
    source: Path = chosen.ts_config.resolve()
    if chosen.port is None:
        return source
    return config_on_port(source, ROOT / "logs" / f"serve-{chosen.port}.properties", chosen.port)


def run(server: Server, check: bool, verify_key: str = "") -> int:
    """Start the server and ask it; serve on unless `check`. Returns the exit status. Raises ServerError.

    verify_key: the public key that has to have signed all archives; "" lets unsigned ones pass.
    """
    server.check()  # before minutes are spent on packaging
    package_demo()
    refuse_unsigned_store(server.model_store, verify_key)
    started = time.monotonic()
    print("starting TorchServe (its output: logs/console.log)", flush=True)
    server.start()
    server.wait(
        {DIGITS: digits_answers, SENTENCES: sentences_answers},
        READY_TIMEOUT_S,
        lambda line: print(f"  {line} after {time.monotonic() - started:.1f} s", flush=True),
    )
    right = show_answers(server.client)
    if check:
        print("all answers were right" if right else "NOT all answers were right")
        return 0 if right else 1
    print(next_steps(server.client, server.config_file))
    return _serve_on(server)


def next_steps(client: Client, config_file: Path) -> str:
    """What to type next. The other scripts need --ts-config if the server does not use the project's."""
    where = "" if config_file == CONFIG else f" --ts-config {_short(config_file)}"
    return f"""
Serving until Ctrl-C. In another terminal, from {ROOT}:

  curl -H "Authorization: Bearer $(scripts/token{where})" \\
       -T archive/digits/samples/seven.png {client.inference}/predictions/{DIGITS}

  curl -H "Authorization: Bearer $(scripts/token{where})" -H "Content-Type: application/json" \\
       -d '["one sentence", "and another"]' {client.inference}/predictions/{SENTENCES}

  scripts/scale {DIGITS} 2{where}          two workers for a model; waits until both are ready
  scripts/ready{where}                  whether every model answers, and why not
  scripts/package --help          archives of your own checkpoints
  curl {client.config["metrics_address"]}/metrics   batch sizes and times among them
"""


def _short(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _serve_on(server: Server) -> int:
    process = server.process
    status = process.wait() if process is not None else 1
    print(f"error: TorchServe ended by itself, exit status {status}:\n{server.tail()}", file=sys.stderr)
    return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
