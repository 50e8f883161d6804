"""What a body, or a part of a form, brings: inputs, how their answers go together, and options beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from handlers.protocol import encodings
from handlers.protocol.adapter import Adapter
from handlers.protocol.errors import InvalidOption
from handlers.protocol.request import Combine, Request, one_answer


@dataclass(frozen=True)
class Content:
    """Inputs that came together.

    Args:
        inputs: as in Request.
        combine: as in Request. `one_answer` for an input that did not come in a list.
        options: that came beside the inputs, validated.
    """

    inputs: Sequence[object]
    combine: Combine = one_answer
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_single(self) -> bool:
        """Whether one input came, and not in a list."""
        return self.combine is one_answer

    def request(self, adapter: Adapter, options: Mapping[str, Any], media_type: str) -> Request:
        """Return the request for these inputs.

        Args:
            options: that the row's headers and parameters brought.
            media_type: of the answer.

        Raises InvalidOption for options that contradict each other, or the media type.
        """
        together = merged(options, self.options)
        encodings.check(together, media_type)
        if media_type != encodings.JSON:
            together["encoding_format"] = encodings.EXACT
        return Request(adapter, self.inputs, together, self.combine, media_type)


def merged(options: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return options that came in two ways. Raises InvalidOption for one that came twice with different values."""
    for name in options.keys() & others.keys():
        if options[name] != others[name]:
            raise InvalidOption(f"the option {name} came twice, with different values")
    return {**options, **others}
