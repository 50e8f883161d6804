"""A start with a key: TorchServe comes up if all of the model store is signed by it, and never otherwise."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from server.errors import ServerError
from server.signed import refuse_unsigned, refuse_unsigned_store

from archive.signing import keys, signatures
from archive.signing.keys import PrivateKey
from tests.e2e.programs import DEPLOYMENT, SAMPLES, Client, read_properties, until

pytestmark = pytest.mark.e2e

SEVEN = (SAMPLES / "seven.png").read_bytes()


@pytest.fixture(scope="module")
def key() -> PrivateKey:
    return keys.generate()


@pytest.fixture
def store(tmp_path: Path, model_store: Path, key: PrivateKey) -> Path:
    """A model store with one signed archive."""
    folder = tmp_path / "store"
    folder.mkdir()
    signatures.sign(Path(shutil.copy(model_store / "digits.mar", folder)), key)
    return folder


@pytest.fixture
def environment(tmp_path: Path, store: Path, key: PrivateKey, config_maker: Callable[[Path], Path]) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TMPDIR")},
        "RUN_FOLDER": str(tmp_path / "run"),
        "MODEL_STORE": str(store),
        "TS_CONFIG": str(config_maker(tmp_path / "config.properties")),
        "JAVA_HEAP": "600m",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "VERIFY_KEY": key.public.line,
    }


def refused(environment: dict[str, str]) -> str:
    """What a start says that is refused."""
    command = [str(DEPLOYMENT / "start"), "digits=digits.mar"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert not (Path(environment["RUN_FOLDER"]) / "config.properties").exists()
    return done.stderr


def test_a_signed_store_is_served(environment: dict[str, str], tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        command = [str(DEPLOYMENT / "start"), "digits=digits.mar"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: process.poll() is not None or _answers(tmp_path / "run"), timeout_s=180)
        assert process.poll() is None, (tmp_path / "log").read_text(errors="replace")[-2000:]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(folder: Path) -> bool:
    try:
        client = Client(folder, read_properties(folder / "config.properties"))
        return client.predict("digits", SEVEN).status == 200
    except (OSError, RuntimeError, ValueError):
        return False


def test_a_changed_archive_keeps_it_from_starting(environment: dict[str, str], store: Path) -> None:
    with (store / "digits.mar").open("ab") as file:
        file.write(b"x")
    assert "digits.mar is not what was signed" in refused(environment)


def test_an_unsigned_archive_that_nobody_asked_for_does_too(
    environment: dict[str, str], store: Path, model_store: Path
) -> None:
    """Management could register it later."""
    shutil.copy(model_store / "sentences.mar", store)
    assert "sentences.mar is not signed" in refused(environment)


def test_a_key_that_is_none_never_means_no_check(environment: dict[str, str]) -> None:
    for given in ("nonsense", "/absent.pub", keys.generate().public.line):
        assert "error: " in refused({**environment, "VERIFY_KEY": given})


def test_the_scripts_refuse_what_is_not_signed(
    store: Path, key: PrivateKey, capfd: pytest.CaptureFixture[str]
) -> None:
    archive = store / "digits.mar"
    refuse_unsigned(archive, key.public.line)
    refuse_unsigned_store(store, key.public.line)
    assert "all 1 archives" in capfd.readouterr().out
    signatures.path_of(archive).unlink()
    refuse_unsigned(archive, "")
    refuse_unsigned_store(store, "")
    for refuse, target in ((refuse_unsigned, archive), (refuse_unsigned_store, store)):
        with pytest.raises(ServerError, match="is not signed"):
            refuse(target, key.public.line)
