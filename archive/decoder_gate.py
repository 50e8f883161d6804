"""The parity gate for JPEGs that the GPU decodes: answers have to be those of the same files decoded by the CPU.

archive/trial_run.py runs the samples both ways, on a machine whose GPU has the decoder. A sample that is no JPEG, or
none that the GPU takes, is encoded as one. If the limits are missed, the archive is good all the same: its workers
read the result (handlers/images/gpu_decoder.py) and let the CPU decode. An archive that names the GPU's decoder is
refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archive import parity

if TYPE_CHECKING:
    from archive.models import PackagedModel  # imports torch
    from archive.parity import ParityResult

KEY = "jpegs"  # of the provenance; handlers/images/gpu_decoder.py reads it


def results(
    model: PackagedModel, outputs: Path, report: Mapping[str, Any], precisions: Collection[str]
) -> dict[str, ParityResult]:
    """Return the result for each precision in which JPEGs were compared; none if there is no such decoder here.

    Args:
        outputs: the folder of trial_run.py's outputs.
        report: its report.
        precisions: those that have passed the parity gate: no other serves.
    """
    found = {}
    for precision, tried in report["jpegs"].items():
        if precision not in precisions:
            continue
        device = report["loaded"][precision]["device"]["name"]
        if "problem" in tried:
            found[precision] = parity.ParityResult(False, tried["compared"], device, problem=tried["problem"])
        elif tried["compared"]:
            found[precision] = _compared(model, outputs, precision, device)
    return found


def _compared(model: PackagedModel, outputs: Path, precision: str, device: str) -> ParityResult:
    import numpy as np

    on_gpu, on_cpu = (np.load(outputs / f"{precision}-{name}.npy") for name in ("gpu", "cpu"))
    return parity.compare_decoders(on_gpu, on_cpu, precision, model.gives_embeddings, device)


def lines(model: PackagedModel, found: Mapping[str, ParityResult], report: Mapping[str, Any]) -> Iterator[str]:
    """Yield what packaging prints: the figures, or why the GPU that is here was not tried."""
    for precision, result in found.items():
        tried = report["jpegs"][precision]
        counts = f"{tried['compared']} compared, {tried['encoded']} encoded for this, {tried['leftOut']} left out"
        yield f"{precision} JPEGs decoded on the GPU, against the CPU's decoder {result} ({counts})"
    if _asked(model) == "cpu":
        return
    for why in sorted({why for loaded in report["loaded"].values() if (why := _why_not_tried(loaded))}):
        yield f"JPEGs decoded on the GPU were not compared: {why}"


def _asked(model: PackagedModel) -> str:
    """Return the setting `decoder`; "" for a model of texts."""
    return str(getattr(model.settings, "decoder", ""))


def _why_not_tried(loaded: Mapping[str, Any]) -> str | None:
    """Return why a network on a GPU gets JPEGs from the CPU's decoder; None if it does not. loaded: a description."""
    on_gpu = loaded["device"]["name"].startswith("cuda")
    why: str | None = loaded.get("decoder", {}).get("why") if on_gpu else None
    return why


def refusal(model: PackagedModel, found: Mapping[str, ParityResult]) -> str | None:
    """Return why the archive is refused, or None."""
    failed = [f"{precision} {result}" for precision, result in found.items() if not result.passed]
    if not failed or _asked(model) != "gpu":
        return None
    return (
        f"{model.name} with JPEGs decoded on the GPU misses parity with the CPU's decoder: {'; '.join(failed)}. "
        "Nothing was put in place. --decoder auto lets the CPU decode"
    )


def notes(model: PackagedModel, found: Mapping[str, ParityResult]) -> list[str]:
    """Return a note for each precision in which the CPU will decode, or one if "gpu" was asked for and not tried."""
    if _asked(model) == "gpu" and not found:
        return [
            "decoder gpu is asked for, and no JPEG was decoded on a GPU at the parity gate. Packaging on a machine "
            "that can do it checks what will serve"
        ]
    return [
        f"in {precision} the CPU will decode JPEGs: those decoded on the GPU missed the parity gate: {result}"
        for precision, result in found.items()
        if not result.passed
    ]


def recorded(found: Mapping[str, ParityResult], report: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Return what the provenance holds, by precision."""
    return {
        precision: {**result.as_dict(), **{name: report["jpegs"][precision][name] for name in ("encoded", "leftOut")}}
        for precision, result in found.items()
    }
