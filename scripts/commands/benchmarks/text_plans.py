"""A BERT through NVIDIA TensorRT, as a peer: a plan of its own for each shape of padded input.

The network is written as ONNX in half precision, packed projections and attention spelled out, so that TensorRT may
fuse them; where no sequence is padded, without a mask. Fixed shapes are what TensorRT is fastest at. A plan is built
when its shape first comes, and kept in the cache of plans. TensorRT 8.6; its tactics are its own.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.text_peers import check_bert, load_network, packed_qkv, padded, unpadded
from handlers.encoder.packing import TokenBatch
from handlers.engines import EngineSpec, LoadedEngine, graphs, plans, tensorrt

OPSET = 17  # the newest that TensorRT 8.6 reads, and the oldest with LayerNormalization
INPUTS, OUTPUT = ("input_ids", "token_type_ids", "mask"), "hidden"
# Added to the scores of padding: exp() of it is 0, and fp16 holds it.
FORBIDDEN = -1e4
EXAMPLE = (2, 8)


def why_not_here(spec: EngineSpec) -> str | None:
    """Return why TensorRT cannot be a peer here, or None."""
    if spec.device.type != "cuda" or spec.precision != "fp16":
        return f"TensorRT needs an NVIDIA GPU and fp16; got {spec.device} and {spec.precision}"
    if not tensorrt.installed():
        return "the package tensorrt is not installed (pip install tensorrt)"
    return None


def load(spec: EngineSpec) -> LoadedEngine:
    """Write the network's two ONNX files, and wait for shapes. Raises ValueError with why_not_here's reason."""
    if reason := why_not_here(spec):
        raise ValueError(reason)
    network = load_network(spec)
    encoder, pad_id = PlainBert(network), int(network.config.pad_token_id or 0)
    onnx = {masked: export(encoder, masked) for masked in (False, True)}
    version = tensorrt.tensorrt_module().__version__
    return LoadedEngine(PlanByShape(spec, onnx, pad_id), {"library": f"TensorRT {version}", "plans": "one a shape"})


class PlainBert(nn.Module):
    """A BertModel in the operations that exporters know, its weights shared, query, key and value packed."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        check_bert(network.config)
        self.heads: int = network.config.num_attention_heads
        self.head_size: int = network.config.hidden_size // self.heads
        self.embeddings: Any = network.embeddings
        self.layers: Any = network.encoder.layer
        packed = [packed_qkv(layer.attention.self) for layer in self.layers]
        for place, (weight, bias) in enumerate(packed):
            self.register_buffer(f"weight{place}", weight)
            self.register_buffer(f"bias{place}", bias)

    def forward(self, ids: torch.Tensor, types: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """ids, types: (N, S) int32. mask: (N, S), 0 or FORBIDDEN, in the weights' dtype. -> (N, S, hidden)"""
        parts = self.embeddings
        hidden: torch.Tensor = parts.word_embeddings(ids) + parts.token_type_embeddings(types)
        hidden = parts.LayerNorm(hidden + parts.position_embeddings.weight[: ids.shape[1]])
        scores = None if mask is None else mask[:, None, None, :]  # (N, 1, 1, S)
        for place, layer in enumerate(self.layers):
            context = self.attend(hidden, place, scores)
            hidden = _normed(layer.attention.output, context, hidden)
            hidden = _normed(layer.output, layer.intermediate(hidden), hidden)
        return hidden

    def attend(self, hidden: torch.Tensor, place: int, mask: torch.Tensor | None) -> torch.Tensor:
        """(N, S, hidden) -> (N, S, hidden), before the output projection"""
        count, tokens = hidden.shape[:2]
        qkv = nn.functional.linear(hidden, self.get_buffer(f"weight{place}"), self.get_buffer(f"bias{place}"))
        heads = qkv.view(count, tokens, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4)
        query, key, value = heads[0], heads[1], heads[2]  # each (N, heads, S, D)
        scores = query @ key.transpose(2, 3) * self.head_size**-0.5  # (N, heads, S, S)
        context = torch.softmax(scores if mask is None else scores + mask, dim=-1) @ value
        return context.transpose(1, 2).flatten(2)


def _normed(output: Any, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = output.LayerNorm(output.dense(x) + residual)
    return normed


@torch.inference_mode()
def export(encoder: PlainBert, masked: bool) -> bytes:
    """The network as ONNX with open shapes; INPUTS (the mask where `masked`) -> OUTPUT (N, S, hidden)."""
    weight = encoder.get_buffer("weight0")
    ids = torch.zeros(EXAMPLE, dtype=torch.int32, device=weight.device)
    example = (ids, ids, torch.zeros(EXAMPLE, dtype=weight.dtype, device=weight.device))[: 3 if masked else 2]
    names = INPUTS[: len(example)]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own age
        path = Path(folder) / "encoder.onnx"
        torch.onnx.export(
            encoder,
            example,
            str(path),
            input_names=list(names),
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamic_axes={name: {0: "sequences", 1: "tokens"} for name in (*names, OUTPUT)},
            dynamo=False,  # needs onnx alone, and writes what TensorRT 8.6 reads
        )
        return path.read_bytes()


def build(spec: EngineSpec, onnx: bytes, shape: tuple[int, int]) -> bytes:
    """The plan for inputs of this one shape (N, S). Raises plans.PlanError."""
    trt = tensorrt.tensorrt_module()
    with torch.cuda.device(spec.device):
        log = tensorrt.TensorRTLog(trt)
        builder = trt.Builder(log.logger)
        network = builder.create_network(tensorrt.network_flags(trt))
        parser = trt.OnnxParser(network, log.logger)
        if not parser.parse(onnx):
            errors = "; ".join(str(parser.get_error(place)) for place in range(parser.num_errors))
            raise plans.PlanError(f"TensorRT cannot read the encoder: {errors}")
        for place in range(network.num_inputs):
            network.get_input(place).shape = shape
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, tensorrt.WORKSPACE_BYTES)
        if "STRONGLY_TYPED" not in trt.NetworkDefinitionCreationFlag.__members__:
            config.set_flag(trt.BuilderFlag.FP16)
        with tensorrt.timing_cache(trt, config, spec, log), tensorrt.log_progress(1):
            plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise plans.PlanError(f"TensorRT built no plan: {log.last_error or 'it gave no reason'}")
    return bytes(plan)


def fingerprint(spec: EngineSpec, onnx: bytes, shape: tuple[int, int]) -> plans.Fingerprint:
    """What the plan depends on; the shape stands where the buckets do, and no image has a size."""
    properties = torch.cuda.get_device_properties(spec.device)
    return plans.Fingerprint(
        tensorrt=tensorrt.tensorrt_module().__version__,
        cuda=str(torch.version.cuda),
        compute_capability=f"{properties.major}.{properties.minor}",
        gpu=properties.name,
        onnx=hashlib.sha256(onnx).hexdigest(),
        buckets=shape,
        image_size=0,
        precision=spec.precision,
    )


def inputs_of(batch: TokenBatch, pad_id: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """INPUTS, each (N, S); without the mask where nothing is padded."""
    ids, types, mask = padded(batch, pad_id)
    inputs = [ids.int(), types.int()]
    return inputs if mask is None else [*inputs, torch.where(mask, 0.0, FORBIDDEN).to(dtype)]


class PlanByShape:
    """TokenBatch -> token vectors (T, hidden) fp16, on the current stream; plans and contexts by shape."""

    def __init__(self, spec: EngineSpec, onnx: Mapping[bool, bytes], pad_id: int) -> None:
        self.spec, self.onnx, self.pad_id = spec, onnx, pad_id
        self.runners: dict[tuple[bool, int, int], _PlanRunner] = {}

    @torch.inference_mode()
    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        inputs = inputs_of(batch, self.pad_id, self.spec.dtype)
        return unpadded(self.runner(len(inputs) == len(INPUTS), *inputs[0].shape)(inputs), batch)

    def runner(self, masked: bool, count: int, tokens: int) -> _PlanRunner:
        """Of one shape; its plan from the cache, or built."""
        key = (masked, count, tokens)
        if key not in self.runners:
            onnx, shape, spec = self.onnx[masked], (count, tokens), self.spec
            archived = spec.model_dir / tensorrt.PLAN_FOLDER
            wanted = fingerprint(spec, onnx, shape)
            plan = plans.obtain(archived, spec.plan_cache, wanted, spec.on_mismatch, lambda: build(spec, onnx, shape))
            self.runners[key] = _PlanRunner(plan.content, spec.device)
        return self.runners[key]


class _PlanRunner:
    """A deserialised plan of fixed shapes as a CUDA graph, as the engines it is compared with have."""

    def __init__(self, content: bytes, device: torch.device) -> None:
        trt = tensorrt.tensorrt_module()
        self.log, self.device = tensorrt.TensorRTLog(trt), device
        with torch.cuda.device(device):
            self.runtime = trt.Runtime(self.log.logger)
            self.engine = self.runtime.deserialize_cuda_engine(content)
            if self.engine is None:
                raise plans.PlanError(f"TensorRT cannot deserialise the plan: {self.log.last_error}")
            self.context = self.engine.create_execution_context()
        self.hidden = torch.empty(tuple(self.engine.get_tensor_shape(OUTPUT)), dtype=torch.float16, device=device)
        self.inputs: list[torch.Tensor] = []
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """INPUTS, each (N, S) -> (N, S, hidden)"""
        if self.graph is None:
            self.graph = self._capture(inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.hidden.clone()

    def _capture(self, inputs: list[torch.Tensor]) -> torch.cuda.CUDAGraph:
        self.inputs = [one.clone(memory_format=torch.contiguous_format) for one in inputs]
        for name, tensor in zip((*INPUTS[: len(inputs)], OUTPUT), (*self.inputs, self.hidden), strict=True):
            self.context.set_tensor_address(name, tensor.data_ptr())
        return graphs.capture_graph(self._execute, self.device, None, graphs.SharedOutput())[0]

    def _execute(self) -> torch.Tensor:
        if not self.context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise RuntimeError(f"TensorRT did not run the batch: {self.log.last_error}")
        return self.hidden
