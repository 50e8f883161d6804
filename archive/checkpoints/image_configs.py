"""What a checkpoint's config.json asks of transformers beyond its network: left out where harmless, else refused.

transformers obeys such settings when it loads: it fetches a kernel from the Hub and imports it, imports a quantizer,
or reads another weight file. So a network is built from what `plain` gives, and the archive holds only that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archive.checkpoints.errors import CheckpointError

# Ways to compute one and the same attention; transformers chooses among them where the network is loaded.
_ATTENTIONS = ("eager", "sdpa", "flex_attention", *(f"flash_attention_{version}" for version in (2, 3, 4)))
_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_QUANTIZED = ("quantization_config", "compression_config")
# Other weight files, and what decides the form of the outputs, not their values.
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
# Objects whose keys are people's own words.
_NAMES = ("id2label", "label2id", "label_names", "label_descriptions")


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of config.json's content without such settings, in configurations inside it too.

    Raises CheckpointError for quantized weights, and for an attention that is none of transformers' own.
    """
    _refuse_quantized(config)
    for key in _IMPLEMENTATIONS:
        _refuse_attention(key, config.get(key))
    return {
        key: plain(value) if isinstance(value, Mapping) and key not in _NAMES else value
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
    """value: a name, or a name for each configuration inside."""
    for name in value.values() if isinstance(value, Mapping) else [value]:
        if name is not None and name not in _ATTENTIONS:
            raise CheckpointError(
                f"config.json asks for {key} {name!r}, which transformers would fetch and run as code of its own. "
                f"Wanted: {', '.join(_ATTENTIONS)}, or nothing; where the weights are of plain attention, take the "
                "setting out"
            )
