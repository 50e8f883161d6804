"""The peers of scripts/bench_serving: packages, their form of a load, how they are started. None is installed."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_serving
import numpy as np
import own_environment
import pytest
import yaml
from server.errors import ServerError
from serving_bench import (
    answer_comparison,
    answer_forms,
    archives,
    command,
    loads,
    option_types,
    page,
    report,
    rows,
    sweep,
)
from serving_bench.archives import Archive
from serving_bench.generator import GeneratorError, Load
from serving_bench.measure import Bench, Setting
from serving_bench.peers import Start, archive_kserve, archive_triton, needs, open_inference, processes, unpack_for
from serving_bench.peers.needs import MissingPackageError, Needs
from serving_bench.plan import PEERS, Plan
from serving_bench.resource_usage import GpuMonitor
from serving_bench.stream_generator import StreamGenerator

from handlers.protocol.open_inference import envelope, outputs
from tests.made_archives import code_files, write_mar

TWO = Load("two bodies", [b"one", "drei ä".encode()], {"Content-Type": "text/plain"}, "texts")
SETTINGS = {
    "batchSize": 8,
    "maxBatchDelay": 1,
    "maxWorkers": 1,
    "handler": {"task": "classification", "maxInputs": 64},
}


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An archive without weights: nothing here loads it."""
    files = {**code_files("image-classifier"), "model-config.yaml": yaml.safe_dump(SETTINGS).encode()}
    return Archive("tiny", write_mar(tmp_path / "tiny.mar", files))


def start_of(archive: Archive, folder: Path, **more: Any) -> Start:
    return Start(
        **{
            "name": "peer-tiny",
            "archive": archive,
            "folder": folder,
            "python": Path(sys.executable),
            "load": TWO,
            "workers": 2,
            "batch_size": 4,
            "delay_ms": 7,
            "gpus": 0,
            **more,
        }
    )


# --- packages ---


def peer(wanted: Needs | None, objection: str | None = None) -> Any:
    nothing = Needs("nothing", "nothing", kinds=())
    return SimpleNamespace(NEEDS=wanted or nothing, objection=lambda archive: objection)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks import nothing of the handlers, and there is no environment in build/."""
    monkeypatch.setattr(needs, "BASE", ())
    monkeypatch.setattr(own_environment, "existing", lambda name, requirements: None)


@pytest.mark.usefixtures("quickly")
def test_all_that_is_missing_is_named_at_once_with_its_command(archive: Archive, tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    asked = {
        "here": peer(Needs("pytest", "pytest", packages=("pytest",))),
        "nowhere": peer(Needs("nowhere", "no_such_module", packages=("-c", "constraints.txt", "nowhere[all]"))),
        "apart": peer(Needs("apart", "no_other_module", requirements=file, environment="apart")),
        "not-for-it": peer(Needs("x", "no_module", packages=("x",)), "no network"),
        "simple": peer(None),
    }
    with pytest.raises(MissingPackageError) as raised:
        needs.interpreters(asked, [archive], {})
    message = str(raised.value)
    assert "nothing was started" in message
    assert "No module named 'no_such_module'" in message
    assert f"run: {sys.executable} -m pip install -c constraints.txt 'nowhere[all]'" in message
    assert "run: scripts/bench_serving --install-peers apart; it makes an environment of its own" in message
    assert f"pip install -r {file}." in message
    assert "--peer-python apart=PATH" in message
    assert "here:" not in message.replace("nowhere:", "")
    assert "not-for-it" not in message


@pytest.mark.usefixtures("quickly")
def test_interpreters_that_have_what_is_needed(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = Needs("pytest", "pytest", requirements=tmp_path / "r.txt", environment="there")
    found = needs.interpreters({"a": peer(there), "b": peer(None)}, [archive], {})
    assert found == {"a": needs.Interpreter(Path(sys.executable), {"pytest": pytest.__version__, "Python": PYTHON})}
    own = tmp_path / "python"
    own.symlink_to(sys.executable)
    monkeypatch.setattr(own_environment, "existing", lambda name, requirements: own)
    lines = [f"pytest {pytest.__version__}"]
    monkeypatch.setattr(
        needs.subprocess,  # type: ignore[attr-defined]
        "run",
        lambda command, **options: subprocess.CompletedProcess(command, 0, f"a warning\n{lines[0]}", ""),
    )
    assert needs.interpreters({"a": peer(there)}, [archive], {})["a"].path == own
    given = Path("/opt/python")
    assert needs.interpreters({"a": peer(there)}, [archive], {"a": given})["a"].path == given


PYTHON = ".".join(map(str, sys.version_info[:3]))


@pytest.mark.usefixtures("quickly")
def test_a_python_that_was_named_and_lacks_packages(archive: Archive, tmp_path: Path) -> None:
    wanted = {"a": peer(Needs("apart", "no_such_module", packages=("apart",)))}
    with pytest.raises(MissingPackageError, match="No module named 'no_such_module'") as raised:
        needs.interpreters(wanted, [archive], {"a": Path(sys.executable)})
    assert f"run: {sys.executable} -m pip install -e '.[hosts]' apart" in str(raised.value)
    with pytest.raises(MissingPackageError, match=r"cannot be run \(FileNotFoundError\)"):
        needs.interpreters(wanted, [archive], {"a": tmp_path / "none"})


def test_nothing_is_started_if_a_package_is_missing(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a server was started")

    def missing(*arguments: object) -> None:
        raise MissingPackageError("nowhere: run: pip install nowhere")

    monkeypatch.setattr(sweep, "Fleet", refuse)
    monkeypatch.setattr(command, "generators", refuse)
    monkeypatch.setattr(needs, "interpreters", missing)
    out = ["--out", str(tmp_path / "out")]
    assert bench_serving.main([str(archive.file), "--peer", "triton", *out]) == 1
    assert "error: nowhere: run: pip install nowhere" in capsys.readouterr().err
    for more, said in (
        (["--peer-python", f"ray={sys.executable}"], "names ray, which --peer does not"),
        (["--address", "http://127.0.0.1:9/x", "--peer", "ray"], "peers take the network from them"),
    ):
        archive_or_none = [] if "--address" in more else [str(archive.file)]
        assert bench_serving.main([*archive_or_none, *more, *out]) == 1
        assert said in capsys.readouterr().err


def test_environments_of_their_own_are_made_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[object] = []

    def python(name: str, requirements: Path) -> Path:
        assert requirements.is_file()
        made.append(name)
        return Path(f"/build/{name}")

    monkeypatch.setattr(own_environment, "python", python)
    assert bench_serving.main(["--install-peers", "triton,kserve,litserve,pytriton"]) == 0
    assert made == ["triton", "kserve", "litserve", "triton"]
    assert "kserve: /build/kserve" in capsys.readouterr().out
    assert bench_serving.main(["--install-peers", "stock"]) == 1
    assert f"run: {sys.executable} -m pip install captum torchvision torch==" in capsys.readouterr().err

    def fail(name: str, requirements: Path) -> Path:
        raise subprocess.CalledProcessError(2, ["pip"])

    monkeypatch.setattr(own_environment, "python", fail)
    assert bench_serving.main(["--install-peers", "ray,triton"]) == 1
    assert bench_serving.main(["--install-peers", "triton"]) == 1
    assert "pip ended with 2" in capsys.readouterr().err


def test_an_environment_that_is_there_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(own_environment, "ROOT", tmp_path)
    file = tmp_path / "requirements.txt"
    file.write_text("x==1\n")
    assert own_environment.existing("x", file) is None
    monkeypatch.setattr(own_environment, "_make", lambda folder, packages, beneath: folder.mkdir(parents=True))
    made = own_environment.python("x", file)
    assert own_environment.existing("x", file) is None  # it was not finished
    (made.parents[1] / "complete").touch()
    assert own_environment.existing("x", file) == made
    file.write_text("x==2\n")
    assert own_environment.existing("x", file) is None


@pytest.mark.parametrize("text", ["stock=/bin/sh", "nobody=/bin/sh", "triton", "triton=", "triton=/none", "triton=/"])
def test_a_wrong_python_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="wanted:"):
        option_types.peer_python(text)
    assert option_types.peer_python("triton=/bin/sh") == ("triton", Path("/bin/sh"))


def test_an_archive_that_this_project_did_not_package(tmp_path: Path) -> None:
    noop = archives.make_noop(tmp_path, "noop", 1)
    for module in PEERS.values():
        assert "not packaged by this project" in str(module.objection(noop))


# --- the load ---


def read(load: Load) -> list[envelope.Envelope]:
    """The requests as the handlers read them."""
    translated = open_inference.translated(load)
    width = int(translated.headers[open_inference.HEADER])
    assert (translated.name, translated.unit, translated.items) == (load.name, load.unit, load.items)
    return [envelope.read(json.loads(body[:width]), memoryview(body)[width:]) for body in translated.bodies]


def test_texts_in_protocol_v2() -> None:
    first, second = read(TWO)
    (tensor,) = second.tensors
    assert (tensor.name, tensor.datatype, tensor.shape, first.is_binary) == ("text", "BYTES", (1, 1), False)
    assert bytes(tensor.raw or b"")[4:].decode() == "drei ä"
    several = Load("several", [b'["a", "bc"]'], {"Content-Type": "application/json", "Accept": open_inference.RAW})
    (one,) = read(several)
    assert (one.tensors[0].shape, one.is_binary) == ((2, 1), True)
    assert bytes(one.tensors[0].raw or b"") == b"\x01\x00\x00\x00a\x02\x00\x00\x00bc"


def test_images_in_protocol_v2() -> None:
    load = loads.images(None, (50, 37))
    for sent, body in zip(read(load), load.bodies, strict=True):
        assert (sent.tensors[0].name, bytes(sent.tensors[0].raw or b"")[4:]) == ("image", body)


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        ("uint8", "pixels_uint8", (3, 8, 8, 3)),
        ("fp16", "pixels_fp16", (3, 3, 8, 8)),
        ("fp32", "pixels", (3, 3, 8, 8)),
    ],
)
def test_pixels_in_protocol_v2(kind: str, name: str, shape: tuple[int, ...]) -> None:
    load = loads.tensors(kind, 3, {"size": 8})
    tensor = read(load)[0].tensors[0]
    assert (tensor.name, tensor.shape) == (name, shape)
    assert load.bodies[0].endswith(bytes(tensor.raw or b"?"))


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({"Content-Type": "application/json"}, b'{"b64": "YQ=="}', "has no form"),
        ({"Content-Type": "application/json"}, b"[]", "has no form"),
        ({}, b"x", "without a content type"),
        ({"Content-Type": "text/plain", "X-Top-K": "1"}, b"x", "not in headers such as x-top-k"),
        ({"Content-Type": "text/plain", "Accept": "application/x-npy"}, b"x", "no answers as application/x-npy"),
    ],
)
def test_loads_without_a_form_in_protocol_v2(headers: dict[str, str], body: bytes, said: str) -> None:
    with pytest.raises(GeneratorError, match=said):
        open_inference.translated(Load("x", [body], headers))


# --- the answers ---

CLASSES = [{"label": "7", "index": 7, "probability": 0.9}, {"label": "1", "index": 1, "probability": 0.1}]
VECTORS = [np.linspace(-1, 1, 16, dtype=np.float32), np.linspace(1, 3, 16, dtype=np.float32)]


def written(task: str, answers: Sequence[Any], *, is_binary: bool) -> bytes:
    """The handlers' own answer in protocol v2."""
    made = outputs.make(task, answers, {})
    wishes = [envelope.Wish(name, is_binary) for name in made]
    return bytes(outputs.write({"model_name": "model"}, made, wishes).body)


@pytest.mark.parametrize("is_binary", [False, True])
def test_answers_in_protocol_v2_are_compared_with_the_archives_own(is_binary: bool) -> None:
    labels = written("image-classification", [CLASSES], is_binary=is_binary)
    ((first, second),) = answer_forms.parsed(labels)
    assert (first["label"], second["label"], round(first["score"], 4)) == ("7", "1", 0.9)
    assert answer_comparison.agree(labels, json.dumps(CLASSES).encode()) is True
    assert answer_comparison.agree(labels, json.dumps(CLASSES[::-1]).encode()) is False
    near = [{**CLASSES[0], "probability": 0.895}, {**CLASSES[1], "label": "2", "index": 2}]
    assert answer_comparison.difference(written("image-classification", [near], is_binary=is_binary), labels) is None
    other = written("image-classification", [CLASSES[::-1]], is_binary=is_binary)
    assert "0.1, not 0.9" in str(answer_comparison.difference(other, labels))

    vectors = written("embeddings", VECTORS, is_binary=is_binary)
    plain = json.dumps([vector.tolist() for vector in VECTORS]).encode()
    raw = b"".join(vector.tobytes() for vector in VECTORS)
    swapped = written("embeddings", VECTORS[::-1], is_binary=is_binary)
    for own in (plain, raw):
        assert answer_comparison.agree(vectors, own) is True
        assert answer_comparison.agree(swapped, own) is False
    assert answer_comparison.difference(vectors, vectors) is None
    assert "cosine" in str(answer_comparison.difference(swapped, vectors))
    answers = written("token-classification", [["x"]], is_binary=is_binary)
    assert answer_forms.parsed(answers) == [["x"]]


def test_one_wrong_vector_of_many_is_seen() -> None:
    many = [[float(place == index) for place in range(32)] for index in range(32)]
    wrong = [*many[:-1], many[0]]
    assert answer_comparison.agree(json.dumps(many).encode(), json.dumps(many).encode()) is True
    assert answer_comparison.agree(json.dumps(many).encode(), json.dumps(wrong).encode()) is False


def test_raw_answers_of_two_hosts() -> None:
    one, two = (np.linspace(start, 1, 16, dtype=np.float32).tobytes() for start in (0, -1))
    assert answer_comparison.agree(one, one) is True
    assert answer_comparison.agree(one, two) is False
    assert answer_comparison.agree(one, two[4:]) is None


def test_a_host_of_the_same_archive_has_to_answer_as_torchserve() -> None:
    assert rows.disagreements({"same_archive": True, "agrees": "8 of 8"}) == []
    assert rows.disagreements({"same_archive": True, "agrees": "7 of 8"}) == ["only 7 of 8 answers are TorchServe's"]
    assert "could not be compared" in rows.disagreements({"same_archive": True, "agrees": None})[0]
    assert rows.disagreements({"same_archive": False, "agrees": "0 of 8"}) == []
    assert rows.disagreements({"agrees": None}) == []


def test_wrong_answers_of_a_host_are_the_exit_status(tmp_path: Path) -> None:
    server = StreamGenerator(1)
    bench = Bench(server, server, GpuMonitor(), 1, 1, lambda _: None, lambda _: None)
    about: dict[str, Any] = {"conditions": {"gpu": "cpu", "commit": "x"}, "settings": {}, "archives": {}}
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(report, "table", lambda content: "")
        patched.setattr(report, "write", lambda out, content: None)
        patched.setattr(page, "write", lambda out, content: None)
        row = {"target": "triton-x", "answers_wrong": 0, "same_archive": True, "agrees": "8 of 8"}
        bench.rows.append(row)
        assert command.finish(bench, tmp_path / "out", about, False) == 0
        bench.rows.append({**row, "agrees": "7 of 8"})
        assert command.finish(bench, tmp_path / "out", about, False) == 1


# --- how they are started ---


def test_the_settings_are_those_of_the_point(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.cpus.usable", lambda: 8)
    found = yaml.safe_load((unpack_for(start_of(archive, tmp_path)) / "model-config.yaml").read_text())
    assert (found["maxWorkers"], found["batchSize"], found["maxBatchDelay"]) == (2, 4, 7)
    assert found["handler"] == {**SETTINGS["handler"], "cpuThreads": 4}  # type: ignore[dict-item]
    on_gpu = start_of(archive, tmp_path, gpus=1, workers=4)
    assert "cpuThreads" not in yaml.safe_load((unpack_for(on_gpu) / "model-config.yaml").read_text())["handler"]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is started in place of the servers."""
    found: list[list[str]] = []

    @contextlib.contextmanager
    def program(start: Start, arguments: Callable[[int], Sequence[str]], path: str, figures: object) -> Iterator[Any]:
        assert path == open_inference.PATH
        found.append(list(arguments(7000 + len(found))))
        yield SimpleNamespace(endpoint=lambda: None, metrics=lambda: {"BatchSize_sum": 2.0}, groups=dict)

    for module in (archive_kserve, archive_triton):
        monkeypatch.setattr(module, "program", program)
    return found


def test_triton_gets_the_archive_with_its_instances(
    archive: Archive, tmp_path: Path, commands: list[list[str]]
) -> None:
    with archive_triton.served(start_of(archive, tmp_path, gpus=2, workers=6)):
        pass
    ((_, module, repository, _, port),) = commands
    text = (Path(repository) / "model" / "config.pbtxt").read_text()
    assert (module, port) == ("triton_host.wheel_server", "7000")
    assert "count: 3 kind: KIND_AUTO" in text  # on each of the two GPUs
    assert "max_queue_delay_microseconds: 7000" in text
    assert re.search(r'key: "edited_settings" value { string_value: "true" }', text)
    with (
        pytest.raises(ServerError, match="6 cannot be divided by 4"),
        archive_triton.served(start_of(archive, tmp_path / "again", gpus=4, workers=6)),
    ):
        pass


def test_kserve_has_a_server_per_worker(archive: Archive, tmp_path: Path, commands: list[list[str]]) -> None:
    with archive_kserve.served(start_of(archive, tmp_path, gpus=2, workers=3)) as servers:
        assert servers.metrics() == {"BatchSize_sum": 6.0}
    assert [found[found.index("--device") + 1] for found in commands] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [found[3] for found in commands] == ["7000", "7001", "7002"]
    with archive_kserve.served(start_of(archive, tmp_path, workers=1)):
        assert "cpu" in commands[-1]


def test_figures_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = {"model_stats": [{"inference_stats": {"success": {"count": 12}}, "execution_count": 3}]}
    asked: list[str] = []

    def request(method: str, url: str) -> Any:
        asked.append(f"{method} {url}")
        text = (
            b'BatchSize_sum{ModelName="model",Level="Model"} 12.0\nBatchSize_sum{ModelName="x",Level="Model"} 9.0\n'
        )
        return SimpleNamespace(json=lambda: stats, body=text)

    for module in (archive_kserve, archive_triton):
        monkeypatch.setattr(module, "request", request)
    assert archive_triton.figures("http://h:1") == {"BatchSize_sum": 12, "BatchSize_count": 3}
    assert archive_kserve.figures("http://h:1") == {"BatchSize_sum": 12.0}
    assert asked == ["GET http://h:1/v2/models/model/stats", "GET http://h:1/metrics"]
    program: Any = processes.Program("x", "http://h:1/v2/models/model/infer", None, lambda at: {at: 1.0})  # type: ignore[arg-type]
    assert program.metrics() == {"http://h:1": 1.0}


def test_clients_that_cannot_be_divided_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = StreamGenerator(1)
    bench = Bench(generator, generator, GpuMonitor(), 1, 1, lambda _: None, lambda _: None)
    seen: list[int] = []

    def closed(subject: object, load: object, reference: object, setting: object, clients: int) -> dict[str, float]:
        seen.append(clients)
        return {"requests_per_s": 1.0}

    monkeypatch.setattr(bench, "closed", closed)
    monkeypatch.setattr(bench, "warm_up_java", lambda *arguments: None)
    subject: Any = SimpleNamespace(name="kserve-x", endpoint=lambda: SimpleNamespace(each=(1, 2)))
    plan = Plan([2], [1, 16, 3], [None], [None], [])
    sweep.points(bench, plan, subject, TWO, None, Setting(2), {})
    assert seen == [16]
    assert [item["name"] for item in bench.skipped] == ["kserve-x, clients: 1", "kserve-x, clients: 3"]
