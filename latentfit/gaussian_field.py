"""Velocity fields that begin as the flow from normal noise to one Gaussian, and learn what that lacks."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentfit.em import widest
from latentfit.velocity import Field

__all__ = ["ConvField", "DeepField", "GaussianField"]

_LEAST = 1e-8  # a variance, relative to the largest
_GROUPS = 8  # of channels that are normalised together
_SMALLEST = 4  # rows or columns of positions, which are not halved again
_EMBEDDING = 64  # columns of what the time and the context become
_GUIDED = (0.3, 0.6)  # times between which guidance sets in
_WAVES = 16  # frequencies of the time, from a quarter of a period in [0, 1] on


class GaussianField(Field):
    """A network about the flow from N(0, I) to the Gaussian of the rows, which is known in closed form.

    Along a principal axis of variance v the places at time t have variance d = (1 - t)^2 + t^2 v under that
    Gaussian. A place is measured in these deviations, so that the Gaussian's own flow stands still, and a
    network, zero at first, gives the rest of the velocity in units of sqrt(v) / d. In the rows' units that is
    the deviation which the velocity has at a known place: the network's inputs and outputs are of order one
    at all times and in thin directions, too (after Karras et al., 2022, arXiv:2206.00364).

    Args:
        dim: D, the number of columns.
        rotate: Whether to measure along the principal axes, D * D numbers; else along the columns.

    Attributes:
        halve: Whether training multiplies in bfloat16.
    """

    halve = False

    def __init__(self, dim: int, *, rotate: bool) -> None:
        super().__init__()
        self.dim, self.rotate = dim, rotate
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("axes", torch.eye(dim) if rotate else torch.zeros(0))
        self.register_buffer("guidance", torch.zeros(()))  # of velocities; training does not see it
        self.mean: Tensor
        self.variance: Tensor
        self.axes: Tensor  # in its columns
        self.guidance: Tensor

    @abstractmethod
    def network(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """What the network gives, (n, D), at x (n, D), t (n, 1) and contexts (n, C)."""

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """Take the mean and the variances of rows (N, D), N >= 1."""
        self.mean.copy_(rows.mean(0))
        centred = rows - self.mean
        if self.rotate:
            products = (centred.T @ centred).to(widest(rows.device))
            values, vectors = torch.linalg.eigh(products / len(rows))
            self.axes.copy_(vectors)
            self._set_variance(values)
        else:
            self._set_variance(centred.square().mean(0))

    def _set_variance(self, values: Tensor) -> None:
        self.variance.copy_(values.clamp_min(max(_LEAST * float(values.max()), 1e-30)))

    def forward(self, x: Tensor, t: Tensor | float, context: Tensor | None = None) -> Tensor:
        """Velocities (n, D) at places x (n, D) and times t, one for all or (n, 1), in contexts (n, C)."""
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x), 1)
        boost = 1 + self.guidance * self._share(times)
        return boost * self._rate(times) * self.network(x, times, context)

    @staticmethod
    def _share(t: Tensor) -> Tensor:
        """How much of the guidance there is at times t: none up to 0.3, all of it from 0.6 on.

        Early on, guidance draws all paths to where most of the rows are (Kynkäänniemi et al., 2024,
        arXiv:2404.07724). A gradual rise is easy on the solver.
        """
        rise = ((t - _GUIDED[0]) / (_GUIDED[1] - _GUIDED[0])).clamp(0, 1)
        return rise.square() * (3 - 2 * rise)

    def with_divergence(
        self, x: Tensor, t: float, context: Tensor | None, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocities (n, D), and the mean of e'Je over directions e (P, D), with J the Jacobian: (n,)."""
        n, p = len(x), len(directions)
        tangents = directions.repeat(n, 1)
        contexts = None if context is None else context.repeat_interleave(p, 0)

        def velocities(places: Tensor) -> Tensor:
            return self.forward(places, t, contexts)

        with warnings.catch_warnings():  # its first use in a process warns of torch's own code
            warnings.simplefilter("ignore", DeprecationWarning)
            pushed: Any = torch.func.jvp(velocities, (x.repeat_interleave(p, 0),), (tangents,))
        velocity, change = pushed
        return velocity[::p], (change * tangents).sum(1).view(n, p).mean(1)

    def error(self, starts: Tensor, ends: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """What the velocities at times t (n, 1) on straight paths to rows, the ends, lack: (n, D)."""
        ends = self._along_axes(ends)
        x, d = torch.lerp(starts, ends, t), self._spread(t)
        known = (
            (t * self.variance - (1 - t)) / d * x
        )  # the velocity that the Gaussian's own flow has
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.training and self.halve):
            found = self.network(x / d.sqrt(), t, context)
        return known + (self.variance / d).sqrt() * found - (ends - starts)

    def leave(self, x: Tensor) -> Tensor:
        """Turn places (n, D) at t = 1 into rows (n, D)."""
        x = x * self.variance.sqrt()
        return torch.addmm(self.mean, x, self.axes.T) if self.rotate else self.mean + x

    def enter(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Undo :meth:`leave`: places (n, D) and the log absolute determinant, a scalar."""
        return self._along_axes(rows) / self.variance.sqrt(), -0.5 * self.variance.log().sum()

    def _along_axes(self, rows: Tensor) -> Tensor:
        rows = rows - self.mean
        return rows @ self.axes if self.rotate else rows

    def _spread(self, t: Tensor) -> Tensor:
        return (1 - t).square() + t.square() * self.variance  # (n, D)

    def _rate(self, t: Tensor) -> Tensor:
        return self.variance.sqrt() / self._spread(t)


class DeepField(GaussianField):
    """A residual network for many columns, of more layers and width than :class:`VelocityField`.

    Each block is a layer norm, two linear layers and SiLU between; the time and the context scale and shift
    what is normalised (Perez et al., 2017, arXiv:1709.07871).

    Args:
        dim: D, the number of columns.
        context_dim: The number of columns of a context; 0 for none.
        hidden: The network's width.
        blocks: Its residual blocks.
        rotate: See :class:`GaussianField`.
    """

    def __init__(
        self, dim: int, context_dim: int, hidden: int, blocks: int, *, rotate: bool = True
    ) -> None:
        super().__init__(dim, rotate=rotate)
        self.width = max(hidden, dim)
        self.embed = _Embedding(context_dim)
        self.first = nn.Linear(dim, hidden)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(blocks))
        self.last = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, dim))
        _start_at_zero(self.last[1])

    def network(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """What the network gives, (n, D), at x (n, D), t (n, 1) and contexts (n, C)."""
        embedding = self.embed(t, context)
        h = self.first(x)
        for block in self.blocks:
            h = block(h, embedding)
        result: Tensor = self.last(h)
        return result


class _Block(nn.Module):
    """A residual block of :class:`DeepField`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.normal = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulate = nn.Linear(_EMBEDDING, 2 * hidden)
        self.one, self.two = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        _start_at_zero(self.modulate)
        # Not at zero, as is usual: then all of the network would be linear, and that part is known already.
        nn.init.normal_(self.two.weight, std=math.sqrt(0.5 / hidden))
        nn.init.zeros_(self.two.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding).chunk(2, 1)
        inner = torch.addcmul(shift, self.normal(h), 1 + scale)
        result: Tensor = h + self.two(F.silu(self.one(inner)))
        return result


class ConvField(GaussianField):
    """A small U-Net (Ronneberger et al., 2015, arXiv:1505.04597) over the positions of spatial latents.

    Residual blocks of two 3x3 convolutions with group normalisation; time and context scale and shift the
    channels of each. Height and width are halved, and the channels doubled once, while both are even and
    above 4. A learnt value for each position tells them apart. The Gaussian is measured by channel.

    Args:
        shape: (C, H, W): what the D = C * H * W columns of a row are, in that order.
        context_dim: The number of columns of a context; 0 for none.
        channels: Those of the finest level; rounded up to a multiple of 8.
        blocks: Residual blocks on each level, on the way down and again on the way up.
    """

    def __init__(
        self, shape: tuple[int, int, int], context_dim: int, channels: int, blocks: int
    ) -> None:
        super().__init__(math.prod(shape), rotate=False)
        self.shape = shape
        colours, height, width = shape
        channels = -(-channels // _GROUPS) * _GROUPS
        self.width = channels * height * width
        self.embed = _Embedding(context_dim)
        self.first = nn.Conv2d(colours, channels, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(channels, height, width))
        self.level = _Level(height, width, channels, 2 * channels, blocks)
        self.last = nn.Sequential(
            nn.GroupNorm(_GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, colours, 3, padding=1)
        )
        _start_at_zero(self.last[2])

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """Take the mean and the variance of each channel of rows (N, D), N >= 1."""
        images = rows.view(-1, *self.shape)
        variance, mean = torch.var_mean(images, (0, 2, 3), correction=0, keepdim=True)
        self.mean.copy_(mean.expand(1, *self.shape).flatten())
        self._set_variance(variance.expand(1, *self.shape).flatten())

    def network(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """What the network gives, (n, D), at x (n, D), t (n, 1) and contexts (n, C)."""
        h = self.first(x.reshape(-1, *self.shape)) + self.place
        result: Tensor = self.last(self.level(h, self.embed(t, context))).flatten(1)
        return result


class _Embedding(nn.Module):
    """What the blocks are told of times (n, 1) and contexts (n, C)."""

    def __init__(self, context_dim: int) -> None:
        super().__init__()
        frequencies = math.pi / 2 * torch.arange(1, _WAVES + 1)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor
        self.layers = nn.Sequential(
            nn.Linear(2 * _WAVES + context_dim, _EMBEDDING),
            nn.SiLU(),
            nn.Linear(_EMBEDDING, _EMBEDDING),
            nn.SiLU(),
        )

    def forward(self, t: Tensor, context: Tensor | None) -> Tensor:
        waves = t * self.frequencies
        inputs = (waves.sin(), waves.cos())
        result: Tensor = self.layers(
            torch.cat(inputs if context is None else (*inputs, context), 1)
        )
        return result


class _Level(nn.Module):
    """Residual blocks at one size, and between them, halved, the next level."""

    def __init__(self, height: int, width: int, channels: int, most: int, blocks: int) -> None:
        super().__init__()
        self.enter = nn.ModuleList(_Residual(channels) for _ in range(blocks))
        self.leave = nn.ModuleList(_Residual(channels) for _ in range(blocks))
        self.inner: _Level | None = None
        if height % 2 == 0 and width % 2 == 0 and min(height, width) > _SMALLEST:
            wider = min(2 * channels, most)
            self.halve = nn.Conv2d(channels, wider, 3, stride=2, padding=1)
            self.inner = _Level(height // 2, width // 2, wider, most, blocks)
            self.narrow = nn.Conv2d(wider, channels, 1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        for block in self.enter:
            h = block(h, embedding)
        if self.inner is not None:
            below = self.narrow(self.inner(self.halve(h), embedding))
            h = h + F.interpolate(below, scale_factor=2.0)
        for block in self.leave:
            h = block(h, embedding)
        return h


class _Residual(nn.Module):
    """A residual block of :class:`ConvField`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.normal = nn.GroupNorm(_GROUPS, channels)
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(_EMBEDDING, 2 * channels)
        self.again = nn.GroupNorm(_GROUPS, channels)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.one(F.silu(self.normal(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.again(h), 1 + scale)
        result: Tensor = x + self.two(F.silu(h))
        return result


def _start_at_zero(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
