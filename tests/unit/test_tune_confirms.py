"""What scripts/tune does if the open loop does not confirm the best setting, and what it says of errors."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tune
from server.errors import ServerError
from serving_bench import advice, apply_choice, archives, loads
from serving_bench.advice import Conditions
from serving_bench.confirmation import SHARES, TRIES, Attempt, Confirmation
from serving_bench.generator import message_of
from serving_bench.search import Choice, Score, Search

WORDS = 'Model "m" has no worker to serve inference request. Please use scale workers API to add workers.'
CHOICES = [Choice(workers, 8, 1) for workers in (4, 3, 2, 1)]
RANKED = [Score(choice, rate, 40, 16) for choice, rate in zip(CHOICES, (1000, 800, 600, 400), strict=True)]
CONDITIONS = Conditions(50, 128, False, 1, 2)


def row(rate: float = 100, p99_ms: float | None = 20, refused: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of a point at which so many requests got a 503."""
    statuses = {"200": 500, **({"503": refused} if refused else {})}
    words = {"503": WORDS} if refused else {}
    found = {"requests_per_s": rate, "p99_ms": p99_ms, "errors": refused, "answers_wrong": 0, "wrong": None}
    loaded = {"statuses": statuses, "failures": {}, "messages": words, "late_p99_ms": 1.0, "cores": {"java": 1.0}}
    return found | loaded | changes


class Made:
    """Settings that hold so many requests/s, by their workers; more than that are refused."""

    def __init__(self, holds: Mapping[int, float], again: float = 1e9) -> None:
        self.holds, self.again = holds, again
        self.asked: list[tuple[int, float]] = []

    def measure_again(self, choice: Choice, clients: int) -> dict[str, Any]:
        return row(min(self.again, next(s.requests_per_s for s in RANKED if s.choice == choice)))

    def measure_open(self, choice: Choice, rate: float) -> dict[str, Any]:
        self.asked.append((choice.workers, rate))
        held = rate <= self.holds.get(choice.workers, 0)
        return row(rate) if held else row(rate / 2, 410, refused=908)


def confirmed(made: Made, ranked: Sequence[Score] = RANKED) -> tuple[Attempt | None, list[str]]:
    lines: list[str] = []
    return Confirmation(made, 50, lines.append).run(ranked), lines


def test_the_best_setting_is_confirmed_at_70_percent() -> None:
    made = Made({4: 700})
    best, _ = confirmed(made)
    assert best is not None
    assert (best.score, made.asked) == (RANKED[0], [(4, 700)])


def test_the_next_best_is_taken_if_the_best_is_not_confirmed() -> None:
    made = Made({3: 600})
    best, lines = confirmed(made)
    assert best is not None
    assert (best.score, best.rate) == (RANKED[1], 560)
    assert made.asked == [(4, 700), (4, 500), (3, 560)]
    assert any("NOT confirmed: 4 workers" in line and "908 errors: 908 x 503" in line for line in lines)


def test_a_lower_rate_counts_if_no_other_setting_holds_more() -> None:
    made = Made({4: 500, 3: 500})
    best, _ = confirmed(made)
    assert best is not None
    assert (best.score, best.share, best.rate) == (RANKED[0], SHARES[1], 500)
    assert (2, 420) not in made.asked  # 70 % of 600 is less than the 500 that are confirmed


def test_a_stated_number_of_settings_is_tried() -> None:
    made = Made({1: 1000})
    best, _ = confirmed(made)
    assert best is None
    assert [workers for workers, _ in made.asked] == [4, 4, 3, 3, 2, 2]
    assert len({workers for workers, _ in made.asked}) == TRIES


def test_the_rate_goes_by_the_slower_closed_loop() -> None:
    made = Made({4: 1000}, again=500)
    best, _ = confirmed(made)
    assert best is not None
    assert made.asked == [(4, 350)]


def test_a_setting_that_does_not_load_again_is_passed_over() -> None:
    class Broken(Made):
        def measure_again(self, choice: Choice, clients: int) -> dict[str, Any]:
            if choice.workers == 4:
                raise ServerError("CUDA out of memory")
            return super().measure_again(choice, clients)

    best, lines = confirmed(Broken({3: 600}))
    assert best is not None
    assert best.score == RANKED[1]
    assert "NOT confirmed: 4 workers, batch size 8, delay 1 ms: CUDA out of memory" in lines


def causes(conditions: Conditions = CONDITIONS, rate: float = 450, **changes: Any) -> list[advice.Cause]:
    found = row(**{"p99_ms": 410, **changes})
    return advice.causes([Attempt(RANKED[0], rate / 0.7, 0.7, found, "missed")], conditions)


def test_a_queue_shorter_than_the_goal_is_the_cause_of_503s() -> None:
    first, *_ = causes(rate=10_000, refused=50)
    assert "no worker to serve" in first.words
    assert "it holds 128 requests, which come within 13 ms" in first.words
    assert first.options == ("--setting", "job_queue_size=512")  # 50 ms of 10,000 requests/s
    own, *_ = causes(Conditions(50, 128, True, 1, 2), rate=10_000, refused=50)
    assert "jobQueueSize: 512" in own.words
    assert not own.options


def test_overload_is_the_cause_if_the_queue_is_long_enough() -> None:
    first, second = causes(rate=450, refused=908)
    assert "a longer queue would not help" in first.words
    assert second.options == ("--p99-ms", "492")


def test_a_late_generator_and_other_programs_are_named() -> None:
    late, tight = causes(late_p99_ms=200.0)
    assert late.options == ("--generator-threads", "2")
    assert "200.0 ms late" in late.words
    assert "too tight" in tight.words
    (busy, *_) = causes(cores={"java": 1.0, "elsewhere": 64.0})
    assert "other programs kept 64.0 CPU cores busy" in busy.words


def test_other_errors_and_wrong_answers_are_named() -> None:
    (first, *_) = causes(statuses={"200": 5, "507": 3}, errors=3, messages={"507": "CUDA out of memory"})
    assert "507" in first.words
    (first, *_) = causes(answers_wrong=2, wrong="differs by 0.4")
    assert "differs by 0.4" in first.words


def test_there_is_always_a_reason() -> None:
    assert advice.causes([Attempt(RANKED[0], 1, 0.7, None, "it did not load")], CONDITIONS)
    assert causes(Conditions(None, 128, False, 2, 2))
    assert advice.causes_of_none([], 50)


@pytest.mark.parametrize(
    ("given", "options", "wanted"),
    [
        (["m", "--p99-ms", "5", "--write"], ("--p99-ms", "9"), "scripts/tune m --write --p99-ms 9"),
        (["m", "--p99-ms=5"], ("--p99-ms", "9"), "scripts/tune m --p99-ms 9"),
        (["a b", "--max-throughput"], (), "scripts/tune 'a b' --max-throughput"),
        (["m", "--setting", "a=1"], ("--setting", "b=2"), "scripts/tune m --setting a=1 --setting b=2"),
    ],
)
def test_the_next_command(given: list[str], options: tuple[str, ...], wanted: str) -> None:
    assert advice.next_command(given, [advice.Cause("no option"), advice.Cause("why", options)]) == wanted


def test_the_search_says_why_a_setting_is_not_taken() -> None:
    lines: list[str] = []
    Search(lambda choice, clients: row(refused=3), None, lines.append).run(Choice(1, 1, 1), 1, 1)
    told = (
        "1 worker, batch size 1, delay 1 ms: 3 errors: 3 x 503 (no room in the queue), at 8 clients; measured twice"
    )
    assert told in lines[-1]
    lines.clear()
    Search(lambda choice, clients: row(p99_ms=80), 50, lines.append).run(Choice(1, 1, 1), 1, 1)
    told = "1 worker, batch size 1, delay 1 ms: too slow: p99 80.0 ms at 1 client; wanted: 50 ms; measured twice"
    assert told in lines[-1]


def test_more_clients_than_the_queue_holds_are_not_asked_for() -> None:
    """128 clients wait in TorchServe's queue of the presets; 256 made their batch size impossible."""
    asked = []

    def measure(choice: Choice, clients: int) -> dict[str, Any]:
        asked.append(clients)
        return row(refused=0 if clients <= choice.workers * choice.batch_size + 128 else 9)

    search = Search(measure, None, lambda _: None, queue=128)
    best = search.run(Choice(1, 64, 1), 1, 64)
    assert best is not None
    assert best.choice.batch_size == 64
    assert asked[0] == 64 + 128 // 2


def test_two_workers_that_are_hardly_faster_do_not_come_first() -> None:
    search = Search(lambda choice, clients: row(100 + choice.workers), None, lambda _: None)
    best = search.run(Choice(1, 1, 1), 2, 1)
    assert best is not None
    assert [score.choice.workers for score in search.ranked(best)][:2] == [1, 2]


def test_a_message_is_one_line_without_ids() -> None:
    assert message_of(b'{"code": 503, "type": "X", "message": "Model\\n is  full"}') == "Model is full"
    assert message_of(b'oops "x", "request_id": "abc"') == 'oops "x"'
    assert len(message_of(b"x" * 5000)) == 300


class FakeFleet:
    """Stands for a TorchServe of which every open loop fails."""

    folder = Path()

    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> FakeFleet:
        return self

    def __exit__(self, *_: Any) -> None: ...


@pytest.fixture
def never_confirmed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the search find a setting, and no open loop confirm it. Returns what was put into effect."""
    effects: list[str] = []
    archive = archives.Archive("m", Path("m.mar"))
    monkeypatch.setattr(archives.Archive, "batching", {"batchSize": 8, "maxBatchDelay": 1})
    monkeypatch.setattr(tune, "find", lambda _: archive)
    monkeypatch.setattr(tune, "load_for", lambda *_: loads.images(None, (32, 32)))
    monkeypatch.setattr(tune, "Fleet", FakeFleet)
    monkeypatch.setattr(tune.Tuned, "measure", lambda *_: row())
    monkeypatch.setattr(tune.Tuned, "measure_again", lambda *_: row())
    monkeypatch.setattr(tune.Tuned, "measure_open", lambda *_: row(30, 410, refused=908))
    monkeypatch.setattr(apply_choice, "check_writable", lambda *_: None)
    monkeypatch.setattr(apply_choice, "write", lambda *_: effects.append("written"))
    return effects


def test_nothing_is_printed_as_the_choice_or_written_if_none_is_confirmed(
    never_confirmed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (["--write"], []):
        assert tune.main(["m", "--p99-ms", "50", "--most-workers", "1", *options]) == 1
        said = capsys.readouterr()
        assert "minWorkers" not in said.out
        assert "best:" not in said.out
        assert "no setting is confirmed: errors in 6 of 6, p99 above 50 ms in 6 of 6 open loops; nothing" in said.err
        assert "908 errors: 908 x 503" in said.err
        assert WORDS in said.err
        assert "next, try: scripts/tune m " in said.err
    assert not never_confirmed


class Stopped(FakeFleet):
    """A TorchServe at whose start the user presses Ctrl-C."""

    def __enter__(self) -> FakeFleet:
        raise KeyboardInterrupt


def test_a_stop_says_what_was_changed(
    never_confirmed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune.Tuned, "measure_open", lambda *_: row())
    monkeypatch.setattr(tune, "show", lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(tune, "Fleet", Stopped)
        assert tune.main(["m", "--max-throughput", "--write"]) == 130
        assert capsys.readouterr().err == "\nstopped; nothing was changed\n"

    def write(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        never_confirmed.append("written")

    monkeypatch.setattr(apply_choice, "write", write)
    assert tune.main(["m", "--max-throughput", "--write"]) == 130
    assert never_confirmed == ["written"]
    assert capsys.readouterr().err == "\nstopped; written into m.mar\n"


def test_a_cause_without_an_option_still_gives_another_command() -> None:
    found = causes(Conditions(None, 128, False, 2, 2), rate=70, refused=908, p99_ms=20)
    assert advice.next_command(["m", "--max-throughput"], found) == "scripts/tune m --max-throughput --seconds 20"


class Noisy:
    """A server whose first measurements are disturbed: p99 is 60 ms, and then 20 ms."""

    def __init__(self) -> None:
        self.asked: list[tuple[Choice, int]] = []

    def measure(self, choice: Choice, clients: int) -> dict[str, Any]:
        self.asked.append((choice, clients))
        return row(p99_ms=60 if len(self.asked) == 1 else 20, rate=clients)


def test_noise_at_the_first_point_does_not_reject_a_setting() -> None:
    lines: list[str] = []
    server = Noisy()
    best = Search(server.measure, 50, lines.append).run(Choice(1, 8, 1), 1, 8)
    assert best is not None
    assert best.choice.batch_size == 8
    assert server.asked[:2] == [(Choice(1, 8, 1), 1)] * 2
    assert "measured twice at 1 client (p99 60.0 ms, then p99 20.0 ms): the better one counts" in lines[1]


@pytest.mark.parametrize(("again", "workers"), [(1070, 2), (1000, 1)])
def test_a_narrow_win_is_measured_again(again: float, workers: int) -> None:
    lines: list[str] = []
    rates = {1: [1000.0], 2: [1060.0, again]}
    search = Search(lambda choice, _: row(rates[choice.workers].pop(0)), None, lines.append)
    best = search._climb(search.score(Choice(1, 1, 1)), [Choice(2, 1, 1)])
    assert best.choice.workers == workers
    assert f"1,060 and {again:,.0f} requests/s; the mean counts" in lines[-1]


def test_an_open_loop_that_misses_by_little_is_run_again() -> None:
    lines: list[str] = []

    class Near(Made):
        def measure_open(self, choice: Choice, rate: float) -> dict[str, Any]:
            self.asked.append((choice.workers, rate))
            return row(rate, 55 if len(self.asked) == 1 else 45)

    made = Near({})
    best = Confirmation(made, 50, lines.append).run(RANKED)
    assert best is not None
    assert made.asked == [(4, 700)] * 2
    assert any("(p99 55.0 ms (wanted: 50), then p99 45.0 ms)" in line for line in lines)


def test_points_are_counted_and_never_more_than_announced() -> None:
    for start, most_workers, most_batch in (((1, 8, 1), 4, 32), ((1, 6, 5), 3, 7), ((1, 1, 1), 1, 1)):
        for fails in (0, 2, 99):
            lines: list[str] = []
            asked: list[Choice] = []

            def measure(choice: Choice, _: int, asked: list[Choice] = asked, fails: int = fails) -> dict[str, Any]:
                asked.append(choice)
                rate = 100 * choice.workers * choice.batch_size
                return row(rate, refused=int(len(set(asked)) <= fails))

            Search(measure, None, lines.append).run(Choice(*start), most_workers, most_batch)
            points = [line for line in lines if line.startswith("point ")]
            assert [int(line.split()[1]) for line in points] == list(range(1, len(set(asked)) + 1))
            announced = int(lines[0].split()[2])
            assert len(points) <= announced
            assert all(int(line.split()[5].rstrip(",:")) <= announced for line in points), lines


class Managed:
    """A TorchServe that manages one model, and may refuse more than one worker."""

    def __init__(self) -> None:
        self.served: dict[str, Any] | None = {
            "batchSize": 8,
            "maxBatchDelay": 1,
            "workers": [{}],
            "modelUrl": "m.mar",
        }

    def describe(self, model: str) -> dict[str, Any]:
        if self.served is None:
            raise ServerError("404")
        return self.served

    def manage(self, *_: Any) -> Any:
        self.served = None
        return type("Answer", (), {"status": 200})

    def register(self, model: str, query: Mapping[str, Any], _: float) -> None:
        sizes = {"batchSize": query["batch_size"], "maxBatchDelay": query["max_batch_delay"]}
        self.served = {**sizes, "workers": [], "modelUrl": query["url"]}

    def scale(self, model: str, workers: int, _: float) -> None:
        if workers > 1:
            raise ServerError("a worker cannot load: CUDA out of memory")
        self.describe(model)["workers"] = [{}] * workers


def test_a_running_server_serves_as_before_if_the_choice_does_not_load() -> None:
    server: Any = Managed()
    before = server.served
    with pytest.raises(ServerError, match="CUDA out of memory; m serves as before"):
        apply_choice.apply(server, "m", Choice(4, 64, 2))
    assert server.served == before

    def stopped(*_: Any) -> None:
        del server.scale
        raise KeyboardInterrupt

    server.scale = stopped
    with pytest.raises(KeyboardInterrupt):
        apply_choice.apply(server, "m", Choice(1, 64, 2))
    assert server.served == before
    apply_choice.apply(server, "m", Choice(1, 64, 2))
    assert server.served["batchSize"] == 64
    assert math.isclose(server.served["maxBatchDelay"], 2)
