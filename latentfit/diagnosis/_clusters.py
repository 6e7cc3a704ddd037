"""Whether latents come in groups: a mixture of Gaussians on the leading principal axes, and its modes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentfit.mixture import GaussianMixture, mixture_size

__all__ = ["Clusters", "find_clusters"]

_AXES = 10
_SIZES = (2, 4, 8, 16, 32)
_STARTS, _STEPS = 4, 20
_LEAST_WEIGHT = 0.02  # of a group
_VALLEY = 0.1  # of the lower of two peaks; that of two equal Gaussians 5 deviations apart
_POINTS = 9  # on the way from one component to another


@dataclass(frozen=True)
class Clusters:
    """What a mixture tells.

    Attributes:
        count: Groups with deep valleys of the density between them, at least one.
        gain: By how much the mixture explains held-out rows better than one Gaussian, in nats per row.
        components: Of the mixture that explained them best.
        axes: How many principal axes it saw.
    """

    count: int
    gain: float
    components: int
    axes: int


def find_clusters(scores: Tensor, generator: torch.Generator) -> Clusters | None:
    """Fit mixtures of 1 to 32 Gaussians, take the best on held-out rows, and count its modes.

    A peak counts as a group of its own where every way to a higher one leads through a valley below a tenth
    of it: bent, stretched and heavy-tailed distributions take many components and are one group.

    Args:
        scores: Random rows on the leading principal axes, (m, a), without outliers.
        generator: On the CPU.

    Returns:
        The finding; None for too few rows.

    Sources: modes of mixtures, Ray and Lindsay, 2005, doi:10.1214/009053605000000417; counting them by
    persistence, Chazal, Guibas, Oudot and Skraba, 2013, doi:10.1145/2535927.
    """
    scores = scores[:, :_AXES]
    n, axes = scores.shape
    held_out = n // 5
    if held_out < 4 or mixture_size(n - held_out, axes) < 2:
        return None
    scores = scores - scores.mean(0)
    scores = (scores / scores.std(0).clamp_min(1e-300)).float()
    shuffled = scores[torch.randperm(n, generator=generator)]
    training, judge = shuffled[held_out:], shuffled[:held_out]
    best, single = None, 0.0
    value = -torch.inf
    for size in (1, *_SIZES):
        if size > mixture_size(len(training), axes):
            break
        mixture = _fitted(training, size, generator)
        likelihood = mixture.mean_log_prob(judge)
        if size == 1:
            single = likelihood
        if likelihood > value:
            best, value = mixture, likelihood
    if best is None:
        return None
    return Clusters(_count_modes(best), value - single, best.components, axes)


def _fitted(rows: Tensor, size: int, generator: torch.Generator) -> GaussianMixture:
    """The best of some starts, for one may put two groups into one component, fitted on."""
    started = []
    for _ in range(_STARTS if size > 1 else 1):
        mixture = GaussianMixture(rows.shape[1], size)
        mixture.fit(rows, generator, steps=2)
        started.append((mixture.mean_log_prob(rows), mixture))
    best = max(started, key=lambda start: start[0])[1]
    for _ in range(_STEPS if size > 1 else 0):
        best.improve(rows)
    return best


@torch.no_grad()
def _count_modes(mixture: GaussianMixture) -> int:
    """Count peaks of the density that deep valleys part from all higher ones, by their persistence.

    The way from one mean to another is the ridgeline, which follows bends: all modes of two Gaussians, and
    the valley between them, lie on it (Ray and Lindsay).
    """
    weights, means = mixture.logits.softmax(0), mixture.means.detach()
    k, d = means.shape
    factor = mixture.off_diagonal.triu(1) + torch.diag_embed(mixture.log_diagonal.exp())
    precision = factor @ factor.mT  # (k, d, d)
    linear = precision @ means[:, :, None]
    ridge = []
    for step in torch.linspace(0, 1, _POINTS).tolist():
        both = (1 - step) * precision[:, None] + step * precision  # (k, k, d, d)
        sides = (1 - step) * linear[:, None] + step * linear
        ridge.append(torch.linalg.solve(both, sides).reshape(-1, d))
    density = mixture.log_prob(torch.cat(ridge)).reshape(_POINTS, k, k)
    peaks, valleys = density[0, :, 0].tolist(), density.amin(0)
    group, mass, count = list(range(k)), weights.tolist(), 1
    # The water falls: two islands become one at the highest valley between them.
    pairs = torch.triu_indices(k, k, 1)
    order = valleys[pairs[0], pairs[1]].argsort(descending=True)
    for i, j in pairs[:, order].T.tolist():
        high, low = sorted((group[i], group[j]), key=lambda g: peaks[g], reverse=True)
        if high == low:
            continue
        deep = peaks[low] - float(valleys[i, j]) > -math.log(_VALLEY)
        count += deep and mass[low] >= _LEAST_WEIGHT
        mass[high] += mass[low]
        group = [high if g == low else g for g in group]
    return count
