"""The encoders of benchmarks/encoders.py: real classes, small, on 32x32 or 28x28 MNIST digits.

Those of diffusers, transformers and pythae have random weights, as nothing is downloaded: the table is about
whether they go through, not about how good their latents are. The PCA and the convolutional autoencoder are
fitted to the digits.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        encoder: What goes into `fit_latent_sampler`, as it is.
        images: What is encoded.
        decode: How its library decodes latents; None if it can't. Where there is one, the encoder is passed
            as the decoder, too.
        options: Further arguments of the fit.
        note: A line for the table.
    """

    encoder: Any
    images: Tensor
    decode: Callable[[Tensor], Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str = "random weights"


def colour(images: Tensor) -> Tensor:
    """Grey images (n, 784) in [0, 1] as (n, 3, 32, 32) in [-1, 1]."""
    square = nn.functional.pad(images.view(-1, 1, 28, 28), (2, 2, 2, 2))
    return (2 * square - 1).expand(-1, 3, -1, -1).contiguous()


_BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 32),
    "norm_num_groups": 8,
}


def autoencoder_kl(images: Tensor) -> Case:
    """A posterior of 4x8x8, of which the mean is taken."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(**_BLOCKS, latent_channels=4)
    return Case(model, colour(images), lambda z: model.decode(z).sample)


def autoencoder_tiny(images: Tensor) -> Case:
    """Latents of 4x8x8."""
    from diffusers import AutoencoderTiny

    model = AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        upsampling_scaling_factor=2,
    )
    return Case(model, colour(images), lambda z: model.decode(z).sample)


def autoencoder_dc(images: Tensor) -> Case:
    """Latents of 4x8x8."""
    from diffusers import AutoencoderDC

    model = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 32, 32),
        decoder_block_out_channels=(16, 32, 32),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
    )
    return Case(model, colour(images), lambda z: model.decode(z).sample)


def autoencoder_rae(images: Tensor) -> Case:
    """DINOv2 tokens as latents of 64x2x2."""
    from diffusers import AutoencoderRAE

    model = AutoencoderRAE(
        encoder_hidden_size=64,
        encoder_patch_size=16,
        encoder_num_hidden_layers=2,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        encoder_input_size=32,
    )
    return Case(model, colour(images), lambda z: model.decode(z).sample)


def vq_model(images: Tensor) -> Case:
    """Latents of 3x8x8 before quantisation; the decoder quantises."""
    from diffusers import VQModel

    model = VQModel(**_BLOCKS, latent_channels=3, num_vq_embeddings=64)
    return Case(model, colour(images), lambda z: model.decode(z).sample)


_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def dinov2(images: Tensor) -> Case:
    """The pooled output."""
    from transformers import Dinov2Config, Dinov2Model

    return Case(Dinov2Model(Dinov2Config(**_VIT)), colour(images))


def dinov2_tokens(images: Tensor) -> Case:
    """All tokens."""
    options = {"output": "last_hidden_state"}
    return Case(
        dinov2(images).encoder, colour(images), options=options, note="random weights, tokens"
    )


def vit_mae(images: Tensor) -> Case:
    """All tokens, nothing masked."""
    from transformers import ViTMAEConfig, ViTMAEModel

    return Case(ViTMAEModel(ViTMAEConfig(**_VIT, intermediate_size=32)), colour(images))


def pythae_ae(images: Tensor) -> Case:
    """A whole pythae model, in which it is `encoder` that encodes."""
    from pythae.models import AE, AEConfig

    model = AE(AEConfig(input_dim=(1, 28, 28), latent_dim=10))
    grey = images.view(-1, 1, 28, 28)
    return Case(model, grey, lambda z: model.decoder(z)["reconstruction"])


def pythae_vae(images: Tensor) -> Case:
    """The same, of which the posterior's mean is taken."""
    from pythae.models import VAE, VAEConfig

    model = VAE(VAEConfig(input_dim=(1, 28, 28), latent_dim=10))
    grey = images.view(-1, 1, 28, 28)
    return Case(model, grey, lambda z: model.decoder(z)["reconstruction"])


def pca(images: Tensor) -> Case:
    """Ten principal components."""
    model = PCA(10, random_state=0).fit(images.numpy())
    decode = lambda z: torch.from_numpy(model.inverse_transform(z.numpy()))  # noqa: E731
    return Case(model, images, decode, note="fitted to the digits")


class Convolutional(nn.Module):
    """An autoencoder of 28x28 grey images with latents of 4x4x4."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),  # 14x14
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),  # 7x7
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),  # 4x4
            nn.SiLU(),
            nn.Conv2d(32, 4, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(4, 32, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(32, 32, 3, stride=2, padding=1),  # 7x7
            nn.SiLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),  # 14x14
            nn.SiLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),  # 28x28
        )

    def encode(self, images: Tensor) -> Tensor:
        """Latents (n, 4, 4, 4) of images (n, 1, 28, 28) in [0, 1]."""
        encoded: Tensor = self.encoder(images)
        return encoded

    def decode(self, z: Tensor) -> Tensor:
        """Images (n, 1, 28, 28) in [0, 1] of latents."""
        logits: Tensor = self.decoder(z)
        return logits.sigmoid()


def convolutional(images: Tensor, epochs: int = 5) -> Case:
    """An autoencoder that is trained here, with Adam on the binary cross-entropy."""
    started = time.perf_counter()
    model, grey = Convolutional(), images.view(-1, 1, 28, 28)
    batches = len(grey) // 128
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    loss = torch.zeros(())
    for _ in range(epochs):
        mean = torch.zeros(())
        for batch in grey[torch.randperm(len(grey))][: batches * 128].split(128):
            logits = model.decoder(model.encoder(batch))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
            optimizer.zero_grad()
            (loss / len(batch)).backward()
            optimizer.step()
            schedule.step()
            mean += loss.detach() / (batches * 128)
    note = f"trained here: {epochs} epochs on {len(grey):,} digits, {float(mean):.1f} nats, "
    note += f"{time.perf_counter() - started:.0f} s"
    return Case(model, grey, model.decode, note=note)


CASES: dict[str, Callable[[Tensor], Case]] = {
    "diffusers AutoencoderKL": autoencoder_kl,
    "diffusers AutoencoderTiny": autoencoder_tiny,
    "diffusers AutoencoderDC": autoencoder_dc,
    "diffusers AutoencoderRAE": autoencoder_rae,
    "diffusers VQModel": vq_model,
    "transformers ViTMAE": vit_mae,
    "transformers DINOv2": dinov2,
    "transformers DINOv2, all tokens": dinov2_tokens,
    "pythae AE": pythae_ae,
    "pythae VAE": pythae_vae,
    "scikit-learn PCA": pca,
    "convolutional autoencoder": convolutional,
}
