"""Turns config.json of a text encoder into a configuration of transformers that fetches and imports nothing.

transformers acts on some keys: it loads kernels from the Hub, quantises, or reads other files. Each of those keys is
dropped here if it changes no number, and refused by name otherwise. image_configs.py does this for image classifiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from archive.checkpoints.errors import CheckpointError, explain_failure
from archive.checkpoints.json_files import custom_code_message, read_json

FILE = "config.json"
# They decide how fast something is computed, or where it comes from, but not what. Packaging and loading choose it.
DROPPED = (
    *("attn_implementation", "experts_implementation", "use_kernels", "kernel_config", "dtype", "torch_dtype"),
    *(
        "name_or_path",
        "auto_map",
        "tp_plan",
        "device_map",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    ),
)
WANTED_FLOATS = "Wanted: the checkpoint that it was made from, with weights in float32, float16 or bfloat16"
REFUSED = {
    "quantization_config": f"its weights are quantised, which is not served. {WANTED_FLOATS}",
    "compression_config": f"its weights are compressed, which is not served. {WANTED_FLOATS}",
    "configuration_files": "it points to another file. Wanted: the configuration itself",
    "transformers_weights": "it points to another file of weights. Wanted: the weights as model.safetensors",
    "fusion_config": "it has transformers change the network. Take the key out",
    "add_cross_attention": "cross-attention is not served",
}
# Keys with which a folder's own code chose another network. transformers' own class ignores them and builds the plain
# one. A key is fine with these values, and if transformers' configuration of the model_type declares it.
PLAIN: dict[str, tuple[object, ...]] = {
    "position_embedding_type": ("absolute",),
    "feed_forward_type": ("original",),
    "alibi": (False,),
    "use_alibi": (False,),
    "use_rms_norm": (False,),
    "parallel_block": (False,),
    "prenorm": (False,),
}
# nomic_bert's keys: the name in its authors' code -> the name in transformers.
NOMIC = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps",
}
NOMIC_PLAIN: dict[str, tuple[object, ...]] = {
    "activation_function": ("swiglu",),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "causal": (False,),
    "rotary_emb_fraction": (1, 1.0),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "rotary_scaling_factor": (None,),
    "scale_attn_weights": (True,),
}


def read(folder: Path) -> dict[str, Any]:
    """Return config.json's content. Raises CheckpointError if it is missing, no JSON object, or cannot be served."""
    if not (folder / FILE).is_file():
        raise CheckpointError(
            f"the folder has no {FILE}; a text encoder needs its folder as save_pretrained writes it: {FILE}, "
            "model.safetensors, and its tokenizer's files"
        )
    content: dict[str, Any] = read_json(folder / FILE)
    for key, reason in REFUSED.items():
        if content.get(key):
            raise CheckpointError(f"{FILE} says {key}: {reason}")
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            "the folder has an adapter_config.json: weights of an adapter, which is loaded over another checkpoint "
            "(PEFT). Merge it first: model.merge_and_unload().save_pretrained(FOLDER)"
        )
    return content


def build(content: Mapping[str, Any]) -> Any:
    """Return transformers' configuration for config.json's content, without the keys that transformers acts on.

    Raises CheckpointError for a model_type that transformers lacks or that is no encoder, and for wrong values.
    """
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{FILE} says model_type {kind!r}, which transformers {transformers.__version__} does not know. Wanted: "
            f"the model_type of an encoder that it has: bert, roberta, ...{_own_code(content)}"
        )
    if content.get("is_decoder") or content.get("is_encoder_decoder"):
        raise CheckpointError(f"the {kind} model is a decoder; this serves encoders")
    config_class: Any = CONFIG_MAPPING[kind]
    if config_class not in MODEL_FOR_MASKED_LM_MAPPING:
        raise CheckpointError(
            f"the {kind} model has no masked-language-model form: a decoder, or no text encoder of the BERT family"
        )
    served = _without_actions(_renamed(content) if kind == "nomic_bert" else content)
    _refuse_other_networks(served, config_class)
    with explain_failure(
        f"{FILE} does not describe a {kind} model", "Wanted: the file as transformers' save_pretrained wrote it"
    ):
        return config_class.from_dict(served)


def refuse_foreign_code(content: Mapping[str, Any], config: Any, auto_class: str, own_class: str) -> None:
    """Raise CheckpointError for an auto_map, unless transformers itself has its classes under the same names.

    The folder's code is not run in either case. Code with other names may compute something else.

    Args:
        content: of config.json.
        config: transformers' configuration for it.
        auto_class: "AutoModel", or the class that the task is loaded by.
        own_class: transformers' own class for the task.
    """
    named = content.get("auto_map")
    if not named:
        return
    wanted = {"AutoConfig": type(config).__name__, auto_class: own_class}
    known = isinstance(named, Mapping) and auto_class in named
    if not known or any(str(named.get(key, name)).rpartition(".")[2] != name for key, name in wanted.items()):
        raise CheckpointError(custom_code_message(named, FILE))


def _own_code(content: Mapping[str, Any]) -> str:
    return f". {custom_code_message(content['auto_map'], FILE)}" if content.get("auto_map") else ""


def _without_actions(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy without DROPPED and private attributes, at any depth. transformers would set them all."""
    return {
        key: _without_actions(value) if isinstance(value, dict) and key not in ("id2label", "label2id") else value
        for key, value in content.items()
        if key not in DROPPED and not key.startswith("_")
    }


def _refuse_other_networks(content: Mapping[str, Any], config_class: Any) -> None:
    plain = {**PLAIN, **NOMIC_PLAIN} if content.get("model_type") == "nomic_bert" else PLAIN
    declared = config_class.__dataclass_fields__
    for key, values in plain.items():
        if key in content and key not in declared and content[key] is not None and content[key] not in values:
            raise CheckpointError(
                f"{FILE} says {key} {content[key]!r}, which transformers {transformers.__version__} ignores "
                f"for model_type {content['model_type']!r}: it would compute another network. Served: "
                f"{', '.join(map(repr, values))}"
            )


def _renamed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with nomic_bert's keys under transformers' names, unless those are there already."""
    renamed = {NOMIC.get(key, key): value for key, value in content.items() if NOMIC.get(key, key) not in content}
    kept = {**renamed, **{key: value for key, value in content.items() if key not in NOMIC}}
    base = kept.pop("rotary_emb_base", None)
    if base is not None and "rope_parameters" not in kept:
        kept["rope_parameters"] = {"rope_type": "default", "rope_theta": float(base)}
    return kept
