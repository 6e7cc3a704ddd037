"""The paper's autoencoder, and the VAE and AAE of the same architecture.

Source: Sridhar and Srivastava, "AdvAE and FlowAE: Sampling Arbitrary Latent Variable Distributions
in an Autoencoder", sections 4.1 and 5.1. Images are rows of pixels with values in {0, 1}.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

HIDDEN = (512, 256)


def reconstruction_loss(logits: Tensor, images: Tensor) -> Tensor:
    """Binary cross-entropy of images (n, pixels), summed over pixels, averaged over rows: nats."""
    return binary_cross_entropy_with_logits(logits, images, reduction="sum") / len(images)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_variance)) || N(0, I)) in closed form, (n, k) -> (n,), in nats.

    Source: Kingma and Welling, 2013, arXiv:1312.6114, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def _hidden_layers(sizes: Sequence[int]) -> Iterator[nn.Module]:
    for inputs, outputs in pairwise(sizes):
        # Batch norm subtracts the mean, so a bias before it would do nothing.
        yield nn.Linear(inputs, outputs, bias=False)
        yield nn.BatchNorm1d(outputs)
        yield nn.ELU(inplace=True)


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Fully connected layers of these sizes: batch norm and ELU between, a linear output."""
    return nn.Sequential(*_hidden_layers(sizes[:-1]), nn.Linear(sizes[-2], sizes[-1]))


@dataclass(frozen=True)
class Phase:
    """One step of the alternation: which parameters move, and how fast."""

    name: str
    parameters: list[nn.Parameter]
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)


class TrainableAutoencoder(nn.Module):
    """What autoencoders have in common; unless they say otherwise they learn to reconstruct, in one step.

    Attributes:
        encoder: Images (n, pixels) to latents.
        decoder: Latents to logits (n, pixels).
        learning_rate: Adam's, at the start of its decay.
    """

    encoder: nn.Module
    decoder: nn.Module
    learning_rate: float

    def encode(self, images: Tensor) -> Tensor:
        """Latents of images (n, pixels)."""
        latents: Tensor = self.encoder(images)
        return latents

    def decode(self, z: Tensor) -> Tensor:
        """Probabilities (n, pixels) that a pixel is one, for latents like those of :meth:`encode`."""
        logits: Tensor = self.decoder(z)
        return logits.sigmoid()

    def phases(self) -> list[Phase]:
        """The alternation that `losses` yields losses for, in the same order."""
        return [Phase("reconstruction", list(self.parameters()), self.learning_rate)]

    def losses(self, images: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield one scalar loss for each phase, in nats; the caller steps before it asks for the next."""
        del generator
        yield reconstruction_loss(self.decoder(self.encode(images)), images)


class Autoencoder(TrainableAutoencoder):
    """The paper's autoencoder: pixels-512-256-k and its mirror image.

    Args:
        pixels: The number of pixels of an image.
        k: The dimension of the latent space.
        hidden: Sizes of the encoder's hidden layers.
        learning_rate: Adam's, at the start of its decay.
    """

    name = "AE"
    encoder_outputs = 1

    def __init__(
        self, pixels: int, k: int, hidden: Sequence[int] = HIDDEN, *, learning_rate: float = 2e-3
    ) -> None:
        super().__init__()
        self.k = k
        self.learning_rate = learning_rate
        self.encoder = perceptron([pixels, *hidden, self.encoder_outputs * k])
        self.decoder = perceptron([k, *reversed(hidden), pixels])

    def encode(self, images: Tensor) -> Tensor:
        """Latents (n, k) of images (n, pixels); for a VAE the posterior means."""
        return super().encode(images)[:, : self.k]


class VariationalAutoencoder(Autoencoder):
    """The VAE of the same architecture; its encoder gives means and log-variances.

    Source: Kingma and Welling, 2013, arXiv:1312.6114.
    """

    name = "VAE"
    encoder_outputs = 2

    def losses(self, images: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the negative evidence lower bound, in nats per image."""
        mean, log_variance = self.encoder(images).chunk(2, 1)
        noise = torch.empty_like(mean).normal_(generator=generator)
        z = mean + (0.5 * log_variance).exp() * noise
        divergence = kl_to_standard_normal(mean, log_variance).mean()
        yield reconstruction_loss(self.decoder(z), images) + divergence


class AdversarialAutoencoder(Autoencoder):
    """The AAE of the same architecture, with a standard normal prior.

    A discriminator tells draws from the prior from latents; after each reconstruction step it
    takes one step, and the encoder one against it, both on the standard (non-saturating) loss.

    Source: Makhzani et al., 2015, arXiv:1511.05644.
    """

    name = "AAE"

    def __init__(
        self,
        pixels: int,
        k: int,
        hidden: Sequence[int] = HIDDEN,
        *,
        learning_rate: float = 2e-3,
        discriminator: Sequence[int] = (256, 256),
        discriminator_learning_rate: float = 1e-3,
        adversarial_learning_rate: float = 1e-3,
    ) -> None:
        super().__init__(pixels, k, hidden, learning_rate=learning_rate)
        # Both rates on MNIST, seed 100, in FCD to the training images: 3e-4 gave 40, 1e-3 13 and
        # 2e-3 21. Slower, the latents miss the prior; faster, the reconstructions suffer.
        self.discriminator_learning_rate = discriminator_learning_rate
        self.adversarial_learning_rate = adversarial_learning_rate
        layers: list[nn.Module] = []
        # No batch norm here: statistics of a batch would tell the two kinds apart by themselves.
        for inputs, outputs in zip([k, *discriminator[:-1]], discriminator, strict=True):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2, inplace=True)]
        self.discriminator = nn.Sequential(*layers, nn.Linear(discriminator[-1], 1))

    def phases(self) -> list[Phase]:
        """Reconstruction, then the discriminator, then the encoder against it."""
        encoder, decoder = list(self.encoder.parameters()), list(self.decoder.parameters())
        critic = list(self.discriminator.parameters())
        betas = (0.5, 0.999)
        return [
            Phase("reconstruction", encoder + decoder, self.learning_rate),
            Phase("discriminator", critic, self.discriminator_learning_rate, betas),
            Phase("encoder", encoder, self.adversarial_learning_rate, betas),
        ]

    def losses(self, images: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the losses of the three phases."""
        yield reconstruction_loss(self.decoder(self.encode(images)), images)
        # The discriminator's step leaves the encoder alone, so both phases share one pass of it.
        z = self.encode(images)
        prior = torch.empty_like(z).normal_(generator=generator)
        real, fake = self.discriminator(prior), self.discriminator(z.detach())
        yield softplus(-real).mean() + softplus(fake).mean()
        yield softplus(-self.discriminator(z)).mean()
