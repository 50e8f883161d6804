"""BERT-style encoders packed, through the fused encoder: no padding, one kernel where PyTorch has several.

On an NVIDIA GPU in half precision with Triton's kernels, small and middle batches as CUDA graphs; on a CPU with plain
PyTorch, where leaving the padding out is what there is to gain.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch

from handlers import kernels
from handlers.encoder import fp8
from handlers.encoder.ops import Segments
from handlers.encoder.packing import TokenBatch
from handlers.engines import Engine, EngineSpec
from handlers.engines.graphs import Room, captured
from handlers.engines.torch_eager import empty_transformer, load_transformer

KINDS = ("text-encoder",)
RANK = 10

# Beyond, batches are launched kernel by kernel. A slow CPU takes as long for that as an H200 computes 8,192 tokens.
GRAPH_TOKENS = (
    *range(64, 513, 64), *range(640, 1025, 128), *range(1280, 4097, 256), *range(4608, 16385, 512),
)  # fmt: skip
TOKENS_A_SEQUENCE = (32, 4)  # a graph has room for one sequence in so many tokens: texts as usual, or very short ones
LEAST_SEQUENCES = 8  # that a graph has room for
SHORT_TEXTS = 4096  # tokens up to which there are graphs for very short ones as well
TOKEN_BUDGET = 49_152  # on a GPU; BERT-Large then needs 1 GB for what passes between its layers


def objection(spec: EngineSpec) -> str | None:
    """Why not: a GPU has to be NVIDIA's, in half precision, with Triton, and the encoder one that can be fused."""
    of_gpu = _gpu_objection(spec) if spec.device.type == "cuda" else None
    return of_gpu or unfit(spec)


def _gpu_objection(spec: EngineSpec) -> str | None:
    if why := kernels.objection(spec.device):
        return why
    if spec.precision not in ("fp16", "bf16", "fp8"):
        return f"on a GPU it runs fp16, bf16 and fp8, and the precision is {spec.precision}"
    if spec.precision == "fp8" and torch.cuda.get_device_capability(spec.device) < (9, 0):
        return "fp8 needs compute capability 9.0 (Hopper) or newer"
    return None


def unfit(spec: EngineSpec) -> str | None:
    """Why it would run `spec` on no machine: what handlers.encoder says of the network, without its weights."""
    from handlers.encoder.packed import check_embeddings
    from handlers.encoder.swap import fused_encoder, swap_encoder

    if not (spec.model_dir / "config.json").is_file():
        return f"{spec.model_dir} has no config.json"
    if spec.precision == "fp8" and not (spec.model_dir / fp8.FILE).is_file():
        return f"the archive carries no {fp8.FILE}, which --precision fp8 makes at packaging"
    try:
        with torch.device("meta"):
            network = empty_transformer(spec.model_dir, spec.task)
            swap_encoder(network)
            check_embeddings(network)
    except ValueError as error:
        return str(error)
    config = fused_encoder(network).config
    if spec.precision == "fp8" and (config.hidden % 16 or config.intermediate % 16):
        sizes = f"hidden size {config.hidden} and intermediate size {config.intermediate}"
        return f"fp8 products want sizes that are multiples of 16, and this has {sizes}"
    return None


def load(spec: EngineSpec) -> Engine:
    """Load, swap the encoder, cast once. Raises ValueError, by name, for what it would not compute exactly."""
    from handlers.encoder.packed import PackedModel

    network = load_transformer(spec.model_dir, spec.task, dtype=torch.float32).eval()
    model = PackedModel(network, spec.task).eval().to(spec.device, spec.dtype)
    if spec.precision == "fp8":
        model.to_fp8(fp8.read(spec.model_dir))
    details: dict[str, object] = {"library": f"torch {torch.__version__}", "padding": "none: packed tokens"}
    if spec.device.type != "cuda":
        emulated = "PyTorch; operands are rounded to e4m3 and multiplied in fp32, for a CPU has no fp8"
        details["kernels"] = emulated if spec.precision == "fp8" else "PyTorch"
        return Engine(Packed(model), details, pads=False)
    model.encoder.ops = _triton(spec)
    graphed = Graphed(model, spec.device)
    graphed.capture_all()
    graphed.launch_beyond()
    details |= {
        "kernels": f"cuBLAS, and Triton {importlib.metadata.version('triton')}",
        "graphs": f"up to {GRAPH_TOKENS[-1]} tokens",
    }
    return Engine(graphed, details, pads=False, token_budget=TOKEN_BUDGET)


def _triton(spec: EngineSpec) -> Any:
    from handlers.encoder.fp8_triton import Fp8TritonOps
    from handlers.encoder.triton_ops import TritonEncoderOps

    return (Fp8TritonOps if spec.precision == "fp8" else TritonEncoderOps)(spec.device)


class Packed:
    """TokenBatch -> the task's outputs, launched as it comes."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.inference_mode()
    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        outputs: torch.Tensor = self.model.outputs(self.hidden(batch), batch)
        return outputs

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """(T, H)"""
        hidden: torch.Tensor = self.model.hidden(batch.input_ids, batch.token_type_ids, batch.segments)
        return hidden


class Graphed(Packed):
    """As Packed, batches of up to GRAPH_TOKENS by one CUDA graph each bucket of tokens, over one memory pool.

    A graph knows no lengths: tokens behind the batch's are computed and belong to no sequence, sequences behind its
    last are empty. Neither is read by anyone.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        super().__init__(model)
        self.device = device
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...], torch.Tensor]] = {}
        self.pool: Any = None
        self.outputs = Room()

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        key = self.graph_for(batch.tokens, len(batch))
        if key is None:
            return super().hidden(batch)
        from handlers.kernels.encoder import stage

        graph, (ids, types, offsets), hidden = self.graphs[key]
        stage(batch.input_ids, batch.token_type_ids, batch.cu_seqlens, (ids, types, offsets))
        graph.replay()
        # The next replay overwrites these.
        return hidden[: batch.tokens].clone()

    def graph_for(self, tokens: int, sequences: int) -> tuple[int, int] | None:
        """The graph that a batch replays, of those that were captured at load: no request waits for a capture.

        The one made for such texts; of few tokens in very many sequences, a larger one that has room for them.
        """
        key = graph_of(tokens, sequences)
        if key in self.graphs or tokens > SHORT_TEXTS:
            return key if key in self.graphs else None
        return min((key for key in self.graphs if key[0] >= tokens and key[1] >= sequences), default=None)

    def capture_all(self) -> None:
        """Capture all graphs, the largest first, whose memory the others then share.

        Large batches of very short texts have none: a GPU computes them for longer than their launch takes.
        """
        for tokens in reversed(GRAPH_TOKENS):
            few, many = rooms(tokens)
            self.capture(tokens, few)
            if tokens <= SHORT_TEXTS and many > few:
                self.capture(tokens, many)

    @torch.inference_mode()
    def launch_beyond(self) -> None:
        """Run what no graph holds, so that no request waits for its kernels to be compiled.

        Triton compiles anew for counts that are no multiple of 16.
        """
        for tokens in (GRAPH_TOKENS[-1] + 64, GRAPH_TOKENS[-1] + 1):
            ids, offsets = self._blank(tokens, rooms(tokens)[0])
            self.model.hidden(ids, torch.zeros_like(ids), Segments(offsets))

    @torch.inference_mode()
    def capture(self, tokens: int, sequences: int) -> None:
        """Capture the graph of one bucket."""
        ids, offsets = self._blank(tokens, sequences)
        types, segments = torch.zeros_like(ids), Segments(offsets)
        graph, hidden = captured(
            lambda: self.model.hidden(ids, types, segments), self.device, self.pool, self.outputs
        )
        self.pool = self.pool or graph.pool()
        self.graphs[tokens, sequences] = (graph, (ids, types, offsets), hidden)

    def _blank(self, tokens: int, sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and offsets of so many sequences: none has more tokens than there are position embeddings."""
        ids = torch.zeros(tokens, dtype=torch.int64, device=self.device)
        return ids, (torch.arange(sequences + 1, device=self.device) * tokens // sequences).int()


def rooms(tokens: int) -> tuple[int, ...]:
    """How many sequences the graphs of a bucket have room for, ascending."""
    return tuple(max(LEAST_SEQUENCES, tokens // share) for share in TOKENS_A_SEQUENCE)


def graph_of(tokens: int, sequences: int) -> tuple[int, int] | None:
    """The (tokens, sequences) that the smallest graph that holds a batch has room for; None: too large for any."""
    bucket = next((bucket for bucket in GRAPH_TOKENS if tokens <= bucket), None)
    if bucket is None:
        return None
    return next(((bucket, room) for room in rooms(bucket) if sequences <= room), None)
