"""A batch's inputs keep their requests at every step, and an input's error stays with its request."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from handlers.protocol import adapters
from handlers.protocol.errors import InvalidInput
from handlers.protocol.request import Request
from handlers.serving.inputs import Options, inputs_of


def requests_of(*inputs: Sequence[object]) -> list[Request]:
    return [Request(adapters.DEFAULT, values) for values in inputs]


def doubled(value: object, _: Options) -> str:
    if value == "bad":
        raise InvalidInput("bad")
    return f"{value}{value}"


def test_values_stay_with_their_requests() -> None:
    requests = requests_of("a", "bc", [], "d")
    inputs = inputs_of(requests).each(doubled).together(lambda values: list(values)).sized(len)
    inputs.hand_back([f"answer {value}" for value in inputs.values])
    assert [request.answers for request in requests] == [
        ["answer aa"],
        ["answer bb", "answer cc"],
        (),
        ["answer dd"],
    ]
    assert [request.sizes for request in requests] == [[2], [2, 2], (), [2]]
    assert inputs.owners() == [0, 1, 1, 2]


def test_an_error_leaves_out_its_request_alone() -> None:
    requests = requests_of("a", ["b", "bad"], "c")
    inputs = inputs_of(requests).each(doubled)
    assert (inputs.values, inputs.owners()) == (["aa", "cc"], [0, 1])
    assert [request.error and request.error.message for request in requests] == [None, "input 2 of 2: bad", None]


def test_an_error_from_elsewhere_leaves_out_its_request() -> None:
    requests = requests_of("a", "b")
    inputs = inputs_of(requests)
    requests[0].error = InvalidInput("late")
    assert inputs.each(doubled).values == ["bb"]


@pytest.mark.parametrize("results", [[], ["a"], ["a", "b", "c"]], ids=len)
def test_results_of_another_count_are_refused(results: list[str]) -> None:
    inputs = inputs_of(requests_of("ab"))
    with pytest.raises(ValueError, match="2 inputs"):
        inputs.together(lambda values: results)
    with pytest.raises(ValueError, match="2 inputs"):
        inputs.hand_back(results)
