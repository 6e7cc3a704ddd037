"""Checks of what a sampler says of the latents that suit it."""

from __future__ import annotations

import math
from typing import Any

import torch

from latentfit.choosing import TRANSFORMS
from latentfit.loading import build_plugin
from latentfit.testing import _data
from latentfit.testing._check import Violation, expect
from latentfit.testing._lab import Lab

__all__ = ["suitable_latents_are_declared"]


def suitable_latents_are_declared(lab: Lab) -> None:
    """preferred_transform names a transform; with spatial, images are fitted, drawn and scored."""
    name = lab.cls.__name__
    preferred: Any = lab.cls.preferred_transform
    expect(
        isinstance(preferred, str) and preferred in TRANSFORMS,
        f"Expected {name}.preferred_transform as one of {', '.join(map(repr, TRANSFORMS))}; got "
        f"{preferred!r}.",
    )
    spatial: Any = lab.cls.spatial
    expect(isinstance(spatial, bool), f"Expected {name}.spatial as True or False; got {spatial!r}.")
    if spatial:
        _expect_images_are_fitted(lab)


def _expect_images_are_fitted(lab: Lab) -> None:
    name = lab.cls.__name__
    side = max(4, 2 * math.ceil(lab.cls.least_positions**0.5 / 2))
    shape = (2, side, side)
    images = torch.randn(120, *shape, generator=_data.generator(31))
    try:
        sampler = lab.fit_as_user(images, transform="auto", max_seconds=0.5)
    except Exception as error:
        raise Violation(
            f"Expected {name}, which is spatial, to be fitted to images of shape {shape}; got "
            f"{type(error).__name__}: {error}"
        ) from error
    plugin = sampler._plugin
    expect(
        plugin.layout == shape,
        f"Expected {name} to leave its attribute layout, {shape}, as it was set before build; it is now "
        f"{plugin.layout}.",
    )
    drawn = sampler.sample(20, seed=0)
    expect(
        drawn.shape == (20, *shape) and bool(drawn.isfinite().all()),
        f"Expected finite samples (20, {', '.join(map(str, shape))}) of {name} after a fit to images; got "
        f"{tuple(drawn.shape)} with {int((~drawn.isfinite()).sum())} values of NaN or infinity.",
    )
    if sampler.has_density:
        scores = sampler.log_prob(images[:20])
        expect(
            bool(scores.isfinite().all()),
            f"Expected finite densities of training images of {name}; {int((~scores.isfinite()).sum())} "
            "of 20 are not.",
        )
    again = build_plugin(
        lab.cls, lab.options, dim=sampler.dim, n=sampler.info["n"], seed=1, layout=shape
    )
    made, kept = (
        {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        for module in (again, plugin)
    )
    expect(
        made == kept,
        f"Expected {name}.build(dim, n) to make the same tensors each time it is called with one layout; "
        f"they differ in {sorted(set(made.items()) ^ set(kept.items()))}.",
    )
