"""The packaging script's command line: its parsers, their help, and the typed options that come of them."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from archive import presets, signing_command_line
from archive.near_options import Parser
from archive.options import (
    ImageClassifierOptions,
    ImageEncoderOptions,
    InspectionOptions,
    PackagingOptions,
    SigningOptions,
    TextOptions,
)
from archive.parity import PRECISIONS
from archive.presets import Preset
from handlers import tasks
from handlers.tasks.shared.pooling import POOLINGS

TASKS = tasks.names()
# Commands that take every architecture, with the options that they become.
COMMANDS: Mapping[str, type[PackagingOptions]] = {
    "image-classifier": ImageClassifierOptions,
    "image-encoder": ImageEncoderOptions,
    "text-encoder": TextOptions,
}
# Options that do not decide what is in the archive.
NOT_RECORDED = ("force", "export_path", "sign")

MAIN = """\
Make a TorchServe model archive (.mar) from a checkpoint, or look into one.

  scripts/package image-classifier --weights microsoft/resnet-50
  scripts/package resnet101 --weights resnet101-cd907fc2.pth
  scripts/package image-encoder --weights facebook/dinov2-base
  scripts/package text-encoder --weights sentence-transformers/all-MiniLM-L6-v2
  scripts/package bert-large --weights ./my-finetuned-bert-large --precision fp16
  scripts/package show model_store/resnet101.mar
  scripts/package verify model_store/resnet101.mar
  scripts/package keygen archives
  scripts/package sign model_store/resnet101.mar --key archives.key
  scripts/package verify model_store/resnet101.mar --key archives.pub
  scripts/package verify-store model_store --key archives.pub

An archive holds all that a worker needs: handlers, safetensors weights, tokenizer, labels, settings, and a
provenance file. Before the archive is put in place, packaging
  1. unpacks it and loads it in a fresh process,
  2. sends it one request,
  3. runs the parity gate: it compares the outputs for sample inputs with those of the checkpoint in fp32.
An archive that misses the stated tolerances is refused. COMMAND --help says more.
"""
EPILOG = """\
Afterwards:
  scripts/predict model_store/resnet101.mar photo.jpg      asks the archive at a terminal, without a server
  scripts/serve model_store/resnet101.mar                  serves it with TorchServe
If packaging fails and its message is not enough, PACKAGING_TRACEBACK=1 in the environment shows where.

Exit status: 0; 1 after an error, with the reason; 2 for a wrong command line.
"""
IMAGE = """\
Package an image classifier: ResNet, ResNeXt, Wide ResNet, or another that transformers loads.

--weights takes
  a Hugging Face folder or Hub id           config.json, model.safetensors, preprocessor_config.json
  a timm folder or Hub id                   config.json with pretrained_cfg, model.safetensors
  a torchvision or timm state dict          .pth or .safetensors, recognised by its weights' names and shapes:
                                            ResNet-18 to 152, ResNeXt, Wide ResNet
Weights that are missing, unexpected or misshapen are listed and refused. Pickles are read with weights_only.

Every engine runs ResNet, ResNeXt and Wide ResNet. Other classifiers (ViT, ConvNeXt, Swin, RegNet, MobileNet,
EfficientNet, ...; timm's if timm and torchvision are installed) need their folder. They run as transformers' own
network, by torch_eager, or as ONNX by TensorRT. Code that comes with a checkpoint (trust_remote_code) is never run.

Labels and preprocessing come from the checkpoint's own files if it has them. The options below override them.
A bare state dict of 1,000 classes gets ImageNet's labels. A bare file that torchvision released (known by its
SHA-256) gets the preprocessing of its release. Another bare file gets resize 256 and crop 224, and a note says so.
"""
IMAGE_ENCODER = """\
Package an image encoder: pooled features of DINOv2, ViT, CLIP, SigLIP or another network, as embeddings.

--weights takes a Hugging Face folder or Hub id: config.json, weights, preprocessor_config.json.

The embedding is what transformers calls pooled features:
  CLIP, SigLIP              get_image_features: the image tower, for CLIP with its projection
  others                    the pooler_output of AutoModel: DINOv2's class token, ViT's after the pooling layer
Weights that are missing are listed and refused (many ViT classifiers have no pooling layer). Those of a text tower
or of a classifier are left out. An answer is a list of numbers, base64 or raw bytes, like that of a text encoder.
"""
TEXT = """\
Package an encoder of the BERT family (BERT, RoBERTa, XLM-R, DistilBERT, ELECTRA, MiniLM and others).

--weights takes a Hugging Face or sentence-transformers folder, or a Hub id.

The task is the one that the checkpoint was made for, unless --task says otherwise:
  embeddings                one vector per text, made as modules.json and the files it names say
  sparse-embeddings         token weights as SPLADE has them: indices and values of each text
  sequence-classification   labels with scores; takes pairs, so it reranks too
  token-classification      entities with their position in the text
  fill-mask                 likeliest tokens for each mask
"""
DESCRIPTIONS = {"image-classifier": IMAGE, "image-encoder": IMAGE_ENCODER, "text-encoder": TEXT}
EXAMPLES = {
    "image-classifier": """\
  scripts/package image-classifier --weights microsoft/resnet-50
  scripts/package image-classifier --weights resnet50-11ad3fa6.pth --name resnet50
  scripts/package image-classifier --weights ./my-resnet.pth --labels labels.txt --size 224 --resize 256
  scripts/package image-classifier --weights ./my-vit --batch-size 32 --parity-data ./photos
""",
    "image-encoder": """\
  scripts/package image-encoder --weights facebook/dinov2-base
  scripts/package image-encoder --weights ./my-clip --normalize --max-inputs 16
""",
    "text-encoder": """\
  scripts/package text-encoder --weights sentence-transformers/all-MiniLM-L6-v2
  scripts/package text-encoder --weights ./my-sentiment-model --max-tokens 256 --truncate
  scripts/package text-encoder --weights ./my-bert --task embeddings --pooling mean --normalize
""",
    "resnet101": """\
  scripts/package resnet101 --weights resnet101-cd907fc2.pth
  scripts/package resnet101 --weights microsoft/resnet-101 --workers 2
  scripts/package resnet101 --random-weights --name benchmark
""",
    "bert-large": """\
  scripts/package bert-large --weights ./my-finetuned-bert-large --precision fp16
  scripts/package bert-large --random-weights --tokenizer ./my-bert --name benchmark
""",
}
SOURCE_OF = {False: "--weights SOURCE", True: "(--weights SOURCE | --random-weights)"}  # by whether it is a preset
PARITY_DATA = (
    "The archive carries a few of them, as the model reads them (pixels, token ids), with their fp32 outputs, so "
    "that a worker can check its engine. Whoever gets the archive can read them: give no private data"
)


def parse(arguments: Sequence[str] | None = None) -> PackagingOptions | InspectionOptions | SigningOptions:
    """Read the command line.

    Args:
        arguments: without the program's name; None takes those of this process.

    Returns:
        The typed options, with a preset's values merged in.

    Raises:
        SystemExit: after --help, and for arguments that are not understood; argparse has printed why.
    """
    chosen = parser().parse_args(arguments)
    if signing := signing_command_line.options(chosen):
        return signing
    if chosen.command in ("show", "verify"):
        return InspectionOptions(command=chosen.command, mar=chosen.mar)
    preset = presets.of_command(chosen.command)
    options = COMMANDS[preset.kind]
    return options(**_values(options, vars(chosen), preset))


def _values(options: type, chosen: Mapping[str, Any], preset: Preset) -> dict[str, Any]:
    """The value of each of the class's fields."""
    name = chosen["name"] or default_name(chosen["weights"])
    given = {key: value for key, value in {**chosen, "name": name}.items() if key not in NOT_RECORDED}
    fields = {field.name for field in dataclasses.fields(options)}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items()}
    return {
        **{key: value for key, value in values.items() if key in fields},
        "name": name,
        "batch_size": chosen["batch_size"] or preset.batch_size,
        "batch_size_given": chosen["batch_size"] is not None,
        "max_batch_delay_ms": chosen["max_batch_delay_ms"] or preset.max_batch_delay_ms,
        "architecture": preset.architecture,
        "given": given,
    }


def default_name(weights: str) -> str:
    """Return a model's name for a checkpoint: the last part of its path or Hub id in lower case, without suffix."""
    path = Path(weights)
    return (path.stem if path.is_file() else path.resolve().name if path.is_dir() else weights.split("/")[-1]).lower()


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    main = _parser(MAIN, EPILOG)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (*COMMANDS, *presets.PRESETS):
        _add_packaging(commands, command, presets.of_command(command).kind)
    for command, text in (
        ("show", "Print what is inside an archive: weights, parity, versions, files, settings."),
        (
            "verify",
            "Recompute an archive's digests, and check its signature with --key. The exit status is 1 if it is not "
            "what was packaged or signed.",
        ),
    ):
        reader = commands.add_parser(command, help=text, description=text)
        reader.add_argument(
            "mar", type=Path, metavar="FILE.mar", help="the archive, such as model_store/resnet101.mar"
        )
        if command == "verify":
            signing_command_line.add_key(reader)
    signing_command_line.add(commands)
    return main


def _add_packaging(commands: argparse._SubParsersAction[argparse.ArgumentParser], command: str, kind: str) -> None:
    image = kind != "text-encoder"
    preset = command in presets.PRESETS
    first, _, rest = DESCRIPTIONS[kind].partition("\n")
    if preset:
        first = f"Preset of {kind} for {command}: refuses other architectures, and sets batch size and name."
    one_line = f"Preset of {kind} for {command}" if preset else first.rstrip(".")
    sub = commands.add_parser(
        command,
        help=one_line,
        usage=f"scripts/package {command} {SOURCE_OF[preset]} [OPTION ...]",
        description=f"{first}\n\n{EXAMPLES[command]}{rest}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_source(sub, preset)
    _add_archive(sub, command if preset else None)
    _add_serving(sub, kind, presets.of_command(command))
    if image:
        _add_image(sub, kind)
        _add_tensorrt(sub)
    else:
        _add_text(sub)


def _add_source(sub: argparse.ArgumentParser, preset: bool) -> None:
    group = sub.add_argument_group("checkpoint")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", metavar="SOURCE", help="folder, file or Hugging Face Hub id, as above")
    if preset:
        source.add_argument(
            "--random-weights", action="store_true", help="untrained but well-scaled weights, for benchmarks"
        )
    group.add_argument("--revision", help="branch, tag or commit of a Hub id (default: the Hub's default branch)")


def _add_archive(sub: argparse.ArgumentParser, name: str | None) -> None:
    group = sub.add_argument_group("archive")
    group.add_argument(
        "--name",
        type=_name,
        default=name,
        help="name of the model, and of its file NAME.mar "
        f"(default: {name or 'the last part of SOURCE in lower case, without suffix'})",
    )
    group.add_argument(
        "--model-version", default="1.0", metavar="V", help="version that TorchServe shows (default: %(default)s)"
    )
    group.add_argument(
        "--export-path",
        type=Path,
        default=Path("model_store"),
        metavar="DIR",
        help="folder that NAME.mar is put into (default: %(default)s)",
    )
    group.add_argument("--force", action="store_true", help="package even if nothing has changed")
    group.add_argument(
        "--sign",
        type=Path,
        metavar="KEY",
        help="sign the archive with this private key, of `scripts/package keygen` or of minisign: NAME.mar.minisig "
        "is put beside NAME.mar",
    )


def _add_serving(sub: argparse.ArgumentParser, kind: str, preset: Preset) -> None:
    image = kind != "text-encoder"
    serving = sub.add_argument_group("serving (kept in the archive's model-config.yaml, where it may be edited)")
    fewer = "" if kind == "image-classifier" else ", or fewer if their answers are large"
    serving.add_argument(
        "--batch-size",
        type=_positive,
        metavar="N",
        help=f"requests answered together (default: {preset.batch_size}{fewer})",
    )
    serving.add_argument(
        "--max-batch-delay-ms",
        type=_positive,
        metavar="MS",
        help="how long the first request of a batch waits for others, in milliseconds; 1 to 5 is sensible "
        f"(default: {preset.max_batch_delay_ms})",
    )
    serving.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="worker processes started with the model (default: as many as keep one GPU of this machine busy and fit "
        "into it, at most 8; without a GPU 1)",
    )
    _add_execution(serving, image)
    serving.add_argument(
        "--max-inputs",
        type=_positive,
        metavar="N",
        help=f"{'images' if image else 'texts'} that one request may bring (default: 64)",
    )
    samples = "a folder of images" if image else "a file in UTF-8, one text per line"
    own = "sixteen views of two photographs" if image else "archive/samples/texts.txt"
    serving.add_argument(
        "--parity-data",
        type=Path,
        metavar="PATH",
        help=f"samples of your own for the parity gate: {samples} (default: {own}). {PARITY_DATA}",
    )


def _add_execution(serving: argparse._ArgumentGroup, image: bool) -> None:
    """How the network runs: precision, engine, device."""
    fp8 = "" if image else ". fp8: linear layers in e4m3, calibrated on the parity gate's samples; Hopper and newer"
    serving.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS, *(() if image else ("fp8",))),
        default="auto",
        help="auto (default): on a GPU fp16; on a CPU with native bf16 the faster of bf16 and fp32; on other CPUs, "
        f"and if those miss parity, fp32{fp8}",
    )
    auto = "measured there" if image else "measured there on a CPU"
    named = "cudnn, tensorrt" if image else "fused"
    serving.add_argument(
        "--engine",
        default="auto",
        help=f"auto (default): the fastest that can run on the serving machine, {auto}. By name: {named}, "
        "torch_eager, onnxruntime (on a CPU). An engine for GPUs may be packaged on a machine without one; another "
        "engine then stands in for it at the parity gate",
    )
    serving.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="device that serves the model; auto (default): the GPU that TorchServe assigns, else the CPU",
    )


def _add_image(sub: argparse.ArgumentParser, kind: str) -> None:
    group = sub.add_argument_group(kind.replace("-", " "))
    group.add_argument(
        "--decoder",
        choices=("auto", "gpu", "cpu"),
        help="what decodes JPEGs. gpu: the GPU's JPEG engines, through nvImageCodec; cpu: Pillow; auto (default): "
        "the GPU's if they are there and give the same pixels",
    )
    if kind == "image-classifier":
        _add_classes(group)
    else:
        group.add_argument(
            "--normalize",
            action=argparse.BooleanOptionalAction,
            help="scale embeddings to length 1, unless a request says otherwise (default: no)",
        )
    _add_preprocessing(group)


def _add_classes(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="class names: one per line in class order, or JSON: a list, or TorchServe's index_to_name "
        "(default: the checkpoint's own)",
    )
    group.add_argument("--top-k", type=_positive, metavar="K", help="classes in an answer (default: 5)")


def _add_preprocessing(group: argparse._ArgumentGroup) -> None:
    own = "(default: the checkpoint's own)"
    group.add_argument(
        "--size", type=_positive, metavar="PX", help=f"side of the centre crop that the network sees, in pixels {own}"
    )
    group.add_argument(
        "--resize", type=_positive, metavar="PX", help=f"shorter side before the crop, in pixels: 232, 256, ... {own}"
    )
    group.add_argument(
        "--resize-mode",
        choices=("shortest_edge", "square"),
        help=f"shortest_edge keeps the image's proportions, square does not {own}",
    )
    group.add_argument(
        "--interpolation",
        choices=("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
        help=f"filter that resizes {own}",
    )
    rgb = ("R", "G", "B")
    group.add_argument(
        "--mean", type=float, nargs=3, metavar=rgb, help=f"per channel, subtracted from values in 0..1 {own}"
    )
    group.add_argument(
        "--std", type=float, nargs=3, metavar=rgb, help=f"per channel, divides values in 0..1 after --mean {own}"
    )
    group.add_argument(
        "--max-pixels",
        type=_positive,
        metavar="N",
        help="largest image, in pixels (width x height); all images of a request together may have four times as "
        "many (default: 50,000,000)",
    )


def _add_tensorrt(sub: argparse.ArgumentParser) -> None:
    plan = sub.add_argument_group("TensorRT (--engine tensorrt, or auto if TensorRT is installed)")
    plan.add_argument(
        "--converter",
        choices=("onnx", "torch2trt"),
        default="onnx",
        help="how the network gets into TensorRT (default: %(default)s). torch2trt is on no registry: "
        "git clone https://github.com/NVIDIA-AI-IOT/torch2trt && pip install ./torch2trt",
    )
    plan.add_argument(
        "--plan",
        choices=("auto", "packaging", "first-load"),
        default="auto",
        help="when the plan is built. packaging: now; first-load: when a worker first loads the model; auto "
        "(default): now if a GPU and TensorRT are here, else at first load, but not with "
        "--engine auto",
    )
    plan.add_argument(
        "--plan-buckets",
        type=_bucket,
        nargs="+",
        metavar="N",
        help="batch sizes that the plan is built for, up to 256; each takes a minute and more (default: 1 8 and the "
        "batch size)",
    )
    plan.add_argument(
        "--on-mismatch",
        choices=("rebuild", "refuse"),
        help="what a worker does with a plan for another GPU or TensorRT: rebuild (default) builds one there, refuse "
        "does not load. With --engine auto another engine serves instead of a rebuild",
    )


def _add_text(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("text encoder")
    group.add_argument("--task", choices=TASKS, help="what the model answers (default: the checkpoint's own)")
    group.add_argument(
        "--pooling",
        choices=POOLINGS,
        nargs="+",
        help="how token vectors become an embedding; several are concatenated (default: the checkpoint's own)",
    )
    group.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="scale embeddings to length 1 (default: the checkpoint's own; no with --pooling)",
    )
    group.add_argument(
        "--dimensions",
        type=_positive,
        nargs="+",
        metavar="N",
        help="shorter embeddings that the checkpoint was trained for (Matryoshka), such as 256 512: a request may "
        "ask for one of these sizes (default: the checkpoint's own, if its files name them)",
    )
    group.add_argument(
        "--max-tokens",
        type=_positive,
        metavar="N",
        help="longest text, in tokens, special ones counted (default, and at most: the checkpoint's own maximum)",
    )
    group.add_argument("--truncate", action="store_true", help="cut longer texts instead of refusing them with a 400")
    group.add_argument("--top-k", type=_positive, metavar="K", help="labels or fillings in an answer (default: 5)")
    group.add_argument(
        "--tokenizer",
        metavar="DIR",
        type=Path,
        help="folder of the tokenizer for --random-weights (default: the demo's, if installed)",
    )


def _parser(description: str, epilog: str) -> argparse.ArgumentParser:
    return Parser(
        prog="scripts/package",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: a whole number, 1 or more")
    return int(text)


def _bucket(text: str) -> int:
    if _positive(text) > 256:
        raise argparse.ArgumentTypeError(f"{text}; wanted: a batch size of 1 to 256")
    return int(text)


def is_name(text: str) -> bool:
    """Return whether TorchServe takes it for a model's name, and its archiver for a file's."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text))


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: letters, digits, '_', '-' and '.'")
    return text
