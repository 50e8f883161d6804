"""load_archive: a .mar, or an unpacked one, -> a model that answers in this process."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from handlers import load_errors
from handlers.hosts import code_versions, contents, unpacking
from handlers.hosts.contents import ArchiveError, Contents
from handlers.hosts.contexts import HostContext, Metrics
from handlers.hosts.model import Model

logger = logging.getLogger(__name__)


def load_archive(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    precision: str | None = None,
    engine: str | None = None,
    settings: Mapping[str, object] | None = None,
    name: str | None = None,
    workers: int = 1,
    digest: str | None = None,
    edited_settings: bool = False,
    allow_other_version: bool = False,
    metrics: Metrics | None = None,
) -> Model:
    """Check an archive, load its model into this process, and return it. Nothing of the archive is executed.

    The handlers that run are those that this function was imported with, see code_versions.py. Loading sets PyTorch's
    number of threads for the process, as in a worker.

    Args:
        path: of a .mar; or of a folder that one was unpacked into.
        device: "cpu", "cuda" or "cuda:1"; None as the archive's settings say: a GPU if there is one.
        precision, engine: in place of the archive's settings of these names.
        settings: other keys of the section `handler` in model-config.yaml, as docs/settings.md has them.
        name: under which the model is served, for the protocols that name it; None for the archive's own.
        workers: processes with this model on this machine, which share its CPUs.
        digest: the archive's content digest ("sha256:...", as `scripts/package show` prints it), if it is known from
            elsewhere. Only then is it sure who has packaged.
        edited_settings: take a model-config.yaml that was edited after packaging.
        allow_other_version: take an archive that was packaged with other handlers than these.
        metrics: gets the figures of batches.

    Raises:
        ArchiveError: the archive was not made by this package, or is not what was packaged.
        OtherVersionError: it was packaged with other handlers.
        ValueError: a setting is wrong, nothing here can run the model, or the GPU's driver, memory or a package
            failed (LoadError).
        OSError: there is no room for the unpacked archive.

    Each message is one line.
    """
    path = Path(path)
    with load_errors.explained(), contextlib.ExitStack() as resources:  # CUDA's first call may fail in _place
        folder, listed = resources.enter_context(unpacking.archive_folder(path, edited_settings=edited_settings))
        _refuse_other_digest(listed, digest, path)
        code = code_versions.refuse_other_version(listed, str(path), allowed=allow_other_version)
        config = _config(folder, {"precision": precision, "engine": engine, **(settings or {})}, workers)
        gpu = _place(device, config["handler"])
        context = HostContext(folder, name or listed.name, listed.manifest, config, gpu, metrics)
        handler = _handler(listed)
        handler.initialize(context)
        edited = unpacking.settings_were_edited(folder, listed)
        handler.model.description["archive"] |= {
            "handlers": code,
            "settings": "edited after packaging, as was allowed" if edited else "as packaged",
        }
        logger.info("%s: handlers: %s; settings: %s", path, code, "edited" if edited else "as packaged")
        return Model(handler, context, resources.pop_all())


def _refuse_other_digest(listed: Contents, digest: str | None, path: Path) -> None:
    if digest is not None and digest != listed.digest:
        raise ArchiveError(f"{path} has the content digest {listed.digest}, and {digest} is wanted")


def _config(folder: Path, chosen: Mapping[str, object], workers: int) -> dict[str, Any]:
    """The content of model-config.yaml, with the chosen keys in its section `handler`; None is no choice."""
    try:
        config = yaml.safe_load((folder / contents.CONFIG).read_text(encoding="utf-8"))
        section = dict(config.get("handler") or {})
    except (yaml.YAMLError, UnicodeError, AttributeError, TypeError, ValueError) as error:
        raise ArchiveError(
            f"{contents.CONFIG} of the archive cannot be read: {load_errors.one_line(error)}"
        ) from None
    section |= {key: value for key, value in chosen.items() if value is not None}
    return {**config, "handler": section, "maxWorkers": workers}


def _place(device: str | torch.device | None, section: dict[str, Any]) -> int | None:
    """Return the index of the GPU, None for the CPU; a device that was asked for goes into the section.

    Raises ValueError.
    """
    if device is not None:
        try:
            wanted = torch.device(device)
        except RuntimeError:
            wanted = torch.device("meta")
        if wanted.type not in ("cpu", "cuda"):
            raise ValueError(f'device is {str(device)!r}; wanted: "cpu", "cuda", or "cuda:" and the index of a GPU')
        section["device"] = wanted.type
        if wanted.index is not None and wanted.type == "cuda":
            return _existing(wanted.index)
    if section.get("device") == "cpu" or not torch.cuda.is_available():
        return None
    return torch.cuda.current_device()


def _existing(index: int) -> int:
    if torch.cuda.is_available() and index >= torch.cuda.device_count():
        raise ValueError(f"device is cuda:{index}, and PyTorch sees {torch.cuda.device_count()} GPUs, from cuda:0 on")
    return index


def _handler(listed: Contents) -> Any:
    """A new object of the handler's class, of the handlers that run here."""
    module = importlib.import_module(code_versions.entry_module(listed.kind))
    return getattr(module, contents.ENTRIES[listed.kind][1])()
