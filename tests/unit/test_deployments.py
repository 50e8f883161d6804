"""scripts/deploy and scripts/scale against a fake TorchServe: order of steps, the way back, and what is refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from server.errors import ServerError
from server.http import Answer
from updates import archive_file, draining, memory, samples, scaling
from updates.deployment import Deployment, NotUndone, Wishes, named_requests
from updates.interrupts import Interrupted, Interrupts

OK = Answer(200, {}, b"{}")
PICTURE = Answer(200, {}, json.dumps([{"label": "7", "probability": 0.9}]).encode())


def refused(message: str) -> Answer:
    return Answer(500, {}, json.dumps({"message": message}).encode())


@dataclass
class Fake:
    """A TorchServe with a model "m". fails: how calls are answered, by their beginning. calls: that changed it."""

    folder: Path
    versions: dict[str, int] = field(default_factory=lambda: {"1.0": 1})
    default: str = "1.0"
    fails: dict[str, Answer] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    config: Mapping[str, str] = field(default_factory=dict)
    metric: str = ""

    def describe(self, model: str, version: str = "") -> dict[str, Any]:
        version = version or self.default
        workers = [
            {"id": f"{n}", "pid": hash(version) % 10**6 + n, "status": "READY"} for n in range(self.versions[version])
        ]
        return {
            "modelVersion": version,
            "modelUrl": "m.mar",
            "workers": workers,
            "jobQueueStatus": {"pendingRequests": 0},
        }

    def customized(self, model: str, version: str = "", headers: Any = None, timeout_s: Any = None) -> dict[str, Any]:
        return {"kind": "image-classifier", "worker": {"pid": self.describe(model, version)["workers"][0]["pid"]}}

    def manage(self, method: str, path: str, query: Mapping[str, Any] | None = None, *rest: Any) -> Answer:
        if path.endswith("/all"):
            return Answer(200, {}, json.dumps([self.describe("m", version) for version in self.versions]).encode())
        self.calls.append(f"{method} {path}")
        if failing := next(
            (answer for start, answer in self.fails.items() if self.calls[-1].startswith(start)), None
        ):
            return failing
        version = path.split("/")[3]
        if path.endswith("set-default"):
            self.default = version
        elif method == "DELETE":
            assert version != self.default
            del self.versions[version]
        elif query:
            self.versions[version] = int(query["min_worker"])
        return OK

    def register(self, model: str, query: Mapping[str, object], timeout_s: float | None = None) -> None:
        self.calls.append("POST")
        if "POST" in self.fails:
            raise ServerError("was not registered")
        self.versions["2.0"] = 0

    def predict(self, model: str, body: bytes, content_type: str = "", path: str = "") -> Answer:
        return self.fails.get(f"PREDICT {path or self.default}", PICTURE)

    def metrics(self) -> str:
        return self.metric


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def mar(folder: Path, version: str | None = "2.0", name: str = "new.mar") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelVersion": version}}))
    return folder / name


def made(fake: Fake, tmp_path: Path, **wishes: Any) -> Deployment:
    store = tmp_path / "store"
    store.mkdir(exist_ok=True)
    interrupts = wishes.pop("interrupts", Interrupts())
    chosen = Wishes(**{"name": "m", "file": mar(tmp_path / "elsewhere"), "store": store, **wishes})
    return Deployment(fake, chosen, print, interrupts)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "SETTLE_S", 0)
    monkeypatch.setattr(memory, "shortage", lambda *_: None)


def state(fake: Fake, tmp_path: Path) -> tuple[str, dict[str, int], list[str]]:
    return fake.default, fake.versions, sorted(path.name for path in (tmp_path / "store").iterdir())


def test_a_deploy_in_its_order(fake: Fake, tmp_path: Path) -> None:
    work = made(fake, tmp_path)
    work.plan()
    work.run()
    assert fake.calls == ["POST", "PUT /models/m/2.0", "PUT /models/m/2.0/set-default", "DELETE /models/m/1.0"]
    assert state(fake, tmp_path) == ("2.0", {"2.0": 1}, ["new.mar"])


FAILURES: list[tuple[str, Answer]] = [
    ("POST", refused("")),
    ("PUT /models/m/2.0", refused("")),
    ("PREDICT /2.0", Answer(503, {}, b"{}")),
    ("PREDICT /2.0", Answer(200, {}, json.dumps([{"label": "1", "probability": 0.9}]).encode())),
    ("PREDICT /2.0", Answer(400, {}, b"{}")),
    ("PUT /models/m/2.0/set-default", refused("")),
    ("PREDICT 2.0", Answer(500, {}, b"{}")),
]


@pytest.mark.parametrize(("call", "answer"), FAILURES)
def test_whatever_fails_all_is_as_before(fake: Fake, tmp_path: Path, call: str, answer: Answer) -> None:
    fake.fails[call] = answer
    work = made(fake, tmp_path)
    work.plan()
    with pytest.raises(ServerError):
        work.run()
    assert state(fake, tmp_path) == ("1.0", {"1.0": 1}, [])


@pytest.mark.parametrize("lines", range(1, 8))
def test_an_interruption_goes_back_until_the_old_version_is_drained(fake: Fake, tmp_path: Path, lines: int) -> None:
    interrupts, said = Interrupts(), list[str]()

    def report(line: str) -> None:
        said.append(line)
        if len(said) == lines + 1:  # the plan has one too
            interrupts.asked.set()

    work = made(fake, tmp_path, interrupts=interrupts)
    work.report = report
    work.plan()
    if lines == 7:  # what is drained is as good as replaced
        work.run()
        assert fake.default == "2.0"
        return
    with pytest.raises(Interrupted):
        work.run()
    assert state(fake, tmp_path) == ("1.0", {"1.0": 1}, [])


def test_what_cannot_be_taken_back_is_said(fake: Fake, tmp_path: Path) -> None:
    fake.fails = {"PREDICT 2.0": Answer(500, {}, b"{}"), "PUT /models/m/1.0/set-default": refused("gone")}
    work = made(fake, tmp_path)
    work.plan()
    with pytest.raises(NotUndone, match=r"left to do: .*make 1.0 the default again"):
        work.run()


def test_a_difference_is_accepted_if_it_is_meant(fake: Fake, tmp_path: Path) -> None:
    fake.fails["PREDICT /2.0"] = Answer(200, {}, json.dumps([{"label": "1", "probability": 0.9}]).encode())
    work = made(fake, tmp_path, accept_difference=True)
    work.plan()
    work.run()
    assert fake.default == "2.0"


def test_labels_alone_may_be_compared(fake: Fake, tmp_path: Path) -> None:
    fake.fails["PREDICT /2.0"] = Answer(200, {}, json.dumps([{"label": "7", "probability": 0.5}]).encode())
    for by, passes in (("answers", False), ("labels", True)):
        work = made(fake, tmp_path, compare_by=by)
        work.plan()
        if passes:
            work.run()
        else:
            with pytest.raises(ServerError, match=r"6 of 6 answers differ"):
                work.run()
    assert fake.default == "2.0"


def test_the_same_version_and_one_that_is_there_are_refused(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"--model-version"):
        made(fake, tmp_path, file=mar(tmp_path / "same", "1.0")).plan()
    fake.versions["2.0"] = 1
    with pytest.raises(ServerError, match=r"--remove 2.0"):
        made(fake, tmp_path).plan()
    assert fake.calls == []


def test_what_does_not_fit_into_memory_is_refused(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "shortage", lambda *_: "both versions at once need more")
    with pytest.raises(ServerError, match=r"need more. Deploy with fewer --workers"):
        made(fake, tmp_path).plan()
    made(fake, tmp_path, ignore_memory=True).plan()


def test_shortage_counts_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(memory, "_resident", lambda pid: 500 << 20)
    monkeypatch.setattr(memory, "_free_bytes", lambda: 1200 << 20)
    monkeypatch.setattr(memory, "_gpu_mib", lambda: {1: 10_000.0})
    monkeypatch.setattr(memory, "_free_gpu_mib", lambda: [25_000.0])
    assert memory.shortage([1], 2) is None
    assert memory.shortage([1], 3) == "both versions at once need 3 x 500 MiB of memory more, and 1200 MiB are free"
    assert memory.shortage([1], 2, 200 << 20) is not None
    monkeypatch.setattr(memory, "_free_bytes", lambda: 1 << 40)
    assert "3 x 10000 MiB of GPU memory" in str(memory.shortage([1], 3))


def test_another_file_of_that_name_stays(fake: Fake, tmp_path: Path) -> None:
    mar(tmp_path / "store", "1.0")
    work = made(fake, tmp_path)
    work.plan()
    with pytest.raises(ServerError, match=r"give the new one another name"):
        work.run()
    assert archive_file.read(tmp_path / "store" / "new.mar").version == "1.0"
    assert fake.calls == []


def test_requests_that_name_the_old_version_keep_it(fake: Fake, tmp_path: Path) -> None:
    line = 'ts_inference_requests_total{model_name="m",model_version="%s",hostname="h",} %s\n'
    fake.metric = line % ("1.0", "100.0") + line % ("default", "9.0")
    assert named_requests(fake.metric, "m", "1.0") == 100
    assert named_requests(fake.metric, "m", "1") == 0
    work = made(fake, tmp_path)
    work.plan()
    fake.metric = line % ("1.0", "107.0")  # six samples of its own, and one of somebody else
    with pytest.raises(ServerError, match=r"1 requests named version 1.0"):
        work.run()
    assert state(fake, tmp_path) == ("1.0", {"1.0": 1}, [])


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.mar").write_bytes(b"x")
    with pytest.raises(ServerError, match=r"is no archive of TorchServe"):
        archive_file.read(tmp_path / "x.mar")
    assert archive_file.read(mar(tmp_path, None)).version == "1.0"


def test_samples_have_the_content_type_of_their_name(tmp_path: Path) -> None:
    for name in ("a.json", "a.txt", "a.png", "a.jpg", "a.npy", "a"):
        (tmp_path / name).write_bytes(b"x")
    types = [samples.of_files([tmp_path / name])[0].content_type for name in ("a.json", "a.txt", "a.png", "a.jpg")]
    assert types == ["application/json", "text/plain", "image/png", "image/jpeg"]
    assert samples.of_files([tmp_path / "a"])[0].content_type == ""


def test_samples_are_made_by_kind() -> None:
    assert len({sample.body for sample in samples.of_kind({"kind": "image-classifier"})}) == samples.COUNT
    assert all(sample.body for sample in samples.of_kind({"kind": "text-encoder", "task": "fill-mask"}))
    assert samples.of_kind({"kind": "unheard-of"}) == []


def test_the_name_of_the_parked_process_is_the_handlers() -> None:
    from handlers.protocol import parking

    assert (scaling.HEADER, scaling.PARKED) == (parking.HEADER, parking.PARKED)
    assert parking.SECONDS > scaling.FRESH_S


def test_a_handler_that_cannot_park_is_refused(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.versions["1.0"] = 2
    monkeypatch.setattr(fake, "customized", lambda *_: {"kind": "another"})
    monkeypatch.setattr(scaling, "_name", lambda pid: "python")
    with pytest.raises(ServerError, match=r"cannot park a worker.*--now"):
        scaling.scale(fake, "m", 1)  # type: ignore[arg-type]
    assert fake.calls == []


def test_one_change_at_a_time(tmp_path: Path) -> None:
    from updates.locking import locked

    with locked(tmp_path), pytest.raises(ServerError, match=r"another scripts/deploy"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_an_idle_version_is_one_whose_workers_have_all_answered(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.versions["1.0"] = 3
    pids = [worker["pid"] for worker in fake.describe("m")["workers"]]
    turns = iter([pids[0], pids[1], pids[1], pids[2]])
    asked = list[int]()

    def customized(*_: Any, **__: Any) -> dict[str, Any]:
        asked.append(next(turns))
        return {"worker": {"pid": asked[-1]}}

    monkeypatch.setattr(fake, "customized", customized)
    draining.wait_until_idle(fake, "m", "1.0", 10, lambda seconds: None)  # type: ignore[arg-type]
    assert len(asked) == 4


def test_deploys_module_is_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    import deploy

    with pytest.raises(SystemExit):
        deploy.parser().parse_args(["m"])
    assert "one of FILE and --remove" in capsys.readouterr().err
