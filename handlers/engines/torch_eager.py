"""Plain PyTorch through transformers' own modules: the reference, and the default where nothing faster can run.

Serves any image classifier of handlers.engines.networks in channels_last, and BERT-family encoders with their heads
through scaled-dot-product attention.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from handlers import LOCAL
from handlers.encoder.packing import TokenBatch, pad, unpad
from handlers.engines import Engine, EngineSpec
from handlers.engines.image_inputs import ImageInputs, outputs

KINDS = ("image-classifier", "text-encoder")
RANK = 0

AUTO_MODELS = {
    "embeddings": "AutoModel",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "fill-mask": "AutoModelForMaskedLM",
}


def objection(spec: EngineSpec) -> str | None:
    """None, but for fp8: PyTorch runs everything else, everywhere."""
    return "it runs fp32, fp16 and bf16, and the precision is fp8" if spec.precision == "fp8" else None


def load(spec: EngineSpec) -> Engine:
    """Load a Hugging Face folder's network onto the spec's device, in its precision."""
    if spec.precision == "fp32":  # cuDNN would use TF32 in convolutions, and fp32 has to mean fp32
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    if spec.kind == "image-classifier":
        return _load_image_classifier(spec)
    return _load_text_encoder(spec)


def _load_image_classifier(spec: EngineSpec) -> Engine:
    from handlers.engines import networks

    network = load_classifier(spec)

    @torch.inference_mode()
    def run(images: ImageInputs) -> torch.Tensor:
        return outputs(network, images)  # (N, classes) or (N, features)

    details = {"library": f"torch {torch.__version__}", "network": networks.title(spec.model_dir)}
    return Engine(run, {**details, "memoryFormat": "channels_last"})


def load_classifier(spec: EngineSpec) -> Any:
    """The folder's network, in eval mode and channels_last, on the spec's device."""
    from handlers.engines import networks

    return networks.load(spec.model_dir, spec.dtype).to(spec.device, memory_format=torch.channels_last)


def _load_text_encoder(spec: EngineSpec) -> Engine:
    network = load_transformer(spec.model_dir, spec.task, dtype=spec.dtype).eval().to(spec.device)
    attention = str(network.config._attn_implementation)
    return Engine(
        PaddedEncoder(network, spec.task), {"library": f"torch {torch.__version__}", "attention": attention}
    )


def load_transformer(folder: Any, task: str, **options: Any) -> Any:
    """The transformers model for a task, without the pooling layer that no task here reads from."""
    import transformers

    config = _config(folder)
    options |= without_pooling(config, task)
    return getattr(transformers, AUTO_MODELS[task]).from_pretrained(folder, config=config, **LOCAL, **options)


def empty_transformer(folder: Any, task: str) -> Any:
    """The same model with weights that nobody has set: to look at its structure, on the meta device for instance."""
    import transformers

    config = _config(folder)
    options = {"trust_remote_code": False, **without_pooling(config, task)}
    return getattr(transformers, AUTO_MODELS[task]).from_config(config, **options).eval()


def _config(folder: Any) -> Any:
    """The folder's config, less what it wants returned for training: hidden states, attentions, tuples.

    Attention is transformers' choice for the network: one that a file names may be a kernel to be fetched and run.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
    config._attn_implementation, config._experts_implementation = None, None
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    return config


def without_pooling(config: Any, task: str) -> dict[str, bool]:
    """How to build the task's model without the pooling layer, where its class can be."""
    import transformers

    if task != "embeddings":
        return {}
    model_class: Any = transformers.MODEL_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class  # Funnel has two, both without
    takes = "add_pooling_layer" in inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if takes else {}


class PaddedEncoder:
    """A transformers model behind the packed interface: pads, runs, and gives back valid tokens only."""

    def __init__(self, network: nn.Module, task: str) -> None:
        self.network, self.task = network, task
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
        if self.task == "sequence-classification":
            logits: torch.Tensor = self.network(**inputs).logits  # (N, labels)
            return logits
        if self.task == "embeddings":
            return unpad(self.network(**inputs).last_hidden_state, batch)  # (T, hidden)
        return self._per_token_logits(inputs, batch)

    def _per_token_logits(self, inputs: dict[str, torch.Tensor], batch: TokenBatch) -> torch.Tensor:
        """Heads that look at one token at a time see the valid (or selected) ones only.

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
