"""What packaging refuses before it imports PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from archive import command_line, early_checks
from archive.checkpoints.errors import CheckpointError
from handlers import tasks

STATE = {"conv1.weight": torch.zeros(4, 3, 7, 7), "fc.weight": torch.zeros(10, 8), "fc.bias": torch.zeros(10)}


def check(command: str, source: Path, *options: object) -> None:
    chosen = command_line.parse([command, "--weights", str(source), *map(str, options)])
    assert not hasattr(chosen, "mar")
    early_checks.run(chosen, source)  # type: ignore[arg-type]


def saved(path: Path, content: object) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)  # type: ignore[arg-type]
    else:
        torch.save(content, path)
    return path


def test_a_state_dict_wants_labels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", STATE)
    with pytest.raises(CheckpointError, match="does not name its 10 classes; wanted: --labels FILE"):
        check("image-classifier", path)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefghi"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="9 labels for 10 classes"):
        check("image-classifier", path, "--labels", labels)
    labels.write_text("\n".join("abcdefghij"), encoding="utf-8")
    check("image-classifier", path, "--labels", labels)


def test_what_cannot_be_told_is_left_to_the_reader(tmp_path: Path) -> None:
    check("image-classifier", saved(tmp_path / "imagenet.safetensors", {"fc.weight": torch.zeros(1000, 8)}))
    check("image-classifier", saved(tmp_path / "two.safetensors", {**STATE, "b.fc.weight": torch.zeros(3, 8)}))
    for name, content in (("a.pth", b"no zip"), ("b.safetensors", b"x"), ("c.pth", b"")):
        (tmp_path / name).write_bytes(content)
        check("image-classifier", tmp_path / name)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")  # which may name the classes
    check("image-classifier", saved(tmp_path / "d.safetensors", STATE))


def test_a_pickle_is_left_to_the_reader_and_nothing_that_it_names_is_called(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "called"),)

    path = saved(tmp_path / "a.pth", {**STATE, "x": Evil()})
    check("image-classifier", path)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("architecture", "options", "is_refused"),
    [
        ("BertModel", [], True),
        ("BertForMaskedLM", ["--task", "embeddings"], True),
        ("BertForMaskedLM", [], False),
        ("BertModel", ["--pooling", "mean"], False),
        ("BertModel", ["--task", "sparse-embeddings"], False),
    ],
)
def test_a_folder_of_transformers_wants_a_pooling(
    tmp_path: Path, architecture: str, options: list[str], is_refused: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}), encoding="utf-8")
    if is_refused:
        with pytest.raises(CheckpointError, match="wanted: --pooling mean or --pooling cls"):
            check("text-encoder", tmp_path, *options)
        (tmp_path / "modules.json").write_text("[]", encoding="utf-8")
    check("text-encoder", tmp_path, *options)


def test_the_task_is_the_one_that_handlers_have() -> None:
    task, ending = early_checks.EMBEDDINGS
    assert tasks.head(task).architectures == (ending,)


def test_it_comes_without_pytorch(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", STATE)
    code = (
        "import sys; from archive.__main__ import main\n"
        f"status = main(['image-classifier', '--weights', {str(path)!r}])\n"
        "print(status, {'torch', 'transformers'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--labels FILE" in ran.stderr
    assert ran.stdout.split("\n")[-2] == "1 set()"
