"""What keeps an archive from being signed, or from being accepted."""

from __future__ import annotations


class SigningError(ValueError):
    """A key or a signature does not serve. The message says what came, what is wanted, and the way out."""
