"""Prompts: texts that a checkpoint was trained to have before a client's text, such as "query: ".

A request without `prompt_name` gets the archive's default prompt, as with sentence-transformers' `encode`. The prompt
is joined to the text without a space between them, and goes before the first text of a pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import tokenizers

from handlers.protocol.errors import InvalidInput
from handlers.protocol.options import OptionReader
from handlers.texts.payloads import Text
from handlers.texts.tokenization import Tokenizer

if TYPE_CHECKING:
    from handlers.settings import TextSettings

OPTION = "prompt_name"
NONE = ""  # names no prompt


class Prompts:
    """The prompts of an archive.

    Args:
        settings: the archive's.
        tokenizer: the archive's.

    Raises:
        ValueError: A prompt has as many tokens as the model takes, so that no text would fit behind it.
    """

    def __init__(self, settings: TextSettings, tokenizer: Tokenizer) -> None:
        self.texts = settings.prompts
        self.default = settings.default_prompt_name
        self.lower_case = settings.lower_case
        encodings = {name: tokenizer.whole.encode(self._cased(text)) for name, text in self.texts.items() if text}
        sizes = {name: _size(encoding) for name, encoding in encodings.items()}
        self.ids = {name: encoding.ids for name, encoding in encodings.items()}
        _refuse_long(sizes, tokenizer.max_tokens)
        self.left_out = {} if settings.pooling.include_prompt else sizes

    @property
    def options(self) -> Mapping[str, OptionReader]:
        """Return the option that chooses a prompt; none if the archive has no prompts."""
        return {OPTION: self._name} if self.texts else {}

    @property
    def details(self) -> dict[str, object]:
        """Return what the model's description says of the prompts; nothing if there are none."""
        if not self.texts:
            return {}
        return {"prompts": {"default": self.default or None, "texts": dict(self.texts)}}

    def _name(self, value: object) -> str:
        if isinstance(value, str) and (value in self.texts or value == NONE):
            return value
        raise ValueError(f"wanted: {', '.join(self.texts)}, or an empty string for no prompt")

    def before(self, text: Text, options: Mapping[str, Any]) -> Text:
        """Return the text with the prompt before it that the request's options choose, or the default one."""
        name = options.get(OPTION, self.default)
        prompt = self.texts.get(name, "")
        if not prompt:
            return text
        whole = self._cased(prompt) + text.text
        return text._replace(text=whole, left_out=self.left_out.get(name, 0), prompt_ids=self.ids[name])

    def _cased(self, prompt: str) -> str:
        return prompt.lower() if self.lower_case else prompt

    def refuse_ids(self, options: Mapping[str, Any]) -> None:
        """Raises InvalidInput for token ids that a prompt would have to stand before."""
        name = options.get(OPTION, self.default)
        if self.texts.get(name):
            raise InvalidInput(
                f"token ids came, and the prompt {name!r} goes before a text; send the text itself, or ids that have "
                f"the prompt already with {OPTION} {NONE!r}, which is no prompt"
            )


def _size(encoding: tokenizers.Encoding) -> int:
    """Return how many tokens of a text are the prompt's, with the special tokens before it.

    Args:
        encoding: of the prompt alone.

    Source: sentence-transformers' Transformer._get_prompt_length: a special token at the end does not count.
    """
    return len(encoding) - bool(encoding.special_tokens_mask and encoding.special_tokens_mask[-1])


def _refuse_long(sizes: Mapping[str, int], most: int) -> None:
    for name, size in sizes.items():
        if size >= most - 1:
            raise ValueError(f"the prompt {name!r} has {size} tokens and maxTokens is {most}: no text fits behind it")
