"""What text encoders are also run with, to compare: transformers' own, torch.compile, PyTorch's fast path.

Each runs the task "embeddings": a TokenBatch in, token vectors (T, hidden) out.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from benchmarks import compiling
from handlers.encoder.packing import TokenBatch, pad, unpad
from handlers.engines import EngineSpec, LoadedEngine
from handlers.engines.text_networks import load_transformer
from handlers.engines.torch_eager import PaddedEncoder


def load_eager(spec: EngineSpec) -> LoadedEngine:
    """transformers' own encoder with its attention written out: matmul, softmax, matmul."""
    return _padded(spec, "eager")


def load_sdpa(spec: EngineSpec) -> LoadedEngine:
    """transformers' own encoder with scaled_dot_product_attention: what the engine torch_eager serves."""
    return _padded(spec, "sdpa")


def _padded(spec: EngineSpec, attention: str) -> LoadedEngine:
    network = load_network(spec, attention)
    details: dict[str, object] = {"library": f"torch {torch.__version__}", "attention": attention}
    return LoadedEngine(PaddedEncoder(network, spec.task), details)


def load_network(spec: EngineSpec, attention: str = "sdpa") -> Any:
    """The spec's transformers network in eval mode, on its device, in its precision; fp32 without TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    network = load_transformer(spec.model_dir, spec.task, dtype=spec.dtype, attn_implementation=attention)
    return network.eval().to(spec.device)


def load_compiled(spec: EngineSpec) -> LoadedEngine:
    """torch.compile of the network of load_sdpa, for sequences of one length."""
    network = load_network(spec)
    compiled, pad_id = compiling.Compiled(network), int(network.config.pad_token_id or 0)

    def run(batch: TokenBatch) -> torch.Tensor:
        ids, types, mask = padded(batch, pad_id)
        if mask is not None:
            raise ValueError("compile would compile anew for each micro-batch; wanted: sequences of one length")
        return unpadded(compiled(input_ids=ids, token_type_ids=types).last_hidden_state, batch).clone()

    return compiling.engine(run)


def load_fast_path(spec: EngineSpec) -> LoadedEngine:
    """nn.TransformerEncoder's inference fast path with a BERT's weights; padding leaves as nested tensors."""
    warnings.filterwarnings("ignore", message=".*nested tensors is in prototype")
    network = load_network(spec)
    encoder = torch_encoder(network, spec.device, spec.dtype)
    details: dict[str, object] = {"library": f"torch {torch.__version__}", "attention": "nested tensors"}
    return LoadedEngine(FastPath(network.embeddings, encoder, int(network.config.pad_token_id or 0)), details)


class FastPath:
    """transformers' embeddings, then PyTorch's encoder; padding goes in, and is left out inside the encoder alone."""

    def __init__(self, embeddings: nn.Module, encoder: nn.TransformerEncoder, pad_id: int) -> None:
        self.embeddings, self.encoder, self.pad_id = embeddings, encoder, pad_id

    @torch.inference_mode()
    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        ids, types, mask = padded(batch, self.pad_id)
        hidden = self.embeddings(input_ids=ids, token_type_ids=types)  # (N, S, hidden)
        skipped = None if mask is None else ~mask
        return unpadded(self.encoder(hidden, src_key_padding_mask=skipped), batch)


def torch_encoder(network: Any, device: torch.device, dtype: torch.dtype) -> nn.TransformerEncoder:
    """A BertModel's layers as PyTorch's own. Raises ValueError where those cannot be the same function."""
    config = network.config
    check_bert(config)
    layer = nn.TransformerEncoderLayer(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        activation=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        batch_first=True,
        device=device,
        dtype=dtype,
    )
    # The mask's check would wait for the GPU in each call; padding is on the right here, always.
    encoder = nn.TransformerEncoder(layer, config.num_hidden_layers, mask_check=False)
    for mine, theirs in zip(encoder.layers, network.encoder.layer, strict=True):
        mine.load_state_dict(remapped(theirs))
    return encoder.eval()


def check_bert(config: Any) -> None:
    """Raises ValueError for what is not a BERT with GELU, in transformers' own layout."""
    if config.model_type != "bert" or config.hidden_act != "gelu":
        raise ValueError(
            f"a {config.model_type} with {config.hidden_act} came; this peer knows how to read a bert with gelu"
        )


def remapped(layer: Any) -> dict[str, torch.Tensor]:
    """A BertLayer's weights by the names of nn.TransformerEncoderLayer."""
    attended, inner = layer.attention.output, layer.intermediate.dense
    weight, bias = packed_qkv(layer.attention.self)
    parts = {
        "self_attn.out_proj": attended.dense,
        "norm1": attended.LayerNorm,
        "linear1": inner,
        "linear2": layer.output.dense,
        "norm2": layer.output.LayerNorm,
    }
    named = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    return {"self_attn.in_proj_weight": weight, "self_attn.in_proj_bias": bias, **named}


def packed_qkv(attention: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Query's, key's and value's weights (3H, H) and biases (3H,), one below the other."""
    parts = (attention.query, attention.key, attention.value)
    return torch.cat([part.weight.detach() for part in parts]), torch.cat([part.bias.detach() for part in parts])


def padded(batch: TokenBatch, pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Ids and token types (N, S), and a mask (N, S) that is true where there is a token; None where all are."""
    if _uniform(batch):
        shape = (len(batch), batch.lengths[0])
        return batch.input_ids.view(shape), batch.token_type_ids.view(shape), None
    mask = pad(torch.ones_like(batch.input_ids, dtype=torch.bool), batch, 0)
    return pad(batch.input_ids, batch, pad_id), pad(batch.token_type_ids, batch, 0), mask


def unpadded(hidden: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """(N, S, hidden) -> (T, hidden); a view where there is no padding."""
    return hidden.flatten(0, 1) if _uniform(batch) else unpad(hidden, batch)


def _uniform(batch: TokenBatch) -> bool:
    return len(set(batch.lengths)) == 1
