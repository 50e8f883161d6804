"""Start the Triton server that the wheel of nvidia-pytriton brings, on a model repository.

Run it in an environment with that wheel: python -m triton_host.wheel_server REPOSITORY --http-port 8000. It has the
Python backend alone; NVIDIA's container has the others.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
import sysconfig
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", type=Path)
    parser.add_argument("--http-port", type=int, default=8000)
    chosen, others = parser.parse_known_args()
    package = _package()
    backends = _backends(package)
    libraries = [sysconfig.get_config_var("LIBDIR"), str(package.parent / "nvidia_pytriton.libs")]
    # Triton's Python stub loads the first libpython that it finds, and must find the one of this interpreter.
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [*libraries, os.environ.get("LD_LIBRARY_PATH")]))
    # The stub runs the python3 of the PATH, with its packages; it heeds no PYTHONPATH.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    server = str(package / "tritonserver" / "bin" / "tritonserver")
    arguments = [
        f"--model-repository={chosen.repository.resolve()}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        f"--http-port={chosen.http_port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        *others,
    ]
    os.execv(server, [server, *arguments])  # noqa: S606 - this process becomes the server


def _package() -> Path:
    """The folder of the package pytriton. It is not imported: it would start threads of its own."""
    found = importlib.metadata.distribution("nvidia-pytriton").locate_file("pytriton")
    return Path(str(found))


def _backends(package: Path) -> Path:
    """The folder of the backends. The Python backend gets the wheel's stub for this interpreter's version."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    backends = package / "tritonserver" / "backends"
    if not (backends / "python" / stub.name).exists():
        shutil.copy2(stub, backends / "python" / stub.name)
    return backends


if __name__ == "__main__":
    main()
