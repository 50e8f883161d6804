"""ResNets and BERT-style encoders through ONNX Runtime, on a CPU, in fp32.

Its ONNX is made at load out of the archive's weights (handlers/engines/onnx_networks.py). A ResNet runs there as a
whole, BatchNorm folded. Of a text model the encoder's layers do; embeddings and head, which take a few per cent of
the time, stay PyTorch's.

ONNX Runtime gets as many threads as PyTorch has in this worker (handlers/placement.py). They do not spin while they
wait: idle workers would take the busy ones' CPUs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn

from handlers.encoder.ops import Segments, TorchEncoderOps
from handlers.engines import Engine, EngineSpec
from handlers.engines.onnx_graph import Graph
from handlers.engines.onnx_networks import HIDDEN, IMAGES, LENGTHS, encoder, encoder_objection, resnet

KINDS = ("image-classifier", "text-encoder")
RANK = 20

MISSING = (
    "the package onnxruntime, which is faster than PyTorch on many CPUs, is not installed: scripts/setup serve cpu, "
    "or pip install onnxruntime"
)
PIXELS = 8 * 224 * 224  # of the images that run at once; a CPU gains nothing from more, which take memory
TOKENS = 2048  # that run at once, as for PIXELS
MAX_TOKENS = 2048  # of one text: all of its attention scores lie in memory, (heads, tokens, tokens)
PADDING = 64  # tokens of padding that texts may bring each other, before running them apart costs less


def objection(spec: EngineSpec) -> str | None:
    """Why not: it runs on a CPU, in fp32, a ResNet with ReLU or an encoder that can be fused."""
    return unfit(spec) if spec.device.type == "cpu" else f"it runs on CPUs, and the device is {spec.device}"


def unfit(spec: EngineSpec) -> str | None:
    """Why it would run `spec` on no machine; without reading weights."""
    if spec.precision != "fp32":
        return f"it runs fp32, and the precision is {spec.precision}"
    if not (spec.model_dir / "config.json").is_file():
        return f"{spec.model_dir} has no config.json"
    return _unfit_images(spec) if spec.kind == "image-classifier" else _unfit_texts(spec)


def ready(spec: EngineSpec) -> bool:
    """Whether the package is installed."""
    return unready(spec) is None


def unready(spec: EngineSpec) -> str | None:
    """That the package is missing, or None."""
    return None if importlib.util.find_spec("onnxruntime") else MISSING


def load(spec: EngineSpec) -> Engine:
    """Read the weights, write the ONNX, start ONNX Runtime. Raises ValueError if the package is not installed."""
    if why := unready(spec):
        raise ValueError(why)
    return _load_images(spec) if spec.kind == "image-classifier" else _load_texts(spec)


def _unfit_images(spec: EngineSpec) -> str | None:
    from handlers.engines import cudnn

    return cudnn.unfit(replace(spec, precision="fp16"))  # the same networks: handlers.engines.folding folds both's


def _unfit_texts(spec: EngineSpec) -> str | None:
    from handlers.encoder.swap import fused_encoder, swap_encoder
    from handlers.engines import fused
    from handlers.engines.torch_eager import empty_transformer

    if spec.max_tokens > MAX_TOKENS:
        return f"it takes texts of at most {MAX_TOKENS} tokens, and the model's maximum is {spec.max_tokens}"
    if why := fused.unfit(spec):
        return why
    with torch.device("meta"):
        config = fused_encoder(swap_encoder(empty_transformer(spec.model_dir, spec.task))).config
    why = encoder_objection(config)
    return why and f"it runs BERT's layers, and of this encoder {why}"


def _load_images(spec: EngineSpec) -> Engine:
    from handlers.engines import networks
    from handlers.engines.folding import fold_resnet

    folded = fold_resnet(networks.load(spec.model_dir, torch.float32), spec.device, torch.float32)
    network = session(*resnet(folded, spec.image_size))
    at_once = max(1, PIXELS // spec.image_size**2)

    def run(images: torch.Tensor) -> torch.Tensor:
        parts = [part.contiguous().numpy() for part in images.split(at_once)]
        return torch.cat([torch.from_numpy(network.run(None, {IMAGES: part})[0]) for part in parts])

    return Engine(run, {**_details(), "network": networks.title(spec.model_dir), "batchNorm": "folded"})


def _load_texts(spec: EngineSpec) -> Engine:
    from handlers.encoder.packed import PackedModel
    from handlers.engines.fused import Packed
    from handlers.engines.torch_eager import load_transformer

    network = load_transformer(spec.model_dir, spec.task, dtype=torch.float32).eval()
    model: Any = PackedModel(network, spec.task).eval()
    model.encoder = OnnxEncoder(session(*encoder(model.encoder)))
    details = {**_details(), "padding": f"up to {PADDING} tokens among texts of like length"}
    return Engine(Packed(model), details, pads=False, token_budget=TOKENS)


class OnnxEncoder(nn.Module):
    """In a FusedEncoder's place: (T, H) packed -> (T, H)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.ops = TorchEncoderOps()  # what the embeddings are computed with

    def forward(self, hidden: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Rows of texts of like length together, padded to the longest of them."""
        lengths = segments.lengths or tuple(segments.cu_seqlens.diff().tolist())
        if len(set(lengths)) == 1 and len(lengths) * lengths[0] <= TOKENS:
            return self._run(hidden.view(len(lengths), lengths[0], -1), lengths).flatten(0, 1)
        encoded = torch.empty_like(hidden)
        starts = list(accumulate(lengths, initial=0))
        for places in alike(lengths):
            its_lengths = [lengths[place] for place in places]
            rows, real = _rows([starts[place] for place in places], its_lengths)  # (n, S) both
            encoded[rows[real]] = self._run(hidden[rows], its_lengths)[real]
        return encoded

    def _run(self, hidden: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """(n, S, H) -> (n, S, H)"""
        inputs = {HIDDEN: hidden.numpy(), LENGTHS: np.array(lengths, dtype=np.int32)}
        return torch.from_numpy(self.network.run(None, inputs)[0])


def _rows(starts: Sequence[int], lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed rows of texts, the last one over and over for padding; and which of them are no padding. (n, S)"""
    counts, columns = torch.tensor(lengths).unsqueeze(1), torch.arange(max(lengths))
    return torch.tensor(starts).unsqueeze(1) + columns.minimum(counts - 1), columns < counts


def alike(lengths: Sequence[int]) -> list[list[int]]:
    """Places of texts that run together: of at most TOKENS, of which at most PADDING are padding."""
    groups: list[list[int]] = []
    longest, padding = 0, 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        padding += longest - lengths[place]
        if not groups or padding > PADDING or (len(groups[-1]) + 1) * longest > TOKENS:
            groups.append([])
            longest, padding = lengths[place], 0
        groups[-1].append(place)
    return groups


def session(graph: Graph, model: bytes) -> Any:
    """A network that ONNX Runtime has loaded: session.run(None, inputs by name) -> [output]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(values) for values in graph.weights.values()]
    options.add_external_initializers(list(graph.weights), values)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _details() -> dict[str, object]:
    libraries = f"onnxruntime {importlib.metadata.version('onnxruntime')}, torch {torch.__version__}"
    return {"library": libraries, "threads": torch.get_num_threads()}
