"""Train a reference classifier on the binarised training images and write it into the package.

    python benchmarks/train_classifier.py mnist --data-dir DIR
    python benchmarks/train_classifier.py digits

The number of epochs is chosen on a validation split of the training images; the test images are
looked at once, at the end. Writes `latentfit_bench/weights/TASK.safetensors` and `TASK.json`;
afterwards the SHA-256 that is printed belongs into `latentfit_bench/classifier.py`.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from latentfit_bench.classifier import ReferenceClassifier
from latentfit_bench.datasets import ImageData, binarize, load_digits, load_mnist

WEIGHTS = Path(__file__).parent / "latentfit_bench" / "weights"
# Shifts in pixels, rotations in degrees, scale as a fraction; batch and the epochs to choose from.
RECIPES = {
    "mnist": {"shift": 1.5, "rotate": 8.0, "scale": 0.05, "batch": 256, "epochs": [8, 16]},
    "digits": {"shift": 0.5, "rotate": 8.0, "scale": 0.05, "batch": 64, "epochs": [30, 60, 120]},
}


def augment(images: Tensor, side: int, recipe: dict, generator: torch.Generator) -> Tensor:
    """Shift, rotate and scale each grey image (n, pixels) a little, then binarise it."""
    n = len(images)
    draw = 2 * torch.rand(n, 4, generator=generator) - 1
    angle = draw[:, 0] * math.radians(recipe["rotate"])
    scale = 1 + draw[:, 1] * recipe["scale"]
    shift = draw[:, 2:] * recipe["shift"] * 2 / side
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1)
    grid = nn.functional.affine_grid(rows.view(n, 2, 3), [n, 1, side, side], align_corners=False)
    moved = nn.functional.grid_sample(
        images.view(n, 1, side, side), grid, mode="bilinear", align_corners=False
    )
    return binarize(moved.reshape(n, -1), "threshold")


def train(images: Tensor, labels: Tensor, side: int, recipe: dict, epochs: int, seed: int, log):
    """Fit a fresh classifier for a fixed number of epochs, with ordinary cross-entropy."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = ReferenceClassifier(side).to(memory_format=torch.channels_last)
    batch = recipe["batch"]
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images), generator=generator)
        for rows in order.split(batch):
            if len(rows) < batch:
                continue
            x = augment(images[rows], side, recipe, generator)
            loss = nn.functional.cross_entropy(model(x), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        log(
            f"  epoch {epoch + 1}/{epochs}: loss {total / len(images):.4f}, "
            f"{time.perf_counter() - start:.1f} s"
        )
    return model.eval()


def accuracy(model: ReferenceClassifier, images: Tensor, labels: Tensor) -> float:
    """Return the share of images (grey; binarised here) that are classified rightly."""
    _, logits = model.features(binarize(images, "threshold"))
    return (logits.argmax(1) == labels).double().mean().item()


def split(data: ImageData, seed: int) -> tuple[Tensor, Tensor]:
    """Return the row numbers of a training and a validation split of the training images."""
    order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(seed))
    held_out = len(order) // 10
    return order[held_out:], order[:held_out]


def write(path: Path, content: bytes) -> None:
    """Put a file in place in one step."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def main() -> None:
    """Choose the epochs, fit on all training images, measure once, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=sorted(RECIPES))
    parser.add_argument("--data-dir", help="a folder with a sub-folder mnist/")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    data = load_mnist(arguments.data_dir) if arguments.task == "mnist" else load_digits()
    recipe, side, seed = RECIPES[arguments.task], data.image_shape[0], arguments.seed
    began = time.perf_counter()
    fit, held_out = split(data, seed)
    validation = {}
    for epochs in recipe["epochs"]:
        log(f"{epochs} epochs on {len(fit)} images")
        model = train(
            data.train_images[fit], data.train_labels[fit], side, recipe, epochs, seed, log
        )
        score = accuracy(model, data.train_images[held_out], data.train_labels[held_out])
        validation[epochs] = score
        log(f"  validation accuracy {score:.4f}")
    epochs = max(validation, key=validation.__getitem__)
    log(f"final fit: {epochs} epochs on {len(data.train_images)} images")
    model = train(data.train_images, data.train_labels, side, recipe, epochs, seed, log)
    test_accuracy = accuracy(model, data.test_images, data.test_labels)

    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    content = safetensors.torch.save(state)
    sha256 = hashlib.sha256(content).hexdigest()
    provenance = {
        "task": arguments.task,
        "side": side,
        "sha256": sha256,
        "bytes": len(content),
        "test_accuracy": test_accuracy,
        "binarize": "threshold",
        "trained_on": "the training images only, augmented and binarised",
        "validation_accuracy_by_epochs": validation,
        "epochs": epochs,
        "seed": seed,
        "recipe": recipe,
        "data_sha256": data.sha256,
        "seconds": round(time.perf_counter() - began, 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    WEIGHTS.mkdir(exist_ok=True)
    write(WEIGHTS / f"{arguments.task}.safetensors", content)
    write(WEIGHTS / f"{arguments.task}.json", (json.dumps(provenance, indent=2) + "\n").encode())
    log(f"test accuracy {test_accuracy:.4f}, {len(content)} bytes, SHA-256 {sha256}")


if __name__ == "__main__":
    main()
