"""BERTs that are read without transformers: the same module, the same weights, the same outputs, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from handlers.encoder.packing import TokenBatch
from handlers.engines import EngineSpec, bert_folders, fused, text_networks
from handlers.engines.placing import place

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 50,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
}
CPU = torch.device("cpu")
BATCH = TokenBatch.pack([[2, 7, 1, 9, 3], [5, 0, 6]], [[0, 0, 1, 1, 1], [0, 0, 0]], CPU)

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """save(model_type, **config values) -> the folder of a tiny model without a pooling layer."""

    def make(model_type: str = "bert", **values: object) -> Path:
        config = transformers.AutoConfig.for_model(model_type, **{**TINY, **values})
        torch.manual_seed(1)
        network = transformers.AutoModel.from_config(config, add_pooling_layer=False)
        for parameter in network.parameters():  # biases and LayerNorms too are unlike their initial values
            torch.nn.init.normal_(parameter, std=0.5)
        network.save_pretrained(tmp_path)
        return tmp_path

    return make


def spec_of(folder: Path, precision: str = "fp32", task: str = "embeddings") -> EngineSpec:
    return EngineSpec("text-encoder", folder, CPU, precision, task=task)


def edit(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "left out"}))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("bert", {}),
        ("bert", {"hidden_act": "relu", "layer_norm_eps": 1e-5, "pad_token_id": 3}),
        ("roberta", {"type_vocab_size": 1}),
        ("xlm-roberta", {"pad_token_id": 0}),
        ("camembert", {"layer_norm_eps": 1e-3}),
    ],
)
@torch.inference_mode()
def test_both_ways_give_the_same_model(save: Save, model_type: str, values: dict[str, Any], precision: str) -> None:
    spec = spec_of(save(model_type, **values), precision)
    direct, swapped = bert_folders.load(spec), text_networks.swapped_transformer(spec)
    assert direct is not None
    found, wanted = direct.state_dict(), swapped.state_dict()
    assert list(found) == list(wanted)
    assert {value.dtype for value in found.values()} == {spec.dtype}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert direct.embeddings.positions == swapped.embeddings.positions
    assert direct.encoder.config == swapped.encoder.config
    assert (direct.rows, direct.task, direct.head) == (swapped.rows, swapped.task, swapped.head)
    assert not any(module.training for module in direct.modules())
    types = BATCH.token_type_ids % (values.get("type_vocab_size") or 2)
    outputs = [model.hidden(BATCH.input_ids, types, BATCH.segments) for model in (direct, swapped)]
    assert torch.equal(*outputs)
    assert outputs[0].isfinite().all()


def test_it_is_what_the_engine_serves(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(save())
    wanted = text_networks.swapped_transformer(spec).hidden(BATCH.input_ids, BATCH.token_type_ids, BATCH.segments)
    config = text_networks.fused_config(spec)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("transformers was asked")

    monkeypatch.setattr(text_networks, "empty_transformer", refuse)
    monkeypatch.setattr(text_networks, "load_transformer", refuse)
    assert text_networks.why_not_fused(spec) is None
    assert text_networks.fused_config(spec) == config
    assert torch.equal(fused.ENGINE.load(spec).run(BATCH), wanted)


@pytest.mark.parametrize(
    "values",
    [
        {"a_setting_of_tomorrow": True},
        {"quantization_config": {"load_in_8bit": True}},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"position_embedding_type": "relative_key"},
        {"chunk_size_feed_forward": 4},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "left out"},
        {"layer_norm_eps": "left out"},
        {"num_attention_heads": 4.0},
        {"num_attention_heads": 5},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 3},
        {"vocab_size": 51},
        {"intermediate_size": True},
        {"max_position_embeddings": 0},
        {"model_type": "electra"},
        {"model_type": "roberta", "pad_token_id": None},
        {"model_type": "roberta", "pad_token_id": -1},
        {"model_type": ["bert"]},
    ],
    ids=str,
)
def test_what_is_not_wholly_known_goes_through_transformers(save: Save, values: dict[str, Any]) -> None:
    folder = save()
    assert bert_folders.read(spec_of(folder))
    edit(folder, **values)
    assert bert_folders.read(spec_of(folder)) is None
    assert bert_folders.load(spec_of(folder)) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("encoder.layer.1.output.dense.bias"),
        lambda state: state.update({"pooler.dense.bias": torch.zeros(32)}),
        lambda state: state.update({"embeddings.LayerNorm.weight": torch.zeros(31)}),
        lambda state: state.update({"embeddings.LayerNorm.weight": torch.zeros(32, dtype=torch.float16)}),
    ],
    ids=["missing", "unexpected", "misshapen", "not fp32"],
)
def test_other_tensors_go_through_transformers(save: Save, change: Callable[[dict[str, Any]], object]) -> None:
    folder = save()
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert bert_folders.read(spec_of(folder)) is None


def test_damaged_and_missing_files_go_through_transformers(save: Save) -> None:
    folder = save()
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    assert bert_folders.read(spec_of(folder)) is None
    (folder / "model.safetensors").unlink()
    assert bert_folders.read(spec_of(folder)) is None
    (folder / "config.json").write_text("{", encoding="utf-8")
    assert bert_folders.read(spec_of(folder)) is None
    (folder / "config.json").write_text("[]", encoding="utf-8")
    assert bert_folders.read(spec_of(folder)) is None


def test_an_adapter_goes_through_transformers(save: Save) -> None:
    folder = save()
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert bert_folders.read(spec_of(folder)) is None


@pytest.mark.parametrize(
    "task", ["sequence-classification", "token-classification", "fill-mask", "sparse-embeddings"]
)
def test_models_with_heads_go_through_transformers(save: Save, task: str) -> None:
    assert bert_folders.read(spec_of(save(), task=task)) is None


def test_a_setting_that_is_not_known_still_serves(save: Save) -> None:
    folder = save()
    wanted = fused.ENGINE.load(spec_of(folder)).run(BATCH)
    edit(folder, a_setting_of_tomorrow=True)
    assert text_networks.why_not_fused(spec_of(folder)) is None
    assert torch.equal(fused.ENGINE.load(spec_of(folder)).run(BATCH), wanted)


def test_a_worker_that_serves_it_never_imports_transformers(save: Save) -> None:
    """The import takes longer than PyTorch's, and longer than the weights of a BERT-Large take to load."""
    code = (
        "import sys, torch; from pathlib import Path; import handlers.text_encoder\n"
        "from handlers.engines import EngineSpec; from handlers.selection import candidates, verification\n"
        "spec = EngineSpec('text-encoder', Path(sys.argv[1]), torch.device('cpu'), 'fp32', task='embeddings')\n"
        "(name,) = candidates.able('fused', spec)\n"
        "engine = verification.engines.load(name, spec)\n"
        "seconds = ('transformers', 'scipy', 'sympy', 'torch._dynamo', 'torch.distributed.tensor')\n"
        "print(sorted(set(seconds) & sys.modules.keys()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(save())], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_placing_gives_the_bits_of_to(dtype: torch.dtype) -> None:
    """Tied weights stay tied, and integers stay integers."""

    def network() -> Any:
        torch.manual_seed(2)
        config = transformers.BertConfig(**TINY)
        model = transformers.BertForMaskedLM(config).eval()
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
        return model

    placed, moved = place(network(), CPU, dtype), network().to(CPU, dtype)
    assert placed.cls.predictions.decoder.weight is placed.bert.embeddings.word_embeddings.weight
    assert placed.bert.embeddings.position_ids.dtype == torch.int64
    found, wanted = placed.state_dict(), moved.state_dict()
    assert list(found) == list(wanted)
    assert all(found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted)
