"""A Python that has torch and transformers imported already: each script runs in a fork of it, which saves seconds.

    with warm_python.running(os.environ) as command:
        subprocess.run([*command, "script.py", "argument"])

is like `python -I -u script.py argument`: its standard streams, environment, folder and exit status are those of the
caller. Only what is in IMPORTED is there before the script begins. The handlers are not.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

IMPORTED = (
    "numpy",
    "onnxruntime",
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.resnet.modeling_resnet",
)
STREAMS = (0, 1, 2)
LONGEST = 1 << 20  # bytes of a request: arguments and environment


@contextlib.contextmanager
def running(environment: Mapping[str, str]) -> Iterator[list[str]]:
    """Start one. Yields the command that runs a script in it. environment: while it imports."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:  # private: whoever reaches the socket runs scripts
        path = f"{folder}/socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(path)
            listening.listen()
            number = listening.fileno()
            command = [sys.executable, "-Iu", __file__, "serve", str(number)]
            server = subprocess.Popen(command, env=environment, pass_fds=[number], stdin=subprocess.PIPE)
        with server:  # it also ends with its standard input: if this process is killed
            try:
                yield [sys.executable, "-I", "-S", __file__, "ask", path]
            finally:
                server.kill()


def ask(path: str, arguments: list[str]) -> int:
    """Run a script in the server at `path`, with this process's streams; its exit status."""
    request = json.dumps({"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        socket.send_fds(connection, [f"{request}\n".encode()], STREAMS)
        answer = connection.recv(16)
    return int(answer) if answer else 1


def serve(number: int) -> None:
    """Import, then run one script after another, each in a fork. number: the listening socket's."""
    for name in IMPORTED:
        with contextlib.suppress(ImportError):  # onnxruntime need not be there
            __import__(name)
    with socket.socket(fileno=number) as listening:
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(str(run(connection)).encode())


def run(connection: socket.socket) -> int:
    """Run what is asked for over a connection; the exit status."""
    text, streams, _, _ = socket.recv_fds(connection, LONGEST, len(STREAMS))
    while not text.endswith(b"\n"):
        text += connection.recv(LONGEST)
    child = os.fork()
    if child == 0:
        os._exit(status_of(json.loads(text), streams))
    for stream in streams:
        os.close(stream)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def status_of(request: dict[str, Any], streams: list[int]) -> int:
    """Become the script that is asked for; its exit status."""
    for wanted, stream in zip(STREAMS, streams, strict=True):
        os.dup2(stream, wanted)
    try:
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = request["arguments"]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        if isinstance(error.code, int) or error.code is None:
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
