"""One line says why Ray or a model did not start; without Ray."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import serve_ray
from ray_host import checks, failures, local, progress, tunables
from server.paths import ROOT

# What Ray Serve 2.60 gives as a deployment's message, shortened.
RAISED = """\
The deployment failed to start 3 times in a row. See controller logs for details. Error:
\x1b[36mray::ServeReplica:models:model.initialize_and_get_metadata()\x1b[39m (pid=7, ip=127.0.0.1)
  File "concurrent/futures/_base.py", line 456, in result
    return self.__get_result()
           ^^^^^^^^^^^^^^^^^^^
RuntimeError: Traceback (most recent call last):
  File "handlers/placement.py", line 12, in first
    raise KeyError("first")
KeyError: 'first'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "handlers/placement.py", line 40, in choose_device
    raise ValueError("none")
handlers.load_errors.LoadError: AcceleratorError: CUDA error: out of memory
  device: 0
Compile with TORCH_USE_CUDA_DSA."""
DIED = "The deployment failed to start 3 times in a row. See controller logs for details. Error:\nActorDiedError()"
NOT_PLACED = (
    "The deployment failed to start 3 times in a row. Error:\nException when allocating Replica(id='x'):\n"
    'Traceback (most recent call last):\n  File "x.py", line 1, in check\n    ray.get()\n'
    "ray.exceptions.ActorUnschedulableError: The actor is not schedulable\n"
)
ARGS = {"models": [{"archive": "bert.mar", "num_gpus": 0.1666, "replicas": 12}]}
LOADED = "handlers.load_errors.LoadError: AcceleratorError: CUDA error: out of memory device: 0 Compile with "
LOADED += "TORCH_USE_CUDA_DSA"


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for Ray, with Ray Serve, that does what its attributes say."""
    found: Any = ModuleType("ray")
    found.serve = ModuleType("ray.serve")
    found.init = lambda **options: SimpleNamespace(address_info={"session_dir": "/tmp/ray/session"})  # noqa: S108
    found.is_initialized = lambda: True
    found.cluster_resources = lambda: {"CPU": 16.0, "GPU": 2.0}
    found.shutdown = found.serve.start = lambda **options: None
    for name, module in {"ray": found, "ray.serve": found.serve}.items():
        monkeypatch.setitem(sys.modules, name, module)
    app: Any = ModuleType("ray_host.app")
    app.build = lambda args: "the application"
    monkeypatch.setitem(sys.modules, "ray_host.app", app)
    monkeypatch.setattr(local, "_set_environment", lambda host: None)
    return found


def raising(error: BaseException) -> Callable[..., Any]:
    def run(*args: object, **options: object) -> None:
        raise error

    return run


def failed(ray: Any, **messages: str) -> None:
    """Let a deployment fail for each message, as Ray Serve 2.60 tells it."""
    ray.serve.run = raising(RuntimeError(f"Deploying application models failed: {sorted(messages)}."))
    deployments = {name: SimpleNamespace(message=message) for name, message in messages.items()}
    told = SimpleNamespace(applications={local.APP: SimpleNamespace(deployments=deployments)})
    ray.serve.status = lambda: told


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (RAISED, LOADED),
        (NOT_PLACED, "ray.exceptions.ActorUnschedulableError: The actor is not schedulable"),
    ],
)
def test_a_model_that_does_not_load_says_why_in_one_line(message: str, wanted: str, ray: Any) -> None:
    failed(ray, model=message, front="")
    with pytest.raises(RuntimeError) as raised:
        local.run(ARGS, "/logs")
    assert str(raised.value) == (
        f"the models do not serve: a replica of model did not load: {wanted}. The replicas' logs are in /logs/serve"
    )


def test_a_replica_that_dies_says_how(ray: Any, tmp_path: Path) -> None:
    failed(ray, model=DIED)
    with pytest.raises(RuntimeError, match=r"a replica of model did not load: its process died and wrote nothing"):
        local.run(ARGS, str(tmp_path))
    for name, deployment in ("old", "model"), ("new", "model"), ("other", "model2"):
        told = "*** SIGSEGV received at time=17 on cpu 0 ***\nPC: @ 0x7f\nFatal Python error: Segmentation fault\n"
        wrote = f":job_id:01000000\n:actor_name:ServeReplica:models:{deployment}\n{told if name == 'new' else ''}"
        (tmp_path / f"worker-{name}.err").write_text(wrote, encoding="utf-8")
    os.utime(tmp_path / "worker-old.err", (1, 1))
    why = rf"its process died: SIGSEGV, Fatal Python error: Segmentation fault; see {tmp_path}/worker-new.err\. The"
    with pytest.raises(RuntimeError, match=why):
        local.run(ARGS, str(tmp_path))


def test_each_model_that_does_not_load_is_named(ray: Any) -> None:
    failed(ray, one="Error:\nKilled", two="Error:\nTraceback (most recent call last):\n  x\nOSError: no room")
    with pytest.raises(
        RuntimeError, match=r"of one did not load: Killed; a replica of two did not load: OSError: no"
    ):
        local.run(ARGS, "/logs")


@pytest.mark.parametrize("status", [raising(ConnectionError("gone")), lambda: SimpleNamespace(applications={})])
def test_without_a_status_the_error_of_ray_serve_stands(status: Any, ray: Any) -> None:
    ray.serve.run, ray.serve.status = raising(TimeoutError("not ready\nafter 30 s")), status
    with pytest.raises(RuntimeError, match=r"do not serve: TimeoutError: not ready after 30 s\. The replicas' logs"):
        local.run(ARGS, "/logs")


@pytest.mark.parametrize(("share", "replicas"), [(0.1666, 13), (0.6, 3), (1, 3), (None, 3)])
def test_replicas_that_find_no_gpu_are_refused(share: float | None, replicas: int, ray: Any) -> None:
    wrong = {"models": [{"archive": "bert.mar", "num_gpus": share, "replicas": replicas}]}
    with pytest.raises(ValueError, match=rf"{replicas} replicas of bert.mar.*{share or 1} of a GPU.*Ray sees 2 GPUs"):
        local.run(wrong, "/logs")


def test_without_a_share_and_without_gpus_nothing_is_refused(ray: Any) -> None:
    ray.cluster_resources = lambda: {"CPU": 16.0}
    ray.serve.run = lambda *args, **options: None
    local.run({"models": [{"archive": "bert.mar", "replicas": 3}]}, "/logs")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"num_cpus": 6, "replicas": 3, "num_gpus": 0}, "each with 6 of a CPU, find no room: Ray sees 16 CPUs"),
        ({"resources": {"big": 1}, "num_gpus": 0}, "each with 1 of a big, find no room: Ray sees 0 bigs"),
    ],
)
def test_replicas_that_find_no_other_room_are_refused(given: dict[str, Any], told: str, ray: Any) -> None:
    with pytest.raises(ValueError, match=told):
        local.run({"models": [{"archive": "bert.mar", **given}]}, "/logs")


def test_ray_starts_in_this_tree_whatever_the_folder(
    ray: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    init, folders = ray.init, list[Path]()

    def noting(**options: object) -> Any:
        folders.append(Path.cwd())
        return init(**options)

    ray.init = noting
    monkeypatch.chdir(tmp_path)
    local.start(local.HERE, 1)
    assert (folders, Path.cwd()) == ([ROOT], tmp_path)


def test_replicas_have_the_same_priority_as_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (tunables.NICENESS, "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "x")  # so that it is set again after this test
        monkeypatch.delenv(name)
    monkeypatch.setattr("ray_host.tunables.choose", lambda environment, host: None)
    local._set_environment(local.HERE)
    assert os.environ[tunables.NICENESS] == "0"


def test_a_files_archives_have_absolute_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(
        "applications: [{args: {models: [{archive: a.mar}, {archive: 's3://b/c.mar'}, x]}}]", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    args = serve_ray.args_of(serve_ray.parser().parse_args(["--config", "file.yaml"]))
    assert args["models"] == [{"archive": str(tmp_path / "a.mar")}, {"archive": "s3://b/c.mar"}, "x"]


def test_a_load_that_takes_long_says_how_far_it_is(ray: Any, capsys: pytest.CaptureFixture[str]) -> None:
    waits = "2 replicas have taken\nmore than 30s to be scheduled"
    model = SimpleNamespace(replica_states={"RUNNING": 4, "STARTING": 2}, message=waits)
    applications = {local.APP: SimpleNamespace(deployments={"model": model})}
    with progress.shown(lambda: applications, local.APP, every_s=0.01):
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("s: model: 4 RUNNING, 2 STARTING (2 replicas have taken more than 30s to be scheduled)")
    time.sleep(0.05)
    assert capsys.readouterr().err == ""
    assert progress.line(None) == ""


def test_models_that_find_no_gpu_together_are_refused(ray: Any) -> None:
    halves = {"models": [{"archive": name, "num_gpus": 0.5, "replicas": 3} for name in ("one.mar", "two.mar")]}
    with pytest.raises(ValueError, match=r"3 replicas of two.mar"):
        local.run(halves, "/logs")


def test_what_is_wrong_with_the_args_is_raised_as_it_is(ray: Any) -> None:
    sys.modules["ray_host.app"].build = raising(ValueError("no archive"))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^no archive$"):
        local.run(ARGS, "/logs")


GCS = "Failed to start GCS.\nLast error: Traceback (most recent call last):\n  File\nRpcError: x\n"
STARTS = [
    (Exception("The current node timed out during startup. This\nis all."), "Exception: The current node timed out"),
    (RuntimeError(GCS), "did not start: RpcError: x. Often"),
    (AssertionError(), "did not start: AssertionError. Often"),
]


@pytest.mark.parametrize("which", ["init", "start"])
@pytest.mark.parametrize(("error", "wanted"), STARTS, ids=["Exception", "RuntimeError", "AssertionError"])
def test_ray_that_does_not_start_says_so_in_one_line(error: Exception, wanted: str, which: str, ray: Any) -> None:
    setattr(ray if which == "init" else ray.serve, which, raising(error))
    with pytest.raises(RuntimeError) as raised:
        local.start(local.HERE, 1)
    assert wanted in str(raised.value)
    assert "\n" not in str(raised.value)
    logs = {"init": "logs (gcs_server.out, raylet.out)", "start": "say is in /tmp/ray/session/logs/serve"}
    assert logs[which] in str(raised.value)
    assert ("Ray Serve did not start" in str(raised.value)) == (which == "start")


def test_ray_that_starts_too_slowly_is_started_again(ray: Any, capsys: pytest.CaptureFixture[str]) -> None:
    init, tries = ray.init, []

    def slow(**options: object) -> Any:
        tries.append(subprocess.Popen(["sleep", "60"]))  # as Ray's processes that go on
        if len(tries) < 2:
            raise Exception("The current node timed out during startup.")
        return init(**options)

    ray.init = slow
    with subprocess.Popen(["sleep", "60"]) as other:
        assert local.start(local.HERE, 1) == "/tmp/ray/session/logs"  # noqa: S108
        assert tries[0].wait(10) == -9
        assert [process.poll() for process in (tries[1], other)] == [None, None]
        other.kill()
    tries[1].kill()
    tries[1].wait()
    assert "trying once more" in capsys.readouterr().err


SLOW_PROXIES = [
    "HTTP proxies not available after 60s.",
    "ray::HAProxyManager.ready()\nRuntimeError: HAProxy (pid=5) did not take over the admin socket within 30 "
    "seconds. stderr: ",
]


@pytest.mark.parametrize("words", SLOW_PROXIES)
@pytest.mark.parametrize("slow", [1, 2])
def test_a_proxy_that_starts_too_slowly_is_started_again_with_another_ray(
    ray: Any, words: str, slow: int, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    init, begin = ray.init, ray.serve.start

    def started(**options: object) -> Any:
        calls.append("start")
        return raising(TimeoutError(words))() if calls.count("start") <= slow else begin(**options)

    def initialised(**options: object) -> Any:
        calls.append("init")
        return init(**options)

    ray.init, ray.serve.start, ray.shutdown = initialised, started, lambda: calls.append("shutdown")
    if slow == 1:
        assert local.start(local.HERE, 1) == "/tmp/ray/session/logs"  # noqa: S108
    else:
        with pytest.raises(RuntimeError, match=r"Ray Serve did not start: .*RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S=60"):
            local.start(local.HERE, 1)
    assert calls == ["init", "start", "shutdown", "init", "start"]
    assert "Ray Serve's proxy took too long to start; trying once more" in capsys.readouterr().err


def test_the_command_prints_it_and_ends_with_1(
    ray: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.init, ray.is_initialized = raising(Exception("The current node timed out")), lambda: False
    monkeypatch.setattr(checks, "heads", lambda options: [])
    monkeypatch.setattr(checks, "absolute", lambda archive: archive)
    monkeypatch.setattr(local, "clear_left", lambda: None)  # what this machine's others have left is theirs
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    monkeypatch.setenv("PYTHONPATH", "")
    assert serve_ray.main(["none.mar"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: Ray did not start: Exception: The current node timed out. ")
    assert printed.err.count("\n") == 1


def test_the_benchs_peer_says_it_last(
    ray: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    peer: Any = importlib.import_module("serving_bench.peers.ray_serve_server")
    failed(ray, model=RAISED)
    ray.shutdown = lambda: print("Ray's last words", file=sys.stderr)
    (tmp_path / "job.json").write_text(f'{{"args": {json.dumps(ARGS)}, "port": 1, "workers": 6}}', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["server", str(tmp_path / "job.json")])
    monkeypatch.setattr(peer.signal, "signal", lambda *args: None)
    assert peer.main() == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the models do not serve: a replica of model did not load: ")
    assert "CUDA error: out of memory" in last


def test_ray_that_is_gone_is_still_shut_down(ray: Any) -> None:
    ended: list[bool] = []
    ray.serve.get_app_handle, ray.shutdown = raising(ConnectionError("gone")), lambda: ended.append(True)
    local.stop()
    assert ended == [True]


def test_a_long_error_is_cut() -> None:
    assert len(failures.reason("x" * 9999)) == failures.LONGEST + 3


def test_the_error_of_another_process_is_its_last_cause() -> None:
    """Ray writes such an error without the line that begins a traceback."""
    sent = (
        "RayTaskError(RuntimeError): \x1b[36mray::HAProxyManager.ready()\x1b[39m (pid=1)\n"
        '  File "/a/haproxy.py", line 2\n    await self._start\n    ^^^^^^^^^^\n'
        "RuntimeError: HAProxy crashed: [ALERT] socket path too long\n  (max 97)"
    )
    assert failures.reason(sent) == "RuntimeError: HAProxy crashed: [ALERT] socket path too long (max 97)"
