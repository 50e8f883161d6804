"""handlers.encoder is a library of its own: it runs without TorchServe, and imports no more than a model needs."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import handlers.encoder

ROOT = Path(__file__).parents[2]

# Each is run in a fresh process, and then looks at what was imported.
COMMON = """
import sys
import torch
torch.manual_seed(0)

def assert_not_imported(*names):
    found = sorted(one for one in sys.modules for name in names if one == name or one.startswith(f"{name}."))
    assert found == [], found

def assert_same(found, wanted, valid):
    torch.testing.assert_close(found[valid], wanted[valid], rtol=1e-5, atol=2e-5)

SERVER = ("ts", "handlers.protocol", "handlers.serving", "handlers.settings", "handlers.engines", "handlers.tasks")
VALID = torch.tensor([[True] * 5, [True, True, False, False, False]])
"""
IMPORT = """
import handlers.encoder
from handlers.encoder import *
assert_not_imported(*SERVER, "transformers", "triton")
"""
BERT = """
import transformers
from handlers.encoder import swap_encoder, unswap_encoder
config = transformers.BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)
model = transformers.BertForTokenClassification(config).eval()
given = {"input_ids": torch.randint(20, (2, 5)), "attention_mask": VALID.long()}
with torch.inference_mode():
    wanted = model(**given).logits
    assert swap_encoder(model) is model
    assert_same(model(**given).logits, wanted, VALID)
    assert torch.equal(unswap_encoder(model)(**given).logits, wanted)
assert_not_imported(*SERVER)
"""
TORCH = """
sys.modules["transformers"] = None  # as where it is not installed
from handlers.encoder import swap_encoder, unswap_encoder
for activation in ("relu", torch.nn.GELU(), torch.nn.SiLU()):
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, activation=activation, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    src = torch.randn(2, 5, 16)
    with torch.inference_mode():
        wanted = encoder(src, src_key_padding_mask=~VALID)
        swapped = swap_encoder(encoder)
        assert_same(swapped(src, src_key_padding_mask=~VALID), wanted, VALID)
        assert unswap_encoder(swapped) is encoder
assert_not_imported(*SERVER)
"""
FAIRSEQ = """
sys.modules["transformers"] = None
from handlers.encoder import encoder_from_fairseq, fairseq_state, run_padded
layer = torch.nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True)
vanilla = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
NAMES = {
    "self_attn.in_proj_weight": "self_attn.in_proj_weight", "self_attn.in_proj_bias": "self_attn.in_proj_bias",
    "self_attn.out_proj": "self_attn.out_proj", "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm",
    "linear1": "fc1", "linear2": "fc2",
}
state = {"encoder.sentence_encoder.embed_tokens.weight": torch.zeros(20, 16)}
for name, value in vanilla.state_dict().items():
    for theirs, fairseqs in NAMES.items():
        name = name.replace(f".{theirs}", f".{fairseqs}")
    state[f"encoder.sentence_encoder.{name}"] = value
encoder = encoder_from_fairseq(state, heads=2)
hidden = torch.randn(2, 5, 16)
with torch.inference_mode():
    assert_same(run_padded(encoder, hidden, VALID), vanilla(hidden, src_key_padding_mask=~VALID), VALID)
back = fairseq_state(encoder, stacked=True)
assert all(torch.equal(back[name], value) for name, value in state.items() if "embed" not in name)
assert_not_imported(*SERVER)
"""
PACKED_HEAD = """
import transformers
from handlers.encoder import PackedModel, TokenBatch, pad
config = transformers.BertConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
)
network = transformers.BertForSequenceClassification(config).eval()
ids = [[5, 6, 7, 8, 9], [9, 8]]
batch = TokenBatch.pack(ids, [[0] * len(one) for one in ids], torch.device("cpu"))
with torch.inference_mode():
    wanted = network(input_ids=pad(batch.input_ids, batch, 0), attention_mask=VALID.long()).logits
    model = PackedModel(network, "a task of my own", rows="text")
    hidden = model.hidden(batch.input_ids, batch.token_type_ids, batch.segments)
    torch.testing.assert_close(model.outputs(hidden, batch), wanted, rtol=1e-5, atol=2e-5)
try:
    PackedModel(transformers.BertForSequenceClassification(config).eval(), "a task of my own")
except ValueError as error:
    assert "rows=" in str(error)
else:
    raise AssertionError("a task of no known shape is not refused")
assert_not_imported(*SERVER)
"""
PACKED = """
import transformers
from handlers.encoder import PackedModel, TokenBatch, pad, unpad
config = transformers.RobertaConfig(
    vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
)
network = transformers.RobertaForTokenClassification(config).eval()
ids = [[5, 6, 7, 8, 9], [9, 8]]
batch = TokenBatch.pack(ids, [[0] * len(one) for one in ids], torch.device("cpu"))
with torch.inference_mode():
    padded = pad(batch.input_ids, batch, config.pad_token_id)
    wanted = network(input_ids=padded, attention_mask=VALID.long()).logits
    model = PackedModel(network, "token-classification")
    hidden = model.hidden(batch.input_ids, batch.token_type_ids, batch.segments)
    torch.testing.assert_close(model.outputs(hidden, batch), unpad(wanted, batch), rtol=1e-5, atol=2e-5)
assert_not_imported(*SERVER)
"""
OLD_PATHS = """
from handlers.encoder.fairseq import encoder_from_fairseq, fairseq_state
from handlers.encoder.fused import EncoderConfig, FusedEncoder
from handlers.encoder.packed import PackedModel
from handlers.encoder.packing import TokenBatch, pad, unpad
from handlers.encoder.swap import fused_encoder, swap_encoder, unswap_encoder
import handlers.encoder
assert swap_encoder is handlers.encoder.swap_encoder
assert_not_imported(*SERVER, "transformers", "triton")
"""
PROGRAMS = {
    "import": IMPORT,
    "bert": BERT,
    "torch": TORCH,
    "fairseq": FAIRSEQ,
    "packed": PACKED,
    "packed, with a head of its own": PACKED_HEAD,
    "old paths": OLD_PATHS,
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_is_used_alone(program: str, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", COMMON + program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_what_is_public_is_there_and_documented() -> None:
    assert handlers.encoder.__all__ == sorted(handlers.encoder.__all__)
    for name in handlers.encoder.__all__:
        found = getattr(handlers.encoder, name)
        assert (found.__doc__ or "").strip(), name
    assert "swap_encoder(model)" in (handlers.encoder.__doc__ or "")


def test_the_page_names_all_that_is_public() -> None:
    section = (ROOT / "docs" / "encoder.md").read_text(encoding="utf-8").split("## What is public")[1]
    named = re.findall(r"^\| `(\w+)", section.split("\n## ")[0], re.MULTILINE)
    assert sorted(named) == handlers.encoder.__all__


def test_its_types_are_installed_too() -> None:
    """PEP 561. Archives carry the folder handlers as it is."""
    assert (ROOT / "handlers" / "py.typed").is_file()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert "py.typed" in setup["options.package_data"]["handlers"]
