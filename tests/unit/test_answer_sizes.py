"""A batch's answers are bounded: packaging computes the batch size, and says so."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
import torch

from archive import answer_sizes
from handlers.protocol import encodings
from handlers.settings import TextSettings
from handlers.tasks.shared.embeddings import significant
from handlers.tasks.shared.pooling import Pooling


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_no_answer_is_larger_than_computed(precision: str) -> None:
    settings = TextSettings(precision=precision, max_inputs=4, pooling=Pooling(("mean", "max")))
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 2 * 512)).astype(np.float32)) / 512**0.5
    rounded = significant(-values.abs(), encodings.DIGITS[precision])
    written = len(orjson.dumps(rounded.numpy(), option=orjson.OPT_SERIALIZE_NUMPY))
    computed = answer_sizes.largest_answer(settings, 512)
    assert 0.75 * computed < written <= computed


def test_bert_large_is_cut_and_says_what_would_help() -> None:
    settings = TextSettings(max_inputs=64)
    chosen, note = answer_sizes.batch_size(64, settings, 1024)
    assert chosen == 16
    assert note is not None
    assert "0.7 MB" in note
    helped = int(note.split("--max-inputs ")[1].split()[0])
    assert answer_sizes.batch_size(64, TextSettings(max_inputs=helped), 1024) == (64, None)
    assert answer_sizes.batch_size(64, TextSettings(max_inputs=helped + 1), 1024)[0] < 64


def test_small_answers_are_left_alone() -> None:
    assert answer_sizes.batch_size(8, TextSettings(max_inputs=64), 384) == (8, None)
    assert answer_sizes.batch_size(256, TextSettings(task="sequence-classification"), 1024) == (256, None)


def test_an_answer_beyond_the_bound_is_answered_alone() -> None:
    assert answer_sizes.batch_size(8, TextSettings(max_inputs=4096), 1024)[0] == 1
