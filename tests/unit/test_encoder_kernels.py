"""Triton's kernels of the fused encoder against their PyTorch twin, through Triton's interpreter: no GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import fit_gelu
import pytest
import torch
import torch.nn.functional as F

from handlers.encoder.fused import EncoderConfig, FusedEncoder
from handlers.encoder.ops import ACTIVATIONS, Norm, Positions, Segments, TorchEncoderOps

TWIN = TorchEncoderOps()
LINEAR = Path(__file__).parents[2] / "handlers" / "kernels" / "linear.py"
# Those of handlers.kernels.linear, which cannot be imported without Triton. "" is none.
TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate")
FUSED = ("", "gelu", *TANH_GELUS, "relu", "silu", "swish", "quick_gelu")
HALF = torch.float16
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["fp32", "fp16"])
# The twin computes in fp32 what the kernel is given. Sums of some hundred terms around 1 leave some 1e-6 in fp32; in
# fp16 the result is rounded once, by half of 2^-10 of a value, and attention's shares once before.
TOLERANCES = {torch.float32: 1e-5, HALF: 1e-3}

# A tile has 64 queries, a block 64 keys; sequences of length 0 stand behind the last one in CUDA graphs.
LENGTHS = {
    "one of 1": (1,),
    "one of 2": (2,),
    "around a tile": (63, 64, 65),
    "around two": (127, 128, 129),
    "one long among short": (2, 200, 1),
    "none behind the last": (5, 64, 0, 0, 0),
}
OF_LENGTHS = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
WAYS = {"from 0": Positions(), "behind the padding token": Positions(2, 1)}
BEHIND = 3  # rows of no sequence, as in CUDA graphs


@pytest.fixture(scope="module")
def kernels(interpreted: Callable[[str], Any]) -> Any:
    return interpreted("encoder")


@pytest.fixture(scope="module")
def products(interpreted: Callable[[str], Any]) -> Any:
    return interpreted("linear")


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Standard normal."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def offsets_of(lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def few_ids(lengths: tuple[int, ...]) -> torch.Tensor:
    """Of 4 kinds, so that any of them, RoBERTa's padding token among them, comes up everywhere."""
    return torch.randint(0, 4, (sum(lengths) + BEHIND,), generator=torch.Generator().manual_seed(0))


def assert_close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wanted, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@OF_LENGTHS
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_positions_count_as_the_twin_does(kernels: Any, lengths: tuple[int, ...], way: Positions) -> None:
    offsets, ids = offsets_of(lengths), few_ids(lengths)
    _, positions = kernels.tiles_and_positions(offsets, ids, way.offset, way.skipped)
    assert torch.equal(positions[: sum(lengths)], way.of(ids[: sum(lengths)], offsets))
    assert not positions[sum(lengths) :].any()  # of no sequence, and still in every table


@OF_LENGTHS
def test_there_is_a_tile_of_up_to_64_queries(kernels: Any, lengths: tuple[int, ...]) -> None:
    offsets, ids = offsets_of(lengths), few_ids(lengths)
    tiles, _ = kernels.tiles_and_positions(offsets, ids, 0, -1)
    starts = offsets[:-1].tolist()
    wanted = [[start, at, size] for start, size in zip(starts, lengths, strict=True) for at in range(0, size, 64)]
    assert tiles[: len(wanted)].tolist() == wanted
    assert not tiles[len(wanted) :].any()


# 20: a head that is no power of two is padded to 32 in the kernel.
@pytest.mark.parametrize("size", [20, 32, 64])
@OF_LENGTHS
@PRECISIONS
def test_attention(kernels: Any, lengths: tuple[int, ...], size: int, dtype: torch.dtype) -> None:
    heads, scale, offsets = 2, size**-0.5, offsets_of(lengths)
    qkv = random(sum(lengths) + BEHIND, 3 * heads * size, dtype=dtype)
    tiles, _ = kernels.tiles_and_positions(offsets, few_ids(lengths), 0, -1)
    found = kernels.attention(qkv, tiles, heads, scale)
    wanted = TWIN.attention(qkv.float(), Segments(offsets, lengths), heads, scale)
    assert found.shape == wanted.shape
    assert_close(found[: sum(lengths)], wanted[: sum(lengths)], dtype)


@pytest.mark.parametrize("programs", [1, 2, 41, 42])
def test_attention_where_programs_take_several_tiles(kernels: Any, programs: int) -> None:
    """71 tokens in 40 sequences: 42 tiles."""
    lengths = (30, *[1] * 37, 2, 2)
    qkv, offsets = random(71, 3 * 64), offsets_of(lengths)
    tiles, _ = kernels.tiles_and_positions(offsets, few_ids(lengths), 0, -1)
    assert len(tiles) == 42
    found = kernels.attention(qkv, tiles, 2, 32**-0.5, None, programs)
    assert_close(found, TWIN.attention(qkv, Segments(offsets, lengths), 2, 32**-0.5), torch.float32)


def test_attention_to_scores_that_exp_cannot_take(kernels: Any) -> None:
    """Up to 500, in no order; all of a row's share then goes to one or two keys of 150."""
    qkv, offsets = random(150, 3 * 32) * 10, offsets_of((150,))
    tiles, _ = kernels.tiles_and_positions(offsets, few_ids((147,)), 0, -1)
    found = kernels.attention(qkv, tiles, 1, 32**-0.5)
    wanted = TWIN.attention(qkv.double(), Segments(offsets, (150,)), 1, 32**-0.5).float()
    # An error of 1e-7 of a score of 500 is one of 5e-5 of its share.
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


# 60 columns: four rows a block, and no power of two; 520: one row a block. 5 rows: a block and a rest.
@pytest.mark.parametrize("columns", [60, 520])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("adds", [False, True], ids=["plain", "residual"])
@PRECISIONS
def test_add_norm(kernels: Any, columns: int, rows: int, parts: int, adds: bool, dtype: torch.dtype) -> None:
    # Of several parts, a split product's: fp32 sums, whatever the weights are.
    split = random(parts, rows, columns, dtype=dtype if parts == 1 else torch.float32)
    residual, added, weight, bias = (
        random(*shape, dtype=dtype, seed=seed)
        for seed, shape in enumerate([(rows, columns), (columns,), (columns,), (columns,)], start=1)
    )
    found = kernels.add_norm(split, *((residual, added) if adds else (None, None)), weight, bias, 1e-5)
    summed = split.float().sum(dim=0) + (residual.float() + added.float() if adds else 0)
    assert_close(found, TWIN.norm(summed, Norm(weight.float(), bias.float(), 1e-5)), dtype)


def test_the_eps_of_a_norm_counts(kernels: Any) -> None:
    x, weight, bias = random(1, 2, 60) / 10, random(60, seed=1), random(60, seed=2)
    found = kernels.add_norm(x, None, None, weight, bias, 0.5)
    assert_close(found, TWIN.norm(x[0], Norm(weight, bias, 0.5)), torch.float32)


@pytest.mark.parametrize("count", [1, 2, 3])
@PRECISIONS
def test_embed_norm(kernels: Any, count: int, dtype: torch.dtype) -> None:
    sizes, columns = (9, 2, 7), 60
    tables = tuple(random(size, columns, dtype=dtype, seed=size) for size in sizes)[:count]
    ids = tuple(torch.arange(5) * 4 % size for size in sizes)[:count]
    weight, bias = random(columns, dtype=dtype, seed=10), random(columns, dtype=dtype, seed=11)
    found = kernels.embed_norm(tables, ids, weight, bias, 1e-5)
    wanted = TWIN.embed_norm(tuple(table.float() for table in tables), ids, Norm(weight.float(), bias.float(), 1e-5))
    assert_close(found, wanted, dtype)


@pytest.mark.parametrize(("tables", "ids"), [(0, 0), (4, 4), (2, 1)])
def test_embed_norm_refuses_other_counts(kernels: Any, tables: int, ids: int) -> None:
    with pytest.raises(ValueError, match=f"{tables} tables and {ids} ids came"):
        kernels.embed_norm((random(2, 8),) * tables, (torch.zeros(1).long(),) * ids, random(8), random(8), 1e-5)


def staged(ids: Any, types: Any, cu_seqlens: Any, room: int, sequences: int) -> list[torch.Tensor]:
    """In the interpreter's process: what `stage` leaves in buffers full of sevens, and before and behind them."""
    from handlers.kernels import encoder

    buffers = [torch.full((size + 2,), 7) for size in (room, room)]
    buffers.append(torch.full((sequences + 3,), 7, dtype=torch.int32))
    into = (buffers[0][1:-1], buffers[1][1:-1], buffers[2][1:-1])
    encoder.copy_to_graph_inputs(ids, types, cu_seqlens, into)
    return buffers


# 1024 tokens are a program's: with 1100, two have to agree. 1: a batch that is as large as its graph.
@pytest.mark.parametrize(
    ("lengths", "room", "sequences"), [((1,), 64, 2), ((5, 900, 3), 1100, 40), ((30, 2), 32, 2)], ids=str
)
@pytest.mark.parametrize("has_types", [False, True], ids=["no types", "types"])
def test_stage_fills_a_graphs_buffers_and_no_more(
    kernels: Any, lengths: tuple[int, ...], room: int, sequences: int, has_types: bool
) -> None:
    tokens = sum(lengths)
    ids, types = torch.arange(10, 10 + tokens), torch.arange(tokens) + 2000
    batch = (ids, types if has_types else None, offsets_of(lengths))
    found = kernels.process.submit(staged, *batch, room=room, sequences=sequences).result()
    rest = [0] * (room - tokens)
    assert found[0].tolist() == [7, *ids.tolist(), *rest, 7]
    assert found[1].tolist() == [7, *types.tolist(), *rest, 7] if has_types else [7] * (room + 2)
    assert found[2].tolist() == [7, 0, *accumulate(lengths), *[tokens] * (sequences - len(lengths)), 7]


def activated(x: torch.Tensor, activation: str) -> torch.Tensor:
    return ACTIVATIONS[activation](x) if activation else x


def test_the_activations_are_all_here(products: Any) -> None:
    assert products.ACTIVATIONS == FUSED


# Blocks are 64 rows, 32 columns and a depth of 128 up to 128 rows, beyond 128 columns and 64: each with a rest. Of a
# depth of 192, blocks of 128 would leave one.
@pytest.mark.parametrize(("rows", "depth"), [(1, 128), (70, 192), (130, 128)])
@pytest.mark.parametrize("activation", FUSED)
@PRECISIONS
def test_linear_of_few_rows(products: Any, rows: int, depth: int, activation: str, dtype: torch.dtype) -> None:
    x, weight = random(rows, depth, dtype=dtype), random(50, depth, dtype=dtype, seed=1) / 8
    bias = random(50, dtype=dtype, seed=2)
    found = products.linear(x, weight, bias, activation)
    assert_close(found, activated(F.linear(x.float(), weight.float(), bias.float()), activation), dtype)


@pytest.mark.parametrize("splits", [1, 2, 4])
@PRECISIONS
def test_split_linear(products: Any, splits: int, dtype: torch.dtype) -> None:
    x, weight = random(70, 256, dtype=dtype), random(50, 256, dtype=dtype, seed=1) / 8
    found = products.split_linear(x, weight, splits)
    assert found.shape == (splits, 70, 50)
    shares = zip(x.float().chunk(splits, dim=1), weight.float().chunk(splits, dim=1), strict=True)
    assert_close(found, torch.stack([F.linear(part, share) for part, share in shares]), torch.float32)


@pytest.mark.parametrize(("depth", "splits"), [(96, 1), (192, 2)])
def test_split_linear_refuses_a_depth_that_blocks_do_not_fill(products: Any, depth: int, splits: int) -> None:
    with pytest.raises(ValueError, match=f"a depth of {depth} came, 96 a program; wanted: a multiple of 64"):
        products.split_linear(random(4, depth), random(8, depth), splits)


# Up to 512 rows blocks are 64 x 128, beyond 128 x 256: each with a rest in all three sizes. Three programs walk all.
@pytest.mark.parametrize("rows", [3, 150, 520])
@pytest.mark.parametrize("activation", FUSED)
def test_linear_activation(products: Any, rows: int, activation: str) -> None:
    x, weight, bias = (
        random(rows, 72, dtype=HALF),
        random(272, 72, dtype=HALF, seed=1) / 8,
        random(272, seed=2).half(),
    )
    found = products.linear_activation(x, weight, bias, activation, 3)
    assert_close(found, activated(F.linear(x.float(), weight.float(), bias.float()), activation), HALF)


@pytest.mark.parametrize("activation", FUSED)
@PRECISIONS
def test_activate(products: Any, activation: str, dtype: torch.dtype) -> None:
    x = random(3, 700, dtype=dtype) * 3  # 2100: a program's 2048 and a rest
    assert_close(products.activate(x.clone(), activation), activated(x.float(), activation), dtype)


@pytest.mark.parametrize("activation", FUSED)
def test_what_is_not_finite_is_never_activated_to_a_number(products: Any, activation: str) -> None:
    x = torch.tensor([float("nan"), 1.0, float("inf")]).repeat(20)
    found = products.activate(x.clone(), activation)
    assert not found[x.isnan() | x.isinf()].isfinite().any()
    assert found[x.isfinite()].isfinite().all()


def test_gelu_is_within_a_millionth_of_the_error_function(products: Any) -> None:
    """In fp32, far past where the polynomial was fitted."""
    x = torch.cat([torch.linspace(-10, 10, 400_001), torch.tensor([-6e4, 6e4, -1e6, 1e6])])
    found = products.activate(x.clone(), "gelu")
    assert (found.double() - F.gelu(x.double())).abs().max() < 1e-6


def test_gelu_has_the_coefficients_that_the_script_fits(capsys: pytest.CaptureFixture[str]) -> None:
    source = LINEAR.read_text(encoding="utf-8")
    first, *others = re.findall(r"^    exponent = (.*)$", source, re.MULTILINE)
    signed = [
        *re.findall(r"^(\S+) \* a ([+-] \S+)$", first)[0],
        *(line.removeprefix("exponent * a ") for line in others),
    ]
    coefficients = [float(value.replace(" ", "")) for value in signed]
    assert fit_gelu.main([]) == 0
    *fitted, said = capsys.readouterr().out.splitlines()
    assert [float(line) for line in fitted] == pytest.approx(coefficients, rel=0, abs=1e-6)
    assert float(said.removeprefix("largest error: ")) < 1e-6


def test_the_gelu_of_fp8_has_the_coefficients_that_the_script_fits(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"^EXPONENT8 = \((.*)\)$", LINEAR.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    assert fit_gelu.main(["--degree", "3"]) == 0
    *fitted, said = capsys.readouterr().out.splitlines()
    assert [float(line) for line in fitted] == pytest.approx([float(one) for one in found[1].split(",")], abs=1e-7)
    assert float(said.removeprefix("largest error: ")) < 6e-5


def test_other_polynomials(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit_gelu.main(["--degree", "4", "--end", "6"]) == 0
    assert 5e-6 < float(capsys.readouterr().out.split()[-1]) < 1e-3
    with pytest.raises(SystemExit):
        fit_gelu.main(["--end", "20"])
    assert "degree 5, end 20.0; wanted: 1 or more" in capsys.readouterr().err


def encode(
    config: EncoderConfig, state: dict[str, torch.Tensor], hidden: torch.Tensor, segments: Segments, whole: bool
) -> torch.Tensor:
    """In the interpreter's process: a fused encoder on Triton's operations. whole: products with activations."""
    from handlers.encoder.triton_ops import TritonEncoderOps

    encoder = FusedEncoder(config)
    encoder.load_state_dict(state)
    operations = TritonEncoderOps(hidden.device, programs=3)
    operations.fused_activation = whole
    ids = torch.zeros(len(hidden), dtype=torch.int64)
    laid_out, _ = operations.prepare_packed(ids, segments, Positions())
    encoded: torch.Tensor = encoder.to(hidden.dtype)(hidden, laid_out, operations)
    return encoded


# Up to 128, 256 and 512 tokens other kernels compute, and beyond; so where 64 does not divide the hidden size.
ENCODERS = {
    "few tokens": (64, (3, 70, 1)),
    "some tokens": (64, (64, 66)),
    "many tokens": (64, (130, 60, 70)),
    "more tokens": (64, (64,) * 8 + (1,)),
    "48 wide": (48, (3, 70, 1)),
}


@pytest.mark.parametrize(("hidden", "lengths"), ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize(
    ("activation", "norm_first", "whole"),
    [("gelu", False, True), ("gelu", False, False), ("tanh", True, True)],
    ids=["one kernel", "activation behind", "pre-norm, unfused activation"],
)
def test_a_whole_encoder_errs_in_fp16_as_the_twin_does(
    kernels: Any, hidden: int, lengths: tuple[int, ...], activation: str, norm_first: bool, whole: bool
) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(2, hidden, 2, 128, activation, 1e-5, norm_first=norm_first, final_norm=norm_first)
    encoder = FusedEncoder(config)
    for name, parameter in encoder.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm_weight" in name else 0.0, std=0.2)
    x, segments = random(sum(lengths), hidden), Segments(offsets_of(lengths), lengths)
    wanted = encoder(x, segments)
    state = encoder.state_dict()
    found = kernels.process.submit(encode, config, state, x.half(), segments, whole).result()
    twin = encoder.half()(x.half(), segments)
    assert found.dtype == HALF
    error, least = ((outputs.float() - wanted).norm() / wanted.norm() for outputs in (found, twin))
    assert error < 1.5 * least < 1e-2


def test_attention_without_tiles_is_refused(kernels: Any) -> None:
    config = EncoderConfig(1, 64, 2, 64, "gelu", 1e-5)
    with pytest.raises(ValueError, match="attention: segments without tiles came"):
        kernels.process.submit(without_tiles, config).result()


def without_tiles(config: EncoderConfig) -> None:
    """In the interpreter's process."""
    from handlers.encoder.triton_ops import TritonEncoderOps

    encoder, x = FusedEncoder(config), random(2, 64)
    encoder(x, Segments(offsets_of((2,))), TritonEncoderOps(x.device, programs=3))
