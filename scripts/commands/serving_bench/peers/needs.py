"""What peers need beside the packages that serve archives, and which interpreter has it.

All of it is looked up before anything is started. Otherwise a missing package would be noticed only after minutes.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import own_environment
from server.paths import ROOT, python_path

from serving_bench.archives import IMAGES, TEXTS, Archive

TIMEOUT_S = 300
BASE = ("handlers.image_classifier", "handlers.text_encoder")  # with all that they import
# PyTorch and Triton print warnings; the last line is the answer.
CHECK = """\
import importlib, importlib.metadata, platform, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
print(importlib.metadata.version(sys.argv[1]), platform.python_version())
"""


class MissingPackageError(ValueError):
    """A peer that was asked for cannot run; the message has the command that mends it."""


@dataclass(frozen=True)
class Needs:
    """Packages of a peer.

    distribution: the one whose version reports name. module: what is imported of it. packages: what pip is told to
    install. requirements: a file of pip's in their place, if they would change packages of this environment, and so
    belong into one of their own, whose folder's name begins with `environment`. kinds: of archives that need them.
    """

    distribution: str
    module: str
    packages: tuple[str, ...] = ()
    requirements: Path | None = None
    environment: str = ""
    kinds: tuple[str, ...] = (IMAGES, TEXTS)

    @property
    def arguments(self) -> tuple[str, ...]:
        """What pip is told to install, from the project's folder."""
        return self.packages if self.requirements is None else ("-r", str(_relative(self.requirements)))


@dataclass(frozen=True)
class Interpreter:
    """A Python that runs a peer. versions: of the package and of Python."""

    path: Path
    versions: Mapping[str, str] = field(default_factory=dict)


HERE = Interpreter(Path(sys.executable))


def interpreters(
    peers: Mapping[str, Any], archives: Sequence[Archive], given: Mapping[str, Path]
) -> dict[str, Interpreter]:
    """The interpreter of each peer that needs packages for one of the archives.

    peers: modules by name. given: interpreters that the user names for peers. Raises MissingPackageError, which names
    everything that is missing, with commands that install it.
    """
    asked = [
        name
        for name, peer in peers.items()
        if any(archive.kind in peer.NEEDS.kinds for archive in archives if not peer.objection(archive))
    ]
    with ThreadPoolExecutor() as pool:  # each takes seconds to import
        looked_up = list(pool.map(lambda name: _looked_up(peers[name].NEEDS, name, given.get(name)), asked))
    pairs = list(zip(asked, looked_up, strict=True))
    missing = [f"  {name}: {problem}" for name, problem in pairs if isinstance(problem, str)]
    if missing:
        lines = "\n".join(missing)
        raise MissingPackageError(f"peers that were asked for cannot run here; nothing was started\n{lines}")
    return {name: found for name, found in pairs if isinstance(found, Interpreter)}


def install(peers: Mapping[str, Any]) -> Iterator[str]:
    """Make the environments that these peers have of their own, unless they are there. Yields lines for a person.

    Raises MissingPackageError for a peer that has none, and if pip fails.
    """
    for name, peer in peers.items():
        needs: Needs = peer.NEEDS
        if needs.requirements is None:
            raise MissingPackageError(f"{name} has no environment of its own; run: {_pip(sys.executable, needs)}")
        try:
            yield f"{name}: {own_environment.python(needs.environment, needs.requirements)}"
        except subprocess.CalledProcessError as error:
            reason = f"pip ended with {error.returncode}; its message is above"
            raise MissingPackageError(f"{name}: its packages could not be installed: {reason}") from None


def _looked_up(needs: Needs, name: str, given: Path | None) -> Interpreter | str:
    """The peer's interpreter, or what is missing."""
    try:
        return _interpreter(name, needs, given)
    except MissingPackageError as error:
        return str(error)


def _interpreter(name: str, needs: Needs, given: Path | None) -> Interpreter:
    """The first that has what is needed. Raises MissingPackageError."""
    if given is not None:
        return _checked(given, needs, f"run: {_pip(given, needs, '-e', '.[hosts]')}")
    if needs.requirements is None:
        return _checked(HERE.path, needs, f"run: {_pip(HERE.path, needs)}")
    own = own_environment.existing(needs.environment, needs.requirements)
    if own is not None:
        return _checked(own, needs, f"run: {_pip(own, needs)}")
    advice = (
        f"run: scripts/bench_serving --install-peers {name}; it makes an environment of its own in build/, and there "
        f"runs pip install {shlex.join(needs.arguments)}. Or name a Python that has them: --peer-python {name}=PATH"
    )
    return _checked(HERE.path, needs, advice)


def _checked(python: Path, needs: Needs, advice: str) -> Interpreter:
    """The interpreter with its versions. Raises MissingPackageError with the advice if an import fails there."""
    command = [str(python), "-c", CHECK, needs.distribution, *BASE, needs.module]
    around = {**os.environ, "PYTHONPATH": python_path(os.environ.get("PYTHONPATH"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=around)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingPackageError(f"{python} cannot be run ({type(error).__name__}); name another Python") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise MissingPackageError(f"{needs.module} cannot be imported by {python}: {reason}\n    {advice}")
    version, of_python = done.stdout.strip().splitlines()[-1].split()
    return Interpreter(python, {needs.distribution: version, "Python": of_python})


def _pip(python: str | Path, needs: Needs, *before: str) -> str:
    """The command that installs a peer's packages."""
    return shlex.join([str(python), "-m", "pip", "install", *before, *needs.arguments])


def _relative(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
