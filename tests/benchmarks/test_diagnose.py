"""Latents as encoders make them: what diagnose says of them, and that a fit does not warn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from latentfit import diagnose
from latentfit.diagnosis import warn_about
from latentfit_bench.datasets import ImageData, binarize, load_digits
from latentfit_bench.models import AdversarialAutoencoder, Autoencoder, VariationalAutoencoder
from latentfit_bench.training import in_batches, train_autoencoder

DIGITS = load_digits()


def pca(k: int) -> Any:
    return PCA(k).fit_transform(DIGITS.train_images.numpy())


def autoencoder(cls: type[Autoencoder]) -> Tensor:
    model = train_autoencoder(
        lambda: cls(64, 6, (64, 32)), DIGITS.train_images, epochs=20, seed=0, batch_size=64
    ).model
    return in_batches(model.encode, DIGITS.train_images)


def relu_features(images: Tensor, labels: Tensor) -> Tensor:
    """What is before a small classifier's last layer: mostly exact zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Linear(images.shape[1], 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()
        )
        head = nn.Linear(64, 10)
    optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(max(1, 20_000 // len(images))):
        for i in torch.randperm(len(images), generator=generator).split(64):
            loss = nn.functional.cross_entropy(head(body(images[i])), labels[i])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.inference_mode():
        return body(images)


LATENTS = {
    "pca-2": lambda: pca(2),
    "pca-30": lambda: pca(30),
    "pca-64": lambda: pca(64),
    "pixels": lambda: DIGITS.train_images,
    "autoencoder": lambda: autoencoder(Autoencoder),
    "vae": lambda: autoencoder(VariationalAutoencoder),
    "aae": lambda: autoencoder(AdversarialAutoencoder),
    "relu": lambda: relu_features(DIGITS.train_images, DIGITS.train_labels),
}


@pytest.mark.parametrize("name", LATENTS)
def test_latents_of_digits_give_no_warning(name: str) -> None:
    warn_about(torch.as_tensor(LATENTS[name]()))  # warnings are errors here


def test_findings_on_the_digits() -> None:
    found = diagnose(pca(64))
    assert found.numerical_rank < 64  # pixels at the border are always zero
    assert 5 < found.intrinsic_dimension < 12  # far below 64: Facco et al. find some ten for MNIST
    assert found["clusters"].values["count"] > 1
    assert found["duplicate_rows"].values["count"] == 0
    features = diagnose(LATENTS["relu"]())
    assert 5 <= features["clusters"].values["count"] <= 12  # ten classes
    assert features["constant_dimensions"].severity in ("ok", "note")


@pytest.mark.mnist
@pytest.mark.slow
def test_latents_of_mnist(mnist: ImageData) -> None:
    images = binarize(mnist.train_images, "threshold")
    for cls, k in ((Autoencoder, 10), (Autoencoder, 64), (VariationalAutoencoder, 10)):
        trained = train_autoencoder(lambda: cls(784, k), mnist.train_images, epochs=1, seed=0)  # noqa: B023
        latents = in_batches(trained.model.encode, images)
        warn_about(latents)
        found = diagnose(latents)
        assert found.warnings == ()
        assert 5 < found.intrinsic_dimension < 14
        assert found["shift"].severity == "ok"  # the images are in no order
    features = relu_features(mnist.train_images, mnist.train_labels)
    warn_about(features)
    assert 8 <= diagnose(features)["clusters"].values["count"] <= 12
    by_class = features[mnist.train_labels.argsort()]
    assert diagnose(by_class)["shift"].severity == "note"
