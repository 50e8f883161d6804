"""TorchServe's worker that reads ahead gets the same messages as one that reads value by value."""

from __future__ import annotations

import io
import socket
import struct
import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from costing.front_end import Case
from hypothesis import given
from hypothesis import strategies as st

from handlers.serving import torchserve_socket
from handlers.serving.torchserve_socket import PIECE, ReadAhead

SIZES = st.one_of(st.integers(0, 40), st.sampled_from([PIECE - 1, PIECE, PIECE + 1, 3 * PIECE]))


class Pieces:
    """A connection that gives so many bytes at a time, as it likes; b"" at the end."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.stream, self.sizes = io.BytesIO(data), sizes
        self.calls = 0

    def recv(self, size: int, /) -> bytes:
        self.calls += 1
        return self.stream.read(min(size, self.sizes[self.calls % len(self.sizes)]))

    def recv_into(self, buffer: Any, size: int = 0, /) -> int:
        found = self.recv(len(buffer))
        buffer[: len(found)] = found
        return len(found)


@given(st.lists(SIZES, max_size=20), st.lists(st.integers(1, 2 * PIECE), min_size=1, max_size=5))
def test_every_byte_comes_once_and_in_order(lengths: list[int], sizes: list[int]) -> None:
    data = bytes(index * 7 % 251 for index in range(sum(lengths)))
    connection, read = Pieces(data, sizes), ReadAhead()
    found = [read(connection, length) for length in lengths]
    assert [len(piece) for piece in found] == lengths
    assert all(type(piece) is bytearray for piece in found)
    assert b"".join(found) == data


def test_what_was_handed_out_stays_as_it_was() -> None:
    connection, read = Pieces(b"firstsecond", [64]), ReadAhead()
    first = read(connection, 5)
    first[:] = b"xxxxx"
    assert read(connection, 6) == b"second"


def test_nothing_of_another_connection_is_left() -> None:
    read = ReadAhead()
    assert read(Pieces(b"first, and more", [64]), 5) == b"first"
    assert read(Pieces(b"second", [64]), 6) == b"second"


@pytest.mark.parametrize("wanted", [6, 4 * PIECE])
def test_a_closed_connection_ends_the_worker_as_torchserve_does(wanted: int) -> None:
    with pytest.raises(SystemExit) as ended:
        ReadAhead()(Pieces(b"short", [64]), wanted)
    assert ended.value.code == 0


def test_small_values_take_few_calls() -> None:
    connection, read = Pieces(bytes(4000), [PIECE]), ReadAhead()
    for _ in range(1000):
        read(connection, 4)
    assert connection.calls == 1


def batches(connection: socket.socket, count: int) -> list[Any]:
    """What TorchServe's own code makes of the next messages."""
    messages = pytest.importorskip("ts.protocol.otf_message_handler", reason="needs TorchServe")
    return [messages.retrieve_msg(connection) for _ in range(count)]


def received(message: bytes, count: int) -> list[Any]:
    """The messages that a worker gets over a socket, without waiting for more than was sent."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        sender = threading.Thread(target=mine.sendall, args=(message * count,))
        sender.start()
        found = batches(theirs, count)
        sender.join()
    return found


def test_torchserve_reads_the_same_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = pytest.importorskip("ts.protocol.otf_message_handler", reason="needs TorchServe")
    bodies = [b"", b"text", bytes(PIECE), bytes(300_000)]
    message = Case("any", bodies, {"content-type": "application/octet-stream"}).message(8)
    want = received(message, 3)
    monkeypatch.setattr(messages, "_retrieve_buffer", ReadAhead())
    assert received(message, 3) == want
    assert [len(row["parameters"][0]["value"]) for row in want[0][1]] == 2 * [0, 4, PIECE, 300_000]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """This process as TorchServe's worker: its module for messages."""
    package, messages = ModuleType("ts"), ModuleType("ts.protocol.otf_message_handler")
    vars(package)["__version__"] = "0.12.0\n"
    vars(messages)["_retrieve_buffer"] = struct.unpack
    monkeypatch.setitem(sys.modules, "ts", package)
    monkeypatch.setitem(sys.modules, "ts.protocol.otf_message_handler", messages)
    monkeypatch.setattr(sys.modules["__main__"], "TorchModelServiceWorker", object, raising=False)
    return messages


def test_a_worker_reads_ahead_and_says_so(worker: ModuleType) -> None:
    assert torchserve_socket.read_ahead() == f"up to {PIECE} bytes at once"
    assert isinstance(worker._retrieve_buffer, ReadAhead)


def test_another_torchserve_is_left_alone(worker: ModuleType) -> None:
    vars(sys.modules["ts"])["__version__"] = "0.13.0"
    assert "TorchServe 0.13.0" in (torchserve_socket.read_ahead() or "")
    assert worker._retrieve_buffer is struct.unpack


def test_other_processes_are_left_alone(worker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "TorchModelServiceWorker")
    assert torchserve_socket.read_ahead() is None
    assert worker._retrieve_buffer is struct.unpack
