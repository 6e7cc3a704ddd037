"""The plugin API: all that the author of a sampler imports.

A sampler is a class derived from :class:`Sampler` (or from :class:`FlowSampler`, if it is a flow) and
registered under the entry-point group ``latentfit.samplers``. It sees centred and scaled float32 rows, never
an encoder, an image or a file::

    class Gaussian(Sampler):
        has_density = True

        def __init__(self, *, ridge: Annotated[float, Interval(0)] = 1e-6) -> None:
            super().__init__()
            self.ridge = ridge

        def build(self, dim: int, n: int) -> None:
            self.register_buffer("mean", torch.zeros(dim))
            self.register_buffer("factor", torch.eye(dim))

        def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
            self.mean.copy_(rows.mean(0))
            covariance = rows.T.cov() + self.ridge * torch.eye(rows.shape[1])
            self.factor.copy_(torch.linalg.cholesky(covariance))

        def sample(self, n: int, generator: torch.Generator) -> Tensor:
            noise = torch.randn(n, len(self.mean), generator=generator, device=self.mean.device)
            return self.mean + noise @ self.factor.T

        def log_prob(self, rows: Tensor) -> Tensor:
            normal = torch.distributions.MultivariateNormal(self.mean, scale_tril=self.factor)
            return normal.log_prob(rows)
"""

from latentfit.adversarial import train_adversarially
from latentfit.errors import DataError, DivergenceError, OptionError
from latentfit.gaussian_field import ConvField, DeepField, GaussianField
from latentfit.metrics import c2st
from latentfit.minibatches import minibatches
from latentfit.mixture import GaussianMixture, mixture_size
from latentfit.options import Interval
from latentfit.rows import Rows
from latentfit.sampler_base import FlowSampler, Sampler, StandardNormal
from latentfit.training import ParameterAverage, Run, train
from latentfit.velocity import Field, VelocityField

__all__ = [
    "ConvField",
    "DataError",
    "DeepField",
    "DivergenceError",
    "Field",
    "FlowSampler",
    "GaussianField",
    "GaussianMixture",
    "Interval",
    "OptionError",
    "ParameterAverage",
    "Rows",
    "Run",
    "Sampler",
    "StandardNormal",
    "VelocityField",
    "c2st",
    "minibatches",
    "mixture_size",
    "train",
    "train_adversarially",
]
