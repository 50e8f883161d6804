"""Image encoders and networks of several inputs on a GPU, in half precision, against fp32 on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import Dinov2Config, Dinov2Model, Siglip2VisionConfig, Siglip2VisionModel

from handlers.engines import EngineSpec, image_inputs, torch_eager

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
SMALL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def spec_of(folder: Path, image_size: int, precision: str) -> EngineSpec:
    cuda = torch.device("cuda", 0)
    return EngineSpec("image-classifier", folder, cuda, precision, task="embeddings", image_size=image_size)


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.9999), ("bf16", 0.999)])
@torch.inference_mode()
def test_pooled_features(tmp_path: Path, precision: str, least: float) -> None:
    torch.manual_seed(0)
    network = Dinov2Model(Dinov2Config(**SMALL, image_size=32, patch_size=8, mlp_ratio=2)).eval()
    network.save_pretrained(tmp_path)
    spec = spec_of(tmp_path, 32, precision)
    images = torch.randn(5, 3, 32, 32)
    found = torch_eager.ENGINE.load(spec).run(image_inputs.placed(images, spec.device, spec.dtype))
    wanted = image_inputs.outputs(network, images)
    assert F.cosine_similarity(found.float().cpu(), wanted).min() >= least


@torch.inference_mode()
def test_patches_with_their_mask_and_shape(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Siglip2VisionConfig(**SMALL, intermediate_size=96, patch_size=4, num_patches=16)
    network = Siglip2VisionModel(config).eval()
    network.save_pretrained(tmp_path)
    spec = spec_of(tmp_path, 0, "fp16")
    mask = torch.ones(2, 16, dtype=torch.int32)
    mask[1, 12:] = 0
    inputs = {
        "pixel_values": torch.randn(2, 16, 48),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[4, 4], [3, 4]]),
    }
    found = torch_eager.ENGINE.load(spec).run(image_inputs.placed(inputs, spec.device, spec.dtype))
    wanted = image_inputs.outputs(network, inputs)
    assert F.cosine_similarity(found.float().cpu(), wanted).min() >= 0.9999
