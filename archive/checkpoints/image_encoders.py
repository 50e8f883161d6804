"""Image encoders: networks of transformers whose pooled features are embeddings (DINOv2, ViT, CLIP, SigLIP, ...).

A model with two towers (CLIP, SigLIP) gives its image tower; the text tower is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_MAPPING

from archive.checkpoints import image_processors, other_classifiers
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.image_checkpoints import ImageCheckpoint
from archive.checkpoints.image_configs import without_actions
from archive.checkpoints.json_files import read_json, refuse_custom_code
from archive.checkpoints.locations import locate, weight_file
from archive.checkpoints.weight_files import load_tensors, sha256
from handlers.engines.image_inputs import outputs
from handlers.images.preprocess import Preprocess

# By model_type of both towers: the class of the image tower.
TOWERS = {
    "clip": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
}
PROJECTION = "visual_projection.weight"


def read(source: str | Path, revision: str | None = None) -> ImageCheckpoint:
    """Read an image encoder from a Hugging Face folder or the Hub.

    Args:
        source: a folder with config.json, weights and preprocessor_config.json, or a Hub id.
        revision: branch, tag or commit; for a Hub id only.

    Returns:
        The checkpoint; its config names the network's class as its architecture. It has no labels.

    Raises CheckpointError for whatever cannot be read or served, by the checkpoint's own names.
    """
    try:
        folder = locate(source, revision)
        if not folder.is_dir():
            raise CheckpointError("an image encoder needs its folder: config.json, weights, preprocessor_config.json")
        weights = weight_file(folder)
        content = read_json(folder / "config.json")
        refuse_custom_code(content, "config.json")
        tensors, _ = load_tensors(weights)
        config, network_class = _architecture(without_actions(content), tensors)
        config.architectures = [network_class.__name__]
        preprocess = other_classifiers.preprocess_of(folder, content)
        model, notes = other_classifiers.load_network(tensors, config, network_class, "an image encoder")
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{source}: {error}") from error
    return ImageCheckpoint(
        config=model.config,
        state=model.state_dict(),
        preprocess=preprocess,
        labels=None,
        layout="huggingface",
        source=str(source),
        weights=weights,
        sha256=sha256(weights),
        notes=notes,
    )


@torch.inference_mode()
def features(network: Any, folder: Path, preprocess: Preprocess) -> int:
    """Numbers of an embedding, by a run on a blank image. Raises CheckpointError if the network does not take it.

    Args:
        network: in eval mode, fp32 on the CPU.
        folder: of the checkpoint.
        preprocess: the archive's.
    """
    if preprocess.processor:
        return int(outputs(network, image_processors.example(folder, preprocess)).shape[1])
    height, width = preprocess.shape
    images = torch.zeros(1, 3, height, width)
    what = f"an image of {width} x {height} pixels, which its preprocessing makes"
    image_processors.refuse_inputs(network, images, what)
    return int(outputs(network, images).shape[1])


def _architecture(content: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> tuple[Any, Any]:
    """The configuration and transformers' class of the network. Raises CheckpointError if there is none."""
    kind = str(content.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise CheckpointError(f"config.json says model_type {content.get('model_type')!r}, which transformers lacks")
    try:
        config = CONFIG_MAPPING[kind].from_dict(dict(content))
    except Exception as error:  # strict dataclasses raise their own errors besides ValueError and TypeError
        raise CheckpointError(f"config.json does not describe a {kind} ({error})") from error
    if kind in TOWERS:
        vision = config.vision_config
        if kind == "clip":
            vision.projection_dim = config.projection_dim
        return vision, getattr(transformers, TOWERS[kind])
    if kind == "clip_vision_model" and PROJECTION in tensors:
        return config, transformers.CLIPVisionModelWithProjection
    found: Any = MODEL_MAPPING.get(type(config), None)
    network_class = found[0] if isinstance(found, tuple) else found
    if network_class is None or getattr(network_class, "main_input_name", "") != "pixel_values":
        raise CheckpointError(
            f"model_type {kind!r} is no image encoder of transformers. Wanted: ViT, DINOv2, CLIP, SigLIP or another "
            "whose AutoModel takes pixel_values and gives a pooler_output"
        )
    return config, network_class
