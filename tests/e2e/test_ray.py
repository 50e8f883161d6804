"""Ray Serve answers as TorchServe does, and goes on while a replica dies and while models are replaced.

One Ray with the models of tests/hosts_table.py on the CPU serves all tests here, in order.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from server.client import Client
from server.http import request
from server.paths import ROOT

from handlers import HttpRequest, Model, cpus, load_archive
from tests.e2e import hosts
from tests.e2e.programs import until
from tests.e2e.ray_server import COMMANDS, RayServer, python, ray_server
from tests.hosts_table import Asked, Reply, png

pytestmark = [pytest.mark.e2e, pytest.mark.alone]
CLIENTS = 4
WAIT_S = 40
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def args(digits: Path, sentences: Path) -> dict[str, Any]:
    # As many threads as TorchServe's one worker has, so that both keep to the engine that was fastest with them.
    common = {"num_gpus": 0, "max_delay_ms": 0, "settings": {"cpuThreads": cpus.usable()}}
    models = [
        {"archive": str(digits), "name": "digits", "replicas": 2, **common},
        {"archive": str(sentences), **common},
        {"archive": str(sentences.with_name("reranker.mar")), **common},
    ]
    return {"models": models, "front_num_cpus": 0}


@pytest.fixture(scope="module")
def models(model_store: Path) -> Iterator[dict[str, Model]]:
    with ExitStack() as stack:
        names = ("digits", "sentences")
        yield {name: stack.enter_context(load_archive(model_store / f"{name}.mar")) for name in names}


@pytest.fixture(scope="module")
def ray(torchserve: object, model_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    with ray_server(tmp_path_factory.mktemp("ray")) as server:
        server.serve(args(model_store / "digits.mar", model_store / "sentences.mar"))
        yield server


@pytest.mark.parametrize("model", ["digits", "sentences"])
def test_the_engine_is_torchserves(model: str, ray: RayServer, client: Client) -> None:
    described = request("GET", f"{ray.address}/models/{model}").json()
    assert hosts.engine(described) == hosts.engine(client.customized(model))


@pytest.mark.parametrize("asked", hosts.rows("ray"), ids=str)
def test_the_answer_is_torchserves(asked: Asked, ray: RayServer, torchserve: Mapping[str, Reply]) -> None:
    hosts.compare("ray", ray, asked, torchserve)


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/ping", 200, b"Healthy"),
        ("/models", 200, b'{"digits": ["1.0"], "sentences": ["1.0"], "reranker": ["1.0"]}'),
        ("/models/digits", 200, b'"engine"'),
        ("/models/none", 404, b"ModelNotFoundException"),
        ("/predictions/none", 404, b"ModelNotFoundException"),
        ("/predictions/digits/7.0", 404, b"ModelVersionNotFoundException"),
        ("/no/path", 404, b"ResourceNotFoundException"),
        ("/v2/health/ready", 200, b"ready"),
    ],
)
def test_paths_of_the_front(path: str, status: int, told: bytes, ray: RayServer) -> None:
    answer = request("GET", f"{ray.address}{path}")
    assert (answer.status, told in answer.body) == (status, True), answer.body


def test_a_body_that_is_too_long_is_refused(ray: RayServer) -> None:
    answer = request("POST", f"{ray.address}/predictions/digits", b"x" * ((16 << 20) + 1))
    assert answer.status == 413
    assert answer.json()["type"] == "TooLarge"
    assert answer.json()["client_request_id"]  # Ray Serve's, as the client gave none


def called(ray: RayServer, sent: bytes) -> tuple[str, str, bytes]:
    """Call Predictions. Returns the status, its details, and the response on the wire."""
    grpc = pytest.importorskip("grpc", reason="needs the test extra's grpcio")
    with grpc.insecure_channel(ray.grpc) as channel:
        call = channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions")
        try:
            return "OK", "", call(sent, timeout=WAIT_S)
        except grpc.RpcError as error:
            return error.code().name, error.details(), b""


def sent(model: str, **entries: bytes) -> bytes:
    """A PredictionsRequest on the wire."""
    pytest.importorskip("google.protobuf", reason="needs the test extra's grpcio-tools")
    from ray_host import grpc_service

    made = grpc_service.message("PredictionsRequest")
    # One after the other: a map is written in an order that differs from process to process.
    parts = [made(model_name=model), *(made(input={key: value}) for key, value in entries.items())]
    return b"".join(part.SerializeToString() for part in parts)


@pytest.mark.parametrize(
    ("model", "entries"),
    [
        ("digits", {"data": png("seven"), "top_k": b"1"}),
        ("digits", {"one": png("seven"), "two": png("one")}),
        ("sentences", {"data": b'["a text", "and another"]'}),
        ("sentences", {"body": b"a text"}),
    ],
)
def test_grpcs_answer_is_the_runners(
    model: str, entries: dict[str, bytes], ray: RayServer, models: dict[str, Model]
) -> None:
    from ray_host import grpc_service

    answer = models[model].answer(HttpRequest(entries=entries))
    status, _, response = called(ray, sent(model, **entries))
    assert (answer.status, status) == (200, "OK")
    assert grpc_service.message("PredictionResponse").FromString(response).prediction == answer.body


@pytest.mark.parametrize(
    ("message", "status", "told"),
    [
        (lambda: sent("digits", data=png("seven"), top_k=b"none"), "INVALID_ARGUMENT", "top_k"),
        (lambda: sent("digits", data=b"no picture"), "INVALID_ARGUMENT", "none of JPEG"),
        (lambda: sent("none", data=b"x"), "NOT_FOUND", "no model of this name"),
        (lambda: b"\xff\xff", "INVALID_ARGUMENT", "no PredictionsRequest"),
        (lambda: sent("digits", data=b"x" * ((16 << 20) + 1)), "RESOURCE_EXHAUSTED", "more than"),
    ],
)
def test_grpcs_refusals_have_a_status_and_a_reason(message: Any, status: str, told: str, ray: RayServer) -> None:
    code, details, _ = called(ray, message())
    assert (code, told in details) == (status, True), details


FRONTS_GRPC = range(40_000, 40_008)  # Ray Serve counts up from there; Ray takes any other port for itself


FRONTS = range(30_000, 30_008)  # Ray Serve's own choice of ports for HTTP


def test_a_front_answers_its_own_haproxy_alone(ray: RayServer) -> None:
    """Another Ray's HAProxy asks it if that one's front had the port before."""
    port = next(port for _, port in ray.addresses() if port in FRONTS)
    for headers in ({}, {"x-serve-ray-token": "another"}):
        answer = request("POST", f"http://127.0.0.1:{port}/predictions/digits", png("seven"), headers)
        assert (answer.status, answer.json()["type"]) == (503, "FrontUnavailable")
        assert answer.headers["retry-after"] == "1"
    assert request("POST", f"{ray.address}/predictions/digits", png("seven")).status == 200


def test_grpc_is_answered_at_the_chosen_address_alone(ray: RayServer) -> None:
    """Not by HAProxy, nor by a front behind it. Ray's other ports want a token."""
    port = int(ray.grpc.rpartition(":")[2])
    found = {address for address, number in ray.addresses() if number == port or number in FRONTS_GRPC}
    assert found
    assert found <= {"127.0.0.1", "::ffff:127.0.0.1"}


@pytest.mark.parametrize("path", ["/predictions/digits", "/predictions/none", "/no/path", "/models/none"])
def test_errors_of_a_model_and_of_the_front_name_the_request(path: str, ray: RayServer) -> None:
    for header in ("X-Request-Id", "X-Client-Request-Id"):
        answer = request("POST", f"{ray.address}{path}", b"no picture", {header: "mine-1"})
        assert answer.status in (404, 415)
        assert answer.json().keys() == {"code", "type", "message", "client_request_id"}
        assert answer.json()["client_request_id"] == "mine-1"


class Load:
    """What clients got who ask for digits without a pause, until the end."""

    def __init__(self, address: str) -> None:
        self.address, self.statuses, self.wrong, self.ends = address, Counter[int | str](), 0, threading.Event()
        self.lock = threading.Lock()

    def ask(self, number: int) -> None:
        """One client."""
        while not self.ends.is_set():
            digit = number % len(WORDS)
            number += 1
            status: int | str
            try:
                answer = request("POST", f"{self.address}/predictions/digits", png(WORDS[digit]))
                status, right = answer.status, answer.status != 200 or answer.json()[0]["label"] == str(digit)
            except OSError as error:
                status, right = type(error).__name__, True
            with self.lock:
                self.statuses[status] += 1
                self.wrong += not right


@contextmanager
def load(server: RayServer, count: int = CLIENTS) -> Iterator[Load]:
    found = Load(server.address)
    clients = [threading.Thread(target=found.ask, args=(number,)) for number in range(count)]
    for client in clients:
        client.start()
    try:
        yield found
    finally:
        found.ends.set()
        for client in clients:
            client.join()


HELD = """
from ray_host.app import deployment_options
from ray_host.archives import Head
from ray_host.options import ModelOptions
for size in (1, 8, 64):
    options = deployment_options(ModelOptions("a.mar", num_gpus=0), Head("a", "1.0", "", size, None), "a")
    print(size, options["max_ongoing_requests"], options["request_router_config"].max_backoff_s)
"""


def test_replicas_hold_enough_and_the_router_looks_again_soon() -> None:
    """With Ray's own 0.5 s and three batches of 8 a replica idled most of the time at 64 clients."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{COMMANDS}"}
    told = subprocess.run(
        [python(), "-c", HELD], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines() == ["1 64 0.016", "8 64 0.016", "64 192 0.016"]


def test_a_replica_that_dies_under_load_loses_no_request(ray: RayServer) -> None:
    with load(ray) as found:
        until(lambda: found.statuses[200] > 50, WAIT_S)
        first, second = ray.replicas("digits")
        first.kill()
        until(lambda: len({process.pid for process in ray.replicas("digits")} - {first.pid, second.pid}) == 1, WAIT_S)
        done = found.statuses[200]
        until(lambda: found.statuses[200] > done + 50, WAIT_S)
    print(dict(found.statuses))
    assert found.wrong == 0
    assert set(found.statuses) == {200}


def test_a_rolling_update_under_load_loses_no_request(ray: RayServer, model_store: Path) -> None:
    before = {process.pid for process in ray.replicas("digits")}
    with load(ray) as found:
        until(lambda: found.statuses[200] > 50, WAIT_S)
        ray.serve(args(model_store / "digits2.mar", model_store / "sentences.mar"))
        until(lambda: not before & {process.pid for process in ray.replicas("digits")}, WAIT_S)
        done = found.statuses[200]
        until(lambda: found.statuses[200] > done + 50, WAIT_S)
    print(dict(found.statuses))
    assert found.wrong == 0
    assert set(found.statuses) == {200}
    assert request("GET", f"{ray.address}/models").json()["digits"] == ["2.0"]


def test_an_update_that_cannot_load_leaves_the_models_alone(ray: RayServer, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"there is no .*none\.mar"):
        ray.serve(args(tmp_path / "none.mar", tmp_path / "none.mar"))
    assert request("POST", f"{ray.address}/predictions/digits", png("seven")).status == 200


def test_an_update_whose_replicas_do_not_load_says_why_and_leaves_the_models_alone(
    ray: RayServer, model_store: Path
) -> None:
    wrong = args(model_store / "digits.mar", model_store / "sentences.mar")
    wrong["models"][0]["settings"] = {"noSuchKey": 1}
    why = r"a replica of digits did not load: .*SettingsError: .*noSuchKey.*The replicas' logs are in /\S+/logs/serve"
    with pytest.raises(RuntimeError, match=why):
        ray.serve(wrong)
    assert request("POST", f"{ray.address}/predictions/digits", png("seven")).status == 200


SCALED = {
    "target_ongoing_requests": 2,
    "upscale_delay_s": 1,
    "downscale_delay_s": 2,
    "look_back_period_s": 2,
    "metrics_interval_s": 1,
}


def test_replicas_follow_the_load_and_no_request_is_lost(ray: RayServer, model_store: Path) -> None:
    """Four clients want a second replica, and one does not: it asks on while that replica ends."""
    wanted = args(model_store / "digits.mar", model_store / "sentences.mar")
    wanted["models"][0] |= {"replicas": 1, "max_replicas": 2, "autoscaling": SCALED}
    ray.serve(wanted)
    until(lambda: len(ray.replicas("digits")) == 1, WAIT_S)
    with load(ray) as many:
        until(lambda: ray.running("digits") == 2, WAIT_S)
        done = many.statuses[200]
        until(lambda: many.statuses[200] > done + 50, WAIT_S)
    with load(ray, 1) as one:
        until(lambda: len(ray.replicas("digits")) == 1, WAIT_S)
        done = one.statuses[200]
        until(lambda: one.statuses[200] > done + 10, WAIT_S)
    print(dict(many.statuses), dict(one.statuses))
    assert (many.wrong, one.wrong) == (0, 0)
    assert set(many.statuses) == set(one.statuses) == {200}
