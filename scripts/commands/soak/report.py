"""A soak's report: JSON, a page in Markdown, and a picture of memory over time."""

from __future__ import annotations

import datetime
import io
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from soak import growth
from soak.changes import Change, Changes
from soak.growth import Growth, Series
from soak.traffic import Failure, Tally

MOST_SHOWN = 40


@dataclass
class Report:
    """What a soak saw. path: of the files, without their ending. problems: in words; none if all was right."""

    path: Path
    length_s: float
    conditions: Mapping[str, Any]
    settings: Mapping[str, str]
    clients: int
    rate: float
    problems: list[str] = field(default_factory=list)
    interrupted: bool = False
    content: dict[str, Any] = field(default_factory=dict)
    began: str = field(default_factory=lambda: datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"))

    def fill(self, tally: Tally, changes: Changes, memory: Growth, start: float, now: float, is_over: bool) -> None:
        """Take over what was seen until `now` (time.monotonic())."""
        excused, bad = _split(tally, changes)
        verdicts = memory.verdicts(start)
        problems = [*self.problems, *_problems(tally, bad, changes.done, verdicts)]
        state = "interrupted" if self.interrupted else "over" if is_over else "under way"
        self.content = {
            "began": self.began,
            "state": state,
            "seconds": round(now - start, 1),
            "wanted_seconds": self.length_s,
            "passed": not problems,
            "problems": problems,
            "conditions": dict(self.conditions),
            "settings": dict(self.settings),
            "clients": self.clients,
            "rate": self.rate,
            "requests": _requests(tally, len(excused), now - start),
            "failures": [_failure(item, start) for item in bad[:MOST_SHOWN]],
            "excused": dict(Counter(item.what for item in excused)),
            "changes": _changes(changes.done),
            "memory": {"rule": growth.RULE, "verdicts": [_verdict(item) for item in verdicts]},
            "series": {name: _series(series, start) for name, series in sorted(memory.series.items())},
        }

    def write(self) -> None:
        """Write PATH.json, PATH.md and, with matplotlib, PATH.svg."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _replace(self.path.with_name(f"{self.path.name}.json"), json.dumps(self.content, indent=1) + "\n")
        picture = draw(self.content)
        if picture:
            _replace(self.path.with_name(f"{self.path.name}.svg"), picture)
        _replace(
            self.path.with_name(f"{self.path.name}.md"),
            page(self.content, f"{self.path.name}.svg" if picture else ""),
        )

    def line(self, tally: Tally, changes: Changes, memory: Growth, start: float) -> str:
        """How far it is, in one line."""
        now = time.monotonic()
        excused, bad = _split(tally, changes)
        sizes = ", ".join(f"{name} {series.values[-1]:.0f} MB" for name, series in sorted(memory.series.items()))
        return (
            f"{(now - start) / 60:.0f} of {self.length_s / 60:.0f} min: {tally.answered} right, {len(bad)} wrong, "
            f"{len(excused)} excused, {len(changes.done)} changes; {sizes}"
        )

    def show(self) -> int:
        """Print the outcome. Returns the exit status."""
        requests = self.content["requests"]
        print(f"{requests['right']} answers and {requests['refused']} refusals were right", flush=True)
        for problem in self.content["problems"]:
            print(f"NOT right: {problem}")
        print(f"{'passed' if self.content['passed'] else 'failed'}; {self.path}.md has the report")
        return 0 if self.content["passed"] else 1


def _split(tally: Tally, changes: Changes) -> tuple[list[Failure], list[Failure]]:
    """Failures that a killed worker excuses, and the others."""
    with tally.lock:
        failures = list(tally.failures)
    excused, bad = list[Failure](), list[Failure]()
    for item in failures:
        (excused if changes.excuses(item) else bad).append(item)
    return excused, bad


def _problems(
    tally: Tally, bad: Sequence[Failure], done: Sequence[Change], verdicts: Sequence[growth.Verdict]
) -> list[str]:
    found = [f"{count} x {form}: {what}" for (form, what), count in Counter((f.form, f.what) for f in bad).items()]
    found += [f"{change.name} of {change.model} failed: {change.problem}" for change in done if change.problem]
    for item in verdicts:
        if not item.is_flat:
            found.append(f"memory of {item.name} grew from {item.half_mb:.0f} MB at half-way to {item.end_mb:.0f} MB")
    if not verdicts:
        found.append("memory was seen too seldom to judge it")
    if not tally.answered:
        found.append("nothing was answered")
    if tally.failed > len(tally.failures):
        found.append(f"{tally.failed - len(tally.failures)} more failures were not kept")
    return found


def _requests(tally: Tally, excused: int, seconds: float) -> dict[str, Any]:
    with tally.lock:
        right, refused = dict(sorted(tally.right.items())), dict(sorted(tally.refused.items()))
        answered = sum(right.values()) + sum(refused.values())
        return {
            "right": sum(right.values()),
            "refused": sum(refused.values()),
            "hung_up": tally.hung_up,
            "failed": tally.failed,
            "excused": excused,
            "per_s": round(answered / seconds, 1) if seconds else 0,
            "mean_ms": round(1e3 * tally.seconds / answered, 1) if answered else None,
            "slowest_ms": round(1e3 * tally.slowest_s),
            "right_by_form": right,
            "refused_by_kind": refused,
        }


def _failure(item: Failure, start: float) -> dict[str, Any]:
    return {
        "at_s": round(item.start - start, 1),
        "took_s": round(item.end - item.start, 2),
        "form": item.form,
        "what": item.what,
    }


def _changes(done: Sequence[Change]) -> list[dict[str, Any]]:
    kinds = dict.fromkeys((change.name, change.model) for change in done)
    found = []
    for name, model in kinds:
        of = [change for change in done if (change.name, change.model) == (name, model)]
        longest = max(change.end - change.start for change in of)
        failed = sum(change.problem is not None for change in of)
        found.append(
            {"change": name, "model": model, "times": len(of), "failed": failed, "longest_s": round(longest, 1)}
        )
    return found


def _verdict(item: growth.Verdict) -> dict[str, Any]:
    return {
        "name": item.name,
        "half_way_mb": round(item.half_mb, 1),
        "end_mb": round(item.end_mb, 1),
        "grew_mb": round(item.end_mb - item.half_mb, 1),
        "flat": item.is_flat,
    }


def _series(series: Series, start: float) -> dict[str, list[float]]:
    return {"s": [round(at - start, 1) for at in series.times], "mb": [round(value, 1) for value in series.values]}


def page(content: Mapping[str, Any], picture: str) -> str:
    """The report in Markdown. picture: the file name of the picture; "" for none."""
    requests, conditions = content["requests"], content["conditions"]
    outcome = "passed" if content["passed"] else "failed"
    lines = [
        f"# Soak of {content['began'][:10]}: {outcome}",
        "",
        f"{content['seconds']:,.0f} s of {content['wanted_seconds']:,.0f} s ({content['state']}), commit "
        f"{conditions.get('commit') or 'unknown'}, {conditions.get('cpu')}, {conditions.get('cores')} cores, "
        f"{conditions.get('gpus') or 'no'} GPU, torch {conditions.get('torch')}, Java {conditions.get('java')}. "
        f"{content['clients']} clients, {content['rate']:g} requests/s wanted, {requests['per_s']:g} answered.",
        "",
        "| requests | count |",
        "|---|---:|",
        f"| answered, each with its own answer | {requests['right']:,} |",
        f"| bad ones, each refused as when it was alone | {requests['refused']:,} |",
        f"| clients that hung up | {requests['hung_up']:,} |",
        f"| failed while a worker of their model was killed | {requests['excused']:,} |",
        f"| failed or wrong otherwise | {requests['failed'] - requests['excused']:,} |",
        "",
        f"A right answer took {requests['mean_ms']} ms in the mean, {requests['slowest_ms']:,} ms at most.",
        "",
        *_problem_lines(content["problems"]),
        "## Memory",
        "",
        content["memory"]["rule"],
        "",
        "| | half-way, MB | end, MB | growth, MB | flat |",
        "|---|---:|---:|---:|---|",
        *(
            f"| {item['name']} | {item['half_way_mb']:,.0f} | {item['end_mb']:,.0f} | {item['grew_mb']:+,.0f} | "
            f"{'yes' if item['flat'] else 'NO'} |"
            for item in content["memory"]["verdicts"]
        ),
        "",
        *([f"![Memory over time]({picture})", ""] if picture else []),
        "## Changes",
        "",
        "| change | model | times | failed | longest, s |",
        "|---|---|---:|---:|---:|",
        *(
            f"| {item['change']} | {item['model']} | {item['times']} | {item['failed']} | {item['longest_s']} |"
            for item in content["changes"]
        ),
        "",
        "## Answers by form",
        "",
        "| form | right |",
        "|---|---:|",
        *(f"| {form} | {count:,} |" for form, count in requests["right_by_form"].items()),
        *(f"| refused: {kind} | {count:,} |" for kind, count in requests["refused_by_kind"].items()),
    ]
    return "\n".join(lines) + "\n"


def _problem_lines(problems: Sequence[str]) -> list[str]:
    return ["## Problems", "", *(f"- {problem}" for problem in problems[:MOST_SHOWN]), ""] if problems else []


def draw(content: Mapping[str, Any]) -> str:
    """An SVG of memory over time; "" without matplotlib."""
    try:
        matplotlib: Any = import_module("matplotlib")
        matplotlib.use("Agg")
        plt: Any = import_module("matplotlib.pyplot")
    except ImportError:
        return ""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "soak"}
    with matplotlib.rc_context(settings):
        figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
        for name, series in content["series"].items():
            axes.plot([at / 60 for at in series["s"]], series["mb"], label=name, linewidth=1)
        axes.axvline(content["seconds"] / 120, color="0.6", linestyle="--", linewidth=1, label="half-way")
        axes.set(xlabel="minutes", ylabel="MB", title="Memory")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
        with io.StringIO() as stream:
            figure.savefig(stream, format="svg", metadata={"Date": None})
            plt.close(figure)
            return stream.getvalue()


def _replace(path: Path, text: str) -> None:
    half = path.with_name(f".{path.name}.part")
    half.write_text(text, encoding="utf-8")
    half.replace(path)
