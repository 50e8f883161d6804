"""Save networks of timm's, read them as packaging does, and print what came out, as JSON, one object a case.

Run by test_timm_folders.py in a process of its own, without a network: `python timm_child.py EMPTY_FOLDER`.
"""

from __future__ import annotations

import inspect
import json
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.unit import torchvision_stub

torchvision_stub.install()
warnings.simplefilter("ignore")  # timm's are timm's own

import timm  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402

from archive.checkpoints.errors import CheckpointError  # noqa: E402
from archive.checkpoints.image_checkpoints import read  # noqa: E402
from handlers.engines import networks, titles  # noqa: E402

CLASSES = 5
NAMES = [f"kind {index}" for index in range(CLASSES)]
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}


def config(**changes: Any) -> Callable[[Path], None]:
    """Changes of config.json; None takes a key out."""

    def edit(folder: Path) -> None:
        path = folder / "config.json"
        content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")

    return edit


def pretrained(**changes: Any) -> Callable[[Path], None]:
    """Changes of pretrained_cfg in config.json."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config(pretrained_cfg={**content["pretrained_cfg"], **changes})(folder)

    return edit


def stored_tables(folder: Path) -> None:
    """As timm's older releases saved Swin v2: with buffers that newer ones compute."""
    weights = load_file(folder / "model.safetensors")
    weights["layers.0.blocks.0.attn.relative_coords_table"] = torch.ones(1, 7, 7, 2)
    weights["layers.0.blocks.0.attn.relative_position_index"] = torch.ones(16, 16, dtype=torch.int64)
    save_file(weights, folder / "model.safetensors")


def older(folder: Path) -> None:
    """As timm saved before 1.0.31: without the arguments that the network was made with."""
    config(model_args=None)(folder)


def wrapped(folder: Path) -> None:
    """As transformers saves what it read of timm's folder."""
    read(folder).network().save_pretrained(folder)


@dataclass
class Case:
    """A network of timm's, how it is saved, and what is changed in the folder."""

    architecture: str = "test_resnet"
    arguments: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[Path], None] = lambda folder: None
    safe: bool = True
    labels: list[str] | None = field(default_factory=lambda: NAMES)


CASES = {
    "resnet18": Case("resnet18"),
    "resnext50_32x4d": Case("resnext50_32x4d"),
    "resnet10t": Case("resnet10t"),
    "resnetv2_18": Case("resnetv2_18"),
    "seresnet": Case("seresnet18"),
    "test_resnet": Case(),
    "test_vit": Case("test_vit"),
    "test_convnext": Case("test_convnext"),
    "test_efficientnet": Case("test_efficientnet"),
    "mobilenetv3": Case("mobilenetv3_small_050"),
    "swinv2": Case("swinv2_tiny_window8_256", SWIN),
    "vit": Case("vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "global_pool": "avg"}),
    "shared weights, pickled": Case("coat_tiny", {"img_size": 64}, safe=False),
    "no labels": Case(labels=None),
    "wrapped": Case(edit=wrapped),
    "older": Case("vit_tiny_patch16_224", {"img_size": 32}, older),
    "older pooling": Case("vit_tiny_patch16_224", {"global_pool": "avg"}, older),
    "max pooling": Case(arguments={"global_pool": "max"}),
    "older max pooling": Case("test_convnext", {"global_pool": "max"}, older),
    "older max pooling in a ResNet": Case(arguments={"global_pool": "max"}, edit=older),
    "stored tables": Case("swinv2_tiny_window8_256", SWIN, stored_tables),
    "sources": Case(
        edit=pretrained(url="https://example.org/w.pth", hf_hub_id="an/other", file="/w.pth", source="hf-hub")
    ),
    "hub kernel": Case(edit=config(attn_implementation="an/kernel")),
    "flash": Case(edit=config(attn_implementation="flash_attention_2")),
    "quantized": Case(edit=config(quantization_config={"quant_method": "bitsandbytes"})),
    "hf-hub": Case(edit=config(architecture="hf-hub:timm/test_resnet.r160_in1k")),
    "hf_hub": Case(edit=config(architecture="hf_hub:timm/test_resnet.r160_in1k")),
    "local-dir": Case(edit=config(architecture="local-dir:/other")),
    "path": Case(edit=config(architecture="../test_resnet")),
    "unknown": Case(edit=config(architecture="no_such_network")),
    "no architecture": Case(edit=config(architecture=None, model_type="timm_wrapper")),
    "checkpoint_path": Case(edit=config(model_args={"checkpoint_path": "/other.pth"})),
    "pretrained": Case(edit=config(model_args={"pretrained": True})),
    "not pretrained": Case(
        edit=config(model_args={"pretrained": False, "checkpoint_path": "", "num_classes": CLASSES})
    ),
    "pretrained_cfg": Case(edit=config(model_args={"pretrained_cfg": {"hf_hub_id": "an/other"}})),
    "features": Case(edit=config(model_args={"features_only": True})),
    "grey": Case(edit=config(model_args={"in_chans": 1})),
    "two counts": Case(edit=config(model_args={"num_classes": 7})),
    "resnet18 with a checkpoint_path": Case("resnet18", edit=config(model_args={"checkpoint_path": "/other.pth"})),
}


def refuse_connections() -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        print("connected", file=sys.stderr)
        raise AssertionError("a connection was tried")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = refuse


@torch.inference_mode()
def run(case: Case, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    network = timm.create_model(case.architecture, num_classes=CLASSES, **case.arguments).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.uniform_(0.5, 1.5)
    named = {"label_names": case.labels} if case.labels else {}
    timm.models.save_for_hf(network, str(folder), model_config=named, safe_serialization=case.safe)
    case.edit(folder)
    found = read(folder)
    assert found.preprocess is not None
    size = found.preprocess.size
    images = torch.randn(2, 3, size, size)
    found.network().save_pretrained(folder / "served")
    served = networks.load(folder / "served", torch.float32)
    wanted = network(images)
    return {
        "size": size,
        "labels": found.labels,
        "layout": found.layout,
        "notes": found.notes,
        "title": titles.title(folder / "served"),
        "config": json.loads((folder / "served" / "config.json").read_text(encoding="utf-8")),
        "scale": float(wanted.abs().max()),
        "read": float((found.network()(images).logits - wanted).abs().max()),
        "served": float((served(images).logits - wanted).abs().max()),
    }


def main(folder: Path) -> None:
    disable_progress_bar()
    refuse_connections()
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    for name, case in CASES.items():
        (folder / name).mkdir()
        try:
            report[name] = run(case, folder / name)
        except CheckpointError as error:
            report[name] = {"refused": str(error)}
    report["parameters"] = sorted(
        name
        for function in (timm.create_model, timm.models.build_model_with_cfg)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    )
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
