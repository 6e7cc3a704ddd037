"""Distances between sets of vectors: pure functions on arrays, computed in float64."""

from latentfit.metrics._gaussian import (
    frechet_distance,
    frechet_distance_from_moments,
    gaussian_moments,
)
from latentfit.metrics._neighbours import data_copying, density_coverage, precision_recall
from latentfit.metrics._two_sample import (
    c2st,
    c2st_interval,
    energy_distance,
    kernel_distance,
    sliced_wasserstein,
)

__all__ = [
    "c2st",
    "c2st_interval",
    "data_copying",
    "density_coverage",
    "energy_distance",
    "frechet_distance",
    "frechet_distance_from_moments",
    "gaussian_moments",
    "kernel_distance",
    "precision_recall",
    "sliced_wasserstein",
]
