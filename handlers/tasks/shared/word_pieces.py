"""What a tokenizer knows of words: which token continues one, and how tokens become a text again.

Source: transformers 5.23, TokenClassificationPipeline.gather_pre_entities.
"""

from __future__ import annotations

import tokenizers

from handlers.texts.tokenization import Encoded


class WordPieces:
    """Reads tokens as parts of words.

    Args:
        tokenizer: of the archive.
        unknown: its token for what it does not know; None if it has none.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, unknown: str | None) -> None:
        self.tokenizer, self.decoder = tokenizer, tokenizer.decoder
        unknown = unknown or getattr(tokenizer.model, "unk_token", None)
        self.unknown_id = None if unknown is None else tokenizer.token_to_id(unknown)
        # Only a prefix such as "##" says for certain that a token continues a word.
        self.has_prefix = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))

    def token(self, encoded: Encoded, index: int) -> str:
        """Return the token as the vocabulary has it; for the unknown token the part of the text."""
        token = encoded.ids[index]
        return _part(encoded, index) if token == self.unknown_id else self._known(token)

    def continues(self, encoded: Encoded, index: int) -> bool:
        """Return whether the token belongs to the same word as the one before it.

        Without a prefix that is a guess, which takes everything between two blanks for a word.
        """
        token = encoded.ids[index]
        if token == self.unknown_id:
            return False
        if self.has_prefix:
            return len(self._known(token)) != len(_part(encoded, index))
        start = encoded.encoding.offsets[index][0]
        return start > 0 and " " not in encoded.text[start - 1 : start + 1]

    def joined(self, tokens: list[str]) -> str:
        """Return the text that these tokens stand for, as the tokenizer writes it: lowered, for example."""
        return " ".join(tokens) if self.decoder is None else str(self.decoder.decode(tokens))

    def _known(self, token: int) -> str:
        return self.tokenizer.id_to_token(token) or ""


def _part(encoded: Encoded, index: int) -> str:
    start, end = encoded.encoding.offsets[index]
    return encoded.text[start:end]
