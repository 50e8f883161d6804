"""Image encoders: embeddings are the pooled features that transformers gives, for each family of networks."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from transformers import AutoImageProcessor

from archive import answer_sizes, command_line, onnx_export, resolve
from archive.checkpoints.errors import CheckpointError
from archive.options import ImageEncoderOptions
from handlers import engines, tasks
from handlers.engines import EngineSpec
from handlers.engines.image_inputs import outputs
from handlers.image_classifier import ImageClassifier
from handlers.selection.references import OF_ARCHIVE
from handlers.settings import ImageSettings
from tests.image_jobs import served

Answers = list[tuple[int, Any]]
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IMAGES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "initializer_range": 0.2}
TEXTS: dict[str, Any] = {**SMALL, "vocab_size": 20, "max_position_embeddings": 8}
VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}
SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
NAFLEX = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 4, "max_num_patches": 64}


def tower(network: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Features of a model with two towers."""
    found: torch.Tensor = network.get_image_features(**inputs).pooler_output
    return found


def pooled(network: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = network(**inputs).pooler_output
    return found.flatten(1)


def class_token(network: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = network(**inputs).last_hidden_state[:, 0]
    return found


# By name: the network, its processor's file, its features by transformers, how many they are.
CASES: dict[str, tuple[Callable[[], Any], dict[str, Any], Callable[..., torch.Tensor], int]] = {
    "clip": (
        lambda: transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config=TEXTS, vision_config={**SMALL, **IMAGES, "projection_dim": 99}, projection_dim=12
            )
        ),
        CLIP,
        tower,
        12,
    ),
    "clip's image tower": (
        lambda: transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**SMALL, **IMAGES, projection_dim=10)
        ),
        CLIP,
        lambda network, inputs: network(**inputs).image_embeds,
        10,
    ),
    "clip's image tower without projection": (
        lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL, **IMAGES)),
        CLIP,
        pooled,
        16,
    ),
    "siglip": (
        lambda: transformers.SiglipModel(
            transformers.SiglipConfig(text_config=TEXTS, vision_config={**SMALL, **IMAGES})
        ),
        SIGLIP,
        tower,
        16,
    ),
    "siglip 2 of any shape": (
        lambda: transformers.Siglip2Model(
            transformers.Siglip2Config(text_config=TEXTS, vision_config={**SMALL, "patch_size": 4, "num_patches": 64})
        ),
        NAFLEX,
        tower,
        16,
    ),
    "dinov2": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, **IMAGES, mlp_ratio=2)),
        VIT,
        class_token,
        16,
    ),
    "vit": (lambda: transformers.ViTModel(transformers.ViTConfig(**SMALL, **IMAGES)), VIT, pooled, 16),
    "resnet": (
        lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
        CLIP,
        pooled,
        16,
    ),
}


def checkpoint(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    made, processor, _, _ = CASES[name]
    made().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def job_of(folder: Path, *arguments: object) -> Any:
    line = ["image-encoder", "--weights", str(folder), "--name", "model", *map(str, arguments)]
    return resolve.image_encoder_model(cast("ImageEncoderOptions", command_line.parse(line)))


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    return [china, flower.crop((200, 60, 420, 400)), flower]


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_embeddings_are_transformers_pooled_features(
    name: str, tmp_path: Path, photographs: list[Image.Image], ask: Callable[..., Answers]
) -> None:
    folder = checkpoint(name, tmp_path / "checkpoint")
    _, _, features, size = CASES[name]
    job = job_of(folder)
    assert job.gives_embeddings
    assert job.settings.task == "embeddings"
    handler = served(job, tmp_path / "archive")
    assert not (tmp_path / "archive" / "labels.json").exists()
    checked = handler.model.description["engine"]["checked"]
    assert (checked["against"], checked["leastCosine"] > 0.99999) == (OF_ARCHIVE, True)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    config = transformers.AutoConfig.from_pretrained(folder)
    network = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    answers = ask(handler, [{"body": png(image)} for image in photographs])
    for (status, answer), image in zip(answers, photographs, strict=True):
        wanted = features(network, processor(images=image, return_tensors="pt"))[0]
        assert (status, len(answer)) == (200, size)
        assert np.abs(np.array(answer) - wanted.numpy()).max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    # The parity gate's reference is the same network on the pixels of the checkpoint's own processor.
    sample = job.samples()[0]
    found = handler.run(handler.prepare_one(sample))
    np.testing.assert_allclose(found.numpy(), job.reference_outputs([sample]), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> ImageClassifier:
    """DINOv2's, whose embeddings are of length 1 unless a request says otherwise."""
    folder = tmp_path_factory.mktemp("dinov2")
    return served(job_of(checkpoint("dinov2", folder / "checkpoint"), "--normalize"), folder / "archive")


class TestAnswers:
    def test_length_1_is_the_archives_choice_and_the_requests(
        self, handler: ImageClassifier, photographs: list[Image.Image], ask: Callable[..., Answers]
    ) -> None:
        rows = [{"body": png(photographs[0])}] * 3
        given = ask(handler, rows, [{}, {"X-Normalize": "false"}, {"X-Normalize": "true"}])
        first, plain, last = (np.array(answer) for _, answer in given)
        assert np.linalg.norm(first) == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(plain) > 1.5
        np.testing.assert_allclose(plain / np.linalg.norm(plain), first, atol=1e-6)
        np.testing.assert_allclose(first, last, atol=1e-7)

    def test_base64_in_json(
        self, handler: ImageClassifier, photographs: list[Image.Image], ask: Callable[..., Answers]
    ) -> None:
        body = {"instances": [{"b64": base64.b64encode(png(image)).decode()} for image in photographs]}
        headers = {"content-type": "application/json", "X-Encoding-Format": "base64", "X-Dtype": "float16"}
        ((status, answer),) = ask(handler, [{"body": body}], [headers])
        assert status == 200
        vectors = [np.frombuffer(base64.b64decode(text), "<f2") for text in answer["predictions"]]
        assert [vector.shape for vector in vectors] == [(16,)] * 3

    def test_a_numpy_file(
        self, handler: ImageClassifier, photographs: list[Image.Image], context_for: Callable[..., Any]
    ) -> None:
        context = context_for([{"accept": "application/x-npy"}])
        context.set_response_header = lambda *arguments: None
        (body,) = handler.handle([{"body": png(photographs[0])}], context)
        assert np.load(io.BytesIO(body)).shape == (1, 16)

    def test_what_a_classifier_takes_is_refused(
        self, handler: ImageClassifier, photographs: list[Image.Image], ask: Callable[..., Answers]
    ) -> None:
        ((status, answer),) = ask(handler, [{"body": png(photographs[0])}], [{"X-Normalize": "maybe"}])
        assert (status, answer["type"]) == (400, "InvalidOption")


@pytest.mark.parametrize(("engine", "precision"), [("cudnn", "fp16"), ("onnxruntime", "fp32")])
def test_engines_of_classifiers_are_refused(tmp_path: Path, engine: str, precision: str) -> None:
    folder = checkpoint("resnet", tmp_path / "checkpoint")
    spec = EngineSpec("image-classifier", folder, torch.device("cpu"), precision, task="embeddings", image_size=32)
    assert engines.get(engine).why_never(spec) == "it runs classifiers, and the network is an image encoder"


def test_their_options_are_known_to_every_model(handler: ImageClassifier) -> None:
    """A model that lacks an option refuses it by name, instead of ignoring it."""
    assert set(handler.task.options) <= set(tasks.option_names())


@pytest.mark.parametrize("name", ["clip", "dinov2", "siglip"])
@torch.inference_mode()
def test_onnx_puts_out_the_features(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    network = job_of(checkpoint(name, tmp_path)).checkpoint.network()
    onnx_export.export(network, tmp_path / "model.onnx", 32, torch.float32)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 32, 32)
    (found,) = session.run(None, {"images": images.permute(0, 2, 3, 1).numpy()})
    np.testing.assert_allclose(found, outputs(network, images).numpy(), rtol=1e-4, atol=1e-5)


def test_a_classifiers_weights_without_a_pooling_layer_are_refused(tmp_path: Path) -> None:
    """The pooling layer would be random."""
    config = transformers.ViTConfig(**SMALL, **IMAGES)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"not those of a ViTModel; missing: .*pooler\.dense\.bias"):
        job_of(tmp_path)


def test_a_classifiers_head_is_left_out(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(**SMALL, **IMAGES, mlp_ratio=2)
    transformers.Dinov2ForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT), encoding="utf-8")
    notes = " ".join(job_of(tmp_path).notes)
    assert "weights that Dinov2Model does not use were left out: classifier.bias, classifier.weight" in notes


def test_a_text_towers_weights_are_left_out(tmp_path: Path) -> None:
    notes = " ".join(job_of(checkpoint("clip", tmp_path)).notes)
    assert "weights that CLIPVisionModelWithProjection does not use were left out: logit_scale, text_model" in notes


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda s: s.pop("vision_model.post_layernorm.weight"), r"missing: .*post_layernorm\.weight"),
        (lambda s: s.update({"visual_projection.weight": torch.ones(3, 16)}), "visual_projection.weight is"),
        (lambda s: s.update({"visual_projection.weight": torch.full((12, 16), torch.nan)}), "not finite"),
    ],
)
def test_damaged_weights_are_refused_by_name(tmp_path: Path, edit: Callable[..., Any], named: str) -> None:
    folder = checkpoint("clip", tmp_path)
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=named):
        job_of(folder)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is no image encoder"),
        ({"model_type": "nothing"}, "model_type 'nothing', which transformers lacks"),
        ({"auto_map": {"AutoModel": "a.B"}}, "a.B"),
        ({"num_channels": 1}, "num_channels|does not take|misshapen"),
    ],
)
def test_folders_that_hold_none_are_refused(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    folder = checkpoint("dinov2", tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **config}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=named):
        job_of(folder)


def test_a_size_that_the_network_does_not_take_is_refused(tmp_path: Path) -> None:
    folder = checkpoint("siglip", tmp_path)
    with pytest.raises(CheckpointError, match="SiglipVisionModel does not take an image of 64 x 64 pixels"):
        job_of(folder, "--size", 64)


def test_a_batchs_answers_are_bounded() -> None:
    size, note = answer_sizes.batch_size(512, ImageSettings(task="embeddings"), 1536)
    assert size < 512
    assert note is not None
    assert answer_sizes.batch_size(512, ImageSettings(), 1536) == (512, None)
