"""The stages of a batch in reports of scripts/bench_serving, open loops that were late, and missing pictures."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pictures
import pytest
import yaml
from serving_bench import charts, page, report, stages, sweep
from serving_bench.prometheus import MetricChange

from handlers.serving import metrics

ROW: dict[str, Any] = {
    "target": "bert",
    "kind": "archive",
    "load": "one text",
    "unit": "texts",
    "loop": "closed",
    "clients": 4,
    "rate": None,
    "workers": 1,
    "batch_size": 8,
    "max_batch_delay_ms": 1,
    "requests_per_s": 100.0,
    "items_per_s": 100.0,
    "p50_ms": 9.0,
    "p99_ms": 20.0,
    "mean_ms": 40.0,
    "outside_ms": 2.0,
    "queue_ms": 10.0,
    "exchange_ms": 3.0,
    "handler_ms": 25.0,
    "stages": {"read": 1.0, "prepare": 4.0, "run": 17.0, "write": 2.0},
    "errors": 0,
    "cores": {"workers": 1.0},
    "gpu_busy": [],
    "share_of_engine": None,
}
CONDITIONS = {
    "date": "d",
    "gpus": 0,
    "gpu": "cpu",
    "cores": 2,
    "cpu": "c",
    "java": "17",
    "torch": "2",
    "commit": "x",
    "packages": {"torchserve": "0.12.0"},
    "generator": "g",
    "open_loop": "o",
}


def drawn(*rows: dict[str, Any], **more: Any) -> str:
    """The page, without what explains the figures."""
    content = {"conditions": CONDITIONS, "rows": list(rows), "skipped": [], "archives": {}, **more}
    return page.page(content).partition("What the figures mean")[0]


def test_the_handlers_steps_are_the_stages() -> None:
    """A step that is renamed or added has to get words here."""
    assert list(stages.NAMES) == list(stages.MEANING) == list(metrics.STEPS)
    declared = yaml.safe_load((Path(metrics.__file__).parents[1] / "metrics.yaml").read_text())
    names = {metric["name"] for kind in declared["model_metrics"].values() for metric in kind}
    assert {f"{stages.STEP[:-1]}_sum", f"{stages.STEP[:-1]}_count"} <= names


def test_stages_and_why_there_are_none() -> None:
    after = {"StepTime.run_sum": 30.0, "StepTime.run_count": 3.0, "BatchTime_count": 3.0}
    assert stages.of(MetricChange({}, after), "archive") == {"stages": {"run": 10.0}, "stages_missing": None}
    cases = {
        "reports no metrics": MetricChange({}, {}),
        "reports no StepTime": MetricChange({}, {"BatchTime_sum": 1.0, "BatchTime_count": 1.0}),
        "once per second": MetricChange(after, after),
    }
    for said, change in cases.items():
        found = stages.of(change, "archive")
        assert found["stages"] == {}
        assert said in found["stages_missing"]
    assert stages.of(MetricChange({}, {}), "no-op")["stages_missing"]


def test_the_report_says_whose_stages_are_missing_and_why() -> None:
    without = {**ROW, "stages": {}, "stages_missing": "its handler reports no StepTime"}
    old = {key: value for key, value in ROW.items() if key != "stages"} | {"target": "old"}
    noop = {**ROW, "target": "noop", "kind": "no-op", "stages": {}}
    notes = report.stage_notes([ROW, without, without, old, noop])
    assert notes == [
        "bert: the stages of a batch are not known at 2 points: its handler reports no StepTime",
        f"old: the stages of a batch are not known at 1 point: {stages.NOT_NOTED}",
    ]
    content = {"conditions": CONDITIONS, "rows": [without], "skipped": []}
    assert "its handler reports no StepTime" in report.table(content)
    assert "its handler reports no StepTime" in drawn(without)
    assert "not known" not in drawn(ROW)


def test_the_page_has_a_column_for_each_stage() -> None:
    text = drawn({**ROW, "stages": {**ROW["stages"], "rerank": 0.4}})
    for name in ("read the requests ms", "decode or tokenize ms", "network (launch and wait) ms", "rerank ms"):
        assert f"<th>{name}</th>" in text
    assert "<td>17.0</td>" in text
    assert "<th>network" not in drawn({**ROW, "stages": {}})


def test_parts_of_a_request_sum_to_its_time() -> None:
    parts = charts.parts_of(ROW)
    assert parts == {
        "outside_ms": 2,
        "queue_ms": 10,
        "exchange_ms": 3,
        "read": 1,
        "prepare": 4,
        "run": 17,
        "write": 2,
        "rest_ms": 1,
    }
    assert sum(parts.values()) == ROW["mean_ms"]
    assert charts.parts_of({**ROW, "stages": {}})["whole_ms"] == 25
    peer = {**ROW, "queue_ms": None, "outside_ms": None, "exchange_ms": None}
    assert charts.parts_of(peer)["around_ms"] == 15
    assert charts.parts_of({**peer, "handler_ms": None, "stages": {}}) == {}


def test_every_point_is_a_bar_and_what_is_left_out_is_said() -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    few = [{**ROW, "clients": clients} for clients in (1, 4, 16)]
    found = charts.draw(few, 2)
    (title,) = (title for title in found if title.startswith("Where the time"))
    assert "points" not in title
    assert all(f">{count} clients<" in found[title] for count in (1, 4, 16))
    assert "network (launch and wait)" in found[title]
    many = [{**ROW, "clients": clients} for clients in range(1, charts.MOST_POINTS + 2)]
    assert any("1 of 33 points" in title for title in charts.draw(many, 2))


def test_an_open_loop_that_was_late_is_told_in_the_page() -> None:
    row = {**ROW, "loop": "open", "clients": None, "rate": 70.0, "late_p99_ms": 12.0}
    text = drawn(row)
    assert '<tr class="late">' in text
    assert "<th>sent late, p99 ms</th>" in text
    assert "requests were sent 12.0 ms late" in text
    assert "(sent 12 ms late)" in charts._bar_name(row, [row])
    assert '<tr class="late">' not in drawn({**row, "late_p99_ms": 1.0})
    assert '<tr class="bad">' in drawn({**row, "errors": 3, "statuses": {"503": 3}, "failures": {}})


def test_missing_matplotlib_is_told_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    pictures.say_if_missing()
    monkeypatch.setattr(pictures, "import_module", missing)
    monkeypatch.setattr(charts, "import_module", missing)
    pictures.say_if_missing()
    said = capsys.readouterr().out
    assert "No module named 'matplotlib'" in said
    assert f"{sys.executable} -m pip install matplotlib" in said
    assert "pip install matplotlib" in drawn(ROW)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("bench_serving", ["--address", "http://127.0.0.1:9/predictions/x", "--size", "8x8"]),
        ("bench_model", ["image-classifier", "--engines", "eager-fp32", "--device", "cpu", "--batches", "1"]),
    ],
)
def test_programs_say_at_their_start_that_pictures_will_be_missing(
    program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is measured: what comes next ends the program here."""

    class Told(Exception):
        pass

    def say() -> None:
        raise Told

    monkeypatch.setattr(pictures, "say_if_missing", say)
    monkeypatch.setattr(sweep, "run_address", lambda *_: pytest.fail("it was not said at the start"))
    with pytest.raises(Told):
        import_module(program).main([*arguments, "--out", str(tmp_path / "out")])
