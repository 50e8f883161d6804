"""Plain PyTorch through transformers' own modules: the reference, and the engine that runs everything.

It runs image classifiers of handlers.engines.networks in channels_last. It runs text encoders with their heads, pads
each batch to its longest text, and lets transformers choose the attention: scaled_dot_product_attention as a rule.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from handlers import tasks
from handlers.encoder.packing import TokenBatch, pad, unpad
from handlers.engines import sparse_logits
from handlers.engines.base import Engine, EngineSpec, LoadedEngine
from handlers.engines.image_inputs import ImageInputs, outputs
from handlers.engines.text_networks import load_transformer, sparse_pooling
from handlers.engines.titles import title
from handlers.tasks.shared.sparse_pooling import SparsePooling

TOKEN_BUDGET = 16_384


class TorchEager(Engine):
    """Runs every model in fp32, fp16 and bf16, on every device."""

    kinds = ("image-classifier", "text-encoder")
    rank = 0

    def why_not_here(self, spec: EngineSpec) -> str | None:
        return "it runs fp32, fp16 and bf16, and the precision is fp8" if spec.precision == "fp8" else None

    def load(self, spec: EngineSpec) -> LoadedEngine:
        if spec.precision == "fp32":  # cuDNN would use TF32 in convolutions, and fp32 has to mean fp32
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        return _load_image_classifier(spec) if spec.kind == "image-classifier" else _load_text_encoder(spec)


ENGINE = TorchEager()


def load_classifier(spec: EngineSpec) -> Any:
    """Return the folder's network, in eval mode and channels_last, in the spec's dtype on its device."""
    from handlers.engines import networks

    return networks.load(spec.model_dir, spec.dtype).to(spec.device, memory_format=torch.channels_last)


def _load_image_classifier(spec: EngineSpec) -> LoadedEngine:
    network = load_classifier(spec)

    @torch.inference_mode()
    def run(images: ImageInputs) -> torch.Tensor:
        return outputs(network, images)  # (N, classes) or (N, features)

    details = {"library": f"torch {torch.__version__}", "network": title(spec.model_dir)}
    return LoadedEngine(run, {**details, "memoryFormat": "channels_last"}, layers=(run, network))


def _load_text_encoder(spec: EngineSpec) -> LoadedEngine:
    network = load_transformer(spec.model_dir, spec.task, dtype=spec.dtype).eval().to(spec.device)
    attention = str(network.config._attn_implementation)
    details: dict[str, object] = {"library": f"torch {torch.__version__}", "attention": attention}
    pooling = sparse_pooling(spec)
    if pooling is None:
        encoder = PaddedEncoder(network, spec.task)
        return LoadedEngine(encoder, details, layers=(encoder, network))
    vocabulary = int(network.config.vocab_size)
    budget = sparse_logits.token_budget(TOKEN_BUDGET, vocabulary)
    sparse = SparseEncoder(network, spec.task, pooling, vocabulary)
    return LoadedEngine(sparse, details, token_budget=budget, layers=(sparse, network))


class PaddedEncoder:
    """Runs a transformers model on packed tokens: pads them, and returns outputs of valid tokens only.

    Args:
        network: the task's model, in eval mode on its device.
        task: a key of text_networks.AUTO_MODELS.
    """

    def __init__(self, network: nn.Module, task: str) -> None:
        self.network, self.head = network, tasks.head(task)
        self.base: nn.Module = network.base_model  # type: ignore[assignment]
        self.pad_id = int(network.config.pad_token_id or 0)  # type: ignore[union-attr, arg-type]
        self.takes_types = "token_type_ids" in inspect.signature(self.base.forward).parameters

    @torch.inference_mode()
    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        inputs = {"input_ids": pad(batch.input_ids, batch, self.pad_id)}  # (N, S)
        if len(set(batch.lengths)) > 1:
            inputs["attention_mask"] = pad(torch.ones_like(batch.input_ids), batch, 0)  # (N, S)
        if self.takes_types:
            inputs["token_type_ids"] = pad(batch.token_type_ids, batch, 0)  # (N, S)
        if self.head.rows == "text":
            logits: torch.Tensor = self.network(**inputs).logits  # (N, labels)
            return logits
        if self.head.is_embedding:
            return unpad(self.network(**inputs).last_hidden_state, batch)  # (T, hidden)
        return self._per_token_logits(inputs, batch)

    def _per_token_logits(self, inputs: dict[str, torch.Tensor], batch: TokenBatch) -> torch.Tensor:
        """Run a head that looks at one token at a time on the valid (or selected) tokens only.

        A vocabulary of 30,522 logits for each padding token would cost more than the encoder.
        """

        def keep(module: nn.Module, args: Any, output: Any) -> Any:
            hidden = unpad(output.last_hidden_state, batch)  # (T, hidden)
            if batch.selected is not None:
                hidden = hidden[batch.selected]  # (M, hidden)
            output.last_hidden_state = hidden.unsqueeze(0)
            return output

        with self.base.register_forward_hook(keep):
            logits: torch.Tensor = self.network(**inputs).logits  # (1, T or M, labels or vocabulary)
        return logits.squeeze(0)


class SparseEncoder(PaddedEncoder):
    """Runs a model for masked words on packed tokens, a few texts at a time, and pools the logits of each text.

    Args:
        network, task: as in PaddedEncoder.
        pooling: how logits become an embedding.
        vocabulary: logits of a token.
    """

    def __init__(self, network: nn.Module, task: str, pooling: SparsePooling, vocabulary: int) -> None:
        super().__init__(network, task)
        self.pooling, self.vocabulary = pooling, vocabulary

    @torch.inference_mode()
    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        def logits_of(part: TokenBatch, _: slice) -> torch.Tensor:
            return PaddedEncoder.__call__(self, part)

        return sparse_logits.per_text(logits_of, batch, self.vocabulary, self.pooling)
