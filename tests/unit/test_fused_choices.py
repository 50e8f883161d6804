"""The fused engine's decisions, which need no GPU: what it runs, which graph a batch replays, parts of products."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import BertConfig, MPNetConfig, PretrainedConfig

from handlers import engines
from handlers.encoder.packing import TokenBatch
from handlers.engines import EngineSpec, fused
from handlers.selection import candidates

SMALL: dict[str, Any] = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[PretrainedConfig], Path]:
    """A folder with a config and no weights: why_not_here has to do without them."""

    def save(config: PretrainedConfig) -> Path:
        folder = tmp_path_factory.mktemp("config")
        config.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def bert(folder_of: Callable[[PretrainedConfig], Path]) -> Path:
    return folder_of(BertConfig(**SMALL))


def spec(folder: Path, device: torch.device = CPU, precision: str = "fp32", task: str = "embeddings") -> EngineSpec:
    return EngineSpec("text-encoder", folder, device, precision, task=task)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """gpu(capability, hip's version, Triton's absence) -> PyTorch and Python say so from then on."""

    def pretend(capability: tuple[int, int] = (9, 0), hip: str | None = None, triton: bool = True) -> None:
        found = importlib.util.find_spec
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: (triton or None) if name == "triton" else found(name)
        )

    return pretend


def test_it_is_the_first_choice_of_texts_and_no_choice_of_images() -> None:
    assert next(name for name in engines.names("text-encoder") if name != "onnxruntime") == "fused"
    assert "fused" not in engines.names("image-classifier")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("task", ["embeddings", "sequence-classification", "token-classification", "fill-mask"])
def test_a_cpu_runs_every_task_and_precision(bert: Path, task: str, precision: str) -> None:
    assert fused.ENGINE.why_not_here(spec(bert, precision=precision, task=task)) is None


GPUS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "hopper": ({}, "fp16", None),
    "ampere": ({"capability": (8, 0)}, "bf16", None),
    "turing": ({"capability": (7, 5)}, "fp16", "compute capability 8.0 or newer"),
    "amd": ({"hip": "7.0"}, "fp16", "it needs an NVIDIA GPU"),
    "fp32": ({}, "fp32", ", and the precision is fp32"),
    "no triton": ({"triton": False}, "fp16", "Triton is not installed"),
}


@pytest.mark.parametrize(("machine", "precision", "said"), GPUS.values(), ids=GPUS)
def test_what_it_does_not_run_on_a_gpu(
    bert: Path, gpu: Callable[..., None], machine: Mapping[str, Any], precision: str, said: str | None
) -> None:
    gpu(**machine)
    why = fused.ENGINE.why_not_here(spec(bert, GPU, precision))
    assert why is None if said is None else said in (why or "")
    assert candidates.choose("auto", spec(bert, GPU, precision)) == ["torch_eager" if said else "fused"]


def test_other_encoders_are_refused_by_name(folder_of: Callable[[PretrainedConfig], Path], bert: Path) -> None:
    why = fused.ENGINE.why_not_here(spec(folder_of(MPNetConfig(**SMALL))))
    assert why is not None
    assert why.startswith("MPNetModel has no encoder that can be fused: its attention looks at relative")
    clipped = fused.ENGINE.why_not_here(spec(folder_of(BertConfig(**SMALL, hidden_act="gelu_10"))))
    assert clipped is not None
    assert "BertEncoder) cannot be fused" in clipped


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert fused.ENGINE.why_not_here(spec(tmp_path)) == f"{tmp_path} has no config.json"


GRAPHS = {
    "1 token": (1, 1, (64, 8)),
    "a full graph": (64, 2, (64, 8)),
    "one more": (65, 2, (128, 8)),
    "steps of 128": (513, 10, (640, 40)),
    "steps of 256": (1025, 10, (1280, 80)),
    "more of 256": (2049, 10, (2304, 144)),
    "steps of 512": (4097, 10, (4608, 288)),
    "the largest": (6144, 384, (6144, 384)),
    "three texts of twenty tokens": (60, 3, (64, 8)),
    "short texts": (60, 9, (64, 16)),
    "as many as fit": (6144, 1536, (6144, 1536)),
    "too many": (64, 17, None),
    "too many of the largest": (6144, 1537, None),
    "too long": (6145, 1, None),
}


@pytest.mark.parametrize(("tokens", "sequences", "graph"), GRAPHS.values(), ids=GRAPHS)
def test_the_smallest_graph_that_holds_a_batch(tokens: int, sequences: int, graph: tuple[int, int] | None) -> None:
    assert fused.smallest_graph(tokens, sequences) == graph


def test_graphs_hold_what_they_are_for() -> None:
    """And waste at most a third of what they compute, beyond 128 tokens."""
    assert list(fused.GRAPH_TOKENS) == sorted(set(fused.GRAPH_TOKENS))
    for tokens in range(1, fused.GRAPH_TOKENS[-1] + 1):
        for share in fused.TOKENS_PER_SEQUENCE:
            room, sequences = fused.smallest_graph(tokens, -(-tokens // share)) or (0, 0)
            assert room >= tokens
            assert sequences >= tokens // share
            assert room % 64 == 0
            assert tokens <= 128 or tokens > room * 2 / 3


class Recorded(fused.Graphed):
    """Captures nothing, and says what it was asked to."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(), CPU)
        self.captured: list[tuple[int, int]] = []

    def capture(self, tokens: int, sequences: int) -> None:
        self.captured.append((tokens, sequences))


def test_graphs_of_usual_texts_are_captured_while_loading() -> None:
    graphed = Recorded()
    graphed.capture_all()
    usual = {fused.smallest_graph(tokens, 1) for tokens in fused.GRAPH_TOKENS}
    short = {fused.smallest_graph(tokens, tokens // 4) for tokens in fused.GRAPH_TOKENS}
    assert len(graphed.captured) == len(set(graphed.captured))
    assert set(graphed.captured) == usual | short
    assert graphed.captured[0] == (6144, 384)


def test_what_no_graph_holds_is_run_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens a sequence: more sequences than a graph has room for."""
    pytest.importorskip("triton", reason="needs Triton")
    monkeypatch.setattr(fused, "capture_stream", str)
    monkeypatch.setattr(fused, "on_side_stream", contextlib.nullcontext)
    graphed, seen = Recorded(), []

    def hidden(ids: torch.Tensor, types: torch.Tensor, segments: Any) -> torch.Tensor:
        seen.append((len(ids), segments.lengths))
        return torch.zeros(len(ids), 8)

    graphed.model = SimpleNamespace(hidden=hidden, outputs=lambda hidden, batch: hidden)
    batch = TokenBatch.pack([[5, 6]] * 40, [[0, 0]] * 40, CPU)
    assert graphed(batch).shape == (80, 8)
    assert seen == [(80, (2,) * 40)]
    assert graphed.captured == []


def test_no_request_waits_for_a_capture() -> None:
    """Whatever comes replays a graph that was captured at load, or is launched as it is."""
    graphed = Recorded()
    graphed.capture_all()
    graphed.graphs = cast("Any", dict.fromkeys(graphed.captured))
    before = set(graphed.graphs)
    for tokens in (*range(1, 700), *range(700, 20_000, 97)):
        for sequences in (1, -(-tokens // 40), -(-tokens // 20), -(-tokens // 5), -(-tokens // 3), tokens):
            key = graphed.graph_for(tokens, sequences)
            if key is None:
                assert tokens > fused.GRAPH_TOKENS[-1] or sequences > fused.GRAPH_TOKENS[-1] // 4
            else:
                assert key in before
                assert key[0] >= tokens
                assert key[1] >= sequences
    assert graphed.graph_for(6132, 219) == (6144, 384), "texts of 28 tokens"
    assert graphed.graph_for(1280, 96) == (1280, 320)
    assert graphed.graph_for(192, 64) == (256, 64), "one word a text: the graph of 192 tokens has room for 48"


# A depth of 1344 is 21 blocks: four parts would end inside one.
SIZES = [(1024, 1024), (1024, 4096), (384, 384), (384, 1344), (768, 3072), (64, 64), (320, 192), (4096, 1024)]


@pytest.mark.parametrize("rows", [1, 64, 65, 128, 129, 256])
@pytest.mark.parametrize(("columns", "depth"), SIZES, ids=str)
def test_parts_of_a_split_product_are_whole_blocks_and_no_more_than_the_gpu_has_room_for(
    rows: int, columns: int, depth: int
) -> None:
    triton_ops = cast("Any", pytest.importorskip("handlers.encoder.triton_ops", reason="needs Triton"))
    parts = triton_ops.splits(rows, columns, depth)
    blocks = -(-rows // 64) * -(-columns // 64)
    assert depth % (parts * 64) == 0
    assert parts == 1 or blocks * parts <= triton_ops.PROGRAMS
    assert parts == 1 or depth // parts >= (256 if rows <= 128 else 512)


# BERT-Large's two products with LayerNorm behind them.
@pytest.mark.parametrize(
    ("rows", "depth", "parts"),
    [(64, 1024, 4), (64, 4096, 16), (128, 1024, 4), (128, 4096, 8), (256, 1024, 2), (256, 4096, 4)],
)
def test_how_bert_large_is_split(rows: int, depth: int, parts: int) -> None:
    triton_ops = cast("Any", pytest.importorskip("handlers.encoder.triton_ops", reason="needs Triton"))
    assert triton_ops.splits(rows, 1024, depth) == parts


@pytest.mark.parametrize(("hidden", "inner", "fits"), [(312, 1200, False), (320, 1200, True), (320, 1204, False)])
def test_fp8_wants_sizes_that_tensor_cores_multiply(
    hidden: int, inner: int, fits: bool, folder_of: Callable[[PretrainedConfig], Path]
) -> None:
    folder = folder_of(BertConfig(**{**SMALL, "hidden_size": hidden, "intermediate_size": inner}))
    (folder / "fp8.json").write_text("{}", encoding="utf-8")
    assert fused.ENGINE.why_never(spec(folder, precision="fp16")) is None
    why = fused.ENGINE.why_never(spec(folder, precision="fp8"))
    assert why is None if fits else f"hidden size {hidden} and intermediate size {inner}" in str(why)
