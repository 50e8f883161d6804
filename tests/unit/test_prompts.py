"""Prompts by every protocol: which one a request gets, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from handlers import settings
from handlers.encoder.packing import TokenBatch
from handlers.settings import SettingsError, TextSettings
from handlers.tasks.embeddings import Embeddings, pool
from handlers.tasks.shared import embedding_head
from handlers.tasks.shared.embedding_head import EmbeddingHead, Step
from handlers.tasks.shared.pooling import POOLINGS, Pooling
from handlers.text_encoder import TextEncoder

if TYPE_CHECKING:
    from tests.unit.conftest import Send

PROMPTS = {"query": "search for: ", "document": "", "Passage": "passage: "}
HELLO = [101, 7592, 2088, 102]  # "hello world", as MiniLM's tokenizer has it
SOURCE = {"source_sentence": "a dog", "sentences": ["a cat", "taxes"]}


@pytest.fixture(scope="module")
def prompted(load_handler: Callable[..., Any], minilm_folder: Path) -> TextEncoder:
    """MiniLM with prompts, of which "query" is the default."""
    handler: TextEncoder = load_handler(
        TextEncoder, minilm_folder, maxTokens=32, prompts=PROMPTS, defaultPromptName="query"
    )
    return handler


@pytest.fixture(scope="module")
def leaving_out(load_handler: Callable[..., Any], minilm_folder: Path) -> TextEncoder:
    """The same model, whose pooling leaves prompts out."""
    pooling = {"modes": ["mean"], "includePrompt": False}
    handler: TextEncoder = load_handler(TextEncoder, minilm_folder, maxTokens=32, prompts=PROMPTS, pooling=pooling)
    return handler


@pytest.fixture
def ask(send: Send, prompted: TextEncoder) -> Callable[..., Any]:
    """ask(path, body, **headers) -> the answer of the model with prompts, which has to be a 200."""

    def ask_model(path: str, body: object, **headers: str) -> Any:
        status, answer = send(path, body, prompted, **headers)
        assert status == 200, answer
        return answer

    return ask_model


def same(first: object, second: object) -> bool:
    return bool(np.allclose(np.asarray(first), np.asarray(second), atol=1e-6))


class TestChoice:
    @pytest.mark.parametrize(("name", "prompt"), [*PROMPTS.items(), ("", ""), (None, "search for: ")])
    def test_by_every_path(self, ask: Callable[..., Any], name: str | None, prompt: str) -> None:
        wanted = ask("", f"{prompt}hello", x_prompt_name="")
        headers = {} if name is None else {"x_prompt_name": name}
        fields = {} if name is None else {"prompt_name": name}
        assert same(ask("", "hello", **headers), wanted)
        assert same(ask("", {"inputs": "hello", "parameters": fields}), [wanted])
        assert same(ask("", {"inputs": "hello", **fields}), [wanted])
        assert same(ask("", {"instances": ["hello"], "parameters": fields})["predictions"], [wanted])
        assert same(ask("embed", {"inputs": "hello", "normalize": False, **fields}), [wanted])
        for answer in (
            ask("embeddings", {"input": "hello", **fields}),
            ask("v1/embeddings", {"input": "hello"}, **headers),
        ):
            assert same(answer["data"][0]["embedding"], wanted)
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["hello"]}
        answer = ask("v2/models/fake/infer", {"inputs": [tensor], "parameters": fields})
        assert same(answer["outputs"][0]["data"], wanted)

    def test_null_is_the_default(self, ask: Callable[..., Any]) -> None:
        assert same(ask("embed", {"inputs": "a", "prompt_name": None}), ask("embed", {"inputs": "a"}))

    def test_similarity_puts_it_before_all_sentences(self, ask: Callable[..., Any]) -> None:
        with_prompt = ask("similarity", {"inputs": SOURCE, "parameters": {"prompt_name": "Passage"}})
        spelt = {"source_sentence": "passage: a dog", "sentences": ["passage: a cat", "passage: taxes"]}
        assert same(with_prompt, ask("similarity", {"inputs": spelt, "parameters": {"prompt_name": ""}}))

    def test_a_batch_mixes_prompts(self, ask: Callable[..., Any]) -> None:
        assert same(
            ask("embed", {"inputs": ["a", "b"], "prompt_name": "query"}),
            ask("embed", {"inputs": ["search for: a", "search for: b"], "prompt_name": "document"}),
        )

    def test_tokens_count_the_prompt(self, ask: Callable[..., Any]) -> None:
        assert ask("embeddings", {"input": "hello"})["usage"]["prompt_tokens"] == 6
        assert ask("embeddings", {"input": "hello", "prompt_name": ""})["usage"]["prompt_tokens"] == 3
        assert len(ask("embed_all", {"inputs": "hello"})[0]) == 6

    def test_information(self, ask: Callable[..., Any], prompted: TextEncoder) -> None:
        info = ask("info", b"")
        assert info["prompts"] == {"default": "query", "texts": PROMPTS}
        assert (info["embedding"]["dimensions"], info["embedding"]["alsoDimensions"]) == (384, [])
        assert prompted.model.description["prompts"] == info["prompts"]


class TestRefusals:
    @pytest.mark.parametrize("name", ["absent", "QUERY", "passage", 5, True, ["query"], {}])
    def test_an_unknown_name(self, send: Send, prompted: TextEncoder, name: object) -> None:
        status, answer = send("embed", {"inputs": "a", "prompt_name": name}, prompted)
        assert (status, answer["error_type"]) == (422, "Validation")
        assert "query, document, Passage" in answer["error"]
        status, answer = send("", {"instances": ["a"], "parameters": {"prompt_name": name}}, prompted)
        assert (status, answer["type"]) == (400, "InvalidOption")
        assert "absent" not in answer["message"]
        status, answer = send("embeddings", {"input": "a", "prompt_name": name}, prompted)
        assert (status, answer["error"]["param"]) == (400, "prompt_name")

    @pytest.mark.parametrize("header", ["x_prompt", "prompt_name", "x_promptname"])
    def test_a_misspelt_header(self, send: Send, prompted: TextEncoder, header: str) -> None:
        assert send("", "a", prompted, **{header: "query"})[0] == 400

    def test_a_model_without_prompts(self, send: Send) -> None:
        assert send("", "a", x_prompt_name="query")[0] == 400
        assert send("embeddings", {"input": "a", "prompt_name": "query"})[0] == 400

    def test_token_ids_that_a_prompt_would_stand_before(self, send: Send, prompted: TextEncoder) -> None:
        status, answer = send("embed", {"inputs": HELLO}, prompted)
        assert (status, "prompt 'query' goes before a text" in answer["error"]) == (422, True)
        status, ids = send("embed", {"inputs": HELLO, "prompt_name": ""}, prompted)
        assert (status, same(ids, send("embed", {"inputs": "hello world", "prompt_name": ""}, prompted)[1])) == (
            200,
            True,
        )

    def test_a_text_that_is_too_long_with_its_prompt(self, send: Send, prompted: TextEncoder) -> None:
        text = "word " * 30  # 32 tokens
        assert send("", text, prompted, x_prompt_name="")[0] == 200
        status, answer = send("", text, prompted)
        assert (status, answer["type"], "35 tokens" in answer["message"]) == (400, "InputTooLong", True)
        cut = send("", text, prompted, x_truncate="true")[1]
        assert same(cut, send("", f"search for: {'word ' * 27}", prompted, x_prompt_name="")[1])

    def test_a_text_that_adds_no_token_to_its_prompt(
        self, send: Send, prompted: TextEncoder, leaving_out: TextEncoder
    ) -> None:
        for handler in (prompted, leaving_out):
            for text in ("\u200b", "\x07\u200d"):
                status, answer = send("", {"instances": [text]}, handler, x_prompt_name="query")
                assert (status, answer["type"]) == (400, "EmptyRequest")
                assert "besides those of its prompt" in answer["message"]
            assert send("", {"instances": ["a\u200b"]}, handler, x_prompt_name="query")[0] == 200

    def test_cutting_a_prompt_that_pooling_leaves_out(self, send: Send, leaving_out: TextEncoder) -> None:
        text, options = "word " * 40, {"x_truncate": "true", "x_prompt_name": "query"}
        status, answer = send("", text, leaving_out, x_truncation_direction="left", **options)
        assert (status, answer["type"]) == (400, "InputTooLong")
        assert send("", text, leaving_out, x_truncation_direction="right", **options)[0] == 200
        assert send("", text, leaving_out, x_truncation_direction="left", x_truncate="true")[0] == 200

    @pytest.mark.parametrize(
        ("section", "expected"),
        [
            ({"prompts": ["a"]}, "wanted: a mapping of names to texts"),
            ({"prompts": {"a": 1}}, "wanted: a mapping of names to texts"),
            ({"prompts": {"": "a"}}, "an empty name"),
            ({"prompts": {"a": "b"}, "defaultPromptName": "c"}, "wanted: one of a"),
            ({"prompts": {"a": "b"}, "task": "fill-mask"}, "the task is fill-mask"),
            ({"truncateDim": -1}, "truncateDim is -1"),
        ],
    )
    def test_settings(self, section: dict[str, object], expected: str) -> None:
        with pytest.raises(SettingsError, match=expected):
            settings.read(TextSettings, section)

    def test_a_prompt_that_leaves_no_room(self, load_handler: Callable[..., Any], minilm_folder: Path) -> None:
        with pytest.raises(ValueError, match="no text fits behind it"):
            load_handler(TextEncoder, minilm_folder, maxTokens=5, prompts={"a": "one two three"})


def test_settings_come_back_as_they_were_written() -> None:
    chosen = TextSettings(prompts=PROMPTS, default_prompt_name="query", truncate_dim=64)
    assert settings.read(TextSettings, settings.write(chosen)) == chosen


class TestLeftOut:
    @pytest.mark.parametrize("mode", POOLINGS)
    @pytest.mark.parametrize("left_out", [(0, 0, 0), (2, 0, 1), (4, 1, 2)])
    def test_each_mode_against_a_plain_loop(self, mode: str, left_out: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        vectors, lengths = torch.randn(10, 3), (5, 2, 3)
        rows = []
        for part, start in zip(vectors.split(list(lengths)), left_out, strict=True):
            weights = torch.arange(1, len(part) + 1)[start:, None].float()
            kept = part[start:]
            rows.append(
                {
                    "cls": kept[0],
                    "lasttoken": kept[-1],
                    "mean": kept.mean(dim=0),
                    "max": kept.max(dim=0).values,
                    "mean_sqrt_len_tokens": kept.sum(dim=0) / len(kept) ** 0.5,
                    "weightedmean": (kept * weights).sum(dim=0) / weights.sum(),
                }[mode]
            )
        offsets = torch.tensor([0, 5, 7, 10], dtype=torch.int32)
        found = pool(vectors, offsets, Pooling((mode,), include_prompt=False), left_out)
        torch.testing.assert_close(found, torch.stack(rows))


class TestHead:
    STEPS = (Step("Dense", 4, 6, activation="GELU"), Step("LayerNorm", 6, 6), Step("Normalize", 6, 6))

    def test_an_archive_gives_back_what_was_written(self, tmp_path: Path) -> None:
        assert embedding_head.read(tmp_path) is None
        head = EmbeddingHead(self.STEPS)
        embedding_head.write(head, tmp_path)
        found = embedding_head.read(tmp_path)
        assert found is not None
        assert found.steps == head.steps
        pooled = torch.randn(3, 4)
        assert torch.equal(found(pooled), head(pooled))

    def test_a_row_that_is_not_finite_fails_alone(self) -> None:
        batch = TokenBatch.pack([[1], [2], [3]], [[0], [0], [0]], torch.device("cpu"))
        vectors = torch.ones(3, 4)
        vectors[1, 2] = torch.inf
        task = Embeddings(Pooling(), hidden=4, head=EmbeddingHead(self.STEPS), dimensions=(2,))
        inputs: list[Any] = [(None, {}), (None, {}), (None, {"dimensions": 2})]
        answers = task.answer(vectors, batch, inputs)
        assert [isinstance(answer, Exception) for answer in answers] == [False, True, False]
        assert [len(answers[index]) for index in (0, 2)] == [6, 2]  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            ([Step("Dense", 4, 6), Step("Dense", 5, 6)], "takes embeddings of 5 numbers, and gets 6"),
            ([Step("CNN", 4, 6)], "is not known"),
            ([Step("Dense", 4, 6, activation="PReLU")], "is not known"),
        ],
    )
    def test_steps_that_do_not_fit(self, steps: list[Step], expected: str) -> None:
        with pytest.raises(ValueError, match=expected):
            EmbeddingHead(steps)

    def test_a_pooling_that_does_not_fit(self) -> None:
        with pytest.raises(ValueError, match="follows a pooling that gives 8 numbers"):
            Embeddings(Pooling(("mean", "cls")), hidden=4, head=EmbeddingHead(self.STEPS))
