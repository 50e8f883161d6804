"""`show` and `verify`: what an archive says of itself, and whether it is still what was packaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from archive import inspection
from archive.__main__ import next_steps

ROOT = Path(__file__).parents[2]

Run = Callable[..., tuple[int, str]]


def rewritten(mar: Path, target: Path, changes: Mapping[str, bytes | None]) -> Path:
    """A copy of the archive with other content for these files; None leaves the file out."""
    with zipfile.ZipFile(mar) as source, zipfile.ZipFile(target, "w") as copy:
        held = {name: source.read(name) for name in source.namelist()}
        for name, content in {**held, **changes}.items():
            if content is not None:
                copy.writestr(name, content)
    return target


def held(mar: Path, name: str) -> bytes:
    with zipfile.ZipFile(mar) as archive:
        return archive.read(name)


def test_show_prints_the_essentials(digits_mar: Path, run: Run) -> None:
    provenance = inspection.read_provenance(digits_mar)
    status, printed = run("show", digits_mar)
    assert status == 0
    for wanted in (
        "digits.mar: digits version 1.0, image-classifier",
        provenance["digest"],
        "digits (huggingface)",
        provenance["weights"]["sha256"],
        "fp32: passed, samples 10",
        "fp16: passed",
        "bf16: passed",
        f"torch {provenance['versions']['torch']}",
        "model.safetensors",
        "handlers/images/preparation.py",
        "batchSize: 8",
        "size: 32",
    ):
        assert wanted in printed


def test_show_prints_notes(tiny_mar: Path, run: Run) -> None:
    assert "note     2 weights that embeddings does not use were left out" in run("show", tiny_mar)[1]


@pytest.mark.parametrize("fixture", ["digits_mar", "tiny_mar"])
def test_verify_passes_what_was_packaged(fixture: str, request: pytest.FixtureRequest, run: Run) -> None:
    mar = request.getfixturevalue(fixture)
    digest = inspection.read_provenance(mar)["digest"]
    assert run("verify", mar) == (0, f"{mar}: unchanged since it was packaged, {digest}\n")


def test_verify_passes_a_copy_under_another_name(digits_mar: Path, run: Run, tmp_path: Path) -> None:
    shutil.copy(digits_mar, tmp_path / "renamed.mar")
    assert run("verify", tmp_path / "renamed.mar")[0] == 0


@pytest.mark.parametrize(
    "name", ["labels.json", "model.safetensors", "handlers/tasks/shared/scores.py", "model-config.yaml"]
)
def test_verify_names_a_changed_file(digits_mar: Path, run: Run, tmp_path: Path, name: str) -> None:
    content = held(digits_mar, name)
    changed = rewritten(digits_mar, tmp_path / "changed.mar", {name: content[:-2] + b"\0\0"})
    assert_refused(run, changed, f"changed {name}")


def test_verify_names_an_added_file(digits_mar: Path, run: Run, tmp_path: Path) -> None:
    added = rewritten(digits_mar, tmp_path / "added.mar", {"handlers/extra.py": b"print()"})
    assert_refused(run, added, "added handlers/extra.py")


@pytest.mark.parametrize("name", ["labels.json", "handlers/loading.py", "model-config.yaml", "MAR-INF/MANIFEST.json"])
def test_verify_names_a_removed_file(digits_mar: Path, run: Run, tmp_path: Path, name: str) -> None:
    removed = rewritten(digits_mar, tmp_path / "removed.mar", {name: None})
    assert_refused(run, removed, f"missing {name}")
    assert run("show", removed)[0] == 0


def test_verify_names_every_problem_at_once(digits_mar: Path, run: Run, tmp_path: Path) -> None:
    several = rewritten(digits_mar, tmp_path / "several.mar", {"labels.json": b"[]", "new": b"", "config.json": None})
    assert_refused(run, several, "added new, changed labels.json, missing config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modelName", "other"),
        ("modelVersion", "9"),
        ("handler", "handlers/tasks/shared/scores.py"),
        ("configFile", None),
    ],
)
def test_verify_says_what_is_wrong_with_an_edited_manifest(
    digits_mar: Path, run: Run, tmp_path: Path, key: str, value: str | None
) -> None:
    manifest = json.loads(held(digits_mar, inspection.MANIFEST))
    manifest["model"][key] = value
    edited = rewritten(digits_mar, tmp_path / "edited.mar", {inspection.MANIFEST: json.dumps(manifest).encode()})
    assert_refused(run, edited, f"manifest says {key} {value!r}, wanted ")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_verify_sees_edited_parity_figures(digits_mar: Path, run: Run, tmp_path: Path, precision: str) -> None:
    provenance = inspection.read_provenance(digits_mar)
    provenance["parity"][precision]["max_relative_error"] = 0.0
    edited = rewritten(digits_mar, tmp_path / "edited.mar", {inspection.PROVENANCE: json.dumps(provenance).encode()})
    assert_refused(run, edited, "changed provenance.json")


@pytest.mark.parametrize("key", ["name", "version", "digest"])
def test_verify_sees_an_edited_provenance(digits_mar: Path, run: Run, tmp_path: Path, key: str) -> None:
    provenance = {**inspection.read_provenance(digits_mar), key: "other"}
    edited = rewritten(digits_mar, tmp_path / "edited.mar", {inspection.PROVENANCE: json.dumps(provenance).encode()})
    assert_refused(run, edited, "other")


def test_verify_names_a_damaged_file(digits_mar: Path, run: Run, tmp_path: Path) -> None:
    content = digits_mar.read_bytes()
    with zipfile.ZipFile(digits_mar) as archive:
        offset = archive.getinfo("model.safetensors").header_offset + 10_000
    damaged = tmp_path / "damaged.mar"
    damaged.write_bytes(content[:offset] + bytes(64) + content[offset + 64 :])
    status, printed = run("verify", damaged)
    assert status == 1
    assert "is damaged" in printed
    assert "model.safetensors" in printed


def assert_refused(run: Run, mar: Path, message: str) -> None:
    status, printed = run("verify", mar)
    assert status == 1
    assert printed.startswith(f"error: {mar} is not what was packaged: ")
    assert message in printed


@pytest.mark.parametrize("command", ["show", "verify"])
def test_what_is_no_archive_of_ours_is_refused(command: str, digits_mar: Path, run: Run, tmp_path: Path) -> None:
    assert run(command, tmp_path / "absent.mar") == (1, f"error: there is no {tmp_path / 'absent.mar'}\n")
    (tmp_path / "text.mar").write_text("no zip file", encoding="utf-8")
    assert "is no model archive" in run(command, tmp_path / "text.mar")[1]
    assert run(command, tmp_path)[0] == 1
    foreign = rewritten(digits_mar, tmp_path / "foreign.mar", {inspection.PROVENANCE: None})
    assert "holds no provenance.json" in run(command, foreign)[1]


def test_a_reader_that_has_enough_is_no_error() -> None:
    """As in `scripts/package show FILE.mar | head -1`."""
    program = "import archive.inspection, archive.__main__ as m, sys\n"
    program += "archive.inspection.show = lambda mar: 'x\\n' * 10**6\nsys.exit(m.main(['show', 'FILE.mar']))"
    running = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None
    assert running.stderr is not None
    assert running.stdout.readline() == b"x\n"
    running.stdout.close()
    assert (running.wait(timeout=60), running.stderr.read()) == (1, b"")
    running.stderr.close()


def test_after_packaging_it_says_how_to_go_on(tmp_path: Path) -> None:
    said = next_steps(tmp_path / "mine.mar", is_text=True).splitlines()
    assert said[0].endswith(f'scripts/predict {tmp_path / "mine.mar"} --text "one text"')
    assert said[1].endswith(f"scripts/serve {tmp_path / 'mine.mar'}")
    assert "photo.jpg" in next_steps(tmp_path / "mine.mar", is_text=False)
