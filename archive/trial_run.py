"""Load an unpacked archive as a TorchServe worker would, answer one request, and write its raw outputs into files.

archive/package.py runs this file in a process of its own, isolated (`python -I`), so that nothing but the archive and
the installed packages can be imported. It uses only what the archive carries.

    python -I trial_run.py ARCHIVE_FOLDER TASK.json OUTPUT_FOLDER

The task names the entry, the kind, the precisions and the sample files. OUTPUT_FOLDER gets `report.json` and, per
precision, `PRECISION.npy`: logits or embeddings of the samples in fp32, in order. If the network raises in a
precision, the report holds the reason instead; fp32 has to run. A printed line that begins with TERMINAL is meant for
whoever waits at the terminal; one that begins with PROGRESS says what is being done, until the next one comes.

If the GPU decodes JPEGs, the samples run as JPEGs too: `PRECISION-gpu.npy` has the outputs of those that the GPU has
decoded, and `PRECISION-cpu.npy` those of the same files decoded by the CPU.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TERMINAL = "terminal: "
PROGRESS = "progress: "
REPORT = "report.json"
PLAN_LOGGER = "handlers.engines.tensorrt"  # logs the steps of building a plan
MEASURING_LOGGER = "handlers.selection.progress"  # logs which engine is being measured
REFERENCE = "fp32"  # the precision without which nothing is served
LONGEST_REASON = 300  # characters
JPEG_QUALITY = 90  # of samples that are encoded to try the GPU's decoder, with Pillow's chroma subsampling 4:2:0


class LineHandler(logging.Handler):
    """Passes the message of each log record on to a function."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        super().__init__()
        self.print_line = print_line

    def emit(self, record: logging.LogRecord) -> None:
        self.print_line(record.getMessage())


def report_plan_builds(print_line: Callable[[str], None]) -> None:
    """Have `print_line` get what is logged while TensorRT builds a plan, which takes minutes."""
    pass_on(PLAN_LOGGER, print_line)


def pass_on(name: str, print_line: Callable[[str], None]) -> None:
    """Have `print_line` get the messages of this logger, and nobody else."""
    logger = logging.getLogger(name)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [LineHandler(print_line)]


@contextlib.contextmanager
def passing_on(name: str, print_line: Callable[[str], None]) -> Iterator[None]:
    """As pass_on, until the block ends."""
    logger = logging.getLogger(name)
    before = logger.handlers, logger.propagate, logger.level
    pass_on(name, print_line)
    try:
        yield
    finally:
        logger.handlers, logger.propagate, logger.level = before


def print_for_terminal(line: str) -> None:
    """Print a line that packaging shows at the terminal."""
    print(f"\n{TERMINAL}{line}", flush=True)


def print_progress(line: str) -> None:
    """Print what is being done."""
    print(f"\n{PROGRESS}{line}", flush=True)


class TrialContext:
    """The parts of TorchServe's context that a handler reads and writes.

    Attributes:
        statuses: the response status that the handler has set, by the request's index in the batch.
        content_type: of the request; "" is none.
    """

    def __init__(self, folder: Path, name: str, config: dict[str, Any]) -> None:
        import torch

        gpu = 0 if torch.cuda.is_available() else None
        self.model_name = name
        self.manifest: dict[str, Any] | None = None
        self.system_properties: dict[str, Any] = {"model_dir": str(folder), "gpu_id": gpu, "batch_size": 1}
        self.model_yaml_config = config
        self.metrics = None
        self.statuses: dict[int, int] = {}
        self.request_ids: dict[int, str] = {}
        self.content_type = ""

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return {"content-type": self.content_type} if self.content_type else {}

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        self.statuses[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        pass

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        pass


def main(folder: Path, task: dict[str, Any], output: Path) -> None:
    """Try every precision of the task and write outputs and report into the folder `output`."""
    print_progress("importing PyTorch and the archive's handlers")
    import numpy as np
    import yaml

    config = yaml.safe_load((folder / "model-config.yaml").read_text(encoding="utf-8"))
    # TorchServe's worker imports the entry by its base name, with the archive's root first on the path.
    entry = importlib.import_module(Path(task["entry"]).stem)
    _check_origin(folder)
    samples = [Path(name).read_bytes() for name in task["samples"]]
    report: dict[str, Any] = {"loaded": {}, "stood_in": {}, "failed": {}, "jpegs": {}}
    for number, precision in enumerate(task["precisions"], 1):
        done = f"{precision}, {number} of {len(task['precisions'])} precisions"
        print_progress(done)
        pass_on(MEASURING_LOGGER, lambda line, done=done: print_progress(f"{done}: {line}"))  # type: ignore[misc]
        try:
            handler, outputs = _try_precision(entry, folder, task, config, precision, samples, report)
        except Exception as error:
            if precision == REFERENCE:
                raise
            report["failed"][precision] = _reason(error)
            continue
        np.save(output / f"{precision}.npy", outputs.float().cpu().numpy())
        if getattr(handler, "gpu", None) is not None:  # image entries have it
            report["jpegs"][precision] = _try_jpegs(handler, samples, output / precision)
        del handler  # the next precision can have its memory
    (output / REPORT).write_text(json.dumps(report), encoding="utf-8")


def _try_precision(
    entry: Any,
    folder: Path,
    task: dict[str, Any],
    config: dict[str, Any],
    precision: str,
    samples: list[bytes],
    report: dict[str, Any],
) -> tuple[Any, Any]:
    """Return the handler and the samples' outputs in one precision.

    Adds what was loaded and the first answer to the report.
    """
    context, handler, problem = _load(entry, folder, task, config, precision)
    if problem:
        report["stood_in"][precision] = problem
    if "answer" not in report:
        # A sample text may look like JSON; it is to be read as the text itself.
        context.content_type = "text/plain" if task["kind"] == "text-encoder" else ""
        answer = handler.handle([{"body": samples[0]}], context)[0]
        report |= {"status": context.statuses[0], "answer": json.loads(answer)}
    outputs = (
        _image_logits(handler, samples) if task["kind"] == "image-classifier" else _text_outputs(handler, samples)
    )
    report["loaded"][precision] = handler.model.description
    return handler, outputs


def _reason(error: Exception) -> str:
    """Return in one line why a network does not run. The samples are packaging's own: no client's data are in it."""
    from handlers.load_errors import LoadError

    kind = "" if isinstance(error, LoadError) else f"{type(error).__name__}: "  # which names the first error itself
    return " ".join(f"{kind}{error}".split())[:LONGEST_REASON]


def _load(
    entry: Any, folder: Path, task: dict[str, Any], config: dict[str, Any], precision: str
) -> tuple[TrialContext, Any, str | None]:
    """Load a handler in this precision, with the task's engine if it can run here, else with the best that can.

    An archive for GPUs can be packaged on a machine without one, and no engine runs every precision.

    Returns:
        The context, the handler, and what kept the task's engine from running (None if it runs).
    """
    import torch

    if not torch.cuda.is_available():  # settings that need a GPU can only be tried on one
        for key in ("device", "decoder"):
            if config["handler"].get(key) in ("cuda", "gpu"):
                config["handler"][key] = "auto"
    try:
        return *_initialise(entry, folder, task, config, precision, task["engine"]), None
    except ValueError as error:
        if task["engine"] == "auto":
            raise
        problem = f"{error}."
    return *_initialise(entry, folder, task, config, precision, "auto"), problem


def _initialise(
    entry: Any, folder: Path, task: dict[str, Any], config: dict[str, Any], precision: str, engine: str
) -> tuple[TrialContext, Any]:
    config["handler"] |= {"precision": precision, "engine": engine}
    context = TrialContext(folder, task["name"], config)
    context.system_properties["parity_gate"] = True  # handlers.loading: packaging itself compares with fp32
    handler = getattr(entry, task["class"])()
    handler.initialize(context)
    return context, handler


def _image_logits(handler: Any, samples: list[bytes]) -> Any:
    """Return (N, classes) logits, with each sample as one image."""
    return handler.run([item for sample in samples for item in handler.prepare_one(sample)])


def _try_jpegs(handler: Any, samples: list[bytes], path: Path) -> dict[str, Any]:
    """Run the samples as JPEGs decoded by the GPU, as requests are, and by the CPU; write both outputs in fp32.

    Args:
        path: of the files to write, without "-gpu.npy" and "-cpu.npy".

    Returns:
        How many samples were compared, encoded for this, and left out; with "problem" if nothing could be compared.
    """
    import numpy as np

    files = {index: file for index, sample in enumerate(samples) if (file := _as_jpeg(handler, sample))}
    found: dict[str, Any] = {
        "compared": 0,
        "encoded": sum(file != samples[index] for index, file in files.items()),
        "leftOut": len(samples) - len(files),
    }
    try:
        outputs = _jpeg_outputs(handler, list(files.values())) if files else {}
    except Exception as error:
        return {**found, "problem": f"it does not run: {_reason(error)}"}
    for name, rows in outputs.items():
        np.save(path.with_name(f"{path.name}-{name}.npy"), rows.float().cpu().numpy())
        found["compared"] = len(rows)
    return found if outputs or not files else {**found, "problem": f"it decodes none of {len(files)} JPEGs"}


def _jpeg_outputs(handler: Any, files: list[bytes]) -> dict[str, Any]:
    """Return the outputs of those files that the GPU decodes, by "gpu" and "cpu"; nothing if it decodes none."""
    from handlers.images.batching import DeviceCrop

    prepared = zip(handler.prepare_all(files), files, strict=True)
    # Another file went the CPU's way, as it would in a worker.
    pairs = [(found[0], file) for found, file in prepared if isinstance(found, list) and type(found[0]) is DeviceCrop]
    if not pairs:
        return {}
    on_cpu = [handler.prepare_one(file)[0] for _, file in pairs]
    return {"gpu": handler.run([crop for crop, _ in pairs]), "cpu": handler.run(on_cpu)}


def _as_jpeg(handler: Any, sample: bytes) -> bytes | None:
    """Return the sample if the GPU takes it, else its picture as a JPEG; None if the GPU takes neither."""
    from handlers.images import formats, npy_files

    most = handler.model.settings.max_pixels
    if npy_files.is_npy(sample):
        return None
    if handler.gpu.accept(sample, most) is not None:
        return sample
    stream = io.BytesIO()
    formats.decode(sample, most).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue() if handler.gpu.accept(stream.getvalue(), most) is not None else None


def _text_outputs(handler: Any, samples: list[bytes]) -> Any:
    """Return what the task reads from the network, all samples in one batch, cut to the model's maximum."""
    import torch

    texts = [handler.read(sample, {"truncate": True}) for sample in samples]
    encoded = [handler.task.check(item) for item in handler.tokenizer.encode(texts)]
    with torch.inference_mode():
        return handler.task.compared(*handler.run(encoded), encoded)


def _check_origin(folder: Path) -> None:
    import handlers

    if Path(str(handlers.__file__)).resolve().parent.parent != folder.resolve():
        raise SystemExit(f"handlers came from {handlers.__file__}, not from the archive")


if __name__ == "__main__":
    archive, task_file, results = (Path(argument).resolve() for argument in sys.argv[1:4])
    sys.path.insert(0, str(archive))
    os.chdir(archive)
    report_plan_builds(print_for_terminal)
    main(archive, json.loads(task_file.read_text(encoding="utf-8")), results)
