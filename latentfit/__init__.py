"""Give any frozen encoder a sampler: learn the distribution of its latents, draw from it, score it."""

from latentfit._version import __version__
from latentfit.diagnosis import Diagnosis, diagnose
from latentfit.fit import fit_latent_sampler
from latentfit.loading import load_sampler
from latentfit.registry import PluginInfo, list_benchmarks, list_samplers
from latentfit.sampler import LatentSampler
from latentfit.store import LatentStore

__all__ = [
    "Diagnosis",
    "LatentSampler",
    "LatentStore",
    "PluginInfo",
    "__version__",
    "diagnose",
    "fit_latent_sampler",
    "list_benchmarks",
    "list_samplers",
    "load_sampler",
]
