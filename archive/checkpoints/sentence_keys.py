"""Knows every key of sentence-transformers' small files: used, without effect here, or refused by name.

Source: sentence-transformers 6.2, base/modules/{transformer,dense,normalize}.py, base/model.py and
sentence_transformer/modules/{pooling,layer_norm,dropout}.py. A key that is not here is refused: it may change
embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from archive.checkpoints.errors import CheckpointError

Check = Callable[[Any], bool]
Keys = Mapping[str, Check]


def anything(_: object) -> bool:
    """Accept every value: it is used elsewhere, or has no effect on what is served."""
    return True


def nothing(value: object) -> bool:
    """Accept empty values only."""
    return value is None or value == {} or value == []


def one_of(*values: object) -> Check:
    """Return a check that accepts these values only, and null."""
    return lambda value: value is None or any(value is known or value == known for known in values)


def whole(value: object) -> bool:
    """Accept whole numbers above 0, and null."""
    return value is None or (type(value) is int and value > 0)


def flag(value: object) -> bool:
    """Accept true, false and null."""
    return value is None or isinstance(value, bool)


def _modalities(value: object) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"text"} and value["text"] in _TEXT_FORMS


_TEXT_FORMS = tuple(
    {"method": "forward", "method_output_name": name} for name in ("last_hidden_state", "token_embeddings", "logits")
)
_TEXT_CALL: Keys = {
    "max_length": whole,
    "add_special_tokens": flag,
    "truncation": one_of(True, "longest_first", "only_first"),
    "split_special_tokens": one_of(False),
    "is_split_into_words": one_of(False),
    "return_attention_mask": one_of(True),
    "return_overflowing_tokens": one_of(False),
    "return_tensors": anything,
    "return_length": anything,
    "verbose": anything,
    # Each text runs without padding, and a single text has only zeros for token types.
    "padding": anything,
    "padding_side": anything,
    "pad_to_multiple_of": anything,
    "return_token_type_ids": anything,
    "stride": anything,
    "logits_to_keep": anything,
}
_TOKENIZER: Keys = {
    "model_max_length": whole,
    **dict.fromkeys(("do_lower_case", "strip_accents", "add_prefix_space", "tokenize_chinese_chars"), flag),
    "truncation_side": one_of("left", "right"),
    **dict.fromkeys(("padding_side", "use_fast", "trust_remote_code", "clean_up_tokenization_spaces"), anything),
}
_MODEL: Keys = dict.fromkeys(
    # How and where weights are held. Packaging and loading choose precision, device and attention.
    (
        *("torch_dtype", "dtype", "attn_implementation", "trust_remote_code", "device_map", "low_cpu_mem_usage"),
        *("add_pooling_layer", "use_safetensors", "provider", "file_name", "export"),
    ),
    anything,
)
_CONFIG: Keys = dict.fromkeys(("trust_remote_code", "use_cache", "attn_implementation"), anything)
_PROCESSING: Keys = {
    **dict.fromkeys(("text", "common"), anything),  # NESTED has their keys
    **dict.fromkeys(("audio", "image", "video", "chat_template"), anything),  # not for texts
}

TRANSFORMER: Keys = {
    "max_seq_length": whole,
    "do_lower_case": flag,
    "transformer_task": one_of("feature-extraction", "sequence-classification"),
    "modality_config": _modalities,
    "module_output_name": one_of("token_embeddings", "scores"),
    "unpad_inputs": anything,
    **dict.fromkeys(("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"), nothing),
    **dict.fromkeys(("processing_kwargs", "tokenizer_args", "processor_kwargs"), anything),
    **dict.fromkeys(("model_args", "model_kwargs", "config_args", "config_kwargs"), anything),
}
NESTED: Mapping[str, Keys] = {
    "processing_kwargs": _PROCESSING,
    "processing_kwargs.text": _TEXT_CALL,
    "processing_kwargs.common": _TEXT_CALL,
    "tokenizer_args": _TOKENIZER,
    "processor_kwargs": _TOKENIZER,
    "model_args": _MODEL,
    "model_kwargs": _MODEL,
    "config_args": _CONFIG,
    "config_kwargs": _CONFIG,
}
POOLING: Keys = {
    **dict.fromkeys(("word_embedding_dimension", "embedding_dimension"), whole),
    **dict.fromkeys(
        (
            *("pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_tokens"),
            *("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"),
        ),
        flag,
    ),
    "pooling_mode": anything,  # checked where it is read
    "include_prompt": flag,
}
DENSE: Keys = {
    **dict.fromkeys(("in_features", "out_features"), whole),
    **dict.fromkeys(("bias", "use_residual"), flag),
    "activation_function": anything,  # checked where it is read
    **dict.fromkeys(("module_input_name", "module_output_name"), one_of("sentence_embedding")),
}
LAYER_NORM: Keys = {"dimension": whole}
DROPOUT: Keys = {"dropout": anything}
NORMALIZE: Keys = dict.fromkeys(("module_input_name", "module_output_name"), one_of("sentence_embedding"))
MODULE: Keys = {**dict.fromkeys(("idx", "name", "path", "type"), anything), "kwargs": nothing}
WHOLE: Keys = {
    **dict.fromkeys(("__version__", "prompts", "default_prompt_name", "similarity_fn_name"), anything),
    **dict.fromkeys(("requirements", "activation_fn"), anything),
    "keep_in_fp32_modules": anything,
    "model_type": one_of("SentenceTransformer", "CrossEncoder"),
    "truncate_dim": whole,
}


def refuse_unknown(content: Mapping[str, Any], keys: Keys, file: str, within: str = "") -> None:
    """Raise CheckpointError, with the key's name, for a key that is not known or a value that is not served."""
    for key, value in content.items():
        if key not in keys:
            raise CheckpointError(
                f"{file} says {within}{key}, which is not known here and may change what the model gives. If it does "
                f"not, take it out of the file; known: {', '.join(keys)}"
            )
        if not keys[key](value):
            raise CheckpointError(
                f"{file} says {within}{key}: {value!r}, which is not served. {WAYS_OUT.get(key, OUT)}"
            )


OUT = "Take it out of the file if the model does not need it"
WAYS_OUT = {
    "model_type": "Served: SentenceTransformer, CrossEncoder",
    "transformer_task": "Served: feature-extraction, sequence-classification",
    "modality_config": "Served: text alone, by the model's forward",
}
