"""Full-size networks with random weights, for benchmarks without a checkpoint.

They cost as much time as trained ones and know nothing. BatchNorm statistics are calibrated, because a deep ResNet's
activations overflow fp16 with the initial ones, and an overflowing network runs at another speed. Residual branches
are damped, because dozens of random ones at full strength amplify fp16's rounding beyond the parity gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertModel, ResNetConfig
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

from archive.checkpoints.image_checkpoints import ImageCheckpoint
from archive.checkpoints.text_checkpoints import TextCheckpoint
from archive.checkpoints.weight_checks import COUNTER
from handlers import LOCAL
from handlers.engines import networks
from handlers.images.batching import Batcher
from handlers.images.preparation import prepare
from handlers.images.preprocess import Preprocess
from handlers.settings import ImageSettings
from handlers.tasks.shared.pooling import Pooling

# Factor on a residual branch. 0 would be the initialisation of arXiv:1706.02677, section 5.1.
BRANCH_SCALE = 0.1


def resnet_config(preset: Mapping[str, Any]) -> ResNetConfig:
    """Return the configuration of a preset with `layers` (transformers' layer_type) and `depths`; 1,000 classes."""
    return ResNetConfig.from_dict({"layer_type": preset["layers"], "depths": preset["depths"], "num_labels": 1000})


def bert_config(preset: Mapping[str, Any]) -> BertConfig:
    """Return the configuration of a preset with `hidden_size` and `num_hidden_layers`, in BERT's proportions."""
    hidden = preset["hidden_size"]
    return BertConfig(
        hidden_size=hidden,
        num_hidden_layers=preset["num_hidden_layers"],
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )


def image_checkpoint(
    config: ResNetConfig, calibration: list[bytes], preprocess: Preprocess, seed: int = 0
) -> ImageCheckpoint:
    """Return a ResNet with random weights, whose BatchNorm statistics are those of the calibration images."""
    torch.manual_seed(seed)
    model = networks.build(config)
    for block in model.modules():
        if isinstance(block, (ResNetBasicLayer, ResNetBottleNeckLayer)):
            last: Any = block.layer[-1]
            torch.nn.init.constant_(last.normalization.weight, BRANCH_SCALE)
    calibrate(model, calibration, preprocess)
    state = {name: value for name, value in model.state_dict().items() if not name.endswith(COUNTER)}
    source = f"random weights, seed {seed}, BatchNorm calibrated on {len(calibration)} images"
    return ImageCheckpoint(config, state, preprocess, None, "random", source, Path(), "none")


@torch.no_grad()
def calibrate(model: torch.nn.Module, images: list[bytes], preprocess: Preprocess) -> None:
    """Set every BatchNorm's running statistics to those of the images (encoded files), in place."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
    batch = Batcher(preprocess, torch.device("cpu"), torch.float32)
    model.train(True)
    model(batch([crop for image in images for crop in prepare(image, preprocess, ImageSettings.max_pixels)]))
    model.train(False)


def text_checkpoint(config: BertConfig, tokenizer: Path, seed: int = 0) -> TextCheckpoint:
    """Return a BERT encoder with random weights for mean-pooled, normalised embeddings. tokenizer: its folder."""
    torch.manual_seed(seed)
    model = BertModel(config, add_pooling_layer=False).train(False)
    return TextCheckpoint(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(tokenizer, **LOCAL),
        task="embeddings",
        max_tokens=int(config.max_position_embeddings),
        pooling=Pooling(("mean",), normalize=True),
        lower_case=False,
        unused=(),
        source=f"random weights, seed {seed}",
        sha256="none",
    )
