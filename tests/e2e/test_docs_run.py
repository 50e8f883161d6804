"""The commands of README and docs/ are run, page by page, against a TorchServe that serves the demo's archives.

A page's `bash` blocks run in one shell and in order, then its `python` blocks in one interpreter, in a folder that
looks like the checkout. A `json` block that follows a command shows its answer: its keys, strings and whole numbers
have to be those that come; `...` stands for more of the same. Numbers with a point may differ.
A block with notest="REASON" behind its language is not run; tests/unit/test_docs_pages.py wants the reason.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from server.config import read_properties
from server.process import Server

from tests.pages import PAGES, ROOT, RUN, Block, blocks, unlike

pytestmark = pytest.mark.e2e

TO_RUN = {page: [block for block in blocks(page) if block.language in RUN and not block.notest] for page in PAGES}
OWN = (".venv", "scripts", "model_store", "build", "logs", "key_file.json")  # of the workspace, not of the checkout


@pytest.fixture
def workspace(tmp_path: Path, server: Server) -> Path:
    """A folder that looks like the checkout with scripts/serve running in it, and whose scripts ask `server`."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    for path in (*ROOT.iterdir(), *(ROOT / "scripts").iterdir()):
        if path.name not in OWN:
            (folder / path.relative_to(ROOT)).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "model_store").symlink_to(server.model_store)
    where = f"--folder '{server.folder}' --ts-config '{server.config_file}'"
    _replace(folder / "scripts" / "package", f"'{sys.executable}' -m archive \"$@\"")
    for name, module in (("token", "tokens"), ("scale", "scale"), ("ready", "ready")):
        path = ROOT / "scripts" / "commands" / f"{module}.py"
        _replace(folder / "scripts" / name, f"'{sys.executable}' '{path}' \"$@\" {where}")
    _replace(
        folder / "scripts" / "predict", f"'{sys.executable}' '{ROOT / 'scripts' / 'commands' / 'predict.py'}' \"$@\""
    )
    return folder


@pytest.mark.parametrize(
    "page", [page for page, found in TO_RUN.items() if found], ids=lambda page: str(page.relative_to(ROOT))
)
def test_what_a_page_says_works(page: Path, workspace: Path, server: Server) -> None:
    shell = [block for block in TO_RUN[page] if block.language == "bash"]
    answers = _run_shell(shell, workspace, server)
    for block, answer in zip(shell, answers, strict=True):
        if block.answer is not None:
            problem = unlike(block.answer, answer)
            assert not problem, f"{block.where}: {problem}\n{answer[:1000]}"
    _run_python([block for block in TO_RUN[page] if block.language == "python"], workspace, server)


def _run_shell(shell: list[Block], workspace: Path, server: Server) -> list[str]:
    """What each block writes to its standard output."""
    outputs = [workspace.parent / f"output-{index}" for index in range(len(shell))]
    steps = [
        f"echo {block.where} >&2\nexec >'{path}'\n{block.text}" for block, path in zip(shell, outputs, strict=True)
    ]
    _run(["bash", "-euo", "pipefail"], "\n".join(steps), workspace, server)
    return [path.read_text(encoding="utf-8") for path in outputs]


def _run_python(found: list[Block], workspace: Path, server: Server) -> None:
    if found:
        _run([sys.executable, "-"], "\n".join(block.text for block in found), workspace, server)


def _run(command: list[str], text: str, workspace: Path, server: Server) -> None:
    environment = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(
        command,
        input=_at_its_ports(text, server),
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def _at_its_ports(text: str, server: Server) -> str:
    """The text with the server's addresses in place of those of config.properties."""
    usual = read_properties(ROOT / "config.properties")
    for key in ("inference_address", "management_address", "metrics_address"):
        text = text.replace(usual[key].removeprefix("http://"), server.config[key].removeprefix("http://"))
    for key in ("grpc_inference_port", "grpc_management_port"):
        text = text.replace(f":{usual[key]}", f":{server.config[key]}")
    return text


def _replace(path: Path, command: str) -> None:
    path.unlink()
    path.write_text(f"#!/usr/bin/env bash\nexec {command}\n", encoding="utf-8")
    path.chmod(0o755)
