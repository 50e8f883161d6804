"""The right answer to each question: what the server gave when it was asked that alone, before the load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from server.errors import ServerError
from server.http import Answer, without_ids

from soak.questions import Form, Message, Vectors

NEAR, FAR = 0.05, 0.2  # an answer is right if it is nearer than NEAR to its own; others are farther away than FAR
Ask = Callable[[Message], Answer]
Refusal = tuple[int, bytes]


@dataclass(frozen=True)
class Known:
    """Right answers. vectors: by model, one per input that may be asked. refusals: by name, by `refusal`."""

    vectors: Mapping[str, Vectors]
    refusals: Mapping[str, Refusal]

    def problem(self, form: Form, which: Sequence[int], body: bytes) -> str | None:
        """What is wrong with the answer to the inputs of these indices; None if nothing is."""
        try:
            found = form.read(body)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return f"an answer of another form ({type(error).__name__})"
        wanted = self.vectors[form.model][list(which)]
        if found.shape != wanted.shape:
            return f"shape {found.shape}, not {wanted.shape}"
        distances = np.linalg.norm(found - wanted, axis=1)
        if np.all(distances <= NEAR):  # false for NaN too
            return None
        return self._whose(form.model, found, which)

    def _whose(self, model: str, found: Vectors, which: Sequence[int]) -> str:
        """Say whether the answer is that to another input."""
        for vector in found:
            near = np.nan_to_num(np.linalg.norm(self.vectors[model] - vector, axis=1), nan=np.inf)
            if near.min() <= NEAR and int(near.argmin()) not in which:
                return "the answer to another request"
        return "another answer than when it was asked alone"


def ask_all(forms: Sequence[Form], count: int, bad: Mapping[str, tuple[str, Message]], ask: Ask) -> Known:
    """Ask each input alone in the first form of its model; then each form once, which has to agree.

    Raises ServerError if an answer is none, if two inputs have answers that are too near to be told apart, if two
    forms do not agree, or if a bad request is not refused.
    """
    first = {form.model: form for form in reversed(forms)}
    vectors = {model: np.concatenate([_ask(form, [i], ask) for i in range(count)]) for model, form in first.items()}
    known = Known(vectors, {name: _refused(name, message, ask) for name, (_, message) in bad.items()})
    for form in forms:
        which = list(range(form.inputs))
        answer = ask(form.write(which))
        problem = known.problem(form, which, answer.body) if answer.status == 200 else f"status {answer.status}"
        if problem:
            raise ServerError(f"{form.name}: {problem}")
    return known


def distinct(vectors: Vectors) -> list[int]:
    """The indices of vectors that are all farther than FAR from each other."""
    kept = list[int]()
    for index, vector in enumerate(vectors):
        if all(np.linalg.norm(vector - vectors[other]) > FAR for other in kept):
            kept.append(index)
    return kept


def _ask(form: Form, which: Sequence[int], ask: Ask) -> Vectors:
    answer = ask(form.write(which))
    if answer.status != 200:
        raise ServerError(f"{form.name} was answered {answer.status} when it was asked alone")
    return form.read(answer.body)


def refusal(answer: Answer) -> Refusal:
    """Return the status and what the body says, without the id of the request."""
    return answer.status, without_ids(answer.body)


def _refused(name: str, message: Message, ask: Ask) -> Refusal:
    answer = ask(message)
    if not 400 <= answer.status < 500:
        raise ServerError(f"{name} was answered {answer.status}, not refused")
    return refusal(answer)
