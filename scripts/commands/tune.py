"""Find batch size, delay and workers for a model by measuring: what scripts/tune does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokens
from benchmarks.commands import positive
from serving_bench import applying, archives, checking, command
from serving_bench.archives import Archive
from serving_bench.deployment import Deployment
from serving_bench.load import Load
from serving_bench.measure import Bench, Setting
from serving_bench.sweep import Served
from serving_bench.tuning import Choice, Score, Search
from serving_bench.watch import Gpus
from torchserve import ROOT, ServerError

DESCRIPTION = """\
Find how many workers, what batch size and what delay serve a model best on this machine, by measuring it in a
TorchServe of its own. Workers are doubled until that brings nothing, then the batch size varied, then the delay.
Answers are compared with those of lone requests; a setting with errors or wrong answers is not taken.

The goal is --max-throughput, or the most requests/s with 99 of 100 answers within --p99-ms. The choice is confirmed
in an open loop at 70 % of what it reached (see docs/batching.md). Stop other programs on the GPU first, the model's
own server too: they would be measured as well.
"""
EPILOG = """\
examples:
  scripts/tune digits --p99-ms 50                       shows the best, and changes nothing
  scripts/tune resnet101 --max-throughput --write       writes it into model_store/resnet101.mar's model-config.yaml
  scripts/tune bert-large --p99-ms 50 --texts my.txt --apply    registers the model anew in the running TorchServe

`scripts/package verify` will tell of an archive that --write has changed.
"""
CONFIRMED_AT = 0.7


def main(arguments: Sequence[str] | None = None) -> int:
    return command.guarded(parser().parse_args(arguments), run)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(prog="scripts/tune", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    found.add_argument("model", metavar="NAME", help="an archive, or the name of one in model_store/")
    goal = found.add_mutually_exclusive_group(required=True)
    goal.add_argument("--p99-ms", type=positive, metavar="MS", help="99 of 100 answers within so many milliseconds")
    goal.add_argument("--max-throughput", action="store_true", help="whatever the latency")
    effect = found.add_mutually_exclusive_group()
    effect.add_argument("--write", action="store_true", help="write the best into the archive's model-config.yaml")
    effect.add_argument("--apply", action="store_true", help="register NAME anew in the running TorchServe")
    tokens.add_server(found.add_argument_group("the running TorchServe, for --apply"))
    bounds = found.add_argument_group("bounds")
    bounds.add_argument("--most-workers", type=positive, default=8, metavar="N", help="(default: %(default)s)")
    bounds.add_argument("--most-batch", type=positive, metavar="N", help="(default: the archive's batch size)")
    command.add_load(found.add_argument_group("load (by default what fits the archive: photographs, or texts)"))
    command.add_generator(found.add_argument_group("load generator"))
    return found


def run(chosen: argparse.Namespace) -> int:
    """Raises ValueError, OSError, ServerError or GeneratorError."""
    archive = find(chosen.model)
    load = command.load_for(archive, chosen)
    generator, open_loop = command.generators(chosen)
    if chosen.apply:
        tokens.client(chosen).describe(archive.name)  # before minutes are spent
    with Gpus() as gpus, Deployment(dict(chosen.setting)) as deployment:
        bench = Bench(generator, open_loop, gpus, chosen.seconds, chosen.warm_up, lambda _: None, lambda _: None)
        tuned = Tuned(bench, deployment, archive, load)
        search = Search(tuned.measure, chosen.p99_ms, command.say)
        best = search.run(tuned.start, chosen.most_workers, chosen.most_batch or tuned.start.batch_size)
        if best is None:
            print(f"no setting answers within {chosen.p99_ms} ms, not even a single client", file=sys.stderr)
            return 1
        held = confirm(tuned, best, chosen.p99_ms)
    put_into_effect(chosen, archive, best)
    return 0 if held else 1


class Tuned:
    """One archive in a TorchServe of its own, served as each choice says."""

    def __init__(self, bench: Bench, deployment: Deployment, archive: Archive, load: Load) -> None:
        self.bench, self.deployment, self.archive, self.load = bench, deployment, archive, load
        self.served = Served(deployment, archive.name, "archive")
        self.lone: checking.Lone | None = None
        self.current: Choice | None = None

    @property
    def start(self) -> Choice:
        """One worker, and what the archive says."""
        return Choice(1, int(self.archive.batching["batchSize"]), max(1, int(self.archive.batching["maxBatchDelay"])))

    def measure(self, choice: Choice, clients: int) -> dict[str, Any]:
        """A closed loop's row."""
        lone = self.serve(choice)
        return self.bench.closed(self.served, self.load, lone, _setting(choice), clients)

    def serve(self, choice: Choice) -> checking.Lone:
        """Have the choice in effect; the lone answers, which are the same for every choice."""
        same = self.current and (self.current.batch_size, self.current.delay_ms) == (
            choice.batch_size,
            choice.delay_ms,
        )
        if not same:
            self._unregister()
            self.deployment.register(self.archive, choice.batch_size, choice.delay_ms)
        if choice != self.current:
            self.current = choice
            try:
                self.deployment.scale(self.archive.name, choice.workers)
            except ServerError:  # too little memory for so many workers, say
                self._unregister()
                raise
        if self.lone is None:
            self.lone = checking.ask(self.served.endpoint(), self.load)
        return self.lone

    def _unregister(self) -> None:
        if self.current is not None:
            self.deployment.unregister(self.archive.name)
            self.current = None


def confirm(tuned: Tuned, best: Score, p99_ms: float | None) -> bool:
    """Whether an open loop at 70 % of what was reached keeps up, within the goal and without errors."""
    rate = best.requests_per_s * CONFIRMED_AT
    lone = tuned.serve(best.choice)
    row = tuned.bench.open(tuned.served, tuned.load, lone, _setting(best.choice), rate)
    p99 = row["p99_ms"] or float("inf")
    held = not row["errors"] and not row["answers_wrong"] and (p99_ms is None or p99 <= p99_ms)
    print(f"\nbest: {best.choice}: {best.requests_per_s:,.0f} requests/s at {best.clients} clients")
    print(f"{'confirmed' if held else 'NOT CONFIRMED'} in an open loop at {rate:,.0f} requests/s: p99 {p99:,.1f} ms")
    print(f"{row['errors']} errors, {row['answers_wrong']} wrong answers")
    return held


def put_into_effect(chosen: argparse.Namespace, archive: Archive, best: Score) -> None:
    """As asked; else say how."""
    if chosen.write:
        applying.write(archive.file, best.choice)
        print(f"written into {archive.file}")
    elif chosen.apply:
        applying.apply(tokens.client(chosen), archive.name, best.choice)
        print(f"{archive.name} serves so now, until TorchServe is restarted")
    else:
        print("nothing was changed; model-config.yaml's keys would be:")
        print("".join(f"  {key}: {value}\n" for key, value in applying.keys_of(best.choice).items()), end="")


def find(model: str) -> Archive:
    """An archive's path, or its name in model_store/. Raises ValueError."""
    named = ROOT / "model_store" / f"{model}.mar"
    return archives.read(str(named) if named.is_file() and os.sep not in model else str(Path(model)))


def _setting(choice: Choice) -> Setting:
    return Setting(choice.workers, choice.batch_size, choice.delay_ms)


if __name__ == "__main__":
    sys.exit(main())
