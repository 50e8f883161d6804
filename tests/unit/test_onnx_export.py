"""The ONNX network against transformers' own, by ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import ResNetForImageClassification

from archive import convert, onnx_export

DIGITS = Path(__file__).parents[2] / "archive" / "digits"


# fp16's limit is the packaging gate's; fp32 differs by the order of sums alone.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
@pytest.mark.parametrize("count", [1, 5])
def test_same_logits_at_any_batch_size(tmp_path: Path, dtype: torch.dtype, limit: float, count: int) -> None:
    model = ResNetForImageClassification.from_pretrained(DIGITS).eval()
    onnx_export.export(model, tmp_path / "model.onnx", 32, dtype)
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    with torch.no_grad():
        reference = model(images).logits.numpy()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.to(dtype).numpy()})
    assert np.linalg.norm(logits - reference) <= limit * np.linalg.norm(reference)


def test_batchnorm_is_folded_and_the_types_are_half(tmp_path: Path) -> None:
    onnx_export.export(ResNetForImageClassification.from_pretrained(DIGITS), tmp_path / "model.onnx", 32)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    ends = [*graph.input, *graph.output]
    assert [value.name for value in ends] == ["images", "logits"]
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT16}


def test_without_a_gpu_the_archive_gets_the_network_and_no_plan(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    model = ResNetForImageClassification.from_pretrained(DIGITS)
    convert.stage(model, tmp_path, (1, 8), 32, "onnx", "auto")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    with pytest.raises(convert.ConvertError, match="--plan first-load"):
        convert.stage(model, tmp_path, (1, 8), 32, "onnx", "packaging")
    with pytest.raises(convert.ConvertError, match="at packaging only"):
        convert.stage(model, tmp_path, (8,), 32, "torch2trt", "first-load")
