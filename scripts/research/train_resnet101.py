"""Train a ResNet-101 to read handwritten digits: trained weights of full size, to check lower precisions with.

Random weights prove little about fp16. This takes about a minute on a GPU. Data and augmentation are those of
scripts/research/train_digits.py, which trains the demo's small network on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import train_digits
from transformers import ResNetConfig, ResNetForImageClassification

SIZE = 64
EPOCHS = 40
BATCH = 128
PEAK_LEARNING_RATE = 2e-3


def network_input(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 3, 32, 32) in 0..1, as train_digits makes them -> (n, 3, 64, 64), normalised."""
    enlarged = F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return train_digits.normalise(enlarged)


def unseen(count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` augmented views of held-out digits: (count, 3, 64, 64) normalised, on the CPU, and labels (count,)."""
    data = train_digits.split()
    generator = torch.Generator().manual_seed(seed)
    indices = torch.arange(count) % len(data.held_out_labels)
    pixels = train_digits.augment(train_digits.views(data.held_out_images, 64)[indices], generator)
    return network_input(pixels), torch.from_numpy(data.held_out_labels)[indices]


def train(device: torch.device, epochs: int = EPOCHS, seed: int = 0) -> ResNetForImageClassification:
    """A ResNet-101 in eval mode, fp32, on the CPU; trained in bf16 with fp32 weights."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = train_digits.split()
    pixels, labels = (
        train_digits.views(data.train_images, 64).to(device),
        torch.from_numpy(data.train_labels).to(device),
    )
    names = [str(digit) for digit in range(10)]
    config = ResNetConfig(
        depths=[3, 4, 23, 3], id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    )
    model: ResNetForImageClassification = ResNetForImageClassification(config)
    model.train()
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-arg]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=device.type == "cuda")
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=epochs * steps)
    started = time.monotonic()
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(labels), generator=generator)[: steps * BATCH].view(steps, BATCH):
            images = network_input(train_digits.augment(pixels[batch], generator))
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(images.contiguous(memory_format=torch.channels_last)).logits
            loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=0.05)
            model.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        if epoch % 5 == 0 or epoch == epochs:
            print(f"epoch {epoch}/{epochs}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True)
    model.eval().to("cpu")
    return model


def save(model: ResNetForImageClassification, folder: Path) -> None:
    """Write a Hugging Face folder that scripts/package takes."""
    model.save_pretrained(folder)
    config = {**train_digits.preprocessor_config(), "size": {"shortest_edge": SIZE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "output", type=Path, help="folder for config.json, model.safetensors, preprocessor_config.json"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="(default: %(default)s)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    model = train(device, chosen.epochs)
    save(model, chosen.output)
    images, labels = unseen(720)
    with torch.inference_mode():
        found = torch.cat([model.to(device)(part.to(device)).logits.argmax(1).cpu() for part in images.split(120)])  # type: ignore[arg-type]
    print(f"{(found == labels).float().mean():.2%} of 720 unseen views read right; written: {chosen.output}")


if __name__ == "__main__":
    main()
