"""Weights from each library's layout to the fused one and back, bit for bit; what is refused, by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from handlers.encoder.fairseq import encoder_from_fairseq, fairseq_state
from handlers.encoder.layouts import BERT, DISTILBERT, FAIRSEQ, FAIRSEQ_STACKED, TORCH, Layout
from handlers.encoder.weights import build_encoder, fused_state, vanilla_state

State = dict[str, torch.Tensor]
H, I, LAYERS = 12, 20, 12  # noqa: E741  # twelve layers, so that 10 does not sort behind 1


def randomized(state: State) -> State:
    torch.manual_seed(0)
    return {name: torch.randn_like(value) for name, value in state.items()}


def bert() -> State:
    config = BertConfig(
        vocab_size=9, hidden_size=H, num_hidden_layers=LAYERS, num_attention_heads=3, intermediate_size=I
    )
    return randomized(BertModel(config).encoder.state_dict())


def distilbert() -> State:
    config = DistilBertConfig(vocab_size=9, dim=H, n_layers=LAYERS, n_heads=3, hidden_dim=I)
    return randomized(DistilBertModel(config).transformer.state_dict())


def torch_encoder(final: bool) -> Callable[[], State]:
    def make() -> State:
        layer = nn.TransformerEncoderLayer(H, 3, I)
        norm = nn.LayerNorm(H) if final else None
        return randomized(nn.TransformerEncoder(layer, LAYERS, norm, enable_nested_tensor=False).state_dict())

    return make


def fairseq(stacked: bool, final: bool) -> Callable[[], State]:
    """As fairseq's TransformerSentenceEncoderLayer names them, written out by hand."""

    def make() -> State:
        shapes: dict[str, tuple[int, ...]] = {}
        for number in range(LAYERS):
            layer = f"layers.{number}."
            if stacked:
                shapes |= {f"{layer}self_attn.in_proj_weight": (3 * H, H), f"{layer}self_attn.in_proj_bias": (3 * H,)}
            for name in () if stacked else ("q_proj", "k_proj", "v_proj"):
                shapes |= {f"{layer}self_attn.{name}.weight": (H, H), f"{layer}self_attn.{name}.bias": (H,)}
            shapes |= {f"{layer}self_attn.out_proj.weight": (H, H), f"{layer}self_attn.out_proj.bias": (H,)}
            shapes |= {f"{layer}fc1.weight": (I, H), f"{layer}fc1.bias": (I,)}
            shapes |= {f"{layer}fc2.weight": (H, I), f"{layer}fc2.bias": (H,)}
            for name in ("self_attn_layer_norm", "final_layer_norm"):
                shapes |= {f"{layer}{name}.weight": (H,), f"{layer}{name}.bias": (H,)}
        if final:
            shapes |= {"layer_norm.weight": (H,), "layer_norm.bias": (H,)}
        return randomized({name: torch.empty(shape) for name, shape in shapes.items()})

    return make


CASES: dict[str, tuple[Layout, Callable[[], State]]] = {
    "bert": (BERT, bert),
    "distilbert": (DISTILBERT, distilbert),
    "torch": (TORCH, torch_encoder(final=False)),
    "torch, last norm": (TORCH, torch_encoder(final=True)),
    "fairseq": (FAIRSEQ, fairseq(stacked=False, final=False)),
    "fairseq, last norm": (FAIRSEQ, fairseq(stacked=False, final=True)),
    "old fairseq": (FAIRSEQ_STACKED, fairseq(stacked=True, final=False)),
    "old fairseq, last norm": (FAIRSEQ_STACKED, fairseq(stacked=True, final=True)),
}


def assert_same(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize(("layout", "make"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_the_identity(layout: Layout, make: Callable[[], State], dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in make().items()}
    fused = fused_state(state, layout)
    assert_same(vanilla_state(fused, layout), state)
    assert_same(fused_state(vanilla_state(fused, layout), layout), fused)


@pytest.mark.parametrize(("layout", "make"), CASES.values(), ids=CASES)
def test_an_encoder_can_be_built_of_it(layout: Layout, make: Callable[[], State]) -> None:
    fused = fused_state(make(), layout)
    encoder = build_encoder(fused, heads=3, activation="relu", eps=1e-6, norm_first=True)
    config = encoder.config
    assert (config.layers, config.hidden, config.intermediate, config.heads) == (LAYERS, H, I, 3)
    assert (config.activation, config.eps, config.norm_first) == ("relu", 1e-6, True)
    assert config.final_norm == ("norm_weight" in fused)
    assert_same(encoder.state_dict(), fused)


def test_query_key_and_value_stand_in_this_order() -> None:
    state = bert()
    names = [f"layer.3.attention.self.{name}.bias" for name in ("query", "key", "value")]
    assert torch.equal(fused_state(state, BERT)["layers.3.qkv_bias"], torch.cat([state[name] for name in names]))


def test_only_what_is_stacked_is_copied() -> None:
    state = bert()
    fused = fused_state(state, BERT)
    shared = {tensor.data_ptr() for tensor in state.values()} & {tensor.data_ptr() for tensor in fused.values()}
    assert len(shared) == len(fused) - 2 * LAYERS
    back = vanilla_state(fused, BERT)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in back.values())


@pytest.mark.parametrize(("layout", "make"), CASES.values(), ids=CASES)
def test_missing_unexpected_and_misshapen_are_named(layout: Layout, make: Callable[[], State]) -> None:
    state = make()
    name = next(name for name in state if "10." in name)
    rest = {key: value for key, value in state.items() if key != name}
    with pytest.raises(ValueError, match=f"as {layout.name} names them; missing: {name}$"):
        fused_state(rest, layout)
    with pytest.raises(ValueError, match=f"missing: {name}; unexpected: {name}.lora_A"):
        fused_state(rest | {f"{name}.lora_A": state[name]}, layout)
    with pytest.raises(ValueError, match=rf"{name} is \(5, 5\), wanted \("):
        fused_state(state | {name: torch.zeros(5, 5)}, layout)


def test_fused_weights_are_checked_too() -> None:
    fused = fused_state(bert(), BERT)
    with pytest.raises(ValueError, match=r"as FusedEncoder names them; missing: layers\.4\.up_bias$"):
        vanilla_state({name: value for name, value in fused.items() if name != "layers.4.up_bias"}, BERT)
    with pytest.raises(ValueError, match=r"layers\.0\.out_bias is \(3,\), wanted \(12,\)"):
        vanilla_state(fused | {"layers.0.out_bias": torch.zeros(3)}, BERT)


def test_a_last_norm_needs_a_name() -> None:
    fused = fused_state(torch_encoder(final=True)(), TORCH)
    with pytest.raises(ValueError, match="ends with a LayerNorm, for which the layout of BERT has no name"):
        vanilla_state(fused, BERT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.to(torch.int8), r"not floating-point: layer\.2\.output\.dense\.weight \(torch\.int8\)"),
        (lambda value: value.half(), r"torch\.float16 on cpu, torch\.float32 on cpu; bring them to one"),
        (lambda value: value.to("meta"), r"torch\.float32 on cpu, torch\.float32 on meta"),
    ],
    ids=["int8", "half", "elsewhere"],
)
def test_kinds_are_not_mixed(change: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    state = bert()
    state["layer.2.output.dense.weight"] = change(state["layer.2.output.dense.weight"])
    with pytest.raises(ValueError, match=message):
        fused_state(state, BERT)


@pytest.mark.parametrize("state", [{}, {"embeddings.weight": torch.zeros(3)}], ids=["nothing", "no encoder"])
def test_no_layers(state: State) -> None:
    with pytest.raises(ValueError, match=r"no layers as BERT names them among (no tensors|embeddings\.weight)"):
        fused_state(state, BERT)


@pytest.mark.parametrize("stacked", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("prefix", ["encoder.sentence_encoder.", "decoder.sentence_encoder.", ""])
def test_a_whole_fairseq_model(stacked: bool, prefix: str) -> None:
    """Embeddings and heads beside the encoder are left alone."""
    part = {f"{prefix}{name}": value for name, value in fairseq(stacked, final=True)().items()}
    beside = {f"{prefix}embed_tokens.weight": torch.zeros(9, H), f"{prefix}emb_layer_norm.weight": torch.zeros(H)}
    encoder = encoder_from_fairseq(part | beside | {"lm_head.weight": torch.zeros(9, H)}, heads=3, norm_first=True)
    assert encoder.config.final_norm
    assert encoder.config.layers == LAYERS
    assert_same(fairseq_state(encoder, prefix, stacked), part)


def test_a_fairseq_decoder_is_taken_for_one() -> None:
    part = {f"decoder.{name}": value for name, value in fairseq(stacked=False, final=True)().items()}
    with pytest.raises(ValueError, match=r"the only stack of layers is 'decoder\.'.*prefix= says"):
        encoder_from_fairseq(part, heads=3, norm_first=True)
    assert encoder_from_fairseq(part, heads=3, norm_first=True, prefix="decoder.").config.layers == LAYERS
    with pytest.raises(ValueError, match=r"decoder\.layer_norm follows the last layer, which only norm_first=True"):
        encoder_from_fairseq(part, heads=3, prefix="decoder.")


def test_which_of_several_fairseq_encoders() -> None:
    one = fairseq(stacked=False, final=False)()
    both = {f"{prefix}.{name}": value for prefix in ("encoder", "decoder") for name, value in one.items()}
    with pytest.raises(ValueError, match=r"several stacks of layers, 'encoder\.', 'decoder\.'.*prefix="):
        encoder_from_fairseq(both, heads=3)
    encoder = encoder_from_fairseq(both, heads=3, prefix="encoder.")
    assert_same(fairseq_state(encoder, ""), one)
    with pytest.raises(ValueError, match=r"unexpected: layers\.0\.encoder_attn\.k_proj\.bias"):
        encoder_from_fairseq(
            both | {"decoder.layers.0.encoder_attn.k_proj.bias": torch.zeros(H)}, heads=3, prefix="decoder."
        )


def test_no_fairseq_encoder() -> None:
    with pytest.raises(ValueError, match=r"no name ends with layers\.0\.fc1\.weight"):
        encoder_from_fairseq(bert(), heads=3)
