"""A command line that answers an option which is spelt almost right with the right one."""

from __future__ import annotations

import argparse
import sys
from itertools import takewhile
from typing import Any


class Parser(argparse.ArgumentParser):
    """argparse's parser; its commands have parsers of this class, too."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return as argparse does. Raises SystemExit for an unknown option that is almost one of this parser's."""
        words = sys.argv[1:] if args is None else list(args)
        options = list(takewhile(lambda word: word != "--", words))
        found, rest = super().parse_known_args(words, namespace)
        known = [name for name in self._option_string_actions if name.startswith("--")]
        from handlers.near_names import nearest  # late: scripts/predict may run older handlers, of an archive

        for word in (word for word in rest if word in options):
            given = word.partition("=")[0]
            near = nearest(given, known) if given.startswith("--") else None
            if near:
                self.error(f"there is no option {given}; did you mean {near}?")
        return found, rest
