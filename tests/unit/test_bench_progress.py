"""How far a run of scripts/bench_serving is, and that its report leaves nothing out that was asked for."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from server.errors import ServerError
from serving_bench import archives, command, completeness, point_counts, progress, reference_answers, report, sweep
from serving_bench.archives import Archive
from serving_bench.generator import GeneratorError, Load
from serving_bench.layouts import Layout
from serving_bench.measure import Bench
from serving_bench.peers import processes
from serving_bench.plan import PEERS, Plan
from serving_bench.progress import Progress, duration, waiting
from serving_bench.resource_usage import GpuMonitor
from serving_bench.stream_generator import StreamGenerator

ONE = Load("one body", [b"one"], {"Content-Type": "text/plain"}, "texts")


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_each_point_says_its_number_and_the_time_left() -> None:
    clock = Clock()
    counted = Progress(clock)
    assert counted.begin(4, 7) == "4 points to measure, 28 s at least"
    clock.now += 60
    assert counted.finished() == "point 1 of 4, about 3 min left: "
    clock.now += 20
    assert counted.finished() == "point 2 of 4, about 80 s left: "
    counted.finished()
    assert counted.finished() == "point 4 of 4: "


def test_without_a_count_nothing_is_said() -> None:
    counted = Progress()
    with counted.expecting(2):
        assert counted.finished() == ""


def test_what_is_not_measured_is_taken_off_once() -> None:
    counted = Progress(Clock())
    counted.begin(10, 1)
    with contextlib.suppress(ServerError), counted.expecting(8), counted.expecting(5):
        counted.finished()
        raise ServerError("it has died")
    assert (counted.done, counted.total) == (1, 3)
    with counted.expecting(2):
        for _ in range(3):  # one more than was planned
            counted.finished()
    assert counted.finished() == "point 5 of 5: "


@pytest.mark.parametrize(("seconds", "words"), [(0, "0 s"), (89, "89 s"), (240, "4 min"), (4200, "1 h 10 min")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_workers_that_start_are_told_every_few_seconds() -> None:
    clock, told = Clock(), list[str]()
    report = waiting(told.append, clock)
    for _ in range(40):  # every 0.3 s, as the client reports
        report("bert: 2 of 8 workers ready")
        clock.now += 0.3
    report("bert: 8 of 8 workers ready")
    assert told == [
        "  bert: 2 of 8 workers ready, 0 s",
        "  bert: 2 of 8 workers ready, 5 s",
        "  bert: 2 of 8 workers ready, 10 s",
        "  bert: 8 of 8 workers ready, 12 s",
    ]


def test_a_wait_that_tells_nothing_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.01)
    told = list[str]()
    with progress.beating(told.append, "registering"):
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
    assert told[0] == "  registering, 0 s"


def test_a_peer_that_starts_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[str] = []
    log = tmp_path / "log"
    log.touch()
    polls = iter([None, 1])
    process: Any = SimpleNamespace(poll=lambda: next(polls))
    monkeypatch.setattr(processes.time, "sleep", lambda _: None)  # type: ignore[attr-defined]
    start: Any = SimpleNamespace(report=told.append, load=ONE)
    with pytest.raises(ServerError, match="did not start"):
        processes._wait(processes.Program("ray-x", "http://127.0.0.1:9/x", process, dict), log, start)  # type: ignore[arg-type]
    assert told == ["ray-x is starting"]


# --- a whole run, with servers that are made up ---


class FakeFleet:
    """Serves at once. It does not start if its settings say so."""

    def __init__(self, layout: Layout, settings: Any, environment: object) -> None:
        self.folder = self.store = Path("/nowhere")
        self.fails = settings.get("fails") == str(layout)
        self.client = SimpleNamespace(describe=lambda model: {}, customized=lambda model: {})

    def __enter__(self) -> FakeFleet:
        if self.fails:
            raise ServerError("no memory left")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def register(self, archive: Archive, *_: object) -> None:
        if archive.name == "broken":
            raise ServerError("its worker cannot load")

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def endpoint(self, model: str) -> Any:
        return SimpleNamespace(each=[1])


class FakeBench(Bench):
    """Measures nothing, and counts."""

    def _measure(self, subject: Any, load: Load, reference: Any, setting: Any, row: Any, run: Any) -> Any:
        row = {"target": subject.name, "kind": subject.kind, "requests_per_s": 9.0, **row}
        if subject.kind == "no-op":
            self.noop[load.name, row["clients"]] = 1.0
        self.rows.append(row)
        self.show(f"{self.progress.finished()}{subject.name}")
        self.save(self)
        return row

    def warm_up_java(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(start: Any) -> Iterator[Any]:
    yield SimpleNamespace(name=start.name, kind="peer", endpoint=lambda: SimpleNamespace(each=[1]))


def peer_module(name: str, **more: Any) -> Any:
    about = {"NAME": name, "WHAT": "a server", "SAME_ARCHIVE": True, "ON_SEVERAL_GPUS": True}
    parts: dict[str, Any] = {"objection": lambda archive: None, "translated": lambda load: load, "served": served}
    return SimpleNamespace(**{**about, **parts, **more})


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "Fleet", FakeFleet)
    monkeypatch.setattr(archives, "make_noop", lambda store, name, size: Archive(name, store))
    monkeypatch.setattr(Archive, "about", lambda self: {})
    monkeypatch.setattr(Archive, "batching", {"batchSize": 8, "maxBatchDelay": 5})
    answer = reference_answers.ReferenceAnswers([b""], [b""])
    monkeypatch.setattr(reference_answers, "ask", lambda endpoint, load: answer)
    monkeypatch.setitem(PEERS, "triton", peer_module("triton"))
    monkeypatch.setitem(PEERS, "ray", peer_module("ray"))


def run(plan: Plan, layouts: Any = None, names: tuple[str, ...] = ("a", "b"), **settings: str) -> FakeBench:
    """A bench after the run; `shown` has its lines."""
    shown: list[str] = []
    made = FakeBench(StreamGenerator(1), StreamGenerator(1), GpuMonitor(), 1, 1, shown.append, lambda _: None)
    made.shown = shown  # type: ignore[attr-defined]
    loads = [(Archive(name, Path("/nowhere")), ONE) for name in names]
    with contextlib.suppress(ServerError):
        sweep.run_layouts(made, layouts or [Layout()], settings, plan, loads)
    return made


PLAN = Plan([1, 2], [4, 8], [None, 16], [None], ["70%"], True, ["triton", "ray"])


@pytest.mark.usefixtures("made_up")
def test_all_points_are_counted_before_the_first() -> None:
    layouts = [Layout(None, 1, None, None, True), Layout(None, 2, None, None, True)]
    found = run(PLAN, layouts)
    # Per layout: 2 of the no-op, and 2 archives x 2 batch sizes x 2 counts of workers x 3 loops; peers once as many.
    assert found.progress.total == found.progress.done == len(found.rows) == 2 * (2 + 24) + 48
    assert found.shown[0] == "100 points to measure, 3 min at least"  # type: ignore[attr-defined]
    assert any(line.startswith("point 100 of 100: ") for line in found.shown)  # type: ignore[attr-defined]
    assert point_counts.of_layouts(layouts, PLAN, []) == 0


@pytest.mark.usefixtures("made_up")
def test_points_that_fall_out_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(load: Load) -> Load:
        raise GeneratorError("no form of it")

    monkeypatch.setitem(PEERS, "triton", peer_module("triton", translated=refuse))
    monkeypatch.setitem(PEERS, "ray", peer_module("ray", objection=lambda archive: "not packaged here"))
    found = run(PLAN)
    assert found.progress.total == found.progress.done == len(found.rows) == 2 + 24
    assert found.shown[0].startswith("50 points")  # type: ignore[attr-defined]
    broken = run(PLAN, names=("a", "broken"))
    assert broken.progress.total == broken.progress.done == len(broken.rows) == 2 + 12


def content_of(bench: Bench, names: tuple[str, ...], peers: tuple[str, ...]) -> dict[str, Any]:
    return report.document(bench, {"archives": dict.fromkeys(names), "settings": {"peers": peers}})


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    "error", [psutil.NoSuchProcess(7), KeyError("model"), RuntimeError(), json.JSONDecodeError("x", "", 0)]
)
def test_whatever_a_peer_raises_is_its_reason_and_the_rest_goes_on(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(start: object) -> None:
        raise error

    monkeypatch.setitem(PEERS, "triton", peer_module("triton", served=fail))
    found = run(PLAN)
    assert {row["target"] for row in found.rows} == {"noop", "a", "b", "ray-a", "ray-b"}
    reasons = {item["name"]: item["reason"] for item in found.skipped}
    assert reasons.keys() == {"triton-a", "triton-b"}
    assert all(type(error).__name__ in reason for reason in reasons.values())
    assert content_of(found, ("a", "b"), ("triton", "ray"))["skipped"] == found.skipped


@pytest.mark.usefixtures("made_up")
def test_a_run_that_is_stopped_names_what_it_has_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(start: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(PEERS, "ray", peer_module("ray", served=stop))
    shown: list[str] = []
    saved: list[Any] = []

    def save(bench: Bench) -> None:
        saved.append(json.loads(json.dumps(content_of(bench, ("a", "b"), ("triton", "ray")))))

    made = FakeBench(StreamGenerator(1), StreamGenerator(1), GpuMonitor(), 1, 1, shown.append, save)
    loads = [(Archive(name, Path("/nowhere")), ONE) for name in ("a", "b")]
    with pytest.raises(KeyboardInterrupt):
        sweep.run_layouts(made, [Layout()], {}, PLAN, loads)
    assert {row["target"] for row in saved[-1]["rows"]} == {"noop", "a", "triton-a"}
    reasons = {item["name"]: item["reason"] for item in saved[-1]["skipped"]}
    assert reasons == dict.fromkeys(("b", "ray-a", "triton-b", "ray-b"), completeness.NOT_REACHED)


@pytest.mark.usefixtures("made_up")
def test_peers_of_a_layout_that_failed_are_measured_in_the_next_one() -> None:
    layouts = [Layout(None, 1, None, None, True), Layout(None, 2, None, None, True)]
    found = run(PLAN, layouts, fails="1 server")
    assert {row["target"] for row in found.rows} >= {"triton-a", "ray-b"}
    assert found.progress.total == found.progress.done


def test_an_earlier_file_that_lists_a_peer_without_rows_is_told(tmp_path: Path) -> None:
    row = {"target": "a", "kind": "archive"}
    content = {"archives": {"a": {}}, "peers": {"ray": {"ray": "2.60.0"}}, "rows": [row], "skipped": []}
    assert completeness.missing(content) == [{"name": "ray-a", "reason": completeness.NOT_REACHED}]
    for skipped in ("ray-a", "ray-a, clients: 3"):
        assert completeness.missing({**content, "skipped": [{"name": skipped, "reason": "x"}]}) == []
    assert completeness.missing({"rows": [], "skipped": []}) == []


def test_quick_fails_for_what_was_not_reached() -> None:
    skipped = [{"name": "b", "reason": completeness.NOT_REACHED}]
    assert command.quick_failures({"rows": [], "skipped": skipped}) == [f"b: not run, {completeness.NOT_REACHED}"]
