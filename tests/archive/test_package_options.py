"""The typed options: nothing of the command line is lost in them, and the record of it never changes."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
from pathlib import Path
from typing import cast

import pytest

from archive import command_line
from archive.__main__ import kept_options, recorded_options
from archive.options import ImageClassifierOptions, InspectionOptions, PackagingOptions, TextOptions
from handlers import settings

ROOT = Path(__file__).parents[2]
# Options that were not given, in the order of the command line: as the inputs digest has them.
IMAGE_PRESET: dict[str, object] = {
    "command": "resnet101",
    "weights": "None",
    "random_weights": True,
    "revision": "None",
    "name": "resnet101",
    "model_version": "1.0",
    "batch_size": "None",
    "max_batch_delay_ms": "None",
    "workers": "None",
    "precision": "auto",
    "engine": "auto",
    "device": "auto",
    "max_inputs": "None",
    "parity_data": "None",
    "decoder": "None",
    "labels": "None",
    "top_k": "None",
    "size": "None",
    "resize": "None",
    "resize_mode": "None",
    "interpolation": "None",
    "mean": "None",
    "std": "None",
    "max_pixels": "None",
    "converter": "onnx",
    "plan": "auto",
    "plan_buckets": "None",
    "on_mismatch": "None",
}
TEXT_PRESET: dict[str, object] = {
    "command": "bert-large",
    "weights": "None",
    "random_weights": True,
    "revision": "None",
    "name": "bert-large",
    "model_version": "1.0",
    "batch_size": "None",
    "max_batch_delay_ms": "None",
    "workers": "None",
    "precision": "auto",
    "engine": "auto",
    "device": "auto",
    "max_inputs": "None",
    "parity_data": "None",
    "task": "None",
    "pooling": "None",
    "normalize": "None",
    "dimensions": "None",
    "max_tokens": "None",
    "truncate": False,
    "top_k": "None",
    "tokenizer": "None",
}
IMAGE = {key: value for key, value in IMAGE_PRESET.items() if key != "random_weights"}
TEXT = {key: value for key, value in TEXT_PRESET.items() if key != "random_weights"}
# Command line -> options as the inputs digest has them, and as provenance.json keeps them. The record of a command
# never changes, apart from a key for a new option: archives hold it, and are up to date by it.
RECORDS: list[tuple[str, dict[str, object], dict[str, object]]] = [
    (
        "image-classifier --weights archive/digits",
        {**IMAGE, "command": "image-classifier", "weights": "digits", "name": "digits"},
        {
            "command": "image-classifier",
            "weights": "digits",
            "name": "digits",
            "model_version": "1.0",
            "precision": "auto",
            "engine": "auto",
            "device": "auto",
            "converter": "onnx",
            "plan": "auto",
        },
    ),
    (
        "image-classifier --weights archive/digits --name d --model-version 2.0 --batch-size 4 "
        "--max-batch-delay-ms 2 --workers 2 --precision fp32 --engine tensorrt --device cuda "
        "--max-inputs 3 --parity-data archive/digits/samples --decoder cpu --labels "
        "archive/resnet101/labels.txt --top-k 2 --size 32 --resize 40 --resize-mode square "
        "--interpolation bicubic --mean 0 0.5 1 --std 1 1 0.25 --max-pixels 1000 --converter onnx --plan "
        "first-load --plan-buckets 8 1 --on-mismatch refuse --force --export-path /tmp/x",
        {
            **IMAGE,
            "command": "image-classifier",
            "weights": "digits",
            "name": "d",
            "model_version": "2.0",
            "batch_size": 4,
            "max_batch_delay_ms": 2,
            "workers": 2,
            "precision": "fp32",
            "engine": "tensorrt",
            "device": "cuda",
            "max_inputs": 3,
            "parity_data": "samples",
            "decoder": "cpu",
            "labels": "labels.txt",
            "top_k": 2,
            "size": 32,
            "resize": 40,
            "resize_mode": "square",
            "interpolation": "bicubic",
            "mean": [0.0, 0.5, 1.0],
            "std": [1.0, 1.0, 0.25],
            "max_pixels": 1000,
            "plan": "first-load",
            "plan_buckets": [8, 1],
            "on_mismatch": "refuse",
        },
        {
            "command": "image-classifier",
            "weights": "digits",
            "name": "d",
            "model_version": "2.0",
            "batch_size": 4,
            "max_batch_delay_ms": 2,
            "workers": 2,
            "precision": "fp32",
            "engine": "tensorrt",
            "device": "cuda",
            "max_inputs": 3,
            "parity_data": "samples",
            "decoder": "cpu",
            "labels": "labels.txt",
            "top_k": 2,
            "size": 32,
            "resize": 40,
            "resize_mode": "square",
            "interpolation": "bicubic",
            "mean": [0.0, 0.5, 1.0],
            "std": [1.0, 1.0, 0.25],
            "max_pixels": 1000,
            "converter": "onnx",
            "plan": "first-load",
            "plan_buckets": [8, 1],
            "on_mismatch": "refuse",
        },
    ),
    (
        "resnet101 --random-weights",
        {
            **IMAGE_PRESET,
        },
        {
            "command": "resnet101",
            "random_weights": True,
            "name": "resnet101",
            "model_version": "1.0",
            "precision": "auto",
            "engine": "auto",
            "device": "auto",
            "converter": "onnx",
            "plan": "auto",
        },
    ),
    (
        "resnet101 --weights microsoft/resnet-101 --revision main",
        {**IMAGE_PRESET, "weights": "microsoft/resnet-101", "random_weights": False, "revision": "main"},
        {
            "command": "resnet101",
            "weights": "microsoft/resnet-101",
            "revision": "main",
            "name": "resnet101",
            "model_version": "1.0",
            "precision": "auto",
            "engine": "auto",
            "device": "auto",
            "converter": "onnx",
            "plan": "auto",
        },
    ),
    (
        "text-encoder --weights sentence-transformers/all-MiniLM-L6-v2",
        {
            **TEXT,
            "command": "text-encoder",
            "weights": "sentence-transformers/all-MiniLM-L6-v2",
            "name": "all-minilm-l6-v2",
        },
        {
            "command": "text-encoder",
            "weights": "sentence-transformers/all-MiniLM-L6-v2",
            "name": "all-minilm-l6-v2",
            "model_version": "1.0",
            "precision": "auto",
            "engine": "auto",
            "device": "auto",
        },
    ),
    (
        "text-encoder --weights a/b --task embeddings --pooling cls mean --normalize --max-tokens 128 "
        "--truncate --top-k 3 --precision fp8 --parity-data archive/samples/texts.txt --tokenizer "
        "archive/digits",
        {
            **TEXT,
            "command": "text-encoder",
            "weights": "a/b",
            "name": "b",
            "precision": "fp8",
            "parity_data": "texts.txt",
            "task": "embeddings",
            "pooling": ["cls", "mean"],
            "normalize": True,
            "max_tokens": 128,
            "truncate": True,
            "top_k": 3,
            "tokenizer": "digits",
        },
        {
            "command": "text-encoder",
            "weights": "a/b",
            "name": "b",
            "model_version": "1.0",
            "precision": "fp8",
            "engine": "auto",
            "device": "auto",
            "parity_data": "texts.txt",
            "task": "embeddings",
            "pooling": ["cls", "mean"],
            "normalize": True,
            "max_tokens": 128,
            "truncate": True,
            "top_k": 3,
            "tokenizer": "digits",
        },
    ),
    (
        "text-encoder --weights a/b --no-normalize",
        {**TEXT, "command": "text-encoder", "weights": "a/b", "name": "b", "normalize": False},
        {
            "command": "text-encoder",
            "weights": "a/b",
            "name": "b",
            "model_version": "1.0",
            "precision": "auto",
            "engine": "auto",
            "device": "auto",
        },
    ),
    (
        "bert-large --random-weights --tokenizer archive/samples --batch-size 16",
        {**TEXT_PRESET, "batch_size": 16, "tokenizer": "samples"},
        {
            "command": "bert-large",
            "random_weights": True,
            "name": "bert-large",
            "model_version": "1.0",
            "batch_size": 16,
            "precision": "auto",
            "engine": "auto",
            "device": "auto",
            "tokenizer": "samples",
        },
    ),
]


@pytest.mark.parametrize(("command", "digested", "kept"), RECORDS, ids=[record[0][:40] for record in RECORDS])
def test_what_is_recorded_of_a_command_stays_byte_for_byte(
    command: str, digested: dict[str, object], kept: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    recorded = recorded_options(packaging(*command.split()))
    assert json.dumps(recorded) == json.dumps(digested)
    assert json.dumps(kept_options(recorded)) == json.dumps(kept)


def packaging(*arguments: str) -> ImageClassifierOptions | TextOptions:
    return cast("ImageClassifierOptions | TextOptions", command_line.parse(arguments))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("image-classifier", ImageClassifierOptions),
        ("resnet101", ImageClassifierOptions),
        ("text-encoder", TextOptions),
        ("bert-large", TextOptions),
    ],
)
def test_every_option_has_a_field(command: str, expected: type) -> None:
    options = packaging(command, "--weights", "a/b")
    assert type(options) is expected
    subparsers = next(a for a in command_line.parser()._actions if isinstance(a, argparse._SubParsersAction))
    names = {action.dest for action in subparsers.choices[command]._actions} - {"help", "random_weights"}
    fields = {field.name for field in dataclasses.fields(expected)}
    assert fields == names | {"command", "batch_size_given", "architecture", "given"}


def test_values_are_converted_and_the_presets_are_merged() -> None:
    options = packaging(*"image-classifier --weights a/B --mean 0 0.5 1 --plan-buckets 8 1".split())  # noqa: SIM905
    assert isinstance(options, ImageClassifierOptions)
    assert (options.mean, options.plan_buckets, options.name) == ((0.0, 0.5, 1.0), (8, 1), "b")
    assert (options.batch_size, options.batch_size_given, options.max_batch_delay_ms) == (8, False, 1)
    assert options.architecture == {}
    preset = packaging("resnet101", "--random-weights", "--max-batch-delay-ms", "2")
    assert (preset.batch_size, preset.batch_size_given, preset.max_batch_delay_ms) == (64, False, 2)
    assert preset.architecture == {"layers": "bottleneck", "depths": [3, 4, 23, 3]}
    assert (preset.name, preset.weights, preset.kind) == ("resnet101", None, "image-classifier")
    asked = packaging("bert-large", "--random-weights", "--batch-size", "64")
    assert (asked.batch_size, asked.batch_size_given) == (64, True)


@pytest.mark.parametrize("text", [command_line.MAIN, *command_line.EXAMPLES.values()])
def test_the_examples_of_the_help_are_understood(text: str) -> None:
    examples = [line.split()[1:] for line in text.splitlines() if line.startswith("  scripts/package")]
    assert examples
    for example in examples:
        assert command_line.parse(example).command == example[0]


def test_options_cannot_be_changed() -> None:
    options: PackagingOptions = packaging("text-encoder", "--weights", "a/b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.name = "other"  # type: ignore[misc]


def test_show_and_verify_take_a_file() -> None:
    assert command_line.parse(["show", "a.mar"]) == InspectionOptions(command="show", mar=Path("a.mar"))


def test_argparse_stays_in_the_command_line() -> None:
    importing = {
        path.name
        for path in (ROOT / "archive").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) and any(name.name == "argparse" for name in node.names)
    }
    assert importing == {"command_line.py", "near_options.py", "signing_command_line.py"}


def test_choices_stated_twice_are_the_same() -> None:
    assert command_line.TASKS == settings.TEXT_TASKS


@pytest.mark.parametrize("command", ["image-classifier", "text-encoder"])
def test_help_says_that_parity_data_travels_in_the_archive(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.parse([command, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "The archive carries a few of them" in printed
    assert "give no private data" in printed
