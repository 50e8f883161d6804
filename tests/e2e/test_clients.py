"""Real clients ask a real TorchServe: the programs in tests/clients, and the lines of docs/clients."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from server.config import read_properties
from server.paths import ROOT
from server.process import Server

from tests.e2e import client_venv
from tests.pages import PAGES, Block, blocks

pytestmark = pytest.mark.e2e

LINES = [
    block
    for page in PAGES
    if page.parent.name == "clients"
    for block in blocks(page)
    if block.language == "python" and "test_clients.py" in block.notest
]


@pytest.fixture(scope="session")
def client_python() -> Path:
    return client_venv.python()


@pytest.mark.usefixtures("reranker")
@pytest.mark.parametrize("program", client_venv.programs(), ids=lambda path: path.stem)
def test_a_client_gets_what_it_wants(program: Path, client_python: Path, server: Server) -> None:
    _run([str(client_python), str(program)], "", server)


@pytest.mark.parametrize("block", LINES, ids=lambda block: block.where)
def test_lines_to_paste_work(block: Block, client_python: Path, server: Server) -> None:
    usual = read_properties(ROOT / "config.properties")["inference_address"]
    _run([str(client_python), "-"], block.text.replace(usual, server.client.inference), server)


def _run(command: list[str], text: str, server: Server) -> None:
    environment = {
        "INFERENCE": server.client.inference,
        "GRPC": f"127.0.0.1:{server.config['grpc_inference_port']}",
        "TOKEN": server.client.token("inference"),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(server.folder),
    }
    done = subprocess.run(
        command, input=text, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
