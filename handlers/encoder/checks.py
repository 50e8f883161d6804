"""Checks that refuse, by name, what the fused encoder would not compute exactly: encoders, configs and calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from handlers.encoder.errors import UnsupportedError
from handlers.misfits import report

# With any other attention implementation transformers may pass no mask, and padding would be attended to.
ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
OUTPUT_OPTIONS = ("output_attentions", "output_hidden_states")
INPUT_OPTIONS = (
    *("encoder_hidden_states", "encoder_attention_mask", "past_key_values", "is_causal"),
    *("cu_seq_lens_q", "cu_seq_lens_k"),
)
UNSWAP = "unswap_encoder(model) puts the vanilla encoder back"
PLAIN_MODULES = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.ModuleList)


def require_plain_config(config: Any) -> None:
    """Check the config of a transformers model. None, for an encoder without a config, is fine.

    Raises:
        UnsupportedError: the config asks for something that a fused encoder does not have.
    """
    if config is None:
        return
    require_plain_call(config, {})
    wanted = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
    for name, value in wanted.items():
        if getattr(config, name, value) != value:
            raise UnsupportedError(f"its config says {name}={getattr(config, name)!r}; wanted: {value!r}")


def require_plain_call(config: Any, options: dict[str, Any]) -> None:
    """Check a call of a transformers encoder.

    Args:
        config: the model's config as it is now, whose defaults the options override.
        options: the call's keyword arguments.

    Raises:
        UnsupportedError: the call or the config asks for something that a fused encoder does not have.
    """
    attention = getattr(config, "_attn_implementation", None)
    if attention not in ATTENTION:
        raise UnsupportedError(
            f"the attention implementation is {attention!r}, which may be another function; wanted: one of "
            f'{", ".join(filter(None, ATTENTION))}. model.set_attn_implementation("sdpa") sets it'
        )
    outputs = [name for name in OUTPUT_OPTIONS if options.get(name, getattr(config, name, False))]
    inputs = [name for name in INPUT_OPTIONS if options.get(name) is not None and options[name] is not False]
    if outputs or inputs:
        raise UnsupportedError(f"{', '.join([*outputs, *inputs])}: the fused encoder does not support this. {UNSWAP}")


def require_plain_modules(encoder: nn.Module, activation: str) -> None:
    """Check that everything inside an encoder is the library's own and as the library builds it.

    Args:
        encoder: the vanilla encoder.
        activation: how the names of activation modules end; they are checked elsewhere.

    Raises:
        UnsupportedError: modules, hooks or settings that may compute something else, by name.
    """
    home = type(encoder).__module__
    named = dict(encoder.named_modules())
    foreign = [
        f"{name} ({type(module).__qualname__})"
        for name, module in named.items()
        if not (_is_plain(module, home) or name.endswith(activation))
    ]
    problems = {
        "modules that are not the library's own": foreign,
        "hooks": [name or "itself" for name, module in named.items() if _has_hooks(module)],
        "a forward() of their own": [name or "itself" for name, module in named.items() if _has_own_forward(module)],
        "weights used twice": _tied_parameters(encoder),
        "buffers": [name for name, _ in encoder.named_buffers()],
        "decoder's layers": [name for name, module in named.items() if _is_causal(module)],
        "a scale or a size of heads of its own": [name for name, module in named.items() if _is_rescaled(module)],
        "zero keys in attention": [name for name, module in named.items() if getattr(module, "add_zero_attn", False)],
    }
    found = report(problems)
    if found:
        raise UnsupportedError(f"it has {found}, which may compute something else. Remove or merge them first")


def _is_plain(module: nn.Module, home: str) -> bool:
    """Whether it is one of torch's building blocks (MultiheadAttention's too), or a class of the encoder's file."""
    kind = type(module)
    in_attention = (nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear)
    return kind in PLAIN_MODULES or kind in in_attention or kind.__module__ == home


def _is_causal(module: nn.Module) -> bool:
    """Whether it was built as a decoder's, whatever its config says now."""
    return bool(getattr(module, "is_decoder", False) or getattr(module, "is_causal", False))


def _is_rescaled(module: nn.Module) -> bool:
    """Whether it is an attention of transformers with another scale than D ** -0.5, or with pruned heads."""
    size, scaling = (getattr(module, name, None) for name in ("attention_head_size", "scaling"))
    heads = getattr(module, "num_attention_heads", getattr(module, "n_heads", None))
    query: Any = getattr(module, "query", getattr(module, "q_lin", None))
    if size is None or heads is None or type(query) is not nn.Linear:
        return False
    return heads * size != query.out_features or (scaling is not None and not math.isclose(scaling, size**-0.5))


def _has_hooks(module: nn.Module) -> bool:
    """Whether it has hooks other than those with which transformers collects hidden states."""
    hooks: Iterable[Callable[..., Any]] = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks)


def _has_own_forward(module: nn.Module) -> bool:
    """Whether forward was set on the instance, as accelerate does when it places a model on devices."""
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def _tied_parameters(encoder: nn.Module) -> list[str]:
    once = {name for name, _ in encoder.named_parameters()}
    return [name for name, _ in encoder.named_parameters(remove_duplicate=False) if name not in once]
