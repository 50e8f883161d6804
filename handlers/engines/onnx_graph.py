"""Writes ONNX files, as far as this project's networks need the format.

A worker makes its ONNX network from the archive's weights, so archives carry none. The package `onnx` would add some
80 MB to every worker for a few messages. The file does not hold the weights: it names them, and `Graph.weights`
holds them.

Sources: onnx/onnx.proto (field numbers), protobuf.dev/programming-guides/encoding (how a field is written).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

IR_VERSION, OPSET, CONTRIB_OPSET = 8, 17, 1  # what onnxruntime reads from release 1.12 on
CONTRIB = "com.microsoft"  # onnxruntime's own operators
FLOAT, INT32 = 1, 6  # TensorProto.DataType
EXTERNAL = 1  # TensorProto.DataLocation
AS_FLOAT, AS_INT, AS_INTS = 1, 2, 7  # AttributeProto.AttributeType

Attribute = float | int | Sequence[int]
Value = int | float | bytes | str
Shape = Sequence[int | str]


class Graph:
    """A network that is written node by node, each after the nodes that it reads."""

    def __init__(self) -> None:
        self.weights: dict[str, NDArray[np.float32]] = {}
        self.nodes: list[bytes] = []

    def weight(self, values: torch.Tensor) -> str:
        """Add fixed values, of any shape; they become fp32. Returns their name, for `add`."""
        name = f"weight{len(self.weights)}"
        self.weights[name] = np.ascontiguousarray(values.detach().float().numpy())
        return name

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Attribute) -> str:
        """Add a node with one output.

        Args:
            operator: its name in ONNX.
            inputs: names that `weight` and `add` returned, or of the network's inputs.
            domain: CONTRIB for onnxruntime's own operators.
            attributes: the operator's attributes.

        Returns: the output's name.
        """
        name = f"value{len(self.nodes)}"
        fields: list[tuple[int, Value]] = [*((1, one) for one in inputs), (2, name), (4, operator)]
        fields += [(5, _attribute(key, value)) for key, value in attributes.items()]
        self.nodes.append(_message([*fields, (7, domain)]))
        return name

    def model(self, inputs: Sequence[tuple[str, int, Shape]], output: tuple[str, Shape]) -> bytes:
        """Return the ONNX file.

        Args:
            inputs: name, type (FLOAT or INT32) and shape of each. A word in a shape stands for any size.
            output: name and shape; its type is FLOAT.
        """
        fields: list[tuple[int, Value]] = [(1, node) for node in self.nodes]
        fields.append((2, "network"))
        fields += [(5, _external(name, values.shape)) for name, values in self.weights.items()]
        fields += [(11, _described(*one)) for one in inputs]
        fields.append((12, _described(output[0], FLOAT, output[1])))
        opsets = [
            _message([(1, domain), (2, release)]) for domain, release in (("", OPSET), (CONTRIB, CONTRIB_OPSET))
        ]
        return _message([(1, IR_VERSION), (7, _message(fields)), *((8, opset) for opset in opsets)])


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, float):
        return _message([(1, name), (2, value), (20, AS_FLOAT)])
    if isinstance(value, int):
        return _message([(1, name), (3, value), (20, AS_INT)])
    return _message([(1, name), *((8, one) for one in value), (20, AS_INTS)])


def _external(name: str, shape: Sequence[int]) -> bytes:
    """A weight without its values: whoever loads the file hands them over by name."""
    location = _message([(1, "location"), (2, name)])
    return _message([*((1, size) for size in shape), (2, FLOAT), (8, name), (13, location), (14, EXTERNAL)])


def _described(name: str, kind: int, shape: Shape) -> bytes:
    sizes = [_message([(2 if isinstance(size, str) else 1, size)]) for size in shape]
    tensor = _message([(1, kind), (2, _message([(1, size) for size in sizes]))])
    return _message([(1, name), (2, _message([(1, tensor)]))])


def _message(fields: Iterable[tuple[int, Value]]) -> bytes:
    return b"".join(_field(number, value) for number, value in fields)


def _field(number: int, value: Value) -> bytes:
    """Integers are varints, floats four bytes; text and messages follow their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits per byte, the lowest first. `value` is not negative."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
