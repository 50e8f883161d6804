"""What models that share replicas have to agree on, what is said of where they are, and what needs no model."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import serve_ray
from ray_host import sharing, unloaded, whereabouts
from ray_host.gone import NotLoadedError, ReplicaGoneError
from ray_host.options import AppOptions

from handlers.hosts.messages import HttpRequest, routed


def options(*models: dict[str, Any], **args: Any) -> AppOptions:
    return AppOptions.of({"models": [{"archive": f"{n}.mar", **model} for n, model in enumerate(models)], **args})


def test_models_that_share_replicas_take_the_room_of_one() -> None:
    shared = options({"replicas": 2}, {"replicas": 2}, multiplex=1)
    assert [model.archive for model in shared.placed] == ["0.mar"]
    assert len(options({}, {}).placed) == 2


def test_settings_of_each_model_may_differ() -> None:
    options({"batch_size": 1, "precision": "fp32"}, {"batch_size": 8, "max_queued": 5}, multiplex=2, load_wait_s=5)


@pytest.mark.parametrize(
    ("models", "args", "told"),
    [
        ([{}], {"multiplex": 0}, "multiplex is 0; wanted: a whole number from 1"),
        ([{}], {"multiplex": True}, "multiplex is True"),
        ([{}], {"multiplex": 1, "load_wait_s": 0}, "load_wait_s is 0"),
        ([{}], {"load_wait_s": 5}, "without multiplex all are loaded at the start"),
        (
            [{}, {"replicas": 2}],
            {"multiplex": 1},
            "replicas has to be the same for all: model 1 has 1, and model 2 has 2",
        ),
        ([{"num_gpus": 1}, {}], {"multiplex": 1}, "num_gpus has to be the same"),
        ([{"resources": {"a": 1}}, {}], {"multiplex": 1}, "resources has to be the same"),
        ([{}, {"timeout_s": 30}], {"multiplex": 1}, "load_wait_s is 60 and timeout_s of model 2 is 30"),
    ],
)
def test_what_does_not_fit_is_refused(models: list[dict[str, Any]], args: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        options(*models, **args)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--multiplex", "2", "--config", "cluster.yaml"], "a file has the keys multiplex and load_wait_s"),
        (["--load-wait", "5", "a.mar"], "--load-wait is for --multiplex"),
        (["--multiplex", "0", "a.mar"], "--multiplex"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        serve_ray.main(arguments)
    assert (caught.value.code, told in capsys.readouterr().err) == (2, True)


def test_requests_that_wait_for_loads_leave_room_for_others() -> None:
    assert sharing.held(2, 64) == (384, 192)


def test_an_error_keeps_what_it_says_on_its_way_to_the_front() -> None:
    error = pickle.loads(pickle.dumps(NotLoadedError(503, "Busy", "later")))  # noqa: S301 - its own
    assert (error.status, error.kind, error.message) == (503, "Busy", "later")


def told(replica: str, state: str, **model: Any) -> dict[str, Any]:
    return {"model": {"name": "a", **model}, "replica": {"replica": replica, "state": state}}


def test_the_description_is_that_of_a_replica_that_has_the_model() -> None:
    found = whereabouts.merged([told("y", "not loaded"), told("x", "loaded", engine="cudnn")])
    assert (found["engine"], found["isLoaded"]) == ("cudnn", True)
    assert [each["replica"] for each in found["replicas"]] == ["x", "y"]


def test_a_model_that_is_loaded_nowhere_is_described_without_an_engine() -> None:
    found = whereabouts.merged([told("x", "loading")])
    assert found == {"name": "a", "isLoaded": False, "replicas": [{"replica": "x", "state": "loading"}]}
    with pytest.raises(ReplicaGoneError):
        whereabouts.merged([])


def sent(target: str, *headers: tuple[str, str]) -> HttpRequest:
    found = routed(target, headers)
    assert found is not None
    return found.request


def test_probes_need_no_model() -> None:
    assert unloaded.of_server(sent("/v2/health/ready"))
    assert unloaded.of_readiness(sent("/v2/models/a/ready"), "a", "1.0")
    assert unloaded.of_readiness(sent("/v2/models/a/versions/1.0/ready"), "a", "1.0")
    for target in ("/v2/models/a", "/v2/models/a/infer", "/v2/models/b/ready", "/predictions/a"):
        assert not unloaded.of_server(sent(target))
        assert not unloaded.of_readiness(sent(target), "a", "1.0")


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v2/health/live", b'{"live":true}'),
        ("/v2/models/a/ready", b'{"name":"a","ready":true}'),
        ("/v2", b'{"name":"torchserve","version":"","extensions":["binary_tensor_data"]}'),
    ],
)
def test_probes_get_what_a_loaded_model_answers(target: str, body: bytes) -> None:
    answer = unloaded.answer(sent(target, ("X-Request-Id", "abc")), "a")
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers == {"content-type": "application/json", "x-client-request-id": "abc"}
