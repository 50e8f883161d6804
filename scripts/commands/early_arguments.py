"""Read a command's arguments before its packages are installed: `early_arguments.py FILE.py|-m MODULE ARGUMENT...`.

scripts/setup calls it if something is missing. It needs Python alone. Packages that are not there are replaced by
stand-ins while the command's module is imported, because parsers need only names of them. Whatever goes wrong with
that is no error: the packages are installed then, and the command reads its arguments itself.

Exit status: 100 after the help; 102 after what is wrong with the arguments; 0 to go on, and then nothing was printed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

HELP, WRONG, GO_ON = 100, 102, 0
COMMANDS = Path(__file__).resolve().parent
ROOT = COMMANDS.parents[1]


class MissingError(RuntimeError):
    """Something of a package that is not installed is needed now."""


class _StandIn(type):
    """Stands for any class, function or constant of a package. It may be subclassed, and be a decorator."""

    are_called = True  # while modules are imported

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)

    def __call__(cls, *args: Any, **options: Any) -> Any:
        if not _StandIn.are_called:
            raise MissingError(cls.__name__)
        return args[0] if len(args) == 1 and callable(args[0]) and not options else cls

    def __or__(cls, other: Any) -> Any:
        return cls

    def __getitem__(cls, key: Any) -> Any:
        return cls

    __ror__ = __or__
    __iter__ = None  # or Python would iterate by __getitem__, for ever


def _stand_in(name: str) -> Any:
    return _StandIn(name, (), {})


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)


class _Finder(MetaPathFinder, Loader):
    """Comes last, and so finds what nobody else does. This tree's own modules are never replaced."""

    def __init__(self) -> None:
        own = {path.stem for folder in (COMMANDS, ROOT) for path in folder.iterdir()}
        self.own = own | sys.stdlib_module_names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return None if name.partition(".")[0] in self.own else ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def main(words: Sequence[str]) -> int:
    """Return the exit status."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            _read(*_split(words))
    except SystemExit as ended:
        if ended.code in (0, None):
            sys.stdout.write(out.getvalue())
            return HELP
        if ended.code == 2:
            sys.stderr.write(err.getvalue())
            return WRONG
    except BaseException:  # stand-ins do not suffice; the command itself will tell
        return GO_ON
    return GO_ON


def _split(words: Sequence[str]) -> tuple[str, list[str]]:
    """The module, and its arguments."""
    if words[0] == "-m":
        return f"{words[1]}.__main__", list(words[2:])
    return Path(words[0]).stem, list(words[1:])


def _read(name: str, arguments: list[str]) -> None:
    """Call the module's `arguments`, or else let its `parser` parse. Raises SystemExit as argparse does."""
    sys.path[:0] = [str(COMMANDS), str(ROOT)]
    sys.meta_path.append(_Finder())
    importlib.metadata.version = lambda distribution_name: "0"  # of a package that is not there
    module = importlib.import_module(name)
    _StandIn.are_called = False
    if hasattr(module, "arguments"):
        module.arguments(arguments)
    else:
        module.parser().parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
