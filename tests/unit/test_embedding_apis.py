"""OpenAI's embeddings, TEI's /embed and its like, and Hugging Face's "inputs": what they take, and in which shape."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from handlers.text_encoder import TextEncoder

if TYPE_CHECKING:
    from tests.unit.conftest import FakeContext, Send

HELLO = [101, 7592, 2088, 102]  # "hello world", as MiniLM's tokenizer has it
LONG = "word " * 100
SOURCE = {"source_sentence": "a dog", "sentences": ["a cat", "a dog", "taxes"]}
V2 = {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["a"]}


@pytest.fixture(scope="session")
def shorter(load_handler: Callable[..., Any], minilm_folder: Path) -> TextEncoder:
    """MiniLM as if it were trained for embeddings of 64 numbers; its embeddings are not of length 1."""
    handler: TextEncoder = load_handler(TextEncoder, minilm_folder, maxTokens=32, dimensions=[64])
    return handler


def vector(send: Send, text: str = "hello world", **options: str) -> Any:
    status, answer = send("", text, **options)
    assert status == 200
    return np.array(answer)


class TestOpenAI:
    @pytest.mark.parametrize("path", ["embeddings", "v1/embeddings", "/v1/embeddings/"])
    @pytest.mark.parametrize("sent", ["hello world", ["hello world"], HELLO, [HELLO]])
    def test_every_form_of_an_input(self, send: Send, path: str, sent: object) -> None:
        status, answer = send(path, {"input": sent, "model": "fake"})
        assert (status, answer["object"], answer["model"]) == (200, "list", "fake")
        assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
        assert [(item["object"], item["index"]) for item in answer["data"]] == [("embedding", 0)]
        np.testing.assert_allclose(answer["data"][0]["embedding"], vector(send), atol=1e-6)

    def test_several_inputs_keep_their_order(self, send: Send) -> None:
        status, answer = send("embeddings", {"input": ["a much longer text than that", HELLO, "b"], "user": "u"})
        assert (status, answer["usage"]["prompt_tokens"]) == (200, 8 + 4 + 3)
        assert [item["index"] for item in answer["data"]] == [0, 1, 2]
        np.testing.assert_allclose(answer["data"][1]["embedding"], vector(send), atol=1e-6)

    def test_base64_is_float32(self, send: Send) -> None:
        _, answer = send("embeddings", {"input": "hello world", "encoding_format": "base64"})
        found = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
        np.testing.assert_allclose(found, vector(send), atol=1e-6)

    def test_usage_is_what_ran(self, send: Send) -> None:
        status, answer = send("embeddings", {"input": LONG}, x_truncate="true")
        assert (status, answer["usage"]["prompt_tokens"]) == (200, 32)

    @pytest.mark.parametrize(
        ("body", "status", "code", "param"),
        [
            ({"input": "a", "model": "other"}, 404, "model_not_found", "model"),
            ({"input": LONG}, 400, "context_length_exceeded", "input"),
            ({"input": [101, *[7592] * 40, 102]}, 400, "context_length_exceeded", "input"),
            ({"input": ["a", LONG]}, 400, "context_length_exceeded", "input"),
            ({"input": ""}, 400, "empty_request", "input"),
            ({"input": []}, 400, "empty_request", "input"),
            ({"input": [[]]}, 400, "empty_request", "input"),
            ({"input": [101, 102]}, 400, "empty_request", "input"),
            ({"input": ["a", 5]}, 400, "invalid_input", "input"),
            ({"input": [101, "a"]}, 400, "invalid_input", "input"),
            ({"input": [True]}, 400, "invalid_input", "input"),
            ({"input": [101, 1.5, 102]}, 400, "invalid_input", "input"),
            ({"input": {"text": "a"}}, 400, "invalid_input", "input"),
            ({"input": None}, 400, "invalid_input", "input"),
            ({"input": [9906, 1917]}, 400, "invalid_input", None),  # tiktoken's ids, which are in the vocabulary
            ({"input": [101, 100257, 102]}, 400, "invalid_input", None),
            ({"input": [101, -1, 102]}, 400, "invalid_input", None),
            ({"input": [101, 1 << 63, 102]}, 400, "invalid_input", None),
            ({"model": "fake"}, 400, "invalid_input", "input"),
            ({"input": "a", "model": 5}, 400, "invalid_input", "model"),
            ({"input": "a", "user": 5}, 400, "invalid_input", "user"),
            ({"input": "a", "more": None}, 400, "invalid_input", "more"),
            ({"input": "a", "dimensions": 64}, 400, "invalid_option", "dimensions"),
            ({"input": "a", "dimensions": True}, 400, "invalid_option", "dimensions"),
            ({"input": "a", "dimensions": 0}, 400, "invalid_option", "dimensions"),
            ({"input": "a", "encoding_format": "int8"}, 400, "invalid_option", "encoding_format"),
            ({"input": ["a"] * 65}, 413, "payload_too_large", None),
            ({"input": "a" * 2001}, 413, "payload_too_large", None),
            ({"input": [7592] * 2001}, 413, "payload_too_large", None),
            (["a"], 400, "invalid_input", None),
            (b'{"input": ', 400, "invalid_json", None),
            (b"", 400, "empty_request", "input"),
        ],
    )
    def test_refusals_in_its_own_shape(
        self, send: Send, body: object, status: int, code: str, param: str | None
    ) -> None:
        found, answer = send("embeddings", body)
        assert answer.keys() == {"error"}
        assert answer["error"].keys() == {"message", "type", "param", "code"}
        error = answer["error"]
        assert (found, error["type"]) == (status, "invalid_request_error")
        assert (error["code"], error["param"]) == (code, param), error

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"accept": "application/x-npy"}, 406),
            ({"content_type": "text/plain"}, 400),
            ({"content_type": "application/x-www-form-urlencoded"}, 415),
            ({"content_type": "multipart/form-data; boundary=x"}, 400),
            ({"content_encoding": "gzip"}, 400),
            ({"content_encoding": "br"}, 415),
            ({"x_dtype": "float16", "x_encoding_format": "base64"}, 400),
            ({"x_normalise": "true"}, 400),
            ({"explain": "True"}, 404),
            ({"inference_header_content_length": "3"}, 400),
        ],
    )
    def test_headers_that_say_something_else(self, send: Send, headers: dict[str, str], status: int) -> None:
        found, answer = send("embeddings", b'{"input": "a"}', **headers)
        assert (found, answer.keys()) == (status, {"error"})

    def test_options_that_came_twice(self, send: Send) -> None:
        body = {"input": "a", "encoding_format": "float"}
        assert send("embeddings", body, x_encoding_format="float")[0] == 200
        assert send("embeddings", body, x_encoding_format="base64")[0] == 400

    def test_dimensions_that_the_checkpoint_was_trained_for(self, send: Send, shorter: TextEncoder) -> None:
        _, whole = send("embeddings", {"input": "a", "dimensions": 384}, shorter)
        _, cut = send("embeddings", {"input": ["a"], "dimensions": 64}, shorter, x_normalize="true")
        wanted = np.array(whole["data"][0]["embedding"])[:64]
        np.testing.assert_allclose(cut["data"][0]["embedding"], wanted / np.linalg.norm(wanted), atol=1e-6)
        assert send("embeddings", {"input": "a", "dimensions": 63}, shorter)[0] == 400

    def test_lengths_and_norms_mix_in_one_batch(
        self, shorter: TextEncoder, context_for: Callable[..., FakeContext]
    ) -> None:
        options = [{}, {"X-Dimensions": "64"}, {"X-Normalize": "true"}, {"X-Dimensions": "64", "X-Normalize": "true"}]
        rest = {"content-length": "9", "content-type": "text/plain", "explain": "False", "url_path": ""}
        context = context_for([{**rest, **chosen} for chosen in options])
        bodies = shorter.handle([{"body": "a text"}] * 4, context)
        whole, cut, unit, both = (np.array(json.loads(body)) for body in bodies)
        assert (len(whole), len(cut), len(unit), len(both)) == (384, 64, 384, 64)
        np.testing.assert_allclose(cut, whole[:64], atol=1e-6)
        np.testing.assert_allclose(unit, whole / np.linalg.norm(whole), atol=1e-6)
        np.testing.assert_allclose(both, cut / np.linalg.norm(cut), atol=1e-6)


class TestTextEmbeddingsInference:
    def test_embed_is_normalised_unless_told_otherwise(self, send: Send, shorter: TextEncoder) -> None:
        for sent in ("hello world", ["hello world"], HELLO, [HELLO]):
            status, answer = send("embed", {"inputs": sent, "prompt_name": None, "truncate": None}, shorter)
            assert status == 200
            np.testing.assert_allclose(answer, [vector(send)], atol=1e-6)
        _, raw = send("embed", {"inputs": "hello world", "normalize": False}, shorter)
        np.testing.assert_allclose(raw[0] / np.linalg.norm(raw[0]), vector(send), atol=1e-6)
        assert np.linalg.norm(raw[0]) > 1.5
        np.testing.assert_allclose(send("embed", {"inputs": "hello world"}, shorter, x_normalize="false")[1], raw)

    def test_truncation_from_either_side(self, send: Send) -> None:
        text = f"a dog {LONG}"
        ends = {
            side: send("embed", {"inputs": text, "truncate": True, "truncation_direction": side})[1]
            for side in ("left", "Left", "right", "Right")
        }
        assert ends["left"] == ends["Left"] != ends["right"] == ends["Right"]
        np.testing.assert_allclose(ends["left"], [vector(send, "word " * 30)], atol=1e-5)
        np.testing.assert_allclose(ends["right"], [vector(send, "a dog " + "word " * 28)], atol=1e-5)
        ids = [101, *[2773] * 50, 3899, 102]
        cut = {
            side: send("embed", {"inputs": ids, "truncate": True, "truncation_direction": side})[1]
            for side in ("left", "right")
        }
        np.testing.assert_allclose(cut["left"], [vector(send, "word " * 29 + "dog")], atol=1e-5)
        np.testing.assert_allclose(cut["right"], [vector(send, "word " * 30)], atol=1e-5)

    def test_vectors_of_tokens(self, send: Send, shorter: TextEncoder) -> None:
        _, answer = send("embed_all", {"inputs": ["hello world", "b"]}, shorter)
        assert [len(vectors) for vectors in answer] == [4, 3]
        _, (mean,) = send("embed", {"inputs": "hello world", "normalize": False}, shorter)
        np.testing.assert_allclose(np.mean(answer[0], axis=0), mean, atol=1e-5)
        status, error = send("embed_all", {"inputs": ["word " * 30] * 60}, shorter)
        assert (status, error["error_type"]) == (413, "Validation")

    def test_similarity(self, send: Send, shorter: TextEncoder) -> None:
        vectors = [vector(send, text) for text in ("a dog", *SOURCE["sentences"])]
        wanted = np.array(vectors[1:]) @ vectors[0]
        for body in ({"inputs": SOURCE}, {"inputs": SOURCE, "parameters": {"truncate": True}}):
            status, answer = send("similarity", body, shorter)
            assert status == 200
            np.testing.assert_allclose(answer, wanted, atol=1e-5)

    def test_information(self, send: Send) -> None:
        status, answer = send("info", b"")
        assert (status, answer["model_id"], answer["max_input_length"]) == (200, "fake", 32)
        assert (answer["max_client_batch_size"], answer["auto_truncate"]) == (64, False)
        assert (answer["model_dtype"], answer["model_type"]) == ("float32", {"embedding": {"pooling": "mean"}})
        assert send("health", b"") == (200, None)

    @pytest.mark.parametrize("path", ["info", "health"])
    def test_information_takes_no_body(self, send: Send, path: str) -> None:
        status, answer = send(path, b'{"inputs": "a"}')
        assert (status, answer["error_type"]) == (422, "Validation")
        assert "takes no body" in answer["error"]

    @pytest.mark.parametrize(
        ("path", "body", "status", "kind"),
        [
            ("embed", {"inputs": []}, 400, "Empty"),
            ("embed", {"inputs": ""}, 400, "Empty"),
            ("embed", {"inputs": LONG}, 422, "Validation"),
            ("embed", {"inputs": ["a"] * 65}, 413, "Validation"),
            ("embed", {"inputs": "a", "prompt_name": "query"}, 422, "Validation"),
            ("embed", {"inputs": "a", "normalize": "yes"}, 422, "Validation"),
            ("embed", {"inputs": "a", "dimensions": 7}, 422, "Validation"),
            ("embed", {"inputs": "a", "truncation_direction": "up"}, 422, "Validation"),
            ("embed", {"input": "a"}, 422, "Validation"),
            ("embed", {"inputs": "a", "more": 1}, 422, "Validation"),
            ("embed", [], 422, "Validation"),
            ("embed", b"{", 400, "Validation"),
            ("similarity", {"inputs": {**SOURCE, "sentences": []}}, 400, "Empty"),
            ("similarity", {"inputs": {"sentences": ["a"]}}, 422, "Validation"),
            ("similarity", {"inputs": {**SOURCE, "more": 1}}, 422, "Validation"),
            ("similarity", {"inputs": ["a"]}, 422, "Validation"),
            ("similarity", {"inputs": {**SOURCE, "sentences": ["a"] * 64}}, 413, "Validation"),
            ("predict", {"inputs": "a"}, 424, "Backend"),
            ("rerank", {"query": "a", "texts": ["b"]}, 424, "Backend"),
            ("tokenize", {"inputs": "a"}, 404, "Validation"),
        ],
    )
    def test_refusals_in_its_own_shape(self, send: Send, path: str, body: object, status: int, kind: str) -> None:
        found, answer = send(path, body)
        assert (found, answer.keys()) == (status, {"error", "error_type"})
        assert answer["error_type"] == kind

    @pytest.mark.parametrize("path", ["embed_all", "similarity"])
    def test_options_that_mean_nothing_there(self, send: Send, path: str) -> None:
        inputs = {"embed_all": "a", "similarity": SOURCE}[path]
        assert send(path, {"inputs": inputs}, x_encoding_format="base64")[0] == 422
        assert send(path, {"inputs": inputs}, x_normalize="true")[0] == 422


class TestHuggingFace:
    def test_inputs_to_the_model_itself(self, send: Send) -> None:
        for sent in ("hello world", ["hello world"]):
            for body in ({"inputs": sent}, json.dumps({"inputs": sent, "parameters": {}}).encode()):
                status, answer = send("", body)
                assert status == 200
                np.testing.assert_allclose(answer, [vector(send)], atol=1e-6)

    def test_options_in_the_object_and_in_its_parameters(self, send: Send) -> None:
        raw = send("", {"inputs": "a", "normalize": False})
        assert raw == send("", {"inputs": "a", "parameters": {"normalize": False}})
        assert np.linalg.norm(raw[1]) > 1.5
        assert send("", {"inputs": "a", "normalize": False, "parameters": {"normalize": True}})[0] == 400
        assert send("", {"inputs": LONG, "truncate": True})[0] == 200

    def test_similarity(self, send: Send) -> None:
        assert send("", {"inputs": SOURCE}) == send("similarity", {"inputs": SOURCE})

    @pytest.mark.parametrize(
        "body",
        [
            {"inputs": LONG},
            {"inputs": []},
            {"inputs": None},
            {"inputs": 5},
            {"inputs": [["a"]]},
            {"inputs": "a", "options": {}},
            {"inputs": "a", "parameters": []},
            {"inputs": "a", "parameters": {"top_k": 1}},
            {"inputs": {"source_sentence": "a"}},
        ],
    )
    def test_refusals_have_both_shapes(self, send: Send, body: object) -> None:
        status, answer = send("", body)
        assert (status, answer["code"], answer["error"]) == (400, 400, answer["message"])

    @pytest.mark.parametrize("inputs", [[V2], ["a", V2]])
    def test_kserve_v2_is_not_taken_for_it(self, send: Send, inputs: object) -> None:
        status, answer = send("", {"inputs": inputs})
        assert status == 400
        assert "v2" in json.dumps(answer)

    def test_labels_are_a_list_per_text(self, send: Send, tiny_encoder: Callable[..., TextEncoder]) -> None:
        handler = tiny_encoder("sequence-classification", num_labels=3)
        status, one = send("", {"inputs": "a", "parameters": {"top_k": 2}}, handler)
        assert (status, len(one), len(one[0])) == (200, 1, 2)
        _, two = send("", {"inputs": ["a", {"text": "a", "text_pair": "b"}]}, handler)
        assert [len(labels) for labels in two] == [3, 3]

    def test_entities_have_hugging_faces_names(self, send: Send, tiny_encoder: Callable[..., TextEncoder]) -> None:
        handler = tiny_encoder("token-classification", id2label={0: "B-PER", 1: "B-LOC"})
        _, (entity, *_) = send("", {"inputs": "hello world"}, handler)
        assert entity.keys() == {"entity_group", "score", "word", "start", "end"}
        _, own = send("", "hello world", handler)
        assert own[0].keys() == {"label", "score", "text", "start", "end"}

    def test_masks_are_filled_as_always(self, send: Send, tiny_encoder: Callable[..., TextEncoder]) -> None:
        handler = tiny_encoder("fill-mask")
        status, answer = send("", {"inputs": "a [MASK]", "parameters": {"top_k": 2}}, handler)
        assert (status, len(answer), answer) == (200, 2, send("", "a [MASK]", handler, x_top_k="2")[1])
