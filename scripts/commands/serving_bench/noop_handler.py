"""A TorchServe handler that does nothing: it accepts any body and answers a constant number of bytes.

Its requests/s are the most that TorchServe's front end and the load generator can do. The file travels in an archive
of its own, so it imports nothing of this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Noop:
    """Answers `answerBytes` bytes (model-config.yaml) per request."""

    def initialize(self, context: Any) -> None:
        """Make the answer once."""
        self.answer = b"x" * int((context.model_yaml_config or {}).get("answerBytes", 1))

    def handle(self, rows: Sequence[Any], context: Any) -> list[bytes]:
        """The same answer for every row."""
        return [self.answer] * len(rows)
