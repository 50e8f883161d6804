"""Whether a report says of everything that was asked for what came of it: rows, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOT_REACHED = "it was not reached: the run ended before it, or what had to come first failed"


def missing(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return entries for `skipped`: archives and peers with neither a row nor a reason.

    content: that of OUT.json. Files of earlier versions name the peers only under `peers`.
    """
    peers = content.get("settings", {}).get("peers") or content.get("peers") or ()
    archives = list(content.get("archives", {}))
    asked = [*archives, *(f"{peer}-{archive}" for archive in archives for peer in peers)]
    known = {row["target"] for row in content["rows"]}
    reasons = [item["name"] for item in content["skipped"]]
    return [
        {"name": name, "reason": NOT_REACHED}
        for name in asked
        if name not in known and not any(one == name or one.startswith(f"{name}, ") for one in reasons)
    ]
