"""The fused encoder against its formulas written out: pre- and post-norm, packed sequences, operations."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from handlers.encoder.fused import EncoderConfig, FusedEncoder
from handlers.encoder.ops import ACTIVATIONS, Segments, TorchEncoderOps

BASE = EncoderConfig(layers=2, hidden=24, heads=3, intermediate=40, activation="gelu", eps=1e-5)
LENGTHS = {
    "one of 1": (1,),
    "one of 2": (2,),
    "all equal": (7, 7, 7),
    "one long among short": (1, 60, 2, 1),
    "mixed": (3, 1, 9, 2, 9),
}
# fp32 rounds at 6e-8 of a value; sums of some dozens of terms, over two layers, come to some 1e-6 of values around 1.
TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def seeded(config: EncoderConfig) -> FusedEncoder:
    """Weights far from each other and biases that are not zero, so that one in the wrong place shows."""
    torch.manual_seed(0)
    encoder = FusedEncoder(config)
    for name, parameter in encoder.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm_weight" in name else 0.0, std=0.3)
    return encoder


def segments(lengths: tuple[int, ...]) -> Segments:
    return Segments(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32), lengths)


def formula(encoder: FusedEncoder, hidden: torch.Tensor) -> torch.Tensor:
    """One sequence (S, H) in float64, from the definitions alone."""
    config = encoder.config
    weights = {name: value.double() for name, value in encoder.state_dict().items()}
    x = hidden.double()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + config.eps).sqrt()
        moved: torch.Tensor = scaled * weights[f"{name}_weight"] + weights[f"{name}_bias"]
        return moved

    def attention(x: torch.Tensor, layer: str) -> torch.Tensor:
        qkv = x @ weights[f"{layer}qkv_weight"].T + weights[f"{layer}qkv_bias"]
        contexts = []
        for head in range(config.heads):
            size = config.hidden // config.heads
            query, key, value = (
                qkv[:, start + head * size : start + (head + 1) * size]
                for start in (0, config.hidden, 2 * config.hidden)
            )
            contexts.append((query @ key.T / size**0.5).softmax(dim=-1) @ value)
        context: torch.Tensor = torch.cat(contexts, dim=1)
        attended: torch.Tensor = context @ weights[f"{layer}out_weight"].T + weights[f"{layer}out_bias"]
        return attended

    def feed_forward(x: torch.Tensor, layer: str) -> torch.Tensor:
        inner = ACTIVATIONS[config.activation](x @ weights[f"{layer}up_weight"].T + weights[f"{layer}up_bias"])
        fed: torch.Tensor = inner @ weights[f"{layer}down_weight"].T + weights[f"{layer}down_bias"]
        return fed

    for number in range(config.layers):
        layer = f"layers.{number}."
        if config.norm_first:
            x = x + attention(norm(x, f"{layer}attention_norm"), layer)
            x = x + feed_forward(norm(x, f"{layer}output_norm"), layer)
        else:
            x = norm(x + attention(x, layer), f"{layer}attention_norm")
            x = norm(x + feed_forward(x, layer), f"{layer}output_norm")
    return (norm(x, "norm") if config.final_norm else x).float()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("final_norm", [False, True], ids=["no last norm", "last norm"])
def test_packed_sequences_follow_the_formulas(lengths: tuple[int, ...], norm_first: bool, final_norm: bool) -> None:
    encoder = seeded(replace(BASE, norm_first=norm_first, final_norm=final_norm))
    hidden = torch.randn(sum(lengths), BASE.hidden)
    wanted = torch.cat([formula(encoder, part) for part in hidden.split(lengths)])
    torch.testing.assert_close(encoder(hidden, segments(lengths)), wanted, **TOLERANCE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    encoder = seeded(replace(BASE, activation=activation))
    hidden = torch.randn(5, BASE.hidden)
    torch.testing.assert_close(encoder(hidden, segments((5,))), formula(encoder, hidden), **TOLERANCE)


def test_eps_counts() -> None:
    small, large = seeded(replace(BASE, eps=1e-12)), seeded(replace(BASE, eps=0.5))
    hidden = torch.randn(5, BASE.hidden)
    torch.testing.assert_close(large(hidden, segments((5,))), formula(large, hidden), **TOLERANCE)
    assert (large(hidden, segments((5,))) - small(hidden, segments((5,)))).abs().max() > 0.1


def test_inference_mode_gives_the_same() -> None:
    encoder, hidden = seeded(BASE), torch.randn(4, BASE.hidden)
    with torch.inference_mode():
        inferred = encoder(hidden, segments((4,)))
    assert torch.equal(inferred, encoder(hidden, segments((4,))))


def test_no_dropout_and_no_gradients_in_training_mode() -> None:
    encoder, hidden = seeded(BASE), torch.randn(4, BASE.hidden, requires_grad=True)
    served = encoder.eval()(hidden, segments((4,)))
    trained = encoder.train()(hidden, segments((4,)))
    assert torch.equal(served, trained)
    assert not trained.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


class Counting(TorchEncoderOps):
    """Counts the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("linear", "linear_activation", "linear_add", "linear_add_norm", "norm", "attention"):
            self.calls.append(name)
        return super().__getattribute__(name)


def test_a_layer_is_five_calls() -> None:
    encoder, ops = seeded(BASE), Counting()
    encoder(torch.randn(4, BASE.hidden), segments((4,)), ops)
    calls = [call for call in ops.calls if call not in ("norm", "linear_add")]  # of which linear_add_norm is made
    assert calls == ["linear", "attention", "linear_add_norm", "linear_activation", "linear_add_norm"] * 2


def test_operations_can_be_set_and_are_no_state() -> None:
    encoder = seeded(BASE)
    before, ops = list(encoder.state_dict()), Counting()
    encoder.ops = ops
    encoder(torch.randn(4, BASE.hidden), segments((4,)))
    assert ops.calls
    assert list(encoder.state_dict()) == before
    counted = len(ops.calls)
    encoder(torch.randn(4, BASE.hidden), segments((4,)), TorchEncoderOps())
    assert len(ops.calls) == counted  # those of the call come first


def test_a_copy_is_independent() -> None:
    encoder, hidden = seeded(BASE), torch.randn(4, BASE.hidden)
    twin = copy.deepcopy(encoder)
    torch.nn.init.zeros_(twin.layers[0].qkv_weight)  # type: ignore[arg-type]
    assert not torch.equal(twin(hidden, segments((4,))), encoder(hidden, segments((4,))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    encoder, hidden = seeded(BASE), torch.randn(6, BASE.hidden)
    wanted = formula(encoder, hidden)
    found = encoder.to(dtype)(hidden.to(dtype), segments((2, 4)))
    assert found.dtype == dtype
    wanted = torch.cat([formula(encoder.float(), part) for part in hidden.split((2, 4))])
    assert F.cosine_similarity(found.float(), wanted).min() > 0.999


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "heads that divide"),
        ({"heads": 0}, "all positive"),
        ({"layers": 0}, "all positive"),
        ({"activation": "gelu_10"}, "'gelu_10'; fused are: gelu, gelu_new"),
    ],
    ids=["5 heads of 24", "no heads", "no layers", "clipped gelu"],
)
def test_what_cannot_be_built(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **changes)
