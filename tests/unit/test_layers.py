"""The log says at which layer an input's values stop being finite; once, not for each request."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from handlers.encoder.packed import PackedModel
from handlers.encoder.packing import TokenBatch
from handlers.engines.text_networks import Packed
from handlers.engines.torch_eager import PaddedEncoder
from handlers.serving.layers import EVERY_S, LayerSearch, first_not_finite

CONFIG = transformers.BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
)


class Overflow(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * 1e30 * 1e30


def network(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Identity(), nn.Sequential(*layers))


def test_the_innermost_layer_is_named_with_the_one_before() -> None:
    found = network(nn.Identity(), Overflow(), nn.Identity())
    text = first_not_finite(found, found, torch.ones(1, 4))
    assert text == "the first layer whose output is not finite is 1.1 (Overflow, float32); the last finite one is 1.0"


def test_a_second_run_that_is_finite_is_told() -> None:
    found = network(nn.Identity())
    assert "suspect the GPU" in first_not_finite(found, found, torch.ones(1, 4))


def test_what_follows_the_layers_is_told() -> None:
    found = network(nn.Identity())
    text = first_not_finite(lambda batch: found(batch) / 0, found, torch.ones(1, 4))
    assert text.startswith("all layers that can be looked at give finite outputs, up to the whole network")


def spoilt_bert() -> Any:
    torch.manual_seed(0)
    bert = transformers.BertModel(CONFIG, add_pooling_layer=False).eval()
    with torch.no_grad():
        bert.encoder.layer[1].output.dense.bias[0] = float("inf")
    return bert


BATCH = TokenBatch.pack([[1, 2, 3]], [[0, 0, 0]], torch.device("cpu"))


def test_the_padded_encoder() -> None:
    bert = spoilt_bert()
    text = first_not_finite(PaddedEncoder(bert, "embeddings"), bert, BATCH)
    assert "is encoder.layer.1.output.dense (Linear, float32)" in text


def test_the_fused_encoder() -> None:
    model = PackedModel(spoilt_bert(), "embeddings")
    text = first_not_finite(Packed(model), model, BATCH)
    assert text.endswith("is encoder.layers.1 (FusedLayer, float32); the last finite one is encoder.layers.0")


def test_hooks_are_gone_afterwards() -> None:
    found = network(nn.Identity())
    first_not_finite(found, found, torch.ones(1, 4))
    assert not any(module._forward_hooks for module in found.modules())


def test_it_looks_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    found, now = network(Overflow()), [0.0]
    search = LayerSearch((found, found), lambda: now[0])
    for moment in (0.0, 1.0, EVERY_S - 1, EVERY_S):
        now[0] = moment
        search.explain(lambda: torch.ones(1, 4))
    assert caplog.text.count("the first layer whose output is not finite") == 2


def test_a_search_that_fails_is_logged_without_what_came(caplog: pytest.LogCaptureFixture) -> None:
    def batch() -> Any:
        raise ValueError("S3CRET".lower())

    LayerSearch((network(), network())).explain(batch)
    assert "looking for the layer" in caplog.text
    assert "s3cret" not in caplog.text


def test_an_engine_without_layers_is_left_alone() -> None:
    LayerSearch(None).explain(lambda: pytest.fail("nothing to look at"))
