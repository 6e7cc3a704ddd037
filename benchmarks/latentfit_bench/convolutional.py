"""Convolutional autoencoders of 28x28 images, whose latents the paper's methods could not sample."""

from typing import Literal

from torch import nn

from latentfit_bench.models import TrainableAutoencoder

LATENTS = (4, 4, 4)  # channels, height, width


class ConvolutionalAutoencoder(TrainableAutoencoder):
    """Strided convolutions with batch norm and ELU down to 64 channels of 4x4, and their mirror image.

    Args:
        kind: "spatial", latents of 4 channels of 4x4 by a last convolution; or "flat", 64 dimensions by a
            last linear layer.
        learning_rate: Adam's, at the start of its decay.
    """

    def __init__(
        self,
        kind: Literal["spatial", "flat"],
        *,
        widths: tuple[int, int] = (8, 16),
        learning_rate: float = 2e-3,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        channels, height, width = LATENTS
        size = channels * height * width
        first, second = widths
        inner = second * height * width
        self.encoder = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            *_layer(nn.Conv2d(1, first, 4, 2, 1, bias=False)),  # 14
            *_layer(nn.Conv2d(first, second, 4, 2, 1, bias=False)),  # 7
            *_layer(nn.Conv2d(second, second, 3, 2, 1, bias=False)),  # 4
            *(
                [nn.Conv2d(second, channels, 3, 1, 1)]
                if kind == "spatial"
                else [nn.Flatten(), nn.Linear(inner, size)]
            ),
        )
        self.decoder = nn.Sequential(
            *(
                _layer(nn.Conv2d(channels, second, 3, 1, 1, bias=False))
                if kind == "spatial"
                else [nn.Linear(size, inner), nn.Unflatten(1, (second, height, width)), nn.ELU()]
            ),
            *_layer(nn.ConvTranspose2d(second, second, 3, 2, 1, bias=False)),  # 7
            *_layer(nn.ConvTranspose2d(second, first, 4, 2, 1, bias=False)),  # 14
            nn.ConvTranspose2d(first, 1, 4, 2, 1),
            nn.Flatten(),
        )


def _layer(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    # Batch norm subtracts the mean, so a bias before it would do nothing.
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ELU(inplace=True)]
