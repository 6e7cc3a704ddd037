"""Make the golden files of the present format version that are not there: python tests/golden/make.py

A file is made once and never again, and so are the numbers beside it: tests load them for ever.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

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
VARIANTS = {
    "classes": ("realnvp", "gmm", "wgan-gp"),
    "vector": ("realnvp", "spline", "flow-matching", "wgan-gp", "gmm", "kde"),
    "spatial": ("flow-matching", "realnvp"),
}
CONDITIONS: dict[str, Any] = {
    "classes": 1,
    "vector": [0.5, -1.0],
}  # that samples and densities are of


def main() -> None:
    """Write each file that is missing, and what its sampler gave."""
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).cumsum(1) + 2
    images = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(1)).cumsum(3) + 2
    labels = {"classes": torch.arange(64) % 2, "vector": x[:, :2].sin() * torch.tensor([1.0, 20.0])}
    record = HERE / f"{FORMAT_VERSION}.expected"
    expected = load_file(record) if record.exists() else {}
    for number, (method, options) in enumerate(SMALL.items()):
        steps = {} if method in ("gmm", "gaussian", "kde") else {"steps": 3}
        for variant in (None, *(v for v, methods in VARIANTS.items() if method in methods)):
            name = f"{FORMAT_VERSION}-{method}" + (f"-{variant}" if variant else "")
            path = HERE / f"{name}.safetensors"
            if path.exists():
                continue
            rows = images if variant == "spatial" else x
            own = (
                {"network": "conv", "channels": 8, "blocks": 1}
                if name.endswith("flow-matching-spatial")
                else options
            )
            sampler = fit_latent_sampler(
                None,
                rows,
                method=method,
                transform="standardize" if variant == "spatial" else TRANSFORMS[number % 4],
                condition=labels.get(variant or ""),
                progress=False,
                **own,
                **steps,
            )
            sampler.save(path)
            condition = CONDITIONS.get(variant or "")
            expected[f"{name}/sample"] = sampler.sample(5, seed=0, condition=condition)
            if sampler.has_density:
                expected[f"{name}/log_prob"] = sampler.log_prob(rows[:5], condition=condition)
    save_file(expected | {"x": x[:5].clone(), "images": images[:5].clone()}, record)


if __name__ == "__main__":
    main()
