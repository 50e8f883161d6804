"""A request of the Open Inference Protocol: JSON, or JSON followed by raw bytes -> what it says, checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handlers.near_names import did_you_mean
from handlers.protocol import charsets
from handlers.protocol.errors import EmptyRequest, InvalidInput, InvalidOption
from handlers.protocol.row import Row
from handlers.protocol.wording import kind_of, names_of

HEADER = "inference-header-content-length"
BINARY_OUTPUT = "binary_data_output"
MOST_DIMENSIONS = 8
LARGEST_DIMENSION = 2**31 - 1
_SHARED = "shared memory is not offered; send the data in the request"
_SEQUENCE = "the models keep no state between requests, so there are no sequences"
_ORDER = "requests are answered in the order in which they come, without priorities or timeouts"
NOT_OFFERED = {
    "shared_memory_region": _SHARED,
    "shared_memory_offset": _SHARED,
    "shared_memory_byte_size": _SHARED,
    "sequence_id": _SEQUENCE,
    "sequence_start": _SEQUENCE,
    "sequence_end": _SEQUENCE,
    "priority": _ORDER,
    "timeout": _ORDER,
    "classification": "a classifier's outputs are classes already; the option top_k says how many",
}


@dataclass(frozen=True)
class Tensor:
    """An input as it came.

    Args:
        what: names it in messages: "input 1".
        name, datatype, shape: as declared.
        data: the elements in JSON, flat or nested; None if they came as raw bytes.
        raw: the elements as raw bytes, little-endian; None if they came in JSON.
        content_type: MLServer's parameter of this name; "" for none.
    """

    what: str
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | None = None
    raw: memoryview | None = None
    content_type: str = ""


@dataclass(frozen=True)
class Wish:
    """An output that the client asks for; is_binary: as raw bytes behind the JSON."""

    name: str
    is_binary: bool


@dataclass(frozen=True)
class Envelope:
    """A request.

    Args:
        id: to be echoed; None if none came.
        tensors: the inputs, one or more.
        wishes: the outputs that are asked for; empty for all.
        is_binary: whether outputs come as raw bytes if no wish says otherwise.
        parameters: options by name, not validated yet.
    """

    id: str | None
    tensors: Sequence[Tensor]
    wishes: Sequence[Wish] = ()
    is_binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


def split(row: Row) -> tuple[object, memoryview]:
    """Return a row's parsed JSON, and the raw bytes that follow it.

    Raises EmptyRequest, InvalidInput, InvalidJson or UnsupportedMediaType.
    """
    value, charset = row.parameters.get("body", b""), row.content_type[1]
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    if not isinstance(value, (bytes, bytearray)):  # parsed by TorchServe, as UTF-8
        charsets.refuse_other_charset(charset, "the body")
        return value, memoryview(b"")
    length = _json_length(row, len(value))
    if not value[:length].strip():
        raise EmptyRequest('the request holds no JSON; wanted: an object that holds "inputs"')
    return charsets.json(value[:length], charset, "the request's JSON"), memoryview(value)[length:]


def _json_length(row: Row, size: int) -> int:
    """Bytes of JSON that a body of `size` bytes begins with. Raises InvalidInput."""
    if HEADER not in row.headers:
        return size
    declared = row.header(HEADER)
    if not (declared.isascii() and declared.isdigit() and len(declared) < 20):
        raise InvalidInput("the header Inference-Header-Content-Length is no number of bytes")
    if int(declared) > size:
        raise InvalidInput(f"the header Inference-Header-Content-Length is {declared}, and the body has {size} bytes")
    return int(declared)


def read(content: object, binary: memoryview) -> Envelope:
    """Return a request's envelope.

    Args:
        content: the parsed JSON.
        binary: the raw bytes behind it.

    Raises EmptyRequest, InvalidInput or InvalidOption.
    """
    fields = _object(content, ("id", "inputs", "outputs", "parameters"), "the request")
    identity = fields.get("id")
    if identity is not None and not isinstance(identity, str):
        raise InvalidInput(f'"id" holds {kind_of(identity)}; wanted: a string')
    parameters = dict(_object(fields.get("parameters", {}), None, '"parameters"'))
    _refuse_not_offered(parameters, "the request")
    is_binary = _flag(parameters.pop(BINARY_OUTPUT, False), BINARY_OUTPUT)
    wishes = [_wish(wish, f"output {n}", is_binary) for n, wish in enumerate(_list(fields, "outputs"), 1)]
    _refuse_doubles([wish.name for wish in wishes], "outputs")
    return Envelope(identity, _tensors(_list(fields, "inputs"), binary), wishes, is_binary, parameters)


def _tensors(inputs: Sequence[object], binary: memoryview) -> list[Tensor]:
    if not inputs:
        raise EmptyRequest('"inputs" is missing or empty; wanted: a list of tensors')
    tensors = []
    for number, value in enumerate(inputs, 1):
        tensor, binary = _tensor(value, f"input {number}", binary)
        tensors.append(tensor)
    _refuse_doubles([tensor.name for tensor in tensors], "inputs")
    if len(binary):
        raise InvalidInput(
            f"{len(binary)} bytes behind the JSON belong to no input; an input's raw bytes are announced by its "
            'parameter "binary_data_size"'
        )
    return tensors


def _tensor(value: object, what: str, binary: memoryview) -> tuple[Tensor, memoryview]:
    """One input, and the raw bytes behind its own."""
    fields = _object(value, ("name", "shape", "datatype", "parameters", "data"), what)
    name, datatype = _string(fields, "name", what), _string(fields, "datatype", what)
    parameters = _object(fields.get("parameters", {}), None, f'"parameters" of {what}')
    _refuse_not_offered(parameters, what, ("binary_data_size", "content_type"))
    kind = _string(parameters, "content_type", what) if "content_type" in parameters else ""
    shape, data, size = _shape(fields, what), fields.get("data"), parameters.get("binary_data_size")
    if (data is None) == (size is None):
        raise InvalidInput(f'{what} needs either "data" or the parameter "binary_data_size"')
    if size is None:
        if not isinstance(data, list):
            raise InvalidInput(f'"data" of {what} holds {kind_of(data)}; wanted: a list')
        return Tensor(what, name, datatype, shape, data=data, content_type=kind), binary
    if type(size) is not int or size < 0:
        raise InvalidInput(f'"binary_data_size" of {what} is no number of bytes')
    if size > len(binary):
        raise InvalidInput(f"{what} is said to have {size} raw bytes; {len(binary)} are left behind the JSON")
    return Tensor(what, name, datatype, shape, raw=binary[:size], content_type=kind), binary[size:]


def _shape(fields: Mapping[str, Any], what: str) -> tuple[int, ...]:
    shape = fields.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= MOST_DIMENSIONS:
        raise InvalidInput(f'"shape" of {what} is no list of 1 to {MOST_DIMENSIONS} numbers')
    if any(type(side) is not int or not 0 <= side <= LARGEST_DIMENSION for side in shape):
        raise InvalidInput(f'"shape" of {what} holds something else than whole numbers from 0 to {LARGEST_DIMENSION}')
    return tuple(shape)


def _wish(value: object, what: str, is_binary: bool) -> Wish:
    fields = _object(value, ("name", "parameters"), what)
    parameters = _object(fields.get("parameters", {}), None, f'"parameters" of {what}')
    _refuse_not_offered(parameters, what, ("binary_data",))
    return Wish(_string(fields, "name", what), _flag(parameters.get("binary_data", is_binary), "binary_data"))


def _refuse_not_offered(parameters: Mapping[str, Any], what: str, known: Collection[str] | None = None) -> None:
    """Raises InvalidOption for a parameter that nothing here follows; known: None leaves the others to the model."""
    for name in parameters:
        if name in NOT_OFFERED:
            raise InvalidOption(f"parameter {name} of {what}: {NOT_OFFERED[name]}")
    unknown = [] if known is None else [name for name in parameters if name not in known]
    if known is not None and unknown:
        near = did_you_mean(unknown, known)
        raise InvalidOption(f"unknown parameter {names_of(unknown)} of {what}{near}; known: {', '.join(known)}")


def _object(value: object, known: Collection[str] | None, what: str) -> Mapping[str, Any]:
    """The value, if it is an object without unknown keys; known: None for any. Raises InvalidInput."""
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} holds {kind_of(value)}; wanted: an object")
    unknown = [] if known is None else [name for name in value if name not in known]
    if known is not None and unknown:
        near = did_you_mean(unknown, known)
        raise InvalidInput(f"unknown key {names_of(unknown)} in {what}{near}; known: {', '.join(known)}")
    return value


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    found = fields.get(name, [])
    if not isinstance(found, list):
        raise InvalidInput(f'"{name}" holds {kind_of(found)}; wanted: a list')
    return found


def _string(fields: Mapping[str, Any], name: str, what: str) -> str:
    found = fields.get(name)
    if not isinstance(found, str) or not found:
        raise InvalidInput(f'"{name}" of {what} is missing, empty, or no string')
    return found


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidOption(f"parameter {name}: wanted: true or false")
    return value


def _refuse_doubles(names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        raise InvalidInput(f'two of the "{what}" have the same name')
