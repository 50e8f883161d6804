"""Where the server is that a client program asks, and what a program checks with."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

E = TypeVar("E", bound=BaseException)

INFERENCE = os.environ["INFERENCE"]  # http://127.0.0.1:8080
GRPC = os.environ["GRPC"]  # 127.0.0.1:7070
TOKEN = os.environ["TOKEN"]
SENTENCES = f"{INFERENCE}/predictions/sentences/1.0"
RERANKER = f"{INFERENCE}/predictions/reranker/1.0"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
QUERY = "How do I get my money back?"
DOCUMENTS = [
    "Where can I see the northern lights?",
    "Return the item within 30 days for a full refund.",
    "The meeting was moved to Thursday.",
]
LONG = "word " * 600  # more tokens than the model takes
SIZE = 384  # numbers of an embedding of "sentences"


def raised(kind: type[E], call: Callable[[], object]) -> E:
    """Return the error that a call has to raise."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")
