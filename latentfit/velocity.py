"""Velocity fields of flow matching: networks in rows and a time, with the divergence of what they give."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Field", "VelocityField"]


class Field(nn.Module):
    """A velocity field between the rows and what their paths start from; here in the rows' own coordinates.

    Attributes:
        width: Numbers for a row in the largest layer.
    """

    width: int

    def start(self, rows: Tensor) -> None:
        """Take what is needed of rows (N, D) before the first step."""

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor | float, context: Tensor | None = None) -> Tensor:
        """Velocities (n, D) at places x (n, D) and times t, one for all or (n, 1), in contexts (n, C)."""

    @abstractmethod
    def with_divergence(
        self, x: Tensor, t: float, context: Tensor | None, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocities (n, D), and the mean of e'Je over directions e (P, D), with J the Jacobian: (n,)."""

    def error(self, starts: Tensor, ends: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """What the velocities at times t (n, 1) on straight paths to rows, the ends, lack: (n, D)."""
        velocity: Tensor = self(torch.lerp(starts, ends, t), t, context)
        return velocity - (ends - starts)

    def leave(self, x: Tensor) -> Tensor:
        """Turn places (n, D) at t = 1 into rows (n, D)."""
        return x

    def enter(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Undo :meth:`leave`: places (n, D) and the log absolute determinant, a scalar."""
        return rows, rows.new_zeros(())


class VelocityField(Field):
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
        self, x: Tensor, t: float, context: Tensor | None, directions: Tensor
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


def _slope(x: Tensor) -> Tensor:
    """The derivative of SiLU."""
    s = x.sigmoid()
    slope: Tensor = s * (1 + x * (1 - s))
    return slope
