"""Each kind of failed load: one clear last line, a readiness check that says no, and neighbours that answer."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import ready
from server.errors import ServerError
from server.logs import Logs

from archive import inspection
from tests.e2e.programs import SAMPLES, Client, Server, until

pytestmark = pytest.mark.e2e

SEVEN = (SAMPLES / "seven.png").read_bytes()
# Put at the end of the handlers' code, in place of a machine where this happens.
NO_MEMORY = b"def load(*_):\n    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')\n"
NO_PACKAGE = b"import a_package_that_is_missing\n"
MISMATCH = b"def load(*_):\n    raise RuntimeError('Error(s) in loading state_dict:\\n\\tsize mismatch')\n"
BEFORE_A_START = ("Listening on", "Successfully loaded", "s_name_part0", "[PID]")  # what the next worker writes
PANIC = b"class Panic(BaseException): ...\ndef load(*_):\n    raise Panic('of a library written in Rust')\n"
KINDS: dict[str, tuple[dict[str, bytes | None], str]] = {
    "missing": ({"labels.json": None}, "missing: labels.json"),
    "torn": ({"model.safetensors": b"torn"}, "changed: model.safetensors"),
    "engine": ({"model-config.yaml": b"handler: {engine: no_such_engine}\n"}, "no_such_engine"),
    "setting": ({"model-config.yaml": b"handler: {no_such_setting: 1}\n"}, "no_such_setting"),
    "memory": (
        {"handlers/loading.py": NO_MEMORY},
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB. There is",
    ),
    "package": (
        {"handlers/loading.py": NO_PACKAGE},
        "ModuleNotFoundError: No module named 'a_package_that_is_missing'",
    ),
    "mismatch": ({"handlers/loading.py": MISMATCH}, "RuntimeError: Error(s) in loading state_dict: size mismatch"),
    "panic": ({"handlers/loading.py": PANIC}, "Panic: of a library written in Rust"),
}


def spoilt(mar: Path, target: Path, changes: Mapping[str, bytes | None]) -> None:
    """Write an archive with other files. Code is added to, and gets its digest, as if packaged like this."""
    with zipfile.ZipFile(mar) as source, zipfile.ZipFile(target, "w") as copy:
        held = {name: source.read(name) for name in source.namelist()} | dict(changes)
        provenance = json.loads(held[inspection.PROVENANCE] or b"")
        for name in changes:
            if name.endswith(".py"):
                held[name] = source.read(name) + b"\n\n" + (changes[name] or b"")
                provenance["files"][name] = hashlib.sha256(held[name] or b"").hexdigest()
        held[inspection.PROVENANCE] = json.dumps(provenance).encode()
        for name, content in held.items():
            if content is not None:
                copy.writestr(name, content)


@contextlib.contextmanager
def registered(server: Server, name: str) -> Iterator[Logs]:
    """The model, with one worker that tries to load; the logs since then."""
    logs = Logs(server.folder)
    query = {"url": f"{name}.mar", "model_name": name, "initial_workers": 1, "synchronous": "false"}
    answer = server.client.manage("POST", "/models", query)
    assert answer.status in (200, 202), answer.body
    try:
        yield logs
    finally:
        server.client.manage("DELETE", f"/models/{name}")
        (server.model_store / f"{name}.mar").unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_load_that_fails_says_so(server: Server, client: Client, model_store: Path, kind: str) -> None:
    changes, wanted = KINDS[kind]
    name = f"bad-{kind}"
    spoilt(model_store / "digits.mar", model_store / f"{name}.mar", changes)
    with registered(server, name) as logs:
        # The server's log may be ahead of the worker's, and both are written late.
        until(lambda: wanted in str(logs.load_error(name)), timeout_s=120)
        until(lambda: any(wanted in line for line in last_lines(server, name)), timeout_s=120)
        with pytest.raises(ServerError, match="no worker is ready"):
            ready.ask(client, name, time.monotonic() + 30)
        assert client.predict("digits", SEVEN).status == 200


def last_lines(server: Server, name: str) -> list[str]:
    """The last line that each of the model's workers wrote. TorchServe loses what some wrote before they ended."""
    text = (server.folder / "logs" / "model_log.log").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if f"-{name}_1.0-std" in line]
    starts = [index for index, line in enumerate(lines) if "Torch worker started" in line]
    written = [lines[start:end] for start, end in itertools.pairwise([*starts, len(lines)])]
    return [
        next(line for line in reversed(own) if not any(word in line for word in BEFORE_A_START)) for own in written
    ]
