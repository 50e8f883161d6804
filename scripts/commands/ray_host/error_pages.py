"""HAProxy's own errors in the form that all others have: `python -m ray_host.error_pages FOLDER` writes them.

HAProxy answers itself if no front does: none runs, or the one that had the request died. HAProxy says 502 or 503 for
that; a client hears 503, which says that it may try again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CONFIG = "errors.cfg"
GONE = "no process answered the request; try again later"
PAGES = {
    400: (400, "BadRequest", "this is no HTTP request that can be read"),
    404: (404, "ResourceNotFoundException", "no such path; see docs/api.md"),
    408: (408, "RequestTimeout", "the request did not come whole in time"),
    500: (500, "InternalServerError", "HAProxy could not handle the request"),
    502: (503, "FrontUnavailable", GONE),
    503: (503, "FrontUnavailable", GONE),
    504: (504, "Timeout", "no answer in time"),
}
REASONS = {
    400: "Bad Request",
    404: "Not Found",
    408: "Request Timeout",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
UNAVAILABLE, DEADLINE = 14, 4  # gRPC's status codes
GRPC = {502: (UNAVAILABLE, GONE), 503: (UNAVAILABLE, GONE), 504: (DEADLINE, "no answer in time")}


def write(folder: Path) -> Path:
    """Write the pages, and HAProxy's sections `serve-ray` and `serve-ray-grpc` of them. Returns the latter's file."""
    folder.mkdir(exist_ok=True)
    lines: list[str] = []
    for section, pages in (
        ("serve-ray", {status: page(*told) for status, told in PAGES.items()}),
        ("serve-ray-grpc", {status: grpc_page(*told) for status, told in GRPC.items()}),
    ):
        lines.append(f"http-errors {section}")
        for status, content in pages.items():
            path = folder / f"{section}-{status}.http"
            path.write_bytes(content)
            lines.append(f"    errorfile {status} {path}")
    config = folder / CONFIG
    config.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return config


def page(status: int, kind: str, message: str) -> bytes:
    """Return a response as it goes over the wire, in the form of a front's errors."""
    body = json.dumps({"code": status, "type": kind, "message": message}).encode()
    later = ["retry-after: 1"] if status == 503 else []
    headers = ["content-type: application/json", f"content-length: {len(body)}", "cache-control: no-cache", *later]
    return _wire(f"HTTP/1.1 {status} {REASONS[status]}", headers) + body


def grpc_page(code: int, message: str) -> bytes:
    """Return gRPC's response without a message: a status alone."""
    headers = ["content-type: application/grpc", f"grpc-status: {code}", f"grpc-message: {message}"]
    return _wire("HTTP/1.1 200 OK", [*headers, "content-length: 0"])


def _wire(start: str, headers: list[str]) -> bytes:
    return "\r\n".join([start, *headers, "", ""]).encode()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
