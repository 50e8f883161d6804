"""BERT-style encoders on packed tokens, through handlers.encoder: no padding, and fused kernels.

On an NVIDIA GPU it runs Triton's kernels in half precision or fp8, and batches of up to 6,144 tokens as CUDA graphs.
On a CPU it runs plain PyTorch, which gains from computing no padding.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch

from handlers import kernels, phases
from handlers.encoder import fp8
from handlers.encoder.ops import Segments
from handlers.encoder.packing import TokenBatch
from handlers.engines.base import Engine, EngineSpec, LoadedEngine
from handlers.engines.graphs import SharedOutput, capture_graph, capture_stream, on_side_stream
from handlers.engines.text_networks import Packed, fused_config, packed_model, sparse_pooling, why_not_fused
from handlers.tasks.shared.sparse_pooling import SparsePooling

# Token counts that graphs are captured for. Larger batches are launched kernel by kernel: a slow CPU needs about as
# long to launch a batch as an H200 needs to compute 6,144 tokens.
GRAPH_TOKENS = (
    *range(64, 513, 64), *range(640, 1025, 128), *range(1280, 4097, 256), *range(4608, 6145, 512),
)  # fmt: skip
# Each token count is captured for two sequence counts: tokens/16 (sentences and longer) and tokens/4 (a word or two).
TOKENS_PER_SEQUENCE = (16, 4)
MIN_SEQUENCES = 8  # the least sequence count of a graph
CPU_TOKEN_BUDGET = 16_384
# On a GPU. Each 1,000 tokens more take about 20 MiB more of a BERT-Large worker, and save less than 1 % of the time.
TOKEN_BUDGET = 6_144


class Fused(Engine):
    """Runs encoders that handlers.encoder can fuse. A GPU has to be NVIDIA's, with Triton, below fp32."""

    kinds = ("text-encoder",)
    rank = 10

    def why_not_here(self, spec: EngineSpec) -> str | None:
        why = _why_not_on_gpu(spec) if spec.device.type == "cuda" else None
        return why or self.why_never(spec)

    def why_never(self, spec: EngineSpec) -> str | None:
        if not (spec.model_dir / "config.json").is_file():
            return f"{spec.model_dir} has no config.json"
        if spec.precision == "fp8" and not (spec.model_dir / fp8.FILE).is_file():
            return f"the archive carries no {fp8.FILE}, which --precision fp8 makes at packaging"
        return why_not_fused(spec) or (_why_not_in_fp8(spec) if spec.precision == "fp8" else None)

    def load(self, spec: EngineSpec) -> LoadedEngine:
        """Load the network with its encoder swapped. Raises ValueError for what cannot be fused exactly."""
        model = packed_model(spec)
        if spec.precision == "fp8":
            model.to_fp8(fp8.read(spec.model_dir))
        return _load_on_gpu(model, spec) if spec.device.type == "cuda" else _load_on_cpu(model, spec)


ENGINE = Fused()


def _why_not_on_gpu(spec: EngineSpec) -> str | None:
    if why := kernels.why_not_on(spec.device):
        return why
    if spec.precision not in ("fp16", "bf16", "fp8"):
        return f"on a GPU it runs fp16, bf16 and fp8, and the precision is {spec.precision}"
    if spec.precision == "fp8" and torch.cuda.get_device_capability(spec.device) < (9, 0):
        return "fp8 needs compute capability 9.0 (Hopper) or newer"
    return None


def _why_not_in_fp8(spec: EngineSpec) -> str | None:
    config = fused_config(spec)
    if config.hidden % 16 == config.intermediate % 16 == 0:
        return None
    sizes = f"hidden size {config.hidden} and intermediate size {config.intermediate}"
    return f"fp8 needs sizes that are multiples of 16, and this network has {sizes}"


def _load_on_cpu(model: Any, spec: EngineSpec) -> LoadedEngine:
    emulated = "PyTorch; operands are rounded to e4m3 and multiplied in fp32, because a CPU has no fp8"
    used = emulated if spec.precision == "fp8" else "PyTorch"
    packed = Packed(model, sparse_pooling(spec))
    budget = packed.budget(CPU_TOKEN_BUDGET)
    details = {**_details(), "kernels": used}
    return LoadedEngine(packed, details, pads=False, token_budget=budget, layers=(packed, model))


def _load_on_gpu(model: Any, spec: EngineSpec) -> LoadedEngine:
    model.encoder.ops = _triton(spec)
    graphed = Graphed(model, spec.device, sparse_pooling(spec))
    with phases.phase("graphs"):
        graphed.capture_all()
        graphed.compile_larger()
    details = {
        **_details(),
        "kernels": f"cuBLAS, and Triton {importlib.metadata.version('triton')}",
        "graphs": f"up to {GRAPH_TOKENS[-1]} tokens",
    }
    layers = (Packed(model, sparse_pooling(spec)), model)  # graphs call no modules
    return LoadedEngine(graphed, details, pads=False, token_budget=graphed.budget(TOKEN_BUDGET), layers=layers)


def _details() -> dict[str, object]:
    return {"library": f"torch {torch.__version__}", "padding": "none: packed tokens"}


def _triton(spec: EngineSpec) -> Any:
    from handlers.encoder.fp8_triton import Fp8TritonOps
    from handlers.encoder.triton_ops import TritonEncoderOps

    return (Fp8TritonOps if spec.precision == "fp8" else TritonEncoderOps)(spec.device)


class Graphed(Packed):
    """Runs batches of up to GRAPH_TOKENS by a CUDA graph, and larger ones kernel by kernel.

    There is one graph for each bucket of (tokens, sequences); all share one memory pool. A graph always computes its
    whole bucket. Rows after the batch's tokens belong to no sequence, sequences after its last are empty; nothing
    reads either.

    Args:
        model: a PackedModel on `device`.
        device: a GPU.
        pooling: as in Packed.
    """

    def __init__(self, model: Any, device: torch.device, pooling: SparsePooling | None = None) -> None:
        super().__init__(model, pooling)
        self.device = device
        # By (tokens, sequences): graph, its inputs (ids, types, offsets), and its output (tokens, H).
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...], torch.Tensor]] = {}
        self.pool: Any = None
        self.output = SharedOutput()

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """Return the last layer's outputs (T, H)."""
        key = self.graph_for(batch.tokens, len(batch))
        if key is None:
            return self._launched(batch.input_ids, batch.token_type_ids, batch.segments)
        from handlers.kernels.encoder import copy_to_graph_inputs

        graph, (ids, types, offsets), hidden = self.graphs[key]
        copy_to_graph_inputs(batch.input_ids, batch.token_type_ids, batch.cu_seqlens, (ids, types, offsets))
        graph.replay()
        # The next replay overwrites these.
        return hidden[: batch.tokens].clone()

    def graph_for(self, tokens: int, sequences: int) -> tuple[int, int] | None:
        """Return the key of the captured graph that a batch replays, or None if it is launched kernel by kernel.

        Normally that is `smallest_graph`. A batch of few tokens in very many sequences gets a larger graph that
        takes so many sequences. No request waits for a capture: only graphs captured at load are used.
        """
        key = smallest_graph(tokens, sequences)
        if key in self.graphs:
            return key
        return min((key for key in self.graphs if key[0] >= tokens and key[1] >= sequences), default=None)

    def capture_all(self) -> None:
        """Capture all graphs, the largest first: the others then fit into its memory."""
        for tokens in reversed(GRAPH_TOKENS):
            for sequences in dict.fromkeys(sequence_counts(tokens)):
                self.capture(tokens, sequences)

    @torch.inference_mode()
    def compile_larger(self) -> None:
        """Run batches that are too large for a graph, so that no request waits for a kernel to be compiled.

        Triton compiles a second variant for counts that are not multiples of 16.
        """
        for tokens in (GRAPH_TOKENS[-1] + 64, GRAPH_TOKENS[-1] + 1):
            ids, offsets = self._blank(tokens, sequence_counts(tokens)[0])
            self._launched(ids, torch.zeros_like(ids), Segments(offsets))

    def _launched(self, ids: torch.Tensor, types: torch.Tensor, segments: Segments) -> torch.Tensor:
        """Run a batch kernel by kernel, on the stream that graphs are captured on.

        cuBLAS has a workspace of 32 MB for that stream already, and would take another one for the current stream.
        """
        with on_side_stream(capture_stream(self.device)):
            hidden: torch.Tensor = self.model.hidden(ids, types, segments)
            return hidden

    @torch.inference_mode()
    def capture(self, tokens: int, sequences: int) -> None:
        """Capture the graph of one bucket."""
        ids, offsets = self._blank(tokens, sequences)
        types, segments = torch.zeros_like(ids), Segments(offsets)
        graph, hidden = capture_graph(
            lambda: self.model.hidden(ids, types, segments), self.device, self.pool, self.output
        )
        self.pool = self.pool or graph.pool()
        self.graphs[tokens, sequences] = (graph, (ids, types, offsets), hidden)

    def _blank(self, tokens: int, sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids (tokens,) int64 and offsets (sequences + 1,) int32 of sequences of about equal length.

        Equal lengths keep each sequence within the model's position embeddings.
        """
        ids = torch.zeros(tokens, dtype=torch.int64, device=self.device)
        return ids, (torch.arange(sequences + 1, device=self.device) * tokens // sequences).int()


def sequence_counts(tokens: int) -> tuple[int, ...]:
    """Return the sequence counts that graphs of `tokens` tokens are captured for, ascending."""
    return tuple(max(MIN_SEQUENCES, tokens // share) for share in TOKENS_PER_SEQUENCE)


def smallest_graph(tokens: int, sequences: int) -> tuple[int, int] | None:
    """Return (tokens, sequences) of the smallest graph that holds such a batch; None if no graph does."""
    bucket = next((bucket for bucket in GRAPH_TOKENS if tokens <= bucket), None)
    if bucket is None:
        return None
    return next(((bucket, most) for most in sequence_counts(bucket) if sequences <= most), None)
