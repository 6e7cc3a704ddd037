"""Kernel density estimation with a Gaussian kernel: exact, in parts that bound the memory."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from latentfit.plugin import Interval, Run, Sampler

__all__ = ["KDE"]

_NUMBERS = 2**20  # distances that are worked on at once: they stay in a CPU's cache
_JUDGES = 512  # rows at most that a bandwidth is judged by,
_JUDGED = 2**24  # and distances of theirs that are kept
_LOW, _HIGH, _GRID = 1e-3, 4.0, 12  # the bandwidths to try, in deviations of the rows
_REFINED = 6  # times that the step between bandwidths is halved then
_SINGLE = (
    1e4  # squared length of rows, in bandwidths, at which float32 still gives distances to 1e-3
)
_RIDGE = 1e-6
_LEAST = (
    -60.0
)  # the log of a kernel that counts beside the largest; less are denormals, which are slow

_Positive = Annotated[float, Interval(0, open_low=True)]


class KDE(Sampler):
    """Kernel density estimation: a Gaussian of one width around every training row (Parzen, 1962).

    The bandwidth is that under which held-out rows are likeliest; without any, each kept row under the
    others. Samples are training rows with noise, so the saved sampler holds these rows.

    Under classes the kernels are those of the class's rows; a class without rows is taken for all. Under a
    vector each kernel counts by a second Gaussian kernel, on the distance of the conditions, and both
    bandwidths are those under which rows are likeliest given their conditions.

    Args:
        bandwidth: The kernel's deviation, in those of the standardised rows; None chooses it by likelihood.
        context_bandwidth: Under a vector that of the second kernel; None chooses it by likelihood.
        kernel: "isotropic" is as wide in all directions, "covariance" has the shape of the rows' covariance.
        points: The most rows to keep, drawn at random; log_prob takes time in proportion.
    """

    has_density = True
    conditions = ("classes", "vector")

    def __init__(
        self,
        *,
        bandwidth: _Positive | None = None,
        context_bandwidth: _Positive | None = None,
        kernel: Literal["isotropic", "covariance"] = "isotropic",
        points: Annotated[int, Interval(1)] = 100_000,
    ) -> None:
        super().__init__()
        self.bandwidth = bandwidth
        self.context_bandwidth = context_bandwidth
        self.kernel = kernel
        self.points = points

    def build(self, dim: int, n: int) -> None:
        """Create room for the rows that are kept."""
        kept = min(n, self.points)
        classes = self.context_dim if self.context_kind == "classes" else 0
        vector = self.context_dim if self.context_kind == "vector" else 0
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("factor", torch.eye(dim))  # of the kernel's shape; lower triangular
        self.register_buffer("centres", torch.zeros(kept, dim))  # where the kernel is round
        self.register_buffer("contexts", torch.zeros(kept, vector))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("width", torch.ones(()))
        self.register_buffer("context_width", torch.ones(()))
        self.shift: Tensor
        self.factor: Tensor
        self.centres: Tensor
        self.contexts: Tensor
        self.counts: Tensor
        self.width: Tensor
        self.context_width: Tensor

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        """Keep rows, and choose the bandwidths."""
        order = torch.arange(len(rows), device=rows.device)
        if len(rows) > len(self.centres):
            order = torch.randperm(len(rows), generator=run.generator, device=rows.device)
            order = order[: len(self.centres)]
        if run.context is not None and self.context_kind == "classes":
            labels = run.context[order].argmax(1)
            order = order[labels.argsort(stable=True)]  # so that a class is a slice
            self.counts.copy_(labels.bincount(minlength=self.context_dim))
        elif run.context is not None:
            self.contexts.copy_(run.context[order])
        kept = rows[order]
        self.shift.copy_(kept.mean(0))
        if self.kernel == "covariance":
            self.factor.copy_(_factor(kept - self.shift))
        self.centres.copy_(self._round(kept))
        self._choose_widths(held_out, run)
        run.facts |= {"bandwidth": float(self.width), "points": len(self.centres)}
        if self.context_kind == "vector":
            run.facts["context_bandwidth"] = float(self.context_width)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        """Draw n rows, (n, D): kept ones, and noise of the kernel's shape."""
        centres = self.centres[self._kernels(n, generator, context)]
        noise = torch.randn(centres.shape, generator=generator, device=centres.device)
        return self.shift + (centres + self.width * noise) @ self.factor.T

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density in nats, (n,), of rows (n, D)."""
        x, centres = self._round(rows) / self.width, self.centres / self.width
        dim = x.shape[1]
        volume = self.factor.diagonal().log().sum() + dim * self.width.log()
        volume = volume + 0.5 * dim * math.log(2 * math.pi)
        if context is None:
            return _log_kernels(x, centres) - math.log(len(centres)) - volume
        if self.context_kind == "vector":  # the kernel of both, by that of the condition
            y, contexts = context / self.context_width, self.contexts / self.context_width
            joint = _log_kernels(torch.cat((x, y), dim=1), torch.cat((centres, contexts), dim=1))
            return joint - _log_kernels(y, contexts) - volume
        result = x.new_zeros(len(x))
        labels = context.argmax(1)
        starts, counts = self._slices()
        for k in labels.unique().tolist():
            own = centres[starts[k] : starts[k] + counts[k]]
            result[labels == k] = _log_kernels(x[labels == k], own) - math.log(len(own))
        return result - volume

    def _round(self, rows: Tensor) -> Tensor:
        """Map rows to the space where the kernel is round."""
        rows = rows - self.shift
        if self.kernel == "isotropic":
            return rows
        white: Tensor = torch.linalg.solve_triangular(self.factor, rows.T, upper=False).T
        return white

    def _slices(self) -> tuple[Tensor, Tensor]:
        """Where each class's centres start, and how many there are; all, for a class without."""
        none = self.counts == 0
        starts = (self.counts.cumsum(0) - self.counts).masked_fill(none, 0)
        return starts, self.counts.masked_fill(none, len(self.centres))

    def _kernels(self, n: int, generator: torch.Generator, context: Tensor | None) -> Tensor:
        """Draw the indices of n kernels."""
        device = self.centres.device
        if context is None:
            return torch.randint(len(self.centres), (n,), generator=generator, device=device)
        if self.context_kind == "classes":
            starts, counts = (values[context.argmax(1)] for values in self._slices())
            fraction = torch.rand(n, generator=generator, device=device)
            return starts + torch.minimum((fraction * counts).long(), counts - 1)
        y, contexts = context / self.context_width, self.contexts / self.context_width
        drawn = [torch.zeros(0, dtype=torch.int64, device=device)]
        for part in y.split(_rows_at_once(contexts)):
            # multinomial would draw a number for each kernel.
            below = _relative(_nearness(part, contexts))[0].cumsum(1)
            level = torch.rand(len(part), 1, generator=generator, device=device) * below[:, -1:]
            drawn.append(torch.searchsorted(below, level)[:, 0].clamp_max(len(contexts) - 1))
        return torch.cat(drawn)

    def _choose_widths(self, held_out: Tensor, run: Run) -> None:
        """Choose those bandwidths that are not given by the likelihood of some rows."""
        spread: dict[str, float] = {}
        for name, given, values in (
            ("width", self.bandwidth, self.centres),
            ("context_width", self.context_bandwidth, self.contexts),
        ):
            if not values.shape[1]:
                continue
            size = float(values.std(0, correction=0).square().mean().sqrt()) or 1.0
            if given is None:
                spread[name] = size
                given = size * len(values) ** (-1 / (values.shape[1] + 4))  # Scott's rule (1992)
            getattr(self, name).fill_(given)
        if not spread:
            return
        judges = _Judges(self, held_out, run)
        run.facts["chosen_by"] = judges.name if len(judges.nearness) else "Scott's rule"
        if not len(judges.nearness):
            return
        total = len(spread) * (1 + _GRID + 4 * _REFINED)
        best, tried = -math.inf, 0

        def attempt(name: str, value: float) -> None:
            nonlocal best, tried
            if tried and run.elapsed() >= 1:
                return
            width: Tensor = getattr(self, name)
            before = float(width)
            width.fill_(max(value, _LOW * spread[name]))
            score = judges.score(self)
            tried += 1
            run.log(tried, total, **{judges.curve: -score, "bandwidth": float(self.width)})
            if score > best:
                best = score
            else:
                width.fill_(before)

        ratio = (_HIGH / _LOW) ** (1 / (_GRID - 1))
        for name, size in spread.items():
            attempt(name, float(getattr(self, name)))
            for step in range(_GRID):
                attempt(name, size * _LOW * ratio**step)
        for _ in range(_REFINED):
            ratio = math.sqrt(ratio)
            for name in spread:
                for factor in (ratio, 1 / ratio):
                    attempt(name, float(getattr(self, name)) * factor)


class _Judges:
    """Rows that bandwidths are judged by, with their distances from all kernels, measured once.

    They are held-out rows or, without any, kept rows under the kernels of the others.
    """

    def __init__(self, kde: KDE, held_out: Tensor, run: Run) -> None:
        centres, device = kde.centres, kde.centres.device
        most = max(64, min(_JUDGES, _JUDGED // len(centres)))
        number = torch.arange(len(centres), device=device)
        if len(held_out):
            self.name, self.curve = "held-out rows", "validation_loss"
            x, context = run.judges(held_out, most)
            x = kde._round(x)
            counts = torch.ones(len(x), len(centres), dtype=torch.bool, device=device)
        else:
            self.name, self.curve = "kept rows, each left out", "train_loss"
            own = torch.randperm(len(centres), generator=run.generator, device=device)[:most]
            x, counts = centres[own], own[:, None] != number
            context = kde.contexts[own]
            if kde.context_kind == "classes":
                context = torch.nn.functional.one_hot(
                    torch.searchsorted(kde.counts.cumsum(0), own, right=True), len(kde.counts)
                )
        if context is not None and kde.context_kind == "classes":
            starts, sizes = (values[context.argmax(1), None] for values in kde._slices())
            counts &= (number >= starts) & (number < starts + sizes)
        known = counts.any(dim=1)  # a class's only row has no others
        x, counts = x[known], counts[known]
        self.nearness = _minus_half_squares(x, centres).masked_fill_(~counts, -math.inf)
        self.numbers = counts.sum(1).log()
        self.context_nearness: Tensor | None = None
        if context is not None and kde.context_kind == "vector":
            near = _minus_half_squares(context[known], kde.contexts)
            self.context_nearness = near.masked_fill_(~counts, -math.inf)

    def score(self, kde: KDE) -> float:
        """The mean log density of the rows, up to a constant."""
        size, scale = _rows_at_once(kde.centres), kde.width**-2
        sums = []
        for i, near in enumerate(self.nearness.split(size)):
            if self.context_nearness is None:
                numbers = self.numbers[i * size : (i + 1) * size]
                sums.append((_log_sum(near * scale) - numbers).sum())
            else:
                context = self.context_nearness[i * size : (i + 1) * size] * kde.context_width**-2
                sums.append((_log_sum(near * scale + context) - _log_sum(context)).sum())
        mean = float(torch.stack(sums).sum()) / len(self.nearness)
        return mean - kde.centres.shape[1] * math.log(float(kde.width))


def _rows_at_once(centres: Tensor) -> int:
    return max(1, _NUMBERS // len(centres))


def _nearness(a: Tensor, b: Tensor) -> Tensor:
    """Minus half the squared distances of rows (n, D) and (m, D), but for a number of each of the n."""
    return torch.addmm(-0.5 * b.square().sum(1), a, b.T)


def _minus_half_squares(a: Tensor, b: Tensor) -> Tensor:
    """Minus half the squared distances of rows (n, D) and (m, D)."""
    return (_nearness(a, b) - 0.5 * a.square().sum(1, keepdim=True)).clamp_max_(0)


def _relative(logs: Tensor) -> tuple[Tensor, Tensor]:
    """Exponentials relative to each row's largest, in place and without denormals; and the largest (n, 1)."""
    largest = logs.amax(1, keepdim=True)
    return logs.sub_(largest).clamp_min_(_LEAST).exp_(), largest


def _log_sum(logs: Tensor) -> Tensor:
    """Do what logsumexp does over the last dimension, in place."""
    relative, largest = _relative(logs)
    return relative.sum(1).log() + largest[:, 0]


def _log_kernels(a: Tensor, b: Tensor) -> Tensor:
    """Log of the sum over rows b (m, D) of exp(-|a - b|^2 / 2), (n,), for each row a (n, D)."""
    dtype = a.dtype
    if a.device.type != "mps" and float(b.square().sum(1).mean()) > _SINGLE:
        a, b = a.double(), b.double()
    result: Tensor = _LogKernels.apply(a, b)  # type: ignore[no-untyped-call]
    return result.to(dtype)


class _LogKernels(torch.autograd.Function):
    """The sum in parts; for the gradient in a they are computed again, so that none need be kept.

    Results go into one tensor: small ones between large ones would keep the memory of these from being used
    again.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        size = _rows_at_once(b)
        result = -0.5 * a.square().sum(1)
        for part, own in zip(a.split(size), result.split(size), strict=True):
            own += _log_sum(_nearness(part, b))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        a, b = ctx.saved_tensors
        size = _rows_at_once(b)
        pull = -a
        for part, own in zip(a.split(size), pull.split(size), strict=True):
            relative, _ = _relative(_nearness(part, b))
            own += relative @ b / relative.sum(1, keepdim=True)
        return gradient[:, None] * pull, None


def _factor(rows: Tensor) -> Tensor:
    """The Cholesky factor of the covariance of rows of mean 0, with a ridge."""
    x = rows if rows.device.type == "mps" else rows.double()
    covariance = x.T @ x / len(x)
    covariance.diagonal().add_(_RIDGE * (1 + covariance.diagonal().amax()))
    factor: Tensor = torch.linalg.cholesky(covariance)
    return factor
