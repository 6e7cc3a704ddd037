"""A Gaussian mixture with full covariances: fitted by EM, trained by gradient, exact to sample and score."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["GaussianMixture", "mixture_size"]

_CHUNK = 8192  # rows; bounds the (rows, K, D) intermediate
_KMEANS_ROWS = 20_000
_KMEANS_STEPS = 10


def mixture_size(n: int, dim: int, *, most: int = 100) -> int:
    """Choose the number of components that n rows of dim columns support: a row for each parameter."""
    return max(1, min(most, n // (dim * (dim + 3) // 2)))


class GaussianMixture(nn.Module):
    """K Gaussians in D dimensions, held as weights, means and Cholesky factors of the precisions.

    All parameters are trainable, so that it can be the base of a flow; :meth:`fit` starts it on data.
    Dimensions and a resulting number of components are fixed at construction, so that a state dict fits.

    Args:
        dim: D, the number of columns.
        components: K.
    """

    def __init__(self, dim: int, components: int) -> None:
        super().__init__()
        self.dim, self.components = dim, components
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.zeros(components, dim))
        # The precision of component k is P_k P_k', with P_k upper triangular.
        self.log_diagonal = nn.Parameter(torch.zeros(components, dim))
        self.off_diagonal = nn.Parameter(torch.zeros(components, dim, dim))
        self.register_buffer("_upper", torch.ones(dim, dim).triu(1), persistent=False)
        self._upper: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, (n,), of rows x (n, D)."""
        return self._joint(x).logsumexp(dim=1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n rows, (n, D)."""
        if n == 0:
            return self.means.detach()[:0]
        weights = self.logits.detach().softmax(0)
        component = torch.multinomial(weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, device=weights.device)
        # x = m + P^-T e has precision P P'. One component at a time: (n, D, D) would not fit in memory.
        eye = torch.eye(self.dim, device=weights.device).expand(self.components, -1, -1)
        factor = torch.linalg.solve_triangular(self._precision_factor().detach(), eye, upper=True)
        order = component.argsort(stable=True)
        counts = component.bincount(minlength=self.components).tolist()
        rows = torch.empty_like(noise)
        for k, index in enumerate(order.split(counts)):
            rows[index] = torch.addmm(self.means.detach()[k], noise[index], factor[k])
        return rows

    @torch.no_grad()
    def fit(
        self,
        x: Tensor,
        generator: torch.Generator,
        *,
        steps: int = 8,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start on data: k-means++, Lloyd's iterations on at most 20,000 rows, then EM on all.

        Each covariance is shrunk towards the pooled one with the weight of D rows, so that a component with
        few rows stays regular.

        Args:
            x: Rows (n, D), n >= 1.
            generator: The source of randomness, on x's device.
            steps: EM iterations.
            stop: Asked before each; True ends them.
        """
        centre = x.mean(0)
        picked = x = x - centre  # rows far from zero would lose their digits in the squares
        if len(x) > _KMEANS_ROWS:
            picked = x[torch.randperm(len(x), generator=generator, device=x.device)[:_KMEANS_ROWS]]
        centres = _kmeans(picked, self.components, generator)
        self._maximise(x, lambda rows: _nearest(rows, centres))
        for _ in range(steps):
            if stop():
                break
            self._maximise(x, lambda rows: self._joint(rows).softmax(dim=1))
        self.means.add_(centre)

    def _precision_factor(self) -> Tensor:
        return self.off_diagonal * self._upper + torch.diag_embed(self.log_diagonal.exp())

    def _joint(self, x: Tensor) -> Tensor:
        """Log of weight times density of each component, (n, K)."""
        factor = self._precision_factor()  # (K, D, D)
        flat = factor.permute(1, 0, 2).reshape(self.dim, -1)  # (D, K * D)
        offset = torch.bmm(self.means[:, None], factor).reshape(-1)  # (K * D,)
        white = torch.addmm(-offset, x, flat).view(len(x), self.components, self.dim)
        constant = (
            self.logits.log_softmax(0)
            + self.log_diagonal.sum(1)
            - 0.5 * self.dim * math.log(2 * math.pi)
        )
        return constant - 0.5 * white.square().sum(dim=2)

    def _maximise(self, x: Tensor, responsibilities: Callable[[Tensor], Tensor]) -> None:
        """One M step, chunk by chunk; scatters are taken about the means, which keeps their digits."""
        k, d = self.components, self.dim
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        chunks = [(rows, responsibilities(rows)) for rows in x.split(_CHUNK)]
        count, first = x.new_zeros(k, dtype=wide), x.new_zeros(k, d, dtype=wide)
        for rows, weight in chunks:
            count += weight.sum(0)
            first += weight.T @ rows
        safe = count.clamp_min(1e-6)
        means = (first / safe[:, None]).to(x)
        scatter = x.new_zeros(k, d, d, dtype=wide)
        for rows, weight in chunks:
            for own, mean, root in zip(scatter, means, weight.sqrt().T, strict=True):
                centred = (rows - mean) * root[:, None]
                own += centred.T @ centred
        pooled = scatter.sum(0) / len(x)
        covariance = (scatter + d * pooled) / (safe + d)[:, None, None]
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        diagonal += 1e-6 * (1 + diagonal.amax(1, keepdim=True))
        # With C = L L', the precision is L^-T L^-1; P must be upper triangular, and L^-T is.
        lower = _cholesky(covariance)
        eye = torch.eye(d, dtype=wide, device=x.device).expand(k, -1, -1)
        factor = torch.linalg.solve_triangular(lower, eye, upper=False).mT
        self.logits.copy_((safe / safe.sum()).log())
        self.means.copy_(means)
        self.log_diagonal.copy_(factor.diagonal(dim1=1, dim2=2).log())
        self.off_diagonal.copy_(factor.triu(1))


def _cholesky(matrices: Tensor) -> Tensor:
    """Factorise covariances (K, D, D); those that rounding has left indefinite get a larger diagonal."""
    ridge = torch.finfo(matrices.dtype).eps * matrices.diagonal(dim1=1, dim2=2).abs().amax(1)
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex(matrices)
    while bool((failed > 0).any()):
        ridge = 10 * ridge
        eye = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
        matrices = matrices + (failed > 0)[:, None, None] * ridge[:, None, None] * eye
        lower, failed = torch.linalg.cholesky_ex(matrices)
    return lower


def _nearest(rows: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of each row, one-hot: (n, K)."""
    index = torch.cdist(rows, centres).argmin(dim=1, keepdim=True)
    return rows.new_zeros(len(rows), len(centres)).scatter_(1, index, 1.0)


def _kmeans(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Centres (k, D) by k-means++ (Arthur and Vassilvitskii, 2007) and Lloyd's iterations.

    Not scikit-learn's: that one adds up in the order in which its threads finish, so that one seed would not
    give the same bits twice, and it does not run where the latents are.
    """
    first = torch.randint(len(x), (1,), generator=generator, device=x.device)
    chosen = [x[first]]
    distance = (x - chosen[0]).square().sum(1)
    for _ in range(k - 1):
        weights = distance if bool(distance.sum() > 0) else torch.ones_like(distance)
        chosen.append(x[torch.multinomial(weights, 1, generator=generator)])
        distance = torch.minimum(distance, (x - chosen[-1]).square().sum(1))
    centres = torch.cat(chosen)
    for _ in range(_KMEANS_STEPS):
        member = _nearest(x, centres)
        count = member.sum(0)[:, None]
        centres = torch.where(count > 0, member.T @ x / count.clamp_min(1), centres)
    return centres
