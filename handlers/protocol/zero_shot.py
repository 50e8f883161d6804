"""Zero-shot classification: labels that the request brings, by a network for natural language inference (NLI).

Each text with each label becomes a pair, "TEXT" and "This example is LABEL.", and so an input of its request. The
network's logit for "entailment" says how well the label fits.

Source: transformers 5.23, ZeroShotClassificationPipeline.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from handlers.protocol.errors import InvalidInput, InvalidOption, PayloadTooLarge
from handlers.protocol.inner_options import LOGITS
from handlers.protocol.interface import Interface
from handlers.protocol.options import OptionReader, yes_or_no
from handlers.protocol.request import Combine, Request
from handlers.protocol.wording import kind_of

LABELS, TEMPLATE, MULTI = "candidate_labels", "hypothesis_template", "multi_label"
DEFAULT_TEMPLATE = "This example is {}."
LONGEST_TEMPLATE = 1000  # characters; it is repeated for each label
WITHOUT_MEANING = ("top_k", "raw_scores")  # options of the network's own labels


def entailment(labels: Sequence[str]) -> int | None:
    """Return the index of the label "entailment", by its beginning; None if not exactly one of several is it."""
    found = [index for index, label in enumerate(labels) if label.lower().startswith("entail")]
    return found[0] if len(found) == 1 and len(labels) > 1 else None


def options(labels: Sequence[str]) -> dict[str, OptionReader]:
    """Return the options of a model with these labels: none if it is not for NLI."""
    return {} if entailment(labels) is None else {LABELS: _labels, TEMPLATE: _template, MULTI: yes_or_no}


def spread(request: Request, model: Interface) -> None:
    """Make pairs of the texts and labels of a request that brings candidate labels; leave any other as it is.

    Raises RequestError.
    """
    chosen = request.options
    if not chosen:
        return
    if LABELS not in chosen:
        lonely = [name for name in (TEMPLATE, MULTI) if name in chosen]
        if lonely:
            raise InvalidOption(f"{lonely[0]} has a meaning beside {LABELS} only, which did not come")
        return
    useless = [name for name in WITHOUT_MEANING if name in chosen]
    if useless:
        raise InvalidOption(f"{useless[0]} has no meaning beside {LABELS}: each of these gets its score")
    texts, labels = _texts(request.inputs), chosen[LABELS]
    _refuse_many(len(texts), len(labels), model)
    hypotheses = [chosen.get(TEMPLATE, DEFAULT_TEMPLATE).replace("{}", label) for label in labels]
    request.inputs = [{"text": text, "text_pair": hypothesis} for text in texts for hypothesis in hypotheses]
    score = functools.partial(_scores, model.labels, bool(chosen.get(MULTI)) or len(labels) == 1)
    request.combine = _combined(request.combine, texts, labels, score)
    request.options = {**chosen, LOGITS: True}
    request.place = functools.partial(_place, len(labels))


def as_classes(answer: Any) -> Any:
    """Return an answer's labels as classifiers have them, [{"label": ..., "score": ...}, ...]; others as they are."""
    if not isinstance(answer, Mapping):
        return answer
    return [{"label": label, "score": score} for label, score in zip(answer["labels"], answer["scores"], strict=True)]


def _texts(inputs: Sequence[object]) -> list[str]:
    for place, value in enumerate(inputs, 1):
        if not isinstance(value, str):
            raise InvalidInput(f"input {place} is {kind_of(value)}; wanted beside {LABELS}: texts, as strings")
    return list(inputs)  # type: ignore[arg-type]


def _place(labels: int, number: int, count: int) -> str:
    text, label = divmod(number - 1, labels)
    return f"text {text + 1} of {count // labels} with label {label + 1} of {labels}"


def _refuse_many(texts: int, labels: int, model: Interface) -> None:
    """Raises PayloadTooLarge before the pairs are made."""
    if texts * labels > model.max_inputs:
        raise PayloadTooLarge(
            f"{texts} texts with {labels} labels each are {texts * labels} inputs; at most {model.max_inputs} go "
            "into one request"
        )


def _combined(combine: Combine, texts: Sequence[str], labels: Sequence[str], score: Any) -> Combine:
    """The function from the logits of all pairs to what the client gets: `combine` of one answer per text."""

    def join(answers: Sequence[Any]) -> object:
        logits = np.stack(answers).reshape(len(texts), len(labels), -1)  # (texts, labels, network's labels)
        return combine([_answer(*pair, labels) for pair in zip(texts, score(logits), strict=True)])

    return join


def _answer(text: str, scores: NDArray[np.float32], labels: Sequence[str]) -> dict[str, object]:
    """One text's answer, the likeliest label first; equal ones in transformers' order."""
    order = scores.argsort()[::-1].tolist()
    return {"sequence": text, "labels": [labels[index] for index in order], "scores": scores[order].tolist()}


def _scores(names: Sequence[str], is_multi: bool, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scores (texts, labels).

    With is_multi, each label by itself: entailment against contradiction, which transformers takes to be the first
    label of the network, or the last if the first is entailment. Else all labels of a text against each other.
    """
    index = entailment(names) or 0
    if is_multi:
        both = logits[..., [-1 if index == 0 else 0, index]]  # (texts, labels, 2)
        return _softmax(both)[..., 1]
    return _softmax(logits[..., index])


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
    return scores


def _labels(value: object) -> tuple[str, ...]:
    """Read the labels: a list of strings, or one string that holds such a list in JSON, or labels between commas."""
    if isinstance(value, str):
        value = _listed(value)
    wanted = "a list of strings, or one string with commas between the labels"
    if not isinstance(value, list):
        raise ValueError(f"{kind_of(value)} came; wanted: {wanted}")
    for place, label in enumerate(value, 1):
        if not isinstance(label, str) or not label.strip():
            came = "empty" if isinstance(label, str) else kind_of(label)
            raise ValueError(f"label {place} of {len(value)} is {came}; wanted: {wanted}")
    if not value:
        raise ValueError(f"there is no label; wanted: {wanted}")
    return tuple(value)


def _listed(value: str) -> object:
    if not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise ValueError("it begins as a list in JSON and is none") from None


def _template(value: object) -> str:
    """Read the template. Only a bare {} is taken: Python's format would read other braces as code and widths."""
    if not isinstance(value, str):
        raise ValueError(f"{kind_of(value)} came; wanted: a text with one {{}} where the label goes")
    rest = value.replace("{}", "", 1)
    if len(value) > LONGEST_TEMPLATE:
        raise ValueError(f"it has {len(value)} characters; at most {LONGEST_TEMPLATE} are read")
    if "{}" not in value or "{" in rest or "}" in rest:
        raise ValueError("wanted: a text with one {} where the label goes, and no other braces")
    return value
