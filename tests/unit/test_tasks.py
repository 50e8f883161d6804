"""From outputs to answers: pooling, scores, entities, masked words, and nothing that is not a number."""

from __future__ import annotations

import base64
import importlib
import json
import math
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st

from handlers import engines, settings, tasks
from handlers.encoder.packing import TokenBatch
from handlers.engines import text_networks
from handlers.engines.base import EngineSpec
from handlers.protocol import encodings, zero_shot
from handlers.protocol.errors import InferenceFailed, InvalidInput, PayloadTooLarge
from handlers.settings import TextSettings
from handlers.tasks.embeddings import Embeddings, pool
from handlers.tasks.fill_mask import FillMask, mask_token
from handlers.tasks.sequence_classification import SequenceClassification
from handlers.tasks.shared.head import Head
from handlers.tasks.shared.pooling import POOLINGS, Pooling
from handlers.tasks.shared.scores import score_function, top_k
from handlers.tasks.shared.task import TextTask
from handlers.tasks.token_classification import TokenClassification
from handlers.texts.payloads import Text
from handlers.texts.tokenization import Encoded, Tokenizer

LABELS = ["a", "b", "c", "d"]
BROKEN = [float("nan"), float("inf"), float("-inf")]


def offsets_of(lengths: Sequence[int]) -> torch.Tensor:
    return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()


class TestTopK:
    def test_probabilities_likeliest_first(self) -> None:
        logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, -1.0]])
        first, second = top_k(logits, [4, 1], LABELS)
        assert isinstance(first, list)
        assert [entry["label"] for entry in first] == ["b", "d", "c", "a"]
        assert [entry["index"] for entry in first] == [1, 3, 2, 0]
        assert sum(entry["probability"] for entry in first) == pytest.approx(1, abs=1e-6)
        total = math.exp(5) + 2 + math.exp(-1)
        assert second == [{"label": "a", "index": 0, "probability": pytest.approx(math.exp(5) / total, rel=1e-6)}]

    @pytest.mark.parametrize(
        ("problem", "labels", "name", "wanted"),
        [
            ("multi_label_classification", 2, "probability", [1 / (1 + math.exp(-3)), 1 / (1 + math.exp(1))]),
            (None, 1, "probability", [1 / (1 + math.exp(-3))]),
            ("regression", 2, "score", [3.0, -1.0]),
        ],
    )
    def test_scores_by_config(self, problem: str | None, labels: int, name: str, wanted: list[float]) -> None:
        function = score_function({"problem_type": problem}, labels)
        (answer,) = top_k(torch.tensor([[3.0, -1.0][:labels]]), [labels], LABELS, function)
        assert isinstance(answer, list)
        assert [entry[name] for entry in answer] == pytest.approx(wanted)

    @pytest.mark.parametrize("counts", [[1, 4, 2], [4, 4, 4], [1, 1, 1]])
    def test_each_row_gets_as_many_as_it_asked_for(self, counts: list[int]) -> None:
        answers = top_k(torch.randn(3, 4), counts, LABELS)
        assert [len(answer) for answer in answers if isinstance(answer, list)] == counts

    @pytest.mark.parametrize("broken", BROKEN)
    @pytest.mark.parametrize("row", [0, 1, 2])
    @pytest.mark.parametrize("column", [0, 3])
    def test_a_row_that_is_not_finite_fails_alone(self, broken: float, row: int, column: int) -> None:
        """Of one -inf softmax makes a number; the network overflowed all the same."""
        logits = torch.randn(3, 4)
        wanted = top_k(logits, [2, 2, 2], LABELS)
        logits[row, column] = broken
        answers = top_k(logits, [2, 2, 2], LABELS)
        assert isinstance(answers[row], InferenceFailed)
        others = [place for place in range(3) if place != row]
        assert [answers[place] for place in others] == [wanted[place] for place in others]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_probabilities_of_half_precision_add_up(self, dtype: torch.dtype) -> None:
        """In half precision itself a softmax of 1000 classes misses 1 by far more."""
        labels = [str(place) for place in range(1000)]
        (answer,) = top_k(torch.randn(1, 1000).to(dtype), [1000], labels)
        assert isinstance(answer, list)
        assert sum(entry["probability"] for entry in answer) == pytest.approx(1, abs=1e-5)


def naive_pool(vectors: torch.Tensor, mode: str) -> torch.Tensor:
    """(T, hidden) of one sequence -> (hidden,), as the modes are defined."""
    length = len(vectors)
    if mode == "cls":
        return vectors[0]
    if mode == "lasttoken":
        return vectors[length - 1]
    if mode == "max":
        return torch.stack([column.max() for column in vectors.T])
    weights = torch.arange(1, length + 1).float() if mode == "weightedmean" else torch.ones(length)
    total = torch.zeros(vectors.shape[1])
    for weight, vector in zip(weights, vectors, strict=True):
        total += weight * vector
    over = {"mean": length, "mean_sqrt_len_tokens": length**0.5, "weightedmean": float(weights.sum())}[mode]
    pooled: torch.Tensor = total / over
    return pooled


class TestPooling:
    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("modes", [*[(mode,) for mode in POOLINGS], ("mean", "cls"), POOLINGS])
    # One token; equal lengths; one long among short; the long one last.
    @pytest.mark.parametrize("lengths", [(1,), (1, 1), (3, 3), (1, 40, 1), (2, 40)])
    def test_each_mode_against_a_plain_loop(
        self, lengths: tuple[int, ...], modes: tuple[str, ...], normalize: bool
    ) -> None:
        torch.manual_seed(0)
        vectors = torch.randn(sum(lengths), 5) - 3  # far below zero: padding with zeros would win "max"
        wanted = torch.stack(
            [torch.cat([naive_pool(part, mode) for mode in modes]) for part in vectors.split(list(lengths))]
        )
        if normalize:
            wanted = wanted / wanted.norm(dim=1, keepdim=True)
        pooled = pool(vectors, offsets_of(lengths), Pooling(modes, normalize))
        assert pooled.shape == (len(lengths), 5 * len(modes))
        assert torch.allclose(pooled, wanted, atol=1e-5)

    @given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
    def test_a_sequence_pools_alike_alone_and_among_others(self, lengths: list[int]) -> None:
        vectors = torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(len(lengths)))
        pooling = Pooling(POOLINGS)
        together = pool(vectors, offsets_of(lengths), pooling)
        alone = [pool(part, offsets_of([len(part)]), pooling) for part in vectors.split(lengths)]
        assert torch.allclose(together, torch.cat(alone), atol=1e-5)

    def test_half_precision_is_summed_in_full(self) -> None:
        """4096 ones: fp16 cannot count past 2048 by ones."""
        vectors = torch.ones(4096, 1, dtype=torch.float16)
        assert pool(vectors, offsets_of([4096]), Pooling(("mean",))).tolist() == [[1.0]]

    @pytest.mark.parametrize("broken", BROKEN)
    @pytest.mark.parametrize("token", [0, 1, 4])
    def test_a_text_that_is_not_finite_fails_alone(self, broken: float, token: int) -> None:
        batch = TokenBatch.pack([[1], [1, 2, 3], [1]], [[0], [0, 0, 0], [0]], torch.device("cpu"))
        vectors = torch.ones(5, 2)
        vectors[token, 1] = broken
        inputs: list[Any] = [(None, {})] * 3
        answers = Embeddings(Pooling(("mean",))).answer(vectors, batch, inputs)
        failed = {0: 0, 1: 1, 4: 2}[token]
        assert [isinstance(answer, InferenceFailed) for answer in answers] == [row == failed for row in range(3)]

    def test_numbers_are_rounded_and_other_forms_are_exact(self) -> None:
        batch = TokenBatch.pack([[1], [2], [3]], [[0], [0], [0]], torch.device("cpu"))
        vectors = torch.tensor([[1 / 3, 2 / 3]] * 3)
        forms = [{}, {"encoding_format": "base64", "dtype": "float16"}, {"encoding_format": encodings.EXACT}]
        inputs: list[Any] = [(None, options) for options in forms]
        numbers, text, exact = Embeddings(Pooling(("mean",)), digits=4).answer(vectors, batch, inputs)
        assert orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY) == b"[0.3333,0.6667]"
        assert isinstance(text, str)
        assert np.array_equal(np.frombuffer(base64.b64decode(text), "<f2"), vectors[1].numpy().astype("<f2"))
        assert np.array_equal(np.asarray(exact), vectors[2].numpy())

    def test_what_float16_cannot_hold_is_an_error_of_that_text(self) -> None:
        batch = TokenBatch.pack([[1], [2]], [[0], [0]], torch.device("cpu"))
        vectors = torch.tensor([[70000.0, 1.0]] * 2)
        inputs: list[Any] = [
            (None, {"encoding_format": encodings.EXACT, "dtype": kind}) for kind in ("float16", "float32")
        ]
        half, full = Embeddings(Pooling(("mean",))).answer(vectors, batch, inputs)
        assert isinstance(half, InferenceFailed)
        assert np.array_equal(np.asarray(full), vectors[1].numpy())


def config_of(labels: Sequence[str], **rest: object) -> dict[str, object]:
    return {"id2label": {str(place): label for place, label in enumerate(labels)}, **rest}


class TestSequenceClassification:
    LOGITS = torch.tensor([[1.0, 3.0, -2.0], [0.0, -1.0, 4.0]])

    def answer(
        self, task: SequenceClassification, logits: torch.Tensor, options: Sequence[dict[str, Any]]
    ) -> list[Any]:
        inputs: list[Any] = [(None, chosen) for chosen in options]
        return task.answer(logits, None, inputs)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("labels", "problem", "function"),
        [
            (3, None, "softmax"),
            (3, "single_label_classification", "softmax"),
            (3, "multi_label_classification", "sigmoid"),
            (3, "regression", "none"),
            (1, None, "sigmoid"),  # softmax of one label is always 1
            (1, "regression", "none"),
            (2, None, "softmax"),
        ],
    )
    def test_scores_by_config(self, labels: int, problem: str | None, function: str) -> None:
        task = SequenceClassification(config_of(LABELS[:labels], problem_type=problem), 0)
        logits = self.LOGITS[:1, :labels]
        functions = {"softmax": logits.softmax(1), "sigmoid": logits.sigmoid(), "none": logits}
        (answer,) = self.answer(task, logits, [{}])
        wanted = dict(zip(LABELS, functions[function][0].tolist(), strict=False))
        assert {entry["label"]: entry["score"] for entry in answer} == pytest.approx(wanted)
        scores = [entry["score"] for entry in answer]
        assert scores == sorted(scores, reverse=True)

    @pytest.mark.parametrize(("count", "given"), [(0, 3), (1, 1), (2, 2), (99, 3)])
    def test_as_many_labels_as_set(self, count: int, given: int) -> None:
        task = SequenceClassification(config_of(LABELS[:3]), count)
        assert [len(answer) for answer in self.answer(task, self.LOGITS, [{}, {"top_k": 1}])] == [given, 1]

    def test_top_k_goes_up_to_the_labels_there_are(self) -> None:
        read = SequenceClassification(config_of(LABELS[:3]), 1).options["top_k"]
        assert read("3") == 3
        with pytest.raises(ValueError, match="1 to 3"):
            read("4")

    @pytest.mark.parametrize("problem", [None, "multi_label_classification", "regression"])
    @pytest.mark.parametrize("broken", BROKEN)
    def test_a_row_that_is_not_finite_fails_alone(self, problem: str | None, broken: float) -> None:
        """Of infinity sigmoid makes a certain 1."""
        task = SequenceClassification(config_of(LABELS[:3], problem_type=problem), 1)
        logits = self.LOGITS.clone()
        logits[0, 2] = broken
        first, second = self.answer(task, logits, [{}, {}])
        assert isinstance(first, InferenceFailed)
        assert second == self.answer(task, self.LOGITS, [{}, {}])[1]

    def test_without_labels_in_the_config_they_are_numbered(self) -> None:
        assert SequenceClassification({}, 0).labels == ["LABEL_0", "LABEL_1"]


@pytest.fixture(scope="module")
def tokenizer(minilm_folder: Path) -> Tokenizer:
    return Tokenizer(minilm_folder, TextSettings(max_tokens=32))


def encode(tokenizer: Tokenizer, *sent: str) -> list[Encoded]:
    return [
        item for item in tokenizer.encode([Text(text, None, False) for text in sent]) if isinstance(item, Encoded)
    ]


def pack(items: Sequence[Encoded]) -> TokenBatch:
    return TokenBatch.pack([item.ids for item in items], [item.type_ids for item in items], torch.device("cpu"))


class TestTokenClassification:
    TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")

    def answer(self, tokenizer: Tokenizer, text: str, tags: Sequence[str], labels: Sequence[str]) -> Any:
        """The answer to a text whose words (one token each) have these tags; added tokens get the first label."""
        (item,) = encode(tokenizer, text)
        assert len(item.ids) == len(tags) + 2, "one token a word, please"
        places = [0, *(labels.index(tag) for tag in tags), 0]
        logits = F.one_hot(torch.tensor(places), len(labels)).float() * 20
        (answer,) = TokenClassification(config_of(labels)).answer(logits, pack([item]), [(item, {})])
        return answer

    @pytest.mark.parametrize(
        ("tags", "entities"),
        [
            ("O O O O", []),
            ("B-PER O O O", [("PER", "john")]),
            ("B-PER I-PER O O", [("PER", "john smith")]),
            ("B-PER B-PER O O", [("PER", "john"), ("PER", "smith")]),  # two neighbours of one kind
            ("I-PER I-PER O O", [("PER", "john smith")]),  # no beginning: the run counts
            ("B-PER I-LOC O O", [("PER", "john"), ("LOC", "smith")]),
            ("B-PER O I-PER O", [("PER", "john"), ("PER", "in")]),  # an O between ends it
            ("O O O B-LOC", [("LOC", "london")]),
            ("B-PER I-PER B-LOC I-LOC", [("PER", "john smith"), ("LOC", "in london")]),
        ],
    )
    def test_runs_of_one_label_are_one_entity(
        self, tokenizer: Tokenizer, tags: str, entities: list[tuple[str, str]]
    ) -> None:
        text = "john smith in london"
        answer = self.answer(tokenizer, text, tags.split(), self.TAGS)
        assert [(entity["label"], entity["text"]) for entity in answer] == entities
        for entity in answer:
            assert text[entity["start"] : entity["end"]] == entity["text"]
            assert entity["score"] == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("scheme", ["always", "first"])
    @pytest.mark.parametrize("text", ["in Paris and", "  in  Paris and ", "Paris"])
    def test_the_blank_that_a_tokenizer_counts_to_a_word_is_no_part_of_the_entity(
        self, text: str, scheme: str
    ) -> None:
        """As the tokenizers of DeBERTa v2 and v3, whose offsets begin at the blank."""
        words = {"<unk>": 0, "▁": 1, "▁in": 2, "▁Paris": 3, "▁and": 4, "in": 5, "Paris": 6, "and": 7}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme)
        encoding = backend.encode(text)
        item = Encoded(text, encoding.ids, encoding.type_ids, encoding)
        labels = ("O", "B-LOC")
        places = [int(token.endswith("Paris")) for token in encoding.tokens]
        logits = F.one_hot(torch.tensor(places), len(labels)).float() * 20
        (answer,) = TokenClassification(config_of(labels)).answer(logits, pack([item]), [(item, {})])
        assert isinstance(answer, list)
        at = text.index("Paris")
        assert [(entity["text"], entity["start"], entity["end"]) for entity in answer] == [("Paris", at, at + 5)]

    def test_labels_without_b_and_i(self, tokenizer: Tokenizer) -> None:
        answer = self.answer(
            tokenizer, "john smith in london", ["NAME", "NAME", "O", "PLACE"], ["O", "NAME", "PLACE"]
        )
        assert [(entity["label"], entity["text"]) for entity in answer] == [
            ("NAME", "john smith"),
            ("PLACE", "london"),
        ]

    def test_added_tokens_are_no_entities(self, tokenizer: Tokenizer) -> None:
        """[CLS] and [SEP] are given the first label here, which is one that counts."""
        answer = self.answer(tokenizer, "john smith", ["O", "O"], ["B-PER", "O"])
        assert answer == []

    def test_offsets_are_characters_of_what_was_sent(self, tokenizer: Tokenizer) -> None:
        text = "\U0001f600 ünder London"
        (item,) = encode(tokenizer, text)
        logits = torch.zeros(len(item.ids), 2)
        logits[:, 0] = 20
        logits[len(item.ids) - 2] = torch.tensor([0.0, 20.0])
        (answer,) = TokenClassification(config_of(["O", "B-LOC"])).answer(logits, pack([item]), [(item, {})])
        assert isinstance(answer, list)
        assert [(entity["text"], entity["start"], entity["end"]) for entity in answer] == [("London", 8, 14)]

    @pytest.mark.parametrize("broken", BROKEN)
    def test_a_text_that_is_not_finite_fails_alone(self, tokenizer: Tokenizer, broken: float) -> None:
        items = encode(tokenizer, "john", "smith in", "london")
        batch = pack(items)
        logits = torch.zeros(batch.tokens, 2)
        logits[4, 1] = broken  # a token of the second text
        answers = TokenClassification(config_of(["O", "B-X"])).answer(logits, batch, [(i, {}) for i in items])
        assert [isinstance(answer, InferenceFailed) for answer in answers] == [False, True, False]


class TestFillMask:
    @pytest.fixture
    def task(self, tokenizer: Tokenizer) -> FillMask:
        return FillMask("[MASK]", tokenizer, 2)

    def outputs(self, tokenizer: Tokenizer, *words: str) -> torch.Tensor:
        """(M, vocabulary) logits that put these words first, and "the" second."""
        vocabulary = tokenizer.whole.get_vocab()
        logits = torch.zeros(len(words), len(vocabulary))
        for row, word in enumerate(words):
            logits[row, vocabulary["the"]] = 20.0
            logits[row, vocabulary[word]] = 30.0
        return logits

    def test_positions_of_all_masks_in_the_packed_batch(self, task: FillMask, tokenizer: Tokenizer) -> None:
        items = encode(tokenizer, "a [MASK]", "[MASK] b [MASK]")
        # [CLS] a [MASK] [SEP] [CLS] [MASK] b [MASK] [SEP]
        assert task.selected(items) == [2, 5, 7]

    def test_one_mask_is_a_list_and_several_are_lists(self, task: FillMask, tokenizer: Tokenizer) -> None:
        items = encode(tokenizer, "paris is a [MASK]", "[MASK] [MASK]", "my [MASK]")
        outputs = self.outputs(tokenizer, "city", "new", "york", "dog")
        inputs: list[Any] = [(items[0], {}), (items[1], {"top_k": 1}), (items[2], {"top_k": 1})]
        first, second, third = task.answer(outputs, pack(items), inputs)
        assert isinstance(first, list)
        assert isinstance(second, list)
        assert [filling["token_str"] for filling in first] == ["city", "the"]
        assert first[0]["sequence"] == "paris is a city"
        assert first[0]["token"] == tokenizer.whole.token_to_id("city")
        assert first[0]["score"] == pytest.approx(1, abs=1e-3)
        assert [[filling["token_str"] for filling in mask] for mask in second] == [["new"], ["york"]]
        assert "[MASK]" in second[0][0]["sequence"]
        assert isinstance(third, list)
        assert third[0]["sequence"] == "my dog"

    @pytest.mark.parametrize("broken_row", [0, 1, 2])
    def test_a_text_that_is_not_finite_fails_alone(
        self, task: FillMask, tokenizer: Tokenizer, broken_row: int
    ) -> None:
        """Also where the broken mask is not the last of its text: the next text must not get its leftovers."""
        items = encode(tokenizer, "[MASK] [MASK]", "my [MASK]")
        outputs = self.outputs(tokenizer, "new", "york", "dog")
        outputs[broken_row, 5] = float("nan")
        answers = task.answer(outputs, pack(items), [(item, {"top_k": 1}) for item in items])
        assert [isinstance(answer, InferenceFailed) for answer in answers] == [broken_row < 2, broken_row == 2]
        if broken_row < 2:
            assert isinstance(answers[1], list)
            assert answers[1][0]["sequence"] == "my dog"

    def test_a_request_for_more_than_can_be_decoded_in_time_is_refused(
        self, task: FillMask, tokenizer: Tokenizer
    ) -> None:
        items = encode(tokenizer, "[MASK] " * 20, "[MASK] " * 20)
        task.check_request(items, {"top_k": 25})
        with pytest.raises(PayloadTooLarge, match=r"1040 fillings \(40 masks, 26 each\); at most 1000"):
            task.check_request(items, {"top_k": 26})
        task.check_request(items, {})

    def test_a_text_without_a_mask_is_refused(self, task: FillMask, tokenizer: Tokenizer) -> None:
        (without,) = encode(tokenizer, "no mask")
        with pytest.raises(InvalidInput, match=r"\[MASK\]"):
            task.check(without)
        (item,) = encode(tokenizer, "a [MASK]")
        assert task.check(item) is item


@pytest.mark.parametrize(
    ("files", "token"),
    [
        ({"special_tokens_map.json": {"mask_token": "<m>"}}, "<m>"),
        ({"special_tokens_map.json": {"mask_token": {"content": "<m>"}}}, "<m>"),
        ({"special_tokens_map.json": {}, "tokenizer_config.json": {"mask_token": "<m>"}}, "<m>"),
    ],
)
def test_mask_token_from_either_file(tmp_path: Path, files: dict[str, object], token: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    assert mask_token(tmp_path) == token


def test_no_mask_token(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no mask_token"):
        mask_token(tmp_path)


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("embeddings", Embeddings),
        ("sequence-classification", SequenceClassification),
        ("token-classification", TokenClassification),
        ("fill-mask", FillMask),
    ],
)
def test_load_makes_the_archives_task(
    minilm_folder: Path, tokenizer: Tokenizer, task: str, kind: type[TextTask]
) -> None:
    assert type(tasks.load(minilm_folder, TextSettings(task=task), tokenizer)) is kind


@pytest.mark.parametrize("task", tasks.names())
def test_a_tasks_file_names_the_options_that_it_takes(
    minilm_folder: Path, tokenizer: Tokenizer, tmp_path: Path, task: str
) -> None:
    module = importlib.import_module(f"handlers.tasks.{task.replace('-', '_')}")
    loaded = tasks.load(minilm_folder, TextSettings(task=task), tokenizer)
    of_nli = {zero_shot.LABELS, zero_shot.TEMPLATE, zero_shot.MULTI}  # and MiniLM's labels are no NLI model's
    assert set(module.OPTIONS) - of_nli == set(loaded.options)
    assert hasattr(transformers, tasks.head(task).auto_model)


NEW_TASK = """
from handlers.tasks.shared.head import Head
from handlers.tasks.shared.task import TextTask

HEAD = Head("AutoModel", ("ForSomethingNew",), output="last_hidden_state", rows="token")
OPTIONS = ("how",)


class SomethingNew(TextTask):
    options = {"how": str}


def make(archive):
    return SomethingNew()
"""


def test_a_task_is_added_by_a_file(
    minilm_folder: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "something_new.py").write_text(NEW_TASK, encoding="utf-8")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "handlers.tasks.something_new", raising=False)
    monkeypatch.setattr(settings, "TEXT_TASKS", tasks.names())
    assert "something-new" in tasks.names()
    assert "how" in tasks.option_names()
    assert tasks.head("something-new").architectures == ("ForSomethingNew",)
    loaded = tasks.load(minilm_folder, TextSettings(task="something-new"), tokenizer)
    assert type(loaded).__name__ == "SomethingNew"


def test_a_new_task_with_a_row_per_text_is_read_so_by_every_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "AutoModelForSequenceClassification"
    file = NEW_TASK.replace('"AutoModel"', f'"{head}"').replace('"last_hidden_state"', '"logits"')
    (tmp_path / "something_new.py").write_text(file.replace('rows="token"', 'rows="text"'), encoding="utf-8")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "handlers.tasks.something_new", raising=False)
    monkeypatch.setitem(text_networks.AUTO_MODELS, "something-new", head)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.num_labels = 3
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    spec = EngineSpec("text-encoder", tmp_path / "model", torch.device("cpu"), "fp32", task="something-new")
    batch = TokenBatch.pack([[5, 6, 7, 8], [9, 8]], [[0] * 4, [0] * 2], spec.device)
    wanted = engines.load("torch_eager", spec).run(batch)
    assert wanted.shape == (2, 3)
    for name in ("fused", "onnxruntime"):
        torch.testing.assert_close(engines.load(name, spec).run(batch), wanted, rtol=1e-4, atol=1e-4)


def test_names_are_those_of_the_files() -> None:
    assert tasks.names() == (
        "embeddings",
        "fill-mask",
        "sequence-classification",
        "sparse-embeddings",
        "token-classification",
    )


@pytest.mark.parametrize(
    ("output", "rows", "shape"),
    [("logits", "text", (1, 5, 3)), ("logits", "token", (5, 3)), ("logits", "mask", (2, 3))],
)
def test_what_a_task_reads_of_one_text(output: Any, rows: Any, shape: tuple[int, ...]) -> None:
    outputs = types.SimpleNamespace(logits=torch.zeros(1, 5, 3))
    found = Head("AutoModel", (), output, rows).read(outputs, torch.tensor([False, True, False, True, False]))
    assert found.shape == shape
