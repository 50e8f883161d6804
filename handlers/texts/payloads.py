"""What a client sent -> texts and pairs of texts, and the limits of one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from handlers.protocol.errors import EmptyRequest, InvalidInput, PayloadTooLarge
from handlers.protocol.wording import kind_of, names_of
from handlers.settings import TextSettings

MEDIA_TYPES = ("", "text/plain", "application/octet-stream")


@dataclass(frozen=True)
class Text:
    """What a client sent as one input.

    text: the text, or the first of a pair.
    pair: the second text of a pair; None for a text alone.
    truncate: cut the input to the model's maximum instead of refusing it.
    """

    text: str
    pair: str | None
    truncate: bool

    @property
    def characters(self) -> int:
        """Characters of both texts."""
        return len(self.text) + len(self.pair or "")


def accepts(media_type: str) -> bool:
    """Whether a body or part of this content type is read as text."""
    return media_type in MEDIA_TYPES


def media(task: str) -> str:
    """What a model of this task takes, for error messages."""
    pair = ', {"text": "...", "text_pair": "..."}' if task == "sequence-classification" else ""
    return f'text/plain, or JSON: a string{pair}, a list of those, or {{"instances": [...]}}'


def read(payload: object, settings: TextSettings, pairs: bool, truncate: bool) -> Text:
    """One payload as a text, or as a pair if the task takes pairs.

    Args:
        payload: a JSON value, or UTF-8 bytes. The protocol's reader has dealt with charsets and byte order marks.
        settings: the archive's.
        pairs: whether the task takes pairs.
        truncate: see Text.

    Raises EmptyRequest, InvalidInput or PayloadTooLarge.
    """
    if isinstance(payload, (bytes, bytearray)):
        try:
            payload = payload.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput(f"the text is not UTF-8: byte {error.start} of {len(payload)}") from None
    if isinstance(payload, dict):
        return Text(*_pair(payload, settings, pairs), truncate)
    return Text(_checked(payload, settings), None, truncate)


def refuse_together(texts: Sequence[Text], max_characters: int) -> None:
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


def _pair(payload: dict[str, object], settings: TextSettings, pairs: bool) -> tuple[str, str]:
    if not pairs:
        raise InvalidInput(f"an object came, and {settings.task} takes no pairs; wanted: {media(settings.task)}")
    if payload.keys() != {"text", "text_pair"}:
        keys = names_of(payload)
        raise InvalidInput(f'an object with keys {keys} came; wanted: {{"text": "...", "text_pair": "..."}}')
    return _checked(payload["text"], settings), _checked(payload["text_pair"], settings)


def _checked(value: object, settings: TextSettings) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{kind_of(value)} came where a text belongs; wanted: {media(settings.task)}")
    if not value:
        raise EmptyRequest("an empty string came where a text belongs")
    if len(value) > settings.max_chars:
        raise PayloadTooLarge(f"a text of {len(value)} characters came; at most {settings.max_chars} are tokenized")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(f"character {error.start} is half of a surrogate pair, which is no text") from None
    return value.lower() if settings.lower_case else value
