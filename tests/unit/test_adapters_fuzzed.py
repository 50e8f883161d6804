"""Right requests of every adapter, changed in a place or two: refused in the adapter's own shape, or answered right.

A batch mixes adapters. Embeddings have to be those that the same texts get by /predictions.
test_protocols_fuzzed.py and test_kserve_v2.py send what need not resemble a request.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from archive.trial_run import TrialContext
from handlers.protocol import adapters
from handlers.protocol.row import Row

REST = {"content-length": "9", "explain": "False"}
KSERVE = {**REST, "content-type": "application/json"}
FORM = {**REST, "content-type": "multipart/form-data; boundary=x", "url_path": ""}
A, B = "first sample", "second sample"  # stand for inputs of the model that is asked
CHANGES_NUMBERS = ("normalize", "dimensions", "dtype", "encoding_format")
ODD = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 2, 101, 2**70, 1e300, 0.5, "", " ", "\0", "\ud800", "a", "7592"]),
    st.sampled_from(
        [[], {}, [[]], [None], [0.5], ["a"], [["a", "b"]], [[101, 102]], "word " * 50, "float", "base64"]
    ),
    st.sampled_from(["fake", "BYTES", "FP32", "data:,", "NaN", "[", '{"a": 1}', "\ufeffa", "A" * 4000, {"b64": "a"}]),
)
NAMES = st.sampled_from(
    [
        *(
            "a",
            "id",
            "inputs",
            "outputs",
            "instances",
            "parameters",
            "datatype",
            "shape",
            "data",
            "text",
            "text_pair",
        ),
        *(
            "input",
            "model",
            "user",
            "query",
            "documents",
            "texts",
            "top_n",
            "top_k",
            "truncate",
            "normalize",
            "dtype",
        ),
        *("dimensions", "encoding_format", "raw_scores", "b64", "name", "content_type", "source_sentence", "file"),
    ]
)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["accept", "x-top-k", "x-truncate", "x-dtype", "x-encoding-format", "content-encoding", "describe"]
    ),
    st.sampled_from(["application/json", "*/*", "text/html", "1", "true", "float16", "base64", "gzip", "identity"]),
    max_size=1,
)
Call = tuple[str, Any, Mapping[str, Any]]  # a door's name, what is sent there, headers beside those of the door


class Context(TrialContext):
    """Keeps statuses and content types by row."""

    def __init__(self, headers: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(Path(), "fake", {})
        self.headers = headers
        self.types: dict[int, str] = {}

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return dict(self.headers[idx])

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.types[idx] = value


@dataclass(frozen=True)
class Door:
    """A way in.

    Args:
        adapter: the name of its class.
        headers: of a row that comes this way.
        right: what clients may send: JSON for the body, or entries by name if `has_entries`.
        refusals: the keys that an error may have. Several if another adapter reads what this one does not claim.
        texts: the texts or token ids that a request for embeddings holds; raises an error for what is no request.
        vectors: the embeddings that an answer holds. None if the door gives none.
    """

    adapter: str
    headers: Mapping[str, Any]
    right: Sequence[Any]
    refusals: tuple[set[str], ...]
    texts: Callable[[Any], Sequence[Any]] = list
    vectors: Callable[[Any], Any] | None = None
    has_entries: bool = False

    def parameters(self, sent: Any) -> dict[str, bytes]:
        if sent is None and self.adapter == "Management":
            return {}
        entries = sent if self.has_entries else {"body": sent}
        return {name: json.dumps(value).encode() for name, value in entries.items()}


def at(path: str) -> dict[str, str]:
    return {**KSERVE, "url_path": path}


def listed(value: Any) -> Sequence[Any]:
    """The inputs of a field that holds a text, token ids, or a list of these."""
    return value if isinstance(value, list) and value and type(value[0]) is not int else [value]


def of_body(sent: Any) -> Sequence[Any]:
    """The inputs of TorchServe's, KServe v1's or Hugging Face's body."""
    return listed(sent.get("instances", sent.get("inputs")) if isinstance(sent, dict) else sent)


def of_entries(sent: Mapping[str, Any]) -> Sequence[Any]:
    """Entries that are no option; one alone is read as a body is."""
    values = [value for name, value in sent.items() if name not in (*CHANGES_NUMBERS, "truncate")]
    return of_body(values[0]) if len(values) == 1 else values


def of_tensor(sent: Any) -> Sequence[Any]:
    """The elements of the one tensor, which is as long as its shape says."""
    (tensor,) = sent["inputs"]
    assert (tensor["datatype"], len(tensor["data"])) == ("BYTES", tensor["shape"][0])
    return [element[0] if isinstance(element, list) else element for element in tensor["data"]]


def rows(answer: Any) -> Any:
    return answer["predictions"] if isinstance(answer, dict) else answer


def tensor_of(answer: Any) -> Any:
    (output,) = answer["outputs"]
    return np.reshape(output["data"], output["shape"])


def tensor(*data: str) -> dict[str, Any]:
    return {"name": "text", "datatype": "BYTES", "shape": [len(data)], "data": list(data)}


IDS = {"request_id", "client_request_id"}  # that an error may have beside its own keys
OWN = {"code", "type", "message"}
OF_PREDICTIONS = (OWN, OWN | {"error"})  # Hugging Face's objects go to the same path
OF_KSERVE = (OWN, {"error"})  # v1 and v2 are told apart by the body
OF_RERANK = ({"detail", "message"}, {"error", "error_type"})
OF_TEI = ({"error", "error_type"},)
INSTANCES = [{"instances": [A, B]}, {"instances": [A], "parameters": {"truncate": True}}]
ENTRIES = [{"data": A}, {"text1": A, "text2": B}, {"data": INSTANCES[0]}, {"text": A, "text_pair": B}]
V2 = [{"inputs": [tensor(A, B)], "id": "7"}, {"inputs": [tensor(A)], "parameters": {}, "outputs": []}]
DOORS = {
    "body": Door("TorchServe", at(""), [A, [A, B], *INSTANCES], OF_PREDICTIONS, of_body, rows),
    "form": Door("TorchServe", FORM, ENTRIES, (OWN,), of_entries, rows, has_entries=True),
    "grpc": Door("TorchServe", {}, ENTRIES, (OWN,), of_entries, rows, has_entries=True),
    "v1": Door("KServeV1", KSERVE, INSTANCES, OF_KSERVE, of_body, rows),
    "v2": Door("KServeV2", KSERVE, V2, OF_KSERVE, of_tensor, tensor_of),
    "v2 by path": Door("KServeV2", at("v2/models/fake/infer"), V2, OF_KSERVE, of_tensor, tensor_of),
    "v2 by grpc": Door(
        "OpenInferenceGrpc",
        {"body": {"content-type": "application/json"}},
        [{"id": "7", "model_name": "fake", "inputs": [tensor(A, B)]}],
        (),
        lambda sent: [base64.b64decode(element).decode() for element in of_tensor(sent)],
        tensor_of,
    ),
    "hugging face": Door(
        "HuggingFace",
        at(""),
        [{"inputs": A}, {"inputs": [A, B], "parameters": {}}],
        OF_PREDICTIONS,
        of_body,
        rows,
    ),
    "openai": Door(
        "OpenAI",
        at("v1/embeddings"),
        [{"model": "fake", "input": [A, B]}, {"input": A, "user": "a"}],
        ({"error"},),
        lambda sent: listed(sent["input"]),
        lambda answer: [item["embedding"] for item in answer["data"]],
    ),
    "rerank": Door(
        "Rerank",
        at("rerank"),
        [{"query": A, "documents": [A, B], "top_n": 1}, {"query": A, "documents": [{"text": B}]}],
        OF_RERANK,
    ),
    "embed": Door(
        "TextEmbeddingsInference",
        at("embed"),
        [{"inputs": A}, {"inputs": [A, B], "truncate": True}],
        OF_TEI,
        lambda sent: listed(sent["inputs"]),
        rows,
    ),
    "predict": Door("TextEmbeddingsInference", at("predict"), [{"inputs": [[A], [A, B]]}, {"inputs": A}], OF_TEI),
    "tei's rerank": Door("TextEmbeddingsInference", at("rerank"), [{"query": A, "texts": [A, B]}], OF_RERANK),
    "similarity": Door(
        "TextEmbeddingsInference",
        at("similarity"),
        [{"inputs": {"source_sentence": A, "sentences": [A, B]}}],
        OF_TEI,
    ),
    "management": Door("Management", {"content-length": "0", "describe": "True"}, [None], OF_PREDICTIONS),
}


def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with one change somewhere in it."""
    if isinstance(value, (dict, list)) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        copied = copy.copy(value)
        copied[key] = changed(draw, value[key])
        return copied
    way = draw(st.sampled_from(["replace", "add", "drop", "wrap"]))
    if way == "add" and isinstance(value, dict):
        return {**value, draw(NAMES): draw(ODD)}
    if way == "add" and isinstance(value, list):
        return [*value, draw(ODD)]
    if way == "drop" and isinstance(value, dict) and value:
        gone = draw(st.sampled_from(sorted(value)))
        return {key: item for key, item in value.items() if key != gone}
    return [value] if way == "wrap" else draw(ODD)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    name = draw(st.sampled_from(sorted(DOORS)))
    door = DOORS[name]
    sent = draw(st.sampled_from(door.right))
    for _ in range(draw(st.integers(0, 2))):
        if not door.has_entries:
            sent = changed(draw, sent)
        else:
            key = draw(st.sampled_from(sorted(sent)) | NAMES)
            sent = {**sent, key: changed(draw, sent.get(key))}
    return name, sent, {} if "grpc" in name or name == "management" else draw(HEADERS)


def with_samples(value: Any, samples: Mapping[str, str]) -> Any:
    """The value with samples in the place of A and B."""
    if isinstance(value, dict):
        return {key: with_samples(item, samples) for key, item in value.items()}
    if isinstance(value, list):
        return [with_samples(item, samples) for item in value]
    return samples.get(value, value) if isinstance(value, str) else value


@pytest.fixture(scope="module", params=["embeddings", "reranker", "classifier", "fill-mask", "entities", "images"])
def model(request: pytest.FixtureRequest, tiny_encoder: Callable[..., Any]) -> tuple[Any, dict[str, str]]:
    """A loaded handler, and inputs of it for A and B."""
    kind = request.param
    if kind == "images":
        files = [base64.b64encode(file).decode() for file, _ in request.getfixturevalue("digit_files")]
        return request.getfixturevalue("digits"), {A: files[0], B: files[1]}
    if kind == "embeddings":
        return request.getfixturevalue("minilm"), {A: A, B: B}
    if kind == "fill-mask":
        return tiny_encoder("fill-mask"), {A: "first [MASK]", B: "second [MASK]"}
    task = "token-classification" if kind == "entities" else "sequence-classification"
    return tiny_encoder(task, num_labels=1 if kind == "reranker" else 3), {A: A, B: B}


def ask(handler: Any, sent: Sequence[Call]) -> tuple[list[bytes], Context]:
    """The answers to one batch."""
    context = Context([{**DOORS[name].headers, **more} for name, _, more in sent])
    return handler.handle([DOORS[name].parameters(value) for name, value, _ in sent], context), context


def test_every_adapter_has_a_door() -> None:
    assert {door.adapter for door in DOORS.values()} == {type(adapter).__name__ for adapter in adapters.ADAPTERS}
    for door in DOORS.values():
        for sent in door.right:
            row = Row.of(door.parameters(sent), door.headers)
            assert type(adapters.adapter_of(row)).__name__ == door.adapter


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(drawn=st.lists(calls(), min_size=1, max_size=3))
@example(drawn=[("form", {"data": "\ud800"}, {})])
def test_a_changed_request_is_refused_or_answered_right(model: tuple[Any, dict[str, str]], drawn: list[Call]) -> None:
    handler, samples = model
    good: Call = ("body", [samples[A], samples[B]], {})
    between = [(name, with_samples(value, _samples(handler, name, samples)), more) for name, value, more in drawn]
    answers, context = ask(handler, [good, *between, good])
    assert context.statuses[0] == context.statuses[len(between) + 1] == 200
    assert answers[0] == answers[-1]
    for index, call in enumerate(between, 1):
        if context.types[index] == "application/json" and answers[index]:
            check(handler, call, context.statuses[index], json.loads(answers[index]))


def _samples(handler: Any, door: str, samples: Mapping[str, str]) -> Mapping[str, str]:
    """The samples as a door has them: TorchServe's gRPC puts BYTES into base64, as images are here anyway."""
    if door != "v2 by grpc" or not handler.reader.model.takes_texts:
        return samples
    return {name: base64.b64encode(text.encode()).decode() for name, text in samples.items()}


def check(handler: Any, call: Call, status: int, answer: Any) -> None:
    """A refusal has the shape of its door; embeddings are those of the same texts."""
    name, sent, more = call
    door, model = DOORS[name], handler.reader.model
    assert status == 200 or 400 <= status < 500, (call, answer)
    if status != 200:
        assert set(answer) - IDS in door.refusals, (call, answer)
    elif name == "management":
        assert {key: value for key, value in answer.items() if key != "worker"} == model.description
    elif model.task == "embeddings" and door.vectors is not None and not refused_by_grpc(answer):
        said = json.dumps([sent, *more]).replace("-", "_")
        if not any(word in said for word in CHANGES_NUMBERS):
            same(handler, door.texts(sent), door.vectors(answer))


def refused_by_grpc(answer: Any) -> bool:
    """Whether an answer over the open inference protocol's gRPC is a refusal, which has no status of its own."""
    return isinstance(answer, dict) and [output["name"] for output in answer.get("outputs", [])] == ["error"]


def same(handler: Any, texts: Sequence[Any], vectors: Any) -> None:
    found = np.atleast_2d(vectors)
    assert len(found) == len(texts)
    if all(isinstance(text, str) for text in texts):  # others are token ids
        answers, _ = ask(handler, [("v1", {"instances": list(texts), "parameters": {"truncate": True}}, {})])
        np.testing.assert_allclose(found, json.loads(answers[0])["predictions"], atol=1e-5)
