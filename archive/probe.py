"""Load an unpacked archive as a TorchServe worker would, answer one request, and hand out its raw outputs.

Run by archive/package.py in a process of its own, isolated (`python -I`), so that nothing but the archive and
the installed packages can be imported. Uses only what the archive carries.

    python -I probe.py ARCHIVE_FOLDER JOB.json OUTPUT_FOLDER

The job names the entry, the kind, the precisions and the sample files; OUTPUT_FOLDER gets `answer.json` and one
`PRECISION.npy` each, fp32: logits or embeddings of the samples, in order. A precision in which the network raises has
its reason in `answer.json` instead; fp32 has to run. What is printed behind TOLD is for whoever waits at the
terminal.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOLD = "told: "
PLANS = "handlers.engines.tensorrt"  # the logger of plans' builds
REFERENCE = "fp32"  # the precision without which nothing is served
LONGEST_REASON = 300


class Teller(logging.Handler):
    """Log records as lines for a person."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(record.getMessage())


def tell_of_plans(tell: Callable[[str], None]) -> None:
    """Have `tell` get what TensorRT's build says of itself: it takes minutes."""
    teller = logging.getLogger(PLANS)
    teller.setLevel(logging.INFO)
    teller.propagate = False
    teller.handlers = [Teller(tell)]


def send(line: str) -> None:
    """To the terminal, by way of packaging."""
    print(f"\n{TOLD}{line}", flush=True)


class ProbeContext:
    """The parts of TorchServe's context that a handler reads."""

    def __init__(self, folder: Path, name: str, config: dict[str, Any]) -> None:
        import torch

        gpu = 0 if torch.cuda.is_available() else None
        self.model_name = name
        self.manifest: dict[str, Any] | None = None
        self.system_properties: dict[str, Any] = {"model_dir": str(folder), "gpu_id": gpu, "batch_size": 1}
        self.model_yaml_config = config
        self.metrics = None
        self.statuses: dict[int, int] = {}
        self.request_ids: dict[int, str] = {0: "probe"}
        self.content_type = ""

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return {"content-type": self.content_type} if self.content_type else {}

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        self.statuses[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        pass

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        pass


def main(folder: Path, job: dict[str, Any], output: Path) -> None:
    """Probe every precision of the job."""
    import numpy as np
    import yaml

    config = yaml.safe_load((folder / "model-config.yaml").read_text(encoding="utf-8"))
    # TorchServe's worker imports the entry by its base name, with the archive's root first on the path.
    entry = importlib.import_module(Path(job["entry"]).stem)
    _check_origin(folder)
    samples = [Path(name).read_bytes() for name in job["samples"]]
    report: dict[str, Any] = {"measured": {}, "stood_in": {}, "failed": {}}
    for precision in job["precisions"]:
        try:
            outputs = _measure(entry, folder, job, config, precision, samples, report)
        except Exception as error:
            if precision == REFERENCE:
                raise
            report["failed"][precision] = _reason(error)
        else:
            np.save(output / f"{precision}.npy", outputs.float().cpu().numpy())
    (output / "answer.json").write_text(json.dumps(report), encoding="utf-8")


def _measure(
    entry: Any,
    folder: Path,
    job: dict[str, Any],
    config: dict[str, Any],
    precision: str,
    samples: list[bytes],
    report: dict[str, Any],
) -> Any:
    """The samples' outputs in one precision; the report gets what was loaded, and the answer to the first request."""
    context, handler, problem = _load(entry, folder, job, config, precision)
    if problem:
        report["stood_in"][precision] = problem
    if "answer" not in report:
        # A sample text may look like JSON, and is the text itself.
        context.content_type = "text/plain" if job["kind"] == "text-encoder" else ""
        answer = handler.handle([{"body": samples[0]}], context)[0]
        report |= {"status": context.statuses[0], "answer": json.loads(answer)}
    outputs = _image_logits(handler, samples) if job["kind"] == "image-classifier" else _texts(handler, samples)
    report["measured"][precision] = handler.model.description
    return outputs


def _reason(error: Exception) -> str:
    """Why a network does not run, in one line: its samples are packaging's own, so nothing of a client is in it."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]


def _load(
    entry: Any, folder: Path, job: dict[str, Any], config: dict[str, Any], precision: str
) -> tuple[ProbeContext, Any, str | None]:
    """A handler in this precision, with the job's engine where that can run it here, else with the best that can.

    An archive for GPUs can be packaged where there is none, and no engine runs every precision; the report says which
    engine ran, where, and what kept the job's from running.
    """
    import torch

    if not torch.cuda.is_available():  # what is asked of a GPU can only be tried on one
        for key in ("device", "decoder"):
            if config["handler"].get(key) in ("cuda", "gpu"):
                config["handler"][key] = "auto"
    try:
        return *_initialise(entry, folder, job, config, precision, job["engine"]), None
    except ValueError as error:
        if job["engine"] == "auto":
            raise
        problem = f"{error}."
    return *_initialise(entry, folder, job, config, precision, "auto"), problem


def _initialise(
    entry: Any, folder: Path, job: dict[str, Any], config: dict[str, Any], precision: str, engine: str
) -> tuple[ProbeContext, Any]:
    config["handler"] |= {"precision": precision, "engine": engine}
    context = ProbeContext(folder, job["name"], config)
    context.system_properties["parity_gate"] = True  # handlers.loading: the comparison with fp32 is left to packaging
    handler = getattr(entry, job["class"])()
    handler.initialize(context)
    return context, handler


def _image_logits(handler: Any, samples: list[bytes]) -> Any:
    """(N, classes), each sample as one image."""
    return handler.run([item for sample in samples for item in handler.prepare_one(sample)])


def _texts(handler: Any, samples: list[bytes]) -> Any:
    """What the task reads from the network, all samples packed into one batch, truncated to the model's maximum."""
    import torch

    texts = [handler.read(sample, {"truncate": True}) for sample in samples]
    encoded = [handler.task.check(item) for item in handler.tokenizer.encode(texts)]
    with torch.inference_mode():
        return handler.task.comparable(*handler.run(encoded))


def _check_origin(folder: Path) -> None:
    import handlers

    if Path(str(handlers.__file__)).resolve().parent.parent != folder.resolve():
        raise SystemExit(f"handlers came from {handlers.__file__}, not from the archive")


if __name__ == "__main__":
    archive, job_file, results = (Path(argument).resolve() for argument in sys.argv[1:4])
    sys.path.insert(0, str(archive))
    os.chdir(archive)
    tell_of_plans(send)
    main(archive, json.loads(job_file.read_text(encoding="utf-8")), results)
