"""KServe's own model server over archives: its answers are TorchServe's very bytes. No cluster is needed.

Also: what is KServe's own, and what holds under load.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from server.http import request

from tests.e2e import hosts
from tests.e2e.kserve_server import KServe, kserve
from tests.hosts_table import JSON, JUNK, MODELS, Asked, Reply, b64, dumped, png, tensor

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def host(torchserve: object, model_store: Path) -> Iterator[KServe]:
    with kserve(model_store) as found:
        yield found


@pytest.mark.parametrize("asked", hosts.rows("kserve"), ids=str)
def test_the_answer_is_torchserves(asked: Asked, host: KServe, torchserve: Mapping[str, Reply]) -> None:
    hosts.compare("kserve", host, asked, torchserve)


def get(host: KServe, path: str) -> Any:
    answer = request("GET", f"{host.url}{path}")
    assert answer.status == 200, answer.body
    return answer.json()


def test_kserves_own_paths(host: KServe) -> None:
    assert get(host, "/v1/models") == {"models": list(MODELS)}
    assert get(host, "/v1/models/digits") == {"name": "digits", "ready": True}
    assert get(host, "/v2/health/ready") == {"ready": True}
    assert get(host, "/v2/models/digits/ready") == {"name": "digits", "ready": True}
    told = get(host, "/v2/models/digits")
    assert told["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in told["outputs"]] == ["scores", "labels", "indices"]


def test_requests_at_once_share_a_batch_and_hurt_no_neighbour(host: KServe) -> None:
    bodies = [png("seven"), JUNK] * 24
    url = f"{host.url}/predictions/digits"
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: request("POST", url, body), bodies))
    assert [answer.status for answer in answers] == [200, 415] * 24
    assert {answer.json()[0]["label"] for answer in answers[::2]} == {"7"}
    time.sleep(2.5)  # figures are shown once per second
    figures = request("GET", f"{host.url}/metrics").body.decode()
    values = {line.split(" ")[0]: float(line.split(" ")[1]) for line in figures.splitlines() if line[0] != "#"}
    labels = '{Level="Model",ModelName="digits",ModelVersion="1.0"}'
    assert values[f"BatchSize_count{labels}"] < values[f"BatchSize_sum{labels}"]
    assert values[f"RequestsRefused{labels}"] >= 24


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/nobody/infer", 404),
        ("/v1/models/nobody:predict", 404),
        ("/predictions/nobody", 404),
        ("/v2/models/digits/versions/9.0/infer", 404),
        ("/v2/models/digits/versions/1.0/infer", 200),
        ("/v2/repository/models/digits/unload", 404),
        ("/v2/repository/models/digits/load", 404),
    ],
)
def test_paths_that_name_a_model(host: KServe, path: str, status: int) -> None:
    body = dumped({"inputs": [tensor("image", [1], "BYTES", [b64("two")])]})
    assert request("POST", f"{host.url}{path}", body, JSON).status == status
    assert get(host, "/v2/models/digits/ready")["ready"]


def test_a_body_that_is_too_large_gets_a_413(host: KServe) -> None:
    answer = request("POST", f"{host.url}/predictions/digits", bytes((16 << 20) + 1))
    assert answer.status == 413
    assert "16777216 bytes" in answer.json()["error"]


def test_no_data_of_a_client_is_in_the_log(host: KServe) -> None:
    request("POST", f"{host.url}/v1/models/digits:predict", dumped({"instances": ["S3CRET"]}), JSON)
    request("POST", f"{host.url}/v1/models/digits:predict", b'{"S3CRET', JSON)
    request("POST", f"{host.url}/invocations?model_name=digits&S3CRET=S3CRET", png("two"))
    assert "POST /invocations HTTP" in host.log.read_text()
    assert "S3CRET" not in host.log.read_text()
