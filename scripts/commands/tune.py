"""Find batch size, delay and workers for a model by measuring: what scripts/tune does."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from argument_types import positive
from server import mps
from server.client import silent
from server.config import read_properties
from server.errors import ServerError
from server.options import add_server_options, client_of
from server.paths import CONFIG, MODEL_STORE
from serving_bench import advice, apply_choice, archives, command, reference_answers
from serving_bench.advice import Cause
from serving_bench.archives import Archive
from serving_bench.confirmation import SHARES, TRIES, Attempt, Confirmation
from serving_bench.fleet import Fleet
from serving_bench.generator import Load
from serving_bench.generator_options import add_generator_options, generators
from serving_bench.layouts import Layout
from serving_bench.load_options import add_load_options, load_for
from serving_bench.measure import Bench, Setting
from serving_bench.progress import duration
from serving_bench.resource_usage import GpuMonitor
from serving_bench.search import Choice, Search, clients_of
from serving_bench.sweep import Served

from archive.near_options import Parser

DESCRIPTION = f"""\
Find the number of workers, the batch size and the delay that serve a model best on this machine, by measuring it in a
TorchServe of its own. Workers are doubled until that brings nothing; then the batch size is varied, then the delay.
Answers are compared with those to requests sent alone; a setting with errors or wrong answers is not taken.

The goal is the most requests/s: with --p99-ms under the condition that 99 of 100 answers come in time, with
--max-throughput without a condition. The best setting then has to meet the goal in an open loop (see
docs/batching.md), at {SHARES[0]:.0%} of the rate that it reached in the slower one of two closed loops. If it does
not, {SHARES[1]:.0%} is tried, and then the next best setting: {TRIES} settings at most. Only a confirmed one is shown
as the best, written or applied.

First stop other programs on the GPU, the model's own server too: they would disturb this.
"""
EPILOG = """\
examples:
  scripts/tune digits --p99-ms 50                       shows the best setting, and changes nothing
  scripts/tune resnet101 --max-throughput --write       writes it into model_store/resnet101.mar
  scripts/tune bert-large --p99-ms 50 --texts my.txt --apply    registers the model again in the running TorchServe

`scripts/package verify` reports an archive that --write has changed.

Exit status: 0; 1 if no setting meets the goal or is confirmed, or if nothing can be measured; 2 for a wrong command
line; 130 if stopped. If no setting is confirmed, nothing is changed; errors, reasons and the next command to try are
printed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    return command.guarded(parser().parse_args(given), lambda chosen: run(chosen, given))


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    found = Parser(prog="scripts/tune", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    found.add_argument("model", metavar="NAME", help="an archive's path, or its name in model_store/")
    goal = found.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--p99-ms", type=positive, metavar="MS", help="99 of 100 answers must come within MS milliseconds"
    )
    goal.add_argument("--max-throughput", action="store_true", help="the most requests/s, whatever the latency")
    effect = found.add_mutually_exclusive_group()
    effect.add_argument(
        "--write", action="store_true", help="write the best setting into the archive's model-config.yaml"
    )
    effect.add_argument(
        "--apply", action="store_true", help="register NAME again in the running TorchServe, with the best setting"
    )
    add_server_options(found.add_argument_group("the running TorchServe, for --apply"))
    bounds = found.add_argument_group("bounds")
    bounds.add_argument(
        "--most-workers", type=positive, default=8, metavar="N", help="try up to N workers (default: %(default)s)"
    )
    bounds.add_argument(
        "--most-batch", type=positive, metavar="N", help="try batch sizes up to N (default: the archive's)"
    )
    add_load_options(found.add_argument_group("load (by default what fits the archive: photographs, or texts)"))
    generator = found.add_argument_group("load generator and server")
    add_generator_options(generator)
    generator.add_argument(
        "--mps", action="store_true", help="start NVIDIA's MPS for the run, and end it after it (serve under it too)"
    )
    return found


def run(chosen: argparse.Namespace, given: Sequence[str]) -> int:
    """Search, confirm, and do what was asked; the exit status. given: the command line.

    Raises ValueError, OSError, ServerError or GeneratorError, or KeyboardInterrupt with words on what was changed.
    """
    changed: list[str] = []
    try:
        return tuned(chosen, given, changed)
    except KeyboardInterrupt:
        as_before = f", and {chosen.model} serves as before" if chosen.apply else ""
        raise KeyboardInterrupt(*(changed or [f"nothing was changed{as_before}"])) from None


def tuned(chosen: argparse.Namespace, given: Sequence[str], changed: list[str]) -> int:
    """Do what `run` says. changed: gets words on what was changed, as soon as it is."""
    archive = find(chosen.model)
    if chosen.write:
        apply_choice.check_writable(archive.file)
    load = load_for(archive, chosen)
    generator, open_loop = generators(chosen)
    if chosen.apply:
        client_of(chosen).describe(archive.name)  # fails now, before minutes are spent
    if chosen.mps:
        mps.check()
    with (
        GpuMonitor() as gpus,
        mps.chosen(chosen.mps or None) as environment,
        Fleet(Layout(), dict(chosen.setting), environment) as server,
    ):
        bench = Bench(generator, open_loop, gpus, chosen.seconds, chosen.warm_up, silent, lambda _: None)
        tuned = Tuned(bench, server, archive, load)
        queue = queue_size(archive, dict(chosen.setting))
        search = Search(tuned.measure, chosen.p99_ms, command.print_now, queue)
        best = search.run(tuned.start, chosen.most_workers, chosen.most_batch or tuned.start.batch_size)
        if best is None:
            causes = advice.causes_of_none(list(search.scores.values()), chosen.p99_ms)
            return failed("no setting meets the goal", [], causes, given)
        each = duration(len(SHARES) * (chosen.warm_up + chosen.seconds))
        command.print_now(f"confirming in an open loop: {TRIES} settings at most, about {each} each")
        confirmation = Confirmation(tuned, chosen.p99_ms, command.print_now)
        confirmed = confirmation.run(search.ranked(best))
    if confirmed is None:
        cores = len(os.sched_getaffinity(0))
        own = "jobQueueSize" in archive.batching
        conditions = advice.Conditions(chosen.p99_ms, queue, own, open_loop.processes, cores)
        causes = advice.causes(confirmation.attempts, conditions)
        what = f"no setting is confirmed: {advice.missed(confirmation.attempts, chosen.p99_ms)} open loops"
        return failed(what, confirmation.attempts, causes, given)
    show(confirmed)
    put_into_effect(chosen, archive, confirmed.score.choice, changed)
    return 0


def failed(what: str, attempts: Sequence[Attempt], causes: Sequence[Cause], given: Sequence[str]) -> int:
    """Print what was tried, why it may have failed, and what to try next; the exit status."""
    lines = [f"\n{what}; nothing was changed", *(f"  {attempt}" for attempt in attempts), "this may be why:"]
    lines += [f"  {cause.words}" for cause in causes]
    print("\n".join([*lines, f"next, try: {advice.next_command(given, causes)}"]), file=sys.stderr)
    return 1


def show(confirmed: Attempt) -> None:
    """Print the setting that was confirmed."""
    best = confirmed.score
    print(f"\nbest: {best.choice}: {best.requests_per_s:,.0f} requests/s at {clients_of(best)}")
    of = f"{confirmed.share:.0%} of {confirmed.closed:,.0f}"
    print(f"confirmed in an open loop at {confirmed.rate:,.0f} requests/s ({of})")
    if confirmed.share < SHARES[0]:
        print(f"{SHARES[0]:.0%} was too much: do not send it more than this")


class Tuned:
    """An archive in a TorchServe of this program's own, which serves it as each choice says."""

    def __init__(self, bench: Bench, server: Fleet, archive: Archive, load: Load) -> None:
        self.bench, self.server, self.archive, self.load = bench, server, archive, load
        self.served = Served(server, archive.name, "archive")
        self.reference: reference_answers.ReferenceAnswers | None = None
        self.current: Choice | None = None

    @property
    def start(self) -> Choice:
        """The first choice: one worker, and the archive's batch size and delay."""
        return Choice(1, int(self.archive.batching["batchSize"]), max(1, int(self.archive.batching["maxBatchDelay"])))

    def measure(self, choice: Choice, clients: int) -> dict[str, Any]:
        """Measure the choice in a closed loop; the row."""
        reference = self.serve(choice)
        return self.bench.closed(self.served, self.load, reference, _setting(choice), clients)

    def measure_again(self, choice: Choice, clients: int) -> dict[str, Any]:
        """Measure the choice in a closed loop, with the load generator of the open loop; the row."""
        reference = self.serve(choice)
        bench = replace(self.bench, generator=self.bench.open_loop)
        return bench.closed(self.served, self.load, reference, _setting(choice), clients)

    def measure_open(self, choice: Choice, rate: float) -> dict[str, Any]:
        """Measure the choice in an open loop at `rate` requests/s; the row."""
        reference = self.serve(choice)
        return self.bench.open(self.served, self.load, reference, _setting(choice), rate)

    def serve(self, choice: Choice) -> reference_answers.ReferenceAnswers:
        """Serve the model as the choice says. Returns the reference answers, which are the same for every choice."""
        same = self.current and (self.current.batch_size, self.current.delay_ms) == (
            choice.batch_size,
            choice.delay_ms,
        )
        if not same:
            self._unregister()
            self.server.register(self.archive, choice.batch_size, choice.delay_ms)
        if choice != self.current:
            self.current = choice
            try:
                self.server.scale(self.archive.name, choice.workers)
            except ServerError:  # for example too little memory for so many workers
                self._unregister()
                raise
        if self.reference is None:
            self.reference = reference_answers.ask(self.served.endpoint(), self.load)
        return self.reference

    def _unregister(self) -> None:
        if self.current is not None:
            self.server.unregister(self.archive.name)
            self.current = None


def put_into_effect(chosen: argparse.Namespace, archive: Archive, best: Choice, changed: list[str]) -> None:
    """Write or apply the best choice, as the options ask; else print the keys for model-config.yaml.

    Args:
        changed: gets words on what was changed.
    """
    if chosen.write:
        with undisturbed():
            apply_choice.write(archive.file, best)
            changed.append(f"written into {archive.file}")
        print(changed[0])
    elif chosen.apply:
        apply_choice.apply(client_of(chosen), archive.name, best)
        changed.append(f"{archive.name} serves so now, until TorchServe is restarted")
        print(changed[0])
    else:
        print("nothing was changed; model-config.yaml's keys would be:")
        print("".join(f"  {key}: {value}\n" for key, value in apply_choice.keys_of(best).items()), end="")
    if chosen.setting:
        settings = ", ".join(f"{key}={value}" for key, value in chosen.setting)
        print(f"it was measured with {settings}: set that in config.properties too")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait for the end of a `with` block, so that what is written and what is told of it agree."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, command.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def queue_size(archive: Archive, settings: dict[str, str]) -> int:
    """How many requests may wait for the model. settings: for config.properties, in place of the project's."""
    default = read_properties(CONFIG)["job_queue_size"]
    return int(archive.batching.get("jobQueueSize", settings.get("job_queue_size", default)))


def find(model: str) -> Archive:
    """The archive at a path, or of that name in model_store/. Raises ValueError."""
    named = MODEL_STORE / f"{model}.mar"
    return archives.read(str(named) if named.is_file() and os.sep not in model else str(Path(model)))


def _setting(choice: Choice) -> Setting:
    return Setting(choice.workers, choice.batch_size, choice.delay_ms)


if __name__ == "__main__":
    sys.exit(main())
