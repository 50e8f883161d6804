"""HAProxy's own errors are whole responses, in the form of a front's errors or of gRPC's; without HAProxy."""

from __future__ import annotations

import email
import json
from pathlib import Path

import pytest
from ray_host import error_pages


def parts(page: bytes) -> tuple[str, dict[str, str], bytes]:
    """The first line, the headers and the body of a response on the wire."""
    head, _, body = page.partition(b"\r\n\r\n")
    start, _, headers = head.decode().partition("\r\n")
    return start, dict(email.message_from_string(headers).items()), body


@pytest.mark.parametrize("status", error_pages.PAGES)
def test_a_page_is_json_with_its_length(status: int) -> None:
    start, headers, body = parts(error_pages.page(*error_pages.PAGES[status]))
    told = json.loads(body)
    assert start.startswith(f"HTTP/1.1 {told['code']} ")
    assert told.keys() == {"code", "type", "message"}
    assert (headers["content-type"], headers["content-length"]) == ("application/json", str(len(body)))
    assert ("retry-after" in headers) == (told["code"] == 503)


def test_a_front_that_is_gone_is_a_503() -> None:
    assert {error_pages.PAGES[status][0] for status in (502, 503)} == {503}


@pytest.mark.parametrize("status", error_pages.GRPC)
def test_grpcs_page_is_a_status_alone(status: int) -> None:
    start, headers, body = parts(error_pages.grpc_page(*error_pages.GRPC[status]))
    assert (start, body) == ("HTTP/1.1 200 OK", b"")
    assert headers["content-type"] == "application/grpc"
    assert headers["grpc-status"] in ("4", "14")


def test_the_sections_name_files_that_are_there(tmp_path: Path) -> None:
    config = error_pages.write(tmp_path / "errors")
    lines = [line.split() for line in config.read_text().splitlines()]
    assert [words[1] for words in lines if words[0] == "http-errors"] == ["serve-ray", "serve-ray-grpc"]
    files = [Path(words[2]) for words in lines if words[0] == "errorfile"]
    assert len(files) == len(error_pages.PAGES) + len(error_pages.GRPC)
    assert all(path.is_file() for path in files)
