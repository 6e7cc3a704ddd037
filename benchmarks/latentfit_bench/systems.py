"""What is compared: the systems of the paper's table 1, its floor, and our defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["real", "reconstruction", "resample", "prior", "sampler"]


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        name: The row's name and the key in the results.
        kind: Where its images come from: "real" test images, their "reconstruction", training
            latents drawn again ("resample"), the "prior" N(0, I), or a latent "sampler".
        description: One line for the help and the reports.
        model: Which autoencoder decodes: "AE", "VAE", "AAE" or None.
        method: The sampler plugin's name, for the kind "sampler".
        options: The plugin's options.
        paper_fcd: The value in table 1 of the paper, where it has one.
    """

    name: str
    kind: Kind
    description: str
    model: str | None = None
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    paper_fcd: float | None = None


SYSTEMS = {
    system.name: system
    for system in (
        System("Real", "real", "the test images themselves", paper_fcd=0.2),
        System("Reconstruction", "reconstruction", "the test images, encoded and decoded", "AE"),
        System("Resample", "resample", "training latents drawn again and decoded: the floor", "AE"),
        System(
            "FlowAE",
            "sampler",
            "the paper's: RealNVP of 5 layers, N(0, I) base",
            "AE",
            "realnvp",
            {"layers": 5, "hidden": (128,), "base": "normal"},
            4.65,
        ),
        System(
            "AdvAE",
            "sampler",
            "the paper's: WGAN-GP of two hidden layers, N(0, I) noise",
            "AE",
            "wgan-gp",
            {"hidden": (256, 256), "base": "normal", "learning_rate": 1e-3, "steps": 3000},
            6.03,
        ),
        System("AAE", "prior", "adversarial autoencoder, N(0, I) prior", "AAE", paper_fcd=6.09),
        System("VAE", "prior", "variational autoencoder, N(0, I) prior", "VAE", paper_fcd=8.12),
        System("FlowAE-default", "sampler", "latentfit's default RealNVP", "AE", "realnvp"),
        System("Spline-default", "sampler", "latentfit's default spline flow", "AE", "spline"),
    )
}
FLOOR = "Resample"
RECONSTRUCTION = "Reconstruction"
