"""Texts as clients send them -> tokens, or an error that says what is wrong; tokens -> micro-batches."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers import texts
from handlers.errors import EmptyRequest, InputTooLong, InvalidInput, RequestError
from handlers.settings import TextSettings
from handlers.texts import Encoded, Text, Tokenizer

SETTINGS = TextSettings(max_tokens=16, max_chars=100)
PAIRS = TextSettings(task="sequence-classification", max_tokens=16, max_chars=100)


def refused(payload: object, settings: TextSettings = SETTINGS, pairs: bool = False) -> RequestError:
    with pytest.raises(RequestError) as error:
        texts.read(payload, settings, pairs, False)
    return error.value


@pytest.mark.parametrize(
    "payload", ["größe 東京 \U0001f600", "größe 東京 \U0001f600".encode(), bytearray("x", "utf-8")]
)
@pytest.mark.parametrize("truncate", [True, False])
def test_a_text_comes_as_str_or_bytes(payload: str | bytes, truncate: bool) -> None:
    wanted = payload if isinstance(payload, str) else payload.decode()
    assert texts.read(payload, SETTINGS, False, truncate) == Text(wanted, None, truncate)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"ab\xff", 2),
        ("grün".encode("latin-1"), 2),
        ("x".encode("utf-16"), 0),
        ("ab東".encode()[:-1], 2),  # cut in the middle of a character
        (b"\xed\xa0\x80", 0),  # a surrogate, encoded all the same
        (b"\xc0\x80", 0),  # an overlong zero
    ],
)
def test_what_is_not_utf8_is_told_where(data: bytes, place: int) -> None:
    error = refused(data)
    assert type(error) is InvalidInput
    assert f"byte {place} of {len(data)}" in error.message


@pytest.mark.parametrize(("text", "place"), [("\ud800", 0), ("ab\udfff", 2), ("\udc00\ud800", 0)])
def test_half_a_surrogate_pair_is_refused(text: str, place: int) -> None:
    """json.loads lets them pass; the tokenizer would raise for the whole batch."""
    assert f"character {place} is half of a surrogate pair" in refused(text).message
    assert "surrogate" in refused({"text": "fine", "text_pair": text}, PAIRS, True).message


@pytest.mark.parametrize(
    ("payload", "kind"),
    [(5, "a number"), (None, "null"), (True, "a boolean"), (["a"], "a list"), ([["a", "b"]], "a list")],
)
@pytest.mark.parametrize("settings", [SETTINGS, PAIRS])
def test_what_is_no_text_is_named(payload: object, kind: str, settings: TextSettings) -> None:
    error = refused(payload, settings, settings is PAIRS)
    assert type(error) is InvalidInput
    assert error.message.startswith(kind)


@pytest.mark.parametrize("payload", ["", b"", bytearray()])
def test_an_empty_text_is_refused(payload: object) -> None:
    assert type(refused(payload)).__name__ == "EmptyRequest"


def test_the_limit_counts_characters() -> None:
    assert texts.read("é" * 100, SETTINGS, False, False).text == "é" * 100
    error = refused("é" * 101)
    assert (type(error).__name__, error.status) == ("PayloadTooLarge", 413)
    assert "101" in error.message
    assert "100" in error.message


def test_lower_case_where_the_checkpoint_asks() -> None:
    lowering = TextSettings(lower_case=True)
    assert texts.read("ÄB", lowering, False, False).text == "äb"
    assert texts.read("ÄB", SETTINGS, False, False).text == "ÄB"


class TestPairs:
    def test_a_pair_where_the_task_has_them(self) -> None:
        assert texts.read({"text_pair": "b", "text": "a"}, PAIRS, True, True) == Text("a", "b", True)

    @pytest.mark.parametrize("task", ["embeddings", "token-classification", "fill-mask"])
    def test_no_pair_elsewhere(self, task: str) -> None:
        error = refused({"text": "a", "text_pair": "b"}, TextSettings(task=task))
        assert f"{task} takes no pairs" in error.message

    @pytest.mark.parametrize(
        "payload", [{}, {"text": "a"}, {"text": "a", "text_pair": "b", "c": 1}, {"Text": "a", "text_pair": "b"}]
    )
    def test_other_keys_are_refused(self, payload: dict[str, object]) -> None:
        assert '"text_pair": "..."' in refused(payload, PAIRS, True).message

    def test_keys_are_cut_and_can_be_written(self) -> None:
        message = refused({"k" * 9000: 1, "\ud800": 2}, PAIRS, True).message
        assert len(message) < 300
        message.encode("utf-8")

    @pytest.mark.parametrize(
        ("text", "pair", "kind"),
        [
            ("", "b", "EmptyRequest"),
            ("a", "", "EmptyRequest"),
            ("a", None, "InvalidInput"),
            (["a"], "b", "InvalidInput"),
        ],
    )
    def test_both_halves_are_checked(self, text: object, pair: object, kind: str) -> None:
        assert type(refused({"text": text, "text_pair": pair}, PAIRS, True)).__name__ == kind


@pytest.fixture(scope="module")
def tokenizer(minilm_folder: Path) -> Tokenizer:
    return Tokenizer(minilm_folder, SETTINGS)


def encoded(result: Encoded | RequestError) -> Encoded:
    assert isinstance(result, Encoded)
    return result


class TestTokenizer:
    def test_as_transformers_does(self, tokenizer: Tokenizer, minilm_folder: Path) -> None:
        from transformers import AutoTokenizer

        reference = AutoTokenizer.from_pretrained(minilm_folder)
        sent = [Text("Hello, wörld!", None, False), Text("a b", "c d e", False), Text("x", None, True)]
        for text, result in zip(sent, tokenizer.encode(sent), strict=True):
            wanted = reference(text.text, text.pair, return_token_type_ids=True)
            assert encoded(result).ids == wanted["input_ids"]
            assert encoded(result).type_ids == wanted["token_type_ids"]

    def test_nothing(self, tokenizer: Tokenizer) -> None:
        assert tokenizer.encode([]) == []

    @pytest.mark.parametrize(("words", "fits"), [(14, True), (15, False), (40, False)])
    def test_too_long_says_both_numbers_and_the_way_out(self, tokenizer: Tokenizer, words: int, fits: bool) -> None:
        """Special tokens count: 14 words and two of those are 16."""
        (result,) = tokenizer.encode([Text("a " * words, None, False)])
        assert isinstance(result, Encoded) is fits
        if isinstance(result, RequestError):
            assert type(result) is InputTooLong
            assert f"{words + 2} tokens" in result.message
            assert "takes 16" in result.message
            assert "truncat" in result.message

    def test_too_long_ones_leave_their_neighbours_alone(self, tokenizer: Tokenizer) -> None:
        long, short = Text("a " * 40, None, False), Text("a", None, False)
        results = tokenizer.encode([long, short, long, short, short])
        assert [isinstance(result, InputTooLong) for result in results] == [True, False, True, False, False]
        assert encoded(results[1]).ids == encoded(tokenizer.encode([short])[0]).ids

    @pytest.mark.parametrize(("text", "pair"), [("a " * 40, None), ("a " * 40, "b " * 3), ("a", "b " * 40)])
    def test_truncation_as_transformers_does(
        self, tokenizer: Tokenizer, minilm_folder: Path, text: str, pair: str | None
    ) -> None:
        from transformers import AutoTokenizer

        (result,) = tokenizer.encode([Text(text, pair, True)])
        wanted = AutoTokenizer.from_pretrained(minilm_folder)(text, pair, truncation=True, max_length=16)
        assert encoded(result).ids == wanted["input_ids"]
        assert len(encoded(result).ids) == 16

    def test_truncation_does_not_touch_what_fits(self, tokenizer: Tokenizer) -> None:
        cut, whole = tokenizer.encode([Text("a b c", None, True), Text("a b c", None, False)])
        assert encoded(cut).ids == encoded(whole).ids

    @pytest.mark.parametrize("pair", [None, "x y z " * 3])
    def test_truncation_at_the_side_that_the_checkpoint_names(
        self, minilm_folder: Path, tmp_path: Path, pair: str | None
    ) -> None:
        from transformers import AutoTokenizer

        folder = shutil.copytree(minilm_folder, tmp_path / "left")
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"}))
        text = " ".join("abcdefghijklmnopqrstuvwxyz")
        (result,) = Tokenizer(folder, SETTINGS).encode([Text(text, pair, True)])
        wanted = AutoTokenizer.from_pretrained(folder)(text, pair, truncation=True, max_length=16)
        assert encoded(result).ids == wanted["input_ids"]

    def test_what_the_tokenizer_cannot_read_is_that_text_s_own_error(self, tmp_path: Path) -> None:
        """A WordPiece vocabulary without its token for the unknown: the library raises."""
        bare = tokenizers.Tokenizer(tokenizers.models.WordPiece({"warm": 0, "-": 1, "up": 2}))
        bare.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        bare.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(Exception, match="UNK"):
            bare.encode("secret")
        tokenizer = Tokenizer(tmp_path, SETTINGS)
        sent = [Text(text, None, False) for text in ("warm", "secret", "warm up", "  ")]
        warm, secret, both, blank = tokenizer.encode(sent)
        assert (encoded(warm).ids, encoded(both).ids) == ([0], [0, 2])
        assert isinstance(secret, InvalidInput)
        assert secret.status == 400
        assert "secret" not in secret.message
        assert isinstance(blank, EmptyRequest)
        assert [type(result) for result in tokenizer.encode(sent[3:])] == [EmptyRequest]

    @given(text=st.text(min_size=1, max_size=60))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_text_is_tokens_or_an_error(self, tokenizer: Tokenizer, text: str) -> None:
        """Hypothesis gives no surrogates here; everything else of Unicode it does."""
        read = texts.read(text.encode(), SETTINGS, False, True)
        assert read.text == text
        (result,) = tokenizer.encode([read])
        assert 2 <= len(encoded(result).ids) <= 16


lengths_and_budgets = st.tuples(st.lists(st.integers(1, 64), max_size=40), st.integers(1, 400), st.booleans())
Case = tuple[list[int], int, bool]


class TestMicroBatches:
    @given(lengths_and_budgets)
    def test_each_input_is_in_exactly_one(self, case: Case) -> None:
        places = [place for batch in texts.micro_batches(*case) for place in batch]
        assert sorted(places) == list(range(len(case[0])))

    @given(lengths_and_budgets)
    def test_they_keep_the_budget_unless_one_input_alone_passes_it(self, case: Case) -> None:
        lengths, budget, pads = case
        for batch in texts.micro_batches(*case):
            chosen = [lengths[place] for place in batch]
            assert len(batch) == 1 or (len(batch) * max(chosen) if pads else sum(chosen)) <= budget

    @given(lengths_and_budgets)
    def test_long_ones_first(self, case: Case) -> None:
        order = [case[0][place] for batch in texts.micro_batches(*case) for place in batch]
        assert order == sorted(case[0], reverse=True)

    @given(lengths_and_budgets)
    def test_none_ends_before_it_must(self, case: Case) -> None:
        lengths, budget, pads = case
        batches = list(texts.micro_batches(*case))
        for batch, after in pairwise(batches):
            added = lengths[batch[0]] if pads else lengths[after[0]]
            assert (
                len(batch) * lengths[batch[0]] if pads else sum(lengths[place] for place in batch)
            ) + added > budget

    def test_equal_lengths_keep_their_order(self) -> None:
        assert list(texts.micro_batches([5] * 7, 15, True)) == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    ("media_type", "taken"),
    [
        ("", True),
        ("text/plain", True),
        ("application/octet-stream", True),
        ("text/html", False),
        ("image/png", False),
    ],
)
def test_accepts(media_type: str, taken: bool) -> None:
    assert texts.accepts(media_type) is taken


@pytest.mark.parametrize("task", ["embeddings", "sequence-classification"])
def test_pairs_are_offered_where_they_are_taken(task: str) -> None:
    assert ("text_pair" in texts.media(task)) is (task == "sequence-classification")


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "esm", "max_position_embeddings": 1026, "pad_token_id": 1}, 1024),
        ({"model_type": "funnel"}, None),
    ],
)
def test_positions_that_a_network_has(config: dict[str, object], most: int | None) -> None:
    assert texts.positions_of(config) == most


@pytest.mark.parametrize(
    ("config", "tokenizer", "has"),
    [
        ({"type_vocab_size": 2}, None, True),
        ({"type_vocab_size": 2}, {"model_input_names": ["input_ids", "token_type_ids"]}, True),
        ({"type_vocab_size": 2}, {"model_input_names": ["input_ids", "attention_mask"]}, False),
        ({"type_vocab_size": 1}, {}, False),
        ({}, {}, True),  # Funnel's: three types, and none of them in its config
    ],
)
def test_token_types_by_network_and_tokenizer(
    tmp_path: Path, config: dict[str, object], tokenizer: dict[str, object] | None, has: bool
) -> None:
    if tokenizer is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert texts.has_token_types(config, tmp_path) is has
