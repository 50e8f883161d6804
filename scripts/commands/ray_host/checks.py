"""What is refused before Ray starts: in one line, with the way out."""

from __future__ import annotations

from pathlib import Path

import archive_paths
from server.addresses import obstacle

from archive.command_line import is_name
from handlers.hosts.code_versions import refuse_other_version
from ray_host import archives
from ray_host.archives import Head
from ray_host.options import AppOptions, ModelOptions


class CommandError(ValueError):
    """The command line, or the file that it names, cannot be served."""


def absolute(archive: str) -> str:
    """Return a path that holds in the replicas, too, which run in another folder; a URL as it is.

    Raises CommandError if there is no such archive. A file name alone may lie in model_store/.
    """
    if archive_paths.is_url(archive):
        return archive
    found = Path(archive_paths.located(archive))
    if not found.exists():
        raise CommandError(archive_paths.absent(archive))
    return str(found.resolve())


def name(given: str) -> str:
    """Return a model's name. Raises CommandError if it cannot name one."""
    if not is_name(given):
        raise CommandError(f"{given!r} cannot name a model; wanted: letters, digits, '_', '-' and '.'")
    return given


def heads(options: AppOptions) -> list[tuple[str, Head]]:
    """Return the name under which each model is served, and what its archive says of itself.

    Raises ArchiveError, OtherVersionError, and CommandError if two models have one name and one version.
    """
    found: list[tuple[str, Head]] = []
    seen: dict[tuple[str, str], ModelOptions] = {}
    for model in options.models:
        told = archives.head_of(model)
        served = (model.name or told.name, told.version)
        if first := seen.get(served):
            raise CommandError(_named_twice(first.archive, model.archive, *served))
        seen[served] = model
        found.append((served[0], told))
    for model, (_, told) in zip(options.models, found, strict=True):
        refuse_other_version(told.contents, model.archive, allowed=model.allow_other_version)
    return found


def different(port: int, grpc_port: int | None) -> None:
    """Raises CommandError if one port is for both protocols."""
    if port == grpc_port:
        raise CommandError(f"--port and --grpc-port are both {port}; wanted: two different ports")


def ports(host: str, port: int, grpc_port: int | None) -> None:
    """Raises OSError if a server cannot listen there."""
    for option, number in (("--port", port), ("--grpc-port", grpc_port)):
        if number is not None and (found := obstacle(host, number)):
            raise OSError(found.told(f"choose another one with {option}", "choose one of them with --host"))


def _named_twice(first: str, second: str, name: str, version: str) -> str:
    if first == second:
        return (
            f"{first} is named twice; leave one out, or give it another name as NAME=FILE.mar. "
            "--replicas runs several processes of one model"
        )
    return (
        f"{first} and {second} are both the model {name!r} of version {version}; give one of them another name, as "
        "NAME=FILE.mar (in a file: the key `name`)"
    )
