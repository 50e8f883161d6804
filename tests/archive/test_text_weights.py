"""Which weights of a text checkpoint are used, left out with a note, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertForSequenceClassification

from archive.checkpoints import text_checkpoints
from archive.checkpoints.errors import CheckpointError

# transformers 5.20 scripts a part of DeBERTa with TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

Edit = Callable[[dict[str, torch.Tensor]], object]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
MASKED = ("Albert", "Bert", "ConvBert", "DebertaV2", "Electra", "MPNet", "ModernBert", "NomicBert", "Roberta")


@pytest.fixture
def folder_of(tiny_bert: Path, tmp_path: Path) -> Callable[..., Path]:
    """folder_of("BertForMaskedLM", **settings) -> such a checkpoint, of random weights, with BERT's tokenizer."""

    def make(name: str, **settings: Any) -> Path:
        folder = Path(shutil.copytree(tiny_bert, tmp_path / name))
        for path in (folder / "modules.json", folder / "sentence_bert_config.json"):
            path.unlink()
        family = name.partition("For")[0].removesuffix("Model")
        config_class = getattr(transformers, f"{family}Config")
        vocabulary = json.loads((tiny_bert / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        ids = {key: value for key, value in IDS.items() if key in config_class.__dataclass_fields__}
        size = {"vocab_size": vocabulary, "max_position_embeddings": 70, **SIZES, **ids, **settings}
        torch.manual_seed(0)
        getattr(transformers, name)(config_class(**size)).save_pretrained(folder)
        return folder

    return make


def edit_weights(folder: Path, edit: Edit) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(content), encoding="utf-8")


def ids_of(checkpoint: Any) -> Any:
    return checkpoint.tokenizer("one two three", return_tensors="pt")


@pytest.mark.parametrize("family", MASKED)
def test_embeddings_of_masked_word_checkpoints(folder_of: Callable[..., Path], family: str) -> None:
    folder = folder_of(f"{family}ForMaskedLM")
    checkpoint = text_checkpoints.read(str(folder), "embeddings")
    assert checkpoint.unused
    theirs = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        tokens = ids_of(checkpoint)
        ours, wanted = checkpoint.model(**tokens).last_hidden_state, theirs(**tokens).last_hidden_state
    assert torch.equal(ours, wanted)


def test_a_pooler_next_to_a_classifier(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("RobertaForSequenceClassification")
    names = {"roberta.pooler.dense.weight": torch.ones(32, 32), "roberta.pooler.dense.bias": torch.ones(32)}
    edit_weights(folder, lambda state: state.update(names))
    assert set(text_checkpoints.read(str(folder)).unused) == set(names)


@pytest.mark.parametrize(
    "name",
    [
        "bert.embeddings.position_ids",
        "bert.embeddings.token_type_ids",
        "bert.encoder.layer.1.attention.self.rotary_embeddings.inv_freq",
        "cls.seq_relationship.weight",
        "score.weight",
    ],
)
def test_unused_weights_outside_the_encoder_are_noted(folder_of: Callable[..., Path], name: str) -> None:
    folder = folder_of("BertForSequenceClassification")
    edit_weights(folder, lambda state: state.update({name: torch.arange(4.0)}))
    assert set(text_checkpoints.read(str(folder)).unused) <= {name}  # transformers keeps quiet of its own buffers


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layer.2.output.dense.weight",
        "encoder.layer.0.attention.self.query.lora_A.default.weight",
        "encoder.layer.0.attention.self.distance_embedding.weight",
        "encoder.rel_embeddings.weight",
        "embeddings.task_type_embeddings.weight",
    ],
)
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_unexpected_weights_within_the_encoder_are_refused(
    folder_of: Callable[..., Path], name: str, prefix: str
) -> None:
    folder = folder_of("BertForMaskedLM" if prefix else "BertModel")
    edit_weights(folder, lambda state: state.update({f"{prefix}{name}": torch.zeros(32, 32)}))
    with pytest.raises(CheckpointError, match=r"unexpected: \S*" + name.replace(".", r"\.")):
        text_checkpoints.read(str(folder))


def test_fewer_layers_than_the_weights_hold(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("BertModel")
    edit_config(folder, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"unexpected: encoder\.layer\.1\..*of more layers"):
        text_checkpoints.read(str(folder))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_prefixes_are_stripped(folder_of: Callable[..., Path], prefix: str) -> None:
    folder = folder_of("BertForSequenceClassification")
    wanted = text_checkpoints.read(str(folder)).model.state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({f"{prefix}{name}": value for name, value in state.items()}, folder / "pytorch_model.bin")
    came = text_checkpoints.read(str(folder)).model.state_dict()
    assert came.keys() == wanted.keys()
    assert all(torch.equal(came[name], wanted[name]) for name in wanted)


def test_weights_that_are_quantised(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("BertModel")
    name = "encoder.layer.0.output.dense.weight"
    edit_weights(folder, lambda state: state.update({name: state[name].to(torch.int8)}))
    with pytest.raises(CheckpointError, match=r"dense\.weight \(torch\.int8\)\. Wanted: .*if the model is quantised"):
        text_checkpoints.read(str(folder))


# Folders with code of their own, which is never run.

HUB = "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert"
NOMIC = {
    "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
    "AutoModel": f"{HUB}.NomicBertModel",
    "AutoModelForMaskedLM": f"{HUB}.NomicBertForPreTraining",
}


@pytest.fixture
def nomic(folder_of: Callable[..., Path]) -> Path:
    folder = folder_of("NomicBertModel")
    edit_config(folder, auto_map=NOMIC)
    return folder


def test_transformers_own_class_takes_the_place_of_the_folders_code(nomic: Path) -> None:
    checkpoint = text_checkpoints.read(str(nomic))
    assert type(checkpoint.model).__module__.startswith("transformers.models.nomic_bert")
    assert not hasattr(checkpoint.model.config, "auto_map")


def test_the_settings_of_the_authors_code_by_its_own_names(nomic: Path) -> None:
    wanted = text_checkpoints.read(str(nomic))
    content = json.loads((nomic / "config.json").read_text(encoding="utf-8"))
    theirs = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "rotary_emb_base": 1000, "prenorm": False}
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rope_parameters")
    content = {**{key: value for key, value in content.items() if key not in names}, **theirs}
    (nomic / "config.json").write_text(json.dumps(content), encoding="utf-8")
    came = text_checkpoints.read(str(nomic))
    with torch.inference_mode():
        tokens = ids_of(came)
        assert torch.equal(came.model(**tokens)[0], wanted.model(**tokens)[0])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"auto_map": {**NOMIC, "AutoModel": f"{HUB}.NomicVisionModel"}}, "names code of its own to run"),
        ({"auto_map": {"AutoModelForMaskedLM": "mine.NomicBertForMaskedLM"}}, "names code of its own to run"),
        ({"auto_map": ["mine.NomicBertModel"]}, "names code of its own to run"),
        ({"activation_function": "gelu"}, "says activation_function 'gelu'"),
        ({"rotary_emb_fraction": 0.5}, "says rotary_emb_fraction 0.5"),
        ({"prenorm": True}, "says prenorm True"),
    ],
)
def test_code_that_may_compute_something_else(nomic: Path, changes: dict[str, object], expected: str) -> None:
    edit_config(nomic, **changes)
    with pytest.raises(CheckpointError) as refused:
        text_checkpoints.read(str(nomic))
    assert expected in str(refused.value)


def test_weights_that_transformers_own_class_does_not_take(nomic: Path) -> None:
    edit_weights(nomic, lambda state: state.update({"encoder.layers.0.mlp.router.weight": torch.zeros(2, 2)}))
    with pytest.raises(CheckpointError, match="unexpected"):
        text_checkpoints.read(str(nomic))


@pytest.mark.parametrize("named", [True, False], ids=["with its code's name", "with BERT's"])
def test_jinas_encoder_is_no_plain_bert(folder_of: Callable[..., Path], named: bool) -> None:
    """Its config.json says model_type bert, and its positions are ALiBi's, which have no weights."""
    folder = folder_of("BertModel")
    model = "JinaBertModel" if named else "BertModel"
    auto = {"AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig"}
    auto["AutoModel"] = f"jinaai/jina-bert-implementation--modeling_bert.{model}"
    edit_config(folder, auto_map=auto if named else None, position_embedding_type="alibi")
    with pytest.raises(CheckpointError) as refused:
        text_checkpoints.read(str(folder))
    assert "position_embedding_type 'alibi'" in str(refused.value) or "code of its own" in str(refused.value)


def test_labels_that_are_not_numbered_from_zero(folder_of: Callable[..., Path]) -> None:
    folder = folder_of("BertForSequenceClassification")
    for labels in ({"1": "a", "2": "b"}, {"0": "a", "2": "b"}):
        edit_config(folder, id2label=labels, label2id={name: int(key) for key, name in labels.items()})
        with pytest.raises(CheckpointError, match=r"id2label in config\.json must number its 2 labels from 0"):
            text_checkpoints.read(str(folder))
    edit_config(folder, id2label={"0": 0, "1": 1}, label2id=None)
    assert text_checkpoints.read(str(folder)).model.config.id2label == {0: "0", 1: "1"}
    assert (
        BertConfig.from_pretrained(folder).num_labels
        == BertForSequenceClassification.from_pretrained(folder).num_labels
    )
