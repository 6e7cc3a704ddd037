"""The frozen reference classifiers in whose features the Fréchet classifier distance is taken.

They were trained by `benchmarks/train_classifier.py` on binarised training images; the weights are
package data, and their SHA-256 is part of every result, so that two people's distances compare.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from latentfit.errors import FileFormatError

SHA256 = {
    "mnist": "ca26bf20acdf1b8597576b4b92441699382f1fe2353e0155987f49074057e731",
    "digits": "64fc3ac0d2c714ee40682ab0635b29a56ea2691e7ff0e3ebe30c720952cdfc3c",
}
PENULTIMATE = 128


class ReferenceClassifier(nn.Module):
    """A small convolutional classifier of ten digits, with a 128-d penultimate layer.

    Args:
        side: The image's height and width in pixels, divisible by four.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

        def block(inputs: int, outputs: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

        self.body = nn.Sequential(
            *block(1, 16),
            nn.MaxPool2d(2),
            *block(16, 32),
            nn.MaxPool2d(2),
            *block(32, 32),
            nn.Flatten(),
            nn.Linear(32 * (side // 4) ** 2, PENULTIMATE, bias=False),
            nn.BatchNorm1d(PENULTIMATE),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(PENULTIMATE, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (n, 10), of images (n, pixels) with values in {0, 1}."""
        images = images.reshape(len(images), 1, self.side, self.side)
        logits: Tensor = self.head(self.dropout(self.body(images)))
        return logits

    @torch.inference_mode()
    def features(self, images: Tensor, *, batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Return penultimate activations (n, 128) and logits (n, 10) of images (n, pixels).

        Args:
            images: Float tensor with values in {0, 1}, on any device.
            batch_size: How many are classified at a time.
        """
        if self.training:
            raise RuntimeError("Expected the classifier in eval mode; call .eval() first.")
        device = self.head.weight.device
        parts = []
        for batch in images.split(batch_size):
            batch = batch.to(device).reshape(len(batch), 1, self.side, self.side)
            parts.append(self.body(batch))
        penultimate = torch.cat(parts) if parts else images.new_empty(0, PENULTIMATE)
        return penultimate, self.head(penultimate)


@dataclass(frozen=True)
class LoadedClassifier:
    """A frozen classifier and where it comes from."""

    model: ReferenceClassifier
    sha256: str
    provenance: dict[str, Any]


def load_classifier(task: str, *, device: torch.device | str = "cpu") -> LoadedClassifier:
    """Load the reference classifier of a task ("mnist" or "digits") in eval mode.

    Raises:
        FileFormatError: If the weights are not the published ones.
    """
    folder = resources.files("latentfit_bench") / "weights"
    content = (folder / f"{task}.safetensors").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != SHA256[task]:
        raise FileFormatError(
            f"Expected the {task} classifier's weights to have SHA-256 {SHA256[task]}; got "
            f"{sha256}. Distances would not be comparable: reinstall latentfit."
        )
    provenance = json.loads((folder / f"{task}.json").read_text(encoding="utf-8"))
    # The weights are overwritten at once, so the global RNG need not pay for initialising them.
    with torch.random.fork_rng(devices=[]):
        model = ReferenceClassifier(provenance["side"])
    model.load_state_dict(safetensors.torch.load(content))
    # With one input channel, convolutions on CPUs take half the time in this memory format.
    model.eval().requires_grad_(False).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    return LoadedClassifier(model, sha256, provenance)
