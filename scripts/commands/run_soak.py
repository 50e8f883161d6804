"""Ask, change and harm a TorchServe for hours, and check every answer: what scripts/soak does."""

from __future__ import annotations

import sys

from soak.command import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    sys.exit(main())
