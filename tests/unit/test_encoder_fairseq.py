"""fairseq's sentence encoder, written down from its source as a small module, against the fused one.

Source: fairseq/modules/transformer_sentence_encoder_layer.py and fairseq/modules/transformer_layer.py. Time comes
first there, as (S, N, H), and padding is masked with -inf.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from handlers.encoder.fairseq import encoder_from_fairseq
from handlers.encoder.padded import run_padded

H, I, HEADS, LAYERS = 24, 36, 3, 2  # noqa: E741
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
}


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(H, H) for _ in range(4))

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        length, rows, _ = x.shape
        query = self.q_proj(x) * (H // HEADS) ** -0.5

        def by_head(y: torch.Tensor) -> torch.Tensor:
            return y.contiguous().view(length, rows * HEADS, H // HEADS).transpose(0, 1)  # (N*heads, S, D)

        scores = torch.bmm(by_head(query), by_head(self.k_proj(x)).transpose(1, 2)).view(rows, HEADS, length, length)
        scores = scores.masked_fill(padding[:, None, None, :], float("-inf")).view(-1, length, length)
        context = torch.bmm(scores.softmax(dim=-1), by_head(self.v_proj(x)))
        attended: torch.Tensor = self.out_proj(context.transpose(0, 1).contiguous().view(length, rows, H))
        return attended


class Layer(nn.Module):
    def __init__(self, activation: str, norm_first: bool) -> None:
        super().__init__()
        self.activation, self.norm_first = FUNCTIONS[activation], norm_first
        self.self_attn = SelfAttention()
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(H), nn.LayerNorm(H)
        self.fc1, self.fc2 = nn.Linear(H, I), nn.Linear(I, H)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        normed = self.self_attn_layer_norm(x) if self.norm_first else x
        x = x + self.self_attn(normed, padding)
        x = x if self.norm_first else self.self_attn_layer_norm(x)
        normed = self.final_layer_norm(x) if self.norm_first else x
        x = x + self.fc2(self.activation(self.fc1(normed)))
        return x if self.norm_first else self.final_layer_norm(x)


class SentenceEncoder(nn.Module):
    def __init__(self, activation: str, norm_first: bool) -> None:
        super().__init__()
        self.embed_tokens, self.layernorm_embedding = nn.Embedding(20, H), nn.LayerNorm(H)
        self.layers = nn.ModuleList([Layer(activation, norm_first) for _ in range(LAYERS)])
        self.layer_norm = nn.LayerNorm(H) if norm_first else None

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.layernorm_embedding(self.embed_tokens(tokens))
        return embedded

    def forward(self, tokens: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens).transpose(0, 1)  # (S, N, H)
        for layer in self.layers:
            x = layer(x, padding)
        x = x if self.layer_norm is None else self.layer_norm(x)
        return x.transpose(0, 1)


class Roberta(nn.Module):
    def __init__(self, activation: str, norm_first: bool) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.sentence_encoder = SentenceEncoder(activation, norm_first)


def in_proj(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same state as fairseq before 0.9 named it."""
    old = {
        name: value
        for name, value in state.items()
        if not name.split(".")[-2].endswith(("q_proj", "k_proj", "v_proj"))
    }
    for number in range(LAYERS):
        layer = f"encoder.sentence_encoder.layers.{number}.self_attn."
        for leaf in ("weight", "bias"):
            parts = [state[f"{layer}{name}_proj.{leaf}"] for name in "qkv"]
            old[f"{layer}in_proj_{leaf}"] = torch.cat(parts)
    return old


@pytest.mark.parametrize("old_names", [False, True], ids=["q_proj", "in_proj_weight"])
@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("activation", FUNCTIONS)
@torch.inference_mode()
def test_a_fairseq_encoder_is_the_same_function(activation: str, norm_first: bool, old_names: bool) -> None:
    torch.manual_seed(0)
    model = Roberta(activation, norm_first).eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.3)
    state = in_proj(model.state_dict()) if old_names else model.state_dict()
    encoder = encoder_from_fairseq(state, HEADS, activation, norm_first)

    reference: SentenceEncoder = model.encoder.sentence_encoder  # type: ignore[assignment]
    tokens = torch.randint(20, (4, 9))
    padding = torch.arange(9) >= torch.tensor([[9], [1], [2], [5]])  # (N, S)
    wanted, found = reference(tokens, padding), run_padded(encoder, reference.embed(tokens), ~padding)
    # Both are fp32 sums of the same terms in another order; pre-norm residuals grow to some tens.
    torch.testing.assert_close(found[~padding], wanted[~padding], rtol=1e-5, atol=2e-5)
    assert not found[padding].any()
