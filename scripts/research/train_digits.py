"""Train the demo's image model: a small ResNet that reads handwritten digits.

The network has the definition of ResNet-101 (a 7x7 stem, then stages of bottleneck blocks) with fewer and
narrower stages. It is trained on scikit-learn's digits and seen through the preprocessing that it is served
with, so an image file at prediction time looks to it as the training data did.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import ResNetConfig, ResNetForImageClassification

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

SIZE = 32
MEAN = STD = 0.5
HELD_OUT = 0.2
FLOOR = 0.97
BATCH = 128
PEAK_LEARNING_RATE = 4e-3

# What a user's file may be: the 8x8 digit as it is, or enlarged to this side with this filter.
VIEWS = (
    (8, Image.Resampling.BILINEAR),
    (16, Image.Resampling.BILINEAR),
    (28, Image.Resampling.BICUBIC),
    (64, Image.Resampling.BILINEAR),
    (64, Image.Resampling.NEAREST),
    (128, Image.Resampling.BICUBIC),
)


class Split(NamedTuple):
    """Digits as grey images: uint8 [n, 8, 8], black background 0, ink up to 255; labels int64 [n]."""

    train_images: Pixels
    train_labels: Labels
    held_out_images: Pixels
    held_out_labels: Labels


class Accuracy(NamedTuple):
    """The share of held-out digits read right, from the 8x8 image and from a 64x64 enlargement of it."""

    native: float
    enlarged: float


def split(seed: int = 0) -> Split:
    """The 1797 digits, 20 % of each class held out. The committed weights belong to seed 0."""
    values, labels = load_digits(return_X_y=True)
    images = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    train, held_out, train_labels, held_out_labels = train_test_split(
        images, labels.astype(np.int64), test_size=HELD_OUT, stratify=labels, random_state=seed
    )
    return Split(train, train_labels, held_out, held_out_labels)


def enlarge(digit: Pixels, side: int, interpolation: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """A grey uint8 [8, 8] digit as an RGB image of side x side pixels."""
    return Image.fromarray(digit).convert("RGB").resize((side, side), interpolation)


def digit_png(digit: Pixels, scale: int = 8) -> bytes:
    """A grey uint8 [8, 8] digit as an RGB PNG file, `scale` times as large."""
    file = io.BytesIO()
    enlarge(digit, digit.shape[0] * scale).save(file, format="PNG")
    return file.getvalue()


def unit_pixels(image: Image.Image) -> Floats:
    """A square RGB image as the network's 32x32 pixels before normalisation: float32 [3, 32, 32] in 0..1."""
    resized = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels: Floats = np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    return pixels


def views(digits: Pixels, side: int, interpolation: Image.Resampling = Image.Resampling.BILINEAR) -> torch.Tensor:
    """Each digit [n, 8, 8] enlarged to `side`, then preprocessed up to normalisation: [n, 3, 32, 32]."""
    return torch.from_numpy(np.stack([unit_pixels(enlarge(digit, side, interpolation)) for digit in digits]))


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - MEAN) / STD


def random_affine(count: int, generator: torch.Generator) -> torch.Tensor:
    """Small rotations (12 degrees), scales (15 %), shears and shifts (2.5 pixels): [count, 2, 3]."""

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, shear, shift = uniform(math.radians(12)), uniform(0.1), 5 / SIZE
    across, down = 1 + uniform(0.15), 1 + uniform(0.15)
    cos, sin = torch.cos(angle), torch.sin(angle)
    first_row = torch.stack([cos * across, (shear - sin) * across, uniform(shift)], dim=1)
    second_row = torch.stack([(sin + shear) * down, cos * down, uniform(shift)], dim=1)
    return torch.stack([first_row, second_row], dim=1)


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moved, turned and dimmed copies of [n, 3, 32, 32] in 0..1; what comes into the frame is black."""
    transforms = random_affine(len(pixels), generator).to(pixels.device)
    grid = F.affine_grid(transforms, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, align_corners=False)
    brightness = 0.7 + 0.3 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return moved * brightness.to(pixels.device)


def build_model() -> ResNetForImageClassification:
    names = [str(digit) for digit in range(10)]
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[64, 128, 192],
        depths=[2, 2, 2],
        layer_type="bottleneck",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return ResNetForImageClassification(config)


def train_batch(model: ResNetForImageClassification, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Compute the gradients of one batch. Returns its mean loss and how many of its digits were read right."""
    logits = model(pixel_values=normalise(pixels)).logits
    loss = F.cross_entropy(logits, labels, label_smoothing=0.05)
    model.zero_grad()
    torch.autograd.backward(loss)
    return loss.item(), int((logits.argmax(dim=1) == labels).sum())


def train(data: Split, epochs: int, seed: int) -> ResNetForImageClassification:
    """Train on the training digits. Neither the weights nor the number of epochs depends on the held-out ones."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    all_views = torch.stack([views(data.train_images, side, filter_) for side, filter_ in VIEWS])
    labels = torch.from_numpy(data.train_labels)
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    # A short last batch would disturb the BatchNorm statistics, so it is left out; it differs from epoch to epoch.
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=epochs * steps)
    for epoch in range(1, epochs + 1):
        started, loss_sum, right = time.perf_counter(), 0.0, 0
        order = torch.randperm(len(labels), generator=generator)
        for batch in order[: steps * BATCH].view(steps, BATCH):
            view = torch.randint(len(VIEWS), (BATCH,), generator=generator)
            loss, batch_right = train_batch(model, augment(all_views[view, batch], generator), labels[batch])
            optimizer.step()
            schedule.step()
            loss_sum += loss
            right += batch_right
        print(
            f"epoch {epoch:3}/{epochs}  loss {loss_sum / steps:.4f}  "
            f"training accuracy {right / (steps * BATCH):.2%}  {time.perf_counter() - started:.1f} s",
            flush=True,
        )
    model.train(False)
    return model


@torch.inference_mode()
def probabilities(model: ResNetForImageClassification, digits: Pixels, side: int) -> torch.Tensor:
    """Class probabilities [n, 10] of grey uint8 [n, 8, 8] digits that arrive as images of `side` pixels."""
    logits: torch.Tensor = model(pixel_values=normalise(views(digits, side))).logits
    return logits.softmax(dim=1)


def measure(model: ResNetForImageClassification, data: Split) -> Accuracy:
    def share_right(side: int) -> float:
        predicted = probabilities(model, data.held_out_images, side).argmax(dim=1).numpy()
        return float((predicted == data.held_out_labels).mean())

    return Accuracy(native=share_right(8), enlarged=share_right(64))


def clearest(model: ResNetForImageClassification, data: Split, label: int) -> Pixels:
    """The held-out digit of this label that the model is surest of, as a 64x64 image."""
    candidates = data.held_out_images[data.held_out_labels == label]
    best: Pixels = candidates[int(probabilities(model, candidates, 64)[:, label].argmax())]
    return best


def preprocessor_config() -> dict[str, object]:
    """The preprocessing as transformers reads it: the shorter side to 32 pixels, then the centre 32x32.

    ConvNextImageProcessor resizes to size / crop_pct before the crop, so 1.0 crops nothing of a square.
    """
    return {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "crop_pct": 1.0,
        "resample": int(Image.Resampling.BILINEAR),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }


MODEL_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
---

# Digits: a small ResNet for handwritten digits

A `ResNetForImageClassification` with the bottleneck blocks of ResNet-101 in three narrow stages:
{parameters:,} parameters, float32. It reads one handwritten digit, light ink on a dark ground, and answers
with a label from "0" to "9". It is there to demonstrate serving with real weights. It knows nothing but
digits: any other picture gets one of the ten labels too.

## Data

scikit-learn's `load_digits`: 1797 grey images of 8x8 pixels, the test part of
[Optical Recognition of Handwritten Digits](https://doi.org/10.24432/C50P49) (E. Alpaydin and C. Kaynak, UCI
Machine Learning Repository, 1998). It was trained on {train_count} of them; {held_out_count} were held out,
20 % of each class, with a fixed seed.

## Preprocessing

RGB, shorter side resized to 32 pixels (Pillow's bilinear filter), centre crop of 32x32, values scaled to
0..1, then normalised with mean 0.5 and standard deviation 0.5. `preprocessor_config.json` says the same.

## Training

    .venv/bin/python scripts/research/train_digits.py --epochs {epochs} --seed {seed}

AdamW with a one-cycle learning rate; small random rotations, scales, shears, shifts and changes of
brightness; each digit is also seen enlarged to several sizes. The weights are those of the last epoch, not
of the one that did best on the held-out digits. Another machine or release of PyTorch gives slightly
different weights.

## Accuracy on the held-out digits

| The digit comes as         | Accuracy |
| -------------------------- | -------: |
| its 8x8 pixels             | {native:>8.2%} |
| an image enlarged to 64x64 | {enlarged:>8.2%} |

{held_out_count} digits are a small sample, and the same 13 people wrote them and the training digits:
expect less of other hands.

## Licence

The weights are under the Apache License 2.0. The files in `samples/` are ten held-out digits, enlarged; UCI
publishes the data set under [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/).
"""


def save(model: ResNetForImageClassification, data: Split, card: str, output: Path) -> None:
    model.save_pretrained(output)
    text = json.dumps(preprocessor_config(), indent=2) + "\n"
    (output / "preprocessor_config.json").write_text(text, encoding="utf-8")
    (output / "README.md").write_text(card, encoding="utf-8")
    samples = output / "samples"
    samples.mkdir(exist_ok=True)
    for label, name in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]):
        (samples / f"{name}.png").write_bytes(digit_png(clearest(model, data, label)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the demo's digit classifier on scikit-learn's digits: a minute or two on one CPU "
        "core. Writes the weights, their configuration, a model card and a sample image of each digit. Below "
        f"{FLOOR:.0%} on the held-out digits it saves nothing and exits with status 1.",
        epilog="A quick try that leaves archive/ alone: %(prog)s --output /tmp/digits --epochs 20",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("archive/digits"),
        help="folder to write to, made if missing; files of an earlier run are replaced",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the initial weights and the augmentation; which digits are held out never changes",
    )
    parser.add_argument(
        "--epochs", type=int, default=60, help="passes over the training digits; more is slower and steadier"
    )
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error("--epochs must be at least 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    # The network is too small to gain from more threads, and one thread adds up in the same order in every run.
    torch.set_num_threads(1)
    data = split()
    started = time.perf_counter()
    model = train(data, arguments.epochs, arguments.seed)
    print(f"trained in {time.perf_counter() - started:.0f} s")
    accuracy = measure(model, data)
    print(f"held-out accuracy {accuracy.native:.2%} (enlarged to 64x64: {accuracy.enlarged:.2%})")
    if min(accuracy) < FLOOR:
        raise SystemExit(f"Held-out accuracy is below {FLOOR:.0%}: nothing was saved. Try more --epochs.")
    card = MODEL_CARD.format(
        parameters=model.num_parameters(),
        train_count=len(data.train_labels),
        held_out_count=len(data.held_out_labels),
        epochs=arguments.epochs,
        seed=arguments.seed,
        **accuracy._asdict(),
    )
    save(model, data, card, arguments.output)
    size = (arguments.output / "model.safetensors").stat().st_size
    print(f"saved to {arguments.output} ({size:,} bytes of weights)")


if __name__ == "__main__":
    main()
