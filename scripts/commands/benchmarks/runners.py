"""An engine's name on the command line -> a loaded engine.

NAME-PRECISION: a peer of image_peers.py or text_peers.py, or a file in handlers/engines; `eager` is short for
torch_eager.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from benchmarks import image_peers, text_peers, text_plans
from handlers import engines
from handlers.engines import DTYPES, EngineSpec, LoadedEngine
from handlers.selection import candidates

ALIASES = {"eager": "torch_eager"}
COMPILE, TENSORRT, STATIC = "compile", "tensorrt", "tensorrt-static"
PEERS: Mapping[str, Mapping[str, Callable[[EngineSpec], LoadedEngine]]] = {
    "image-classifier": {
        COMPILE: image_peers.load_compiled,
        "torch2trt": image_peers.load_torch2trt,
        STATIC: image_peers.load_static,
    },
    "text-encoder": {
        "hf-eager": text_peers.load_eager,
        "hf-sdpa": text_peers.load_sdpa,
        COMPILE: text_peers.load_compiled,
        "torch-fastpath": text_peers.load_fast_path,
        TENSORRT: text_plans.load,
    },
}


def split_name(name: str) -> tuple[str, str]:
    """ "eager-fp16" -> ("eager", "fp16"). Raises ValueError where that is not its shape."""
    engine, _, precision = name.rpartition("-")
    if not engine or precision not in DTYPES:
        raise ValueError(f"{name!r}; wanted: ENGINE-PRECISION, the precision one of {', '.join(DTYPES)}")
    return engine, precision


def check_names(names: Iterable[str], kind: str) -> None:
    """Raises ValueError for a name of no engine, before a minute is spent on the others."""
    known = {*engines.names(kind), *PEERS[kind], *ALIASES}
    for name in names:
        if split_name(name)[0] not in known:
            raise ValueError(f"no engine {name!r}; known: {', '.join(sorted(known))}, each with a precision behind")


def load(name: str, spec: EngineSpec) -> LoadedEngine:
    """The engine, in the name's precision instead of the spec's.

    Raises ValueError with the reason if it cannot run the spec here.
    """
    engine, precision = split_name(name)
    spec = dataclasses.replace(spec, precision=precision)
    peers = PEERS[spec.kind]
    if engine in peers:
        return peers[engine](spec)
    file = ALIASES.get(engine, engine)
    candidates.choose(file, spec)  # raises ValueError if it cannot run here
    return engines.load(file, spec)
