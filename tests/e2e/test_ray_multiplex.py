"""Many models in few replicas of Ray Serve: they are loaded when they are asked, and dropped for others.

One Ray serves all tests here, in order. It has one replica, in which two of five models are loaded at a time. Two of
the five cannot be loaded.
"""

from __future__ import annotations

import json
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from server.http import request

from handlers import HttpRequest, Model, load_archive
from handlers.hosts.messages import routed
from tests.e2e.programs import until
from tests.e2e.ray_server import RayServer, ray_server
from tests.hosts_table import IMAGES, TEXTS, Asked, Reply, png

pytestmark = [pytest.mark.e2e, pytest.mark.alone]
GOOD = ("digits", "sentences", "digits2")
ROUNDS = 6
MOST_GROWTH = 60 << 20  # bytes of a process in ROUNDS rounds with three loads each
TEXT = b'["a text", "and another"]'
JSON = {"Content-Type": "application/json"}


def damaged(source: Path, target: Path) -> Path:
    """Copy an archive with one byte of its weights changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        largest = max(old.infolist(), key=lambda entry: entry.file_size).filename
        for entry in old.infolist():
            data = bytearray(old.read(entry))
            if entry.filename == largest:
                data[len(data) // 2] ^= 1
            new.writestr(entry.filename, bytes(data))
    return target


@pytest.fixture(scope="module")
def models(model_store: Path) -> Iterator[dict[str, Model]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(load_archive(model_store / f"{name}.mar", workers=2)) for name in GOOD}


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def ray(model_store: Path, faults: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    folder = tmp_path_factory.mktemp("ray")
    common = {"num_gpus": 0, "num_cpus": 1, "max_delay_ms": 0}
    entries = [{"archive": str(model_store / f"{name}.mar"), **common} for name in GOOD]
    broken = damaged(model_store / "digits.mar", folder / "broken.mar")
    entries.append({"archive": str(broken), "name": "broken", **common})
    entries.append({**entries[0], "name": "misset", "settings": {"noSuchKey": 1}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHSERVE_FAST_FAULTS", str(faults))
        with ray_server(folder) as server:
            server.serve({"models": entries, "multiplex": 2, "load_wait_s": 45, "front_num_cpus": 0})
            yield server


def ask(ray: RayServer, model: str) -> Any:
    """Ask a model for what it answers right. Returns the status and the body."""
    body, headers = (TEXT, JSON) if model == "sentences" else (png("seven"), {})
    answer = request("POST", f"{ray.address}/predictions/{model}", body, headers)
    return answer.status, answer.body


def right(models: dict[str, Model], model: str) -> Any:
    body, headers = (TEXT, JSON) if model == "sentences" else (png("seven"), {})
    answer = models[model].answer(HttpRequest(headers=headers, body=body))
    return answer.status, answer.body


def described(ray: RayServer, model: str) -> dict[str, Any]:
    answer = request("GET", f"{ray.address}/models/{model}")
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json()
    return found


def loaded(ray: RayServer) -> set[str]:
    return {name for name in (*GOOD, "broken", "misset") if described(ray, name)["isLoaded"]}


def test_probes_are_answered_and_load_nothing(ray: RayServer) -> None:
    assert request("GET", f"{ray.address}/ping").status == 200
    for path, told in (
        ("/v2/health/ready", b'{"ready":true}'),
        ("/v2/health/live", b'{"live":true}'),
        ("/v2/models/digits/ready", b'{"name":"digits","ready":true}'),
    ):
        answer = request("GET", f"{ray.address}{path}")
        assert (answer.status, answer.body) == (200, told)
    assert loaded(ray) == set()
    (replica,) = described(ray, "digits")["replicas"]
    assert (replica["state"], replica["loadedModels"], replica["mostModels"]) == ("not loaded", 0, 2)


def test_the_first_request_waits_for_its_model_and_the_third_model_drops_the_first(
    ray: RayServer, models: dict[str, Model]
) -> None:
    for name in GOOD:
        started = time.perf_counter()
        assert ask(ray, name) == right(models, name)
        first = time.perf_counter() - started
        started = time.perf_counter()
        assert ask(ray, name) == right(models, name)
        took = described(ray, name)["replicas"][0]["lastLoadTook"]
        print(f"{name}: first request {first:.2f} s (load {took} s), second {time.perf_counter() - started:.3f} s")
    assert loaded(ray) == {"sentences", "digits2"}
    told = described(ray, "sentences")
    (process,) = ray.replicas("models")
    assert told["engine"]["name"]
    assert (told["replicas"][0]["process"], told["replicas"][0]["state"]) == (process.pid, "loaded")


def test_the_least_recently_used_one_is_dropped_and_comes_back(ray: RayServer, models: dict[str, Model]) -> None:
    ask(ray, "digits2")
    ask(ray, "sentences")
    before = described(ray, "digits")["replicas"][0]["loads"]
    assert ask(ray, "digits") == right(models, "digits")
    assert loaded(ray) == {"digits", "sentences"}
    assert described(ray, "digits")["replicas"][0]["loads"] == before + 1


@pytest.mark.parametrize("asked", [*IMAGES, *TEXTS], ids=str)
def test_the_answer_is_the_runners(asked: Asked, ray: RayServer, models: dict[str, Model]) -> None:
    found = routed(asked.target, asked.headers, asked.body)
    assert found is not None
    answer = models[found.model].answer(found.request)
    assert ray.ask(asked) == Reply.of(answer.status, answer.headers, answer.body)


@pytest.mark.parametrize("path", ["/v2/models/digits", "/v2/models/digits2/versions/2.0", "/v2"])
def test_what_kserve_tells_of_a_model_is_the_runners(path: str, ray: RayServer, models: dict[str, Model]) -> None:
    found = routed(path)
    assert found is not None
    answer = request("GET", f"{ray.address}{path}")
    assert (answer.status, answer.body) == (200, models[found.model or "digits"].answer(found.request).body)


def test_grpc_loads_a_model(ray: RayServer, models: dict[str, Model]) -> None:
    grpc = pytest.importorskip("grpc", reason="needs the test extra's grpcio")
    from ray_host import grpc_service

    ask(ray, "digits")
    ask(ray, "sentences")
    sent = grpc_service.message("PredictionsRequest")(model_name="digits2", input={"data": png("seven")})
    with grpc.insecure_channel(ray.grpc) as channel:
        call = channel.unary_unary(f"/{grpc_service.SERVICE}/Predictions")
        answer = grpc_service.message("PredictionResponse").FromString(call(sent.SerializeToString(), timeout=45))
        with pytest.raises(grpc.RpcError) as caught:
            call(grpc_service.message("PredictionsRequest")(model_name="broken").SerializeToString(), timeout=45)
    assert answer.prediction == models["digits2"].answer(HttpRequest(entries={"data": png("seven")})).body
    assert (caught.value.code().name, "not what was packaged" in caught.value.details()) == ("INTERNAL", True)


def test_models_that_do_not_load_say_why_and_leave_the_others_alone(ray: RayServer, models: dict[str, Model]) -> None:
    ask(ray, "digits")
    ask(ray, "sentences")
    for _ in range(3):
        status, body = ask(ray, "broken")
        assert (status, json.loads(body)["type"]) == (500, "ModelNotLoaded")
        assert "is not what was packaged: changed" in json.loads(body)["message"]
    assert loaded(ray) == {"digits", "sentences"}
    assert described(ray, "broken")["replicas"][0]["state"] == "failed"
    assert request("GET", f"{ray.address}/v2/models/broken/ready").status == 500
    assert request("GET", f"{ray.address}/v2/health/ready").status == 200
    for _ in range(3):
        status, body = ask(ray, "misset")
        assert (status, "noSuchKey" in json.loads(body)["message"]) == (500, True)
    until(lambda: loaded(ray) == {"digits", "sentences"}, 20)  # settings are read when there is room; one comes back
    for name in GOOD:
        assert ask(ray, name) == right(models, name)


def test_concurrent_requests_for_more_models_than_there_is_room_for(ray: RayServer, models: dict[str, Model]) -> None:
    wanted = {name: right(models, name) for name in GOOD}
    found: Counter[tuple[str, bool]] = Counter()
    lock = threading.Lock()

    def client(name: str) -> None:
        for _ in range(5):
            answer = ask(ray, name)
            with lock:
                found[name, answer == wanted[name]] += 1

    clients = [threading.Thread(target=client, args=(name,)) for name in GOOD for _ in range(3)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert found == {(name, True): 15 for name in GOOD}


def test_a_request_in_flight_is_answered_before_its_model_is_dropped(
    ray: RayServer, models: dict[str, Model], faults: Path
) -> None:
    ask(ray, "sentences")
    ask(ray, "digits")
    wanted, found = right(models, "digits"), []
    (faults / "slow").write_text("1")
    try:
        flying = [threading.Thread(target=lambda: found.append(ask(ray, "digits"))) for _ in range(3)]
        for each in flying:
            each.start()
        while not described(ray, "digits")["replicas"][0]["requests"]:
            time.sleep(0.02)
        ask(ray, "sentences")
        assert ask(ray, "digits2") == right(models, "digits2")
        assert loaded(ray) == {"sentences", "digits2"}
        for each in flying:
            each.join()
    finally:
        (faults / "slow").unlink()
    assert found == [wanted] * 3


def test_dropped_models_give_their_memory_back(ray: RayServer) -> None:
    (process,) = ray.replicas("models")
    sizes = []
    for _ in range(ROUNDS):
        for name in GOOD:
            assert ask(ray, name)[0] == 200
        sizes.append(process.memory_info().rss)
    print("MiB after each round:", [size >> 20 for size in sizes])
    assert sizes[-1] - sizes[1] < MOST_GROWTH
    assert ray.replicas("models") == [process]
