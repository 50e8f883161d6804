"""A front's death: clients get an answer or a 503 with Retry-After, and never another Ray's answer.

The tests start a Ray each and take minutes, so they run only if SLOW_TESTS is set.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.programs import until
from tests.e2e.ray_server import RayServer, ray_server
from tests.hosts_table import png

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.alone,
    pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="takes minutes; SLOW_TESTS=1 runs it"),
]
CLIENTS = 6
WAIT_S = 60
GONE = (503, "FrontUnavailable", "1")  # status, type, Retry-After
CUT = "IncompleteRead"  # the front died while it sent the answer; its length tells the client
IMAGE, TEXT = png("seven"), b'["a text", "and another"]'

Check = Callable[[bytes], bool]  # whether an answer with status 200 is right


def is_seven(body: bytes) -> bool:
    return bool(json.loads(body)[0]["label"] == "7")


def is_two_embeddings(body: bytes) -> bool:
    return [len(row) for row in json.loads(body)] == [384, 384]


class Load:
    """What clients got who ask one model without a pause. Half of them keep their connections."""

    def __init__(self, server: RayServer, body: bytes, check: Check) -> None:
        self.port, self.body, self.check = urlsplit(server.address).port or 0, body, check
        kind = "application/json" if body.startswith(b"[") else "application/octet-stream"
        self.headers = {"Content-Type": kind}
        self.outcomes, self.ends, self.lock = Counter[object](), threading.Event(), threading.Lock()
        self.clients = [threading.Thread(target=self.ask, args=(number % 2 == 0,)) for number in range(CLIENTS)]

    def ask(self, keeps: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        while not self.ends.is_set():
            outcome: object
            try:
                connection.request("POST", "/predictions/model", self.body, self.headers)
                answer = connection.getresponse()
                outcome = self.outcome(answer.status, answer.getheader("retry-after"), answer.read())
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                connection.close()
            with self.lock:
                self.outcomes[outcome] += 1
            if not keeps:
                connection.close()
            if outcome != "right":
                self.ends.wait(0.05)
        connection.close()

    def outcome(self, status: int, later: str | None, body: bytes) -> object:
        if status == 200:
            return "right" if self.check(body) else "wrong"
        try:
            return status, json.loads(body)["type"], later
        except (ValueError, LookupError, TypeError):
            return status, body

    def goes_on(self) -> None:
        """Wait until more requests are answered."""
        done = self.outcomes["right"]
        until(lambda: self.outcomes["right"] > done + 20, WAIT_S)


@contextmanager
def load(server: RayServer, body: bytes, check: Check) -> Iterator[Load]:
    found = Load(server, body, check)
    for client in found.clients:
        client.start()
    try:
        found.goes_on()
        yield found
    finally:
        found.ends.set()
        for client in found.clients:
            client.join()
        print(dict(found.outcomes))


def args(archive: Path, fronts: int) -> dict[str, object]:
    model = {"archive": str(archive), "name": "model", "num_gpus": 0, "max_delay_ms": 20}
    return {"models": [model], "fronts": fronts, "front_num_cpus": 0}


def kill_front(server: RayServer) -> None:
    server.replicas("front")[0].kill()


def wait_for_fronts(server: RayServer, count: int) -> None:
    until(lambda: len(server.replicas("front")) == count, WAIT_S)


def test_with_two_fronts_the_other_one_answers(model_store: Path, tmp_path: Path) -> None:
    with ray_server(tmp_path) as server:
        server.serve(args(model_store / "digits.mar", fronts=2))
        with load(server, IMAGE, is_seven) as found:
            kill_front(server)
            found.goes_on()
            wait_for_fronts(server, 2)
            found.goes_on()
    assert set(found.outcomes) <= {"right", GONE, CUT}
    assert found.outcomes[GONE] < CLIENTS  # HAProxy asks again once; some meet the dying front twice


def test_two_rays_of_a_machine_never_answer_for_each_other(model_store: Path, tmp_path: Path) -> None:
    """Their fronts take ports from one range: a new front of one may get the port that the other's had."""
    folders = [tmp_path / name for name in ("images", "texts")]
    for folder in folders:
        folder.mkdir()
    with ExitStack() as stack:
        images, texts = (stack.enter_context(ray_server(folder)) for folder in folders)
        images.serve(args(model_store / "digits.mar", fronts=1))
        texts.serve(args(model_store / "sentences.mar", fronts=1))
        of_images = stack.enter_context(load(images, IMAGE, is_seven))
        of_texts = stack.enter_context(load(texts, TEXT, is_two_embeddings))
        for killed in ((images,), (texts,), (images, texts), (texts, images)):
            for server in killed:
                kill_front(server)
            for server, found in ((images, of_images), (texts, of_texts)):
                found.goes_on()
                wait_for_fronts(server, 1)
    for found in (of_images, of_texts):
        assert found.outcomes["right"] > 100
        assert set(found.outcomes) <= {"right", GONE, CUT}
        assert found.outcomes[CUT] <= CLIENTS


def test_grpc_calls_get_an_answer_or_a_status(model_store: Path, tmp_path: Path) -> None:
    grpc = pytest.importorskip("grpc", reason="needs the test extra's grpcio")
    pytest.importorskip("google.protobuf", reason="needs the test extra's grpcio-tools")
    from ray_host import grpc_service

    sent = grpc_service.message("PredictionsRequest")(model_name="model", input={"data": IMAGE}).SerializeToString()
    outcomes = Counter[str]()
    with ray_server(tmp_path) as server:
        server.serve(args(model_store / "digits.mar", fronts=1))
        with grpc.insecure_channel(server.grpc) as channel:
            call = channel.unary_unary(f"/{grpc_service.SERVICE}/{grpc_service.METHOD}")

            def ask() -> str:
                try:
                    body = (
                        grpc_service.message("PredictionResponse").FromString(call(sent, timeout=WAIT_S)).prediction
                    )
                    return "right" if is_seven(body) else "wrong"
                except grpc.RpcError as error:
                    return f"{error.code().name}: {error.details()}"

            outcomes.update(ask() for _ in range(20))
            kill_front(server)
            outcomes.update(ask() for _ in range(20))
            until(lambda: ask() == "right", WAIT_S)
    print(dict(outcomes))
    assert {outcome.partition(":")[0] for outcome in outcomes} <= {"right", "UNAVAILABLE"}
