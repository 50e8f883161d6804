"""One TorchServe of several, with its nginx: started, watched, started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.client import Client
from server.config import read_properties, write_changed
from server.errors import ServerError
from server.logs import Logs, read_from
from server.paths import ROOT

from per_gpu.nginx import ASK_S, MemberNginx
from per_gpu.plan import Plan

START = ROOT / "scripts" / "deployment" / "start"
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0
STEADY_S = 300.0  # who has served this long is started again without a longer delay
SLOW_S = 60.0  # who loads for longer is named once
MOST_LOG_BYTES = 64 << 20
Report = Callable[[str], None]


def delay_after(deaths: int) -> float:
    """Seconds until the next start, after so many deaths in short succession."""
    return float(min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (deaths - 1)))


@dataclass
class Member:
    """A TorchServe and its nginx.

    models: NAME=FILE.mar of the model store. environment: that of scripts/deployment/start. config: the
    config.properties that the server's own is made of.
    """

    plan: Plan
    models: Sequence[str]
    environment: Mapping[str, str]
    config: Path
    nginx: MemberNginx
    report: Report
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    ready: bool = field(default=False, init=False)
    ready_at: float = field(default=0.0, init=False)
    due: float = field(default=0.0, init=False)
    deaths: int = field(default=0, init=False)
    complained: bool = field(default=False, init=False)
    slow_at: float = field(default=0.0, init=False)

    @property
    def log(self) -> Path:
        """What TorchServe prints. logs/ in its folder has the same, and more of it."""
        return self.plan.folder / "console.log"

    @property
    def client(self) -> Client:
        """What asks this TorchServe."""
        return Client(self.plan.run_folder, read_properties(self.plan.folder / "config.properties"), ASK_S)

    def start(self) -> None:
        """Start TorchServe in the background; until it is ready its nginx says that it is away."""
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        write_changed(self.config, self.plan.folder / "config.properties", self.plan.settings())
        self.ready, self.complained, self.slow_at = False, False, time.monotonic() + SLOW_S
        self.nginx.show(None)
        self.logs = Logs(self.plan.run_folder)
        self.log.write_bytes(b"")
        with self.log.open("ab") as log:  # appending, so that a log that is emptied starts at its beginning
            self.process = subprocess.Popen(
                [str(START), *self.models],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def step(self) -> None:
        """Look after it once. Raises ServerError for what a new start would not mend."""
        now = time.monotonic()
        if self.nginx.ended():
            raise ServerError(f"the nginx of {self.plan} has ended by itself")
        if self.process is None:
            if now >= self.due:
                self.start()
        elif self.process.poll() is not None:
            self._died(self.process.returncode, now)
        elif not self.ready:
            self._look(now)
        elif self.log.stat().st_size > MOST_LOG_BYTES:
            os.truncate(self.log, 0)

    def _died(self, status: int, now: float) -> None:
        if not self.ready and not self.ready_at:
            raise ServerError(f"{self.plan} ended while it started, exit status {status}:\n{self.tail()}")
        self.kill()  # workers that are left hold memory of the GPU
        self.deaths = 1 if self.ready and now - self.ready_at > STEADY_S else self.deaths + 1
        self.ready, self.process = False, None
        self.due = now + delay_after(self.deaths)
        again = f"it is started again in {delay_after(self.deaths):.0f} s"
        self.report(f"{self.plan} has ended by itself; {again} (log: {self.log})")

    def _look(self, now: float) -> None:
        """See whether it has become ready, or why it cannot."""
        if error := self._load_error():
            if not self.ready_at:
                raise ServerError(f"{self.plan}: {error} (log: {self.log})")
            if not self.complained:
                self.complained = True
                self.report(f"{self.plan}: {error}; TorchServe tries again (log: {self.log})")
        elif now > self.slow_at and not self.complained:
            self.complained = True
            self.report(f"{self.plan} is still loading after {SLOW_S:.0f} s (log: {self.log})")
        with contextlib.suppress(OSError, ServerError, ValueError, KeyError):
            client = self.client
            if all(self._serves(client, model.partition("=")[0]) for model in self.models):
                self.nginx.show(client.token("inference"))
                if not self.nginx.passes():  # or clients' nginx would take this server for one that is away
                    return
                self.ready, self.ready_at = True, now
                self.report(f"{self.plan} is ready: {client.inference}, {client.config['metrics_address']}/metrics")

    def _load_error(self) -> str | None:
        names = [model.partition("=")[0] for model in self.models]
        found = ((name, self.logs.load_error(name)) for name in names)
        return next((f"{name} cannot be loaded: {error}" for name, error in found if error), None)

    def _serves(self, client: Client, name: str) -> bool:
        states = [worker["status"] for worker in client.describe(name)["workers"]]
        return bool(states) and set(states) == {"READY"}

    def ask_to_stop(self) -> None:
        """Send SIGTERM: TorchServe answers what it has, and ends."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended, then end what is left of it, and its nginx."""
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(max(0.0, timeout_s))
            self.kill()
        self.nginx.stop()

    def kill(self) -> None:
        """End all processes of TorchServe at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def tail(self) -> str:
        """The last lines that it printed, and where the rest is."""
        return "\n".join([*read_from(self.log, 0).splitlines()[-15:], f"(all of it: {self.log})"])
