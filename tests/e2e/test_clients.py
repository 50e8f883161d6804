"""Real clients ask a real TorchServe: each program in tests/clients is run once, and has to end without an error."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from torchserve import ROOT, Server

from tests.e2e import client_venv

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="session")
def client_python() -> Path:
    return client_venv.python()


@pytest.mark.usefixtures("reranker")
@pytest.mark.parametrize("program", client_venv.programs(), ids=lambda path: path.stem)
def test_a_client_gets_what_it_wants(program: Path, client_python: Path, server: Server) -> None:
    environment = {
        "INFERENCE": server.client.inference,
        "GRPC": f"127.0.0.1:{server.config['grpc_inference_port']}",
        "TOKEN": server.client.token("inference"),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(server.folder),
    }
    command = [str(client_python), str(program)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
