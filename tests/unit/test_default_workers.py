"""How many workers an archive asks for, if packaging is not told."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from archive import workers
from handlers import cpus

Machine = Callable[[int, int, int], None]
RESNET101, BERT_LARGE = 44_549_160, 335_141_888


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Give machine(GPUs, GiB of each, cores): this machine has them from then on."""

    def has(gpus: int, gib: int, cores: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=gib << 30)
        )
        monkeypatch.setattr(cpus, "usable", lambda: cores)

    return has


def test_a_machine_without_a_gpu_gets_one_worker_and_no_note(machine: Machine) -> None:
    machine(0, 0, 64)
    assert workers.default("auto", BERT_LARGE) == (1, None)


def test_an_archive_for_cpus_gets_one_worker_even_beside_a_gpu(machine: Machine) -> None:
    machine(1, 141, 64)
    assert workers.default("cpu", BERT_LARGE) == (1, None)


@pytest.mark.parametrize(
    ("gpus", "gib", "cores", "parameters", "count"),
    [
        (1, 141, 16, RESNET101, 8),
        (1, 141, 16, BERT_LARGE, 8),
        (1, 141, 64, BERT_LARGE, 8),  # never more
        (1, 16, 16, BERT_LARGE, 7),  # what fits into the memory
        (1, 2, 16, BERT_LARGE, 1),  # at least one
        (1, 80, 4, RESNET101, 2),  # the cores end it
        (4, 80, 32, RESNET101, 4),  # cores are shared by the GPUs
        (1, 80, 1, RESNET101, 1),
    ],
)
def test_a_gpu_gets_what_its_memory_and_the_cores_hold(
    machine: Machine, gpus: int, gib: int, cores: int, parameters: int, count: int
) -> None:
    machine(gpus, gib, cores)
    found, note = workers.default("auto", parameters)
    assert found == count
    assert note is not None
    assert f"it starts {count} worker" in note


def test_the_note_says_what_several_gpus_take(machine: Machine) -> None:
    machine(4, 80, 64)
    assert workers.default("cuda", BERT_LARGE) == (
        8,
        "it starts 8 workers, which take about 14 GiB of a GPU: so many keep one GPU of this machine busy. For all 4 "
        "GPUs: --workers 32. --workers N sets another number",
    )
