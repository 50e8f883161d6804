"""Texts as clients send them -> tokens, or an error that says what is wrong; tokens -> micro-batches."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from handlers.protocol.errors import EmptyRequest, InputTooLong, InvalidInput, PayloadTooLarge, RequestError
from handlers.settings import TextSettings
from handlers.text_encoder import TextEncoder
from handlers.texts import network_inputs, payloads, tokenization
from handlers.texts.micro_batches import micro_batches
from handlers.texts.payloads import Text
from handlers.texts.tokenization import Encoded, Tokenizer

SETTINGS = TextSettings(max_tokens=16, max_chars=100)
PAIRS = TextSettings(task="sequence-classification", max_tokens=16, max_chars=100)


def refused(payload: object, settings: TextSettings = SETTINGS, pairs: bool = False) -> RequestError:
    with pytest.raises(RequestError) as error:
        payloads.read(payload, settings, pairs, False)
    return error.value


@pytest.mark.parametrize(
    "payload", ["größe 東京 \U0001f600", "größe 東京 \U0001f600".encode(), bytearray("x", "utf-8")]
)
@pytest.mark.parametrize("truncate", [True, False])
def test_a_text_comes_as_str_or_bytes(payload: str | bytes, truncate: bool) -> None:
    wanted = payload if isinstance(payload, str) else payload.decode()
    assert payloads.read(payload, SETTINGS, False, truncate) == Text(wanted, None, truncate)


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


@pytest.mark.parametrize("payload", ["", b"", bytearray(), " ", b" \r\n\t", "\u3000\u00a0"])
def test_a_text_that_is_empty_or_blank_is_refused(payload: object) -> None:
    assert type(refused(payload)).__name__ == "EmptyRequest"


def test_the_limit_counts_characters() -> None:
    assert payloads.read("é" * 100, SETTINGS, False, False).text == "é" * 100
    error = refused("é" * 101)
    assert (type(error).__name__, error.status) == ("PayloadTooLarge", 413)
    assert "101" in error.message
    assert "100" in error.message


def test_lower_case_where_the_checkpoint_asks() -> None:
    lowering = TextSettings(lower_case=True)
    assert payloads.read("ÄB", lowering, False, False).text == "äb"
    assert payloads.read("ÄB", SETTINGS, False, False).text == "ÄB"


class TestPairs:
    def test_a_pair_where_the_task_has_them(self) -> None:
        assert payloads.read({"text_pair": "b", "text": "a"}, PAIRS, True, True) == Text("a", "b", True)

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
            ("a", " ", "EmptyRequest"),
            ("\n", "b", "EmptyRequest"),
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

    @pytest.mark.parametrize(
        "text", ["Hello, wörld!", "a b " * 30, "", "  ", "\u200b", "日本 x\u0301", "[MASK] [CLS]"]
    )
    @pytest.mark.parametrize("pair", [None, "c d e", "f " * 40])
    def test_offsets_change_no_token(self, tokenizer: Tokenizer, text: str, pair: str | None) -> None:
        for only_first in (False, True):
            sent = [Text(text, pair, True, only_first=only_first)]
            (one,), (other,) = tokenizer.encode(sent), tokenizer.encode(sent, with_offsets=False)
            if isinstance(one, RequestError):
                assert isinstance(other, RequestError)
                assert (type(one), one.message) == (type(other), other.message)
                continue
            first, second = encoded(one), encoded(other)
            assert (first.ids, first.type_ids) == (second.ids, second.type_ids)
            assert first.encoding.special_tokens_mask == second.encoding.special_tokens_mask

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

    @pytest.mark.parametrize("with_offsets", [True, False])
    def test_what_the_tokenizer_cannot_read_is_that_text_s_own_error(
        self, tmp_path: Path, with_offsets: bool
    ) -> None:
        """A WordPiece vocabulary without its token for the unknown: the library raises."""
        bare = tokenizers.Tokenizer(tokenizers.models.WordPiece({"warm": 0, "-": 1, "up": 2}))
        bare.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        bare.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(Exception, match="UNK"):
            bare.encode("secret")
        tokenizer = Tokenizer(tmp_path, SETTINGS)
        sent = [Text(text, None, False) for text in ("warm", "secret", "warm up", "  ")]
        warm, secret, both, blank = tokenizer.encode(sent, with_offsets)
        assert (encoded(warm).ids, encoded(both).ids) == ([0], [0, 2])
        assert isinstance(secret, InvalidInput)
        assert secret.status == 400
        assert "secret" not in secret.message
        assert isinstance(blank, EmptyRequest)
        assert [type(result) for result in tokenizer.encode(sent[3:])] == [EmptyRequest]

    def test_each_text_is_tokenized_once(self, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, sizes = tokenizer.whole, []

        class Counting:
            def encode_batch(self, plain: list[str]) -> list[tokenizers.Encoding]:
                sizes.append(len(plain))
                return whole.encode_batch(plain)

        monkeypatch.setattr(tokenizer, "whole", Counting())
        results = tokenizer.encode([Text("a " * 40, None, True)] * 5 + [Text("a", None, True)] * 3)
        assert sizes == [8]
        assert [len(encoded(result).ids) for result in results] == [16] * 5 + [3] * 3

    def test_many_characters_go_through_the_tokenizer_in_parts(
        self, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The encodings of a whole batch of long texts would be gigabytes."""
        sent = [Text("a b", None, True), Text("c" * 9, None, True), Text("d", "e", True), Text("f" * 30, "g", True)]
        whole = tokenizer.encode(sent)
        monkeypatch.setattr(tokenization, "MAX_CHARACTERS", 12)
        assert [len(part) for part in tokenization._parts(sent)] == [2, 1, 1]
        assert [encoded(result).ids for result in tokenizer.encode(sent)] == [encoded(one).ids for one in whole]

    def test_a_long_pair_is_cut_in_a_moment(self, minilm_folder: Path) -> None:
        """The library's own truncation makes an encoding of each two pieces: half a minute and 9 GB for this pair."""
        tokenizer = Tokenizer(minilm_folder, TextSettings(max_tokens=64))
        started = time.monotonic()
        (result,) = tokenizer.encode([Text("many words " * 3600, "and others " * 3600, True)])
        assert len(encoded(result).ids) == 64
        assert time.monotonic() - started < 5

    @given(text=st.text(min_size=1, max_size=60))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_text_is_tokens_or_an_error(self, tokenizer: Tokenizer, text: str) -> None:
        """Hypothesis gives no surrogates here; everything else of Unicode it does."""
        if text.isspace():
            return
        read = payloads.read(text.encode(), SETTINGS, False, True)
        assert read.text == text
        (result,) = tokenizer.encode([read])
        assert isinstance(result, EmptyRequest) or 3 <= len(encoded(result).ids) <= 16


WORDS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = {token: place for place, token in enumerate(("[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", *WORDS))}
BERT = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
TEMPLATE = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
)
XLNET = processors.TemplateProcessing(
    single="$A [SEP] [CLS]:2",
    pair="$A [SEP] $B:1 [SEP]:1 [CLS]:2",
    special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
)
T5 = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 4)])
FAMILIES = {
    "bert": BERT,
    "bert as a template": TEMPLATE,
    "roberta": processors.RobertaProcessing(("</s>", 4), ("<s>", 3)),
    "xlnet": XLNET,
    "t5": T5,
    "deberta": processors.Sequence([processors.ByteLevel(), TEMPLATE]),
    "byte level alone": processors.ByteLevel(),
    "nothing is added": None,
}
Words = st.lists(st.sampled_from([*WORDS[:6], "[SEP]", "<s>", "?"]), min_size=1, max_size=14).map(" ".join)


def family(name: str) -> tokenizers.Tokenizer:
    """A tokenizer of words that adds what this family's adds."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(VOCABULARY, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "<s>", "</s>"])
    if FAMILIES[name] is not None:
        made.post_processor = FAMILIES[name]
    return made


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("text", "pair", "missing"),
    [
        ("a", None, ""),
        ("\u200b\x07", None, "no tokens in the text"),
        ("a", "b", ""),
        ("a", "\u200b", "or none in its pair"),
        ("\u200b", "b", "or none in its pair"),
        ("\u200b", "\u200b", "in the text"),
    ],
)
def test_a_text_without_tokens_of_its_own_is_refused_in_every_family(
    tmp_path: Path, name: str, text: str, pair: str | None, missing: str
) -> None:
    """Zero-width and control characters, which a tokenizer drops."""
    made = family(name)
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.save(str(tmp_path / "tokenizer.json"))
    (result,) = Tokenizer(tmp_path, SETTINGS).encode([Text(text, pair, False)])
    if missing:
        assert isinstance(result, EmptyRequest)
        assert missing in result.message
    else:
        assert len(encoded(result).ids) >= 1 + (pair is not None)


class TestCuts:
    """What is cut here after tokenizing is what transformers' truncation=True gives."""

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("name", FAMILIES)
    @given(text=Words, pair=st.none() | Words, most=st.integers(3, 20))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
    def test_as_transformers_in_every_family(
        self, tmp_path: Path, name: str, side: str, text: str, pair: str | None, most: int
    ) -> None:
        from transformers import PreTrainedTokenizerFast

        reference = PreTrainedTokenizerFast(tokenizer_object=family(name), truncation_side=side)
        family(name).save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"truncation_side": side}))
        (result,) = Tokenizer(tmp_path, TextSettings(max_tokens=most)).encode([Text(text, pair, True)])
        wanted = reference(
            text,
            pair,
            truncation=True,
            max_length=most,
            return_token_type_ids=True,
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
        )
        whole = reference(text, pair)["input_ids"]
        added = reference.num_special_tokens_to_add(pair is not None)
        if added >= most and len(whole) > most:
            assert "leave no room for text" in str(result)
        else:
            assert encoded(result).ids == wanted["input_ids"]
            assert encoded(result).type_ids == wanted["token_type_ids"]
            assert encoded(result).encoding.special_tokens_mask == wanted["special_tokens_mask"]
            assert encoded(result).encoding.offsets == wanted["offset_mapping"]

    @pytest.mark.parametrize("own", ["left", "right"])
    def test_the_side_may_stand_in_the_tokenizers_own_file(self, tmp_path: Path, own: str) -> None:
        made = family("bert")
        made.enable_truncation(5, direction=own)
        made.save(str(tmp_path / "tokenizer.json"))
        (result,) = Tokenizer(tmp_path, TextSettings(max_tokens=5)).encode([Text("a b c d e", None, True)])
        wanted = made.encode("a b c d e").ids
        assert encoded(result).ids == wanted

    def test_an_unknown_side_is_refused(self, tmp_path: Path) -> None:
        family("bert").save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text('{"truncation_side": "middle"}')
        with pytest.raises(ValueError, match="truncation_side is 'middle'; wanted: left or right"):
            Tokenizer(tmp_path, SETTINGS)


def test_a_request_s_texts_are_bounded_together() -> None:
    """One text alone has its own bound, and so has a pair's half."""
    payloads.refuse_together([Text("a" * 50, "b" * 50, True)], 60)
    payloads.refuse_together([Text("a" * 30, None, True), Text("b" * 20, "c" * 10, True)], 60)
    with pytest.raises(PayloadTooLarge, match="2 texts have 61 characters together; at most 60"):
        payloads.refuse_together([Text("a" * 30, None, False), Text("b" * 20, "c" * 11, True)], 60)


lengths_and_budgets = st.tuples(st.lists(st.integers(1, 64), max_size=40), st.integers(1, 400), st.booleans())
Case = tuple[list[int], int, bool]


class TestMicroBatches:
    @given(lengths_and_budgets)
    def test_each_input_is_in_exactly_one(self, case: Case) -> None:
        places = [place for batch in micro_batches(*case) for place in batch]
        assert sorted(places) == list(range(len(case[0])))

    @given(lengths_and_budgets)
    def test_they_keep_the_budget_unless_one_input_alone_passes_it(self, case: Case) -> None:
        lengths, budget, pads = case
        for batch in micro_batches(*case):
            chosen = [lengths[place] for place in batch]
            assert len(batch) == 1 or (len(batch) * max(chosen) if pads else sum(chosen)) <= budget

    @given(lengths_and_budgets)
    def test_long_ones_first(self, case: Case) -> None:
        order = [case[0][place] for batch in micro_batches(*case) for place in batch]
        assert order == sorted(case[0], reverse=True)

    @given(lengths_and_budgets)
    def test_none_ends_before_it_must(self, case: Case) -> None:
        lengths, budget, pads = case
        batches = list(micro_batches(*case))
        for batch, after in pairwise(batches):
            added = lengths[batch[0]] if pads else lengths[after[0]]
            assert (
                len(batch) * lengths[batch[0]] if pads else sum(lengths[place] for place in batch)
            ) + added > budget

    def test_equal_lengths_keep_their_order(self) -> None:
        assert list(micro_batches([5] * 7, 15, True)) == [[0, 1, 2], [3, 4, 5], [6]]


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
    assert payloads.accepts(media_type) is taken


@pytest.mark.parametrize("takes_pairs", [False, True])
def test_pairs_are_offered_where_they_are_taken(takes_pairs: bool) -> None:
    assert ("text_pair" in payloads.wanted(takes_pairs)) is takes_pairs


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
    assert network_inputs.positions_of(config) == most


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
    assert network_inputs.has_token_types(config, tmp_path) is has


def test_a_request_of_many_long_texts_is_refused_alone(
    ask: Callable[..., list[tuple[int, Any]]], load_handler: Callable[..., Any], minilm_folder: Path
) -> None:
    handler = load_handler(TextEncoder, minilm_folder, maxTokens=16, truncate=True, maxCharsTogether=1000)
    json_header = {"content-type": "application/json"}
    rows = [{"body": ["a " * 200] * 3}, {"body": "a " * 2000}, {"body": ["a " * 200] * 2}]
    refused, alone, few = ask(handler, rows, [json_header, {}, json_header])
    assert (refused[0], refused[1]["type"], alone[0], few[0]) == (413, "PayloadTooLarge", 200, 200)
    assert "3 texts have 1200 characters together; at most 1000" in refused[1]["message"]
