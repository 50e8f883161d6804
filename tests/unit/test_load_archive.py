"""load_archive on whole archives of the trained models: Python values, HTTP requests, what is refused at load."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import handlers
from handlers import HttpRequest, Model, RequestError, load_archive
from handlers.hosts import code_versions
from handlers.hosts.code_versions import OtherVersionError
from handlers.hosts.contents import ArchiveError
from handlers.hosts.messages import routed
from handlers.hosts.model import ModelClosedError, ModelLostError
from handlers.hosts.unpacking import unpack
from handlers.load_errors import LoadError
from tests.made_archives import model_files, write_mar

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "archive" / "digits" / "samples"
SEVEN = SAMPLES / "seven.png"
PREPROCESS = {"size": 32, "resize": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
HANDLER = {"precision": "fp32", "engine": "torch_eager", "device": "cpu", "cpuThreads": 1}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def digits_mar(digits_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    section = {**HANDLER, "preprocess": PREPROCESS, "topK": 3, "maxInputs": 8}
    config = {"batchSize": 4, "maxBatchDelay": 20, "handler": section}
    files = model_files(digits_folder, "image-classifier", config)
    return write_mar(tmp_path_factory.mktemp("mars") / "digits.mar", files)


@pytest.fixture(scope="module")
def model(digits_mar: Path) -> Iterator[Model]:
    with load_archive(digits_mar) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def sentences(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    config = {"handler": {**HANDLER, "maxTokens": 32, "pooling": {"modes": ["mean"], "normalize": True}}}
    files = model_files(minilm_folder, "text-encoder", config)
    with load_archive(write_mar(tmp_path_factory.mktemp("mars") / "sentences.mar", files, "text-encoder")) as loaded:
        yield loaded


def over_http(model: Model, body: bytes, headers: dict[str, str] | None = None) -> Any:
    answer = model.answer(HttpRequest(body=body, headers=headers or {}))
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def test_an_image_in_every_form_has_the_answer_of_http(model: Model) -> None:
    pixels = np.asarray(Image.open(SEVEN).convert("RGB").resize((32, 32)))
    forms = [SEVEN, str(SEVEN), SEVEN.read_bytes(), bytearray(SEVEN.read_bytes()), Image.open(SEVEN)]
    wanted = over_http(model, SEVEN.read_bytes(), {"X-Top-K": "2"})
    assert [model.predict([form], top_k=2) for form in forms] == [[wanted]] * 5
    assert [answer[0]["label"] for answer in model.predict([*forms, pixels])] == ["7"] * 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_modes_of_pil_images(model: Model, mode: str) -> None:
    image = Image.open(SEVEN).convert("L").convert("I;16") if mode == "I;16" else Image.open(SEVEN).convert(mode)
    assert len(model.predict([image])[0]) == 3


def test_a_pil_image_is_turned_as_its_file_is(model: Model, tmp_path: Path) -> None:
    image = Image.open(SEVEN).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    (from_file,), (from_image,) = (
        model.predict([x]) for x in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png"))
    )
    assert from_file == from_image != model.predict([SEVEN])[0]


def test_an_array_of_several_images_has_a_list_of_answers(model: Model) -> None:
    array = np.zeros((2, 3, 32, 32), np.float32)
    two, one, single = model.predict([array, array[:1], array[0]])
    assert two == [single, single]
    assert one == [single]


def test_more_inputs_than_a_request_may_bring_are_answered(model: Model) -> None:
    files = sorted(SAMPLES.iterdir())
    answers = model.predict([*files, *files], top_k=1)
    assert len(answers) == len(files) * 2 > 8
    alone = [model.predict([path])[0][0]["label"] for path in files]
    assert [answer[0]["label"] for answer in answers] == [*alone, *alone]


def test_a_bad_input_hurts_no_neighbour(model: Model) -> None:
    inputs = [SEVEN, b"junk", 7, "no such file", np.zeros(3), Image.new("F", (9, 9)), {"b64": 1}, None, [], SEVEN]
    answers = model.predict(inputs, return_errors=True)
    assert answers[0] == answers[-1] == model.predict([SEVEN])[0]
    assert all(isinstance(answer, RequestError) and answer.status < 500 for answer in answers[1:-1])
    with pytest.raises(RequestError, match=r"^input 2 of 10: 4 bytes came"):
        model.predict(inputs)
    assert model.predict([]) == []


@pytest.mark.parametrize("inputs", ["text", b"bytes", {"a": 1}, np.zeros(3), None, 7])
def test_one_input_instead_of_a_list_is_an_error(model: Model, inputs: Any) -> None:
    with pytest.raises(TypeError, match="predict takes a list"):
        model.predict(inputs)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": 11}, {"top": 1}, {"encoding_format": "base64"}])
def test_a_wrong_option_is_refused(model: Model, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        model.predict([SEVEN], **options)


def test_texts_in_every_form(sentences: Model, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A text.", encoding="utf-8")
    ids = [101, 1037, 3793, 1012, 102]
    answers = sentences.predict(["A text.", b"A text.", tmp_path / "text.txt", ids, tuple(ids), np.array(ids)])
    assert all(isinstance(answer, np.ndarray) and answer.dtype == np.float32 for answer in answers)
    alone = sentences.predict(["A text."])[0]
    np.testing.assert_array_equal(alone, np.array(over_http(sentences, b'"A text."', JSON), np.float32))
    for answer in answers:
        np.testing.assert_allclose(answer, alone, atol=1e-6)


def test_texts_that_are_refused(sentences: Model) -> None:
    inputs: list[object] = ["", "word " * 40, b"\xff", ("a", "b"), [], [True], [1.5], 7, "\ud800", "fine"]
    *refused, fine = sentences.predict(inputs, return_errors=True)
    assert all(isinstance(answer, RequestError) for answer in refused)
    assert len(fine) == 384
    assert len(sentences.predict(["word " * 40], truncate=True)[0]) == 384


def test_a_time_limit_counts_from_the_arrival_that_the_host_tells(model: Model) -> None:
    limit, body = {"X-Timeout-Ms": "1000"}, SEVEN.read_bytes()
    late = HttpRequest(headers=limit, body=body, arrived=time.time() - 2)
    answers = model.answer_batch(
        [late, HttpRequest(headers={"X-Timeout-Ms": "60000"}, body=body, arrived=late.arrived)]
    )
    assert [answer.status for answer in answers] == [504, 200]


def test_one_batch_answers_good_and_bad_requests_in_order(model: Model) -> None:
    good = HttpRequest(body=SEVEN.read_bytes())
    answers = model.answer_batch([good, HttpRequest(body=b"junk"), HttpRequest("no/such/path", body=b"x"), good])
    assert [answer.status for answer in answers] == [200, 415, 404, 200]
    assert answers[0] == answers[3]
    assert json.loads(answers[0].body)[0]["label"] == "7"
    assert model.answer_batch([]) == []


def test_calls_of_both_kinds_go_into_one_run(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    handler: Any = model._handler
    predict = handler.predict

    def watched(inputs: Any) -> Any:
        sizes.append(len(inputs))
        return predict(inputs)

    monkeypatch.setattr(handler, "predict", watched)
    calls: list[Any] = [HttpRequest(body=SEVEN.read_bytes()), *model.calls_of([SEVEN, b"junk", SEVEN], {})]
    response, values = cast("tuple[Any, Any]", model.run(calls))
    assert sizes == [3]
    assert json.loads(response.body) == values[0] == values[2]


def test_requests_that_arrive_as_no_client_sends_them(model: Model) -> None:
    strange = [
        HttpRequest(headers=[("Accept", "text/html"), ("accept", "application/json")], body=SEVEN.read_bytes()),
        HttpRequest(headers={"url_path": "v1/embeddings"}, body=SEVEN.read_bytes()),
        HttpRequest(headers={"explain": "True"}, body=SEVEN.read_bytes()),
        HttpRequest(headers={"describe": "True"}),
        HttpRequest(headers={"content-length": "3"}, body=SEVEN.read_bytes()),
        HttpRequest(headers={"ts_request_sequence_id": "1"}, body=SEVEN.read_bytes()),
        HttpRequest(headers={"body": "x", "content-type": "multipart/form-data"}, body=b"x"),
        HttpRequest(body=b"\xff" * 100, headers={"content-type": "application/x-www-form-urlencoded"}),
        HttpRequest(query="top_k=%FF&model_name=%00", door="invocations", body=SEVEN.read_bytes()),
    ]
    assert [answer.status for answer in model.answer_batch(strange)] == [200, 400, 404, 400, 200, 200, 415, 415, 400]


def form(*names: str, coding: str = "") -> HttpRequest:
    body = b"".join(
        f'--B\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n{coding}\r\n'.encode()
        + SEVEN.read_bytes()
        + b"\r\n"
        for name in names
    )
    return HttpRequest(headers={"Content-Type": 'multipart/form-data; boundary="B"'}, body=body + b"--B--\r\n")


def test_forms(model: Model) -> None:
    pytest.importorskip("multipart", reason="needs the extra hosts")
    assert model.answer(form("a", "b")).status == 200
    doubled = model.answer(form("a", "a"))
    assert (doubled.status, json.loads(doubled.body)["type"]) == (400, "InvalidInput")
    assert model.answer(form("a", coding="Content-Transfer-Encoding: base64\r\n")).status == 415
    cut = form("a")
    assert model.answer(HttpRequest(headers=cut.headers, body=cut.body[:-20])).status == 400
    assert model.answer(HttpRequest(headers=cut.headers)).status == 400
    assert model.answer(form()).status == 400


def test_without_the_reader_of_forms_a_form_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "multipart", None)
    answer = model.answer(form("a"))
    assert (answer.status, "not installed" in json.loads(answer.body)["message"]) == (415, True)


@pytest.mark.parametrize(
    ("target", "model_name", "version", "path", "door"),
    [
        ("/predictions/a", "a", "", "", "predictions"),
        ("/predictions/a%20b/1.0/", "a b", "1.0", "", "predictions"),
        ("/predictions/a/1.0/v1/embeddings?x=1", "a", "1.0", "v1/embeddings", "predictions"),
        ("/explanations/a", "a", "", "", "explanations"),
        ("/v1/models/a:predict", "a", "", "", "kserve"),
        ("/v1/models/a:explain", "a", "", "", "kserve-explain"),
        ("/v2/models/a/infer", "a", "", "", "kserve"),
        ("/v2/models/a/versions/2/infer", "a", "2", "", "kserve"),
        ("/v2/models/a/ready", "a", "", "v2/models/a/ready", "predictions"),
        ("/v2/health/live", "", "", "v2/health/live", "predictions"),
        ("/v2", "", "", "v2", "predictions"),
        ("/invocations?x=1&model_name=a&model_version=2", "a", "2", "", "invocations"),
    ],
)
def test_paths(target: str, model_name: str, version: str, path: str, door: str) -> None:
    found = routed(target)
    assert found is not None
    assert (found.model, found.version, found.request.path, found.request.door) == (model_name, version, path, door)


@pytest.mark.parametrize(
    "target", ["/", "", "/predictions", "/predictions/", "/v1/models/a", "/ping", "/v3", "//", "/models/a"]
)
def test_paths_of_nobody(target: str) -> None:
    assert routed(target) is None


def test_the_description_says_how_the_model_was_checked(model: Model) -> None:
    told = model.describe()
    assert (told["name"], told["version"]) == ("digits", "1.0")
    assert told["archive"]["handlers"] == "those that the archive was packaged and tested with"
    assert told["archive"]["settings"] == "as packaged"
    assert (model.batch_size, model.max_delay_s) == (4, 0.02)
    json.dumps(told)


def test_what_the_caller_chooses(digits_mar: Path) -> None:
    with load_archive(digits_mar, name="other", precision="bf16", settings={"topK": 1}, device="cpu") as loaded:
        assert loaded.describe()["precision"]["name"] == "bf16"
        assert loaded.answer(HttpRequest("v2/models/other/ready")).status == 200
        assert len(loaded.predict([SEVEN])[0]) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"device": "tpu"}, {"device": "meta"}, {"device": "cuda:x"}, {"precision": "fp7"}, {"engine": "none"},
        {"settings": {"colour": 1}}, {"digest": "sha256:0"},
    ],
)  # fmt: skip
def test_a_wrong_choice_is_refused(digits_mar: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        load_archive(digits_mar, **options)


def test_a_known_digest_is_compared(digits_mar: Path, model: Model) -> None:
    digest = model.describe()["archive"]["digest"]
    load_archive(digits_mar, digest=digest).close()
    with pytest.raises(ArchiveError, match="is wanted"):
        load_archive(digits_mar, digest=digest[:-1])


def test_other_handlers_are_refused_unless_that_is_said(digits_folder: Path, tmp_path: Path) -> None:
    files = model_files(digits_folder, "image-classifier", {"handler": {**HANDLER, "preprocess": PREPROCESS}})
    files["handlers/loading.py"] += b"\nraise SystemExit('this must never run')\n"
    files["handlers/new.py"] = b"raise SystemExit('this must never run')\n"
    del files["handlers/cpus.py"]
    mar = write_mar(tmp_path / "digits.mar", files)
    wanted = "3 files differ: changed handlers/loading.py, with handlers/cpus.py, without handlers/new.py"
    with pytest.raises(OtherVersionError, match=wanted):
        load_archive(mar)
    with load_archive(mar, allow_other_version=True) as loaded:
        assert "3 files differ" in loaded.describe()["archive"]["handlers"]
        assert loaded.predict([SEVEN])[0][0]["label"] == "7"


def test_in_a_process_of_its_own_the_archives_handlers_run(digits_mar: Path, tmp_path: Path) -> None:
    """Nothing but the unpacked archive is on the path; its entry lies beside its package."""
    unpack(digits_mar, tmp_path / "there")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import handlers; from handlers import load_archive\n"
        "with load_archive(sys.argv[1]) as model:\n"
        "    print(handlers.__file__, model.predict([sys.argv[2]])[0][0]['label'])\n"
    )
    command = [sys.executable, "-Ic", script, str(tmp_path / "there"), str(SEVEN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.split() == [str(tmp_path / "there" / "handlers" / "__init__.py"), "7"], done.stderr


def test_the_code_that_an_archive_carries_is_that_of_the_package() -> None:
    """What packaging leaves out and what is compared at load are the same."""
    names = {
        path.relative_to(code_versions.PACKAGE).as_posix() for path in code_versions._sources(code_versions.PACKAGE)
    }
    assert {"loading.py", "metrics.yaml", "py.typed", "hosts/model.py"} <= names
    assert not any("pycache" in name or name.endswith(".pyc") for name in names)
    assert "image_classifier.py" not in names


def test_a_closed_model_says_so_and_leaves_nothing(
    digits_mar: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = load_archive(digits_mar)
    assert len(list(tmp_path.iterdir())) == 1
    healthy = [model.is_healthy]
    model.close()
    model.close()
    assert [*healthy, model.is_healthy] == [True, False]
    assert not list(tmp_path.iterdir())
    with pytest.raises(ModelClosedError):
        model.predict([SEVEN])
    monkeypatch.undo()


def test_an_archive_that_does_not_load_leaves_nothing(
    digits_mar: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ValueError):
        load_archive(digits_mar, engine="none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, ImportError, MemoryError, OSError, ValueError])
def test_what_fails_beside_the_handler_is_told_in_one_line(
    error: type[Exception], digits_mar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host prints ValueError and OSError without a traceback; CUDA's first call raises RuntimeError."""

    def fail() -> None:
        raise error("CUDA error: out of memory\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    with pytest.raises(LoadError, match=rf"^{error.__name__}: CUDA error: out of memory CUDA kernel") as raised:
        load_archive(digits_mar, device="cuda")
    assert "\n" not in str(raised.value)


def test_a_lost_gpu_is_an_error_and_no_exit(digits_mar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a worker serving.isolation ends the process; here it is the caller's."""
    with load_archive(digits_mar) as loaded:

        def lost(requests: object, steps: object) -> int:
            raise SystemExit(70)

        monkeypatch.setattr(loaded._handler, "complete", lost)
        for _ in range(2):
            with pytest.raises(ModelLostError, match="end this process"):
                loaded.predict([SEVEN])
        assert not loaded.is_healthy


def test_a_host_gets_the_figures_of_batches(digits_mar: Path) -> None:
    class Metric:
        def __init__(self) -> None:
            self.values: list[float] = []

        def add_or_update(self, value: float, dimension_values: Any) -> None:
            assert list(dimension_values)[:3] == ["digits", "1.0", "Model"]
            self.values.append(value)

    class Metrics:
        def __init__(self) -> None:
            self.found: dict[str, Metric] = {}

        def metric(self, name: str, kind: str) -> Metric | None:
            return self.found.setdefault(name, Metric()) if kind == "COUNTER" else None

    metrics, before = Metrics(), set(threading.enumerate())
    with load_archive(digits_mar, metrics=metrics) as loaded:
        loaded.answer_batch([HttpRequest(body=SEVEN.read_bytes())] * 3)
    assert sum(metrics.found["BatchSize_sum"].values) == 3
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


def test_importing_handlers_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'PIL', 'ts'}"
    code = f"import sys, handlers, handlers.hosts.contents; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    for name in handlers._OFFERED:
        assert getattr(handlers, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        handlers.other  # noqa: B018


def test_the_runner_never_imports_torchserve(digits_mar: Path) -> None:
    code = (
        "import sys; sys.modules['ts'] = None\n"
        "from handlers import load_archive\n"
        "with load_archive(sys.argv[1]) as model: print(model.predict([sys.argv[2]])[0][0]['label'])\n"
    )
    command = [sys.executable, "-c", code, str(digits_mar), str(SEVEN)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == "7", done.stderr
