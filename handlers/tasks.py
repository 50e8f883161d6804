"""From a network's outputs to what a client reads: classes, embeddings, labels, entities, masked words.

Scores and their names follow transformers' pipelines of the same tasks. An output that is not finite (fp16 that
overflowed, say) becomes an error of its own input, never a number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from handlers import answers
from handlers.encoder.packing import TokenBatch
from handlers.errors import InvalidInput, NotFinite, PayloadTooLarge
from handlers.requests import OptionReader, whole_number
from handlers.settings import Pooling, TextSettings
from handlers.texts import Encoded, Tokenizer

Input = tuple[Encoded, Mapping[str, Any]]
MAX_FILLINGS = 1000  # of one request: each is decoded with the whole text around it, and comes back with it


def top_k(
    logits: torch.Tensor, counts: Sequence[int], labels: Sequence[str], function: str = "softmax"
) -> list[object]:
    """(N, classes) logits -> for each row its counts[i] likeliest classes with probabilities.

    function: see score_function; under "none" the values are called scores, for they are no probabilities.
    """
    values, places = _download_top(_scores(logits, function), max(counts))
    name = "score" if function == "none" else "probability"
    return [
        [
            {"label": labels[place], "index": place, name: value}
            for value, place in zip(values[row][:count], places[row][:count], strict=True)
        ]
        if _finite(values[row])
        else NotFinite()
        for row, count in enumerate(counts)
    ]


def pool(vectors: torch.Tensor, cu_seqlens: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(T, hidden) packed token vectors -> (N, len(modes) * hidden) fp32 embeddings.

    Modes are those of sentence_transformers.models.Pooling: added tokens count, padding does not exist here.
    """
    vectors = vectors.float()
    offsets = cu_seqlens.long()  # (N + 1,)
    embeddings = torch.cat([_pool_one(vectors, offsets, mode) for mode in pooling.modes], dim=1)
    return F.normalize(embeddings, dim=1) if pooling.normalize else embeddings


def _pool_one(vectors: torch.Tensor, offsets: torch.Tensor, mode: str) -> torch.Tensor:
    if mode == "cls":
        return vectors[offsets[:-1]]
    if mode == "lasttoken":
        return vectors[offsets[1:] - 1]
    if mode in ("mean", "max"):
        return torch.segment_reduce(vectors, mode, offsets=offsets)
    lengths = offsets.diff()  # (N,)
    if mode == "mean_sqrt_len_tokens":
        return torch.segment_reduce(vectors, "sum", offsets=offsets) / lengths.sqrt().unsqueeze(1)
    starts = torch.repeat_interleave(offsets[:-1], lengths, output_size=len(vectors))
    weights = (torch.arange(1, len(vectors) + 1, device=vectors.device) - starts).float().unsqueeze(1)  # (T, 1)
    sums = torch.segment_reduce(vectors * weights, "sum", offsets=offsets)
    return sums / torch.segment_reduce(weights, "sum", offsets=offsets)


class TextTask:
    """What a task needs besides the encoder.

    options: may come with a request. forms: media types that its answers can come as, the default first.
    """

    takes_pairs = False
    options: Mapping[str, OptionReader] = {}
    forms: Sequence[str] = (answers.JSON,)

    def check(self, encoded: Encoded) -> Encoded:
        """The input itself, or a RequestError where the task cannot answer it."""
        return encoded

    def check_request(self, encoded: Sequence[Encoded], options: Mapping[str, Any]) -> None:
        """Raises RequestError where the inputs of one request ask for too much together."""

    def selected(self, encoded: Sequence[Encoded]) -> list[int] | None:
        """Packed positions whose outputs the task reads, or None for all."""
        return None

    def figures(self, outputs: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        """What two precisions are compared by: embeddings, or the logits themselves, in fp32."""
        return outputs.float()

    def answer(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> list[object]:
        """The engine's outputs -> one answer, or NotFinite, per input, in order."""
        raise NotImplementedError


class Embeddings(TextTask):
    """Token vectors (T, hidden) -> one embedding per text: numbers, base64 or bytes, as handlers.answers has them.

    digits: significant decimal digits of a number in JSON.
    """

    options = answers.OPTIONS
    forms = answers.MEDIA_TYPES

    def __init__(self, pooling: Pooling, digits: int = answers.DIGITS["fp32"]) -> None:
        self.pooling, self.digits = pooling, digits

    def figures(self, outputs: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        return pool(outputs, batch.cu_seqlens, self.pooling)

    def answer(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> list[object]:
        embeddings = self.figures(outputs, batch)  # (N, hidden)
        finite = embeddings.isfinite().all(dim=1)
        encodings = [options.get("encoding_format", "float") for _, options in inputs]
        if "float" in encodings:
            as_numbers = torch.tensor([encoding == "float" for encoding in encodings], device=embeddings.device)
            rounded = answers.significant(embeddings, self.digits)
            embeddings = torch.where(as_numbers.unsqueeze(1), rounded, embeddings)
        halved = torch.tensor([options.get("dtype") == "float16" for _, options in inputs], device=finite.device)
        finite &= ~halved | embeddings.half().isfinite().all(dim=1)  # float16 ends at 65,504
        rows = zip(embeddings.cpu().numpy(), finite.tolist(), inputs, strict=True)
        return [self._encoded(row, options) if good else NotFinite() for row, good, (_, options) in rows]

    @staticmethod
    def _encoded(row: Any, options: Mapping[str, Any]) -> object:
        return answers.as_base64(row, options) if options.get("encoding_format") == "base64" else row


class SequenceClassification(TextTask):
    """Logits (N, labels) -> labels with scores, likeliest first."""

    takes_pairs = True

    def __init__(self, config: Mapping[str, Any], count: int) -> None:
        self.labels = _labels(config)
        self.count = min(count or len(self.labels), len(self.labels))
        self.function = score_function(config, len(self.labels))
        self.options = {"top_k": whole_number(1, len(self.labels))}

    def answer(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> list[object]:
        counts = [int(options.get("top_k", self.count)) for _, options in inputs]
        values, places = _download_top(_scores(outputs, self.function), max(counts))
        return [
            [{"label": self.labels[p], "score": v} for v, p in zip(values[i][:n], places[i][:n], strict=True)]
            if _finite(values[i])
            else NotFinite()
            for i, n in enumerate(counts)
        ]


class TokenClassification(TextTask):
    """Logits (T, labels) -> entities: runs of tokens with one label, as transformers' "simple" aggregation."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.labels = _labels(config)

    def answer(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> list[object]:
        values, places = _download_top(_float_or_nan(outputs).softmax(dim=1), 1)
        answers: list[object] = []
        for (encoded, _), start in zip(inputs, accumulate(batch.lengths, initial=0), strict=False):
            rows = range(start, start + len(encoded.ids))
            scores, labels = [values[row][0] for row in rows], [self.labels[places[row][0]] for row in rows]
            good = _finite(scores)
            answers.append(_entities(encoded, scores, labels) if good else NotFinite())
        return answers


class FillMask(TextTask):
    """Logits (M, vocabulary) at the masks -> likeliest tokens; a list of those where a text has several masks."""

    def __init__(self, mask_token: str, tokenizer: Tokenizer, count: int) -> None:
        self.tokenizer, self.mask_token = tokenizer.whole, mask_token
        self.mask_id = self.tokenizer.encode(mask_token, add_special_tokens=False).ids[0]
        vocabulary = self.tokenizer.get_vocab_size()
        self.count = min(count or 5, vocabulary)
        self.options = {"top_k": whole_number(1, min(100, vocabulary))}

    def check(self, encoded: Encoded) -> Encoded:
        if self.mask_id not in encoded.ids:
            raise InvalidInput(f"the text holds no {self.mask_token} (after truncation, if any); wanted: one or more")
        return encoded

    def check_request(self, encoded: Sequence[Encoded], options: Mapping[str, Any]) -> None:
        masks, count = sum(len(self._masks(item)) for item in encoded), int(options.get("top_k", self.count))
        if masks * count > MAX_FILLINGS:
            raise PayloadTooLarge(
                f"the request asks for {masks * count} fillings ({masks} masks, {count} each); at most "
                f"{MAX_FILLINGS} go into one request"
            )

    def selected(self, encoded: Sequence[Encoded]) -> list[int]:
        starts = accumulate((len(item.ids) for item in encoded), initial=0)
        return [s + i for s, item in zip(starts, encoded, strict=False) for i in self._masks(item)]

    def answer(self, outputs: torch.Tensor, batch: TokenBatch, inputs: Sequence[Input]) -> list[object]:
        counts = [int(options.get("top_k", self.count)) for _, options in inputs]
        values, tokens = _download_top(_float_or_nan(outputs).softmax(dim=1), max(counts))
        rows = iter(zip(values, tokens, strict=True))
        return [self._answer_one(item, rows, n) for (item, _), n in zip(inputs, counts, strict=True)]

    def _answer_one(self, encoded: Encoded, rows: Iterable[tuple[list[float], list[int]]], count: int) -> object:
        masks = self._masks(encoded)
        mine = list(zip(masks, rows, strict=False))  # all taken even if one is broken: the next text's follow
        fillings = []
        for place, (values, tokens) in mine:
            if not _finite(values):
                return NotFinite()
            chosen = zip(values[:count], tokens[:count], strict=True)
            fillings.append([self._filling(encoded, place, token, value) for value, token in chosen])
        return fillings[0] if len(masks) == 1 else fillings

    def _filling(self, encoded: Encoded, place: int, token: int, score: float) -> dict[str, object]:
        filled = [*encoded.ids[:place], token, *encoded.ids[place + 1 :]]
        # A text with several masks shows the others as what they are.
        sequence = self.tokenizer.decode(filled, skip_special_tokens=encoded.ids.count(self.mask_id) == 1)
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token], skip_special_tokens=False),
            "sequence": sequence,
        }

    def _masks(self, encoded: Encoded) -> list[int]:
        return [place for place, token in enumerate(encoded.ids) if token == self.mask_id]


def load(folder: Path, settings: TextSettings, tokenizer: Tokenizer, precision: str = "fp32") -> TextTask:
    """Return the task that an archive was packaged for. precision: that serves; numbers get as many digits."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if settings.task == "embeddings":
        return Embeddings(settings.pooling, answers.DIGITS[precision])
    if settings.task == "sequence-classification":
        return SequenceClassification(config, settings.top_k)
    if settings.task == "token-classification":
        return TokenClassification(config)
    return FillMask(mask_token(folder), tokenizer, settings.top_k)


def mask_token(folder: Path) -> str:
    """The tokenizer's mask token, from its own files. Raises ValueError where it has none."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        token = json.loads(path.read_text(encoding="utf-8")).get("mask_token") if path.is_file() else None
        if token:
            return str(token["content"] if isinstance(token, dict) else token)
    raise ValueError(f"the tokenizer in {folder} has no mask_token, which fill-mask needs")


def _labels(config: Mapping[str, Any]) -> list[str]:
    labels = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [labels[str(place)] for place in range(len(labels))]


def score_function(config: Mapping[str, Any], labels: int) -> str:
    """What makes scores of logits: "softmax", "sigmoid" or "none".

    As transformers' classification pipelines decide, by config.json's problem_type and the count of labels.
    """
    problem = config.get("problem_type")
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification" or labels == 1:
        return "sigmoid"
    return "softmax"


def _entities(encoded: Encoded, scores: Sequence[float], labels: Sequence[str]) -> list[dict[str, object]]:
    """Group tokens as transformers' TokenClassificationPipeline.group_entities does; "O" is left out."""
    groups: list[list[int]] = []
    for place, special in enumerate(encoded.encoding.special_tokens_mask):
        if special:
            continue
        _, tag = _split_tag(labels[place])
        if groups and labels[place][:2] != "B-" and tag == _split_tag(labels[groups[-1][-1]])[1]:
            groups[-1].append(place)
        else:
            groups.append([place])
    return [_entity(encoded, group, scores, labels) for group in groups if labels[group[0]] != "O"]


def _entity(
    encoded: Encoded, group: Sequence[int], scores: Sequence[float], labels: Sequence[str]
) -> dict[str, object]:
    offsets = encoded.encoding.offsets
    start, end = _without_blanks(encoded.text, offsets[group[0]][0], offsets[group[-1]][1])
    return {
        "label": labels[group[0]].split("-", 1)[-1],
        "score": sum(scores[place] for place in group) / len(group),
        "text": encoded.text[start:end],
        "start": start,
        "end": end,
    }


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """The same part of the text, less the blanks around it: some tokenizers count the one before a word to the word.

    A part of blanks alone is empty, at its end.
    """
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, max(start, end - (len(part) - len(part.rstrip())))


def _split_tag(label: str) -> tuple[str, str]:
    return (label[0], label[2:]) if label[:2] in ("B-", "I-") else ("I", label)


def _scores(logits: torch.Tensor, function: str) -> torch.Tensor:
    logits = _float_or_nan(logits)
    if function == "softmax":
        return logits.softmax(dim=1)
    return logits.sigmoid() if function == "sigmoid" else logits


def _finite(scores: Sequence[float]) -> bool:
    return all(map(math.isfinite, scores))


def _float_or_nan(logits: torch.Tensor) -> torch.Tensor:
    """fp32 logits; a row with infinity, which softmax or sigmoid may turn into a number, becomes all NaN."""
    logits = logits.float()
    return torch.where(logits.isfinite().all(dim=1, keepdim=True), logits, torch.nan)


def _download_top(scores: torch.Tensor, count: int) -> tuple[list[list[float]], list[list[int]]]:
    """The `count` highest scores of each row and their places, in one download."""
    values, places = scores.topk(count, dim=1)
    both = torch.stack([values.double(), places.double()]).cpu()  # (2, N, count): places below 2**53 are exact
    return both[0].tolist(), both[1].long().tolist()
