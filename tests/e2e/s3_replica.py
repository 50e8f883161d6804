"""Loads archives as a replica of Ray Serve does, without Ray: `s3_replica.py IMAGE URL DIGEST [URL DIGEST...]`.

Prints a line of JSON per archive: the label of the image, or the error.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

stand_in: Any = ModuleType("ray")
stand_in.get_runtime_context = lambda: SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1})
sys.modules["ray"] = stand_in

from ray_host.options import ModelOptions  # noqa: E402
from ray_host.replica import Replica  # noqa: E402

from handlers import ArchiveError, HttpRequest  # noqa: E402


class Loaded(Replica):
    """Ray awaits __del__, and nobody does here."""

    def __del__(self) -> None:  # type: ignore[override]
        pass


async def told(image: bytes, url: str, digest: str) -> dict[str, str]:
    replica = Loaded.__new__(Loaded)
    try:
        await Replica.__init__(replica, ModelOptions(url, digest), digest, "cpu")
    except ArchiveError as error:
        return {"error": str(error)}
    answer = await replica.answer(HttpRequest(body=image))
    await Replica.__del__(replica)
    return {"label": json.loads(answer.body)[0]["label"]}


def main() -> None:
    image = Path(sys.argv[1]).read_bytes()
    for url, digest in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        print(json.dumps(asyncio.run(told(image, url, digest))), flush=True)


if __name__ == "__main__":
    main()
