"""Sparse embeddings: pooling of logits, answers by path, limits, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from archive import answer_sizes, parity
from handlers.encoder.packing import TokenBatch
from handlers.engines import sparse_logits
from handlers.protocol.errors import NotFinite, PayloadTooLarge
from handlers.selection import deviations
from handlers.settings import SettingsError, TextSettings, read
from handlers.tasks import sparse_embeddings
from handlers.tasks.shared.sparse_pooling import ACTIVATIONS, STRATEGIES, SparsePooling
from handlers.tasks.sparse_embeddings import SparseEmbeddings, SparseVector
from handlers.text_encoder import TextEncoder

if TYPE_CHECKING:
    from tests.unit.conftest import Answers, Send

HELLO = [101, 7592, 2088, 102]  # "hello world", as MiniLM's tokenizer has it


@pytest.fixture(scope="module")
def splade(tiny_encoder: Callable[..., TextEncoder]) -> TextEncoder:
    return tiny_encoder("sparse-embeddings")


def by_hand(logits: list[list[float]], pooling: SparsePooling) -> list[float]:
    def weight(logit: float) -> float:
        once = math.log(1 + max(logit, 0))
        return math.log(1 + once) if pooling.activation == "log1p_relu" else once

    combine = max if pooling.strategy == "max" else sum
    return [combine([weight(row[column]) for row in logits]) for column in range(len(logits[0]))]


class TestPooling:
    @given(st.lists(st.lists(st.floats(-50, 50, width=16), min_size=4, max_size=4), min_size=1, max_size=5))
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_by_hand(self, strategy: str, activation: str, logits: list[list[float]]) -> None:
        pooling = SparsePooling(strategy, activation)
        for dtype in (torch.float32, torch.float16):
            found = sparse_logits.pooled(torch.tensor(logits).to(dtype), pooling)
            assert found.dtype == torch.float32
            assert found.tolist() == pytest.approx(by_hand(logits, pooling), abs=1e-4)

    @pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_text_that_is_not_finite_fails_alone(self, strategy: str, broken: float) -> None:
        """Of one -inf relu makes a zero; the network overflowed all the same."""
        batch = TokenBatch.pack([[1, 2], [3], [4, 5]], [[0, 0], [0], [0, 0]], torch.device("cpu"))
        logits = torch.ones(5, 3)
        logits[2, 1] = broken
        for most in (1 << 20, 3):
            pooling = SparsePooling(strategy)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sparse_logits, "LOGITS", most)
                outputs = sparse_logits.per_text(lambda part, tokens: logits[tokens], batch, 3, pooling)
            inputs: list[Any] = [(None, {})] * 3
            answers = SparseEmbeddings(pooling, 3).answer(outputs, batch, inputs)
            assert [isinstance(answer, NotFinite) for answer in answers] == [False, True, False]

    @given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 20))
    def test_parts_are_the_batch(self, lengths: list[int], most: int) -> None:
        ids = [[10 * text + place for place in range(length)] for text, length in enumerate(lengths)]
        batch = TokenBatch.pack(ids, ids, torch.device("cpu"))
        found: list[list[int]] = []
        for part, tokens in sparse_logits.parts(batch, most):
            assert part.tokens <= most or len(part) == 1
            assert torch.equal(part.input_ids, batch.input_ids[tokens])
            assert part.cu_seqlens.tolist() == [0, *np.cumsum(part.lengths)]
            assert torch.equal(part.token_type_ids, part.input_ids)
            found += [row.tolist() for row in part.input_ids.split(list(part.lengths))]
        assert found == ids

    def test_fewer_tokens_run_at_once_with_a_large_vocabulary(self) -> None:
        assert sparse_logits.token_budget(16_384, 30_522) == 4397
        assert sparse_logits.token_budget(2048, 30_522) == 2048
        assert sparse_logits.token_budget(16_384, 1 << 30) == 1


class TestAnswers:
    def test_values_above_zero_in_order_and_the_largest_of_them(self) -> None:
        outputs = torch.tensor([[0.0, 1.5, 0.0, 0.5, 2.0], [0.0] * 5, [1.0, 1.0, 1.0, 0.0, 1.0]])
        inputs: list[Any] = [(None, {}), (None, {}), (None, {"max_active_dims": 2})]
        first, empty, tied = SparseEmbeddings(SparsePooling(), 5).answer(outputs, None, inputs)  # type: ignore[arg-type]
        assert isinstance(first, SparseVector)
        assert isinstance(empty, SparseVector)
        assert isinstance(tied, SparseVector)
        assert (first.indices.tolist(), first.values.tolist()) == ([1, 3, 4], [1.5, 0.5, 2.0])
        assert empty.as_json() == []
        assert tied.indices.tolist() == [0, 1]
        assert first.largest(2).indices.tolist() == [1, 4]
        assert first.largest(0) is first.largest(3) is first

    def test_a_folder_may_limit_values_and_a_request_asks_for_others(self) -> None:
        outputs = torch.tensor([[3.0, 1.0, 2.0]] * 2)
        inputs: list[Any] = [(None, {}), (None, {"max_active_dims": 3})]
        one, three = SparseEmbeddings(SparsePooling(max_active_dims=1), 3).answer(outputs, None, inputs)  # type: ignore[arg-type]
        assert [len(answer) for answer in (one, three) if isinstance(answer, SparseVector)] == [1, 3]

    def test_numbers_have_as_many_digits_as_the_precision(self) -> None:
        inputs: list[Any] = [(None, {})]
        task = SparseEmbeddings(SparsePooling(), 2, digits=4)
        (vector,) = task.answer(torch.tensor([[1 / 3, 0]]), None, inputs)  # type: ignore[arg-type]
        assert isinstance(vector, SparseVector)
        assert str(vector.values[0]) == "0.3333"


class TestOverHttp:
    def test_teis_form_by_its_path_and_by_our_own(self, send: Send, splade: TextEncoder) -> None:
        status, (answer,) = send("embed_sparse", {"inputs": "hello world"}, splade)
        assert status == 200
        assert {frozenset(entry) for entry in answer} == {frozenset({"index", "value"})}
        assert send("", "hello world", splade) == (200, answer)
        assert send("", ["hello world"], splade) == (200, [answer])
        assert send("", {"instances": ["hello world"]}, splade) == (200, {"predictions": [answer]})
        assert send("", {"inputs": "hello world"}, splade) == (200, answer)
        assert send("embed_sparse", {"inputs": [HELLO]}, splade) == (200, [answer])
        status, (two,) = send("embed_sparse", {"inputs": ["hello world"], "max_active_dims": 2}, splade)
        assert (status, len(two)) == (200, 2)
        assert two == sorted(sorted(answer, key=lambda entry: -entry["value"])[:2], key=lambda entry: entry["index"])
        assert send("", "hello world", splade, x_max_active_dims="2") == (200, two)

    def test_kserve_v2_has_them_in_json(self, send: Send, splade: TextEncoder) -> None:
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello world"]}
        body = {"inputs": [tensor], "parameters": {"max_active_dims": 2}}
        status, answer = send("v2/models/fake/infer", body, splade)
        (output,) = answer["outputs"]
        assert (status, output["name"], output["shape"]) == (200, "answers", [1])
        assert json.loads(output["data"][0]) == send("", "hello world", splade, x_max_active_dims="2")[1]

    def test_info(self, send: Send, splade: TextEncoder) -> None:
        row = {"content-type": ""}
        status, answer = send("info", b"", splade, **row)
        assert (status, answer["model_type"]) == (200, {"embedding": {"pooling": "splade"}})

    @pytest.mark.parametrize("path", ["embed", "embed_all", "predict", "embeddings", "similarity"])
    def test_other_paths_are_for_other_tasks(self, send: Send, splade: TextEncoder, path: str) -> None:
        assert send(path, {"inputs": "a", "input": "a"}, splade)[0] in (404, 424)

    def test_the_path_is_for_this_task(self, send: Send) -> None:
        status, answer = send("embed_sparse", {"inputs": "a"})
        assert (status, answer["error_type"]) == (424, "Backend")

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ({"inputs": []}, 400),
            ({"inputs": ""}, 400),
            ({"inputs": 5}, 422),
            ({"inputs": "word " * 100}, 422),
            ({"inputs": "a", "max_active_dims": 0}, 422),
            ({"inputs": "a", "max_active_dims": 30_523}, 422),
            ({"inputs": "a", "max_active_dims": "many"}, 422),
            ({"inputs": "a", "normalize": True}, 422),
            ({"inputs": [{"text": "a", "text_pair": "b"}]}, 422),
        ],
    )
    def test_refused(self, send: Send, splade: TextEncoder, body: object, status: int) -> None:
        assert send("embed_sparse", body, splade)[0] == status

    def test_too_many_values_are_refused_for_their_request_alone(
        self, ask: Callable[..., Answers], splade: TextEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [{"body": ["a", "b"]}, {"body": "a"}]
        rest = {"content-length": "9", "explain": "False", "url_path": "", "content-type": "application/json"}
        (_, one), _ = ask(splade, [{"body": "a"}, {"body": "b"}], [rest, rest])
        monkeypatch.setattr(sparse_embeddings, "MAX_VALUES", len(one))
        (refused, error), (status, answer) = ask(splade, rows, [rest, rest])
        assert (refused, error["type"], status, len(answer)) == (413, PayloadTooLarge.__name__, 200, len(one))
        assert "ask for fewer values with max_active_dims" in error["message"]


def test_two_empty_embeddings_are_the_same() -> None:
    zeros, some = torch.zeros(1, 3), torch.ones(1, 3)
    assert deviations.of_embeddings(torch.cat([zeros, some]), torch.cat([zeros, some]), "fp32").passed
    assert not deviations.of_embeddings(zeros, some, "fp32").passed
    assert not deviations.of_embeddings(some, zeros, "fp32").passed
    found = parity.cosines(np.eye(2, 3, k=2, dtype=np.float32), np.eye(2, 3, k=2, dtype=np.float32))
    assert found.tolist() == [1, 1]


def test_settings() -> None:
    section = {"strategy": "sum", "activation": "log1p_relu", "maxActiveDims": 64}
    found = read(TextSettings, {"task": "sparse-embeddings", "sparsePooling": section})
    assert found.sparse_pooling == SparsePooling("sum", "log1p_relu", 64)
    for wrong in ({"strategy": "mean"}, {"activation": "gelu"}, {"maxActiveDims": -1}, {"other": 1}):
        with pytest.raises(SettingsError):
            read(TextSettings, {"sparsePooling": wrong})


def test_the_batch_size_allows_for_usual_answers() -> None:
    settings = TextSettings(task="sparse-embeddings")
    assert answer_sizes.largest_answer(settings, 384) == 64 * 256 * 36
    limited = TextSettings(task="sparse-embeddings", sparse_pooling=SparsePooling(max_active_dims=32))
    assert answer_sizes.largest_answer(limited, 384) == 64 * 32 * 36
