"""Rows as TorchServe hands them over -> requests or an error each; results -> one answer a row."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.protocol import adapters, writer
from handlers.protocol.adapters import kserve_v1
from handlers.protocol.errors import InferenceFailed, InvalidInput, RequestError
from handlers.protocol.interface import Interface
from handlers.protocol.options import whole_number, yes_or_no
from handlers.protocol.reader import Reader
from handlers.protocol.request import Request
from handlers.protocol.wording import kind_of, names_of
from handlers.serving.inputs import Inputs, inputs_of

if TYPE_CHECKING:
    from tests.unit.conftest import FakeContext

JSON = {"content-type": "application/json"}
MULTIPART = {"content-type": "multipart/form-data; boundary=x"}
MARKER = "S3CRET-of-a-user"

THINGS = Interface(
    wanted="a thing",
    accepts=lambda media_type: not media_type.startswith(("video/", "text/")),
    max_inputs=4,
    options={"top_k": whole_number(1, 10), "truncate": yes_or_no},
    other_options=("top_k", "truncate", "encoding_format", "dtype"),
    description={"kind": "test"},
)
READER = Reader(THINGS)
TEXTS = Reader(
    dataclasses.replace(
        THINGS,
        wanted="a text",
        accepts=lambda media_type: media_type in ("", "text/plain", "application/octet-stream"),
    )
)


def request_of(*inputs: object, **rest: Any) -> Request:
    return Request(adapters.DEFAULT, inputs or ["sent"], **rest)


def shape_of(request: Request) -> str:
    """How a request's answers go together: "one", "list", or "instances" as KServe v1 has them."""
    combined = request.combine(["answer"])
    return {"answer": "one", "['answer']": "list", "{'predictions': ['answer']}": "instances"}[str(combined)]


@pytest.fixture
def read(context_for: Callable[..., FakeContext]) -> Callable[..., Request]:
    """read(row, headers) -> its request."""

    def read_one(row: Mapping[str, Any], headers: Mapping[str, Any] | None = None) -> Request:
        (request,) = READER.read([row], context_for([headers or {}]))
        return request

    return read_one


@pytest.fixture
def read_text(context_for: Callable[..., FakeContext]) -> Callable[..., Request]:
    """read_text(row, headers) -> its request, for a model of texts."""

    def read_one(row: Mapping[str, Any], headers: Mapping[str, Any] | None = None) -> Request:
        (request,) = TEXTS.read([row], context_for([headers or {}]))
        return request

    return read_one


Read = Callable[..., Request]


def files(row: Mapping[str, Any], content_type: str = "application/octet-stream") -> dict[str, Any]:
    """The headers of a form whose parts are all files."""
    return {**MULTIPART, **{name: {"content-type": content_type} for name in row}}


def error_of(request: Request) -> RequestError:
    assert request.error is not None
    return request.error


class TestRawBodies:
    @pytest.mark.parametrize("body", [b"x", bytearray(b"x"), "x", b"\x00", b" "])
    def test_a_body_is_one_payload_as_it_came(self, read: Read, body: object) -> None:
        request = read({"body": body})
        assert (request.error, list(request.inputs), shape_of(request)) == (None, [body], "one")

    @pytest.mark.parametrize("body", [b"", bytearray(), ""])
    def test_an_empty_body_is_refused(self, read: Read, body: object) -> None:
        error = error_of(read({"body": body}))
        assert (type(error).__name__, error.status) == ("EmptyRequest", 400)
        assert "a thing" in error.message

    def test_a_row_with_nothing_is_refused(self, read: Read) -> None:
        assert type(error_of(read({}))).__name__ == "EmptyRequest"

    def test_a_row_with_options_alone_is_refused(self, read: Read) -> None:
        assert type(error_of(read({"top_k": b"3"}))).__name__ == "EmptyRequest"

    @pytest.mark.parametrize("media_type", ["video/mp4", "VIDEO/MP4; codecs=x", " Video/Mp4 "])
    def test_an_unwanted_content_type_is_refused(self, read: Read, media_type: str) -> None:
        error = error_of(read({"body": b"x"}, {"Content-Type": media_type}))
        assert (type(error).__name__, error.status) == ("UnsupportedMediaType", 415)
        assert "video/mp4" in error.message

    @pytest.mark.parametrize("header", ["content-type", "Content-Type", "CONTENT-TYPE"])
    @pytest.mark.parametrize(
        "media_type",
        [
            "application/json",
            "application/json; charset=utf-8",
            "APPLICATION/JSON;charset=UTF-8",
            " application/json ;",
            "application/vnd.api+json",
        ],
    )
    def test_json_is_known_by_any_spelling(self, read: Read, header: str, media_type: str) -> None:
        assert read({"body": b'["a"]'}, {header: media_type}).inputs == ["a"]

    def test_a_form_is_refused_with_what_sent_it(self, read: Read) -> None:
        error = error_of(read({"a": b"x"}, {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}))
        assert error.status == 415
        assert "curl -d" in error.message


class TestJson:
    @pytest.mark.parametrize(
        ("value", "payloads", "shape"),
        [
            ("a", ["a"], "one"),
            (["a"], ["a"], "list"),  # one in a list is answered by one in a list
            (["a", "b"], ["a", "b"], "list"),
            ({"instances": ["a"]}, ["a"], "instances"),
            ({"text": "a"}, [{"text": "a"}], "one"),
            ([{"b64": "a"}, "b"], [{"b64": "a"}, "b"], "list"),
            ([["a", "b"]], [["a", "b"]], "list"),  # what a list in a list means, the model says
            # Falsy values that came are not nothing: the model has to say what it thinks of them.
            (0, [0], "one"),
            (False, [False], "one"),
            (None, [None], "one"),
            ({}, [{}], "one"),
            ("", [""], "one"),
            ([None, ""], [None, ""], "list"),
        ],
    )
    @pytest.mark.parametrize("parsed", [True, False])
    def test_parsed_by_torchserve_or_not_is_the_same(
        self, read: Read, value: object, payloads: list[object], shape: str, parsed: bool
    ) -> None:
        request = read({"body": value if parsed else bytearray(json.dumps(value).encode())}, JSON)
        assert (request.error, list(request.inputs), shape_of(request)) == (None, payloads, shape)

    @pytest.mark.parametrize("value", [[], {"instances": []}])
    def test_an_empty_list_is_refused(self, read: Read, value: object) -> None:
        assert type(error_of(read({"body": value}, JSON))).__name__ == "EmptyRequest"

    @pytest.mark.parametrize("body", [b"", b"  \n", bytearray(b"\t")])
    def test_an_empty_body_is_no_json(self, read: Read, body: object) -> None:
        assert type(error_of(read({"body": body}, JSON))).__name__ == "EmptyRequest"

    @pytest.mark.parametrize(
        ("body", "where"),
        [
            (b'{"a": 1,\n "b": }', "line 2 column"),
            (b"[1, 2", "line 1 column"),
            (b"[NaN]", "line 1 column"),
            (b"[Infinity]", "line 1 column"),
            (b"nul", "line 1 column"),
            (b"\xff\xfe", "line 1 column"),
            (b'["\\ud800"]', "line 1 column"),  # half of a surrogate pair
            (b'["a"] trailing', "line 1 column"),
            (b"[" * 100_000, "line 1 column"),  # deeper than a recursive parser bears
            (b'{"a":' * 100_000, "line 1 column"),
            (b"1" * 5000, "line 1 column"),  # more digits than Python turns into an int
        ],
    )
    def test_invalid_json_is_told_where(self, read: Read, body: bytes, where: str) -> None:
        error = error_of(read({"body": bytearray(body)}, JSON))
        assert (type(error).__name__, error.status) == ("InvalidJson", 400)
        assert where in error.message
        assert len(error.message) < 300

    @pytest.mark.parametrize(
        ("body", "key"),
        [
            (b'{"instances": ["a"], "instances": ["b"]}', "instances"),
            (b'{"instances": ["a"], "parameters": {"top_k": 1, "top_k": 2}}', "top_k"),
            (b'[{"text": "a:b", "text_pair": "c", "text": "d"}]', "text"),
        ],
    )
    @pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", ""])
    def test_a_key_that_came_twice_is_refused_by_name(
        self, read: Read, body: bytes, key: str, content_type: str
    ) -> None:
        error = error_of(read({"body": body}, {"content-type": content_type}))
        assert (type(error).__name__, error.status) == ("InvalidJson", 400)
        assert f"the key '{key}' twice" in error.message

    def test_a_huge_whole_number_arrives(self, read: Read) -> None:
        assert read({"body": b"[123456789012345678901234567890]"}, JSON).inputs == [pytest.approx(1.2345679e29)]

    @pytest.mark.parametrize("held", ["a", None, 0, {"a": 1}])
    def test_instances_must_be_a_list(self, read: Read, held: object) -> None:
        error = error_of(read({"body": {"instances": held}}, JSON))
        assert type(error).__name__ == "InvalidInput"
        assert kind_of(held) in error.message

    def test_instances_with_parameters(self, read: Read) -> None:
        request = read({"body": {"instances": ["a"], "parameters": {"top_k": 3, "truncate": True}}}, JSON)
        assert request.options == {"top_k": 3, "truncate": True}
        assert request.combine([]) == {"predictions": []}

    @pytest.mark.parametrize("parameters", [[], "top_k", None, 5])
    def test_parameters_must_be_an_object(self, read: Read, parameters: object) -> None:
        body = {"instances": ["a"], "parameters": parameters}
        assert '"parameters" holds' in error_of(read({"body": body}, JSON)).message

    def test_an_unknown_key_beside_instances_is_refused(self, read: Read) -> None:
        error = error_of(read({"body": {"instances": ["a"], "signature_name": "x"}}, JSON))
        assert "signature_name" in error.message

    def test_more_inputs_than_allowed_are_refused(self, read: Read) -> None:
        assert read({"body": ["a"] * 4}, JSON).error is None
        error = error_of(read({"body": ["a"] * 5}, JSON))
        assert (type(error).__name__, error.status) == ("PayloadTooLarge", 413)
        assert "5" in error.message
        assert "4" in error.message


IMAGE_FILES = [
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff\xe0", "image/jpeg"),
    (b"GIF89a", "image/gif"),
    (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
    (b"BM\x36\0\0\0\0\0\0\0", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"\x93NUMPY\x01\0", "application/octet-stream"),
]


class TestFilesDeclaredAsJson:
    @pytest.mark.parametrize(("data", "media_type"), IMAGE_FILES)
    @pytest.mark.parametrize("headers", [JSON, {"content-type": "application/json; charset=utf-8"}])
    def test_the_right_content_type_is_named(
        self, read: Read, data: bytes, media_type: str, headers: dict[str, str]
    ) -> None:
        error = error_of(read({"body": bytearray(data + bytes(40))}, headers))
        assert (type(error).__name__, error.status) == ("InvalidJson", 400)
        assert f"came as application/json and is a file of {media_type}; send it as {media_type}" in error.message

    @pytest.mark.parametrize(("data", "media_type"), IMAGE_FILES)
    def test_a_model_of_texts_names_what_it_takes(self, read_text: Read, data: bytes, media_type: str) -> None:
        message = error_of(read_text({"body": data + bytes(40)}, JSON)).message
        assert (f"is a file of {media_type}" in message, "wanted: a text" in message) == (True, True)

    @pytest.mark.parametrize("body", [b"BMW is a car", b"RIFFs", b"GIF", b"MM"])
    def test_other_bytes_are_json_that_is_not_valid(self, read: Read, body: bytes) -> None:
        assert "is not valid JSON" in error_of(read({"body": body}, JSON)).message


class TestOptions:
    @pytest.mark.parametrize(("sent", "value"), [(b"3", 3), (bytearray(b"10"), 10), ("1", 1), (5, 5), (b"007", 7)])
    def test_whole_numbers(self, read: Read, sent: object, value: int) -> None:
        request = read({"body": b"x", "top_k": sent})
        assert (request.error, request.options) == (None, {"top_k": value})

    @pytest.mark.parametrize(
        "sent",
        # "²" and "٣" are digits to str.isdigit, and the first not to int().
        [b"0", b"11", b"-1", b"+1", b"1.0", b"", b" 3", b"1_0", b"9" * 5000, "²", "٣", b"\xff", True, 3.0, [3], {}],
    )
    def test_what_is_no_whole_number_in_range(self, read: Read, sent: object) -> None:
        error = error_of(read({"body": b"x", "top_k": sent}))
        assert type(error).__name__ == "InvalidOption"
        assert "top_k: wanted: a whole number from 1 to 10" in error.message

    @pytest.mark.parametrize(("sent", "value"), [(b"true", True), ("False", False), (True, True), (b"TRUE", True)])
    def test_yes_or_no(self, read: Read, sent: object, value: bool) -> None:
        assert read({"body": b"x", "truncate": sent}).options == {"truncate": value}

    @pytest.mark.parametrize("sent", [b"", b"1", b"yes", 1, 0, [], "tru"])
    def test_what_is_neither_yes_nor_no(self, read: Read, sent: object) -> None:
        assert "wanted: true or false" in error_of(read({"body": b"x", "truncate": sent})).message

    @pytest.mark.parametrize("value", [0, 11, "x", None, True, 10**30, [1], float("nan")])
    def test_wrong_values_in_json(self, read: Read, value: object) -> None:
        body = {"instances": ["a"], "parameters": {"top_k": value}}
        assert type(error_of(read({"body": body}, JSON))).__name__ == "InvalidOption"

    @pytest.mark.parametrize(
        ("row", "headers"),
        [({"body": b"x", "topk": b"3"}, {}), ({"body": {"instances": ["a"], "parameters": {"topk": 3}}}, JSON)],
    )
    def test_an_unknown_option_is_refused_with_the_known_ones(
        self, read: Read, row: dict[str, Any], headers: dict[str, str]
    ) -> None:
        error = error_of(read(row, headers))
        assert type(error).__name__ == "InvalidOption"
        assert "'topk'" in error.message
        assert "top_k, truncate" in error.message

    def test_an_option_comes_as_a_header_too(self, read: Read) -> None:
        assert read({"body": b"x"}, {"X-Top-K": "7"}).options == {"top_k": 7}

    def test_the_row_goes_over_the_header(self, read: Read) -> None:
        assert read({"body": b"x", "top_k": b"2"}, {"x-top-k": "7"}).options == {"top_k": 2}

    def test_how_torchserve_found_the_model_is_no_option(self, read: Read) -> None:
        assert read({"body": b"x", "model_name": b"m", "model_version": b"1"}).error is None

    def test_names_are_cut_to_what_a_message_bears(self, read: Read) -> None:
        error = error_of(read({"body": b"x", **{f"{place}" + "n" * 9000: b"" for place in range(99)}}))
        assert len(error.message) < 500


class TestParts:
    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_parts_are_inputs_in_order(self, read: Read, count: int) -> None:
        row = {f"part{place}": bytearray(f"{place}".encode()) for place in range(count)}
        request = read(row, {**files(row), "content-length": str(250 * count)})
        assert request.inputs == list(row.values())
        assert shape_of(request) == ("one" if count == 1 else "list")

    def test_a_part_may_be_named_body(self, read: Read) -> None:
        assert read({"body": b"1", "b": b"2"}, files({"b": 0})).inputs == [b"1", b"2"]

    def test_an_option_among_parts_is_no_input(self, read: Read) -> None:
        request = read({"a": b"1", "top_k": b"3"}, files({"a": 0}))
        assert (request.inputs, request.options, shape_of(request)) == ([b"1"], {"top_k": 3}, "one")

    @pytest.mark.parametrize("empty", [b"", "", bytearray()])
    def test_an_empty_part_is_refused_by_name(self, read: Read, empty: object) -> None:
        error = error_of(read({"a": b"1", "b": empty}, files({"a": 0, "b": 0})))
        assert type(error).__name__ == "EmptyRequest"
        assert "'b'" in error.message

    def test_a_part_of_an_unwanted_content_type_is_refused(self, read: Read) -> None:
        headers = {**files({"a": 0}), "b": {"content-type": "video/mp4; x=y"}}
        error = error_of(read({"a": b"1", "b": b"2"}, headers))
        assert error.status == 415
        assert "'b' came as video/mp4" in error.message

    def test_too_many_parts(self, read: Read) -> None:
        assert error_of(read({f"{place}": b"x" for place in range(5)}, MULTIPART)).status == 413

    @pytest.mark.parametrize(
        ("parts", "length", "lost"),
        [
            ({"a": b"x" * 1000}, 1200, False),
            ({"a": b"x" * 4000}, 8250, True),  # a second "a" of the same size
            ({"a": b"x" * 1000}, 2300, False),  # a file's name in Japanese, percent-encoded twice
            ({"a": b"x" * 1000, "b": b"x" * 1000}, 2400, False),
            ({"a": b"x" * 1000, "b": b"x" * 1000}, 103_000, True),
            ({"a": "é" * 4000}, 8200, False),  # decoded by TorchServe: bytes on the wire, not characters
            ({"a": "\U0001f600" * 4000}, 16200, False),
            ({"a": "\U0001f600" * 4000}, 32400, True),
            ({"a": {"b64": "x" * 9000}}, 9300, False),  # parsed by TorchServe: nobody knows its length
        ],
    )
    def test_lost_parts_are_noticed(self, read: Read, parts: dict[str, Any], length: int, lost: bool) -> None:
        request = read(parts, {**files(parts), "Content-Length": str(length)})
        if lost:
            assert type(error_of(request)) is InvalidInput
            assert str(length) in error_of(request).message
        else:
            assert request.error is None

    @pytest.mark.parametrize("length", [120, 180, 100_000])
    def test_an_option_alone_is_no_input(self, read: Read, read_text: Read, length: int) -> None:
        for reading in (read, read_text):
            error = error_of(reading({"top_k": b"3"}, {**MULTIPART, "content-length": str(length)}))
            assert (type(error).__name__, "holds no input" in error.message) == ("EmptyRequest", True)

    @pytest.mark.parametrize("length", ["", "²", "٣", "9" * 5000, "-5", "many"])
    def test_a_content_length_that_is_none_says_nothing(self, read: Read, length: str) -> None:
        assert read({"a": b"x"}, {**files({"a": 0}), "content-length": length}).error is None

    def test_a_long_part_name_is_cut(self, read: Read) -> None:
        assert len(error_of(read({"n" * 9000: b""}, files({"n" * 9000: 0}))).message) < 200


class TestBatches:
    BAD: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
        ({}, {}),
        ({"body": b""}, {}),
        ({"body": b"{"}, JSON),
        ({"body": []}, JSON),
        ({"body": {"instances": 5}}, JSON),
        ({"body": b"x", "nonsense": b"1"}, {}),
        ({"body": b"x", "top_k": b"no"}, {}),
        ({"body": b"x"}, {"content-type": "video/mp4"}),
        ({"a": b""}, files({"a": 0})),
        ({"a": b"x", "topk": b"3"}, files({"a": 0})),
        ({"body": b"a"}, {"describe": "True"}),
    )

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("bad", BAD)
    def test_a_bad_row_leaves_its_neighbours_alone(
        self,
        context_for: Callable[..., FakeContext],
        place: int,
        bad: tuple[dict[str, Any], dict[str, Any]],
    ) -> None:
        rows: list[dict[str, Any]] = [{"body": b"first"}, {"body": b"second"}]
        headers: list[dict[str, Any]] = [{}, {}]
        rows.insert(place, bad[0])
        headers.insert(place, bad[1])
        batch = READER.read(rows, context_for(headers))
        assert [request.error is not None for request in batch] == [row == place for row in range(3)]
        assert inputs_of(batch).values == [b"first", b"second"]

    def test_a_row_that_asks_for_the_description_gets_it(self, context_for: Callable[..., FakeContext]) -> None:
        headers = [{}, {"describe": "True"}, {}]
        batch = READER.read([{"body": b"a"}, {}, {"body": b"c"}], context_for(headers))
        assert inputs_of(batch).values == [b"a", b"c"]
        assert [request.is_waiting for request in batch] == [True, False, True]
        batch[0].answers = batch[2].answers = ["answer"]
        assert json.loads(writer.write(batch, context_for())[1]) == {"kind": "test", "worker": {"pid": os.getpid()}}

    @pytest.mark.parametrize("value", ["False", "", {"content-type": "text/plain"}])  # the last: a part named so
    def test_only_torchserves_own_word_asks_for_it(self, read: Read, value: object) -> None:
        assert read({"body": b"a"}, {"describe": value}).is_waiting

    @given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=8), st.randoms())
    def test_each_request_gets_its_own_answers(self, sizes: list[tuple[int, bool]], random: Any) -> None:
        """Also past requests that were refused, and with errors anywhere."""
        batch = [
            request_of(*((row, number) for number in range(size)), error=None if good else InvalidInput("before"))
            for row, (size, good) in enumerate(sizes)
        ]
        inputs = inputs_of(batch)
        failing = {item for item in inputs.values if random.random() < 0.2}
        prepared = inputs.together(lambda items: [InferenceFailed("now") if i in failing else i for i in items])
        prepared.hand_back(prepared.values)
        for row, (request, (size, good)) in enumerate(zip(batch, sizes, strict=True)):
            if not good:
                assert request.answers == ()
                assert error_of(request).message == "before"
            elif any(isinstance(item, tuple) and item[0] == row for item in failing):
                assert type(error_of(request)) is InferenceFailed
            else:
                assert request.error is None
                assert request.answers == [(row, number) for number in range(size)]

    def test_an_error_says_which_of_several_inputs(self) -> None:
        batch = [request_of("a", "b", "c"), request_of("d")]
        left = inputs_of(batch).together(lambda _: [1, InvalidInput("why"), 3, InvalidInput("alone")])
        assert error_of(batch[0]).message == "input 2 of 3: why"
        assert error_of(batch[1]).message == "alone"
        assert len(left) == 0

    def test_options_go_with_each_input(self) -> None:
        batch = [request_of(1, 2, options={"a": 1}), request_of(error=InvalidInput("")), request_of(3)]
        assert inputs_of(batch).with_options() == [(1, {"a": 1}), (2, {"a": 1}), (3, {})]
        assert inputs_of(batch).owners() == [0, 0, 1]

    def test_a_request_is_refused_as_a_whole(self) -> None:
        batch = [request_of(1, 2), request_of(3), request_of(4, 5)]

        def refuse(values: Sequence[object], options: object) -> None:
            if 2 in values:
                raise InvalidInput("together")

        left = inputs_of(batch).checked(refuse)
        assert left.values == [3, 4, 5]
        assert [request.error is None for request in batch] == [False, True, True]

    def test_a_value_may_become_several_inputs(self) -> None:
        batch = [request_of("a"), request_of("b")]
        several: Inputs[int] = inputs_of(batch).each(lambda value, _: [1, 2, 3] if value == "a" else [4]).flattened()
        assert (several.values, several.owners()) == ([1, 2, 3, 4], [0, 0, 0, 1])


class TestAnswers:
    def test_answers_statuses_and_types_by_row(self, context_for: Callable[..., FakeContext]) -> None:
        context = context_for()
        predictions = kserve_v1.content_of({"instances": [1]}, THINGS).combine
        batch = [
            request_of(answers=[{"a": 1}]),
            request_of(error=InvalidInput("why")),
            request_of(combine=list, answers=[1, 2]),
            request_of(combine=predictions, answers=[np.array([0.5, 2], np.float32)]),
            request_of(error=InferenceFailed("ours")),
        ]
        assert [json.loads(body) for body in writer.write(batch, context)] == [
            {"a": 1},
            {"code": 400, "type": "InvalidInput", "message": "why"},
            [1, 2],
            {"predictions": [[0.5, 2.0]]},
            {"code": 500, "type": "InferenceFailed", "message": "ours"},
        ]
        assert context.statuses == {0: 200, 1: 400, 2: 200, 3: 200, 4: 500}
        assert context.phrases[1] == "Bad Request"
        assert set(context.content_types.values()) == {"application/json"}

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), np.array([np.nan, np.inf], np.float32)])
    def test_no_answer_holds_a_number_that_json_has_not(
        self, context_for: Callable[..., FakeContext], value: object
    ) -> None:
        (body,) = writer.write([request_of(answers=[value])], context_for())
        assert b"NaN" not in body
        assert b"Inf" not in body
        json.loads(body)

    @pytest.mark.parametrize("value", [object(), {1, 2}, "\ud800", 2**70])
    def test_what_cannot_be_written_fails_its_own_row(
        self, context_for: Callable[..., FakeContext], value: object
    ) -> None:
        context = context_for()
        bodies = writer.write(
            [request_of(answers=[1]), request_of(answers=[value]), request_of(answers=[3])], context
        )
        assert (bodies[0], bodies[2]) == (b"1", b"3")
        assert json.loads(bodies[1])["type"] == "InferenceFailed"
        assert context.statuses == {0: 200, 1: 500, 2: 200}


@pytest.mark.parametrize(
    ("row", "headers"),
    [
        ({"body": b'["%s"' % MARKER.encode()}, JSON),
        ({"body": {"instances": MARKER}}, JSON),
        ({"body": {"instances": [1], "parameters": MARKER}}, JSON),
        ({"body": {"instances": [1], "parameters": {"top_k": MARKER}}}, JSON),
        ({"body": [MARKER] * 9}, JSON),
        ({"body": MARKER, "top_k": MARKER.encode()}, {}),
        ({"body": MARKER, "nonsense": MARKER}, {}),
        ({"body": MARKER.encode()}, {"content-type": "video/mp4"}),
        ({"a": MARKER.encode(), "b": b""}, files({"a": 0, "b": 0})),
        ({"a": MARKER.encode()}, {**files({"a": 0}), "content-length": "100000"}),
        ({"a": MARKER.encode()}, MULTIPART),
        ({"body": b'{"a": "%s' % MARKER.encode()}, {}),
        ({"a": MARKER.encode()}, {"content-type": "application/x-www-form-urlencoded"}),
    ],
)
def test_no_error_tells_what_a_user_sent(
    read: Read, caplog: pytest.LogCaptureFixture, row: dict[str, Any], headers: dict[str, str]
) -> None:
    with caplog.at_level(0):
        body = json.dumps(error_of(read(row, headers)).body())
    assert MARKER not in body
    assert MARKER not in caplog.text


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({}, "an object"),
        ([], "a list"),
        ("", "a string"),
        (False, "a boolean"),
        (0, "a number"),
        (0.5, "a number"),
        (None, "null"),
    ],
)
def test_kinds_have_json_names(value: object, kind: str) -> None:
    assert kind_of(value) == kind


def test_names_that_are_no_utf8_can_be_written() -> None:
    json.dumps(names_of(["\ud800"])).encode("utf-8")
    assert "\ud800" not in names_of(["\ud800"])


# A text without a content type, and what is asked of the model: payloads and shape, or the error's name.
UNDECLARED: list[tuple[bytes, Any]] = [
    (b"plain words", (["plain words"], "one")),
    (b'"a"', (["a"], "one")),
    (b'["a", "b"]', (["a", "b"], "list")),
    (b'{"instances": ["a"], "parameters": {"top_k": 2}}', (["a"], "instances")),
    (b'{"text": "a", "text_pair": "b"}', ([{"text": "a", "text_pair": "b"}], "one")),
    (b'\xef\xbb\xbf["a"]', (["a"], "list")),
    ('["a"]'.encode("utf-16"), (["a"], "list")),
    (b"[1]", ([1], "list")),  # which the model refuses
    (b"[MASK] is", (["[MASK] is"], "one")),
    (b"42", "InvalidInput"),
    (b"null", "InvalidInput"),
    (b"true", "InvalidInput"),
    (b"[]", "EmptyRequest"),
    (b'["a"', "InvalidJson"),
    (b'"\\ud800"', "InvalidJson"),  # JSON by its grammar, and no text
    (b'"C:\\users" is a folder', (['"C:\\users" is a folder'], "one")),
    (b'{"inputs": ["a"]}', "InvalidInput"),
    (b'{"input": "a", "model": "m"}', "InvalidInput"),
    (b'{"inputs": [{"name": "t", "shape": [1], "datatype": "BYTES"}]}\x05\0\0\0hello', "InvalidInput"),
    (b"\x1f\x8b\x08\0rest", "UnsupportedMediaType"),
]


class TestUndeclaredJson:
    """A body, an entry of gRPC's map and a file of a form are read alike where no content type tells of them."""

    @pytest.mark.parametrize(
        ("name", "headers"),
        [
            ("body", {}),  # curl -T, or gRPC
            ("body", {"content-type": "application/octet-stream"}),
            ("data", {}),  # gRPC
            ("text", {"data": {"content-type": ""}}),
            ("text", MULTIPART),  # a field
            ("a.json", files({"a.json": 0})),
        ],
    )
    @pytest.mark.parametrize(("sent", "wanted"), UNDECLARED)
    def test_json_is_what_parses_as_json(
        self, read_text: Read, name: str, headers: dict[str, Any], sent: bytes, wanted: Any
    ) -> None:
        request = read_text({name: bytearray(sent)}, headers)
        found = type(request.error).__name__ if request.error else (list(request.inputs), shape_of(request))
        assert found == wanted

    @pytest.mark.parametrize("sent", [b'"a"', b"42", b'["a"]', b'{"inputs": 1}', b"null", b'{"broken'])
    def test_text_plain_is_the_text_itself(self, read_text: Read, sent: bytes) -> None:
        assert read_text({"body": sent}, {"content-type": "text/plain"}).inputs == [sent.decode()]
        assert read_text({"body": sent.decode()}, {"content-type": "text/plain"}).inputs == [sent.decode()]
        assert read_text({"a": sent}, files({"a": 0}, "text/plain")).inputs == [sent.decode()]

    @pytest.mark.parametrize("name", ["body", "data"])
    def test_images_in_json_are_seen_too(self, read: Read, name: str) -> None:
        assert read({name: b'[{"b64": "YQ=="}]'}).inputs == [{"b64": "YQ=="}]
        assert read({name: b'\xef\xbb\xbf"YQ=="'}).inputs == ["YQ=="]
        assert read({name: b"\x89PNG"}).inputs == [b"\x89PNG"]

    def test_parameters_in_a_part_count(self, read_text: Read) -> None:
        request = read_text({"data": b'{"instances": ["a"], "parameters": {"top_k": 2}}'})
        assert (request.options, shape_of(request)) == ({"top_k": 2}, "instances")

    def test_json_declared_in_a_part(self, read_text: Read) -> None:
        assert read_text({"a": b'"a"'}, files({"a": 0}, "application/json")).inputs == ["a"]
        assert read_text({"a": ["a"]}, files({"a": 0}, "application/json")).inputs == ["a"]  # parsed by TorchServe


class TestPairs:
    @pytest.mark.parametrize("headers", [{}, MULTIPART, files({"text": 0, "text_pair": 0}, "text/plain")])
    def test_text_and_text_pair_are_one_input(self, read_text: Read, headers: dict[str, Any]) -> None:
        request = read_text({"text_pair": b"b", "text": "ä".encode(), "top_k": b"2"}, headers)
        assert (list(request.inputs), shape_of(request)) == ([{"text": "ä", "text_pair": "b"}], "one")

    def test_in_the_order_of_the_others(self, read_text: Read) -> None:
        request = read_text({"data": b"a", "text_pair": b"c", "text": b"b", "text2": b"d"})
        assert (list(request.inputs), shape_of(request)) == (["a", {"text": "b", "text_pair": "c"}, "d"], "list")

    def test_half_a_pair_is_none(self, read_text: Read) -> None:
        assert "without its 'text'" in error_of(read_text({"text_pair": b"a"})).message

    def test_a_list_among_several_is_refused(self, read_text: Read) -> None:
        assert "'data' holds a list" in error_of(read_text({"data": b'["a"]', "text": b"b"})).message


class TestFields:
    @pytest.mark.parametrize(
        "name", ["data", "body", "text", "file", "input", "text1", "text_2", "data-3", "0", "17"]
    )
    def test_fields_that_are_inputs(self, read_text: Read, name: str) -> None:
        assert read_text({name: b"a"}, MULTIPART).inputs == ["a"]

    @pytest.mark.parametrize("name", ["topk", "top-k", "truncat", "instances", "model", "a", "texts.", "_charset_"])
    def test_others_may_be_options_misspelt(self, read_text: Read, name: str) -> None:
        error = error_of(read_text({"data": b"a", name: b"3"}, MULTIPART))
        assert (type(error).__name__, repr(name) in error.message, "top_k, truncate" in error.message) == (
            "InvalidOption",
            True,
            True,
        )

    def test_an_image_may_have_any_name_and_an_option_may_not(self, read: Read) -> None:
        image = b"\x89PNG\r\n" + bytes(200)
        assert read({"cat": image, "dog": image}, MULTIPART).inputs == [image, image]
        error = error_of(read({"cat": image, "topk": b"3"}, MULTIPART))
        assert (type(error).__name__, "'topk'" in error.message) == ("InvalidOption", True)

    @pytest.mark.parametrize("content_type", ["multipart/mixed; boundary=x", "multipart/form-data"])
    def test_what_torchserve_could_not_take_apart_is_no_input(self, read: Read, content_type: str) -> None:
        media_type = content_type.partition(";")[0]
        headers = {"content-type": content_type, "body": {"content-type": media_type}}
        assert error_of(read({"body": b"--x"}, headers)).status == 415


class TestCharsets:
    @pytest.mark.parametrize("kind", [bytes, bytearray, bytes.decode])  # TorchServe decodes text/* if it is let
    def test_a_declared_charset_counts(self, read_text: Read, kind: Any) -> None:
        headers = {"content-type": "text/plain; charset=utf-16le"}
        assert read_text({"body": kind("ab".encode("utf-16-le"))}, headers).inputs == ["ab"]

    def test_cp1252_that_is_valid_utf8(self, read_text: Read) -> None:
        headers = {"content-type": "text/plain; charset=windows-1252"}
        assert read_text({"body": "Ã©".encode("cp1252")}, headers).inputs == ["Ã©"]
        assert read_text({"body": "Ã©".encode("cp1252").decode()}, headers).inputs == ["Ã©"]

    def test_an_unknown_charset_is_refused(self, read_text: Read) -> None:
        error = error_of(read_text({"body": b"a"}, {"content-type": "text/plain; charset=klingon"}))
        assert (error.status, "klingon" in error.message) == (415, True)

    @pytest.mark.parametrize("body", [["é"], "é", {"instances": ["é"]}])
    def test_json_that_torchserve_read_as_utf8_was_not(self, read_text: Read, body: object) -> None:
        assert (
            error_of(read_text({"body": body}, {"content-type": "application/json; charset=latin-1"})).status == 415
        )
        assert read_text({"body": body}, {"content-type": "application/json; charset=UTF-8"}).error is None

    def test_a_byte_order_mark_is_no_text(self, read_text: Read) -> None:
        assert read_text({"body": "\ufeffa"}, {"content-type": "text/plain"}).inputs == ["a"]
        assert read_text({"data": b"\xef\xbb\xbfa"}).inputs == ["a"]


class TestDoors:
    KSERVE: Mapping[str, Any] = {"content-length": "3", "explain": "False"}
    PREDICTIONS: Mapping[str, Any] = {**KSERVE, "url_path": ""}

    @pytest.mark.parametrize(
        "sent", [b"plain", b'["a"]', b'"a"', b'{"text": "a"}', b'{"inputs": []}', b"\x89PNG", b"null"]
    )
    @pytest.mark.parametrize("content_type", ["", "application/json", "text/plain", "application/octet-stream"])
    def test_kserve_paths_take_instances_alone(self, read_text: Read, sent: bytes, content_type: str) -> None:
        headers = {**self.KSERVE, **({"content-type": content_type} if content_type else {})}
        assert error_of(read_text({"body": sent}, headers)).status in (400, 415)

    @pytest.mark.parametrize("content_type", ["", "application/json", "application/octet-stream"])
    def test_kserve_v1_goes_on(self, read_text: Read, content_type: str) -> None:
        headers = {**self.KSERVE, **({"content-type": content_type} if content_type else {})}
        request = read_text({"body": b'{"instances": ["a"]}'}, headers)
        assert (request.error, list(request.inputs), shape_of(request)) == (None, ["a"], "instances")

    def test_the_header_of_v2s_raw_bytes(self, read_text: Read) -> None:
        headers = {**self.PREDICTIONS, "Inference-Header-Content-Length": "14"}
        assert "v2" in error_of(read_text({"body": b'{"inputs": []}abc'}, headers)).message

    @pytest.mark.parametrize("name", ["X-TopK", "Top-K", "top_k", "TOPK", "x_top_k", "Truncate", "x-trun-cate"])
    def test_a_header_that_means_an_option_is_not_passed_over(self, read: Read, name: str) -> None:
        error = error_of(read({"body": b"\x89PNG"}, {**self.PREDICTIONS, name: "3"}))
        assert (type(error).__name__, "x-top-k, x-truncate" in error.message) == ("InvalidOption", True)

    def test_nor_is_another_models_option(self, context_for: Callable[..., FakeContext]) -> None:
        reader = Reader(dataclasses.replace(THINGS, options={}))
        (request,) = reader.read([{"body": b"\x89PNG"}], context_for([{"X-Top-K": "3"}]))
        assert "'x-top-k'" in error_of(request).message

    def test_an_option_in_two_spellings_of_its_header(self, read: Read) -> None:
        error = error_of(read({"body": b"x"}, {**self.PREDICTIONS, "X-Top-K": "1", "x-top-k": "2"}))
        assert type(error).__name__ == "InvalidOption"

    def test_the_end_of_a_stream_is_told_to_grpc_alone(self, context_for: Callable[..., FakeContext]) -> None:
        headers = [{}, self.PREDICTIONS, {"data": {"content-type": ""}}, {"content-length": "0"}]
        context = context_for(headers)
        batch = READER.read([{"data": b""}, {"body": b""}, {"data": b""}, {"body": b""}], context)
        writer.write(batch, context)
        assert context.ends == {0: "false", 2: "false"}

    def test_a_row_that_must_not_be_answered_is_left_out(self, context_for: Callable[..., FakeContext]) -> None:
        """As TorchServe writes its message: an answer for each id that is left, by place."""
        stream2 = {"ts_request_sequence_id": "s", "ts_request_sequence_end": "true"}
        context = context_for([self.PREDICTIONS, stream2, {}])
        context.request_ids = {place: f"id{place}" for place in range(3)}
        rows = [{"body": b"\x89"}, {"data": b"\x89"}, {"data": b"\x89"}]
        batch = READER.read(rows, context)
        assert [request.is_waiting for request in batch] == [True, False, True]
        batch[0].answers = batch[2].answers = ["answer"]
        answers = writer.write(batch, context)
        assert (len(answers), context.request_ids) == (3, {0: "id0", 2: "id2"})


class TestOurOwnFaults:
    def test_an_error_in_reading_one_row_is_its_own(
        self, context_for: Callable[..., FakeContext], caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(dict[str, Any]):
            def items(self) -> Any:
                raise ValueError(MARKER)

        context = context_for()
        batch = READER.read([{"body": b"a"}, Broken(body=b"b"), {"body": b"c"}], context)
        assert [request.error and request.error.status for request in batch] == [None, 500, None]
        assert caplog.text.count("Traceback") + caplog.text.count("builtins.ValueError") == 1
        assert MARKER not in caplog.text + error_of(batch[1]).message

    @pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_what_ends_the_process_ends_it(
        self, context_for: Callable[..., FakeContext], end: type[BaseException]
    ) -> None:
        class Ending(dict[str, Any]):
            def items(self) -> Any:
                raise end

        with pytest.raises(end):
            READER.read([Ending(body=b"b")], context_for())
