"""What scripts/serve-ray refuses before Ray starts, and what it says at the start; without Ray."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import archive_paths
import pytest
import request_examples
import serve_ray
import yaml
from ray_host import checks, grpc_address, local, next_steps
from ray_host.next_steps import Served
from server.addresses import ALL
from server.paths import ROOT
from server.ports import free_ports

from handlers.hosts.contents import CONFIG
from tests.made_archives import code_files, write_mar


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets a line per start of Ray. Signals stay as they are."""
    started: list[str] = []
    monkeypatch.setattr(signal, "signal", lambda *args: None)

    def start(*args: object, **options: object) -> str:
        started.append("Ray")
        return "/logs"

    monkeypatch.setattr(local, "start", start)
    monkeypatch.setattr(local, "stop", lambda: None)
    monkeypatch.setattr(local, "clear_left", lambda: None)  # what others of this machine have left is theirs
    monkeypatch.setenv("PYTHONPATH", "")
    return started


def mar(folder: Path, name: str = "a", kind: str = "image-classifier", task: str = "", **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    config = yaml.safe_dump({"handler": {"task": task}}).encode()
    named = {name.replace("_json", ".json"): data for name, data in files.items()}
    return write_mar(folder / f"{name}.mar", {**code_files(kind), CONFIG: config, **named}, kind)


def refused(capsys: pytest.CaptureFixture[str], *words: object, status: int = 2) -> str:
    """What is printed for a command line that is refused, in one line."""
    (port,) = free_ports(1)
    given = [str(word) for word in words]
    try:
        found = serve_ray.main(given if "--port" in given else ["--port", str(port), *given])
    except SystemExit as ended:
        found = int(str(ended.code))
    assert found == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    return printed.err


def test_equal_ports_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: list[str]
) -> None:
    told = refused(capsys, "--port", "18100", "--grpc-port", "18100", mar(tmp_path))
    assert told == "scripts/serve-ray: error: --port and --grpc-port are both 18100; wanted: two different ports\n"
    assert nothing_starts == []


def test_one_archive_twice_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: list[str]
) -> None:
    file = mar(tmp_path)
    assert f"{file} is named twice; leave one out, or give it another name" in refused(capsys, file, file)
    assert "are both the model 'b' of version 1.0" in refused(capsys, f"b={file}", mar(tmp_path, "b"))
    assert "are both the model 'a' of version 1.0" in refused(capsys, file, mar(tmp_path / "other"))
    config = tmp_path / "file.yaml"
    models = [{"archive": str(file)}, {"archive": str(mar(tmp_path / "other"))}]
    config.write_text(yaml.safe_dump({"applications": [{"args": {"models": models}}]}), encoding="utf-8")
    assert "(in a file: the key `name`)" in refused(capsys, "--config", config)
    assert nothing_starts == []


def test_one_archive_under_two_names_is_served(tmp_path: Path, nothing_starts: list[str]) -> None:
    chosen = serve_ray.parser().parse_args([str(mar(tmp_path)), f"b={mar(tmp_path)}"])
    _, options = serve_ray.wanted(chosen)
    assert [name for name, _ in checks.heads(options)] == ["a", "b"]


def test_a_bare_name_is_looked_for_in_the_model_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(archive_paths, "MODEL_STORE", tmp_path)
    file = mar(tmp_path, "mine")
    args = serve_ray.args_of(serve_ray.parser().parse_args(["mine.mar", "new=mine.mar"]))
    assert [(model.get("name"), model["archive"]) for model in args["models"]] == [
        (None, str(file)),
        ("new", str(file)),
    ]
    told = refused(capsys, "none.mar")
    assert "none.mar does not exist; scripts/package makes archives; model_store/ has mine.mar" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a b={file}"], "'a b' cannot name a model"),
        (["--other-version", "--digest", f"sha256:{'0' * 64}", "{file}"], "is wanted"),
        (["--host", "203.0.113.9", "{file}"], "this machine has no address 203.0.113.9"),
        (["--host", "", "{file}"], "no address is named"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: list[str]
) -> None:
    file = mar(tmp_path)
    status = 2 if "cannot name" in told else 1
    printed = refused(capsys, *(word.format(file=file) for word in words), status=status)
    assert told in printed
    assert "is taken" not in printed
    assert nothing_starts == []


def test_an_archive_of_other_handlers_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: list[str]
) -> None:
    files = {**code_files("image-classifier"), "handlers/more.py": b"", CONFIG: b"{}"}
    old = write_mar(tmp_path / "old.mar", files)
    assert "packaged with other handlers than those that run here" in refused(capsys, old, status=1)
    assert nothing_starts == []


def test_a_taken_port_of_either_protocol_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        taken = held.getsockname()[1]
        for option in ("--port", "--grpc-port"):
            told = refused(capsys, option, taken, mar(tmp_path), status=1)
            assert f"port {taken} of 127.0.0.1 is taken" in told
            assert f"choose another one with {option}" in told
    assert nothing_starts == []


@pytest.mark.parametrize(("host", "bound"), [("10.0.0.7", "10.0.0.7:9000"), ("::1", "[::1]:9000")])
def test_rays_grpc_servers_listen_where_they_shall(host: str, bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve 2.60 gives the address [::]:PORT to this function of its own."""
    asked: list[str] = []
    default: Any = ModuleType("default_impl")
    default.add_grpc_address = lambda server, address: asked.append(address)
    private: Any = ModuleType("ray.serve._private")
    private.default_impl = default
    for name in ("ray", "ray.serve"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, private.__name__, private)
    monkeypatch.setenv(grpc_address.VARIABLE, host)
    grpc_address.bind()
    default.add_grpc_address(None, "[::]:9000")
    assert asked == [bound]
    del default.add_grpc_address
    with pytest.raises(AttributeError):  # the process does not start, and so does not listen everywhere
        grpc_address.bind()


@pytest.mark.parametrize("words", [["--gpus", "2"], ["--gpus", "nan"], ["--batch-delay-ms", "-1"], ["--digest", "x"]])
def test_a_wrong_number_is_no_ones_traceback(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        serve_ray.main([*words, "a.mar"])
    assert ended.value.code == 2
    assert f"argument {words[0]}: '{words[1]}'; wanted: " in capsys.readouterr().err


def commands(text: str) -> list[list[str]]:
    """The words of each curl that asks a model."""
    return [shlex.split(line) for line in text.splitlines() if "/predictions/" in line]


def test_the_next_steps_ask_the_models_that_are_served(tmp_path: Path) -> None:
    tokens = json.dumps({"mask_token": {"content": "<mask>"}}).encode()
    models = [
        Served("pictures", "1.0", mar(tmp_path, "pictures")),
        Served("texts", "1.0", mar(tmp_path, "texts", "text-encoder", "embeddings")),
        Served("texts", "2.0", mar(tmp_path, "texts2", "text-encoder", "embeddings")),
        Served("gaps", "1.0", mar(tmp_path, "gaps", "text-encoder", "fill-mask", tokenizer_config_json=tokens)),
    ]
    told = next_steps.text(models, "10.0.0.7", 9080, 9081)
    pictures, texts, newer, gaps = commands(told)
    assert pictures == ["curl", "-T", request_examples.PICTURE, "http://10.0.0.7:9080/predictions/pictures"]
    assert (ROOT / request_examples.PICTURE).is_file()
    json_header = ["-H", "Content-Type: application/json", "-d"]
    assert texts[:-1] == ["curl", *json_header, '["one sentence", "and another"]']
    assert texts[-1] == "http://10.0.0.7:9080/predictions/texts"
    assert newer[-1] == "http://10.0.0.7:9080/predictions/texts/2.0"
    assert json.loads(gaps[-2]) == ["one <mask>", "and another <mask>"]
    assert "gRPC is answered at 10.0.0.7:9081" in told
    assert "http://10.0.0.7:9080/models/pictures" in told
    assert "sentences" not in told
    assert "digits " not in told


@pytest.mark.parametrize(
    ("host", "shown"), [(ALL[0], "127.0.0.1"), (ALL[1], "[::1]"), ("::1", "[::1]"), ("localhost", "localhost")]
)
def test_the_next_steps_have_an_address_that_can_be_asked(host: str, shown: str, tmp_path: Path) -> None:
    told = next_steps.text([Served("a", "1.0", mar(tmp_path))], host, 9080)
    assert commands(told)[0][-1] == f"http://{shown}:9080/predictions/a"
    assert ("From other machines" in told) == (host in ALL)
    assert "gRPC" not in told


def test_a_start_says_what_it_does_and_ends_with_the_next_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], nothing_starts: list[str]
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(local, "run", lambda args, logs: ran.append(args))

    def pause() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(signal, "pause", pause)
    (port,) = free_ports(1)
    assert serve_ray.main(["--port", str(port), str(mar(tmp_path))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "starting Ray for a; this takes about 10 s"
    assert lines[1].startswith("Ray runs after ")
    assert lines[2].startswith("all models are ready after ")
    assert any(f"http://127.0.0.1:{port}/predictions/a" in line for line in lines)
    assert (nothing_starts, len(ran)) == (["Ray"], 1)


def test_an_archive_of_others_has_no_example(tmp_path: Path) -> None:
    (tmp_path / "x.mar").write_bytes(b"no zip")
    assert request_examples.of_archive(tmp_path / "x.mar") == ""


def test_the_examples_of_curl_are_shell(tmp_path: Path) -> None:
    """Whatever stands in an archive's tokenizer, it stays one word."""
    tokens = json.dumps({"mask_token": "it's $(touch x)"}).encode()
    file = mar(tmp_path, "gaps", "text-encoder", "fill-mask", tokenizer_config_json=tokens)
    echoed = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {request_examples.of_archive(file)}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (tmp_path / "x").exists()
    assert json.loads(echoed.stdout.splitlines()[-1])[0] == "one it's $(touch x)"
