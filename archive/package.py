"""Make one .mar: write its files, archive them, try it in a fresh process, compare with fp32, put it in place."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from archive import decoder_gate, fingerprint, inspection, parity, trial_run
from archive.fingerprint import ROOT
from archive.progress import Progress
from handlers import cpus

if TYPE_CHECKING:
    from archive.models import PackagedModel  # imports torch
    from archive.parity import ParityResult
    from handlers.settings import Settings

CONFIG_HEADER = """\
# Written at packaging. It may be edited, here or in the archive; `scripts/package verify` then says that it changed.
# TorchServe's own keys come first: up to batchSize requests are answered together. The first of them waits for others
# for at most maxBatchDelay milliseconds (1 or more: TorchServe takes 0 for 100).
# handlers/settings.py says what the keys under `handler` mean, and which values they take.
"""
FRESH_PYTHON = (sys.executable, "-Iu")  # imports nothing but the archive and the installed packages
LAST_LINES = 15  # of a failed command's output, that are shown


class PackagingError(ValueError):
    """The archive was refused; nothing was put in place."""


def build(model: PackagedModel, export_path: Path, inputs: str, options: Mapping[str, object]) -> Path:
    """Make `export_path/NAME.mar`, replacing one of the same name in a single step.

    Args:
        model: what to package.
        export_path: folder for the archive; it is made if it is not there.
        inputs: digest of what the archive is made from, for the provenance.
        options: the command's options, for the provenance.

    Returns:
        The archive's path.

    Raises:
        PackagingError: if the archive does not load, does not answer, or misses parity.
    """
    progress = Progress(total=5)
    trial_run.report_plan_builds(progress.detail)
    export_path = export_path.absolute()  # the trial run changes its directory
    export_path.mkdir(parents=True, exist_ok=True)
    # On the same file system as the model store, so that the last step is one rename.
    with tempfile.TemporaryDirectory(prefix=".packaging-", dir=export_path) as private:
        work = Path(private)
        with progress.step("staging weights and handlers"):
            _write_contents(model, work / "contents")
        with progress.step("archiving with torch-model-archiver"):
            mar = _archive(model, work)
        samples = _write_samples(model, work / "samples")
        with progress.step(f"loading it in a fresh process, {len(samples)} samples in {', '.join(model.precisions)}"):
            _unpack(mar, work / "unpacked")
            report = _try(model, work, samples, progress)
        with progress.step("comparing with the fp32 reference"):
            results = _compare(model, work, report)
        for precision, result in results.items():
            progress.line(f"{precision} {result}" + (f" ({result.engine})" if result.engine else ""))
        _refuse_failures(model, results)
        jpegs = _compare_decoders(model, work, report, results, progress)
        notes = [*model.notes, *_substitution_notes(model, results, report["stood_in"])]
        notes += decoder_gate.notes(model, jpegs)
        with progress.step("putting it in place"):
            _add_carried_samples(model, mar, work)
            _add_sbom(model, mar, work)
            engines = {precision: loaded["engine"] for precision, loaded in report["loaded"].items()}
            provenance = _provenance(model, mar, results, notes, inputs, options)
            decoders = {decoder_gate.KEY: decoder_gate.recorded(jpegs, report)}
            _add_provenance(mar, {**provenance, "engines": engines, **decoders})
            inspection.verify(mar)
            target = export_path / mar.name
            mar.replace(target)
    for note in notes:
        progress.line(f"note: {note}")
    return target


def _write_contents(model: PackagedModel, folder: Path) -> None:
    """Write what the archive's root will hold into `folder`, and model-config.yaml next to it."""
    folder.mkdir()
    model.write_files(folder)
    _refuse_impossible_engine(model, folder)
    _drop_local_paths(folder)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", *(file for file, _ in inspection.ENTRIES.values()))
    shutil.copytree(ROOT / "handlers", folder / "handlers", ignore=ignored)
    text = CONFIG_HEADER + yaml.safe_dump(model.config, sort_keys=False)
    (folder.parent / inspection.CONFIG).write_text(text, encoding="utf-8")


def _refuse_impossible_engine(model: PackagedModel, folder: Path) -> None:
    """Raise PackagingError for an engine that would run this archive on no machine."""
    import torch

    from handlers import engines, loading

    asked = model.settings
    precision = _main_precision(asked)
    spec = loading.engine_spec(model.kind, folder, torch.device("cpu"), precision, asked, 1)
    engine = "fused" if (asked.engine, precision) == ("auto", "fp8") else asked.engine  # the only one that has fp8
    why = None if engine == "auto" else engines.get(engine).why_never(spec)
    if why is None and asked.device == "cpu" and asked.engine != "auto":
        why = engines.get(engine).why_not_here(spec)
    if why:
        option = "--precision" if precision == "fp8" else "--engine"
        raise PackagingError(f"engine {engine} runs this on no machine: {why}; {option} auto takes one that can")


def _main_precision(asked: Settings) -> str:
    """Return the precision that is to serve; for "auto" the one that matters most to the engine."""
    if asked.precision != "auto":
        return asked.precision
    return "fp32" if asked.engine == "onnxruntime" else "fp16"


def _drop_local_paths(folder: Path) -> None:
    """Remove where the checkpoint lay on this machine: it is private, and would change the digest."""
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: value for key, value in content.items() if key not in ("_name_or_path", "name_or_path")}
            path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _archive(model: PackagedModel, work: Path) -> Path:
    private_tmp = work / "tmp"  # the archiver deletes $TMPDIR/NAME
    private_tmp.mkdir()
    entry, _ = model.entry
    command = [
        *(sys.executable, "-c", "from model_archiver.model_packaging import generate_model_archive as g; g()"),
        *("--model-name", model.name, "--version", model.version, "--handler", str(ROOT / "handlers" / entry)),
        *("--extra-files", str(work / "contents"), "--config-file", str(work / inspection.CONFIG)),
        *("--archive-format", "zip-store", "--runtime", "python", "--export-path", str(work)),
    ]
    _run(command, "torch-model-archiver failed", env={**os.environ, "TMPDIR": str(private_tmp)})
    return work / f"{model.name}.mar"


def _unpack(mar: Path, folder: Path) -> None:
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(folder)


def _write_samples(model: PackagedModel, folder: Path) -> list[Path]:
    folder.mkdir()
    paths = []
    for index, sample in enumerate(model.samples()):
        paths.append(folder / f"{index:05d}")
        paths[-1].write_bytes(sample)
    return paths


def _try(model: PackagedModel, work: Path, samples: Sequence[Path], progress: Progress) -> dict[str, Any]:
    """Run archive/trial_run.py on the unpacked archive and return its report; outputs go to `work/outputs`."""
    entry, class_name = model.entry
    task = {
        "name": model.name,
        "kind": model.kind,
        "entry": entry,
        "class": class_name,
        "precisions": model.precisions,
        "engine": model.settings.engine,
        "samples": [str(path) for path in samples],
    }
    task_file, outputs = work / "task.json", work / "outputs"
    task_file.write_text(json.dumps(task), encoding="utf-8")
    outputs.mkdir()
    command = [*FRESH_PYTHON, trial_run.__file__, str(work / "unpacked"), str(task_file), str(outputs)]
    env = {cpus.WAIT_POLICY: cpus.PATIENT, **os.environ}  # as it will be served
    _run(command, "the archive does not load and answer in a fresh process", env, progress)
    report: dict[str, Any] = json.loads((outputs / trial_run.REPORT).read_text(encoding="utf-8"))
    if report["status"] != 200:
        raise PackagingError(f"the archive answered its first request with {report['status']}: {report['answer']}")
    return report


def _compare(model: PackagedModel, work: Path, report: Mapping[str, Any]) -> dict[str, ParityResult]:
    """Return the parity gate's result for each precision."""
    import numpy as np

    reference = model.reference_outputs([path.read_bytes() for path in sorted((work / "samples").iterdir())])
    results = {}
    for precision in model.precisions:
        if precision in report["failed"]:
            results[precision] = parity.did_not_run(report["failed"][precision], len(reference))
            continue
        outputs = np.load(work / "outputs" / f"{precision}.npy")
        loaded = report["loaded"][precision]
        result = parity.compare(outputs, reference, precision, model.gives_embeddings, loaded["device"]["name"])
        results[precision] = dataclasses.replace(result, engine=loaded["engine"]["name"])
    return results


def _compare_decoders(
    model: PackagedModel,
    work: Path,
    report: Mapping[str, Any],
    results: Mapping[str, ParityResult],
    progress: Progress,
) -> dict[str, ParityResult]:
    """Return the gate's results for JPEGs that the GPU decodes, and print them. Raises PackagingError."""
    passed = [precision for precision, result in results.items() if result.passed]
    found = decoder_gate.results(model, work / "outputs", report, passed)
    for line in decoder_gate.lines(model, found, report):
        progress.line(line)
    if refusal := decoder_gate.refusal(model, found):
        raise PackagingError(refusal)
    return found


def _refuse_failures(model: PackagedModel, results: Mapping[str, ParityResult]) -> None:
    """Raise PackagingError unless fp32 and the precision that was asked for have passed."""
    needed = {"fp32", model.settings.precision} - {"auto"}
    failed = [f"{precision} {results[precision]}" for precision in sorted(needed) if not results[precision].passed]
    if failed:
        raise PackagingError(
            f"{model.name} misses parity with its fp32 reference: {'; '.join(failed)}. Nothing was put in place. "
            "--precision auto serves the fastest precision that passes; --parity-data takes samples of your own"
        )


def _substitution_notes(
    model: PackagedModel, results: Mapping[str, ParityResult], reasons: Mapping[str, str]
) -> list[str]:
    """Return notes if the parity gate did not see what was asked for by name.

    Args:
        results: of the parity gate, by precision.
        reasons: why the engine that was asked for did not run, by precision.
    """
    asked = model.settings
    precision = _main_precision(asked)
    seen, found = results[precision], []
    if precision in reasons and seen.engine:
        found.append(f"{reasons[precision]} Here {seen.engine} stood in for it at the parity gate")
    if precision == "fp8" and seen.device.startswith("cpu"):
        found.append("fp8 was emulated at the parity gate; a GPU sums its products, and rounds GELU, less exactly")
    if asked.device == "cuda" and seen.device.startswith("cpu"):
        found.append("device cuda is not here; the parity gate ran on the CPU")
    return [f"{note}. Packaging on a machine that can run it checks what will serve" for note in found]


def _provenance(
    model: PackagedModel,
    mar: Path,
    results: Mapping[str, ParityResult],
    notes: Sequence[str],
    inputs: str,
    options: Mapping[str, object],
) -> dict[str, object]:
    files = inspection.file_digests(mar)
    return {
        "format": 1,
        "name": model.name,
        "version": model.version,
        "kind": model.kind,
        "entry": model.entry[0],
        "digest": inspection.content_digest(model.name, model.version, files),
        "weights": dict(model.weights),
        "notes": list(notes),
        "parity": {precision: result.as_dict() for precision, result in results.items()},
        "versions": {"python": sys.version.split()[0], **fingerprint.versions()},
        "options": dict(options),
        "inputs": inputs,
        "files": files,
    }


def _add_carried_samples(model: PackagedModel, mar: Path, work: Path) -> None:
    """Add what a worker compares its engine with: samples that have passed the gate, and their fp32 outputs."""
    from archive import carried_samples  # imports torch

    carried_samples.write(model, work)
    with zipfile.ZipFile(mar, "a") as archive:
        archive.write(work / inspection.CARRIED_SAMPLES, inspection.CARRIED_SAMPLES)


def _add_sbom(model: PackagedModel, mar: Path, work: Path) -> None:
    """Add the list of what runs in a worker: handlers, weights, Python packages."""
    from archive import sbom  # imports what packaging alone needs

    sbom.write(work / inspection.SBOM, model.name, model.version, model.weights, work / "contents")
    with zipfile.ZipFile(mar, "a") as archive:
        archive.write(work / inspection.SBOM, inspection.SBOM)


def _add_provenance(mar: Path, provenance: Mapping[str, object]) -> None:
    with zipfile.ZipFile(mar, "a") as archive:
        sealed = {**provenance, "seal": inspection.seal(provenance)}
        text = json.dumps(sealed, indent=2, ensure_ascii=False, default=str)
        archive.writestr(inspection.PROVENANCE, text + "\n")


def _run(
    command: Sequence[str],
    failure: str,
    env: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Run a command.

    Args:
        failure: beginning of the message if it fails.
        progress: gets the lines that the trial run marks as meant for the terminal.

    Raises:
        PackagingError: with the command's last lines, if its exit status is not 0.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=env, **pipes) as process:
        for line in process.stdout or ():
            if progress and line.startswith(trial_run.TERMINAL):
                progress.detail(line.removeprefix(trial_run.TERMINAL).rstrip())
            elif progress and line.startswith(trial_run.PROGRESS):
                progress.now(line.removeprefix(trial_run.PROGRESS).rstrip())
            elif line.strip():
                last.append(line.rstrip())
    if process.returncode:
        raise PackagingError("\n".join([f"{failure} (exit status {process.returncode}):", *last]))
