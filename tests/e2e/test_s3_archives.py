"""A replica of Ray Serve loads an archive from a store with S3's protocol: by s3fs, and only one with the digest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray_host import archives
from server.http import request
from server.paths import ROOT

from tests.e2e import host_process, s3_server
from tests.hosts_table import SAMPLES

pytestmark = pytest.mark.e2e
BUCKET = "models"
NAMES = ("digits", "digits2")
PROGRAM = ROOT / "tests" / "e2e" / "s3_replica.py"


@dataclass(frozen=True)
class Store:
    """A bucket with two archives. cache: where a replica's machine keeps downloads."""

    address: str
    cache: Path

    def load(self, *wanted: tuple[str, str]) -> list[dict[str, str]]:
        """Load archives, each by key and digest, in a new process. Returns the label of a seven or the error."""
        program = [str(s3_server.python()), str(PROGRAM), str(SAMPLES / "seven.png")]
        program += [word for key, digest in wanted for word in (f"s3://{BUCKET}/{key}", digest)]
        access = {"AWS_ENDPOINT_URL": self.address, "AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-key"}
        places = {
            "XDG_CACHE_HOME": str(self.cache),
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        environment = {**host_process.variables(), **access, **places}
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def kept(self) -> set[str]:
        """Digests of the downloads that are kept, and names of parts of downloads."""
        return {path.stem for path in self.cache.rglob("archives/*") if path.suffix != ".lock"}


@pytest.fixture
def store(model_store: Path, tmp_path: Path) -> Iterator[Store]:
    with s3_server.s3_server(tmp_path, BUCKET) as address:
        for name in NAMES:
            body = (model_store / f"{name}.mar").read_bytes()
            assert request("PUT", f"{address}/{BUCKET}/folder/{name}.mar", body).status == 200
        yield Store(address, tmp_path / "cache")


def test_an_archive_of_a_bucket_is_loaded_by_its_digest_alone(store: Store, model_store: Path) -> None:
    right, other = (archives.head(model_store / f"{name}.mar").digest for name in NAMES)
    first, second = (f"folder/{name}.mar" for name in NAMES)
    loaded, refused, absent = store.load((first, right), (first, other), ("none.mar", other))
    assert loaded == {"label": "7"}
    assert right in refused["error"]
    assert other in refused["error"]
    assert "cannot be read: FileNotFoundError" in absent["error"]
    assert BUCKET not in absent["error"]
    assert store.kept() == {right.removeprefix("sha256:")}
    # A digest is kept once it was right, and the wrong one is not in the way of the right one.
    assert store.load(("none.mar", right), (second, other)) == [{"label": "7"}, {"label": "7"}]
    assert store.kept() == {digest.removeprefix("sha256:") for digest in (right, other)}
