"""The names that libraries give an encoder's tensors, as tables with one row for each part of a fused layer.

The names are those of transformers/models/bert/modeling_bert.py and .../distilbert/modeling_distilbert.py, of
torch/nn/modules/transformer.py, and of fairseq/modules/transformer_sentence_encoder_layer.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LEAVES = ("weight", "bias")
FUSED_LAYER = "layers.{}."


@dataclass(frozen=True)
class Layout:
    """A library's names for the tensors of an encoder.

    Args:
        name: the library or the architecture, for messages.
        layer: how the names in a layer begin, with {} for the layer's index.
        parts: how the names go on for each part of a FusedLayer. Several are stacked along their rows, in this order.
        final: how the names of a last LayerNorm begin, or None if it is no part of the encoder.
    """

    name: str
    layer: str
    parts: Mapping[str, tuple[str, ...]]
    final: str | None = None

    def table(self, layers: int, final_norm: bool) -> dict[str, tuple[str, ...]]:
        """Map a FusedEncoder's names to this layout's.

        Args:
            layers: number of layers.
            final_norm: whether the encoder ends with a LayerNorm.

        Returns:
            A FusedEncoder's name -> the names of the tensors that are stacked in it.

        Raises:
            ValueError: there is a last LayerNorm, and the layout has no name for it.
        """
        names = {
            f"{FUSED_LAYER.format(index)}{part}_{leaf}": tuple(
                f"{self.layer.format(index)}{prefix}{leaf}" for prefix in prefixes
            )
            for index in range(layers)
            for part, prefixes in self.parts.items()
            for leaf in LEAVES
        }
        if not final_norm:
            return names
        if self.final is None:
            raise ValueError(f"the encoder ends with a LayerNorm, for which the layout of {self.name} has no name")
        return names | {f"norm_{leaf}": (f"{self.final}{leaf}",) for leaf in LEAVES}


def count_layers(names: Iterable[str], layer: str) -> int:
    """Return the highest layer index plus one. A gap below it shows up as missing names."""
    pattern = re.compile(re.escape(layer).replace(r"\{\}", r"(\d+)"))
    indices = [int(found[1]) for found in map(pattern.match, names) if found]
    return max(indices, default=-1) + 1


BERT = Layout(
    "BERT",
    "layer.{}.",
    {
        "qkv": ("attention.self.query.", "attention.self.key.", "attention.self.value."),
        "out": ("attention.output.dense.",),
        "attention_norm": ("attention.output.LayerNorm.",),
        "up": ("intermediate.dense.",),
        "down": ("output.dense.",),
        "output_norm": ("output.LayerNorm.",),
    },
)
DISTILBERT = Layout(
    "DistilBERT",
    "layer.{}.",
    {
        "qkv": ("attention.q_lin.", "attention.k_lin.", "attention.v_lin."),
        "out": ("attention.out_lin.",),
        "attention_norm": ("sa_layer_norm.",),
        "up": ("ffn.lin1.",),
        "down": ("ffn.lin2.",),
        "output_norm": ("output_layer_norm.",),
    },
)
TORCH = Layout(
    "torch.nn.TransformerEncoder",
    "layers.{}.",
    {
        "qkv": ("self_attn.in_proj_",),
        "out": ("self_attn.out_proj.",),
        "attention_norm": ("norm1.",),
        "up": ("linear1.",),
        "down": ("linear2.",),
        "output_norm": ("norm2.",),
    },
    final="norm.",
)
_FAIRSEQ = {
    "out": ("self_attn.out_proj.",),
    "attention_norm": ("self_attn_layer_norm.",),
    "up": ("fc1.",),
    "down": ("fc2.",),
    "output_norm": ("final_layer_norm.",),
}
FAIRSEQ = Layout(
    "fairseq",
    "layers.{}.",
    {"qkv": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."), **_FAIRSEQ},
    final="layer_norm.",
)
# Before 0.9 (October 2019), as in the first RoBERTa files.
FAIRSEQ_STACKED = Layout(
    "fairseq before 0.9", "layers.{}.", {"qkv": ("self_attn.in_proj_",), **_FAIRSEQ}, final="layer_norm."
)
