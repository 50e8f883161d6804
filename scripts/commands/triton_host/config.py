"""config.pbtxt of a model that Triton serves.

Source: docs/user_guide/model_configuration.md in https://github.com/triton-inference-server/server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.hosts.contents import Contents
from handlers.protocol.open_inference.inputs import IMAGE, PAIR, TEXT
from handlers.protocol.open_inference.outputs import declared

KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU", "auto": "KIND_AUTO"}
PAIRED = "sequence-classification"


@dataclass(frozen=True)
class Tensor:
    """An input or output. dims: without the batch's dimension."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    is_optional: bool = False

    def text(self, *, is_input: bool) -> str:
        """Return the tensor as config.pbtxt has it."""
        datatype = "TYPE_STRING" if self.datatype == "BYTES" else f"TYPE_{self.datatype}"
        words = f'name: "{self.name}" data_type: {datatype} dims: {list(self.dims)}'
        # The Python backend gets request by request, so shapes need not agree.
        words += " allow_ragged_batch: true" if is_input and -1 in self.dims else ""
        return f"  {{ {words}{' optional: true' if self.is_optional else ''} }}"


IMAGES = (
    Tensor(IMAGE, "BYTES", (1,), True),
    Tensor("pixels", "FP32", (3, -1, -1), True),
    Tensor("pixels_fp16", "FP16", (3, -1, -1), True),
    Tensor("pixels_uint8", "UINT8", (-1, -1, 3), True),
)


def of_archive(
    listed: Contents, settings: Mapping[str, Any], name: str, *, max_waiting: int, are_edited: bool = False
) -> str:
    """Return the config of the model that runs an archive in the Python backend.

    Args:
        listed: the archive's contents.
        settings: its model-config.yaml.
        name: of the model in the repository.
        max_waiting: requests that may wait; the next one gets a 503.
        are_edited: whether the settings are others than those that were packaged.
    """
    section = settings["handler"]
    most = max(int(settings.get("batchSize") or 1), int(section.get("maxInputs") or 1))
    delay_us = round(float(settings.get("maxBatchDelay") or 0) * 1000)
    outputs = [
        Tensor(found.name, found.datatype, found.shape[1:] or (1,)) for found in declared(task_of(listed, section))
    ]
    edited = 'parameters { key: "edited_settings" value { string_value: "true" } }\n' if are_edited else ""
    return f"""\
# Written by scripts/export-triton from the archive {listed.name!r} {listed.provenance["version"]!r}; may be edited.
# A batch is counted in inputs, not in requests as TorchServe does. Triton advises against preferred_batch_size for
# models that take any batch size.
name: {json.dumps(name)}
backend: "python"
max_batch_size: {most}
{_tensors("input", inputs_of(listed, section), is_input=True)}
{_tensors("output", outputs, is_input=False)}
dynamic_batching {{
  max_queue_delay_microseconds: {delay_us}
  default_queue_policy {{ max_queue_size: {max_waiting} }}
}}
# On GPUs, the count is per GPU.
instance_group [ {{ count: {int(settings.get("maxWorkers") or 1)} kind: {KINDS[section.get("device") or "auto"]} }} ]
parameters {{ key: "archive_digest" value {{ string_value: {json.dumps(listed.digest)} }} }}
{edited}"""


def inputs_of(listed: Contents, section: Mapping[str, Any]) -> Sequence[Tensor]:
    """Return the inputs; each request brings one of an image model's, and "text_pair" with "text" alone."""
    if listed.kind == "image-classifier":
        return IMAGES
    pair = [Tensor(PAIR, "BYTES", (1,), True)] if task_of(listed, section) == PAIRED else []
    return [Tensor(TEXT, "BYTES", (1,)), *pair]


def task_of(listed: Contents, section: Mapping[str, Any]) -> str:
    """Return the task as the protocols name it."""
    task = str(section["task"])
    return f"image-{task}" if listed.kind == "image-classifier" else task


@dataclass(frozen=True)
class Plan:
    """A TensorRT plan that an archive carries, as its record says it.

    Args:
        buckets: the largest batch size of each profile, ascending.
        classes: length of the logits.
    """

    buckets: tuple[int, ...]
    image_size: int
    classes: int
    channels_last: bool
    tensorrt: str
    gpu: str
    compute_capability: str


def of_plan(plan: Plan, name: str, delay_us: int) -> str:
    """Return the config of the model that runs a TensorRT plan in Triton's own backend: pixels in, logits out."""
    size = plan.image_size
    dims = [size, size, 3] if plan.channels_last else [3, size, size]
    profiles = ", ".join(f'"{index}"' for index in range(len(plan.buckets)))
    return f"""\
# Written by scripts/export-triton from the plan's record. It was built by TensorRT {plan.tensorrt!r} for
# {plan.gpu!r} (compute capability {plan.compute_capability!r}). Triton must bring that TensorRT, on such a GPU.
# It takes normalised pixels, and gives logits without softmax. Not measured on a GPU.
name: {json.dumps(name)}
backend: "tensorrt"
default_model_filename: "model.plan"
max_batch_size: {plan.buckets[-1]}
input [ {{ name: "images" data_type: TYPE_FP16 dims: {dims} }} ]
output [ {{ name: "logits" data_type: TYPE_FP16 dims: [{plan.classes}] }} ]
dynamic_batching {{
  preferred_batch_size: {list(plan.buckets)}
  max_queue_delay_microseconds: {delay_us}
}}
instance_group [ {{ count: 1 kind: KIND_GPU profile: [ {profiles} ] }} ]
"""


def _tensors(which: str, tensors: Sequence[Tensor], *, is_input: bool) -> str:
    return f"{which} [\n" + ",\n".join(tensor.text(is_input=is_input) for tensor in tensors) + "\n]"
