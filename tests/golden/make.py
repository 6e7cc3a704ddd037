"""Make the golden files of the present format version: python tests/golden/make.py

Files of a version are made once, by the release that brings it, and never again: tests load them for ever.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from latentfit import fit_latent_sampler
from latentfit.persistence import FORMAT_VERSION

HERE = Path(__file__).parent
SMALL: dict[str, dict[str, Any]] = {
    "realnvp": {"layers": 2, "hidden": (8,), "components": 2},
    "maf": {"layers": 2, "hidden": 8, "components": 2},
    "spline": {"layers": 2, "hidden": 8, "components": 2},
    "spline-ar": {"layers": 1, "hidden": 8, "components": 2},
    "planar": {"layers": 2},
    "radial": {"layers": 2},
    "flow-matching": {"hidden": 8, "components": 2},
    "wgan-gp": {"hidden": (8,), "components": 2},
    "gan": {"hidden": (8,)},
    "r3gan": {"hidden": (8,), "components": 2},
    "gmm": {},
    "gaussian": {},
    "kde": {},
}
TRANSFORMS = ("scale", "standardize", "whiten", "none")
CONDITIONED = ("realnvp", "gmm", "wgan-gp")


def main() -> None:
    """Write a file for each method, and what its samplers gave."""
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).cumsum(1) + 2
    expected: dict[str, torch.Tensor] = {}
    for number, (method, options) in enumerate(SMALL.items()):
        steps = {} if method in ("gmm", "gaussian", "kde") else {"steps": 3}
        for conditioned in (False, True) if method in CONDITIONED else (False,):
            sampler = fit_latent_sampler(
                None,
                x,
                method=method,
                transform=TRANSFORMS[number % 4],
                condition=torch.arange(64) % 2 if conditioned else None,
                progress=False,
                **options,
                **steps,
            )
            name = f"{FORMAT_VERSION}-{method}{'-classes' if conditioned else ''}"
            path = HERE / f"{name}.safetensors"
            if path.exists():
                sys.exit(f"{path} is there already; golden files are made once.")
            sampler.save(path)
            condition = 1 if conditioned else None
            expected[f"{name}/sample"] = sampler.sample(5, seed=0, condition=condition)
            if sampler.has_density:
                scores = sampler.log_prob(x[:5], condition=condition)
                expected[f"{name}/log_prob"] = scores
    save_file({**expected, "x": x[:5].clone()}, HERE / f"{FORMAT_VERSION}.expected")


if __name__ == "__main__":
    main()
