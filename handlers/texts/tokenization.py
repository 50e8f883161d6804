"""Texts -> token ids, checked against the model's maximum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tokenizers

from handlers.protocol.errors import EmptyRequest, InputTooLong, InvalidInput, RequestError
from handlers.texts.payloads import Text
from handlers.texts.truncation import Truncated, truncated, truncation_side

if TYPE_CHECKING:
    from handlers.settings import TextSettings

Plain = str | tuple[str, str]  # a text, or a pair
Tokenize = Callable[[Sequence[Plain]], list[tokenizers.Encoding]]
NO_ROOM = "those that the tokenizer adds leave no room for text"
MAX_CHARACTERS = 500_000  # tokenized in one call, unless one input has more; encodings of so many take about 100 MB


class Encoded(NamedTuple):
    """One input as tokens.

    text: as it came; the first of a pair.
    ids, type_ids: one number per token.
    encoding: what else the tokenizer knows: which tokens it added, and offsets into `text` if these were asked for.
    left_out: tokens at the beginning that pooling leaves out; less than all of them.
    """

    text: str
    ids: list[int]
    type_ids: list[int]
    encoding: tokenizers.Encoding | Truncated
    left_out: int = 0


class Tokenizer:
    """An archive's tokenizer.json.

    Tokenizes a text once, as a whole, and cuts the tokens afterwards; see handlers.texts.truncation.

    Args:
        folder: of the archive.
        settings: the archive's.

    Raises ValueError if the files ask for a truncation side that does not exist.
    """

    def __init__(self, folder: Path, settings: TextSettings) -> None:
        self.max_tokens = settings.max_tokens
        content = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self.whole: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(content)
        self.from_left = truncation_side(folder, self.whole) == "left"
        self.whole.no_padding()
        self.whole.no_truncation()
        self.sample = _encoded("warm-up", self.whole.encode("warm-up"))
        self.added = self.whole.num_special_tokens_to_add(False)

    def encode(self, texts: Sequence[Text], with_offsets: bool = True) -> list[Encoded | RequestError]:
        """Token ids of each text, or the error of that text: InputTooLong, InvalidInput or EmptyRequest.

        Tokenizes many texts in one call. If that fails, tokenizes each by itself to find which one is at fault.

        Args:
            with_offsets: whether offsets into the texts are needed. They take a fifth of the time.
        """
        tokenize = self.whole.encode_batch if with_offsets else self.whole.encode_batch_fast
        results: list[Encoded | RequestError] = []
        for part in _parts(texts):
            results += map(self._fitted, part, self._encodings([_plain(text) for text in part], tokenize))
        return results

    def _encodings(self, plain: Sequence[Plain], tokenize: Tokenize) -> Sequence[tokenizers.Encoding | RequestError]:
        try:
            return tokenize(plain)
        except Exception:  # the library raises plain Exception
            return [self._encoding(item, tokenize) for item in plain]

    def _encoding(self, plain: Plain, tokenize: Tokenize) -> tokenizers.Encoding | RequestError:
        try:
            return tokenize([plain])[0]
        except Exception:  # its message may hold the text
            return InvalidInput("the model's tokenizer has no token for a part of the text, nor one for the unknown")

    def _fitted(self, text: Text, encoding: tokenizers.Encoding | RequestError) -> Encoded | RequestError:
        """The encoding of a text, cut if it is too long and may be cut."""
        if isinstance(encoding, RequestError):
            return encoding
        count = len(encoding)
        if count <= self.added or (text.pair is not None and not _has_both(encoding)):
            which = "text" if text.pair is None else "text, or none in its pair"
            return EmptyRequest(f"the model's tokenizer finds no tokens in the {which}")
        if count <= text.left_out or (count == len(text.prompt_ids) and encoding.ids == text.prompt_ids):
            return EmptyRequest("the model's tokenizer finds no tokens in the text besides those of its prompt")
        if count <= self.max_tokens:
            return _encoded(text.text, encoding, text.left_out)
        if not text.truncate:
            return InputTooLong(
                f"the text has {count} tokens and the model takes {self.max_tokens}; "
                "shorten it, or ask for truncation: the header X-Truncate: true, or in JSON "
                '"parameters": {"truncate": true}'
            )
        from_left = self.from_left if text.from_left is None else text.from_left
        if from_left and text.left_out:
            return InputTooLong(
                f"the text has {count} tokens with its prompt and the model takes {self.max_tokens}; cutting the "
                "beginning would cut the prompt, which this model has to know: ask for truncation_direction right"
            )
        cut = truncated(encoding, self.max_tokens, from_left, text.only_first)
        if cut is None:
            why = "the hypothesis leaves no room for text" if text.only_first else NO_ROOM
            return InputTooLong(f"the model takes {self.max_tokens} tokens, and {why}")
        return _encoded(text.text, cut, text.left_out)


def _parts(texts: Sequence[Text]) -> Iterator[Sequence[Text]]:
    """Consecutive texts that are tokenized in one call: an encoding takes about a hundred times its text's memory."""
    start = characters = 0
    for index, text in enumerate(texts):
        if index > start and characters + text.characters > MAX_CHARACTERS:
            yield texts[start:index]
            start, characters = index, 0
        characters += text.characters
    if texts:
        yield texts[start:]


def _encoded(text: str, encoding: tokenizers.Encoding | Truncated, left_out: int = 0) -> Encoded:
    return Encoded(text, encoding.ids, encoding.type_ids, encoding, left_out)


def _has_both(encoding: tokenizers.Encoding) -> bool:
    """Return whether tokens of both texts of a pair are there, besides the special ones around them."""
    places = range(len(encoding))
    found = {_first_sequence(encoding, places), _first_sequence(encoding, reversed(places))}
    return found == {0, 1}


def _first_sequence(encoding: tokenizers.Encoding, places: Iterable[int]) -> int | None:
    sequences = map(encoding.token_to_sequence, places)
    return next((sequence for sequence in sequences if sequence is not None), None)


def _plain(text: Text) -> Plain:
    return text.text if text.pair is None else (text.text, text.pair)
