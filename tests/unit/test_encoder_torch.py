"""torch.nn.TransformerEncoder, alone or inside a module, swapped for the fused encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from handlers.encoder.fused import FusedEncoder
from handlers.encoder.swap import fused_encoder, swap_encoder, unswap_encoder

H, S, N = 24, 7, 4
# fp32 sums of the same terms in another order; pre-norm residuals grow to some tens over the layers.
TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 2e-5}
PADDING = torch.arange(S) >= torch.tensor([[S], [1], [2], [5]])  # (N, S), True for padding
HOLES = torch.tensor([[0, 1, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0], [0] * 7, [1, 0, 0, 0, 0, 0, 0]]).bool()


def seeded(final: bool = False, layers: int = 2, **options: Any) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(H, 3, 40, **options)
    norm = nn.LayerNorm(H) if final else None
    encoder = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)
    for name, parameter in encoder.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.3)
    return encoder.eval()


def batch(batch_first: bool) -> torch.Tensor:
    torch.manual_seed(1)
    hidden = torch.randn(N, S, H)
    return hidden if batch_first else hidden.transpose(0, 1)


ACTIVATIONS: dict[str, tuple[Any, str]] = {
    "relu": ("relu", "relu"),
    "gelu": ("gelu", "gelu"),
    "function": (F.gelu, "gelu"),
    "ReLU()": (nn.ReLU(), "relu"),
    "GELU()": (nn.GELU(), "gelu"),
    "GELU(tanh)": (nn.GELU(approximate="tanh"), "gelu_pytorch_tanh"),
}


@pytest.mark.parametrize(("activation", "name"), ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("final", [False, True], ids=["no last norm", "last norm"])
@torch.inference_mode()
def test_is_the_same_function(activation: Any, name: str, norm_first: bool, batch_first: bool, final: bool) -> None:
    encoder = seeded(final, activation=activation, norm_first=norm_first, batch_first=batch_first)
    swapped = swap_encoder(copy.deepcopy(encoder))
    assert fused_encoder(swapped).config.activation == name
    hidden = batch(batch_first)
    torch.testing.assert_close(swapped(hidden), encoder(hidden), **TOLERANCE)
    for padding in (PADDING, HOLES, torch.zeros(N, S).masked_fill(PADDING, float("-inf"))):
        masked = padding if padding.dtype == torch.bool else padding != 0
        by_row = ~masked if batch_first else ~masked.T
        found, wanted = (one(hidden, src_key_padding_mask=padding) for one in (swapped, encoder))
        assert found.shape == wanted.shape
        torch.testing.assert_close(found[by_row], wanted[by_row], **TOLERANCE)
        assert not found[~by_row].any()


@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@torch.inference_mode()
def test_one_sequence_without_a_batch(batch_first: bool) -> None:
    encoder = seeded(batch_first=batch_first)
    swapped = swap_encoder(copy.deepcopy(encoder))
    hidden, padding = torch.randn(S, H), torch.arange(S) > 4
    torch.testing.assert_close(swapped(hidden), encoder(hidden), **TOLERANCE)
    found = swapped(hidden, src_key_padding_mask=padding)
    wanted = encoder(hidden, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], wanted[~padding], **TOLERANCE)


@torch.inference_mode()
def test_a_sequence_without_tokens_is_zeros() -> None:
    swapped = swap_encoder(seeded(batch_first=True))
    found = swapped(batch(True), src_key_padding_mask=torch.tensor([[True], [False], [True], [True]]).expand(N, S))
    assert found[1].all()
    assert not found[[0, 2, 3]].any()
    assert swapped(torch.empty(0, S, H)).shape == (0, S, H)
    assert swapped(torch.empty(N, 0, H)).shape == (N, 0, H)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, H)
        self.body = nn.Sequential(nn.Dropout(0.1), seeded(batch_first=True))
        self.head = nn.Linear(H, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(self.embedding(ids)))
        return logits


@torch.inference_mode()
def test_inside_a_module_everything_else_stays() -> None:
    model, ids = Tagger().eval(), torch.randint(30, (N, S))
    wanted, before = model(ids), model.state_dict()
    assert swap_encoder(model) is model
    torch.testing.assert_close(model(ids), wanted, **TOLERANCE)
    assert isinstance(fused_encoder(model), FusedEncoder)
    assert model.state_dict()["head.weight"].data_ptr() == before["head.weight"].data_ptr()
    unswap_encoder(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(model(ids), wanted)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@torch.inference_mode()
def test_the_encoder_of_a_whole_transformer() -> None:
    """Which goes through nested tensors where it finds padding."""
    torch.manual_seed(0)
    model = nn.Transformer(H, 4, 2, 2, 40, batch_first=True).eval()
    source, target = torch.randn(N, S, H), torch.randn(N, 3, H)
    options = {"src_key_padding_mask": PADDING, "memory_key_padding_mask": PADDING}
    wanted = model(source, target, **options)
    decoder = model.decoder
    swap_encoder(model)
    assert model.decoder is decoder
    torch.testing.assert_close(model(source, target, **options), wanted, **TOLERANCE)


def test_back_again_bit_for_bit() -> None:
    encoder = seeded(final=True)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    again = unswap_encoder(swap_encoder(encoder))
    assert again is encoder
    assert list(again.state_dict()) == list(before)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in again.parameters())


class OwnLayer(nn.TransformerEncoderLayer):
    """A subclass: who knows what it computes?"""


class OwnEncoder(nn.TransformerEncoder):
    """A subclass."""


def own_layers() -> nn.Module:
    return nn.TransformerEncoder(OwnLayer(H, 3, 40, batch_first=True), 2, enable_nested_tensor=False)


def own_encoder() -> nn.Module:
    return OwnEncoder(nn.TransformerEncoderLayer(H, 3, 40), 2, enable_nested_tensor=False)


def changed(change: Callable[[Any], object]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        encoder = seeded()
        change(encoder.layers[1])
        return encoder

    return make


def last_norm(norm: nn.Module) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        encoder = seeded()
        encoder.norm = norm
        return encoder

    return make


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own layers": (own_layers, r"not the library's own: layers\.0 \(OwnLayer\), layers\.1 \(OwnLayer\)"),
    "own encoder": (own_encoder, r"OwnEncoder is a subclass of TransformerEncoder"),
    "no biases": (lambda: seeded(bias=False), r"missing: layers\.0\.self_attn\.in_proj_bias, "),
    "silu by lambda": (lambda: seeded(activation=lambda x: F.silu(x)), r"activation is <lambda>; fused are"),
    "leaky relu": (lambda: seeded(activation=nn.LeakyReLU()), r"activation is LeakyReLU"),
    "key and value biases": (
        changed(lambda layer: setattr(layer, "self_attn", nn.MultiheadAttention(H, 3, add_bias_kv=True))),
        r"unexpected: layers\.1\.self_attn\.bias_k, layers\.1\.self_attn\.bias_v",
    ),
    "zero attention": (
        changed(lambda layer: setattr(layer, "self_attn", nn.MultiheadAttention(H, 3, add_zero_attn=True))),
        r"zero keys in attention: layers\.1\.self_attn",
    ),
    "heads differ": (
        changed(lambda layer: setattr(layer, "self_attn", nn.MultiheadAttention(H, 4))),
        r"its layers differ in heads: 3, 4; wanted: one for all",
    ),
    "orders differ": (changed(lambda layer: setattr(layer, "norm_first", True)), r"differ in norm_first"),
    "last norm without bias": (last_norm(nn.LayerNorm(H, bias=False)), r"missing: norm\.bias$"),
    "last norm with another eps": (last_norm(nn.LayerNorm(H, eps=1e-12)), r"differ in eps: 1e-05, 1e-12"),
    "last norm of another kind": (last_norm(nn.RMSNorm(H)), r"not the library's own: norm \(RMSNorm\)"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(make: Callable[[], nn.Module], message: str) -> None:
    encoder = make()
    with pytest.raises(ValueError, match=message):
        swap_encoder(encoder)
    assert {parameter.device.type for parameter in encoder.parameters()} == {"cpu"}


CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "mask": ({"mask": torch.zeros(S, S).bool()}, "mask and is_causal differ between queries"),
    "causal": ({"is_causal": True}, "mask and is_causal"),
    "padding turned round": (
        {"src_key_padding_mask": PADDING.T},
        r"padding_mask is \(7, 4\) for 4 sequences",
    ),
    "weighed padding": ({"src_key_padding_mask": torch.full((N, S), -0.5)}, "a bias, not a mask"),
}


@pytest.mark.parametrize(("options", "message"), CALLS.values(), ids=CALLS)
def test_calls_that_ask_for_more(options: dict[str, Any], message: str) -> None:
    swapped = swap_encoder(seeded(batch_first=True))
    swapped(batch(True), is_causal=False)
    with pytest.raises(ValueError, match=message):
        swapped(batch(True), **options)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.randn(N, S, H + 1), r"src is \(4, 7, 25\); wanted: 2 or 3 dimensions, the last 24"),
        (lambda: torch.randn(2, N, S, H), r"src is \(2, 4, 7, 24\)"),
        (lambda: torch.nested.nested_tensor([torch.randn(2, H), torch.randn(5, H)]), "src is nested"),
    ],
    ids=["other size", "four dimensions", "nested"],
)
def test_other_inputs(make: Callable[[], torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swap_encoder(seeded(batch_first=True))(make())


@pytest.mark.parametrize(("model", "state"), [(False, True), (True, False)], ids=["one too many", "one missing"])
def test_a_last_norm_amiss_is_reported_by_its_vanilla_name(model: bool, state: bool) -> None:
    vanilla, swapped = seeded(final=model), swap_encoder(seeded(final=model))
    given = {name: torch.full_like(value, 0.5) for name, value in seeded(final=state).state_dict().items()}
    wanted, found = (one.load_state_dict(dict(given), strict=False) for one in (vanilla, swapped))
    assert (found.missing_keys, found.unexpected_keys) == (wanted.missing_keys, wanted.unexpected_keys)
    after = swapped.state_dict()
    assert all(torch.equal(after[name], value) for name, value in vanilla.state_dict().items())


def test_a_last_norm_alone_is_loaded() -> None:
    vanilla, swapped = seeded(final=True), swap_encoder(seeded(final=True))
    given = {"norm.weight": torch.full((H,), 2.0), "norm.bias": torch.full((H,), 3.0)}
    wanted, found = (one.load_state_dict(dict(given), strict=False) for one in (vanilla, swapped))
    assert sorted(found.missing_keys) == sorted(wanted.missing_keys)
    after = swapped.state_dict()
    assert all(torch.equal(after[name], value) for name, value in vanilla.state_dict().items())
