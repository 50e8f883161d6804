"""All servers together, and the nginx that clients reach."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.errors import ServerError
from server.paths import ROOT
from server.ports import HOST
from server.tokens import KEY_FILE

from per_gpu.member import Member, Report
from per_gpu.nginx import ASK_S, MemberNginx
from per_gpu.plan import Plan

FRONT = ROOT / "scripts" / "deployment" / "front.py"
POLL_S = 0.2
MEMBER_STOP_S = 20.0  # nobody asks a server any more when it is asked to end
PROCESSES = 2  # of nginx, per server


class Stack:
    """The servers of `plans`. chosen: the command line. around: the environment of all servers."""

    def __init__(
        self, chosen: argparse.Namespace, plans: Sequence[Plan], around: Mapping[str, str], report: Report
    ) -> None:
        self.chosen, self.plans, self.report = chosen, plans, report
        self.key = secrets.token_urlsafe(32)  # between clients' nginx and those of the servers
        self.front: subprocess.Popen[bytes] | None = None
        self.open = False  # whether clients can connect
        self.members = [
            Member(
                plan,
                chosen.models,
                plan.environment(around, chosen.model_store, MEMBER_STOP_S),
                chosen.ts_config,
                MemberNginx(plan, chosen.nginx, self.key),
                report,
            )
            for plan in plans
        ]

    def run(self, asked: threading.Event) -> None:
        """Serve until `asked`. Raises ServerError, OSError or ValueError; all has ended then."""
        try:
            for member in self.members:
                self.report(f"{member.plan} starts: {', '.join(f'{k} {v}' for k, v in member.plan.ports.items())}")
                member.start()
            while not asked.wait(POLL_S):
                self.step()
            self.report("stopping: no new connections are taken, and requests in work are answered")
        finally:
            self.stop()

    def step(self) -> None:
        """Look after everything once. Raises ServerError for what a new start would not mend."""
        for member in self.members:
            member.step()
        if self.front is not None and self.front.poll() is not None:
            raise ServerError(f"the nginx for clients has ended by itself, exit status {self.front.returncode}")
        if self.front is None and all(member.ready for member in self.members):
            self.front = subprocess.Popen(self.front_command(self.clients_keys()), start_new_session=True)
        if self.front is not None and not self.open:
            self._announce()

    def _announce(self) -> None:
        """Say where clients are served, as soon as they are."""
        host, port = self.chosen.host, self.chosen.port
        with contextlib.suppress(OSError), socket.create_connection((host, port), ASK_S):
            self.open = True
            scheme = "https" if self.chosen.tls else "http"
            self.report(f"all {len(self.members)} servers are ready: {scheme}://{host}:{port}")

    def clients_keys(self) -> Path:
        """The file of the clients' keys; it is made if none was named. Writes the servers' key too."""
        folder: Path = self.chosen.folder
        (folder / "key").mkdir(exist_ok=True)
        (folder / "key" / KEY_FILE).write_text(json.dumps({"inference": {"key": self.key}}), encoding="utf-8")
        if self.chosen.keys is not None:
            return Path(self.chosen.keys)
        made = folder / "keys"
        if not made.exists():
            made.write_text(f"{secrets.token_urlsafe(32)}\n", encoding="utf-8")
        self.report(f"the key of clients is in {made}: Authorization: Bearer KEY")
        return made

    def front_command(self, keys: Path) -> list[str]:
        """What starts the nginx for clients."""
        chosen = self.chosen
        addresses = {name: ",".join(f"{HOST}:{plan.ports[name]}" for plan in self.plans) for name in ("rest", "grpc")}
        options = {
            "folder": chosen.folder / "front",
            "torchserve": chosen.folder / "key",
            "keys": keys,
            "host": chosen.host,
            "port": chosen.port,
            "nginx": chosen.nginx,
            "drain-s": chosen.drain_s,
            "processes": PROCESSES * len(self.plans),
            **addresses,
            **({"tls": chosen.tls} if chosen.tls else {}),
        }
        return [sys.executable, str(FRONT), *(f"--{name}={value}" for name, value in options.items())]

    def stop(self) -> None:
        """End the nginx for clients when it has answered all, then all servers at once."""
        deadline = time.monotonic() + self.chosen.stop_s + self.chosen.drain_s
        if self.front is not None and self.front.poll() is None:
            self.front.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.front.wait(max(0.0, deadline - time.monotonic()))
        if self.front is not None:
            _kill_session(self.front)
        for member in self.members:
            member.ask_to_stop()
        deadline = time.monotonic() + MEMBER_STOP_S + 5
        for member in self.members:
            member.wait(deadline - time.monotonic())


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """End what is left of it, its nginx too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
