"""Archives of one's own in a soak: any handler, asked with files, whose answers have to stay what they were."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from server.errors import ServerError
from server.http import Answer
from serving_bench.archives import Archive
from updates import samples

from soak.known import Known
from soak.questions import Form, Message, Vectors


def own_forms(
    archives: Sequence[Archive],
    sample_options: Sequence[str],
    forms: list[Form],
    inputs: MutableMapping[str, Sequence[int]],
    known: Known,
    ask: Callable[[Message], Answer],
) -> None:
    """Add a form per archive to `forms`, and the answers to its samples to `inputs` and `known`.

    An answer is right if it has the same bytes as when it was asked alone. So the handler has to be one whose answers
    do not depend on its batch.

    Raises ServerError if a sample is not answered, OSError if its file cannot be read.
    """
    for archive in archives:
        paths = [Path(text.partition("=")[2]) for text in sample_options if text.partition("=")[0] == archive.name]
        messages = [_message(archive.name, sample) for sample in samples.of_files(paths)]
        messages = messages or [Message(f"/predictions/{archive.name}", b"soak", {"Content-Type": "text/plain"})]
        answers = [ask(message) for message in messages]
        if refused := [answer.status for answer in answers if answer.status != 200]:
            raise ServerError(f"{archive.name} answers {refused[0]} to a sample; give others with --sample")
        forms.append(Form(archive.name, archive.name, 1, _writer(messages), _fingerprint))
        inputs[archive.name] = list(range(len(messages)))
        vectors: Any = known.vectors
        vectors[archive.name] = np.concatenate([_fingerprint(answer.body) for answer in answers])


def _message(name: str, sample: Any) -> Message:
    headers = {"Content-Type": sample.content_type} if sample.content_type else {}
    return Message(f"/predictions/{name}", sample.body, headers)


def _writer(messages: Sequence[Message]) -> Callable[[Sequence[int]], Message]:
    return lambda which: messages[which[0]]


def _fingerprint(body: bytes) -> Vectors:
    """A vector that another answer has not: the bits of a digest."""
    digest = np.frombuffer(hashlib.sha256(body).digest(), np.uint8)
    return np.unpackbits(digest).astype(np.float64)[None]
