"""The packaging script's command line: parsers and their help."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from archive.parity import PRECISIONS

POOLING_MODES = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
TASKS = ("embeddings", "sequence-classification", "token-classification", "fill-mask")
KINDS = ("image-classifier", "image-encoder", "text-encoder")
PRESETS = {"resnet101": "image-classifier", "bert-large": "text-encoder"}

MAIN = """\
Make a TorchServe model archive (.mar) from a checkpoint, or look into one.

  scripts/package image-classifier --weights microsoft/resnet-50
  scripts/package resnet101 --weights resnet101-cd907fc2.pth
  scripts/package image-encoder --weights facebook/dinov2-base
  scripts/package text-encoder --weights sentence-transformers/all-MiniLM-L6-v2
  scripts/package bert-large --weights ./my-finetuned-bert-large --precision fp16
  scripts/package show model_store/resnet101.mar
  scripts/package verify model_store/resnet101.mar

An archive holds all that a worker needs: handlers, safetensors weights, tokenizer, labels, settings, and a
provenance file. Before it is put in place it is unpacked, loaded in a fresh process, asked one request, and compared
with the fp32 reference of its checkpoint. What misses the stated tolerances is refused. COMMAND --help says more.
"""
EPILOG = """\
Afterwards:  torchserve --start --ncs --ts-config config.properties --model-store MODEL_STORE --models NAME.mar
"""
IMAGE = """\
Package an image classifier: ResNet, ResNeXt, Wide ResNet, or another that transformers loads.

--weights takes
  a Hugging Face folder or hub id           config.json, model.safetensors, preprocessor_config.json
  a timm folder or hub id                   config.json with pretrained_cfg, model.safetensors
  a torchvision or timm state dict          .pth or .safetensors, recognised by its weights' names and shapes:
                                            ResNet-18 to 152, ResNeXt, Wide ResNet
Weights that are missing, unexpected or misshapen are listed and refused. Pickles are read with weights_only.

Every engine runs those three. Other classifiers (ViT, ConvNeXt, Swin, RegNet, MobileNet, EfficientNet, ...; timm's
where timm and torchvision are installed) need their folder, and run as transformers' own network, by torch_eager or
as ONNX by TensorRT. Code that a checkpoint brings with it (trust_remote_code) is never run.

Labels and preprocessing come from the checkpoint's own files where it has them; the options below override them.
A bare state dict of 1,000 classes gets ImageNet's labels, and torchvision's preprocessing: that of its release where
the file is one of torchvision's own (known by its SHA-256), else resize 256 and crop 224, and a note says so.
"""
ENCODER = """\
Package an image encoder: pooled features of DINOv2, ViT, CLIP, SigLIP or another network, as embeddings.

--weights takes a Hugging Face folder or hub id: config.json, weights, preprocessor_config.json.

The embedding is what transformers calls pooled features:
  CLIP, SigLIP              get_image_features: the image tower, CLIP's behind its projection
  others                    the pooler_output of AutoModel: DINOv2's class token, ViT's behind the pooling layer
Weights that are missing are listed and refused (many ViT classifiers have no pooling layer). Those of a text tower
or of a classifier are left out. An answer is a list of numbers, base64 or raw bytes, as of a text encoder.
"""
TEXT = """\
Package an encoder of the BERT family (BERT, RoBERTa, XLM-R, DistilBERT, ELECTRA, MiniLM and others).

--weights takes a Hugging Face or sentence-transformers folder, or a hub id.

The task is the one that the checkpoint was made for, unless --task says otherwise:
  embeddings                one vector a text, pooled and normalised as modules.json and its pooling config say
  sequence-classification   labels with scores; takes pairs, so it reranks too
  token-classification      entities with their place in the text
  fill-mask                 likeliest tokens for each mask
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    main = _parser(MAIN, EPILOG)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, kind in {**{kind: kind for kind in KINDS}, **PRESETS}.items():
        _add_packaging(commands, command, kind)
    for command, text in (
        ("show", "Print what is inside an archive: weights, parity, versions, files, settings."),
        ("verify", "Recompute an archive's digests; exit status 1 where it is not what was packaged."),
    ):
        reader = commands.add_parser(command, help=text, description=text)
        reader.add_argument("mar", type=Path, metavar="FILE.mar")
    return main


def _add_packaging(commands: argparse._SubParsersAction[argparse.ArgumentParser], command: str, kind: str) -> None:
    image = kind != "text-encoder"
    preset = command in PRESETS
    text = {"image-classifier": IMAGE, "image-encoder": ENCODER, "text-encoder": TEXT}[kind]
    if preset:
        text = f"Preset of {kind} for {command}: refuses other architectures, and sets batch size and name.\n\n{text}"
    one_line = f"preset of {kind}" if preset else text.splitlines()[0].rstrip(".")
    sub = commands.add_parser(
        command, help=one_line, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_source(sub, preset)
    _add_serving(sub, command if preset else None, image)
    if image:
        _add_image(sub, kind)
    else:
        _add_text(sub)


def _add_source(sub: argparse.ArgumentParser, preset: bool) -> None:
    source = sub.add_argument_group("checkpoint").add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", metavar="SOURCE", help="folder, file or hub id, as above")
    if preset:
        source.add_argument(
            "--random-weights", action="store_true", help="untrained but well-scaled weights, for benchmarks"
        )
    sub.add_argument("--revision", help="branch, tag or commit of a hub id")


def _add_serving(sub: argparse.ArgumentParser, name: str | None, image: bool) -> None:
    group = sub.add_argument_group("archive")
    group.add_argument(
        "--name", type=_name, default=name, help=f"of model and file (default: {name or 'from the source'})"
    )
    group.add_argument("--model-version", default="1.0", metavar="V", help="(default: %(default)s)")
    group.add_argument(
        "--export-path", type=Path, default=Path("model_store"), metavar="DIR", help="(default: %(default)s)"
    )
    group.add_argument("--force", action="store_true", help="package even if nothing has changed")
    serving = sub.add_argument_group("serving (kept in the archive's model-config.yaml, where it may be edited)")
    serving.add_argument(
        "--batch-size",
        type=_positive,
        metavar="N",
        help="requests answered together (default: 8; presets 64, or fewer if their answers are large)",
    )
    serving.add_argument(
        "--max-batch-delay-ms",
        type=_positive,
        default=None,
        metavar="MS",
        help="how long the first request of a batch waits for others; 1 to 5 is sensible (default: 5)",
    )
    serving.add_argument(
        "--workers", type=_positive, metavar="N", help="started with the model; 2 a GPU overlap well (default: 1)"
    )
    serving.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS, *(() if image else ("fp8",))),
        default="auto",
        help="auto: fp16 on a GPU, bf16 on a CPU that has it natively, where they pass parity, else fp32 (default)"
        + (
            "" if image else ". fp8: linear layers in e4m3, calibrated on the parity gate's samples; Hopper and newer"
        ),
    )
    serving.add_argument(
        "--engine",
        default="auto",
        help="auto: the fastest that can run where it is served, measured there"
        + (" (default). By name: cudnn, tensorrt" if image else " on a CPU (default). By name: fused")
        + ", torch_eager, onnxruntime (on a CPU). One for GPUs may be packaged without one: another stands in for it "
        "at the parity gate",
    )
    serving.add_argument(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="that it is served on; auto: the GPU that TorchServe assigns, else the CPU (default)",
    )
    serving.add_argument("--max-inputs", type=_positive, metavar="N", help="that one request may bring (default: 64)")
    serving.add_argument(
        "--parity-data",
        type=Path,
        metavar="PATH",
        help="samples for the parity gate: a folder of images, or a file of texts; the archive carries a few of them",
    )


def _add_image(sub: argparse.ArgumentParser, kind: str) -> None:
    group = sub.add_argument_group(kind.replace("-", " "))
    group.add_argument(
        "--decoder",
        choices=("auto", "gpu", "cpu"),
        help="of JPEGs; gpu: the GPU's JPEG engines, through nvImageCodec; cpu: Pillow; auto: the former if they are "
        "there and give the same pixels (default)",
    )
    if kind == "image-classifier":
        group.add_argument(
            "--labels",
            type=Path,
            metavar="FILE",
            help="one a line in class order, or JSON: a list, or TorchServe's index_to_name",
        )
        group.add_argument("--top-k", type=_positive, metavar="K", help="classes in an answer (default: 5)")
    else:
        group.add_argument(
            "--normalize",
            action=argparse.BooleanOptionalAction,
            help="scale embeddings to length 1, unless a request says otherwise (default: no)",
        )
    group.add_argument("--size", type=_positive, metavar="PX", help="side of the centre crop that the network sees")
    group.add_argument("--resize", type=_positive, metavar="PX", help="shorter side before the crop: 232, 256, ...")
    group.add_argument("--resize-mode", choices=("shortest_edge", "square"), help="square squashes the image")
    group.add_argument(
        "--interpolation",
        choices=("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"),
        help="of the resize",
    )
    group.add_argument("--mean", type=float, nargs=3, metavar=("R", "G", "B"), help="of values scaled to 0..1")
    group.add_argument("--std", type=float, nargs=3, metavar=("R", "G", "B"), help="of values scaled to 0..1")
    group.add_argument(
        "--max-pixels",
        type=_positive,
        metavar="N",
        help="of one image; those of a request may have four times as many together (default: 50,000,000)",
    )
    plan = sub.add_argument_group("TensorRT (--engine tensorrt, or auto where TensorRT is installed)")
    plan.add_argument(
        "--converter",
        choices=("onnx", "torch2trt"),
        default="onnx",
        help="torch2trt is on no registry: git clone https://github.com/NVIDIA-AI-IOT/torch2trt && pip install "
        "./torch2trt (default: %(default)s)",
    )
    plan.add_argument(
        "--plan",
        choices=("auto", "packaging", "first-load"),
        default="auto",
        help="when the plan is built; auto: now where a GPU and TensorRT are, else at first load (default), where "
        "the engine auto builds none",
    )
    plan.add_argument(
        "--plan-buckets",
        type=_bucket,
        nargs="+",
        metavar="N",
        help="batch sizes to build for, up to 256; a minute and more each (default: 1 8 and the batch size)",
    )
    plan.add_argument(
        "--on-mismatch",
        choices=("rebuild", "refuse"),
        help="where the plan meets another GPU or TensorRT than it was built for: build one there, or do not load; "
        "auto takes another engine rather than build (default: rebuild)",
    )


def _add_text(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("text encoder")
    group.add_argument("--task", choices=TASKS, help="(default: the checkpoint's own)")
    group.add_argument("--pooling", choices=POOLING_MODES, nargs="+", help="of embeddings; several are concatenated")
    group.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help="scale embeddings to length 1; goes with --pooling"
    )
    group.add_argument("--max-tokens", type=_positive, metavar="N", help="at most the checkpoint's own maximum")
    group.add_argument("--truncate", action="store_true", help="cut longer texts by default instead of refusing them")
    group.add_argument("--top-k", type=_positive, metavar="K", help="labels or fillings in an answer (default: 5)")
    group.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder of a tokenizer for --random-weights (default: the demo's, if installed)",
    )


def _parser(description: str, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
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
    """Whether TorchServe takes it for a model's name, and its archiver for a file's."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text))


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted: letters, digits, '_', '-' and '.'")
    return text
