"""The nginx that stands before one TorchServe: its text and its process.

Each TorchServe makes a token of its own, and nginx cannot choose a header by the server that its balancer picks. So
each server has an nginx of its own that adds its token; the nginx that clients reach balances over these. It is one
process per server and not one for all: a reload for one server's new token closes no connection to another server.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from server.http import request
from server.paths import ROOT
from server.ports import HOST
from server.tokens import bearer

from per_gpu.plan import Plan

TEMPLATE = ROOT / "scripts" / "deployment" / "nginx" / "member.conf"
STOP_S = 5.0
ASK_S = 2.0  # for an answer of a process of this machine


def text(plan: Plan, key: str, token: str | None) -> str:
    """The configuration. key: what all servers share. token: this server's; None: the server is away."""
    down = " down" if token is None else ""
    values = {
        "REST_SERVER": f"{HOST}:{plan.ports['inference']}{down}",
        "GRPC_SERVER": f"{HOST}:{plan.ports['grpc_inference']}{down}",
        "REST_PORT": str(plan.ports["rest"]),
        "GRPC_PORT": str(plan.ports["grpc"]),
        # An expression, because nginx compares plain text in any case.
        "TOKEN_MAP": "" if token is None else f'"~^Bearer \\Q{key}\\E$" "Bearer {token}";',
    }
    made = TEMPLATE.read_text(encoding="utf-8")
    for name, value in values.items():
        made = made.replace(f"@{name}@", value)
    return made


@dataclass
class MemberNginx:
    """The process. program: nginx. key: see text()."""

    plan: Plan
    program: str
    key: str
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    token: str | None = field(default=None, init=False)

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return self.plan.folder / "nginx"

    def show(self, token: str | None) -> None:
        """Let requests through to the server with this token, or with None answer that it is away.

        It is started with the first token, since nobody asks it before. passes() says when this has taken effect.
        """
        if token == self.token:
            return
        self.token = token
        self.folder.mkdir(parents=True, exist_ok=True)
        half = self.folder / ".member.conf.new"
        half.write_text(text(self.plan, self.key, token), encoding="utf-8")
        half.replace(self.folder / "member.conf")
        if self.process is not None:
            self.process.send_signal(signal.SIGHUP)
            return
        as_root = ["-g", "user root;"] if os.geteuid() == 0 else []  # its workers could not read this folder
        command = [self.program, "-p", f"{self.folder}/", "-c", "member.conf", "-e", "stderr", *as_root]
        self.process = subprocess.Popen(command, start_new_session=True)

    def passes(self) -> bool:
        """Whether a request gets through to the server. Raises OSError if nobody listens."""
        url = f"http://{HOST}:{self.plan.ports['rest']}/ping"
        return request("GET", url, headers=bearer(self.key), timeout_s=ASK_S).status == 200

    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        """End it; requests that it has are lost after STOP_S."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGQUIT)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait()
