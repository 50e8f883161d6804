"""What the fused encoder would not compute exactly is refused by name, and the model is left as it was."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations

from handlers.encoder import UnsupportedError, masks
from handlers.encoder.swap import fused_encoder, swap_encoder, unswap_encoder

SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 16,
}


def bert(**changes: Any) -> Any:
    return transformers.BertModel(transformers.BertConfig(**{**SIZES, **changes})).eval()


def with_attribute(name: str, value: object) -> Any:
    model = bert()
    setattr(model.config, name, value)
    return model


def with_layer(change: Callable[[Any], None]) -> Any:
    model = bert()
    change(model.encoder.layer[1])
    return model


class Lora(nn.Module):
    """A Linear with something beside it, as peft wraps them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.lora_A = base, nn.Linear(base.in_features, 2, bias=False)


class OwnLinear(nn.Linear):
    """With the names and shapes of a Linear, and maybe another function."""


class OwnEncoder(transformers.models.bert.modeling_bert.BertEncoder):
    """A subclass."""


def wrap(layer: Any) -> None:
    layer.attention.self.query = Lora(layer.attention.self.query)


def subclass(layer: Any) -> None:
    layer.output.dense = OwnLinear(16, 12)


def quantize(layer: Any) -> None:
    dense = layer.output.dense
    with torch.no_grad():
        layer.output.dense.weight = nn.Parameter(dense.weight.to(torch.int8), requires_grad=False)


def parametrize(layer: Any) -> None:
    parametrizations.weight_norm(layer.intermediate.dense)


def hook(layer: Any) -> None:
    layer.attention.register_forward_hook(lambda *_: None)


def pre_hook(layer: Any) -> None:
    layer.register_forward_pre_hook(lambda *_: None)


def replace_forward(layer: Any) -> None:
    layer.output.forward = functools.partial(layer.output.forward)


def bind_forward(layer: Any) -> None:
    layer.output.forward = types.MethodType(lambda self, x, y: x, layer.output)


def drop_bias(layer: Any) -> None:
    layer.output.dense = nn.Linear(16, 12, bias=False)


def change_eps(layer: Any) -> None:
    layer.output.LayerNorm.eps = 1e-3


def change_activation(layer: Any) -> None:
    layer.intermediate.intermediate_act_fn = nn.ReLU()


def call_sigmoid(layer: Any) -> None:
    del layer.intermediate.intermediate_act_fn
    layer.intermediate.intermediate_act_fn = torch.sigmoid


def share(model: Any) -> Any:
    model.encoder.layer[1] = model.encoder.layer[0]
    return model


def subclassed() -> Any:
    model = bert()
    own: Any = OwnEncoder
    model.encoder = own(model.config)
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "decoder": (lambda: bert(is_decoder=True), r"config says is_decoder=True; wanted: False"),
    "cross-attention": (
        lambda: bert(is_decoder=True, add_cross_attention=True),
        r"BertEncoder\) cannot be fused: its config says is_decoder=True",
    ),
    "relative positions": (
        lambda: with_attribute("position_embedding_type", "relative_key"),
        r"position_embedding_type='relative_key'; wanted: 'absolute'",
    ),
    "clipped gelu": (lambda: bert(hidden_act="gelu_10"), r"activation is ClippedGELUActivation; fused are: gelu, "),
    "mish": (lambda: bert(hidden_act="mish"), r"activation is MishActivation"),
    "callable": (lambda: with_layer(call_sigmoid), r"activation is sigmoid; fused are"),
    "attentions": (lambda: bert(output_attentions=True, attn_implementation="eager"), r"output_attentions: "),
    "hidden states": (lambda: bert(output_hidden_states=True), r"output_hidden_states: .*does not support this"),
    "attention of its own": (
        lambda: with_attribute("_attn_implementation_internal", "mine"),
        r"attention implementation is 'mine'.*set_attn_implementation",
    ),
    "adapter": (lambda: with_layer(wrap), r"not the library's own: layer\.1\.attention\.self\.query \(Lora\)"),
    "subclass of Linear": (lambda: with_layer(subclass), r"own: layer\.1\.output\.dense \(OwnLinear\)"),
    "weight norm": (lambda: with_layer(parametrize), r"layer\.1\.intermediate\.dense \(ParametrizedLinear\)"),
    "int8": (lambda: with_layer(quantize), r"not floating-point: layer\.1\.output\.dense\.weight \(torch\.int8\)"),
    "hook": (lambda: with_layer(hook), r"hooks: layer\.1\.attention, which may"),
    "pre-hook": (lambda: with_layer(pre_hook), r"hooks: layer\.1, which may"),
    "wrapped forward": (lambda: with_layer(replace_forward), r"a forward\(\) of their own: layer\.1\.output"),
    "other forward": (lambda: with_layer(bind_forward), r"a forward\(\) of their own: layer\.1\.output"),
    "no bias": (lambda: with_layer(drop_bias), r"missing: layer\.1\.output\.dense\.bias$"),
    "two eps": (lambda: with_layer(change_eps), r"its layers differ in eps: 1e-12, 0\.001; wanted: one"),
    "two activations": (lambda: with_layer(change_activation), r"differ in activation: gelu, relu"),
    "shared layers": (lambda: share(bert()), r"weights used twice: layer\.1\."),
    "two types": (lambda: with_layer(lambda layer: layer.half()), r"torch\.float16 on cpu, torch\.float32 on cpu"),
    "no layers": (
        lambda: bert(num_hidden_layers=0),
        r"BertEncoder\) cannot be fused: it has no layers",
    ),
    "subclassed encoder": (subclassed, r"OwnEncoder is a subclass of BertEncoder\. Fused are BertEncoder, "),
}


@pytest.mark.filterwarnings("ignore:`sdpa` attention does not support")
@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(make: Callable[[], Any], message: str) -> None:
    model = make()
    before = {name: (id(module), type(module)) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        swap_encoder(model)
    assert {name: (id(module), type(module)) for name, module in model.named_modules()} == before
    assert "meta" not in {parameter.device.type for parameter in model.parameters()}


FOREIGN: dict[str, tuple[Callable[[], Any], str]] = {
    "albert": (
        lambda: transformers.AlbertModel(transformers.AlbertConfig(**SIZES, embedding_size=8)),
        "AlbertModel has no encoder that can be fused: its layers share one set of weights",
    ),
    "mpnet": (
        lambda: transformers.MPNetModel(transformers.MPNetConfig(**SIZES)),
        "MPNetModel .*: its attention looks at relative positions",
    ),
    "deberta-v2": (
        lambda: transformers.DebertaV2Model(transformers.DebertaV2Config(**SIZES)),
        "DebertaV2Model .*relative positions",
    ),
    "roberta-prelayernorm": (
        lambda: transformers.RobertaPreLayerNormModel(transformers.RobertaPreLayerNormConfig(**SIZES)),
        "pre-norm, and its tensors have other names",
    ),
    "a resnet": (
        lambda: transformers.ResNetModel(transformers.ResNetConfig(hidden_sizes=[8, 8, 8, 8])),
        "ResNetModel .*none of the classes below. Fused are .*DistilBERT|.*, Transformer, TransformerEncoder",
    ),
    "a module": (lambda: nn.Linear(2, 2), "Linear has no encoder that can be fused"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # by DeBERTa, on import
@pytest.mark.parametrize(("make", "message"), FOREIGN.values(), ids=FOREIGN)
def test_other_architectures_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swap_encoder(make())


def test_one_that_cannot_be_fused_leaves_its_neighbour_alone() -> None:
    model = nn.ModuleList([bert(), bert(hidden_act="mish")])
    encoder = model[0].encoder
    with pytest.raises(ValueError, match=r"1\.encoder \(transformers\.models\.bert\.modeling_bert\.BertEncoder\)"):
        swap_encoder(model)
    assert model[0].encoder is encoder
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_what_is_used_outside_the_encoder_too_is_refused_and_left_as_it_was() -> None:
    """Its weights would be gone there."""
    model = bert()
    layer = model.encoder.layer[1]
    model.again = layer
    model.tied = layer.output.dense.weight
    with pytest.raises(ValueError, match=r"tied, again: used by encoder and outside it too"):
        swap_encoder(model)
    assert not any(tensor.is_meta for tensor in model.parameters())
    del model.again, model.tied
    swap_encoder(model)


def in_a_list(model: Any, layer: Any) -> None:
    model.heads = [nn.Identity(), layer]


def in_a_dictionary(model: Any, layer: Any) -> None:
    model.pooler.by_name = {"last": (layer.output.dense,)}


def in_a_tuple(model: Any, layer: Any) -> None:
    """Where nn.Module does not look for submodules."""
    model.hidden_from_module = (layer.output.dense.weight,)


def in_a_set(model: Any, layer: Any) -> None:
    model.frozen = {layer.output.dense.bias}


def as_a_method(model: Any, layer: Any) -> None:
    model.extra = layer.forward


def as_a_partial(model: Any, layer: Any) -> None:
    model.extra = functools.partial(nn.functional.linear, weight=layer.output.dense.weight)


def past_setattr(model: Any, layer: Any) -> None:
    vars(model)["aside"] = layer


def as_a_table(model: Any, layer: Any) -> None:
    """As an output layer that shares its matrix."""
    model.decoder = nn.Linear(16, 12)
    model.decoder.weight = layer.output.dense.weight


def in_a_parameter_list(model: Any, layer: Any) -> None:
    model.kept = nn.ParameterList([layer.output.dense.weight])


def in_another_encoder(model: Any, layer: Any) -> None:
    model.second = bert()
    model.second.encoder.layer[0] = layer


OUTSIDE: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    "a list": (in_a_list, r"heads\.1: used by encoder"),
    "a dictionary": (in_a_dictionary, r"pooler\.by_name\.last\.0: used by encoder"),
    "a tuple": (in_a_tuple, r"hidden_from_module\.0: used by encoder"),
    "a set": (in_a_set, r"frozen\.0: used by encoder"),
    "a method": (as_a_method, r"extra: used by encoder"),
    "a partial": (as_a_partial, r"extra\.weight: used by encoder"),
    "past setattr": (past_setattr, r"aside: used by encoder"),
    "an output layer": (as_a_table, r"decoder\.weight: used by encoder"),
    "a parameter list": (in_a_parameter_list, r"kept\.0: used by encoder"),
    "another encoder": (in_another_encoder, r"second\.encoder\.layer\.0: used by encoder"),
}


@pytest.mark.parametrize(("share", "message"), OUTSIDE.values(), ids=OUTSIDE)
def test_a_layer_that_the_model_uses_elsewhere_is_refused_by_name(
    share: Callable[[Any, Any], None], message: str
) -> None:
    model = bert()
    layer = model.encoder.layer[1]
    share(model, layer)
    with pytest.raises(UnsupportedError, match=message):
        swap_encoder(model)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *layer.parameters()))


def test_containers_of_other_things_are_no_obstacle() -> None:
    model = bert()
    model.notes = {"self": [model], "depth": [[[[1]]]], "encoders": (model.encoder,)}
    model.notes["notes"] = model.notes
    swap_encoder(model)


@pytest.mark.parametrize("persistent", [False, True])
def test_buffers_inside_the_encoder_are_refused(persistent: bool) -> None:
    """One that no state_dict has would come back from unswap_encoder without its values."""
    model = bert()
    model.encoder.layer[1].register_buffer("gate", torch.ones(3), persistent=persistent)
    with pytest.raises(UnsupportedError, match=r"buffers: layer\.1\.gate"):
        swap_encoder(model)
    assert model.encoder.layer[1].gate.sum() == 3


def test_twice_or_not_at_all() -> None:
    model = bert()
    with pytest.raises(ValueError, match=r"BertModel has no swapped encoder; swap_encoder\(model\) makes one"):
        unswap_encoder(model)
    with pytest.raises(ValueError, match=r"BertModel has 0 swapped encoders \(swap_encoder\(model\) makes one\)"):
        fused_encoder(model)
    swap_encoder(model)
    with pytest.raises(ValueError, match=r"already swapped: encoder; unswap_encoder\(model\) undoes it"):
        swap_encoder(model)


CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "attentions": ({"output_attentions": True}, "output_attentions"),
    "hidden states": ({"output_hidden_states": True}, "output_hidden_states"),
    "cross-attention": ({"encoder_hidden_states": torch.zeros(1, 3, 12)}, "encoder_hidden_states"),
    "cache": ({"past_key_values": transformers.DynamicCache()}, "past_key_values"),
    "causal mask": ({"attention_mask": torch.ones(2, 1, 5, 5).tril().bool()}, "rows differ"),
    "additive causal mask": ({"attention_mask": torch.full((2, 1, 5, 5), -1e9).triu(1)}, "rows differ"),
    "a bias": ({"attention_mask": torch.full((2, 1, 1, 5), -0.5)}, "a bias, not a mask"),
    "a mask of each head": ({"attention_mask": torch.ones(2, 3, 5, 5).bool()}, r"is \(2, 3, 5, 5\)"),
}


@pytest.mark.parametrize(("options", "message"), CALLS.values(), ids=CALLS)
def test_calls_that_ask_for_more(options: dict[str, Any], message: str) -> None:
    model = swap_encoder(bert(attn_implementation="eager"))
    ids = torch.ones(2, 5, dtype=torch.int64)
    model(input_ids=ids, output_attentions=False, output_hidden_states=False)
    with pytest.raises(ValueError, match=message):
        model(input_ids=ids, **options)


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_configs_that_ask_for_more_later(name: str) -> None:
    model = swap_encoder(bert(attn_implementation="eager"))
    setattr(model.config, name, True)
    with pytest.raises(ValueError, match=name):
        model(input_ids=torch.ones(2, 5, dtype=torch.int64))


LOWEST = torch.finfo(torch.float16).min
FORMS: dict[str, tuple[torch.Tensor, list[list[int]]]] = {
    "bool": (torch.tensor([[True, False, True], [True, True, False]]), [[1, 0, 1], [1, 1, 0]]),
    "integers": (torch.tensor([[1, 0, 1], [0, 0, 0]]), [[1, 0, 1], [0, 0, 0]]),
    "ones in floats": (torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]), [[1, 0, 1], [1, 1, 1]]),
    "bool, one row": (torch.tensor([[[[True, False, True]]], [[[True, True, True]]]]), [[1, 0, 1], [1, 1, 1]]),
    "bool, all rows": (torch.tensor([True, False, True]).expand(2, 1, 3, 3), [[1, 0, 1], [1, 0, 1]]),
    "of one sequence": (torch.tensor([[[[True, False, True]]]]), [[1, 0, 1], [1, 0, 1]]),
    "-inf": (torch.tensor([0, float("-inf"), 0]).expand(2, 1, 3, 3), [[1, 0, 1], [1, 0, 1]]),
    "lowest": (torch.tensor([0, LOWEST, 0]).half().expand(2, 1, 3, 3), [[1, 0, 1], [1, 0, 1]]),
    "-10000": (torch.tensor([0, -10000.0, 0]).expand(2, 1, 1, 3), [[1, 0, 1], [1, 0, 1]]),
    "masked queries see nothing": (
        torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1]]).bool().expand(2, 1, 3, 3),
        [[1, 0, 1], [1, 0, 1]],
    ),
}


@pytest.mark.parametrize(("mask", "wanted"), FORMS.values(), ids=FORMS)
def test_every_form_of_a_padding_mask(mask: torch.Tensor, wanted: list[list[int]]) -> None:
    valid = masks.from_transformers(mask, 2, 3)
    assert valid is not None
    assert valid.int().tolist() == wanted


WRONG: dict[str, tuple[object, str]] = {
    "a list": ([[1, 1, 1], [1, 1, 0]], 'a list; wanted: a tensor.*set_attn_implementation\\("sdpa"\\)'),
    "three dimensions": (torch.ones(2, 3, 3).bool(), r"is \(2, 3, 3\) for 2 sequences of 3 tokens"),
    "other length": (torch.ones(2, 4), r"is \(2, 4\) for 2 sequences of 3 tokens"),
    "other batch": (torch.ones(3, 1, 3, 3).bool(), r"is \(3, 1, 3, 3\)"),
    "two dimensions of scores": (torch.tensor([[0, LOWEST, 0], [0, 0, 0]]), "values other than 1"),
    "integers in four": (torch.ones(2, 1, 3, 3, dtype=torch.int64), "type torch.int64; wanted: bool, or floats"),
    "blocks": (torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool().expand(2, 1, 3, 3), "rows differ"),
    "not a number": (torch.tensor([0, float("nan"), 0]).expand(2, 1, 3, 3), "a bias"),
    "more of one": (torch.tensor([0, 1.0, 0]).expand(2, 1, 3, 3), "a bias"),
}


@pytest.mark.parametrize(("mask", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_padding_mask(mask: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masks.from_transformers(mask, 2, 3)
