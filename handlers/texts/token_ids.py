"""Token ids that a client sends instead of a text: checked, and cut to the model's maximum.

They are taken as the model's own tokenizer gives them, special tokens among them. Ids of another tokenizer would get
an answer that means nothing, and most of them are in every vocabulary. So ids without the special tokens that this
tokenizer puts around a text are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from handlers.protocol.errors import EmptyRequest, InputTooLong, InvalidInput, PayloadTooLarge
from handlers.texts.tokenization import Encoded, Tokenizer
from handlers.texts.truncation import Truncated


@dataclass(frozen=True)
class Ids:
    """One input as token ids; truncate and from_left as in Text."""

    ids: Sequence[int]
    truncate: bool
    from_left: bool | None = None

    @property
    def characters(self) -> int:
        """What they count for in the limit of characters per request."""
        return len(self.ids)


def refuse_many(count: int, most: int) -> None:
    """Raises PayloadTooLarge for more token ids in one input than it may have characters."""
    if count > most:
        raise PayloadTooLarge(f"an input of {count} token ids came; at most {most} are read")


def reader(tokenizer: Tokenizer) -> Callable[[Ids], Encoded]:
    """Return the function from token ids to an input of the model. It raises RequestError."""
    before, after = _around(tokenizer.sample)

    def read(sent: Ids) -> Encoded:
        ids = list(sent.ids)
        _refuse_unknown(ids, tokenizer)
        _refuse_bare(ids, before, after)
        if len(ids) <= len(before) + len(after):
            raise EmptyRequest("the token ids hold no text: there are special tokens alone")
        if len(ids) > tokenizer.max_tokens:
            _refuse_long(len(ids), sent.truncate, tokenizer)
            ids = _cut(ids, before, after, tokenizer, sent.from_left)
        zeros = [0] * len(ids)
        is_special = [1] * len(before) + [0] * (len(ids) - len(before) - len(after)) + [1] * len(after)
        return Encoded("", ids, zeros, Truncated(ids, zeros, [(0, 0)] * len(ids), is_special))

    return read


def _around(sample: Encoded) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    mask = sample.encoding.special_tokens_mask
    before = len(list(takewhile(bool, mask)))
    after = len(list(takewhile(bool, reversed(mask[before:]))))
    return sample.ids[:before], sample.ids[len(sample.ids) - after :]


def _refuse_unknown(ids: Sequence[int], tokenizer: Tokenizer) -> None:
    size = tokenizer.whole.get_vocab_size(with_added_tokens=True)
    for place, token in enumerate(ids):
        if not 0 <= token < 1 << 32 or tokenizer.whole.id_to_token(token) is None:
            raise InvalidInput(
                f"token id {place + 1} of {len(ids)} is none of the model's tokenizer, which has {size}; other "
                "tokenizers, as OpenAI's tiktoken, have other ids: send the text itself"
            )


def _refuse_bare(ids: Sequence[int], before: Sequence[int], after: Sequence[int]) -> None:
    if list(ids[: len(before)]) == before and list(ids[len(ids) - len(after) :]) == after:
        return
    raise InvalidInput(
        "the token ids lack the special tokens of the model's tokenizer: wanted are ids that begin with "
        f"{before} and end with {after}, as that tokenizer gives them. Send the text if the ids are of another "
        "tokenizer, as OpenAI's tiktoken; LangChain does so with check_embedding_ctx_length=False"
    )


def _refuse_long(count: int, truncate: bool, tokenizer: Tokenizer) -> None:
    if not truncate:
        raise InputTooLong(
            f"{count} token ids came and the model takes {tokenizer.max_tokens}; send fewer, or ask for truncation "
            "with the header X-Truncate: true"
        )


def _cut(
    ids: list[int], before: list[int], after: list[int], tokenizer: Tokenizer, from_left: bool | None
) -> list[int]:
    """Ids of the model's maximum, with the special tokens around them."""
    inner = ids[len(before) : len(ids) - len(after)]
    room = tokenizer.max_tokens - len(before) - len(after)
    if room < 1:
        raise InputTooLong(f"the model takes {tokenizer.max_tokens} tokens, and the special ones leave no room")
    left = tokenizer.from_left if from_left is None else from_left
    return before + (inner[-room:] if left else inner[:room]) + after
