"""Encoders of transformers and PyTorch: found by their classes, checked, and read into a FusedEncoder.

A class is known by its full name, and everything inside it has to be the library's own: a subclass, an adapter
(LoRA), a quantised Linear or a hook may compute something else, and are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from handlers.encoder.adapters import SwappedBert, SwappedDistilBert, SwappedEncoder, SwappedTorch, refuse_settings
from handlers.encoder.layouts import BERT, DISTILBERT, TORCH, Layout
from handlers.encoder.ops import ACTIVATIONS
from handlers.encoder.weights import build_encoder, fused_state, listed


@dataclass(frozen=True)
class Family:
    """Encoders that are built alike. layers, heads, activation, config: where they are, the middle two in a layer."""

    layout: Layout
    layers: str
    heads: str
    activation: str
    adapter: type[SwappedBert | SwappedTorch]
    config: str | None = None


BERT_LIKE = Family(
    BERT, "layer", "attention.self.num_attention_heads", "intermediate.intermediate_act_fn", SwappedBert, "config"
)
DISTILBERT_LIKE = Family(
    *(DISTILBERT, "layer", "attention.n_heads", "ffn.activation", SwappedDistilBert),
    config="layer.0.attention.config",
)
TORCH_LIKE = Family(TORCH, "layers", "self_attn.num_heads", "activation", SwappedTorch)

FAMILIES: dict[str, Family] = {
    "transformers.models.bert.modeling_bert.BertEncoder": BERT_LIKE,
    "transformers.models.bert_generation.modeling_bert_generation.BertEncoder": BERT_LIKE,
    "transformers.models.camembert.modeling_camembert.CamembertEncoder": BERT_LIKE,
    "transformers.models.data2vec.modeling_data2vec_text.Data2VecTextEncoder": BERT_LIKE,
    "transformers.models.electra.modeling_electra.ElectraEncoder": BERT_LIKE,
    "transformers.models.ernie.modeling_ernie.ErnieEncoder": BERT_LIKE,
    "transformers.models.layoutlm.modeling_layoutlm.LayoutLMEncoder": BERT_LIKE,
    "transformers.models.markuplm.modeling_markuplm.MarkupLMEncoder": BERT_LIKE,
    "transformers.models.roberta.modeling_roberta.RobertaEncoder": BERT_LIKE,
    "transformers.models.roc_bert.modeling_roc_bert.RoCBertEncoder": BERT_LIKE,
    "transformers.models.splinter.modeling_splinter.SplinterEncoder": BERT_LIKE,
    "transformers.models.tapas.modeling_tapas.TapasEncoder": BERT_LIKE,
    "transformers.models.visual_bert.modeling_visual_bert.VisualBertEncoder": BERT_LIKE,
    "transformers.models.xlm_roberta.modeling_xlm_roberta.XLMRobertaEncoder": BERT_LIKE,
    "transformers.models.distilbert.modeling_distilbert.Transformer": DISTILBERT_LIKE,
    "torch.nn.modules.transformer.TransformerEncoder": TORCH_LIKE,
}
# Known by transformers' model_type.
REASONS = {
    "albert": "its layers share one set of weights",
    "big_bird": "its attention is sparse",
    "convbert": "its attention has convolutions",
    "deberta": "its attention looks at relative positions",
    "deberta-v2": "its attention looks at relative positions",
    "esm": "it is pre-norm, and its attention may rotate positions",
    "luke": "its attention tells words from entities",
    "megatron-bert": "it is pre-norm, under names of its own",
    "mpnet": "its attention looks at relative positions",
    "nomic_bert": "its attention rotates positions",
    "rembert": "its embeddings are projected within the encoder",
    "roformer": "its attention rotates positions",
    "mobilebert": "its layers have bottlenecks",
    "modernbert": "its attention rotates positions",
    "roberta-prelayernorm": "it is pre-norm, under names of its own",
    "xlm-roberta-xl": "it is pre-norm, under names of its own",
    "xmod": "its layers have adapters",
}
PLAIN = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.ModuleList)
FUNCTIONS: dict[Any, str] = {
    F.gelu: "gelu",
    F.relu: "relu",
    torch.relu: "relu",
    F.silu: "silu",
    torch.tanh: "tanh",
}


def find(model: nn.Module) -> dict[str, nn.Module]:
    """The encoders that can be looked into, by their names in the model; "" is the model itself."""
    return {name: module for name, module in model.named_modules() if class_name(module) in FAMILIES}


def class_name(module: nn.Module) -> str:
    """With its module: transformers.models.bert.modeling_bert.BertEncoder"""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def why_none(model: nn.Module) -> str:
    """Why find() found nothing in `model`."""
    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    derived = [
        f"{type(module).__name__} is a subclass of {base.__name__}"
        for module in model.modules()
        for base in type(module).__mro__[1:]
        if f"{base.__module__}.{base.__qualname__}" in FAMILIES
    ]
    reason = REASONS.get(kind) or listed(derived) or "it has none of the classes below"
    supported = ", ".join(sorted({name.rpartition(".")[2] for name in FAMILIES}))
    return f"{type(model).__name__} has no encoder that can be fused: {reason}. Fused are {supported}"


def adapt(encoder: nn.Module) -> SwappedEncoder:
    """What is to stand in the place of `encoder`, which is left as it is, weights shared where they can be.

    Raises ValueError, by name, for what would compute something else.
    """
    family = FAMILIES[class_name(encoder)]
    layers: list[Any] = list(getattr(encoder, family.layers))
    if not layers:
        raise ValueError("it has no layers")
    config = attrgetter(family.config)(encoder) if family.config else None
    _refuse_config(config)
    _refuse_modules(encoder, family)
    state = fused_state(encoder.state_dict(), family.layout)
    norms = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    fused = build_encoder(
        state,
        heads=_one("heads", map(attrgetter(family.heads), layers)),
        activation=_one("activation", (activation_name(attrgetter(family.activation)(layer)) for layer in layers)),
        eps=_one("eps", (norm.eps for norm in norms)),
        norm_first=_one("norm_first", (getattr(layer, "norm_first", False) for layer in layers)),
    )
    if config is None:
        first = _one("batch_first", (layer.self_attn.batch_first for layer in layers))
        return SwappedTorch(fused, encoder, family.layout, first)
    return family.adapter(fused, encoder, family.layout, config)


def activation_name(function: Any) -> str:
    """The key in ops.ACTIVATIONS of a function or module. Raises ValueError for others."""
    if type(function) is nn.GELU:
        return "gelu" if function.approximate == "none" else "gelu_pytorch_tanh"
    modules: Mapping[Any, str] = {type(ACT2FN[name]): name for name in reversed(ACTIVATIONS)}
    name = modules.get(type(function)) if isinstance(function, nn.Module) else FUNCTIONS.get(function)
    if name is None:
        named = getattr(function, "__name__", type(function).__name__)
        raise ValueError(f"its activation is {named}; fused are: {', '.join(ACTIVATIONS)}")
    return name


def _refuse_config(config: Any) -> None:
    """Raise ValueError for what a config of transformers asks for and a fused encoder does not have."""
    if config is None:
        return
    refuse_settings(config, {})
    wanted = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
    for name, value in wanted.items():
        if getattr(config, name, value) != value:
            raise ValueError(f"its config says {name}={getattr(config, name)!r}; wanted: {value!r}")


def _refuse_modules(encoder: nn.Module, family: Family) -> None:
    home = type(encoder).__module__
    named = dict(encoder.named_modules())
    strange = [
        f"{name} ({type(module).__qualname__})"
        for name, module in named.items()
        if not (_is_plain(module, home) or name.endswith(family.activation))
    ]
    problems = {
        "modules that are not the library's own": strange,
        "hooks": [name or "itself" for name, module in named.items() if _has_hooks(module)],
        "a forward() of their own": [name or "itself" for name, module in named.items() if _is_replaced(module)],
        "weights used twice": _shared(encoder),
        "decoder's layers": [name for name, module in named.items() if _is_causal(module)],
        "a scale or a size of heads of its own": [name for name, module in named.items() if _is_scaled(module)],
        "zero keys in attention": [name for name, module in named.items() if getattr(module, "add_zero_attn", False)],
    }
    found = [f"{problem}: {listed(names)}" for problem, names in problems.items() if names]
    if found:
        raise ValueError(f"it has {'; '.join(found)}, which may compute something else. Remove or merge them first")


def _is_plain(module: nn.Module, home: str) -> bool:
    """torch's own building blocks (those of MultiheadAttention too), and the classes beside the encoder's."""
    kind = type(module)
    in_attention = (nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear)
    return kind in PLAIN or kind in in_attention or kind.__module__ == home


def _is_causal(module: nn.Module) -> bool:
    """Whatever its config says by now: layers remember what they were built as."""
    return bool(getattr(module, "is_decoder", False) or getattr(module, "is_causal", False))


def _is_scaled(module: nn.Module) -> bool:
    """An attention of transformers whose scores are not over the root of its head size, or of other heads."""
    size, scaling = (getattr(module, name, None) for name in ("attention_head_size", "scaling"))
    heads = getattr(module, "num_attention_heads", getattr(module, "n_heads", None))
    query: Any = getattr(module, "query", getattr(module, "q_lin", None))
    if size is None or heads is None or type(query) is not nn.Linear:
        return False
    return heads * size != query.out_features or (scaling is not None and not math.isclose(scaling, size**-0.5))


def _has_hooks(module: nn.Module) -> bool:
    """Other than those with which transformers collects hidden states."""
    hooks: Iterable[Callable[..., Any]] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks)


def _is_replaced(module: nn.Module) -> bool:
    """Whether somebody has set forward on the instance; accelerate does, when it places a model on devices."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def _shared(encoder: nn.Module) -> list[str]:
    once = {name for name, _ in encoder.named_parameters()}
    return [name for name, _ in encoder.named_parameters(remove_duplicate=False) if name not in once]


def _one(name: str, values: Iterable[Any]) -> Any:
    """The value that all have. Raises ValueError where they differ."""
    found = list(dict.fromkeys(values))
    if len(found) != 1:
        raise ValueError(f"its layers differ in {name}: {listed(found)}; wanted: one for all")
    return found[0]
