"""What the packaging command refuses, with which words; and what it chooses where the checkpoint is silent."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2Model, ResNetConfig

from archive import command_line, early_checks, fingerprint, resolve
from archive import package as packaging
from archive.checkpoints import text_checkpoints
from archive.checkpoints.errors import CheckpointError
from archive.checkpoints.torchvision_releases import TORCHVISION_RELEASES
from archive.options import ImageClassifierOptions, TextOptions
from handlers.engines import networks
from handlers.images.preprocess import Preprocess

Run = Callable[..., tuple[int, str]]

COMMANDS = (
    *("image-classifier", "image-encoder", "text-encoder", "resnet101", "bert-large", "show", "verify"),
    *("keygen", "sign", "verify-store"),
)
# torchvision and timm round where the crop begins to the even number.
V1, V2 = (Preprocess(size=224, resize=resize, crop_rounding="even") for resize in (256, 232))


@pytest.fixture(autouse=True)
def _never_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaging, "build", lambda *_: pytest.fail("it was not refused"))


@pytest.fixture
def refuse(run: Run, tmp_path: Path) -> Callable[..., str]:
    """refuse(*arguments) -> the error message; the test fails where the command does anything else."""

    def refused(*arguments: object) -> str:
        status, printed = run(*arguments, "--export-path", tmp_path / "store")
        assert status == 1, printed
        assert "error: " in printed
        assert not (tmp_path / "store").exists()
        return printed.partition("error: ")[2]

    return refused


@pytest.fixture
def image_folder(digits: Path, tmp_path: Path) -> Path:
    """A copy of the digits to spoil."""
    return Path(shutil.copytree(digits, tmp_path / "digits"))


@pytest.fixture
def text_folder(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder to spoil."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "tiny-bert"))


def edit_json(path: Path, **changes: object) -> None:
    """Set these keys; None removes one."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


# Image classifiers.


def test_labels_that_are_missing(image_folder: Path, refuse: Callable[..., str]) -> None:
    edit_json(image_folder / "config.json", id2label=None, label2id=None, num_labels=10)
    assert "does not name its 10 classes; wanted: --labels FILE" in refuse(
        "image-classifier", "--weights", image_folder
    )


@pytest.mark.parametrize("count", [9, 11])
def test_labels_of_another_number(digits: Path, tmp_path: Path, refuse: Callable[..., str], count: int) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(map(str, range(count))), encoding="utf-8")
    message = refuse("image-classifier", "--weights", digits, "--labels", labels)
    assert message == f"{count} labels for 10 classes\n"


def test_labels_that_are_no_list(digits: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text('"nought"', encoding="utf-8")
    assert "labels.json is a str; wanted: a list of names" in refuse(
        "image-classifier", "--weights", digits, "--labels", labels
    )


@pytest.mark.parametrize("option", ["--labels", "--weights"])
def test_files_that_do_not_exist(digits: Path, tmp_path: Path, refuse: Callable[..., str], option: str) -> None:
    absent = tmp_path / "absent.pth"
    rest = () if option == "--weights" else ("--weights", digits)
    assert str(absent) in refuse("image-classifier", *rest, option, absent)


def test_the_preset_of_another_depth(digits: Path, refuse: Callable[..., str]) -> None:
    message = refuse("resnet101", "--weights", digits)
    assert "has {'depths': [2, 2, 2]}, and the preset resnet101 is for {'depths': [3, 4, 23, 3]}" in message
    assert "the command image-classifier takes other sizes" in message


def test_the_preset_of_another_breadth(tmp_path: Path, refuse: Callable[..., str]) -> None:
    settings = {"embedding_size": 8, "hidden_sizes": [64, 64, 64, 64], "depths": [3, 4, 23, 3], "num_labels": 1000}
    config = ResNetConfig.from_dict({**settings, "groups": 4, "width_per_group": 16})
    networks.build(config).save_pretrained(tmp_path / "resnext101")
    message = refuse("resnet101", "--weights", tmp_path / "resnext101")
    assert "has {'groups': 4, 'width_per_group': 16}, and the preset resnet101 is for a plain ResNet" in message
    assert "the command image-classifier takes ResNeXt and Wide ResNet" in message


def test_image_weights_that_are_missing_or_unexpected(image_folder: Path, refuse: Callable[..., str]) -> None:
    edit_weights(image_folder, lambda state: state.pop("resnet.embedder.embedder.convolution.weight"))
    assert "resnet.embedder.embedder.convolution.weight" in refuse("image-classifier", "--weights", image_folder)
    edit_weights(image_folder, lambda state: state.update(strange=torch.zeros(1)))
    assert "strange" in refuse("image-classifier", "--weights", image_folder)


def test_values_that_no_image_can_be_prepared_with(digits: Path, refuse: Callable[..., str]) -> None:
    assert "wanted: 1 <= size <= resize" in refuse(
        "image-classifier", "--weights", digits, "--size", 64, "--resize", 32
    )
    assert "std above 0" in refuse("image-classifier", "--weights", digits, "--std", 1, 1, 0)


# Text encoders.


def test_the_preset_of_another_size(tiny_bert: Path, refuse: Callable[..., str]) -> None:
    message = refuse("bert-large", "--weights", tiny_bert)
    assert "the preset bert-large is for {'hidden_size': 1024, 'num_hidden_layers': 24}" in message
    assert "the command text-encoder takes other sizes" in message


@pytest.mark.parametrize("task", ["sequence-classification", "token-classification", "fill-mask"])
def test_a_task_whose_head_is_missing(tiny_bert: Path, refuse: Callable[..., str], task: str) -> None:
    message = refuse("text-encoder", "--weights", tiny_bert, "--task", task)
    assert ("missing: cls." if task == "fill-mask" else "missing: classifier.") in message
    assert "A head that is missing would be random" in message


def test_text_weights_that_are_unexpected(text_folder: Path, refuse: Callable[..., str]) -> None:
    edit_weights(text_folder, lambda state: state.update({"encoder.layer.7.strange": torch.zeros(1)}))
    assert "unexpected: encoder.layer.7.strange" in refuse("text-encoder", "--weights", text_folder)


def test_text_weights_that_are_missing(text_folder: Path, refuse: Callable[..., str]) -> None:
    edit_weights(text_folder, lambda state: state.pop("encoder.layer.1.output.dense.bias"))
    assert "missing: encoder.layer.1.output.dense.bias" in refuse("text-encoder", "--weights", text_folder)


def test_text_weights_of_another_shape(text_folder: Path, refuse: Callable[..., str]) -> None:
    edit_weights(text_folder, lambda state: state.update({"embeddings.LayerNorm.bias": torch.zeros(7)}))
    message = refuse("text-encoder", "--weights", text_folder)
    assert "misshapen: embeddings.LayerNorm.bias is (7,), wanted (32,)" in message


def test_text_weights_that_are_not_finite(text_folder: Path, refuse: Callable[..., str]) -> None:
    edit_weights(text_folder, lambda state: state["embeddings.LayerNorm.bias"].fill_(torch.nan))
    message = refuse("text-encoder", "--weights", text_folder)
    assert "not finite (NaN or infinity): embeddings.LayerNorm.bias" in message


def test_a_head_of_another_task_is_not_left_out_silently(text_folder: Path, tiny_bert: Path) -> None:
    BertForSequenceClassification(BertConfig.from_pretrained(tiny_bert)).save_pretrained(text_folder)
    options = command_line.parse(["text-encoder", "--weights", str(text_folder), "--task", "embeddings"])
    (note,) = resolve.text_model(cast("TextOptions", options)).notes
    assert note.startswith("4 weights that embeddings does not use were left out: ")
    assert "bert.pooler.dense.bias" in note
    assert "classifier.weight" in note


@pytest.mark.parametrize("expected", [True, False])
def test_decoders(text_folder: Path, refuse: Callable[..., str], expected: bool) -> None:
    if expected:
        edit_json(text_folder / "config.json", is_decoder=True)
    else:
        config = GPT2Config(
            vocab_size=400, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=3
        )
        GPT2Model(config).save_pretrained(text_folder)
    assert "a decoder" in refuse("text-encoder", "--weights", text_folder)


def test_a_checkpoint_that_does_not_say_how_it_pools(text_folder: Path, refuse: Callable[..., str]) -> None:
    (text_folder / "modules.json").unlink()
    assert "wanted: --pooling mean or --pooling cls" in refuse("text-encoder", "--weights", text_folder)


def test_modules_that_are_not_served(text_folder: Path, refuse: Callable[..., str]) -> None:
    modules = json.loads((text_folder / "modules.json").read_text(encoding="utf-8"))
    modules.insert(2, {"type": "sentence_transformers.models.LSTM", "path": "2_LSTM"})
    (text_folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    assert "Transformer -> Pooling -> LSTM -> Normalize" in refuse("text-encoder", "--weights", text_folder)


def test_a_default_prompt_that_is_none_of_the_prompts(text_folder: Path, refuse: Callable[..., str]) -> None:
    content = {"prompts": {"query": "query: ", "plain": ""}, "default_prompt_name": "passage"}
    path = text_folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert "default_prompt_name 'passage', which is none of its prompts" in refuse(
        "text-encoder", "--weights", text_folder
    )
    edit_json(path, default_prompt_name="plain")
    assert text_checkpoints.read(str(text_folder)).task == "embeddings"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "modules.json"])
def test_a_text_encoders_own_code_is_never_run(
    text_folder: Path, refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Where transformers would ask, "y" is typed already. The weights are a BERT's, whatever the code says."""
    (text_folder / "mine.py").write_text("open('it-was-run', 'w')", encoding="utf-8")
    if file == "modules.json":
        modules = json.loads((text_folder / file).read_text(encoding="utf-8"))
        modules[0]["type"] = "mine.Transformer"
        (text_folder / file).write_text(json.dumps(modules), encoding="utf-8")
    else:
        edit_json(text_folder / file, auto_map={"AutoModel": "mine.Model", "AutoTokenizer": ["mine.Tokenizer", None]})
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.chdir(text_folder)
    message = refuse("text-encoder", "--weights", text_folder)
    assert f"{file} names code of its own to run" in message
    assert "mine." in message
    assert not (text_folder / "it-was-run").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [("zero\n\ntwo\n", "line 2 is blank"), ("\ufeffzero\none\n\n\n", "2 labels for 10 classes")],
)
def test_labels_with_blank_lines(
    digits: Path, refuse: Callable[..., str], tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "labels.txt").write_text(content, encoding="utf-8")
    assert expected in refuse("image-classifier", "--weights", digits, "--labels", tmp_path / "labels.txt")


def test_a_mark_at_the_beginning_is_no_part_of_a_label(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbfzero\r\none\r\n\r\n")
    assert early_checks.read_labels(tmp_path / "labels.txt") == ["zero", "one"]


def test_a_file_name_that_cannot_name_a_model(digits: Path, refuse: Callable[..., str], tmp_path: Path) -> None:
    odd = tmp_path / "my model (1)"
    shutil.copytree(digits, odd)
    assert "'my model (1)' cannot name a model; --name takes" in refuse("image-classifier", "--weights", odd)


def test_more_tokens_than_the_checkpoint_takes(tiny_bert: Path, refuse: Callable[..., str]) -> None:
    message = refuse("text-encoder", "--weights", tiny_bert, "--max-tokens", 49)
    assert message == "--max-tokens is 49, and the checkpoint takes at most 48\n"


def test_a_file_instead_of_a_folder(tiny_bert: Path, refuse: Callable[..., str]) -> None:
    message = refuse("text-encoder", "--weights", tiny_bert / "model.safetensors")
    assert "is a file; a text encoder needs its folder" in message


def test_a_tokenizer_of_another_model(text_folder: Path, refuse: Callable[..., str]) -> None:
    tokenizer = json.loads((text_folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["anotherword"] = 10_000
    (text_folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert "the model has embeddings for" in refuse("text-encoder", "--weights", text_folder)


def test_a_folder_without_a_tokenizer(text_folder: Path, refuse: Callable[..., str]) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (text_folder / name).unlink(missing_ok=True)
    assert "has no tokenizer; wanted: one of tokenizer.json" in refuse("text-encoder", "--weights", text_folder)


def test_an_architecture_that_no_task_serves(text_folder: Path, refuse: Callable[..., str]) -> None:
    (text_folder / "modules.json").unlink()
    edit_json(text_folder / "config.json", architectures=["BertForQuestionAnswering"])
    assert "for BertForQuestionAnswering, which none of the tasks serves" in refuse(
        "text-encoder", "--weights", text_folder
    )


def test_a_checkpoint_for_images(text_folder: Path, refuse: Callable[..., str]) -> None:
    (text_folder / "modules.json").unlink()
    edit_json(text_folder / "config.json", architectures=["ResNetForImageClassification"])
    message = refuse("text-encoder", "--weights", text_folder)
    assert (
        "is for images (ResNetForImageClassification); use the command image-classifier or image-encoder" in message
    )


def test_random_weights_without_a_tokenizer(refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "demo_model", lambda: None)
    assert "--tokenizer FOLDER" in refuse("bert-large", "--random-weights")


# The Hub.


@pytest.mark.parametrize("command", ["image-classifier", "text-encoder"])
def test_a_hub_id_that_cannot_be_fetched(
    command: str, refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def fail(model_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((model_id, revision, "tokenizer.json" in allow_patterns))
        raise OSError("no route to host\nand a second line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refuse(command, "--weights", "nobody/nothing", "--revision", "v2")
    assert asked == [("nobody/nothing", "v2", True)]
    assert "(OSError: no route to host)" in message
    assert "`hf download nobody/nothing --revision v2 --local-dir FOLDER`" in message


def test_a_revision_of_a_local_folder(digits: Path, refuse: Callable[..., str]) -> None:
    assert "leave it out" in refuse("image-classifier", "--weights", digits, "--revision", "main")


# The command line.


@pytest.mark.parametrize("command", [(), *[(command,) for command in COMMANDS]], ids=str)
def test_help_mentions_every_option(command: tuple[str, ...], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line.parser().parse_args([*command, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    subparsers = next(a for a in command_line.parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert tuple(subparsers.choices) == COMMANDS
    for action in subparsers.choices[command[0]]._actions if command else ():
        assert all(name in printed for name in action.option_strings)
        assert action.help or action.dest == "mar", action.dest
    if not command:
        assert all(name in printed for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        ("image-classifier",),
        ("image-classifier", "--weights", "x", "--random-weights"),
        ("resnet101", "--weights", "x", "--random-weights"),
        ("text-encoder", "--weights", "x", "--batch-size", "0"),
        ("text-encoder", "--weights", "x", "--workers", "two"),
        ("text-encoder", "--weights", "x", "--name", "../up"),
        ("text-encoder", "--weights", "x", "--task", "translation"),
        ("image-classifier", "--weights", "x", "--mean", "1", "2"),
        ("repack",),
    ],
    ids=" ".join,
)
def test_what_argparse_refuses(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line.parser().parse_args(arguments)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err


# What is chosen.


def image_model(*arguments: object) -> Any:
    command = ("image-classifier", "--name", "model", *arguments)
    return resolve.image_model(cast("ImageClassifierOptions", command_line.parse(list(map(str, command)))))


@pytest.fixture
def bare(digits: Path, tmp_path: Path) -> Path:
    """The digits' weights alone, and labels for them."""
    (tmp_path / "labels.txt").write_text("\n".join("0123456789"), encoding="utf-8")
    return Path(shutil.copy(digits / "model.safetensors", tmp_path / "weights.safetensors"))


def bare_model(bare: Path, *arguments: object) -> Any:
    return image_model("--weights", bare, "--labels", bare.parent / "labels.txt", *arguments)


def test_preprocessing_of_the_checkpoints_own_file(digits: Path) -> None:
    job = image_model("--weights", digits)
    half = (0.5, 0.5, 0.5)
    assert job.settings.preprocess == Preprocess(size=32, resize=32, mean=half, std=half)
    assert job.notes == ()


def test_preprocessing_of_timms_config(bare: Path, tmp_path: Path) -> None:
    from archive.checkpoints import image_checkpoints

    folder = tmp_path / "timm"
    folder.mkdir()
    names = _timm_state()
    save_file(names, folder / "model.safetensors")
    cfg = {"input_size": [3, 288, 288], "crop_pct": 0.95, "interpolation": "bicubic", "mean": [0.5] * 3}
    content = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    assert image_checkpoints.read(folder).layout == "timm"
    job = image_model("--weights", folder, "--labels", bare.parent / "labels.txt")
    wanted = Preprocess(size=288, resize=303, interpolation="bicubic", mean=(0.5, 0.5, 0.5), crop_rounding="even")
    assert job.settings.preprocess == wanted
    assert job.notes == ()


def _timm_state() -> dict[str, torch.Tensor]:
    """A ResNet-18 of a few channels, by the names of torchvision and timm."""
    widths = (8, 8, 16, 24, 32)
    state = {"conv1.weight": torch.randn(widths[0], 3, 7, 7), **_norm("bn1", widths[0])}
    for stage in range(1, 5):
        before, after = widths[stage - 1], widths[stage]
        for block in range(2):
            name = f"layer{stage}.{block}"
            into = before if block == 0 else after
            state[f"{name}.conv1.weight"] = torch.randn(after, into, 3, 3)
            state[f"{name}.conv2.weight"] = torch.randn(after, after, 3, 3)
            state |= {**_norm(f"{name}.bn1", after), **_norm(f"{name}.bn2", after)}
            if block == 0 and stage > 1:
                state[f"{name}.downsample.0.weight"] = torch.randn(after, before, 1, 1)
                state |= _norm(f"{name}.downsample.1", after)
    return {**state, "fc.weight": torch.randn(10, widths[-1]), "fc.bias": torch.zeros(10)}


def _norm(name: str, width: int) -> dict[str, torch.Tensor]:
    shapes = {"weight": torch.ones, "bias": torch.zeros, "running_mean": torch.zeros, "running_var": torch.ones}
    return {f"{name}.{key}": make(width) for key, make in shapes.items()}


def test_preprocessing_of_a_bare_file_is_assumed_and_noted(bare: Path) -> None:
    job = bare_model(bare)
    assert job.settings.preprocess == V1
    assert "does not say how it was preprocessed: resize 256, crop 224, bilinear is assumed" in job.notes[0]


@pytest.mark.parametrize("release", [V1, V2])
def test_preprocessing_of_a_release_known_by_its_sha256(
    bare: Path, monkeypatch: pytest.MonkeyPatch, release: Preprocess
) -> None:
    prefix = hashlib.sha256(bare.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(TORCHVISION_RELEASES, prefix, release)
    job = bare_model(bare)
    assert job.settings.preprocess == release
    assert job.notes == ()
    assert bare_model(bare, "--resize", 256).settings.preprocess == V1


def test_options_override_the_preprocessing(bare: Path, digits: Path) -> None:
    job = bare_model(bare, "--resize", 232)
    assert job.settings.preprocess == V2
    assert job.notes == ()
    every = ("--resize-mode", "square", "--interpolation", "lanczos", "--mean", 0, 0, 0, "--std", 1, 1, 1)
    changed = image_model("--weights", digits, "--size", 40, "--resize", 48, *every).settings.preprocess
    assert changed == Preprocess(40, 48, "square", "lanczos", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_the_size_alone_keeps_the_share_that_is_cropped(bare: Path, digits: Path) -> None:
    assert bare_model(bare, "--size", 112).settings.preprocess == Preprocess(
        size=112, resize=128, crop_rounding="even"
    )
    assert image_model("--weights", digits, "--size", 64).settings.preprocess.resize == 64


def test_a_thousand_classes_have_imagenets_labels() -> None:
    labels = resolve.IMAGENET_LABELS.read_text(encoding="utf-8").splitlines()
    assert len(labels) == len(set(labels)) == 1000
    assert (labels[0], labels[-1]) == ("tench", "toilet tissue")


@pytest.mark.parametrize("named", [True, False])
def test_imagenets_labels_are_said_to_be_assumed(tmp_path: Path, named: bool) -> None:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_labels": 1000}
    networks.build(ResNetConfig.from_dict(sizes)).save_pretrained(tmp_path)
    if named:
        edit_json(tmp_path / "config.json", id2label={str(index): f"class {index}" for index in range(1000)})
    job = image_model("--weights", tmp_path, "--size", 64)
    assert job.labels[0] == ("class 0" if named else "tench")
    assert any("ImageNet's are assumed; --labels FILE" in note for note in job.notes) is not named


def test_serving_options_reach_the_config(tiny_bert: Path) -> None:
    command = "text-encoder --name model --batch-size 32 --max-batch-delay-ms 2 --workers 3 --max-inputs 9".split()  # noqa: SIM905
    more = ["--weights", str(tiny_bert), "--max-tokens", "16", "--truncate", "--no-normalize", "--top-k", "2"]
    config = resolve.text_model(cast("TextOptions", command_line.parse([*command, *more]))).config
    assert (config["batchSize"], config["maxBatchDelay"], config["minWorkers"], config["maxWorkers"]) == (32, 2, 3, 3)
    handler = config["handler"]
    assert (handler["maxInputs"], handler["maxTokens"], handler["truncate"], handler["topK"]) == (9, 16, True, 2)
    assert handler["pooling"] == {"modes": ["mean"], "normalize": False, "includePrompt": True}


def test_presets_batch_more(tiny_bert: Path) -> None:
    options = cast("TextOptions", command_line.parse(["bert-large", "--weights", str(tiny_bert)]))
    assert resolve.text_model(dataclasses.replace(options, architecture={})).config["batchSize"] == 64
    assert options.name == "bert-large"


def test_a_checkpoint_error_is_a_value_error() -> None:
    assert issubclass(CheckpointError, ValueError)


def test_fp8_is_for_fused_text_encoders(
    refuse: Callable[..., str], tiny_bert: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = ("--precision", "fp8", "--name", "low")
    error = refuse("text-encoder", "--weights", tiny_bert, *low, "--engine", "torch_eager")
    assert "fp8 is for --engine fused (or auto), and the engine is torch_eager; --precision auto" in error
    with pytest.raises(SystemExit):
        command_line.parser().parse_args(["image-classifier", "--weights", str(digits), *low])
    assert "invalid choice: 'fp8'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--parity-data", "--labels", "--tokenizer"])
def test_a_file_that_is_not_there_is_noticed_at_once(
    refuse: Callable[..., str], digits: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(fingerprint, "inputs_digest", lambda *_: pytest.fail("the weights were read first"))
    command = "text-encoder" if option == "--tokenizer" else "image-classifier"
    error = refuse(command, "--weights", digits, option, digits / "nowhere", "--name", "digits")
    assert error.startswith(f"{option} {digits / 'nowhere'}: there is no such file or folder")


def test_the_decoder_is_a_setting_of_the_archive(digits: Path) -> None:
    assert image_model("--weights", digits).settings.decoder == "auto"
    assert image_model("--weights", digits, "--decoder", "cpu").settings.decoder == "cpu"
