"""Make one .mar: stage, archive, load it in a fresh process, compare it with fp32, and only then put it in place."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from archive import contents, digests, parity, probe

if TYPE_CHECKING:
    from archive.jobs import Job  # imports torch
    from handlers.settings import Settings

ROOT = Path(__file__).parent.parent
ENTRIES = ("image_classifier.py", "text_encoder.py")
VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "pillow", "torch-model-archiver")
OPTIONAL = (
    "triton",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "torch2trt",
    "timm",
    "torchvision",
)  # that decide what an archive holds where they are installed
GPUS = Path("/proc/driver/nvidia/gpus")  # the driver's, a folder each
CONFIG_HEADER = """\
# Written at packaging; may be edited, here or in the archive's copy, which `scripts/package verify` will tell.
# TorchServe's own keys first: batchSize requests are answered together, after at most maxBatchDelay milliseconds
# (1 or more: TorchServe takes 0 for 100).
# What the keys under `handler` mean, and what they may be, stands in handlers/settings.py.
"""


class PackagingError(ValueError):
    """The archive was refused; nothing was put in place."""


@dataclass
class Progress:
    """Numbered steps on the terminal, each with its time. told: whether the step at hand has lines of its own."""

    total: int
    done: int = 0
    told: bool = False

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        self.done, self.told = self.done + 1, False
        print(f"  [{self.done}/{self.total}] {title} ...", end="", flush=True)
        started = time.monotonic()
        try:
            yield
        except BaseException:
            print(flush=True)  # what went wrong gets a line of its own
            raise
        print("\n       " if self.told else "", f"{time.monotonic() - started:.1f} s", flush=True)

    def tell(self, text: str) -> None:
        """A line in the midst of a step."""
        self.told = True
        print(f"\n        {text}", end="", flush=True)

    def say(self, text: str) -> None:
        print(f"        {text}", flush=True)


def inputs_digest(options: Mapping[str, object], sources: Sequence[Path]) -> str:
    """A digest of everything that decides an archive's content: options, weights, this tree, versions.

    Reads files and imports nothing heavy, so that asking whether an archive is up to date is quick.
    """
    tree = sorted(path for name in ("handlers", "archive") for path in (ROOT / name).rglob("*") if _is_source(path))
    files = [path for source in sources for path in (sorted(source.rglob("*")) if source.is_dir() else [source])]
    record = {
        "options": dict(options),
        "tree": {str(path.relative_to(ROOT)): digests.of_files(path) for path in tree},
        "sources": [(path.name, digests.of_files(path)) for path in files if path.is_file()],
        "versions": versions(),
        "machine": machine(),
    }
    return f"sha256:{digests.of_text(json.dumps(record, sort_keys=True, default=str))}"


def up_to_date(mar: Path, inputs: str) -> str | None:
    """The content digest of the archive that these inputs gave, where it is there; else None."""
    try:
        provenance = contents.read_provenance(mar)
    except contents.ArchiveError:  # of none, and of one that is damaged: packaging replaces it
        return None
    return str(provenance["digest"]) if provenance.get("inputs") == inputs else None


def versions() -> dict[str, str]:
    """Versions of what an archive is made with."""
    return {name: importlib.metadata.version(name) for name in VERSIONS}


def machine() -> dict[str, object]:
    """What of this machine decides what is made and checked here: packages that need not be there, and GPUs."""
    installed = {name: _version(name) for name in OPTIONAL if importlib.util.find_spec(name)}
    models = {
        line.partition(":")[2].strip()
        for path in GPUS.glob("*/information")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("Model:")
    }
    return {"packages": installed, "gpus": sorted(models)}


def _version(package: str) -> str:
    """Of what can be imported; of a checkout that says none, a word for that."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def build(job: Job, export_path: Path, inputs: str, options: Mapping[str, object]) -> Path:
    """Make `export_path/NAME.mar`, replacing one of the same name in a single step.

    Raises PackagingError where the archive does not load, does not answer, or misses parity.
    """
    progress = Progress(total=5)
    probe.tell_of_plans(progress.tell)
    export_path = export_path.absolute()  # the probe changes its directory
    export_path.mkdir(parents=True, exist_ok=True)
    # On the same file system as the model store, so that the last step is one rename.
    with tempfile.TemporaryDirectory(prefix=".packaging-", dir=export_path) as private:
        work = Path(private)
        with progress.step("staging weights and handlers"):
            _stage(job, work / "stage")
        with progress.step("archiving with torch-model-archiver"):
            mar = _archive(job, work)
        samples = _write_samples(job, work / "samples")
        with progress.step(f"loading it in a fresh process, {len(samples)} samples in {', '.join(job.precisions)}"):
            _unpack(mar, work / "unpacked")
            report = _probe(job, work, samples, progress.tell)
        with progress.step("comparing with the fp32 reference"):
            figures = _gate(job, work, report)
        for precision, verdict in figures.items():
            progress.say(f"{precision} {verdict}" + (f" ({verdict.engine})" if verdict.engine else ""))
        _refuse_failures(job, figures)
        notes = [*job.notes, *_stood_in(job, figures, report["stood_in"])]
        engines = {precision: described["engine"] for precision, described in report["measured"].items()}
        with progress.step("putting it in place"):
            _add_reference(job, mar, work)
            files = contents.file_digests(mar)
            _add_provenance(mar, {**_provenance(job, files, figures, notes, inputs, options), "engines": engines})
            contents.verify(mar)
            target = export_path / mar.name
            mar.replace(target)
    for note in notes:
        progress.say(f"note: {note}")
    return target


def _stage(job: Job, stage: Path) -> None:
    """What the archive's root will hold, entry and model-config.yaml aside."""
    stage.mkdir()
    job.stage(stage)
    _refuse_unfit(job, stage)
    _drop_local_paths(stage)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", *ENTRIES)
    shutil.copytree(ROOT / "handlers", stage / "handlers", ignore=ignored)
    text = CONFIG_HEADER + yaml.safe_dump(job.config, sort_keys=False)
    (stage.parent / "model-config.yaml").write_text(text, encoding="utf-8")


def _refuse_unfit(job: Job, stage: Path) -> None:
    """Raises PackagingError for an engine that would run this archive on no machine."""
    import torch

    from handlers import engines, loading

    asked = job.settings
    precision = _main_precision(asked)
    spec = loading.engine_spec(job.kind, stage, torch.device("cpu"), precision, asked, 1)
    engine = "fused" if (asked.engine, precision) == ("auto", "fp8") else asked.engine  # the only one that knows fp8
    why = None if engine == "auto" else engines.get(engine).why_never(spec)
    if why is None and asked.device == "cpu" and asked.engine != "auto":
        why = engines.get(engine).why_not_here(spec)
    if why:
        option = "--precision" if precision == "fp8" else "--engine"
        raise PackagingError(f"engine {engine} runs this on no machine: {why}; {option} auto takes one that can")


def _main_precision(asked: Settings) -> str:
    """The precision that is to serve; for "auto" the one that matters most to the engine."""
    if asked.precision != "auto":
        return asked.precision
    return "fp32" if asked.engine == "onnxruntime" else "fp16"


def _drop_local_paths(stage: Path) -> None:
    """Where the checkpoint lay on this machine is nobody's business, and would change the digest."""
    for name in ("config.json", "tokenizer_config.json"):
        path = stage / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: value for key, value in content.items() if key not in ("_name_or_path", "name_or_path")}
            path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _archive(job: Job, work: Path) -> Path:
    private_tmp = work / "tmp"  # the archiver deletes $TMPDIR/NAME
    private_tmp.mkdir()
    entry, _ = job.entry
    command = [
        *(sys.executable, "-c", "from model_archiver.model_packaging import generate_model_archive as g; g()"),
        *("--model-name", job.name, "--version", job.version, "--handler", str(ROOT / "handlers" / entry)),
        *("--extra-files", str(work / "stage"), "--config-file", str(work / "model-config.yaml")),
        *("--archive-format", "zip-store", "--runtime", "python", "--export-path", str(work)),
    ]
    _run(command, "torch-model-archiver failed", env={**os.environ, "TMPDIR": str(private_tmp)})
    return work / f"{job.name}.mar"


def _unpack(mar: Path, folder: Path) -> None:
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(folder)


def _write_samples(job: Job, folder: Path) -> list[Path]:
    folder.mkdir()
    paths = []
    for place, sample in enumerate(job.samples()):
        paths.append(folder / f"{place:05d}")
        paths[-1].write_bytes(sample)
    return paths


def _probe(job: Job, work: Path, samples: Sequence[Path], tell: Callable[[str], None]) -> dict[str, Any]:
    entry, class_name = job.entry
    task = {
        "name": job.name,
        "kind": job.kind,
        "entry": entry,
        "class": class_name,
        "precisions": job.precisions,
        "engine": job.settings.engine,
        "samples": [str(path) for path in samples],
    }
    (work / "job.json").write_text(json.dumps(task), encoding="utf-8")
    (work / "outputs").mkdir()
    command = [
        sys.executable,
        "-Iu",
        str(Path(__file__).parent / "probe.py"),
        str(work / "unpacked"),
        str(work / "job.json"),
        str(work / "outputs"),
    ]
    _run(command, "the archive does not load and answer in a fresh process", tell=tell)
    report: dict[str, Any] = json.loads((work / "outputs" / "answer.json").read_text(encoding="utf-8"))
    if report["status"] != 200:
        raise PackagingError(f"the archive answered its first request with {report['status']}: {report['answer']}")
    return report


def _gate(job: Job, work: Path, report: Mapping[str, Any]) -> dict[str, parity.Figures]:
    import numpy as np

    reference = job.reference([path.read_bytes() for path in sorted((work / "samples").iterdir())])
    measured, figures = report["measured"], {}
    for precision in job.precisions:
        if precision in report["failed"]:
            figures[precision] = parity.raised(report["failed"][precision], len(reference))
            continue
        outputs = np.load(work / "outputs" / f"{precision}.npy")
        device, engine = measured[precision]["device"]["name"], measured[precision]["engine"]["name"]
        verdict = parity.compare(outputs, reference, precision, job.embeddings, device)
        figures[precision] = dataclasses.replace(verdict, engine=engine)
    return figures


def _refuse_failures(job: Job, figures: Mapping[str, parity.Figures]) -> None:
    """fp32 has to pass, and the precision that was asked for; "auto" leaves out what fails, openly."""
    needed = {"fp32", job.settings.precision} - {"auto"}
    failed = [f"{precision} {figures[precision]}" for precision in sorted(needed) if not figures[precision].passed]
    if failed:
        raise PackagingError(
            f"{job.name} misses parity with its fp32 reference: {'; '.join(failed)}. Nothing was put in place. "
            "--precision auto serves the fastest precision that passes; --parity-data takes samples of your own"
        )


def _stood_in(job: Job, figures: Mapping[str, parity.Figures], reasons: Mapping[str, str]) -> list[str]:
    """Notes, where what was asked for by name is not what the parity gate has seen. reasons: by precision."""
    asked = job.settings
    precision = _main_precision(asked)
    seen, said = figures[precision], []
    if precision in reasons and seen.engine:
        said.append(f"{reasons[precision]} Here {seen.engine} stood in for it at the parity gate")
    if precision == "fp8" and seen.device.startswith("cpu"):
        said.append("fp8 was emulated at the parity gate; a GPU sums its products, and rounds GELU, less exactly")
    if asked.device == "cuda" and seen.device.startswith("cpu"):
        said.append("device cuda is not here; the parity gate ran on the CPU")
    return [f"{note}. Packaging where it can run checks what will serve" for note in said]


def _provenance(
    job: Job,
    files: Mapping[str, str],
    figures: Mapping[str, parity.Figures],
    notes: Sequence[str],
    inputs: str,
    options: Mapping[str, object],
) -> dict[str, object]:
    return {
        "format": 1,
        "name": job.name,
        "version": job.version,
        "kind": job.kind,
        "entry": job.entry[0],
        "digest": contents.content_digest(job.name, job.version, files),
        "weights": dict(job.weights),
        "notes": list(notes),
        "parity": {precision: verdict.as_dict() for precision, verdict in figures.items()},
        "versions": {"python": sys.version.split()[0], **versions()},
        "options": dict(options),
        "inputs": inputs,
        "files": dict(files),
    }


def _add_reference(job: Job, mar: Path, work: Path) -> None:
    """What the worker compares its engine with: of samples that have passed the gate."""
    from archive import references  # imports torch

    references.write(job, work)
    with zipfile.ZipFile(mar, "a") as archive:
        archive.write(work / contents.REFERENCE, contents.REFERENCE)


def _add_provenance(mar: Path, provenance: Mapping[str, object]) -> None:
    with zipfile.ZipFile(mar, "a") as archive:
        sealed = {**provenance, "seal": contents.seal(provenance)}
        text = json.dumps(sealed, indent=2, ensure_ascii=False, default=str)
        archive.writestr(contents.PROVENANCE, text + "\n")


def _run(
    command: Sequence[str],
    failure: str,
    env: Mapping[str, str] | None = None,
    tell: Callable[[str], None] | None = None,
) -> None:
    """tell: gets the lines that the probe means for the terminal."""
    last: deque[str] = deque(maxlen=15)
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=env, **pipes) as process:
        for line in process.stdout or ():
            if tell and line.startswith(probe.TOLD):
                tell(line.removeprefix(probe.TOLD).rstrip())
            elif line.strip():
                last.append(line.rstrip())
    if process.returncode:
        raise PackagingError("\n".join([f"{failure} (exit status {process.returncode}):", *last]))


def _is_source(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    return path.is_file() and path.suffix != ".pyc" and not hidden
