"""Everything a TorchServe worker runs, and `load_archive`, which runs it elsewhere. See the tree's README."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from handlers.hosts.async_model import AsyncModel as AsyncModel
    from handlers.hosts.async_model import async_load as async_load
    from handlers.hosts.contents import ArchiveError as ArchiveError
    from handlers.hosts.loading import load_archive as load_archive
    from handlers.hosts.messages import HttpRequest as HttpRequest
    from handlers.hosts.messages import HttpResponse as HttpResponse
    from handlers.hosts.model import Model as Model
    from handlers.protocol.errors import RequestError as RequestError

__all__ = [
    "ArchiveError",
    "AsyncModel",
    "HttpRequest",
    "HttpResponse",
    "Model",
    "RequestError",
    "async_load",
    "load_archive",
]

# How transformers may read a folder: nothing is fetched, and code that a checkpoint brings with it is never run.
LOCAL = {"local_files_only": True, "trust_remote_code": False}

# For whoever runs an archive without TorchServe. Each is imported when it is first asked for: `import handlers` stays
# quick, and packaging and the scripts read parts of this package without PyTorch.
_OFFERED = {
    "ArchiveError": "handlers.hosts.contents",
    "AsyncModel": "handlers.hosts.async_model",
    "HttpRequest": "handlers.hosts.messages",
    "HttpResponse": "handlers.hosts.messages",
    "Model": "handlers.hosts.model",
    "RequestError": "handlers.protocol.errors",
    "async_load": "handlers.hosts.async_model",
    "load_archive": "handlers.hosts.loading",
}


def __getattr__(name: str) -> Any:
    if name in _OFFERED:
        return getattr(import_module(_OFFERED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
