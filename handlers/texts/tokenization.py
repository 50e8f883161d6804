"""Texts -> token ids, checked against the model's maximum; token ids -> micro-batches of similar length."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import tokenizers

from handlers.protocol.errors import EmptyRequest, InputTooLong, InvalidInput, PayloadTooLarge, RequestError
from handlers.protocol.wording import kind_of, names_of
from handlers.settings import TextSettings

# Models whose position ids start behind the padding index.
BEHIND_PADDING = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod"),
    *("mpnet", "data2vec-text", "ibert", "longformer", "luke", "esm"),
)
PLAIN = ("", "text/plain", "application/octet-stream")
TOKENIZED_AT_ONCE = 500_000  # characters, unless one input alone has more: encodings of so many take about 100 MB

T = TypeVar("T")


@dataclass(frozen=True)
class Text:
    """What a client sent as one input.

    Args:
        truncate: cut it to the model's maximum instead of refusing it.
        from_left: cut off its beginning, or its end; None as the tokenizer's files say.
    """

    text: str
    pair: str | None
    truncate: bool
    from_left: bool | None = None

    @property
    def characters(self) -> int:
        return len(self.text) + len(self.pair or "")


@dataclass(frozen=True)
class Cut:
    """What is left of a tokenizers.Encoding that was longer than the model's maximum; by the same names."""

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]


@dataclass(frozen=True)
class Encoded:
    """One input as tokens: ids and token types of the same length.

    encoding: what the tokenizer knows besides: offsets into `text`, and which tokens it added.
    """

    text: str
    ids: list[int]
    type_ids: list[int]
    encoding: tokenizers.Encoding | Cut


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Tokens that the table of positions has room for, of config.json's content; None for a network without one."""
    behind = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in BEHIND_PADDING else 0
    rows = config.get("max_position_embeddings")
    return None if rows is None else int(rows) - behind


def refuse_positions(config: Mapping[str, Any], max_tokens: int) -> None:
    """Raises ValueError where `max_tokens` is more than the network of this config.json has positions for."""
    most = positions_of(config)
    if most is not None and max_tokens > most:
        raise ValueError(f"maxTokens is {max_tokens}, and the network has positions for {most}")


def has_token_types(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether token types are the tokenizer's; zeros go to a table of one row, and where its config names none.

    config: config.json's content, of the archive in `folder`.
    """
    names = _tokenizer_config(folder).get("model_input_names")
    return config.get("type_vocab_size") not in (0, 1) and (names is None or "token_type_ids" in names)


def _tokenizer_config(folder: Path) -> Mapping[str, Any]:
    """tokenizer_config.json's content; empty where there is none."""
    path = folder / "tokenizer_config.json"
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def accepts(media_type: str) -> bool:
    """Whether a body or part of this content type is read as text."""
    return media_type in PLAIN


def wanted(takes_pairs: bool) -> str:
    """Return what the model takes, for error messages."""
    pair = ', {"text": "...", "text_pair": "..."}' if takes_pairs else ""
    return f'text/plain, or JSON: a string{pair}, a list of those, or {{"instances": [...]}}'


def read(payload: object, settings: TextSettings, takes_pairs: bool, truncate: bool) -> Text:
    """Return one payload as a text, or as a pair if the task takes pairs.

    Bytes are UTF-8: handlers.protocol has decoded what a client sent, charset and byte order mark included.

    Raises EmptyRequest, InvalidInput or PayloadTooLarge.
    """
    if isinstance(payload, (bytes, bytearray)):
        try:
            payload = payload.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput(f"the text is not UTF-8: byte {error.start} of {len(payload)}") from None
    if isinstance(payload, dict):
        text, pair = _pair(payload, settings.task, takes_pairs)
        return Text(_checked(text, settings, takes_pairs), _checked(pair, settings, takes_pairs), truncate)
    return Text(_checked(payload, settings, takes_pairs), None, truncate)


def _pair(payload: dict[str, object], task: str, takes_pairs: bool) -> tuple[object, object]:
    is_pair = payload.keys() == {"text", "text_pair"}
    if takes_pairs and is_pair:
        return payload["text"], payload["text_pair"]
    if is_pair:
        raise InvalidInput(f"a pair of texts came, and {task} takes no pairs; wanted: {wanted(takes_pairs)}")
    keys = f"an object with keys {names_of(payload)}" if payload else "an empty object"
    raise InvalidInput(f"{keys} came where a text belongs; wanted: {wanted(takes_pairs)}")


def _checked(value: object, settings: TextSettings, takes_pairs: bool) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{kind_of(value)} came where a text belongs; wanted: {wanted(takes_pairs)}")
    if not value:
        raise EmptyRequest("an empty string came where a text belongs")
    if len(value) > settings.max_chars:
        raise PayloadTooLarge(f"a text of {len(value)} characters came; at most {settings.max_chars} are tokenized")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(f"character {error.start} is half of a surrogate pair, which is no text") from None
    return value.lower() if settings.lower_case else value


class Tokenizer:
    """An archive's tokenizer.json, and what is left of a text that is cut to the model's maximum.

    A text is tokenized once, as a whole, and the tokens are cut afterwards. The library's own truncation would make
    encodings of all that it cuts off, for a pair in every combination: 26 seconds and 9 GB for two texts of 40,000
    characters each and 64 tokens.
    """

    def __init__(self, folder: Path, settings: TextSettings) -> None:
        self.max_tokens = settings.max_tokens
        content = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self.whole: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(content)
        self.from_left = _truncation_side(folder, self.whole) == "left"
        self.whole.no_padding()
        self.whole.no_truncation()
        self.sample = _encoded("warm-up", self.whole.encode("warm-up"))

    def encode(self, texts: Sequence[Text]) -> list[Encoded | RequestError]:
        """Token ids of each text, or InputTooLong, InvalidInput or EmptyRequest for that text.

        Tokenizes many in one call, and each by itself if one of them is none for this tokenizer.
        """
        results: list[Encoded | RequestError] = []
        for part in _parts(texts):
            results += map(self._fitted, part, self._encodings([_plain(text) for text in part]))
        return results

    def _encodings(self, plain: Sequence[str | tuple[str, str]]) -> Sequence[tokenizers.Encoding | RequestError]:
        try:
            return self.whole.encode_batch(plain)
        except Exception:  # the library's own class, which is no narrower
            return [self._encoding(item) for item in plain]

    def _encoding(self, plain: str | tuple[str, str]) -> tokenizers.Encoding | RequestError:
        try:
            return self.whole.encode_batch([plain])[0]
        except Exception:  # its message may hold the text
            return InvalidInput("the model's tokenizer has no token for a part of the text, nor one for the unknown")

    def _fitted(self, text: Text, encoding: tokenizers.Encoding | RequestError) -> Encoded | RequestError:
        if isinstance(encoding, RequestError):
            return encoding
        count = len(encoding)
        if not count:
            return EmptyRequest("the model's tokenizer finds no tokens in the text")
        if count <= self.max_tokens:
            return _encoded(text.text, encoding)
        if not text.truncate:
            return InputTooLong(
                f"the text has {count} tokens and the model takes {self.max_tokens}; "
                "shorten it, or ask for truncation: the header X-Truncate: true, or in JSON "
                '"parameters": {"truncate": true}'
            )
        from_left = self.from_left if text.from_left is None else text.from_left
        kept = _kept(encoding.sequence_ids, self.max_tokens, from_left)
        if kept is None:
            return InputTooLong(
                f"the model takes {self.max_tokens} tokens, and those that the tokenizer adds leave no room for text"
            )
        return _encoded(text.text, _cut(encoding, kept))


def _truncation_side(folder: Path, tokenizer: tokenizers.Tokenizer) -> str:
    """As transformers takes it: from tokenizer_config.json, else from tokenizer.json, else "right".

    Raises ValueError for another side.
    """
    own = tokenizer.truncation or {}
    side = _tokenizer_config(folder).get("truncation_side") or own.get("direction", "right")
    if side not in ("left", "right"):
        raise ValueError(f"tokenizer_config.json: truncation_side is {side!r}; wanted: left or right")
    return str(side)


def _parts(texts: Sequence[Text]) -> Iterator[Sequence[Text]]:
    """Texts that are tokenized in one call: an encoding takes about a hundred times its text's memory."""
    start = characters = 0
    for place, text in enumerate(texts):
        if place > start and characters + text.characters > TOKENIZED_AT_ONCE:
            yield texts[start:place]
            start, characters = place, 0
        characters += text.characters
    if texts:
        yield texts[start:]


def _kept(sequences: Sequence[int | None], max_tokens: int, from_left: bool) -> list[int] | None:
    """Positions that transformers' truncation=True keeps; None if it leaves no room for text.

    sequences: by token, 0 for the text, 1 for its pair, None for what the tokenizer added. All of the latter stay.
    """
    places = [[place for place, sequence in enumerate(sequences) if sequence == number] for number in (0, 1)]
    lengths = [len(mine) for mine in places]
    room = max_tokens - (len(sequences) - sum(lengths))
    if room < 1:
        return None
    kept = {place for place, sequence in enumerate(sequences) if sequence is None}
    for mine, count in zip(places, _longest_first(lengths[0], lengths[1], room), strict=True):
        kept.update(mine[len(mine) - count :] if from_left else mine[:count])
    return sorted(kept)


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that stay of a text and of its pair: the longer one is cut, and then both to about one length.

    As the strategy longest_first of the library tokenizers.
    """
    if first + second <= room:
        return first, second
    shorter, longer = sorted((first, second))
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if first > second else (shorter, longer)


def _cut(encoding: tokenizers.Encoding, kept: Sequence[int]) -> Cut:
    def of(values: Sequence[T]) -> list[T]:
        return [values[place] for place in kept]

    return Cut(of(encoding.ids), of(encoding.type_ids), of(encoding.offsets), of(encoding.special_tokens_mask))


def _encoded(text: str, encoding: tokenizers.Encoding | Cut) -> Encoded:
    return Encoded(text, encoding.ids, encoding.type_ids, encoding)


def _plain(text: Text) -> str | tuple[str, str]:
    return text.text if text.pair is None else (text.text, text.pair)


class HasCharacters(Protocol):
    """What counts for the limit of characters per request."""

    @property
    def characters(self) -> int: ...


def refuse_together(texts: Sequence[HasCharacters], most: int) -> None:
    """Raises PayloadTooLarge if a request's texts, each short enough, take too long together."""
    if len(texts) > 1 and (characters := sum(text.characters for text in texts)) > most:
        raise PayloadTooLarge(
            f"the request's {len(texts)} texts have {characters} characters together; at most {most} are tokenized "
            "for one request; send fewer at a time, or shorter ones"
        )


def micro_batches(lengths: Sequence[int], token_budget: int, pads: bool) -> Iterator[list[int]]:
    """Places of inputs that run together: sorted by length, cut where their tokens would pass the budget.

    pads: tokens of padding to the longest count as well. Sorting keeps them few, and attention even where none are.
    """
    batch: list[int] = []
    tokens = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        tokens += lengths[batch[0]] if batch and pads else lengths[place]
        if batch and tokens > token_budget:
            yield batch
            batch, tokens = [], lengths[place]
        batch.append(place)
    if batch:
        yield batch
