"""The vanilla encoders that can be fused, by the full names of their classes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from handlers.encoder.errors import UnsupportedError
from handlers.encoder.layouts import BERT, DISTILBERT, TORCH, Layout
from handlers.encoder.swapped import SwappedBert, SwappedDistilBert, SwappedTorch
from handlers.misfits import listed


@dataclass(frozen=True)
class Family:
    """Encoders that are built alike. Attributes are written as dotted paths.

    Args:
        layout: the names of their tensors.
        layers: the encoder's list of layers.
        heads: a layer's number of attention heads.
        activation: a layer's activation function or module.
        replacement: the module that stands in for such an encoder.
        config: the encoder's config, or None if it has none.
    """

    layout: Layout
    layers: str
    heads: str
    activation: str
    replacement: type[SwappedBert | SwappedTorch]
    config: str | None = None


BERT_LIKE = Family(
    BERT, "layer", "attention.self.num_attention_heads", "intermediate.intermediate_act_fn", SwappedBert, "config"
)
DISTILBERT_LIKE = Family(
    *(DISTILBERT, "layer", "attention.n_heads", "ffn.activation", SwappedDistilBert),
    config="layer.0.attention.config",
)
TORCH_LIKE = Family(TORCH, "layers", "self_attn.num_heads", "activation", SwappedTorch)

FAMILIES: dict[str, Family] = {
    "transformers.models.bert.modeling_bert.BertEncoder": BERT_LIKE,
    "transformers.models.bert_generation.modeling_bert_generation.BertEncoder": BERT_LIKE,
    "transformers.models.camembert.modeling_camembert.CamembertEncoder": BERT_LIKE,
    "transformers.models.data2vec.modeling_data2vec_text.Data2VecTextEncoder": BERT_LIKE,
    "transformers.models.electra.modeling_electra.ElectraEncoder": BERT_LIKE,
    "transformers.models.ernie.modeling_ernie.ErnieEncoder": BERT_LIKE,
    "transformers.models.layoutlm.modeling_layoutlm.LayoutLMEncoder": BERT_LIKE,
    "transformers.models.markuplm.modeling_markuplm.MarkupLMEncoder": BERT_LIKE,
    "transformers.models.roberta.modeling_roberta.RobertaEncoder": BERT_LIKE,
    "transformers.models.roc_bert.modeling_roc_bert.RoCBertEncoder": BERT_LIKE,
    "transformers.models.splinter.modeling_splinter.SplinterEncoder": BERT_LIKE,
    "transformers.models.tapas.modeling_tapas.TapasEncoder": BERT_LIKE,
    "transformers.models.visual_bert.modeling_visual_bert.VisualBertEncoder": BERT_LIKE,
    "transformers.models.xlm_roberta.modeling_xlm_roberta.XLMRobertaEncoder": BERT_LIKE,
    "transformers.models.distilbert.modeling_distilbert.Transformer": DISTILBERT_LIKE,
    "torch.nn.modules.transformer.TransformerEncoder": TORCH_LIKE,
}
# Why other architectures cannot be fused, by transformers' model_type.
REASONS = {
    "albert": "its layers share one set of weights",
    "big_bird": "its attention is sparse",
    "convbert": "its attention has convolutions",
    "deberta": "its attention looks at relative positions",
    "deberta-v2": "its attention looks at relative positions",
    "esm": "it is pre-norm, and its attention may rotate positions",
    "luke": "its attention treats words and entities differently",
    "megatron-bert": "it is pre-norm, and its tensors have other names",
    "mpnet": "its attention looks at relative positions",
    "nomic_bert": "its attention rotates positions",
    "rembert": "its embeddings are projected within the encoder",
    "roformer": "its attention rotates positions",
    "mobilebert": "its layers have bottlenecks",
    "modernbert": "its attention rotates positions",
    "roberta-prelayernorm": "it is pre-norm, and its tensors have other names",
    "xlm-roberta-xl": "it is pre-norm, and its tensors have other names",
    "xmod": "its layers have adapters",
}


def find_encoders(model: nn.Module) -> dict[str, nn.Module]:
    """Return the encoders in `model` that may be fused, by their names in it. "" is the model itself.

    Raises:
        UnsupportedError: there is none; the message says why.
    """
    found = {name: module for name, module in model.named_modules() if class_name(module) in FAMILIES}
    if not found:
        raise UnsupportedError(_why_none(model))
    return found


def class_name(module: nn.Module) -> str:
    """Return the class with its module, such as transformers.models.bert.modeling_bert.BertEncoder."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _why_none(model: nn.Module) -> str:
    model_type = str(getattr(getattr(model, "config", None), "model_type", ""))
    derived = [
        f"{type(module).__name__} is a subclass of {base.__name__}"
        for module in model.modules()
        for base in type(module).__mro__[1:]
        if f"{base.__module__}.{base.__qualname__}" in FAMILIES
    ]
    reason = REASONS.get(model_type) or listed(derived) or "it has none of the classes below"
    supported = ", ".join(sorted({name.rpartition(".")[2] for name in FAMILIES}))
    return f"{type(model).__name__} has no encoder that can be fused: {reason}. Fused are {supported}"
