"""Fast minibatch training of the autoencoders, with all images in memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentfit_bench.datasets import Binarize, binarize
from latentfit_bench.models import TrainableAutoencoder


@dataclass(frozen=True)
class Trained:
    """A frozen model and how it was trained.

    Attributes:
        model: In eval mode, without gradients.
        history: Mean loss of every epoch, by phase.
        seconds: Wall-clock time.
    """

    model: TrainableAutoencoder
    history: dict[str, list[float]]
    seconds: float


def train_autoencoder(
    build: Callable[[], TrainableAutoencoder],
    images: Tensor,
    *,
    epochs: int,
    seed: int,
    batch_size: int = 128,
    how: Binarize = "threshold",
    device: torch.device | str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train a model from a seed; the global RNG state is untouched.

    Args:
        build: Makes the model, with weights from the global RNG (which is forked here).
        images: Grey training images (n, pixels) in [0, 1].
        epochs: Passes over the images; the learning rates fall to zero over them along a cosine.
        seed: Decides the weights, the order of the images and all noise.
        batch_size: Rows a step; what is left over at an epoch's end is dropped.
        how: How images are binarised; "bernoulli" is drawn anew at each epoch.
        device: Where to train.
        on_epoch: Called with the epoch's number, from 1, and the mean loss of the first phase.
    """
    start = time.perf_counter()
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build().to(device).train()
    generator = torch.Generator(device).manual_seed(seed)
    images = images.to(device)
    batch_size = min(batch_size, len(images))
    steps = len(images) // batch_size

    phases = model.phases()
    optimizers = [
        torch.optim.Adam(phase.parameters, lr=phase.learning_rate, betas=phase.betas, fused=True)
        for phase in phases
    ]
    schedules = [
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
        for optimizer in optimizers
    ]
    history: dict[str, list[float]] = {phase.name: [] for phase in phases}
    order = torch.empty(len(images), dtype=torch.int64, device=device)
    binary = binarize(images, "threshold") if how == "threshold" else images
    for epoch in range(epochs):
        if how == "bernoulli":
            binary = binarize(images, how, generator)
        torch.randperm(len(images), generator=generator, out=order)
        totals = torch.zeros(len(phases), device=device)
        for step in range(steps):
            batch = binary[order[step * batch_size : (step + 1) * batch_size]]
            for index, loss in enumerate(model.losses(batch, generator)):
                # Another phase's gradients may have flowed through these parameters.
                optimizers[index].zero_grad()
                loss.backward()
                optimizers[index].step()
                schedules[index].step()
                totals[index] += loss.detach()
        means = (totals / steps).tolist()
        for phase, mean in zip(phases, means, strict=True):
            history[phase.name].append(mean)
        if on_epoch:
            on_epoch(epoch + 1, means[0])
    model.eval().requires_grad_(False)
    return Trained(model, history, time.perf_counter() - start)


@torch.inference_mode()
def in_batches(function: Callable[[Tensor], Tensor], rows: Tensor, size: int = 4096) -> Tensor:
    """Apply a function of rows in batches, without gradients, and join the results."""
    return torch.cat([function(batch) for batch in rows.split(size)])
