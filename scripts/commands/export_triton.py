"""Write an archive into a model repository of NVIDIA Triton: what scripts/export-triton does."""

from __future__ import annotations

import sys

from triton_host.export import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    sys.exit(main())
