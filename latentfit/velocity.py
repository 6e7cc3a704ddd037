"""Velocity fields of flow matching: networks in rows and a time, with the divergence of what they give."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvField", "VelocityField"]

_GROUPS = 8  # of channels that are normalised together
_SMALLEST = 4  # rows or columns of positions, which are not halved again
_EMBEDDING = 64  # columns of what the time and the context become
_WAVES = 16  # frequencies of the time, from half a period in [0, 1] on


class VelocityField(nn.Module):
    """A residual network in x, t and a context; the divergence is propagated forward through it.

    Args:
        dim: D, the number of columns.
        context_dim: C, the number of columns of a context; 0 for none.
        hidden: The network's width.
        blocks: Residual blocks after the first layer.
    """

    def __init__(self, dim: int, context_dim: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.dim, self.width = dim, hidden
        self.first = nn.Linear(dim + 3 + context_dim, hidden)
        self.blocks = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.last = nn.Linear(hidden, dim)
        self.register_buffer("scale", torch.eye(dim))
        self.scale: Tensor
        # Twice as far from zero as torch starts them: SiLU is nearly linear there.
        nn.init.normal_(self.first.weight, std=dim**-0.5)
        for block in self.blocks:
            assert isinstance(block, nn.Linear)
            nn.init.orthogonal_(block.weight, math.sqrt(2))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @torch.no_grad()
    def start(self, rows: Tensor) -> None:
        """Measure velocities in the rows' own scales, so that in thin directions they start small."""
        centred = rows - rows.mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
        self.scale.copy_((vectors * values.clamp_min(0).sqrt()) @ vectors.T)

    def forward(self, x: Tensor, t: Tensor | float, context: Tensor | None = None) -> Tensor:
        """Velocities (n, D) at rows x (n, D) and times t, one for all or (n, 1), in contexts (n, C)."""
        h = F.silu(self.first(self._inputs(x, t, context)))
        for block in self.blocks:
            h = h + F.silu(block(h))
        velocity: Tensor = self.last(h) @ self.scale
        return velocity

    def with_divergence(
        self, x: Tensor, t: Tensor | float, context: Tensor | None, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocities (n, D), and the mean of e'Je over directions e (P, D), with J the Jacobian: (n,)."""
        h = self.first(self._inputs(x, t, context))
        entering = directions @ self.first.weight[:, : self.dim].T  # (P, H)
        tangent = _slope(h)[:, None] * entering  # (n, P, H)
        h = F.silu(h)
        for block in self.blocks:
            assert isinstance(block, nn.Linear)
            inner = block(h)
            tangent = torch.addcmul(tangent, _slope(inner)[:, None], tangent @ block.weight.T)
            h = h + F.silu(inner)
        back = directions @ self.scale.T @ self.last.weight  # (P, H)
        divergence = (tangent * back).sum((1, 2)) / len(directions)
        return self.last(h) @ self.scale, divergence

    def _inputs(self, x: Tensor, t: Tensor | float, context: Tensor | None) -> Tensor:
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x), 1)
        waves = (2 * times - 1, (math.pi * times).cos(), (math.pi * times).sin())
        return torch.cat((x, *waves) if context is None else (x, *waves, context), 1)


class ConvField(nn.Module):
    """A small U-Net (Ronneberger et al., 2015, arXiv:1505.04597) over the positions of spatial latents.

    Residual blocks of two 3x3 convolutions with group normalisation; time and context scale and shift the
    channels of each (Perez et al., 2017, arXiv:1709.07871). Height and width are halved, and the channels
    doubled once, while both are even and above 4. A learnt value for each position tells them apart.

    Args:
        shape: (C, H, W): what the D = C * H * W columns of a row are, in that order.
        context_dim: The number of columns of a context; 0 for none.
        channels: Those of the finest level; rounded up to a multiple of 8.
        blocks: Residual blocks on each level, on the way down and again on the way up.
    """

    def __init__(
        self, shape: tuple[int, int, int], context_dim: int, channels: int, blocks: int
    ) -> None:
        super().__init__()
        self.shape = shape
        colours, height, width = shape
        channels = -(-channels // _GROUPS) * _GROUPS
        self.width = channels * height * width  # numbers for a row in the largest of its layers
        frequencies = math.pi / 2 * torch.arange(1, _WAVES + 1)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor
        self.embed = nn.Sequential(
            nn.Linear(2 * _WAVES + context_dim, _EMBEDDING),
            nn.SiLU(),
            nn.Linear(_EMBEDDING, _EMBEDDING),
            nn.SiLU(),
        )
        self.first = nn.Conv2d(colours, channels, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(channels, height, width))
        self.level = _Level(height, width, channels, 2 * channels, blocks)
        self.last = nn.Sequential(
            nn.GroupNorm(_GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, colours, 3, padding=1)
        )
        _start_at_zero(self.last[2])

    def start(self, rows: Tensor) -> None:
        """Do nothing: rows that have been scaled by channel need no other unit."""

    def forward(self, x: Tensor, t: Tensor | float, context: Tensor | None = None) -> Tensor:
        """Velocities (n, D) at rows x (n, D) and times t, one for all or (n, 1), in contexts (n, C)."""
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x), 1)
        waves = times * self.frequencies
        inputs = (
            (waves.sin(), waves.cos()) if context is None else (waves.sin(), waves.cos(), context)
        )
        embedding = self.embed(torch.cat(inputs, 1))
        h = self.first(x.reshape(-1, *self.shape)) + self.place
        velocity: Tensor = self.last(self.level(h, embedding)).flatten(1)
        return velocity

    def with_divergence(
        self, x: Tensor, t: Tensor | float, context: Tensor | None, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocities (n, D), and the mean of e'Je over directions e (P, D), with J the Jacobian: (n,)."""
        n, p = len(x), len(directions)
        tangents = directions.repeat(n, 1)
        contexts = None if context is None else context.repeat_interleave(p, 0)

        def velocities(rows: Tensor) -> Tensor:
            return self.forward(rows, t, contexts)

        with warnings.catch_warnings():  # its first use in a process warns of torch's own code
            warnings.simplefilter("ignore", DeprecationWarning)
            pushed: Any = torch.func.jvp(velocities, (x.repeat_interleave(p, 0),), (tangents,))
        velocity, change = pushed
        return velocity[::p], (change * tangents).sum(1).view(n, p).mean(1)


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
    """Two convolutions, the second of which starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.normal = nn.GroupNorm(_GROUPS, channels)
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(_EMBEDDING, 2 * channels)
        self.again = nn.GroupNorm(_GROUPS, channels)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)
        _start_at_zero(self.two)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.one(F.silu(self.normal(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(shift, self.again(h), 1 + scale)
        result: Tensor = x + self.two(F.silu(h))
        return result


def _start_at_zero(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _slope(x: Tensor) -> Tensor:
    """The derivative of SiLU."""
    s = x.sigmoid()
    slope: Tensor = s * (1 + x * (1 - s))
    return slope
