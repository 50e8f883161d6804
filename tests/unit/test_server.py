"""What the scripts know of a TorchServe, against small servers and logs of the test's own: no TorchServe."""

from __future__ import annotations

import argparse
import fcntl
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from server import config, ports
from server.client import Client
from server.errors import ServerError
from server.http import Answer, request
from server.logs import Logs, load_errors, read_from
from server.options import explained
from server.paths import CONFIG
from server.process import check_folder_free


@dataclass
class Seen:
    """What the test's server answers, and what it got."""

    url: str = ""
    status: int = 200
    answer: bytes = b"[]"
    wait_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@pytest.fixture
def seen() -> Iterator[Seen]:
    found = Seen()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            found.headers = dict(self.headers)
            found.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(found.wait_s)
            self.send_response(found.status)
            self.send_header("Content-Length", str(len(found.answer)))
            self.send_header("X-Shape", "2,3")
            self.end_headers()
            self.wfile.write(found.answer)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    found.url = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield found
    running.shutdown()
    running.server_close()
    thread.join()


def test_an_error_status_is_an_answer(seen: Seen) -> None:
    seen.status, seen.answer = 503, b'{"code": 503}'
    answer = request("POST", seen.url, b"body", {"X-Top-K": "3"})
    assert (answer.status, answer.json(), answer.headers["x-shape"]) == (503, {"code": 503}, "2,3")
    assert (seen.body, seen.headers["X-Top-K"]) == (b"body", "3")


def test_a_request_carries_nothing_that_changes_the_answer(seen: Seen) -> None:
    request("POST", seen.url, b"body", {"X-Name": "ä"})
    assert seen.headers["Content-Type"] == "application/octet-stream"  # without one, TorchServe reads nothing
    assert seen.headers["Accept-Encoding"] == "identity"
    assert seen.headers["X-Name"] == "ä"
    request("POST", seen.url, b"body", {"content-type": "text/plain"})
    assert [value for key, value in seen.headers.items() if key.lower() == "content-type"] == ["text/plain"]


def test_a_proxy_of_the_environment_is_not_asked(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert request("GET", seen.url).status == 200


def test_nobody_listens() -> None:
    (port,) = ports.free_ports(1)
    with pytest.raises(ConnectionError, match=rf"http://127.0.0.1:{port}/models did not answer: .*refused"):
        request("GET", f"http://127.0.0.1:{port}/models")


def test_no_answer_in_time(seen: Seen) -> None:
    seen.wait_s = 1
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.2 s"):
        request("GET", seen.url, timeout_s=0.2)


@pytest.mark.parametrize("content", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", b"no HTTP\r\n\r\n", b""])
def test_a_broken_answer(content: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(content)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(ConnectionError, match="did not answer: "):
            request("GET", f"http://127.0.0.1:{listening.getsockname()[1]}/")
        thread.join()


def test_an_address_that_is_none() -> None:
    with pytest.raises(ValueError, match="is not a valid address"):
        request("GET", "http://127.0.0.1:port/")


def test_without_a_key_file_it_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"no .*key_file.json.*--folder"):
        Client(tmp_path, {"management_address": "http://127.0.0.1:9"}).token("inference")


def test_an_expired_token_is_renewed(tmp_path: Path, seen: Seen) -> None:
    expired = {"key": "old", "expiration time": "2020-01-01T00:00:00.123456789Z"}
    keys = {"management": expired, "inference": expired, "API": {"key": "of the API"}}
    (tmp_path / "key_file.json").write_text(json.dumps(keys))
    client = Client(tmp_path, {"management_address": seen.url})
    client.token("management")
    assert seen.headers["Authorization"] == "Bearer of the API"
    seen.status = 400
    with pytest.raises(ServerError, match="could not be renewed: 400"):
        client.token("management")


def line(text: str, model: str = "digits_1.0", stream: str = "stdout", port: int = 9000) -> str:
    return f"2026-11-24T14:33:41,672 [INFO ] W-{port}-{model}-{stream} MODEL_LOG - {text}"


DIED = "Backend worker process died."
TRACEBACK = ["Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "    import x", "    ^^^^^^"]
DURING = ["", "During handling of the above exception, another exception occurred:", ""]


def log_of(*texts: str, **how: str) -> str:
    return "\n".join(line(text, **how) for text in texts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        "ValueError: PyTorch sees no GPU",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
        "handlers.engines.plans.PlanMismatch: the plan is of another GPU",
        "zipfile.BadZipFile: File is not a zip file",
        "KeyError",
    ],
)
def test_whatever_a_handler_raised_while_loading_is_found(error: str) -> None:
    for announcement in (DIED, "Failed to load model digits, exception x", "Load model digits cuda OOM, exception x"):
        log = log_of("model_name: digits, batchSize: 8", announcement, *TRACEBACK, error, "goes on")
        assert load_errors(log, "digits") == [error]


def test_a_handler_that_cannot_be_imported_is_not_hidden_by_torchserves_own_search() -> None:
    hidden, misleading = (
        "ModuleNotFoundError: No module named 'x'",
        "ModuleNotFoundError: No module named 'ts.torch_handler.a'",
    )
    log = log_of(DIED, *TRACEBACK, hidden, *DURING, *TRACEBACK, misleading)
    assert load_errors(log, "digits") == [hidden]
    assert load_errors(log_of(DIED, *TRACEBACK, misleading), "digits") == [misleading]


def test_of_a_chain_the_last_error_is_what_its_author_wanted_to_say() -> None:
    cause = ["", "The above exception was the direct cause of the following exception:", ""]
    log = log_of(DIED, *TRACEBACK, "KeyError: 'a'", *cause, *TRACEBACK, "ValueError: config.json has no a", "more")
    assert load_errors(log, "digits") == ["ValueError: config.json has no a"]


def test_a_worker_program_that_does_not_start_is_found() -> None:
    missing = "ModuleNotFoundError: No module named 'psutil'"
    assert load_errors(log_of(*TRACEBACK, missing, stream="stderr"), "digits") == [missing]


def test_failures_that_are_no_failed_load_are_left_out() -> None:
    assert (
        load_errors(log_of("an unexpected failure; the request gets 500", *TRACEBACK, "KeyError: 1"), "digits") == []
    )
    assert (
        load_errors(log_of("Exception in thread Thread-1:", *TRACEBACK, "KeyError: 1", stream="stderr"), "digits")
        == []
    )
    later = log_of(DIED, *TRACEBACK, "ValueError: a", "loaded model digits", *TRACEBACK, "KeyError: of a request")
    assert load_errors(later, "digits") == ["ValueError: a"]


def test_a_traceback_that_is_still_being_written_is_waited_for() -> None:
    assert load_errors(log_of(DIED, *TRACEBACK), "digits") == []


def test_mismatched_weights_are_named_as_pytorch_names_them() -> None:
    error = "RuntimeError: Error(s) in loading state_dict for ResNet:"
    log = log_of("Failed to load model digits, exception x", *TRACEBACK, error, "\tsize mismatch for fc: (2) and (3)")
    assert load_errors(log, "digits") == [f"{error} size mismatch for fc: (2) and (3)"]


def test_the_workers_own_end_after_a_runtime_error_is_no_reason() -> None:
    echo = [DIED, *TRACEBACK, "RuntimeError: 500 - Unknown exception"]
    log = log_of("Failed to load model digits, exception x", *TRACEBACK, "RuntimeError: size mismatch", *echo)
    assert load_errors(log, "digits") == ["RuntimeError: size mismatch"]


def test_a_worker_that_was_killed_while_it_loaded_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    server_log = tmp_path / "logs" / "ts_log.log"
    server_log.write_text("W-9000-digits_1.0 BatchAggregator - Load model failed: digits, error: Worker died.\n")
    logs = Logs(tmp_path)
    assert logs.load_error("digits") is None  # that was before
    with server_log.open("a") as stream:
        stream.write("W-9000-digits_1.0 BatchAggregator - Load model failed: digits, error: Worker died.\n")
    assert logs.load_error("digits") is None  # its own words may still come
    monkeypatch.setattr("server.logs.GRACE_S", -1.0)
    assert "its process ended" in str(logs.load_error("digits"))
    assert logs.load_error("digits2") is None
    (tmp_path / "logs" / "model_log.log").write_text(log_of(DIED, *TRACEBACK, "ValueError: its own words"))
    assert logs.load_error("digits") == logs.last_error("digits") == "ValueError: its own words"


def test_workers_that_have_stopped_are_told_from_those_that_load(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    changes = {
        "9000-digits_1.0": ["null -> WORKER_STARTED", "WORKER_STARTED -> WORKER_STOPPED"],
        "9001-digits_1.0": ["WORKER_STARTED -> WORKER_STOPPED", "WORKER_STOPPED -> WORKER_STARTED"],
        "9002-digits2_1.0": ["WORKER_STARTED -> WORKER_STOPPED"],
    }
    lines = [
        f"W-{worker} o.p.s.w.WorkerThread - W-{worker} State change {text}"
        for worker in changes
        for text in changes[worker]
    ]
    (tmp_path / "logs" / "ts_log.log").write_text("\n".join(lines))
    assert Logs(tmp_path).stopped("digits") == {"9000"}
    assert Logs(tmp_path / "nowhere").stopped("digits") == set()


def test_models_and_workers_are_told_apart() -> None:
    one = [DIED, *TRACEBACK, "ValueError: one"]
    other = [DIED, *TRACEBACK, "ValueError: other"]
    pairs = zip(one, other, strict=True)
    mixed = "\n".join(line(a, "my-one_1.0", port=9001) + "\n" + line(b, "one_b_v2.0", port=9002) for a, b in pairs)
    assert load_errors(mixed, "my-one") == ["ValueError: one"]
    assert load_errors(mixed, "one_b") == ["ValueError: other"]
    assert load_errors(mixed, "one") == load_errors(mixed, "one_b_v2") == []
    assert load_errors(log_of(*one, model="digits_2024_01"), "digits") == ["ValueError: one"]


def test_a_log_that_was_rolled_over_is_read_from_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "model_log.log"
    assert read_from(log, 0) == ""
    log.write_text("old\nnew\n")
    assert read_from(log, 4) == "new\n"
    log.write_text("few\n")
    assert read_from(log, 8) == "few\n"


def test_a_second_server_gets_ports_of_its_own(tmp_path: Path) -> None:
    (port,) = ports.free_ports(1)
    found = config.read_properties(config.config_on_port(CONFIG, tmp_path / "logs" / "c", port))
    assert found["inference_address"] == f"http://127.0.0.1:{port}"
    assert found["job_queue_size"] == config.read_properties(CONFIG)["job_queue_size"]
    used = [found[key].rpartition(":")[2] for key in (*config.ADDRESSES, *config.GRPC_PORTS)]
    assert len(set(used)) == 5


def test_a_port_that_is_taken_is_replaced_and_the_asked_one_is_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] - 1
        found = config.read_properties(config.config_on_port(CONFIG, tmp_path / "c", port))
    assert found["inference_address"] == f"http://127.0.0.1:{port}"
    assert found["management_address"] != f"http://127.0.0.1:{port + 1}"


def test_the_highest_port_has_none_above_it(tmp_path: Path) -> None:
    found = config.read_properties(config.config_on_port(CONFIG, tmp_path / "c", 65535))
    assert found["inference_address"] == "http://127.0.0.1:65535"
    assert all(int(found[key].rpartition(":")[2]) < 65535 for key in config.ADDRESSES[1:])


def test_a_port_that_is_taken_is_named_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerError, match=rf"{address}: port .* is taken.*--port 9080.*config.properties"):
            ports.check_free(address, CONFIG)


def test_a_folder_in_which_a_server_runs_is_not_free(tmp_path: Path) -> None:
    check_folder_free(tmp_path)
    (tmp_path / "logs").mkdir()
    with (tmp_path / "logs" / ".lock").open("w") as lock:
        check_folder_free(tmp_path)  # a file that a server left behind
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ServerError, match=f"another server runs in {tmp_path}"):
            check_folder_free(tmp_path)
    check_folder_free(tmp_path)


def test_a_model_that_is_not_there_comes_with_those_that_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def answer(self: Client, method: str, path: str, *_: object) -> Answer:
        if path == "/models":
            return Answer(200, {}, b'{"models": [{"modelName": "digits"}, {"modelName": "sentences"}]}')
        return Answer(404, {}, b'{"message": "Model not found: digit"}')

    monkeypatch.setattr(Client, "manage", answer)
    with pytest.raises(ServerError, match=r"/models/digit: 404 .*; registered models: digits, sentences"):
        Client(tmp_path, {}).describe("digit")


def test_if_nobody_answers_the_message_says_what_to_do(tmp_path: Path) -> None:
    chosen = argparse.Namespace(folder=tmp_path, ts_config=CONFIG)
    refused = ConnectionError("http://127.0.0.1:8081/models did not answer: refused")
    assert "start one: scripts/serve" in explained(refused, chosen)
    assert "--ts-config FILE" in explained(refused, chosen)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "serve-9080.properties").touch()
    assert f"--ts-config {tmp_path}/logs/serve-9080.properties" in explained(refused, chosen)
    assert explained(ServerError("no workers"), chosen) == "no workers"
