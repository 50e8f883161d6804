"""What a loaded model offers to the protocols."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handlers.protocol import encodings
from handlers.protocol.errors import PayloadTooLarge
from handlers.protocol.options import OptionReader, header_of


@dataclass(frozen=True)
class Interface:
    """What a loaded model offers to the protocols; built once, at load.

    Args:
        wanted: what the model takes, for error messages: "text/plain, or JSON: a string, ...".
        accepts: whether a body of this media type (lower case, "" for none) can be an input. A model that accepts
            text/plain gets texts as str, decoded; every other one gets bytes.
        max_inputs: inputs that one request may bring.
        options: by name, the function that turns a value as sent (str or JSON value) into a valid one.
        other_options: names of options that only other models have. A request that names one is refused.
        media_types: that an answer can come as, the default first. The header Accept chooses.
        takes_pairs: whether `{"text": ..., "text_pair": ...}` is an input.
        labels: that the model's scores belong to, in the order of the logits; none if it gives no scores.
        max_tokens: the longest text, special tokens counted; 0 for a model of images.
        truncates: whether a longer text is cut unless the request says otherwise.
            pooling: how tokens become an embedding, as "mean", or "splade" for sparse ones; "" for other tasks.
            normalizes: whether embeddings have length 1 unless a request says otherwise.
            name, version: under which TorchServe serves the model; "" if it is not known.
        task: the name of a file in handlers/tasks; for images "image-classification" or "image-embeddings".
        description: what the management port tells of the model: engine, precision, device.
    """

    wanted: str
    accepts: Callable[[str], bool]
    max_inputs: int
    options: Mapping[str, OptionReader] = field(default_factory=dict)
    other_options: Sequence[str] = ()
    media_types: Sequence[str] = (encodings.JSON,)
    takes_pairs: bool = False
    labels: Sequence[str] = ()
    max_tokens: int = 0
    truncates: bool = False
    pooling: str = ""
    normalizes: bool = False
    name: str = ""
    version: str = ""
    task: str = ""
    description: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def headers(self) -> frozenset[str]:
        """The headers that carry the options, in lower case."""
        return frozenset(map(header_of, self.options))

    @functools.cached_property
    def every_option(self) -> tuple[str, ...]:
        """Names of the options of this model and of others."""
        return (*self.options, *self.other_options)

    @functools.cached_property
    def takes_texts(self) -> bool:
        """Whether an input is a text."""
        return self.accepts("text/plain")

    @property
    def takes_images(self) -> bool:
        """Whether an input is an image."""
        return self.accepts("image/png")

    @property
    def option_names(self) -> str:
        """The options' names, for error messages."""
        return ", ".join(sorted(self.options)) or "none"

    def refuse_many(self, count: int) -> None:
        """Raises PayloadTooLarge for more inputs than one request may bring."""
        if count > self.max_inputs:
            raise PayloadTooLarge(f"the request holds {count} inputs; at most {self.max_inputs} go into one request")
