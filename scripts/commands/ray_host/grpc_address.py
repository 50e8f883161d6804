"""Ray Serve's gRPC servers listen where they shall, and not on all addresses of the machine.

Ray Serve 2.60 has no setting for that: `start_grpc_server` in ray/serve/_private/grpc_util.py has "[::]". Ray's own
proxy calls it, the fronts behind HAProxy do, and so does the proxy that HAProxy asks last.
"""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "SERVE_RAY_GRPC_HOST"
HOOK = {"worker_process_setup_hook": f"{__name__}.bind"}  # part of a runtime_env
ANY = "[::]:"


def bind() -> None:
    """Let this process's gRPC servers listen at the address in VARIABLE. Each of Ray's processes calls it first.

    Raises AttributeError if Ray Serve has no such function any more: then the process does not start.
    """
    host = os.environ[VARIABLE]
    from ray.serve._private import default_impl

    original = default_impl.add_grpc_address

    def add(server: Any, address: str) -> None:
        original(server, address.replace(ANY, f"{_in_brackets(host)}:", 1))

    default_impl.add_grpc_address = add


def _in_brackets(host: str) -> str:
    return f"[{host}]" if ":" in host else host
