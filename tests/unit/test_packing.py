"""Packing token lists and going to the padded form and back loses nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from handlers.encoder.packing import TokenBatch, pad, unpad

CPU = torch.device("cpu")
AWKWARD = [
    (1,),  # the smallest batch there is
    (1, 1, 1),  # no padding at all, and S == 1
    (4, 4),  # equal lengths: positions are simply counted
    (1, 50, 1),  # one long among short: nearly all of the padded form is padding
    (50, 1),  # the longest first
    (1, 2, 3, 4, 5),
]


def batch_of(lengths: tuple[int, ...]) -> tuple[TokenBatch, list[list[int]]]:
    """Distinct ids everywhere, so that a token in the wrong place shows; 0 stays free for padding."""
    ids, token = [], 1
    for length in lengths:
        ids.append(list(range(token, token + length)))
        token += length
    types = [[place % 2 for place in range(length)] for length in lengths]
    return TokenBatch.pack(ids, types, CPU), ids


@pytest.mark.parametrize("lengths", AWKWARD)
def test_pack_lays_sequences_one_after_another(lengths: tuple[int, ...]) -> None:
    batch, ids = batch_of(lengths)
    assert batch.input_ids.tolist() == list(range(1, sum(lengths) + 1))
    assert batch.token_type_ids.tolist() == [place % 2 for length in lengths for place in range(length)]
    assert batch.cu_seqlens.dtype == torch.int32
    edges = batch.cu_seqlens.tolist()
    assert (edges[0], edges[-1]) == (0, sum(lengths))
    assert [batch.input_ids[a:b].tolist() for a, b in pairwise(edges)] == ids
    assert (len(batch), batch.tokens, batch.lengths) == (len(lengths), sum(lengths), lengths)
    assert batch.selected is None


@pytest.mark.parametrize("lengths", AWKWARD)
def test_pad_agrees_with_a_plain_loop(lengths: tuple[int, ...]) -> None:
    batch, ids = batch_of(lengths)
    longest = max(lengths)
    assert pad(batch.input_ids, batch, -7).tolist() == [row + [-7] * (longest - len(row)) for row in ids]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12).map(tuple))
def test_unpad_undoes_pad(lengths: tuple[int, ...]) -> None:
    batch, _ = batch_of(lengths)
    padded = pad(batch.input_ids, batch, 0)
    assert padded.shape == (len(lengths), max(lengths))
    assert torch.equal(unpad(padded, batch), batch.input_ids)
    assert int((padded != 0).sum()) == sum(lengths)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple), st.integers(1, 3))
def test_unpad_keeps_the_dimensions_behind(lengths: tuple[int, ...], hidden: int) -> None:
    batch, _ = batch_of(lengths)
    values = torch.arange(len(lengths) * max(lengths) * hidden).view(len(lengths), max(lengths), hidden)
    wanted = torch.cat([values[row, :length] for row, length in enumerate(lengths)])
    assert torch.equal(unpad(values, batch), wanted)


@pytest.mark.parametrize("chosen", [[], [0], [4, 1]])
def test_selected_positions_arrive_as_given(chosen: list[int]) -> None:
    """An empty selection is not "all"."""
    batch = TokenBatch.pack([[5, 6, 7], [8, 9]], [[0, 0, 0], [1, 1]], CPU, chosen)
    assert batch.selected is not None
    assert batch.selected.tolist() == chosen
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("ids", "types"),
    [
        ([], []),
        ([[]], [[]]),
        ([[1], []], [[0], []]),  # an empty one among others
        ([[1, 2]], [[0]]),
        ([[1]], [[0], [0]]),
        ([[1], [2, 3]], [[0, 0], [0]]),  # the same number of tokens in all, differently cut
    ],
)
def test_pack_refuses(ids: list[list[int]], types: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        TokenBatch.pack(ids, types, CPU)
