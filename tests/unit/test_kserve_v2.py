"""KServe v2: texts, files and tensors in, tensors out, in JSON and as raw bytes; everything else is refused."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archive.trial_run import TrialContext
from handlers.image_classifier import ImageClassifier
from handlers.protocol import adapters
from handlers.protocol.row import Row
from handlers.text_encoder import TextEncoder

KSERVE = {"content-length": "9", "explain": "False"}
HEADER = "inference-header-content-length"
TEXTS = ["a first text", "größe €"]


class Context(TrialContext):
    """Keeps what the handler sets, and names the model."""

    def __init__(self, headers: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(Path(), "answers", {})
        self.headers = headers
        self.types: dict[int, str] = {}
        self.response_headers: dict[tuple[int, str], str] = {}

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return dict(self.headers[idx])

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.types[idx] = value

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.response_headers[idx, key] = value


class Reply:
    """An answer: status, JSON, and outputs by name, read as a client reads them."""

    def __init__(self, context: Context, index: int, body: bytes) -> None:
        self.status = context.statuses[index]
        length = context.response_headers.get((index, "Inference-Header-Content-Length"))
        wanted = "application/json" if length is None else "application/octet-stream"
        assert context.types[index] == wanted
        self.json = json.loads(body[: int(length)] if length else body)
        self.rest = body[int(length) :] if length else b""

    def output(self, name: str) -> Any:
        """The values of an output, in its shape."""
        rest = self.rest
        for output in self.json["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            mine, rest = (rest[:size], rest[size:]) if size is not None else (None, rest)
            if output["name"] == name:
                return values_of(output, mine)
        raise AssertionError(f"no output {name}")

    @property
    def refusal(self) -> tuple[int, str]:
        assert self.json.keys() == {"error"}
        return self.status, self.json["error"]


def values_of(output: Any, raw: bytes | None) -> Any:
    dtypes = {"FP32": "<f4", "FP16": "<f2", "INT64": "<i8"}
    if raw is None:
        flat = np.array(output["data"], dtypes.get(output["datatype"]))
    elif output["datatype"] == "BYTES":
        flat = np.array([value.decode() for value in elements_of(raw)])
    else:
        flat = np.frombuffer(raw, dtypes[output["datatype"]])
    return flat.reshape(output["shape"])


def elements_of(raw: bytes) -> list[bytes]:
    found = []
    while raw:
        (length,) = struct.unpack("<I", raw[:4])
        found.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return found


def raw_of(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def infer(handler: Any, *requests: tuple[Any, bytes | None], headers: Mapping[str, str] | None = None) -> list[Reply]:
    """Ask in one batch; a request is its JSON (or bytes), and the raw bytes behind it or None."""
    rows, sent = [], []
    for content, raw in requests:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        rows.append({"body": bytearray(text + (raw or b""))})
        sent.append({**KSERVE, **(headers or {}), **({HEADER.title(): str(len(text))} if raw is not None else {})})
    context = Context(sent)
    bodies = handler.handle(rows, context)
    return [Reply(context, index, body) for index, body in enumerate(bodies)]


def one(handler: Any, content: Any, raw: bytes | None = None, **headers: str) -> Reply:
    return infer(handler, (content, raw), headers={key.replace("_", "-"): value for key, value in headers.items()})[0]


def texts(*values: str, **more: Any) -> dict[str, Any]:
    """A request for these texts; `more` goes beside "inputs"."""
    return {"inputs": [{"name": "text", "shape": [len(values)], "datatype": "BYTES", "data": [*values]}], **more}


def tensor(name: str, datatype: str, array: Any, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(array.shape), **parameters}


def plain(handler: Any, *values: str) -> Any:
    """The embeddings by /predictions."""
    context = Context([{**KSERVE, "url_path": "", "content-type": "application/json"}])
    return np.array(json.loads(handler.handle([{"body": json.dumps(values).encode()}], context)[0]), np.float32)


class TestTexts:
    def test_json_and_raw_bytes_give_the_embeddings(self, minilm: TextEncoder) -> None:
        wanted = plain(minilm, *TEXTS)
        elements = raw_of(*(text.encode() for text in TEXTS))
        raw = {
            "id": "7",
            "inputs": [tensor("x", "BYTES", np.empty((2, 1)), parameters={"binary_data_size": len(elements)})],
        }
        nested = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2, 1], "data": [[text] for text in TEXTS]}]}
        for content, behind in ((texts(*TEXTS, id="7"), None), (raw, elements), (nested, None), (nested, b"")):
            for binary in (False, True):
                reply = one(minilm, {**content, "parameters": {"binary_data_output": binary}}, behind)
                assert reply.status == 200
                np.testing.assert_allclose(reply.output("embeddings"), wanted, atol=1e-6)
                assert (bool(reply.rest), reply.json.get("id")) == (binary, content.get("id"))
                assert reply.json["model_name"] == minilm.reader.model.name

    def test_an_output_says_for_itself_whether_it_is_raw(self, minilm: TextEncoder) -> None:
        for asked, default, binary in ((True, False, True), (False, True, False), (None, True, True)):
            wish: dict[str, Any] = {"name": "embeddings"} | (
                {} if asked is None else {"parameters": {"binary_data": asked}}
            )
            reply = one(minilm, texts("a", outputs=[wish], parameters={"binary_data_output": default}))
            assert bool(reply.rest) == binary

    def test_half_precision_comes_as_raw_bytes(self, minilm: TextEncoder) -> None:
        reply = one(minilm, texts("a", parameters={"dtype": "float16", "binary_data_output": True}))
        assert reply.json["outputs"][0]["datatype"] == "FP16"
        np.testing.assert_allclose(reply.output("embeddings"), plain(minilm, "a"), atol=1e-3)
        assert one(minilm, texts("a", parameters={"dtype": "float16"})).refusal[0] == 400
        assert one(minilm, texts("a", parameters={"encoding_format": "base64"})).refusal[0] == 400

    def test_options(self, minilm: TextEncoder) -> None:
        long = "word " * 40
        assert one(minilm, texts(long)).refusal[0] == 400
        assert one(minilm, texts(long, parameters={"truncate": True})).status == 200
        assert one(minilm, texts(long), x_truncate="true").status == 200
        status, message = one(minilm, texts("a", parameters={"truncat": True})).refusal
        assert (status, "'truncat'" in message) == (400, True)
        assert one(minilm, texts("a", parameters={"truncate": True}), x_truncate="false").refusal[0] == 400

    def test_classes_have_scores_and_labels(self, tiny_encoder: Callable[..., TextEncoder]) -> None:
        handler = tiny_encoder("sequence-classification", num_labels=3)
        pair = {"name": "text_pair", "shape": [2], "datatype": "BYTES", "data": ["c", "d"]}
        for content in (texts("a", "b"), {"inputs": [pair, texts("a", "b")["inputs"][0]]}):
            reply = one(handler, {**content, "parameters": {"top_k": 2}})
            assert (reply.output("scores").shape, reply.output("labels").shape) == ((2, 2), (2, 2))
        assert {"LABEL_0", "LABEL_1", "LABEL_2"} > set(reply.output("labels")[0])
        few = {**pair, "shape": [1], "data": ["c"]}
        for wrong in ([pair], [texts("a", "b")["inputs"][0], few], [pair, {**pair, "name": "other"}]):
            assert one(handler, {"inputs": wrong}).refusal[0] == 400

    def test_answers_that_fit_no_tensor_come_as_json(self, tiny_encoder: Callable[..., TextEncoder]) -> None:
        handler = tiny_encoder("token-classification")
        for binary in (False, True):
            reply = one(handler, texts("a b", "c", parameters={"binary_data_output": binary}))
            assert [isinstance(json.loads(answer), list) for answer in reply.output("answers")] == [True, True]


class TestImages:
    def test_files(self, digits: ImageClassifier, digit_files: list[tuple[bytes, str]]) -> None:
        files, wanted = [data for data, _ in digit_files], [label for _, label in digit_files]
        raw = raw_of(*files)
        behind = {"inputs": [tensor("image", "BYTES", np.empty(5), parameters={"binary_data_size": len(raw)})]}
        coded = [base64.b64encode(data).decode() for data in files]
        in_json = {"inputs": [{"name": "image", "shape": [5], "datatype": "BYTES", "data": coded}]}
        outputs: list[dict[str, Any]] = [{"name": "indices"}, {"name": "labels", "parameters": {"binary_data": True}}]
        for content, rest in ((behind, raw), (in_json, None)):
            reply = one(digits, {**content, "outputs": outputs, "parameters": {"top_k": 1}}, rest)
            assert [output["name"] for output in reply.json["outputs"]] == ["indices", "labels"]
            assert reply.output("labels").tolist() == [[label] for label in wanted]
            assert reply.output("indices").tolist() == [[int(label)] for label in wanted]
            scores = one(digits, content, rest).output("scores")
            assert (scores.shape, scores.dtype) == ((5, 3), np.float32)

    @pytest.mark.parametrize(
        ("datatype", "shape"),
        [
            ("UINT8", (32, 32, 3)),
            ("UINT8", (2, 32, 32, 3)),
            ("UINT8", (2, 40, 50, 3)),
            ("FP32", (3, 32, 32)),
            ("FP32", (2, 3, 32, 32)),
            ("FP16", (1, 3, 32, 32)),
        ],
    )
    def test_tensors_are_as_npy_files(
        self, digits: ImageClassifier, npy_of: Callable[..., bytes], datatype: str, shape: tuple[int, ...]
    ) -> None:
        dtype = {"UINT8": "u1", "FP32": "<f4", "FP16": "<f2"}[datatype]
        array = np.random.default_rng(0).integers(0, 255 if dtype == "u1" else 2, shape).astype(dtype)
        context = Context([{**KSERVE, "url_path": "", "X-Top-K": "2"}])
        wanted = json.loads(digits.handle([{"body": npy_of(array)}], context)[0])
        wanted = wanted if isinstance(wanted[0], list) else [wanted]
        described = tensor("pixels", datatype, array)
        raw = array.tobytes()
        for content, rest in (
            ({**described, "parameters": {"binary_data_size": len(raw)}}, raw),
            ({**described, "data": array.tolist()}, None),
            ({**described, "data": array.reshape(-1).tolist()}, None),
        ):
            reply = one(digits, {"inputs": [content], "parameters": {"top_k": 2}}, rest)
            assert reply.output("labels").tolist() == [[item["label"] for item in items] for items in wanted]
            scores = [[item["probability"] for item in items] for items in wanted]
            np.testing.assert_allclose(reply.output("scores"), scores, atol=1e-6)

    def test_tensors_that_are_refused(self, digits: ImageClassifier) -> None:
        good = {"name": "x", "datatype": "FP32", "shape": [3, 32, 32], "data": [0.5] * 3072}
        pixels = {"name": "x", "datatype": "UINT8", "shape": [32, 32, 3], "data": [5] * 3072}
        assert one(digits, {"inputs": [good]}).status == one(digits, {"inputs": [pixels]}).status == 200
        for wrong in (
            {**good, "data": [0.5] * 3071},
            {**good, "data": [0.5] * 3071 + [True]},
            {**good, "data": [0.5] * 3071 + ["0.5"]},
            {**good, "data": [0.5] * 3071 + [None]},
            {**good, "data": [[0.5] * 3072]},
            {**good, "data": [0.5] * 3071 + [[0.5]]},
            {**good, "data": [0.5] * 3071 + [1e300]},
            {**good, "data": [0.5] * 3071 + [70000]},
            {**good, "shape": [32, 32, 3]},
            {**good, "shape": [3072]},
            {**good, "shape": [0, 3, 32, 32], "data": []},
            {**good, "datatype": "FP64"},
            {**good, "datatype": "INT64"},
            {**pixels, "data": [5] * 3071 + [256]},
            {**pixels, "data": [5] * 3071 + [-1]},
            {**pixels, "data": [5] * 3071 + [5.0]},
            {**pixels, "parameters": {"content_type": "str"}},
        ):
            assert one(digits, {"inputs": [wrong]}).refusal[0] == 400

    def test_too_many_are_refused(self, digits: ImageClassifier) -> None:
        stack = np.zeros((9, 32, 32, 3), np.uint8)
        content = {"inputs": [tensor("x", "UINT8", stack, parameters={"binary_data_size": stack.nbytes})]}
        assert one(digits, content, stack.tobytes()).refusal[0] == 413
        many = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [9], "data": ["AAAA"] * 9}]}
        assert one(digits, many).refusal[0] == 413


GOOD = texts("a")
INPUT = GOOD["inputs"][0]
RAW_INPUT = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}


@pytest.mark.parametrize(
    ("content", "raw", "status"),
    [
        (b"", None, 400),
        (b'{"inputs": ', None, 400),
        ({"inputs": []}, None, 400),
        ({"inputs": "a"}, None, 400),
        ({"inputs": [1]}, None, 400),
        ({"inputs": [INPUT], "more": 1}, None, 400),
        ({"inputs": [INPUT], "id": 7}, None, 400),
        ({"inputs": [INPUT], "outputs": [{"name": "other"}]}, None, 400),
        ({"inputs": [INPUT], "outputs": [{"name": "embeddings"}] * 2}, None, 400),
        ({"inputs": [INPUT], "outputs": ["embeddings"]}, None, 400),
        ({"inputs": [INPUT], "outputs": [{"name": "embeddings", "parameters": {"binary_data": 1}}]}, None, 400),
        ({"inputs": [INPUT], "outputs": [{"name": "embeddings", "parameters": {"classification": 1}}]}, None, 400),
        ({"inputs": [INPUT], "parameters": {"binary_data_output": 1}}, None, 400),
        ({"inputs": [INPUT], "parameters": {"sequence_id": 1}}, None, 400),
        ({"inputs": [INPUT], "parameters": {"priority": 1}}, None, 400),
        ({"inputs": [INPUT], "parameters": [1]}, None, 400),
        ({"inputs": [INPUT, INPUT]}, None, 400),
        ({"inputs": [INPUT, {**INPUT, "name": "text_pair"}]}, None, 400),
        ({"inputs": [{**INPUT, "name": "text_pair"}]}, None, 400),
        ({"inputs": [{**INPUT, "name": ""}]}, None, 400),
        ({"inputs": [{**INPUT, "shape": [2]}]}, None, 400),
        ({"inputs": [{**INPUT, "shape": [0], "data": []}]}, None, 400),
        ({"inputs": [{**INPUT, "shape": [1, 2], "data": ["a", "b"]}]}, None, 400),
        ({"inputs": [{**INPUT, "shape": []}]}, None, 400),
        ({"inputs": [{**INPUT, "shape": [-1]}]}, None, 400),
        ({"inputs": [{**INPUT, "shape": [True]}]}, None, 400),
        ({"inputs": [{**INPUT, "shape": [2**62, 1]}]}, None, 400),
        ({"inputs": [{**INPUT, "shape": [1] * 9}]}, None, 400),
        ({"inputs": [{**INPUT, "datatype": "FP32", "data": [1.0]}]}, None, 400),
        ({"inputs": [{**INPUT, "datatype": "INT64", "data": [1]}]}, None, 400),
        ({"inputs": [{**INPUT, "data": [1]}]}, None, 400),
        ({"inputs": [{**INPUT, "data": [None]}]}, None, 400),
        ({"inputs": [{**INPUT, "data": ""}]}, None, 400),
        ({"inputs": [{**INPUT, "data": [""]}]}, None, 400),
        ({"inputs": [{**INPUT, "parameters": {"shared_memory_region": "r"}}]}, None, 400),
        ({"inputs": [{**INPUT, "parameters": {"content_type": "np"}}]}, None, 400),
        ({"inputs": [{**INPUT, "parameters": {"binary_data_size": 5}}]}, raw_of(b"a"), 400),
        ({"inputs": [RAW_INPUT]}, None, 400),
        ({"inputs": [RAW_INPUT]}, b"", 400),
        ({"inputs": [RAW_INPUT]}, raw_of(b"a") + b"x", 400),
        ({"inputs": [RAW_INPUT]}, raw_of(b"\xff"), 400),
        ({"inputs": [RAW_INPUT]}, b"\2\0\0\0a", 400),
        ({"inputs": [RAW_INPUT]}, b"\0\0\0\0a", 400),
        ({"inputs": [{**RAW_INPUT, "shape": [2]}]}, raw_of(b"a"), 400),
        ({"inputs": [{**RAW_INPUT, "parameters": {"binary_data_size": -5}}]}, raw_of(b"a"), 400),
        ({"inputs": [{**RAW_INPUT, "parameters": {"binary_data_size": 5.0}}]}, raw_of(b"a"), 400),
        ([GOOD], b"", 400),
        ({"instances": ["a"]}, b"", 400),
    ],
)
def test_what_is_not_understood_is_refused(minilm: TextEncoder, content: Any, raw: bytes | None, status: int) -> None:
    replies = infer(minilm, (GOOD, None), (content, raw), ({"inputs": [RAW_INPUT]}, raw_of(b"a")))
    assert [reply.status for reply in replies] == [200, status, 200]
    if b'"inputs"' in (content if isinstance(content, bytes) else json.dumps(content).encode()) or raw is not None:
        assert replies[1].refusal[0] == status


def test_the_length_of_the_json_is_checked(minilm: TextEncoder) -> None:
    for length in ("", "x", "-1", "99999", "1e3", "5, 6", "9" * 30):
        assert one(minilm, GOOD, None, **{HEADER: length}).refusal[0] == 400


def test_headers(minilm: TextEncoder) -> None:
    assert one(minilm, GOOD, content_type="application/json", accept="*/*").status == 200
    assert one(minilm, GOOD, content_type="application/json", accept="text/html").refusal[0] == 406
    assert one(minilm, GOOD, content_type="text/plain").refusal[0] == 415
    assert one(minilm, GOOD, explain="True").refusal[0] == 404
    assert one(minilm, GOOD, describe="True").refusal[0] == 400
    assert one(minilm, GOOD, x_truncat="true").refusal[0] == 400


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"instances": ["inputs"]}', "KServeV1"),
        (b'{"instances": ["a \\"inputs\\" b"]}', "KServeV1"),
        (b'{"instances": [{"inputs": 1}], "x": "instances"}', "KServeV1"),
        (b'{"inputs": [{"data": ["instances"]}]}', "KServeV2"),
        (b'{"inputs": ["a \\"instances\\" b"]}', "KServeV2"),
        ({"inputs": []}, "KServeV2"),
        ({"instances": []}, "KServeV1"),
        (b'["a"]', "KServeV1"),
        (b'{"inputs": [], "instances": ', "KServeV1"),
        (b"", "KServeV1"),
    ],
)
def test_v1_and_v2_are_told_apart(body: Any, name: str) -> None:
    assert type(adapters.adapter_of(Row.of({"body": body}, KSERVE))).__name__ == name


class TestPaths:
    """Behind /predictions/NAME/VERSION."""

    def ask(self, handler: Any, path: str, body: bytes = b"") -> Any:
        context = Context([{**KSERVE, "url_path": path}])
        (answer,) = handler.handle([{"body": body}], context)
        return context.statuses[0], json.loads(answer)

    def test_what_is_asked_of_the_server_and_the_model(self, minilm: TextEncoder, digits: ImageClassifier) -> None:
        name = minilm.reader.model.name
        assert self.ask(minilm, "v2/health/live") == (200, {"live": True})
        assert self.ask(minilm, "v2/health/ready") == (200, {"ready": True})
        assert self.ask(minilm, "v2")[1]["name"] == "torchserve"
        assert self.ask(minilm, f"v2/models/{name}/ready") == (200, {"name": name, "ready": True})
        status, told = self.ask(minilm, f"v2/models/{name}")
        assert (status, told["inputs"]) == (200, [{"name": "text", "datatype": "BYTES", "shape": [-1]}])
        assert told["outputs"] == [{"name": "embeddings", "datatype": "FP32", "shape": [-1, -1]}]
        _, told = self.ask(digits, f"v2/models/{digits.reader.model.name}")
        assert [output["name"] for output in told["outputs"]] == ["scores", "labels", "indices"]
        status, answer = self.ask(minilm, f"v2/models/{name}/infer", json.dumps(GOOD).encode())
        assert (status, answer["outputs"][0]["shape"]) == (200, [1, 384])

    @pytest.mark.parametrize(
        "path",
        [
            "v2/models/other",
            "v2/models/other/infer",
            "v2/models/NAME/explain",
            "v2/models/NAME/infer/x",
            "v2/models/NAME/versions/9/infer",
            "v2/models/NAME/config",
            "v2/repository/index",
            "v2/health/x",
        ],
    )
    def test_other_paths(self, minilm: TextEncoder, path: str) -> None:
        path = path.replace("NAME", minilm.reader.model.name)
        for body in (b"", json.dumps(GOOD).encode()):
            status, answer = self.ask(minilm, path, body)
            assert (status, answer.keys()) == (404, {"error"})

    def test_a_body_that_nothing_reads(self, minilm: TextEncoder) -> None:
        assert self.ask(minilm, "v2/health/live", b"{}")[0] == 400
        assert self.ask(minilm, f"v2/models/{minilm.reader.model.name}/infer")[0] == 400


class TestGrpc:
    """ModelInfer, as TorchServe turns it into JSON."""

    HEADERS = {"body": {"content-type": "application/json"}}  # noqa: RUF012

    def ask(self, handler: Any, *contents: Any) -> list[Any]:
        context = Context([self.HEADERS] * len(contents))
        rows = [{"body": json.dumps(content).encode()} for content in contents]
        answers = [json.loads(body) for body in handler.handle(rows, context)]
        for index, answer in enumerate(answers):  # what TorchServe needs; it ends the worker's thread without it
            assert all(isinstance(answer[key], str) for key in ("id", "model_name", "model_version"))
            for output in answer["outputs"]:
                assert isinstance(output["name"], str)
                assert isinstance(output["datatype"], str)
                assert len(output["data"]) == np.prod(output["shape"])
            assert context.response_headers[index, "ts_stream_next"] == "false"
        return answers

    def request(self, datatype: str, shape: list[int], **more: Any) -> dict[str, Any]:
        entry = {"name": "x", "shape": shape, "datatype": datatype, **more}
        return {"id": "7", "model_name": "fake", "inputs": [entry]}

    def test_texts(self, minilm: TextEncoder) -> None:
        coded = [base64.b64encode(text.encode()).decode() for text in TEXTS]
        (answer,) = self.ask(minilm, self.request("BYTES", [2], data=coded))
        assert answer["id"] == "7"
        (output,) = answer["outputs"]
        np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), plain(minilm, *TEXTS), atol=1e-6)

    def test_images(self, digits: ImageClassifier, digit_files: list[tuple[bytes, str]]) -> None:
        file, label = digit_files[0]
        pixels = np.zeros((32, 32, 3), np.uint8)
        answers = self.ask(
            digits,
            self.request("BYTES", [1], data=[base64.b64encode(file).decode()]),
            self.request("UINT8", [32, 32, 3], data=pixels.reshape(-1).tolist()),
        )
        outputs = {output["name"]: output for output in answers[0]["outputs"]}
        assert outputs.keys() == {"scores", "indices", "answers"}
        assert outputs["answers"]["data"][0][0]["label"] == label
        assert outputs["indices"]["data"][0] == int(label)

    def test_what_torchserve_lost_is_refused(self, minilm: TextEncoder, digits: ImageClassifier) -> None:
        for handler, request in (
            (minilm, self.request("BYTES", [2], data=[])),
            (digits, self.request("UINT8", [32, 32, 3], data=[])),
            (digits, self.request("FP16", [3, 32, 32])),  # a datatype that TorchServe does not know
        ):
            (answer,) = self.ask(handler, request)
            (output,) = answer["outputs"]
            assert output["name"] == "error"
            assert "raw_input_contents" in output["data"][0]["message"]

    def test_refusals(self, minilm: TextEncoder) -> None:
        fine = self.request("BYTES", [1], data=["YQ=="])
        wrongs: list[Any] = [[], {}, {"inputs": []}, {**fine, "inputs": [1]}, self.request("BYTES", [1], data=["*"])]
        for wrong in wrongs:
            before, answer, after = self.ask(minilm, fine, wrong, fine)
            assert answer["outputs"][0]["name"] == "error"
            assert before["outputs"][0]["name"] == after["outputs"][0]["name"] == "embeddings"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def mostly(*usual: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(usual) | JSON


TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": mostly("text", "x", "text_pair"),
        "datatype": mostly("BYTES", "FP32", "UINT8"),
        "shape": mostly([1], [2], [1, 1], [3, 32, 32]),
        "data": mostly(["a"], ["a", "b"], [["a"]], [0.5]),
        "parameters": mostly({}, {"binary_data_size": 5}, {"content_type": "str"}),
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3) | JSON},
    optional={
        "id": mostly("7"),
        "outputs": mostly([], [{"name": "embeddings"}], [{"name": "scores", "parameters": {"binary_data": True}}]),
        "parameters": mostly({"binary_data_output": True}, {"top_k": 1}, {"truncate": True}),
    },
)
BODIES = REQUESTS.map(lambda content: json.dumps(content).encode()) | st.binary(max_size=40)


@pytest.mark.parametrize("model", ["minilm", "digits"])
@settings(max_examples=150)
@given(bodies=st.lists(st.tuples(BODIES, st.none() | st.just(raw_of(b"a")) | st.binary(max_size=9)), max_size=3))
@example(bodies=[(b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["\xed\xa0\x80"]}]}', None)])
def test_anything_gets_an_answer_of_its_own(
    request: pytest.FixtureRequest, model: str, bodies: list[tuple[bytes, bytes | None]]
) -> None:
    """Whatever comes is answered or refused, and the neighbours notice nothing."""
    handler = request.getfixturevalue(model)
    blank = base64.b64encode(request.getfixturevalue("digit_files")[0][0]).decode()
    fine = GOOD if model == "minilm" else {"inputs": [{**INPUT, "data": [blank]}]}
    first, *between, last = infer(handler, (fine, None), *bodies, (fine, None))
    assert (first.status, first.json["outputs"][0]["shape"][0]) == (200, 1)
    assert (last.status, last.json) == (first.status, first.json)
    for (body, raw), reply in zip(bodies, between, strict=True):
        assert reply.status in (200, 400, 413, 415)
        if reply.status == 200:
            check(json.loads(body), raw, reply)


def check(content: Any, raw: bytes | None, reply: Reply) -> None:
    """Whatever is answered was a whole request: as many rows as inputs, and no byte left over."""
    sizes = [one["parameters"]["binary_data_size"] for one in content["inputs"] if "data" not in one]
    assert sum(sizes) == len(raw or b"")
    count = content["inputs"][0]["shape"][0]
    assert all(output["shape"][0] == count for output in reply.json["outputs"])
    assert reply.json.get("id") == content.get("id")
