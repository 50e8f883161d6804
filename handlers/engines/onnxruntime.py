"""ResNets and BERT-style encoders through ONNX Runtime, on a CPU, in fp32.

The ONNX network is made at load from the archive's weights (handlers.engines.onnx_networks). A ResNet runs there as a
whole, with BatchNorm folded. For a text model only the encoder's layers run there; embeddings and head, which take a
few per cent of the time, stay in PyTorch.

ONNX Runtime gets as many threads as PyTorch has in this worker (handlers.placement). They do not spin while they
wait: idle workers would take CPUs from busy ones.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn

from handlers.encoder.ops import Segments, TorchEncoderOps
from handlers.engines import resnet_folders
from handlers.engines.base import Engine, EngineSpec, LoadedEngine
from handlers.engines.folding import why_not_foldable
from handlers.engines.image_inputs import why_not_squares
from handlers.engines.onnx_graph import Graph
from handlers.engines.onnx_networks import HIDDEN, IMAGES, LENGTHS, encoder, resnet, why_no_encoder
from handlers.engines.text_networks import Packed, fused_config, packed_model, sparse_pooling, why_not_fused
from handlers.engines.titles import title

MISSING = (
    "the package onnxruntime, which is faster than PyTorch on many CPUs, is not installed: scripts/setup serve cpu, "
    "or pip install onnxruntime"
)
PIXELS = 8 * 224 * 224  # N*S*S of the images that run at once; larger batches take memory, and are no faster on a CPU
TOKENS = 2048  # tokens that run at once, padding counted; for the same reason
MAX_TOKENS = 2048  # of one text: all its attention scores lie in memory, (heads, tokens, tokens)
PADDING = 64  # the most tokens of padding in a group of texts; with more, separate runs are faster


class OnnxRuntime(Engine):
    """Runs ResNets with ReLU, and encoders that can be fused, on CPUs, in fp32."""

    kinds = ("image-classifier", "text-encoder")
    rank = 20

    def why_not_here(self, spec: EngineSpec) -> str | None:
        if spec.device.type != "cpu":
            return f"it runs on CPUs, and the device is {spec.device}"
        return self.why_never(spec)

    def why_never(self, spec: EngineSpec) -> str | None:
        if spec.precision != "fp32":
            return f"it runs fp32, and the precision is {spec.precision}"
        if not (spec.model_dir / "config.json").is_file():
            return f"{spec.model_dir} has no config.json"
        if spec.kind == "image-classifier":
            return why_not_squares(spec) or why_not_foldable(spec.model_dir)
        return _why_not_texts(spec)

    def why_auto_skips(self, spec: EngineSpec) -> str | None:
        return None if importlib.util.find_spec("onnxruntime") else MISSING

    def load(self, spec: EngineSpec) -> LoadedEngine:
        """Read the weights, write the ONNX, start ONNX Runtime. Raises ValueError if the package is not installed."""
        if why := self.why_auto_skips(spec):
            raise ValueError(why)
        return _load_images(spec) if spec.kind == "image-classifier" else _load_texts(spec)


ENGINE = OnnxRuntime()


def _why_not_texts(spec: EngineSpec) -> str | None:
    if spec.max_tokens > MAX_TOKENS:
        return f"it takes texts of at most {MAX_TOKENS} tokens, and the model's maximum is {spec.max_tokens}"
    if why := why_not_fused(spec):
        return why
    why = why_no_encoder(fused_config(spec))
    return why and f"it runs BERT's layers, and of this encoder {why}"


def _load_images(spec: EngineSpec) -> LoadedEngine:
    network = session(*resnet(resnet_folders.folded(spec), spec.image_size))
    at_once = max(1, PIXELS // spec.image_size**2)

    def run(images: torch.Tensor) -> torch.Tensor:
        parts = [part.contiguous().numpy() for part in images.split(at_once)]
        return torch.cat([torch.from_numpy(network.run(None, {IMAGES: part})[0]) for part in parts])

    return LoadedEngine(run, {**_details(), "network": title(spec.model_dir), "batchNorm": "folded"})


def _load_texts(spec: EngineSpec) -> LoadedEngine:
    model = packed_model(spec)
    model.encoder = OnnxEncoder(session(*encoder(model.encoder)))
    details = {**_details(), "padding": f"up to {PADDING} tokens among texts of like length"}
    packed = Packed(model, sparse_pooling(spec))
    return LoadedEngine(packed, details, pads=False, token_budget=packed.budget(TOKENS))


class OnnxEncoder(nn.Module):
    """Stands in for a FusedEncoder: packed tokens (T, H) -> (T, H).

    Args:
        network: a `session` of onnx_networks.encoder.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.ops = TorchEncoderOps()  # what the embeddings are computed with

    def forward(self, hidden: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Run texts of similar length together, padded to the longest of them."""
        lengths = segments.lengths or tuple(segments.cu_seqlens.diff().tolist())
        if len(set(lengths)) == 1 and len(lengths) * lengths[0] <= TOKENS:
            return self._run(hidden.view(len(lengths), lengths[0], -1), lengths).flatten(0, 1)
        encoded = torch.empty_like(hidden)
        starts = list(accumulate(lengths, initial=0))
        for group in group_by_length(lengths):
            its_lengths = [lengths[index] for index in group]
            rows, valid = _padded_rows([starts[index] for index in group], its_lengths)  # (n, S), (n, S)
            encoded[rows[valid]] = self._run(hidden[rows], its_lengths)[valid]
        return encoded

    def _run(self, hidden: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """(n, S, H) -> (n, S, H)"""
        inputs = {HIDDEN: hidden.numpy(), LENGTHS: np.array(lengths, dtype=np.int32)}
        return torch.from_numpy(self.network.run(None, inputs)[0])


def _padded_rows(starts: Sequence[int], lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the packed row of each token of a padded batch (n, S), and whether it is valid (n, S).

    Padding repeats a text's last row.
    """
    counts, columns = torch.tensor(lengths).unsqueeze(1), torch.arange(max(lengths))
    return torch.tensor(starts).unsqueeze(1) + columns.minimum(counts - 1), columns < counts


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Return indices of texts in groups that run together, each of at most TOKENS tokens and PADDING of padding."""
    groups: list[list[int]] = []
    longest, padding = 0, 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        padding += longest - lengths[index]
        if not groups or padding > PADDING or (len(groups[-1]) + 1) * longest > TOKENS:
            groups.append([])
            longest, padding = lengths[index], 0
        groups[-1].append(index)
    return groups


def session(graph: Graph, model: bytes) -> Any:
    """Load a network into ONNX Runtime.

    Args:
        graph: holds the weights.
        model: the ONNX file that names them.

    Returns: an InferenceSession; its run(None, inputs by name) returns [output].
    """
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
