"""Takes out of an image classifier's config.json what transformers would act on beyond building the network.

When transformers loads, it fetches a kernel from the Hub and imports it, imports a quantizer, or reads another weight
file if config.json says so. Networks are therefore built from what `without_actions` returns, and the archive holds
only that. text_configs.py does this for text encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archive.checkpoints.errors import CheckpointError

# Ways to compute the same attention. transformers chooses one when the network is loaded.
_ATTENTIONS = ("eager", "sdpa", "flex_attention", *(f"flash_attention_{version}" for version in (2, 3, 4)))
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_QUANTIZED = ("quantization_config", "compression_config")
# Other weight files, and what decides the form of the outputs but not their values.
_LEFT_OUT = (
    *_IMPLEMENTATIONS,
    *_QUANTIZED,
    "_attn_implementation_autoset",
    "experts_implementation",
    "_experts_implementation_internal",
    "transformers_weights",
    "fusion_config",
    "distributed_config",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "torchscript",
    "name_or_path",
    "_name_or_path",
    "_commit_hash",
)
# Objects whose keys are class names and indices.
_NAMES = ("id2label", "label2id", "label_names", "label_descriptions")


def without_actions(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of config.json's content without those settings, at any depth.

    Raises CheckpointError for quantized weights, and for an attention that is not one of transformers' own.
    """
    _refuse_quantized(config)
    for key in _IMPLEMENTATIONS:
        _refuse_attention(key, config.get(key))
    return {
        key: without_actions(value) if isinstance(value, Mapping) and key not in _NAMES else value
        for key, value in config.items()
        if key not in _LEFT_OUT
    }


def _refuse_quantized(config: Mapping[str, Any]) -> None:
    key = next((key for key in _QUANTIZED if config.get(key)), None)
    if key:
        held = config[key]
        method = held.get("quant_method", "unnamed") if isinstance(held, Mapping) else type(held).__name__
        raise CheckpointError(
            f"config.json has a {key} (quant_method: {method}): its weights are quantized. Wanted: the float weights "
            "that they were made from"
        )


def _refuse_attention(key: str, value: object) -> None:
    """Raise CheckpointError for code from the Hub. value: a name, or an object of a name per inner configuration."""
    for name in value.values() if isinstance(value, Mapping) else [value]:
        if name is not None and name not in _ATTENTIONS:
            raise CheckpointError(
                f"config.json asks for {key} {name!r}, which transformers would fetch and run as code of its own. "
                f"Wanted: {', '.join(_ATTENTIONS)}, or nothing. If the weights are those of plain attention, take "
                "the setting out"
            )
