"""Serve archives with TorchServe, those of the demo if none are named, and ask them: what scripts/serve does."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import own_archives
import request_examples
import shared_gpus
from argument_types import port
from demo import DIGITS, SENTENCES, package_demo
from demo_answers import digits_answers, sentences_answers, show_answers
from ready import described
from server.client import Client
from server.config import config_on_port
from server.errors import ServerError
from server.paths import CONFIG, MODEL_STORE, ROOT
from server.ports import HOST, check_free
from server.process import Server, check_folder_free
from server.signed import add_verify_key, refuse_unsigned_store
from serving_bench.archives import Archive
from updates import stopping

from archive.near_options import Parser

READY_TIMEOUT_S = 300
STOP_TIMEOUT_S = 60.0
DEMO_ASKS = {DIGITS: digits_answers, SENTENCES: sentences_answers}
DEMO_EXAMPLES = {
    DIGITS: "-T archive/digits/samples/seven.png",
    SENTENCES: """-H "Content-Type: application/json" -d '["one sentence", "and another"]'""",
}
DESCRIPTION = """\
Serve model archives with TorchServe until Ctrl-C: start it, wait until each model answers, and print how to ask it.

Without FILE.mar it serves a demo: it packages a digit classifier and a sentence encoder unless they are up to date,
sends each a request, and shows the answers.
"""
EPILOG = """\
examples:
  scripts/serve                              the demo, on ports 8080, 8081 (management) and 8082 (metrics)
  scripts/serve model_store/my-bert.mar      an archive of your own; scripts/package makes it
  scripts/serve a.mar new=model_store/b.mar  two archives; the second is asked at /predictions/new
  scripts/serve --port 9080                  on 9080, 9081 and 9082; if 9081 or 9082 is taken, on a free port instead
  scripts/serve --check                      only check that the models answer, and that the demo's answers are right

If a model does not load, the reason is printed in one line, with the path of the log. If requests hang or fail later,
scripts/ready says which model does not answer, and why.

The archives of one call have to lie in one folder, which becomes TorchServe's model store. A file name alone, such as
a.mar, may lie in model_store/.

Exit status: 0 after Ctrl-C; with --check, 0 if all answers were right; else 1; 2 for a wrong command line.
"""


def main() -> int:
    chosen = arguments()
    # A shell starts background jobs with SIGINT ignored; a terminal that closes sends SIGHUP.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        server = server_of(chosen)
    except (OSError, ServerError) as error:  # --ts-config cannot be read, or another server runs here
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        with shared_gpus.environment(chosen.mps, chosen.archives) as extra:
            server.environment = {**server.environment, **extra}
            return serve(server, chosen)
    except (OSError, ServerError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def serve(server: Server, chosen: argparse.Namespace) -> int:
    """Serve until Ctrl-C, then stop the server. Returns the exit status. Raises OSError, ServerError."""
    try:
        return run(server, chosen.check, chosen.verify_key, chosen.archives)
    except KeyboardInterrupt:
        stop_gracefully(server)
        return 0
    finally:
        server.stop()


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says. Raises SystemExit for a wrong one, and after the help."""
    found = parser()
    chosen = found.parse_args(words)
    if chosen.archives and (problem := own_archives.misplaced(chosen.archives)):
        found.error(problem)
    return chosen


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    found = Parser(
        prog="scripts/serve",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "archives",
        nargs="*",
        type=own_archives.own_archive,
        metavar="[NAME=]FILE.mar",
        help="archives to serve; NAME is the model's name in requests (default: the file's name without .mar)",
    )
    found.add_argument("--check", action="store_true", help="stop after the answers")
    found.add_argument(
        "--mps",
        choices=("auto", "on", "off"),
        default="auto",
        help="share each GPU by NVIDIA's MPS, with a control daemon of its own. auto: if a model starts more than "
        f"{shared_gpus.MANY} workers per GPU, and no daemon runs here (default: %(default)s)",
    )
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


def server_of(chosen: argparse.Namespace) -> Server:
    """The server that the command line means, not started yet. Raises OSError, ServerError."""
    config_file = config_file_of(chosen)
    if chosen.archives:
        models = [f"{archive.name}={archive.file.name}" for archive in chosen.archives]
        return Server(ROOT, config_file, chosen.archives[0].file.parent, models)
    return Server(ROOT, config_file, MODEL_STORE, [f"{name}={name}.mar" for name in (DIGITS, SENTENCES)])


def config_file_of(chosen: argparse.Namespace) -> Path:
    """The config.properties to serve with; one is written if --port is given.

    A file that a running server uses is not written again: it would get other ports. Raises OSError, ServerError.
    """
    check_folder_free(ROOT)
    source: Path = chosen.ts_config.resolve()
    if chosen.port is None:
        return source
    check_free(f"http://{HOST}:{chosen.port}", source)
    return config_on_port(source, ROOT / "logs" / f"serve-{chosen.port}.properties", chosen.port)


def run(server: Server, check: bool, verify_key: str = "", archives: Sequence[Archive] = ()) -> int:
    """Start the server and ask it; serve on unless `check`. Returns the exit status. Raises ServerError.

    verify_key: the public key that has to have signed all archives; "" lets unsigned ones pass. archives: what the
    server has; empty: the demo's.
    """
    server.check()  # before minutes are spent on packaging
    if not archives:
        package_demo()
    refuse_unsigned_store(server.model_store, verify_key)
    start(server, archives)
    right = show_own(server.client, archives) if archives else show_answers(server.client)
    if check:
        print("all answers were right" if right else "NOT all answers were right")
        return 0 if right else 1
    print(next_steps(server.client, server.config_file, archives))
    return _serve_on(server)


def start(server: Server, archives: Sequence[Archive]) -> None:
    """Start the server, and wait until its models answer. Raises ServerError."""
    started = time.monotonic()
    print("starting TorchServe (its output: logs/console.log)", flush=True)
    server.start()
    server.wait(
        own_archives.asks(archives) if archives else DEMO_ASKS,
        own_archives.timeout_s(archives) if archives else READY_TIMEOUT_S,
        lambda line: print(f"  {line} after {time.monotonic() - started:.1f} s", flush=True),
    )


def show_own(client: Client, archives: Sequence[Archive]) -> bool:
    """Print what serves each archive. Returns True: all have answered."""
    print()
    for archive in archives:
        print(own_archives.summary(archive.name, described(client, archive.name)), flush=True)
    return True


def next_steps(client: Client, config_file: Path, archives: Sequence[Archive] = ()) -> str:
    """What to type next. The other scripts need --ts-config if the server does not use the project's."""
    where = "" if config_file == CONFIG else f" --ts-config {_short(config_file)}"
    if archives:
        asked = {archive.name: request_examples.of_archive(archive.file) for archive in archives}
    else:
        asked = DEMO_EXAMPLES
    return f"""
Serving until Ctrl-C. In another terminal, from {ROOT}:

{_requests(client.inference, asked, where)}
  scripts/scale {next(iter(asked))} 2{where}
      two workers (processes) for a model; waits until both are ready
  scripts/ready{where}
      whether every model answers, and why not
  scripts/package --help
      how to make archives of your own checkpoints; scripts/serve FILE.mar serves them
  curl {client.config["metrics_address"]}/metrics
      batch sizes and times among them
"""


def _requests(inference: str, asked: Mapping[str, str], where: str) -> str:
    """The commands that ask each model. asked: curl's options by model; "" gives the address alone."""
    token = f'curl -H "Authorization: Bearer $(scripts/token{where})"'
    return "\n".join(
        f"  {token} \\\n       {options}{' ' * bool(options)}{inference}/predictions/{name}\n"
        for name, options in asked.items()
    )


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
