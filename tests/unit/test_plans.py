"""Plans as files: fingerprints, digests, mismatch, the lock, readiness. No TensorRT, no GPU."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from handlers.engines import EngineSpec, plans, tensorrt
from handlers.engines.plans import Fingerprint, PlanError, TornPlanError
from handlers.settings import ON_MISMATCH

HERE = Fingerprint("10.9.0", "13.0", "9.0", "NVIDIA H200", "ab" * 32, (1, 8, 64), 224, "fp16")
OTHERS = {
    "tensorrt": "8.6.0",
    "cuda": "12.8",
    "compute_capability": "8.0",
    "gpu": "NVIDIA A100",
    "onnx": "cd" * 32,
    "buckets": (1, 8),
    "image_size": 256,
    "precision": "bf16",
}


def never() -> bytes:
    raise AssertionError("nothing was to be built")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    plans.write(tmp_path / "plan", b"engine", HERE)
    assert plans.read(tmp_path / "plan", HERE) == b"engine"


@pytest.mark.parametrize("key", sorted(OTHERS))
def test_every_part_of_the_fingerprint_counts_and_is_named(tmp_path: Path, key: str) -> None:
    other = dataclasses.replace(HERE, **{key: OTHERS[key]})  # type: ignore[arg-type]
    assert other.key != HERE.key
    plans.write(tmp_path, b"engine", other)
    with pytest.raises(PlanError, match=rf"{key}: plan .+, here ") as caught:
        plans.read(tmp_path, HERE)
    assert str(caught.value).count("plan ") == 2  # "the plan was built", and this one difference


@pytest.mark.parametrize("content", [b"", b"engin", b"engine ", b"Engine"])
def test_a_torn_plan_is_refused_whatever_onmismatch_says(tmp_path: Path, content: bytes) -> None:
    plans.write(tmp_path / "plan", b"engine", HERE)
    (tmp_path / "plan" / plans.PLAN).write_bytes(content)
    for on_mismatch in ON_MISMATCH:
        with pytest.raises(TornPlanError, match="torn or was changed"):
            plans.obtain(tmp_path / "plan", tmp_path / "cache", HERE, on_mismatch, never)


@pytest.mark.parametrize(
    "record", ["", "{", "[]", "{}", '{"fingerprint": {}}', '{"fingerprint": [], "sha256": "x"}', "null"]
)
def test_a_plan_without_a_readable_record_is_not_trusted(tmp_path: Path, record: str) -> None:
    plans.write(tmp_path, b"engine", HERE)
    (tmp_path / plans.RECORD).write_text(record, encoding="utf-8")
    with pytest.raises(PlanError):
        plans.read(tmp_path, HERE)


def test_the_archives_plan_comes_first(tmp_path: Path) -> None:
    plans.write(tmp_path / "plan", b"archived", HERE)
    plan = plans.obtain(tmp_path / "plan", tmp_path / "cache", HERE, "rebuild", never)
    assert plan == plans.Plan(b"archived", "archive")


def test_a_mismatch_is_refused_or_rebuilt_into_the_cache(tmp_path: Path) -> None:
    plans.write(tmp_path / "plan", b"archived", dataclasses.replace(HERE, gpu="NVIDIA A100"))
    with pytest.raises(PlanError, match=r"gpu: plan NVIDIA A100, here NVIDIA H200.*onMismatch: rebuild"):
        plans.obtain(tmp_path / "plan", tmp_path / "cache", HERE, "refuse", never)
    first = plans.obtain(tmp_path / "plan", tmp_path / "cache", HERE, "rebuild", lambda: b"new")
    again = plans.obtain(tmp_path / "plan", tmp_path / "cache", HERE, "rebuild", never)
    assert (first.source, again.source, again.content) == ("built here", "cache", b"new")


def test_a_cache_that_cannot_be_written_to_serves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans.obtain(tmp_path / "none", tmp_path, HERE, "rebuild", lambda: b"first")

    def refuse(folder: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(plans, "locked", refuse)
    assert plans.obtain(tmp_path / "none", tmp_path, HERE, "rebuild", never) == plans.Plan(b"first", "cache")
    with pytest.raises(OSError, match="Read-only"):
        plans.obtain(tmp_path / "none", tmp_path / "other", HERE, "rebuild", never)


def test_a_plan_that_cannot_be_kept_serves_and_leaves_no_piece_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        plan = plans.obtain(tmp_path / "none", tmp_path, HERE, "rebuild", lambda: b"built")
    assert plan == plans.Plan(b"built", "built here")
    assert "could not be kept" in caplog.text
    assert [path.name for path in (tmp_path / HERE.key).iterdir()] == ["lock"]
    assert plans.obtain(tmp_path / "none", tmp_path, HERE, "rebuild", lambda: b"again").content == b"again"


def test_two_writers_of_one_file_never_share_a_partial_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers that share a volume share pids as well."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    sync = os.fsync
    contents: list[bytes] = []

    def meanwhile(file: int) -> None:
        """Another container writes the same file before the first one is done."""
        sync(file)
        if not contents:
            contents.append(b"theirs")
            plans.replace(tmp_path / "model.plan", b"theirs")
            assert (tmp_path / "model.plan").read_bytes() == b"theirs"

    monkeypatch.setattr(os, "fsync", meanwhile)
    plans.replace(tmp_path / "model.plan", b"mine, and longer")
    assert (tmp_path / "model.plan").read_bytes() == b"mine, and longer"
    assert [path.name for path in tmp_path.iterdir()] == ["model.plan"]


def test_what_a_killed_process_has_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    names = {".timing [8].0123": True, ".timing [8].4567": False, ".other.0123": True, "timing [8].old": True}
    for name, old in names.items():
        (tmp_path / name).write_bytes(b"half")
        if old:
            os.utime(tmp_path / name, (time.time() - 2 * plans.STALE_S,) * 2)
    plans.replace(tmp_path / "timing [8]", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {*names, "timing [8]"} - {".timing [8].0123"}


def test_a_tensorrt_that_cannot_be_imported_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt, "installed", lambda: True)
    monkeypatch.setattr(tensorrt, "tensorrt_module", fail)
    (tmp_path / tensorrt.ONNX).touch()
    tensorrt.import_problem.cache_clear()
    try:
        why = tensorrt.ENGINE.why_not_here(EngineSpec("image-classifier", tmp_path, torch.device("cuda", 0), "fp16"))
    finally:
        tensorrt.import_problem.cache_clear()
    assert why == (
        "the package tensorrt is installed and cannot be imported "
        "(ImportError: libnvinfer.so.10: cannot open shared object file)"
    )


def test_a_torn_plan_in_the_cache_is_built_again(tmp_path: Path) -> None:
    plans.obtain(tmp_path / "none", tmp_path, HERE, "rebuild", lambda: b"first")
    (tmp_path / HERE.key / plans.PLAN).write_bytes(b"fir")
    plan = plans.obtain(tmp_path / "none", tmp_path, HERE, "rebuild", lambda: b"second")
    assert plan == plans.Plan(b"second", "built here")


def test_a_failed_build_leaves_nothing_that_looks_like_a_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no plan"):
        plans.obtain(tmp_path / "none", tmp_path, HERE, "rebuild", _fail)
    assert [path.name for path in (tmp_path / HERE.key).iterdir()] == ["lock"]
    assert plans.obtain(tmp_path / "none", tmp_path, HERE, "rebuild", lambda: b"x").source == "built here"


def test_four_workers_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(tmp_path, place)) for place in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    sources = sorted(json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("worker-*"))
    assert sources == ["built here", "cache", "cache", "cache"]
    assert len(list(tmp_path.glob("build-*"))) == 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_an_error_and_gets_no_marker_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A marker file, which filelock could make instead, would outlive a worker that is killed."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", fail)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))), plans.locked(tmp_path):
            pass
    with plans.locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_worker_that_is_killed_lets_its_lock_go_and_the_wait_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = multiprocessing.get_context("spawn")
    holder = context.Process(target=_hold, args=(tmp_path,))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.05)
    threading.Timer(0.3, holder.kill).start()
    with caplog.at_level("INFO"), plans.locked(tmp_path):
        holder.join()
    assert holder.exitcode == -9
    assert f"waiting for another worker, which does the same in {tmp_path}" in caplog.text
    assert "the other worker was done after" in caplog.text


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    """An archive without a plan, on a machine whose fingerprint is HERE."""
    monkeypatch.setattr(tensorrt, "fingerprint", lambda _: HERE)
    return EngineSpec(
        "image-classifier", tmp_path / "archive", torch.device("cuda"), "fp16", plan_cache=tmp_path / "cache"
    )


def test_without_a_plan_tensorrt_is_not_ready_and_says_so(spec: EngineSpec) -> None:
    assert str(tensorrt.ENGINE.why_auto_skips(spec)).startswith(
        "the archive carries model.onnx without a plan, and none that fits is in the cache; engine: tensorrt builds"
    )


@pytest.mark.parametrize("where", ["archive", "cache"])
def test_with_a_plan_that_fits_it_is_ready(spec: EngineSpec, where: str) -> None:
    folder = spec.model_dir / "plan" if where == "archive" else spec.plan_cache / HERE.key
    plans.write(folder, b"engine", HERE)
    assert tensorrt.ENGINE.why_auto_skips(spec) is None


def test_a_plan_of_another_machine_is_refused_by_auto_as_well(spec: EngineSpec) -> None:
    refusing = dataclasses.replace(spec, on_mismatch="refuse")
    assert tensorrt.ENGINE.why_auto_refuses(refusing) is None  # there is no plan
    plans.write(spec.model_dir / "plan", b"engine", HERE)
    assert tensorrt.ENGINE.why_auto_refuses(refusing) is None
    plans.write(spec.model_dir / "plan", b"engine", dataclasses.replace(HERE, gpu="NVIDIA A100"))
    assert "gpu: plan NVIDIA A100, here NVIDIA H200. onMismatch is refuse" in str(
        tensorrt.ENGINE.why_auto_refuses(refusing)
    )
    assert tensorrt.ENGINE.why_auto_refuses(spec) is None


class FakeCaches:
    """Of TensorRT, its log and its builder's config, what keeping its timings takes.

    Nothing is learnt where no cache is attached. refuses: where one of an earlier build is turned down, if at all.
    """

    __version__ = "10.0"

    def __init__(self, learnt: bytes | None, refuses: str = "") -> None:
        self.learnt, self.refuses = learnt, refuses
        self.given: list[bytes] = []
        self.attached, self.last_error = False, ""

    def create_timing_cache(self, content: bytes) -> object:
        self.given.append(content)
        if content and self.refuses:
            self.last_error = "The timing cache will not be used!"
        return None if content and self.refuses == "create" else self

    def set_timing_cache(self, cache: object, ignore_mismatch: bool) -> bool:
        assert cache is self
        assert not ignore_mismatch
        self.attached = not (self.given[-1] and self.refuses == "set")
        return self.attached

    def get_timing_cache(self) -> FakeCaches | None:
        return self if self.attached and self.learnt is not None else None

    def serialize(self) -> bytes:
        return self.learnt or b""


def fake(learnt: bytes | None, refuses: str = "") -> Any:
    return FakeCaches(learnt, refuses)


@pytest.fixture
def on_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")


@pytest.mark.usefixtures("on_h200")
def test_timings_of_one_build_are_given_to_the_next(spec: EngineSpec, caplog: pytest.LogCaptureFixture) -> None:
    first, second = fake(b"timings"), fake(None)
    for one in (first, second):
        with tensorrt.timing_cache(one, one, spec, one):
            pass
    assert (first.given, second.given) == ([b""], [b"timings"])
    assert not caplog.text


@pytest.mark.usefixtures("on_h200")
@pytest.mark.parametrize("refuses", ["create", "set", "in its log alone"])
def test_timings_that_tensorrt_does_not_take_are_said_and_replaced(
    spec: EngineSpec, caplog: pytest.LogCaptureFixture, refuses: str
) -> None:
    first, second, third = fake(b"timings"), fake(b"others", refuses), fake(None)
    third.last_error = "what the parser said before"
    for one in (first, second, third):
        with tensorrt.timing_cache(one, one, spec, one):
            assert one.last_error == ""
    assert third.given == [b"others"]
    assert caplog.text.count("TensorRT 10.0 does not accept the timings") == 1


@pytest.mark.usefixtures("on_h200")
def test_timings_that_cannot_be_kept_cost_no_plan(spec: EngineSpec, caplog: pytest.LogCaptureFixture) -> None:
    spec.plan_cache.write_text("a file where the folder should be")
    one = fake(b"timings")
    with tensorrt.timing_cache(one, one, spec, one):
        pass
    assert "TensorRT's timings cannot be kept" in caplog.text


@pytest.mark.parametrize("damage", ["another GPU", "no record"])
def test_the_archives_plan_is_the_reason_where_it_does_not_fit(spec: EngineSpec, damage: str) -> None:
    folder = spec.model_dir / "plan"
    plans.write(folder, b"engine", dataclasses.replace(HERE, gpu="NVIDIA A100"))
    if damage == "no record":
        (folder / plans.RECORD).unlink()
    named = "is missing or unreadable" if damage == "no record" else "gpu: plan NVIDIA A100, here NVIDIA H200"
    assert named in str(tensorrt.ENGINE.why_auto_skips(spec))
    plans.write(spec.plan_cache / HERE.key, b"engine", HERE)
    assert tensorrt.ENGINE.why_auto_skips(spec) is None


def test_a_torn_plan_counts_as_ready_and_fails_by_name_when_it_is_loaded(spec: EngineSpec) -> None:
    """Only reading it all can tell, which loading does; a measured choice drops it then, and says why."""
    plans.write(spec.model_dir / "plan", b"engine", HERE)
    (spec.model_dir / "plan" / plans.PLAN).write_bytes(b"engin")
    assert tensorrt.ENGINE.why_auto_skips(spec) is None
    with pytest.raises(TornPlanError, match="torn or was changed"):
        tensorrt.ENGINE.load(spec)


def _hold(folder: Path) -> None:
    with plans.locked(folder):
        (folder / "held").touch()
        time.sleep(60)


def _fail() -> bytes:
    raise PlanError("TensorRT built no plan")


def _work(folder: Path, place: int) -> None:
    def build() -> bytes:
        (folder / f"build-{place}").touch()
        time.sleep(0.5)
        return b"plan"

    plan = plans.obtain(folder / "none", folder / "cache", HERE, "rebuild", build)
    (folder / f"worker-{place}").write_text(json.dumps(plan.source), encoding="utf-8")
