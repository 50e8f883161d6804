"""Reads the prompts of config_sentence_transformers.json, as sentence-transformers 5 and 6 understand them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.locations import SENTENCE_PROMPTS

# sentence-transformers gives every model for embeddings these names, without a text unless the file has one. Its
# encode_query and encode_document use them.
ALWAYS = ("query", "document")


class Prompts(NamedTuple):
    """Texts that stand before a client's text.

    Attributes:
        texts: by name.
        default: name of the prompt for texts that come without a name; "" for none.
    """

    texts: Mapping[str, str]
    default: str


NO_PROMPTS = Prompts({}, "")


def read(whole: Mapping[str, Any], always: tuple[str, ...]) -> Prompts:
    """Return the prompts of the file's content.

    Args:
        whole: content of config_sentence_transformers.json.
        always: names that exist without the file, if there is any prompt: ALWAYS for embeddings.

    Raises:
        CheckpointError: for prompts that are no texts by name, and for a default that is none of them.
    """
    texts, default = _texts(whole.get("prompts")), whole.get("default_prompt_name") or ""
    known = {**texts, **{name: "" for name in always if name not in texts}}
    if default and default not in known:
        names = ", ".join(known) or "none"
        raise CheckpointError(
            f"{SENTENCE_PROMPTS} says default_prompt_name {default!r}, which is none of its prompts ({names}). "
            "Wanted: the name of one of them, or null"
        )
    return Prompts(known if default or any(texts.values()) else texts, str(default))


def notes(prompts: Prompts) -> tuple[str, ...]:
    """Return a note for people if a request without a prompt's name gets one."""
    if not prompts.texts.get(prompts.default):
        return ()
    return (
        f"texts get the prompt {prompts.default!r} before them, unless a request names another with prompt_name: "
        f"{', '.join(prompts.texts)}",
    )


def _texts(prompts: object) -> dict[str, str]:
    if prompts is None:
        return {}
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise CheckpointError(f"{SENTENCE_PROMPTS} says prompts {prompts!r}; wanted: an object of texts by name")
    if "" in prompts:
        raise CheckpointError(f"{SENTENCE_PROMPTS} has a prompt without a name; wanted: a name of a letter or more")
    return {name: text or "" for name, text in prompts.items()}
