"""Both entries from rows to answers, with trained weights and a context that is not TorchServe's."""

from __future__ import annotations

import base64
import codecs
import io
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from handlers import settings
from handlers.image_classifier import ImageClassifier
from handlers.text_encoder import TextEncoder

Row = dict[str, Any]
Headers = dict[str, Any]
Ask = Callable[..., list[tuple[int, Any]]]
Digits = list[tuple[bytes, str]]

JSON = {"content-type": "application/json"}
MULTIPART = {"content-type": "multipart/form-data; boundary=x"}
DESCRIBE = {"describe": "True"}
MARKER = "S3CRET-of-a-user"


class Runs:
    """Stands before an engine and counts; fails, or spoils outputs, as it is told."""

    def __init__(self, engine: Callable[[Any], torch.Tensor]) -> None:
        self.engine = engine
        self.sizes: list[int] = []
        self.spoil: Callable[[Any, torch.Tensor], torch.Tensor] = lambda inputs, outputs: outputs

    def __call__(self, inputs: Any) -> torch.Tensor:
        self.sizes.append(len(inputs))
        return self.spoil(inputs, self.engine(inputs))


def watch(handler: Any) -> Iterator[Runs]:
    engine = handler.model.engine
    runs = Runs(engine.run)
    object.__setattr__(engine, "run", runs)
    yield runs
    object.__setattr__(engine, "run", runs.engine)


@pytest.fixture
def digit_runs(digits: ImageClassifier) -> Iterator[Runs]:
    yield from watch(digits)


@pytest.fixture
def text_runs(minilm: TextEncoder) -> Iterator[Runs]:
    yield from watch(minilm)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def tensor(inputs: Any) -> torch.Tensor:
    """The input of a network that takes pixels alone."""
    assert isinstance(inputs, torch.Tensor)
    return inputs


def truncated_png() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(stream, "PNG")
    return stream.getvalue()[:1000]


BAD_IMAGE_ROWS: list[tuple[Row, Headers, int]] = [
    ({}, {}, 400),
    ({"body": b""}, {}, 400),
    ({"body": ""}, {}, 400),
    ({"body": MARKER.encode()}, {}, 415),
    ({"body": MARKER}, {}, 400),  # a str: taken for base64
    ({"body": truncated_png()}, {}, 400),
    ({"body": npy(np.zeros((3, 31, 32), np.float32))}, {}, 400),
    ({"body": npy(np.full((3, 32, 32), np.nan, np.float32))}, {}, 400),
    ({"body": b"\x93NUMPY\x01\x00\x02\x00'''"}, {}, 400),
    ({"body": npy(np.zeros((4000, 3, 32, 32), np.float16))[:400]}, {}, 400),
    ({"body": bytearray(b"[" * 100_000)}, JSON, 400),
    ({"body": bytearray(b'{"b64": "%s' % MARKER.encode())}, JSON, 400),
    ({"body": {}}, JSON, 400),
    ({"body": 0}, JSON, 400),
    ({"body": None}, JSON, 400),
    ({"body": False}, JSON, 400),
    ({"body": float("nan")}, JSON, 400),
    ({"body": 10**400}, JSON, 400),
    ({"body": []}, JSON, 400),
    ({"body": [""]}, JSON, 400),
    ({"body": ["\ud800"]}, JSON, 400),
    ({"body": {"\ud800": 1}}, JSON, 400),
    ({"body": [[[[MARKER]]]]}, JSON, 400),
    ({"body": {"instances": [{"b64": f"{MARKER}!"}]}}, JSON, 400),
    ({"body": {"instances": [{"b64": b64(b"no image")}]}}, JSON, 415),
    ({"body": ["YQ=="] * 9}, JSON, 413),
    ({"body": b"x", "top_k": b"11"}, {}, 400),
    ({"body": b"x", "nonsense": b"1"}, {}, 400),
    ({"body": MARKER}, {"content-type": "text/plain"}, 415),
    ({"a": b"", "b": b"x"}, MULTIPART, 400),
    ({"a": b"x"}, {"content-type": "application/x-www-form-urlencoded"}, 415),
]

BAD_TEXT_ROWS: list[tuple[Row, Headers, int]] = [
    ({}, {}, 400),
    ({"body": b""}, {}, 400),
    ({"body": ""}, {"content-type": "text/plain"}, 400),
    ({"body": b"\xff" + MARKER.encode()}, {}, 400),
    ({"body": f"{MARKER} " * 40}, {}, 400),  # too many tokens
    ({"body": "x" * 2001}, {}, 413),
    ({"body": "ok"}, {"content-type": "image/png"}, 415),
    ({"body": bytearray(b"[" * 100_000)}, JSON, 400),
    ({"body": bytearray(b'["%s' % MARKER.encode())}, JSON, 400),
    ({"body": {}}, JSON, 400),
    ({"body": 0}, JSON, 400),
    ({"body": None}, JSON, 400),
    ({"body": False}, JSON, 400),
    ({"body": 10**400}, JSON, 400),
    ({"body": []}, JSON, 400),
    ({"body": [""]}, JSON, 400),
    ({"body": f"{MARKER} \ud800"}, JSON, 400),
    ({"body": [[MARKER, MARKER]]}, JSON, 400),
    ({"body": {"text": MARKER, "text_pair": MARKER}}, JSON, 400),
    ({"body": {"instances": [MARKER, None]}}, JSON, 400),
    ({"body": {"instances": [MARKER], "parameters": {"truncate": MARKER}}}, JSON, 400),
    ({"body": [MARKER] * 65}, JSON, 413),
    ({"body": MARKER, "top_k": b"1"}, {}, 400),  # embeddings have no top_k
    ({"a": b"fine", "b": b"\xff"}, MULTIPART, 400),
]


class TestImages:
    def test_digits_are_read(self, ask: Ask, digits: ImageClassifier, digit_files: Digits) -> None:
        answers = ask(digits, [{"body": bytearray(data)} for data, _ in digit_files])
        assert [status for status, _ in answers] == [200] * len(digit_files)
        assert [answer[0]["label"] for _, answer in answers] == [label for _, label in digit_files]
        for _, answer in answers:
            assert [entry["index"] for entry in answer] == [int(entry["label"]) for entry in answer]
            assert len(answer) == 3

    @pytest.mark.parametrize(("bad", "headers", "status"), BAD_IMAGE_ROWS)
    def test_a_bad_row_leaves_its_neighbours_alone(
        self,
        ask: Ask,
        digits: ImageClassifier,
        digit_files: Digits,
        digit_runs: Runs,
        caplog: pytest.LogCaptureFixture,
        bad: Row,
        headers: Headers,
        status: int,
    ) -> None:
        """In every position; and what it held is neither answered nor logged."""
        good: list[Row] = [{"body": data} for data, _ in digit_files[:2]]
        wanted = ask(digits, good)
        for place in range(3):
            digit_runs.sizes.clear()
            with caplog.at_level(0):
                answers = ask(digits, [*good[:place], bad, *good[place:]], [*[{}] * place, headers, *[{}] * 2])
            refused = answers.pop(place)
            assert refused[0] == status
            assert answers == wanted  # to the last digit: the engine saw the same batch
            assert digit_runs.sizes == [2]
            assert MARKER not in json.dumps(refused)
        assert MARKER not in caplog.text

    def test_nothing_valid_and_the_engine_rests(self, ask: Ask, digits: ImageClassifier, digit_runs: Runs) -> None:
        answers = ask(digits, [row for row, _, _ in BAD_IMAGE_ROWS], [headers for _, headers, _ in BAD_IMAGE_ROWS])
        assert [status for status, _ in answers] == [status for _, _, status in BAD_IMAGE_ROWS]
        assert digit_runs.sizes == []

    def test_an_empty_batch(self, ask: Ask, digits: ImageClassifier, digit_runs: Runs) -> None:
        assert ask(digits, []) == []
        assert digit_runs.sizes == []

    @pytest.mark.parametrize("seed", range(4))
    def test_everything_at_once_in_any_order(
        self, ask: Ask, digits: ImageClassifier, digit_files: Digits, seed: int
    ) -> None:
        mixed: list[tuple[Row, Headers, int, Any]] = [(row, head, code, None) for row, head, code in BAD_IMAGE_ROWS]
        mixed += [({"body": data}, {}, 200, label) for data, label in digit_files]
        random.Random(seed).shuffle(mixed)
        answers = ask(digits, [row for row, *_ in mixed], [headers for _, headers, *_ in mixed])
        assert [status for status, _ in answers] == [status for _, _, status, _ in mixed]
        read = [answer[0]["label"] if status == 200 else None for status, answer in answers]
        assert read == [label for *_, label in mixed]

    def test_every_way_to_send_an_image(self, ask: Ask, digits: ImageClassifier, digit_files: Digits) -> None:
        data, label = digit_files[0]
        other, other_label = digit_files[1]
        text = b64(data)
        rows: list[tuple[Row, Headers]] = [
            ({"body": data}, {"Content-Type": "image/png"}),
            ({"body": text}, JSON),
            ({"body": {"b64": text}}, JSON),
            ({"body": bytearray(json.dumps(text).encode())}, {"Content-Type": "Application/JSON; charset=utf-8"}),
            ({"body": f"data:image/png;base64,{text}"}, JSON),
            ({"picture": bytearray(data)}, MULTIPART),
        ]
        several: list[tuple[Row, Headers]] = [
            ({"body": [text, {"b64": b64(other)}]}, JSON),
            ({"a": data, "b": other}, MULTIPART),
        ]
        answers = ask(digits, [row for row, _ in rows + several], [headers for _, headers in rows + several])
        for status, answer in answers[: len(rows)]:
            assert (status, answer[0]["label"]) == (200, label)
        for status, answer in answers[len(rows) :]:
            assert (status, [entries[0]["label"] for entries in answer]) == (200, [label, other_label])

    def test_instances_are_answered_by_predictions(
        self, ask: Ask, digits: ImageClassifier, digit_files: Digits
    ) -> None:
        body = {"instances": [{"b64": b64(data)} for data, _ in digit_files], "parameters": {"top_k": 1}}
        ((status, answer),) = ask(digits, [{"body": body}], [JSON])
        assert (status, answer.keys()) == (200, {"predictions"})
        assert [len(entries) for entries in answer["predictions"]] == [1] * len(digit_files)
        assert [entries[0]["label"] for entries in answer["predictions"]] == [label for _, label in digit_files]

    def test_one_bad_instance_refuses_its_request_and_says_which(
        self, ask: Ask, digits: ImageClassifier, digit_files: Digits
    ) -> None:
        good = b64(digit_files[0][0])
        (refused, kept) = ask(digits, [{"body": [good, "!", good]}, {"body": [good]}], [JSON, JSON])
        assert refused[0] == 400
        assert refused[1]["message"].startswith("input 2 of 3: ")
        assert kept[0] == 200

    @pytest.mark.parametrize(("count", "status"), [(4, 200), (5, 413)])
    def test_a_request_of_many_large_images_is_refused_alone(
        self, ask: Ask, digits: ImageClassifier, digit_files: Digits, count: int, status: int
    ) -> None:
        """Each is small enough, and the largest that is."""
        stream, most = io.BytesIO(), digits.model.settings.max_pixels
        Image.new("L", (most // 1000, 1000)).save(stream, "PNG", compress_level=1)
        large = b64(stream.getvalue())
        (refused, kept) = ask(digits, [{"body": [large] * count}, {"body": digit_files[0][0]}], [JSON, {}])
        assert (refused[0], kept[0]) == (status, 200)
        assert status == 200 or f"{5 * most} pixels together; at most {4 * most} are" in refused[1]["message"]

    def test_options_by_row(self, ask: Ask, digits: ImageClassifier, digit_files: Digits) -> None:
        data = digit_files[0][0]
        rows: list[Row] = [
            {"body": data, "top_k": b"1"},
            {"body": data},
            {"body": data, "top_k": b"10"},
            {"body": data},
        ]
        answers = ask(digits, rows, [{}, {}, {}, {"X-Top-K": "2"}])
        assert [len(answer) for _, answer in answers] == [1, 3, 10, 2]
        assert sum(entry["probability"] for entry in answers[2][1]) == pytest.approx(1, abs=1e-5)

    def test_ready_tensors_are_read_as_images_are(
        self, ask: Ask, digits: ImageClassifier, digit_files: Digits
    ) -> None:
        crops = [digits.prepare_one(data)[0] for data, _ in digit_files[:3]]
        ready = tensor(digits.pipeline.batch(crops)).numpy()
        rows: list[Row] = [
            {"body": npy(ready)},  # three at once: a list of three
            {"body": digit_files[0][0]},
            {"body": npy(ready[:1])},  # (1, 3, S, S) is one image
            {"body": npy(ready[0].astype(np.float16))},
        ]
        (three, image, one, half) = ask(digits, rows)
        assert [entries[0]["label"] for entries in three[1]] == [label for _, label in digit_files[:3]]
        for status, answer in (image, one, half):
            assert status == 200
            assert answer[0]["label"] == digit_files[0][1]
            assert answer[0]["probability"] == pytest.approx(three[1][0][0]["probability"], abs=2e-3)

    def test_images_of_a_tensor_file_count_as_inputs(
        self, ask: Ask, digits: ImageClassifier, digit_files: Digits
    ) -> None:
        image = tensor(digits.pipeline.batch(digits.prepare_one(digit_files[0][0]))).numpy()
        rows: list[Row] = [{"body": npy(np.repeat(image, count, axis=0))} for count in (8, 9)]
        most, refused = ask(digits, [*rows, {"body": digit_files[0][0]}])[:2]
        assert (most[0], len(most[1])) == (200, 8)
        assert (refused[0], refused[1]["type"]) == (413, "PayloadTooLarge")
        assert "9 inputs; at most 8" in refused[1]["message"]

    def test_a_description_in_the_middle(
        self, ask: Ask, digits: ImageClassifier, digit_files: Digits, digit_runs: Runs
    ) -> None:
        good: list[Row] = [{"body": data} for data, _ in digit_files[:2]]
        wanted = ask(digits, good)
        first, description, last = ask(digits, [good[0], {}, good[1]], [{}, DESCRIBE, {}])
        assert [first, last] == wanted
        assert description[0] == 200
        assert description[1]["kind"] == "image-classifier"
        assert description[1]["precision"] == {"name": "fp32", "why": "asked for"}
        assert description[1]["device"]["why"] == "asked for"
        assert description[1]["engine"]["name"]
        assert digit_runs.sizes == [2, 2]

    def test_only_descriptions_and_the_engine_rests(
        self, ask: Ask, digits: ImageClassifier, digit_runs: Runs
    ) -> None:
        answers = ask(digits, [{}, {}], [DESCRIBE, DESCRIBE])
        assert [answer["kind"] for _, answer in answers] == ["image-classifier"] * 2
        assert digit_runs.sizes == []

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
    def test_an_output_that_is_not_finite_fails_its_row(
        self, ask: Ask, digits: ImageClassifier, digit_files: Digits, digit_runs: Runs, place: int, broken: float
    ) -> None:
        rows = [{"body": data} for data, _ in digit_files[:3]]
        wanted = ask(digits, rows)

        def spoil(inputs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            spoilt = logits.clone()
            spoilt[place, 4] = broken
            return spoilt

        digit_runs.spoil = spoil
        answers = ask(digits, rows)
        assert answers.pop(place)[0] == 500
        assert answers == [answer for row, answer in enumerate(wanted) if row != place]

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_an_image_that_the_model_fails_on_fails_its_row(
        self, ask: Ask, digits: ImageClassifier, digit_files: Digits, digit_runs: Runs, place: int
    ) -> None:
        rows = [{"body": data} for data, _ in digit_files[:3]]
        wanted = [answer[0]["label"] for _, answer in ask(digits, rows)]
        poison = tensor(digits.pipeline.batch(digits.prepare_one(digit_files[place][0])))[0]

        def spoil(inputs: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            if any(torch.equal(image, poison) for image in inputs):
                raise RuntimeError("the kernel does not like it")
            return logits

        digit_runs.spoil = spoil
        answers = ask(digits, rows)
        assert [status for status, _ in answers] == [500 if row == place else 200 for row in range(3)]
        for row, (status, answer) in enumerate(answers):
            if status == 200:
                assert answer[0]["label"] == wanted[row]
            else:
                assert "kernel" not in answer["message"]

    def test_a_lost_gpu_ends_the_worker(
        self,
        ask: Ask,
        digits: ImageClassifier,
        digit_files: Digits,
        digit_runs: Runs,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*_: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("CUDA error: unspecified launch failure")

        digit_runs.spoil = fail
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", fail)
        with pytest.raises(SystemExit):
            ask(digits, [{"body": digit_files[0][0]}])

    def test_micro_batches_change_nothing_but_their_size(
        self, ask: Ask, load_handler: Callable[..., Any], digits_folder: Path, digits: Any, digit_files: Digits
    ) -> None:
        preprocess = settings.write(digits.model.settings.preprocess)
        cut = load_handler(ImageClassifier, digits_folder, preprocess=preprocess, topK=3, microBatch=2)
        rows = [{"body": data} for data, _ in digit_files]
        for runs in watch(cut):
            answers = ask(cut, rows)
            assert runs.sizes == [2, 2, 1]
        for (_, answer), (_, wanted) in zip(answers, ask(digits, rows), strict=True):
            assert [entry["label"] for entry in answer] == [entry["label"] for entry in wanted]
            got, expected = ([entry["probability"] for entry in entries] for entries in (answer, wanted))
            assert got == pytest.approx(expected, abs=1e-5)


class TestTexts:
    GOOD: tuple[Row, ...] = (
        {"body": "A cat sits outside."},
        {"body": bytearray(b"Interest rates are rising again.")},
    )

    @staticmethod
    def cosine(a: list[float], b: list[float]) -> float:
        return float(np.dot(a, b))  # of unit length: tested below

    def test_meaning_decides_what_is_near(self, ask: Ask, minilm: TextEncoder) -> None:
        body = ["A cat sits outside.", "A kitten is in the garden.", "Interest rates are rising."]
        ((status, (cat, kitten, rates)),) = ask(minilm, [{"body": body}], [JSON])
        assert status == 200
        assert len(cat) == 384
        assert self.cosine(cat, cat) == pytest.approx(1, abs=1e-5)
        assert self.cosine(cat, kitten) > self.cosine(cat, rates) + 0.3

    @pytest.mark.parametrize(("bad", "headers", "status"), BAD_TEXT_ROWS)
    def test_a_bad_row_leaves_its_neighbours_alone(
        self,
        ask: Ask,
        minilm: TextEncoder,
        text_runs: Runs,
        caplog: pytest.LogCaptureFixture,
        bad: Row,
        headers: Headers,
        status: int,
    ) -> None:
        """In every position; and what it held is neither answered nor logged."""
        wanted = ask(minilm, self.GOOD)
        for place in range(3):
            text_runs.sizes.clear()
            with caplog.at_level(0):
                rows = [*self.GOOD[:place], bad, *self.GOOD[place:]]
                answers = ask(minilm, rows, [*[{}] * place, headers, *[{}] * 2])
            refused = answers.pop(place)
            assert refused[0] == status
            assert answers == wanted
            assert text_runs.sizes == [2]
            assert MARKER not in json.dumps(refused)
        assert MARKER not in caplog.text

    def test_nothing_valid_and_the_engine_rests(self, ask: Ask, minilm: TextEncoder, text_runs: Runs) -> None:
        answers = ask(minilm, [row for row, _, _ in BAD_TEXT_ROWS], [headers for _, headers, _ in BAD_TEXT_ROWS])
        assert [status for status, _ in answers] == [status for _, _, status in BAD_TEXT_ROWS]
        assert text_runs.sizes == []

    def test_lengths_do_not_disturb_each_other_or_the_order(self, ask: Ask, minilm: TextEncoder) -> None:
        """Sorted by length inside; one word beside the longest text that fits."""
        texts = ["a", "word " * 30, "two words", "x", "word " * 12]
        together = ask(minilm, [{"body": text} for text in texts])
        for text, (status, embedding) in zip(texts, together, strict=True):
            ((_, alone),) = ask(minilm, [{"body": text}])
            assert status == 200
            assert embedding == pytest.approx(alone, abs=1e-5)

    def test_a_small_budget_changes_nothing_but_the_batches(
        self, ask: Ask, load_handler: Callable[..., Any], minilm_folder: Path, minilm: Any
    ) -> None:
        pooling = settings.write(minilm.model.settings.pooling)
        cut = load_handler(TextEncoder, minilm_folder, maxTokens=32, tokenBudget=32, pooling=pooling)
        rows = [{"body": "word " * count} for count in (1, 30, 2, 14, 5)]
        for runs in watch(cut):
            answers = ask(cut, rows)
            assert runs.sizes == [1, 4]  # of 32 tokens, and of 16, 7, 4 and 3
        for (_, answer), (_, wanted) in zip(answers, ask(minilm, rows), strict=True):
            assert answer == pytest.approx(wanted, abs=1e-5)

    def test_where_no_budget_is_set_the_engine_has_one(
        self, ask: Ask, load_handler: Callable[..., Any], minilm_folder: Path
    ) -> None:
        cut = load_handler(TextEncoder, minilm_folder)
        cut.model = replace(cut.model, engine=replace(cut.model.engine, token_budget=32))
        for runs in watch(cut):
            ask(cut, [{"body": "word " * count} for count in (1, 30, 2, 14, 5)])
            assert runs.sizes == [1, 4]

    def test_every_way_to_send_a_text(self, ask: Ask, minilm: TextEncoder) -> None:
        text = "größe \U0001f600"
        rows: list[tuple[Row, Headers]] = [
            ({"body": text}, {"content-type": "text/plain"}),
            ({"body": bytearray(text.encode())}, {"Content-Type": "TEXT/PLAIN; charset=utf-8"}),
            ({"body": text.encode()}, {}),
            ({"body": text}, JSON),
            ({"body": bytearray(json.dumps(text).encode())}, JSON),
            ({"text": bytearray(text.encode())}, MULTIPART),
            ({"any name": bytearray(text.encode())}, {**MULTIPART, "any name": {"content-type": "text/plain"}}),
            ({"data": bytearray(text.encode())}, {}),  # gRPC
            ({"data": bytearray(json.dumps(text).encode())}, {}),
            ({"body": bytearray(json.dumps(text).encode())}, {}),  # curl -T
            ({"body": codecs.BOM_UTF8 + text.encode()}, {"content-type": "text/plain"}),
            ({"body": text.encode("utf-16le")}, {"content-type": "text/plain; charset=utf-16le"}),
            ({"body": json.dumps(text, ensure_ascii=False).encode("utf-16")}, JSON),
        ]
        several: list[tuple[Row, Headers]] = [
            ({"body": [text, text]}, JSON),
            ({"text1": text, "text2": text.encode()}, MULTIPART),
            ({"body": {"instances": [text, text]}}, JSON),
        ]
        answers = ask(minilm, [row for row, _ in rows + several], [headers for _, headers in rows + several])
        assert [status for status, _ in answers] == [200] * len(answers)
        wanted = answers[0][1]
        one = [answer for _, answer in answers[: len(rows)]]
        for answer in [*one, *answers[-3][1], *answers[-2][1], *answers[-1][1]["predictions"]]:
            assert answer == pytest.approx(wanted, abs=1e-5)

    def test_truncation_by_row(self, ask: Ask, minilm: TextEncoder) -> None:
        long = "word " * 40
        rows: list[Row] = [
            {"body": long},
            {"body": long, "truncate": b"true"},
            {"body": "word " * 30},
            {"body": long},
        ]
        refused, cut, fitting, by_header = ask(minilm, rows, [{}, {}, {}, {"X-Truncate": "true"}])
        assert refused[0] == 400
        assert refused[1]["type"] == "InputTooLong"
        assert "42 tokens" in refused[1]["message"]
        assert "takes 32" in refused[1]["message"]
        assert cut[1] == pytest.approx(fitting[1], abs=1e-5)
        assert by_header[1] == pytest.approx(fitting[1], abs=1e-5)

    def test_a_description_in_the_middle(self, ask: Ask, minilm: TextEncoder) -> None:
        wanted = ask(minilm, self.GOOD)
        first, description, last = ask(minilm, [self.GOOD[0], {}, self.GOOD[1]], [{}, DESCRIBE, {}])
        assert [first, last] == wanted
        assert (description[1]["kind"], description[1]["task"]) == ("text-encoder", "embeddings")

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_an_output_that_is_not_finite_fails_its_row(
        self, ask: Ask, minilm: TextEncoder, text_runs: Runs, place: int
    ) -> None:
        rows = [{"body": "one two three"}, {"body": "one"}, {"body": "one two"}]
        wanted = ask(minilm, rows)
        length = [5, 3, 4][place]

        def spoil(batch: Any, vectors: torch.Tensor) -> torch.Tensor:
            spoilt = vectors.clone()
            row = batch.lengths.index(length)
            spoilt[batch.cu_seqlens[row + 1] - 1, 7] = float("inf")
            return spoilt

        text_runs.spoil = spoil
        answers = ask(minilm, rows)
        assert answers.pop(place)[0] == 500
        assert answers == [answer for row, answer in enumerate(wanted) if row != place]

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_a_text_that_the_tokenizer_panics_at_fails_its_row(
        self,
        ask: Ask,
        minilm: TextEncoder,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        place: int,
    ) -> None:
        class PanicException(BaseException):
            """As pyo3_runtime has it."""

        rows = [{"body": f"{MARKER} {word}"} for word in ("one", "two", "three")]
        wanted = [answer for row, answer in enumerate(ask(minilm, rows)) if row != place]
        encode = minilm.tokenizer.encode

        def panic(texts: Any, with_offsets: bool) -> Any:
            if any(text.text == rows[place]["body"] for text in texts):
                raise PanicException(f"byte index 1 is not a char boundary of `{MARKER}`")
            return encode(texts, with_offsets)

        monkeypatch.setattr(minilm.tokenizer, "encode", panic)
        answers = ask(minilm, rows)
        assert answers.pop(place)[0] == 500
        for (status, answer), (_, expected) in zip(answers, wanted, strict=True):
            assert (status, answer) == (200, pytest.approx(expected, abs=1e-5))
        assert MARKER not in caplog.text

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_a_text_that_the_model_fails_on_fails_its_row(
        self, ask: Ask, minilm: TextEncoder, text_runs: Runs, caplog: pytest.LogCaptureFixture, place: int
    ) -> None:
        rows = [{"body": f"{MARKER} one two three"}, {"body": f"{MARKER} one"}, {"body": f"{MARKER} one two"}]
        wanted = ask(minilm, rows)
        length = len(minilm.tokenizer.whole.encode(rows[place]["body"]).ids)

        def spoil(batch: Any, vectors: torch.Tensor) -> torch.Tensor:
            if length in batch.lengths:
                raise RuntimeError("the kernel does not like it")
            return vectors

        text_runs.spoil = spoil
        answers = ask(minilm, rows)
        assert [status for status, _ in answers] == [500 if row == place else 200 for row in range(3)]
        for row in range(3):
            if row != place:
                assert answers[row][1] == pytest.approx(wanted[row][1], abs=1e-5)
        assert "the model failed on a batch" in caplog.text
        assert MARKER not in caplog.text


class TestOtherTasks:
    def test_pairs_and_single_texts_in_one_batch(self, ask: Ask, tiny_encoder: Callable[..., TextEncoder]) -> None:
        handler = tiny_encoder("sequence-classification", id2label={0: "no", 1: "maybe", 2: "yes"})
        pair = {"text": "is it late", "text_pair": "it is"}
        rows: list[Row] = [
            {"body": "is it late"},
            {"body": pair},
            {"body": [pair, "is it late"]},
            {"body": {"text": "x"}},
        ]
        one, two, both, refused = ask(handler, rows, [JSON] * 4)
        assert [one[0], two[0], both[0], refused[0]] == [200, 200, 200, 400]
        assert sum(entry["score"] for entry in one[1]) == pytest.approx(1, abs=1e-5)
        scores = [{entry["label"]: entry["score"] for entry in answer} for answer in (one[1], two[1], *both[1])]
        assert scores[2] == pytest.approx(scores[1], abs=1e-4)
        assert scores[3] == pytest.approx(scores[0], abs=1e-4)
        assert scores[0] != pytest.approx(scores[1], abs=1e-3)  # the second text counts

    def test_pairs_of_a_network_that_knows_one_token_type(
        self, ask: Ask, tiny_encoder: Callable[..., TextEncoder]
    ) -> None:
        """RoBERTa's with BERT's tokenizer; transformers sends it no token types either."""
        handler = tiny_encoder("sequence-classification", type_vocab_size=1)
        (answer,) = ask(handler, [{"body": {"text": "is it late", "text_pair": "it is"}}], [JSON])
        assert answer[0] == 200
        encoded = handler.tokenizer.whole.encode("is it late", "it is")
        assert max(encoded.type_ids) == 1
        network = transformers.BertForSequenceClassification.from_pretrained(handler.model.folder)
        with torch.inference_mode():
            wanted = network(input_ids=torch.tensor([encoded.ids])).logits.softmax(dim=1)[0].sort(descending=True)
        assert [entry["score"] for entry in answer[1]] == pytest.approx(wanted.values.tolist(), abs=1e-4)

    def test_top_k_by_row(self, ask: Ask, tiny_encoder: Callable[..., TextEncoder]) -> None:
        handler = tiny_encoder("sequence-classification", id2label={0: "no", 1: "maybe", 2: "yes"})
        rows: list[Row] = [{"body": "a", "top_k": b"1"}, {"body": "a"}, {"body": "a", "top_k": b"4"}]
        one, three, refused = ask(handler, rows)
        assert (len(one[1]), len(three[1]), refused[0]) == (1, 3, 400)

    def test_entities(self, ask: Ask, tiny_encoder: Callable[..., TextEncoder]) -> None:
        handler = tiny_encoder("token-classification", id2label={0: "A", 1: "B"})
        text = "John Smith lives in London"
        answers = ask(handler, [{"body": text}, {"body": b"\xff"}, {"body": "London"}])
        assert [status for status, _ in answers] == [200, 400, 200]
        entities = answers[0][1]
        assert entities  # there is no "O": every token belongs to one
        assert (entities[0]["start"], entities[-1]["end"]) == (0, len(text))
        for entity in entities:
            assert text[entity["start"] : entity["end"]] == entity["text"]

    def test_masks(self, ask: Ask, tiny_encoder: Callable[..., TextEncoder]) -> None:
        handler = tiny_encoder("fill-mask")
        rows: list[Row] = [
            {"body": "a [MASK] day"},
            {"body": "no mask"},
            {"body": "[MASK] and [MASK]", "top_k": b"2"},
            {"body": ["a [MASK] day"]},
        ]
        one, refused, several, listed = ask(handler, rows, [{}, {}, {}, JSON])
        assert (one[0], len(one[1])) == (200, 5)
        assert (refused[0], refused[1]["type"]) == (400, "InvalidInput")
        assert [len(fillings) for fillings in several[1]] == [2, 2]
        assert [entry["token"] for entry in listed[1][0]] == [entry["token"] for entry in one[1]]

    def test_too_many_masks_refuse_their_request_alone(
        self, ask: Ask, tiny_encoder: Callable[..., TextEncoder]
    ) -> None:
        many = ["[MASK] " * 25] * 41
        rows: list[Row] = [{"body": "a [MASK] day"}, {"body": many, "top_k": b"1"}, {"body": many[1:], "top_k": b"1"}]
        one, refused, most = ask(tiny_encoder("fill-mask"), rows, [{}, JSON, JSON])
        assert (one[0], refused[0], refused[1]["type"], most[0]) == (200, 413, "PayloadTooLarge", 200)


class TestLoading:
    def test_more_tokens_than_positions_are_refused(
        self, load_handler: Callable[..., Any], minilm_folder: Path
    ) -> None:
        with pytest.raises(ValueError, match="maxTokens is 513, and the network has positions for 512"):
            load_handler(TextEncoder, minilm_folder, maxTokens=513, pooling={"modes": ["mean"]})

    def test_a_wrong_setting_is_refused_by_name(self, load_handler: Callable[..., Any], digits_folder: Path) -> None:
        with pytest.raises(settings.SettingsError, match=r"handler\.topK"):
            load_handler(ImageClassifier, digits_folder, topK="5")

    def test_an_unknown_engine_is_refused(self, load_handler: Callable[..., Any], digits_folder: Path) -> None:
        with pytest.raises(ValueError, match="known: auto"):
            load_handler(ImageClassifier, digits_folder, engine="warp")

    def test_what_runs_is_logged_with_its_reasons(
        self, load_handler: Callable[..., Any], digits_folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        preprocess = {"size": 32, "resize": 32}
        with caplog.at_level("INFO"):
            load_handler(ImageClassifier, digits_folder, preprocess=preprocess, precision="auto")
        (line,) = [record.getMessage() for record in caplog.records if record.name == "handlers.loading"]
        assert "precision fp32 (" in line
        assert "device cpu" in line
        assert "(asked for)" in line

    @pytest.mark.parametrize("passed", [True, False])
    def test_auto_follows_the_archives_parity(
        self,
        load_handler: Callable[..., Any],
        digits_folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        passed: bool,
    ) -> None:
        from handlers import placement
        from handlers.selection import cpu_timing

        monkeypatch.setattr(placement, "cpu_has_bf16", lambda: True)
        monkeypatch.setattr(cpu_timing, "least_ms", lambda run: 1.0)  # of engines that are as fast, the first serves
        for path in digits_folder.iterdir():
            (tmp_path / path.name).symlink_to(path)
        provenance = {"digest": "sha256:0", "parity": {"bf16": {"passed": passed, "device": "some CPU"}}}
        (tmp_path / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
        handler = load_handler(ImageClassifier, tmp_path, preprocess={"size": 32, "resize": 32}, precision="auto")
        assert handler.model.spec.precision == ("bf16" if passed else "fp32")
        assert handler.model.description["archive"]["digest"] == "sha256:0"


@pytest.mark.parametrize("blank", ["", " ", "\n", " \t\n ", "\u00a0", "\u3000", "\u200b"])
def test_a_text_without_tokens_is_refused_and_its_neighbour_is_not(ask: Ask, minilm: TextEncoder, blank: str) -> None:
    """The tokens that the tokenizer adds are left, and say nothing about the text."""
    assert minilm.tokenizer.whole.encode(blank).tokens == ["[CLS]", "[SEP]"]
    rows = [{"body": json.dumps([blank]).encode()}, {"body": b"a word"}]
    (refused, alone) = ask(minilm, rows, [{"content-type": "application/json"}, {"content-type": "text/plain"}])
    assert (refused[0], refused[1]["type"], alone[0]) == (400, "EmptyRequest", 200)


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (0, 32, 32, 3), (0, 5, 7, 3), (3, 0, 0), (1, 0, 0, 3)])
def test_a_tensor_of_no_images_is_refused_as_such(
    digits: ImageClassifier, ask: Ask, npy_of: Callable[..., bytes], shape: tuple[int, ...]
) -> None:
    kind = np.float32 if shape[1] == 3 else np.uint8
    ((status, answer),) = ask(digits, [{"body": npy_of(np.zeros(shape, kind))}])
    assert (status, answer["type"]) == (400, "InvalidImage")
    assert "bytes, but" not in answer["message"]


@pytest.mark.parametrize("sent", [{"foo": 1}, {"text": "a"}, {"sentence": "a", "other": "b"}, {}])
def test_an_object_that_is_no_pair_is_not_called_one(ask: Ask, minilm: TextEncoder, sent: dict[str, object]) -> None:
    pair, other = ask(minilm, [{"body": {"text": "a", "text_pair": "b"}}, {"body": sent}], [JSON, JSON])
    assert (pair[0], other[0]) == (400, 400)
    assert "embeddings takes no pairs" in pair[1]["message"]
    assert "pair" not in other[1]["message"]
    assert all(repr(key) in other[1]["message"] for key in sent)


def test_several_arrays_in_base64_are_refused_as_such(ask: Ask, digits: ImageClassifier) -> None:
    stream = io.BytesIO()
    np.savez(stream, first=np.zeros((3, 32, 32), np.float32))
    data = stream.getvalue()
    raw, coded = ask(digits, [{"body": data}, {"body": {"b64": b64(data)}}], [{}, JSON])
    assert (raw[0], coded[0]) == (415, 415)
    assert ".npz" in raw[1]["message"]
    assert ".npz" in coded[1]["message"]


def test_a_small_file_of_very_many_tiny_pictures_is_refused_before_they_grow(
    digits: ImageClassifier, ask: Callable[..., list[tuple[int, Any]]], npy_of: Callable[..., bytes]
) -> None:
    many = npy_of(np.zeros((20_000, 1, 1, 3), np.uint8))
    started = time.perf_counter()
    ((status, answer),) = ask(digits, [{"body": many}])
    assert (status, answer["type"]) == (413, "PayloadTooLarge")
    assert "20000 inputs" in answer["message"]
    assert time.perf_counter() - started < 1


def test_a_side_below_zero_is_a_broken_header(
    digits: ImageClassifier, ask: Callable[..., list[tuple[int, Any]]]
) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -1, 3), }"
    padded = header + b" " * (117 - len(header)) + b"\n"
    file = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + b"abc"
    ((status, answer),) = ask(digits, [{"body": file}])
    assert (status, answer["type"]) == (400, "InvalidImage")


def test_a_file_of_several_images_goes_alone(
    digits: ImageClassifier, ask: Callable[..., list[tuple[int, Any]]], npy_of: Callable[..., bytes]
) -> None:
    two, one = (npy_of(np.zeros((count, 32, 32, 3), np.uint8)) for count in (2, 1))
    alone, mixed = ask(digits, [{"body": two}, {"a": two, "b": one}], [{}, {"content-type": "multipart/form-data"}])
    assert alone[0] == 200
    assert len(alone[1]) == 2
    assert mixed[0] == 400
    assert "send such a file alone" in mixed[1]["message"]
