"""What a client sent -> texts and pairs of texts, and the limits of one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from handlers.protocol.errors import EmptyRequest, InvalidInput, PayloadTooLarge
from handlers.protocol.wording import kind_of, names_of

if TYPE_CHECKING:
    from handlers.settings import TextSettings

MEDIA_TYPES = ("", "text/plain", "application/octet-stream")


class Text(NamedTuple):
    """What a client sent as one input.

    text: the text, or the first of a pair.
    pair: the second text of a pair; None for a text alone.
    truncate: cut the input to the model's maximum instead of refusing it.
    from_left: cut off its beginning, not its end; None as the tokenizer's files say.
    only_first: cut the text and leave its pair whole, instead of cutting the longer one.
    left_out: tokens at the beginning that pooling leaves out: a prompt, with the special tokens before it.
    prompt_ids: token ids of the prompt alone; none without a prompt.
    """

    text: str
    pair: str | None
    truncate: bool
    from_left: bool | None = None
    only_first: bool = False
    left_out: int = 0
    prompt_ids: Sequence[int] = ()

    @property
    def characters(self) -> int:
        """Characters of both texts."""
        return len(self.text) + len(self.pair or "")


def accepts(media_type: str) -> bool:
    """Whether a body or part of this content type is read as text."""
    return media_type in MEDIA_TYPES


def wanted(takes_pairs: bool) -> str:
    """Return what the model takes, for error messages."""
    pair = ', {"text": "...", "text_pair": "..."}' if takes_pairs else ""
    return f'text/plain, or JSON: a string{pair}, a list of those, or {{"instances": [...]}}'


def read(payload: object, settings: TextSettings, takes_pairs: bool, truncate: bool) -> Text:
    """Return one payload as a text, or as a pair if the task takes pairs.

    Args:
        payload: a JSON value, or UTF-8 bytes: handlers.protocol has decoded what a client sent, charset and byte
            order mark included.
        settings: the archive's.
        takes_pairs: whether the task does.
        truncate: see Text.

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


class HasCharacters(Protocol):
    """What counts for the limit of characters per request."""

    @property
    def characters(self) -> int: ...


def refuse_together(texts: Sequence[HasCharacters], max_characters: int) -> None:
    """Refuse a request whose texts, each short enough, take too long to tokenize together.

    Args:
        texts: the request's.
        max_characters: of all of them.

    Raises PayloadTooLarge.
    """
    if len(texts) > 1 and (characters := sum(text.characters for text in texts)) > max_characters:
        raise PayloadTooLarge(
            f"the request's {len(texts)} texts have {characters} characters together; at most {max_characters} are "
            "tokenized for one request; send fewer at a time, or shorter ones"
        )


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
    if value.isspace():
        raise EmptyRequest("a string of blanks alone came where a text belongs")
    if len(value) > settings.max_chars:
        raise PayloadTooLarge(f"a text of {len(value)} characters came; at most {settings.max_chars} are tokenized")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(f"character {error.start} is half of a surrogate pair, which is no text") from None
    return value.lower() if settings.lower_case else value
