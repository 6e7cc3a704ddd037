"""RealNVP, MAF, planar and radial flows on normflows' layers (Stimper et al., 2023, arXiv:2302.12014)."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

import normflows as nf
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentfit.plugin import FlowSampler, Interval, OptionError

__all__ = ["MAF", "Planar", "Radial", "RealNVP"]


class RealNVP(FlowSampler):
    """Affine coupling layers (Dinh et al., 2016, arXiv:1605.08803) on a normal or a mixture base.

    The paper's FlowAE is ``layers=5, hidden=(H,), base="normal"``. A mixture base costs as much and need not
    bend one blob into many clusters, which leaves bridges between them.

    Args:
        layers: Coupling layers; the halves swap after each.
        hidden: Widths of the hidden layers of each coupling network.
        base: "mixture", a trainable Gaussian mixture that starts on the data, or "normal".
        components: The mixture's size; None chooses it from the data's.
        steps: Optimiser steps at most; a held-out loss that no longer falls stops earlier.
        learning_rate: The highest of the cosine schedule.
    """

    conditions = ("classes", "vector")

    def __init__(
        self,
        *,
        layers: Annotated[int, Interval(1, 1000)] = 5,
        hidden: tuple[Annotated[int, Interval(1)], ...] = (128,),
        base: Literal["mixture", "normal"] = "mixture",
        components: Annotated[int, Interval(1)] | None = None,
        steps: Annotated[int, Interval(1)] = 3000,
        learning_rate: Annotated[float, Interval(0, open_low=True)] = 2e-3,
    ) -> None:
        super().__init__(base=base, components=components, steps=steps, learning_rate=learning_rate)
        self.layers = layers
        self.hidden = hidden

    def build_flow(self, dim: int) -> None:
        """Create the coupling layers; they begin as the identity up to the order of the columns."""
        self.flows = nn.ModuleList()
        if dim == 1 and not self.context_dim:  # nothing to couple: the base alone is the model
            if self.base == "normal":
                raise OptionError(
                    "RealNVP couples two or more dimensions; for one, expected base='mixture', got "
                    "base='normal'."
                )
            return
        for _ in range(self.layers):
            self.flows.append(_Coupling(dim, self.hidden, self.context_dim))
            self.flows.append(nf.flows.Permute(dim, mode="swap"))

    def to_base(self, rows: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows (n, D) to the base's space: (n, D) and the log absolute determinant (n,)."""
        total = rows.new_zeros(len(rows))
        flow: Any  # normflows' layers are modules with an inverse method
        for flow in reversed(self.flows):
            rows, log_determinant = flow.inverse(rows, context)
            total = total + log_determinant
        return rows, total

    def from_base(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Map base samples (n, D) to rows (n, D)."""
        for flow in self.flows:
            noise, _ = flow(noise, context)
        return noise


class MAF(FlowSampler):
    """Masked autoregressive flow (Papamakarios et al., 2017, arXiv:1705.07057).

    A density takes one pass through the networks, a sample of D columns takes D.

    Args:
        layers: Autoregressive layers; the columns are reversed between them.
        hidden: Width of each layer's masked network.
        blocks: Residual blocks in each masked network.
        base: "mixture", a trainable Gaussian mixture that starts on the data, or "normal".
        components: The mixture's size; None chooses it from the data's.
        steps: Optimiser steps at most; a held-out loss that no longer falls stops earlier.
        learning_rate: The highest of the cosine schedule.
    """

    conditions = ("classes", "vector")

    def __init__(
        self,
        *,
        layers: Annotated[int, Interval(1, 1000)] = 5,
        hidden: Annotated[int, Interval(1)] = 128,
        blocks: Annotated[int, Interval(1, 1000)] = 1,
        base: Literal["mixture", "normal"] = "mixture",
        components: Annotated[int, Interval(1)] | None = None,
        steps: Annotated[int, Interval(1)] = 3000,
        learning_rate: Annotated[float, Interval(0, open_low=True)] = 4e-3,
    ) -> None:
        super().__init__(base=base, components=components, steps=steps, learning_rate=learning_rate)
        self.layers = layers
        self.hidden = hidden
        self.blocks = blocks

    def build_flow(self, dim: int) -> None:
        """Create the layers; they begin as the identity up to the order of the columns."""
        self.flows = nn.ModuleList(
            _MaskedAffine(dim, self.hidden, self.blocks, self.context_dim)
            for _ in range(self.layers)
        )

    def to_base(self, rows: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map rows (n, D) to the base's space: (n, D) and the log absolute determinant (n,)."""
        total = rows.new_zeros(len(rows))
        for flow in self.flows:
            rows, log_determinant = flow(rows.flip(1), context)
            total = total + log_determinant
        return rows, total

    def from_base(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Map base samples (n, D) to rows (n, D), a column at a time."""
        flow: Any
        for flow in reversed(self.flows):
            noise = flow.inverse(noise, context)[0].flip(1)
        return noise


class _ElementaryFlow(FlowSampler):
    """What planar and radial flows share: small layers whose closed form leads to the base."""

    def __init__(
        self,
        *,
        layers: Annotated[int, Interval(1, 1000)] = 32,
        base: Literal["normal", "mixture"] = "normal",
        components: Annotated[int, Interval(1)] | None = None,
        steps: Annotated[int, Interval(1)] = 3000,
        learning_rate: Annotated[float, Interval(0, open_low=True)] = 1e-2,
    ) -> None:
        super().__init__(base=base, components=components, steps=steps, learning_rate=learning_rate)
        self.layers = layers

    @abstractmethod
    def layer(self, dim: int) -> nn.Module:
        """Create a layer that begins as the identity."""

    def build_flow(self, dim: int) -> None:
        """Create the layers; they begin as the identity."""
        self.flows = nn.ModuleList(self.layer(dim) for _ in range(self.layers))

    def to_base(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Map rows (n, D) to the base's space: (n, D) and the log absolute determinant (n,)."""
        total = rows.new_zeros(len(rows))
        for flow in self.flows:
            rows, log_determinant = flow(rows)
            total = total + log_determinant
        return rows, total

    def from_base(self, noise: Tensor) -> Tensor:
        """Map base samples (n, D) to rows (n, D), in float64 within (float32 on MPS)."""
        rows = noise.to(torch.float32 if noise.device.type == "mps" else torch.float64)
        flow: Any
        for flow in reversed(self.flows):
            rows = flow.inverse(rows)
        return rows.to(noise)


class Planar(_ElementaryFlow):
    """Planar flow (Rezende and Mohamed, 2015, arXiv:1505.05770): a baseline, weak beyond one blob.

    Its layers y = x + u tanh(w'x + b) map rows to the base, so that the density has a closed form. Sampling
    inverts them: t = w'x + b is the root of t + w'u tanh(t) = w'y + b, found in float64 by Newton's method
    from the side where it can't overshoot. No layer's slope along w is below 1e-3, which keeps it invertible:
    in float64 each is undone, either way, to 1e-10 of the largest number that it meets.

    Args:
        layers: Planar layers.
        base: "normal", or "mixture", a trainable Gaussian mixture that starts on the data.
        components: The mixture's size; None chooses it from the data's.
        steps: Optimiser steps at most; a held-out loss that no longer falls stops earlier.
        learning_rate: The highest of the cosine schedule.
    """

    def layer(self, dim: int) -> nn.Module:
        """Create a layer that begins as the identity."""
        return _PlanarLayer(dim)


class Radial(_ElementaryFlow):
    """Radial flow (Rezende and Mohamed, 2015, arXiv:1505.05770): a baseline, weak beyond one blob.

    Its layers ``y = x + beta (x - c) / (alpha + |x - c|)`` map rows to the base, so that the density has a
    closed form. Sampling inverts them: x lies on the ray from c to y, at the one positive root of a quadratic
    equation, which is taken in float64. No layer's slope is below 1e-3, which keeps it invertible: in float64
    each is undone, either way, to 1e-10 of the largest number that it meets.

    Args:
        layers: Radial layers.
        base: "normal", or "mixture", a trainable Gaussian mixture that starts on the data.
        components: The mixture's size; None chooses it from the data's.
        steps: Optimiser steps at most; a held-out loss that no longer falls stops earlier.
        learning_rate: The highest of the cosine schedule.
    """

    def layer(self, dim: int) -> nn.Module:
        """Create a layer that begins as the identity."""
        return _RadialLayer(dim)


_LOG_SCALE = 3.0  # the bound of a layer's log scales: no row is stretched beyond float32's range
_SHIFT = 1e3  # the bound of MAF's shifts, which can multiply from column to column of a sample
_LEAST_SLOPE = 1e-3  # of a planar or radial layer, so that its inverse keeps its digits


def _bounded(log_scale: Tensor) -> Tensor:
    return _LOG_SCALE * torch.tanh(log_scale / _LOG_SCALE)


class _Coupling(nf.flows.AffineCouplingBlock):  # type: ignore[misc]
    """normflows' coupling block, whose network sees a context, if there is one, beside the kept columns."""

    def __init__(self, dim: int, hidden: tuple[int, ...], context_dim: int) -> None:
        kept = (dim + 1) // 2 if dim > 1 else 0  # a single column is scaled by the context alone
        widths = [kept + context_dim, *hidden, 2 * (dim - kept)]
        super().__init__(_BoundedScale(nf.nets.MLP(widths, init_zeros=True)))
        self.kept = kept

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if context is None:
            return super().forward(z)  # type: ignore[no-any-return]
        return self._given(context, z, self.flows[1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if context is None:
            return super().inverse(z)  # type: ignore[no-any-return]
        return self._given(context, z, self.flows[1].inverse)

    def _given(self, context: Tensor, z: Tensor, coupling: Any) -> tuple[Tensor, Tensor]:
        kept, changed = z.tensor_split([self.kept], dim=1)
        (_, changed), log_determinant = coupling([torch.cat((kept, context), dim=1), changed])
        return torch.cat((kept, changed), dim=1), log_determinant


class _BoundedScale(nn.Module):
    """Bound the log scales, every second output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.network(x)
        shift, scale = outputs.view(len(x), outputs.shape[1] // 2, 2).unbind(dim=2)
        return torch.stack((shift, _bounded(scale)), dim=2).flatten(1)


class _MaskedAffine(nf.flows.MaskedAffineAutoregressive):  # type: ignore[misc]
    """normflows' layer with scales on both sides of 1: its own sigmoid reaches 1.001 at most."""

    def __init__(self, dim: int, hidden: int, blocks: int, context_dim: int) -> None:
        super().__init__(dim, hidden, context_features=context_dim or None, num_blocks=blocks)
        network = self.autoregressive_net
        nn.init.zeros_(network.final_layer.weight)
        nn.init.zeros_(network.final_layer.bias)
        linear = [m for m in network.modules() if isinstance(m, nf.nets.made.MaskedLinear)]
        if context_dim:
            # No hidden unit of normflows' masks stands before the first column, which thus would not see
            # the context; units of degree 0 do.
            column = torch.arange(1, dim + 1)
            degree = torch.arange(hidden) % dim
            for layer, inputs in zip(linear, (column, *[degree] * (len(linear) - 1)), strict=True):
                layer.mask = (degree[:, None] >= inputs).float()
            linear[-1].mask = (column.repeat_interleave(2)[:, None] > degree).float()
        for layer in linear:  # the masks follow from the options: no state
            layer.register_buffer("mask", layer.mask, persistent=False)
            layer.register_buffer("degrees", layer.degrees, persistent=False)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._log_scale_and_shift(inputs, context)
        return inputs * log_scale.exp() + shift, log_scale.sum(1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # normflows fills in all columns at every pass, where those that aren't due yet can overflow.
        outputs = torch.zeros_like(inputs)
        total = inputs.new_zeros(len(inputs))
        for i in range(inputs.shape[1]):
            log_scale, shift = self._log_scale_and_shift(outputs, context)
            column = (inputs[:, i] - shift[:, i]) * torch.exp(-log_scale[:, i])
            outputs = torch.cat((outputs[:, :i], column[:, None], outputs[:, i + 1 :]), dim=1)
            total = total - log_scale[:, i]
        return outputs, total

    def _log_scale_and_shift(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raw, shift = self.autoregressive_net(x, context).view(*x.shape, 2).unbind(dim=2)
        return _bounded(raw), shift.clamp(-_SHIFT, _SHIFT)


class _PlanarLayer(nf.flows.Planar):  # type: ignore[misc]
    """normflows' layer, kept finite far out and where exp(w'u) overflows, and with its inverse.

    As there, the part of u along w is replaced such that 1 + w'u = softplus(w'u of before).
    """

    def __init__(self, dim: int) -> None:
        super().__init__((dim,))
        with torch.no_grad():
            nn.init.normal_(self.b)
            self.u.copy_(math.log(math.expm1(1)) * self.w / self.w.square().sum())

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The constrained u (D,), 1 + w'u, the slope where it is furthest from 1, and w'z + b (n,)."""
        u, w, b = self.u[0].to(z), self.w[0].to(z), self.b.to(z)
        inner, square = u @ w, w.square().sum()
        slope = F.softplus(inner.clamp_min(math.log(math.expm1(_LEAST_SLOPE))))
        slope = torch.where(square > 1e-12, slope, 1.0)  # without a direction it is a shift
        u = u + (slope - 1 - inner) * w / square.clamp_min(1e-12)
        return u, slope, z @ w + b

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        u, slope, t = self._parts(z)
        bent = t.tanh()
        square = bent.square()
        return z + bent[:, None] * u, torch.log(square + (1 - square) * slope)

    def inverse(self, z: Tensor) -> Tensor:
        u, slope, target = self._parts(z)
        bend, goal = slope - 1, target.abs()  # t + bend tanh(t) is odd: solved for t >= 0
        # It is convex there where bend < 0, else concave: from these sides Newton's steps never overshoot.
        t = torch.where(bend < 0, goal - bend, torch.maximum(goal / slope, goal - bend))
        for _ in range(100):  # about ten are taken
            bent = t.tanh()
            square = bent.square()
            step = (t + bend * bent - goal) / (square + (1 - square) * slope)
            t = t - step
            if bool((step.abs() <= 1e4 * torch.finfo(t.dtype).eps * (1 + t)).all()):
                break  # the error is the square of such a step
        return z - torch.copysign(t.tanh(), target)[:, None] * u


class _RadialLayer(nf.flows.Radial):  # type: ignore[misc]
    """normflows' layer, kept finite at its centre and where exp(beta) overflows, and with its inverse.

    As there, beta is softplus(beta) - |alpha|.
    """

    def __init__(self, dim: int) -> None:
        super().__init__((dim,))
        nn.init.ones_(self.alpha)
        nn.init.constant_(self.beta, math.log(math.expm1(1)))

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Alpha, alpha + beta and z - c."""
        alpha = self.alpha.to(z).abs().clamp_min(_LEAST_SLOPE)
        both = torch.maximum(F.softplus(self.beta.to(z)), _LEAST_SLOPE * alpha)
        return alpha, both, z - self.z_0.to(z)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        alpha, both, away = self._parts(z)
        r = torch.linalg.vector_norm(away, dim=1)
        across = (both + r) / (alpha + r)
        along = (r * (r + 2 * alpha) + both * alpha) / (alpha + r).square()
        log_determinant = (z.shape[1] - 1) * across.log() + along.log()
        return self.z_0 + across[:, None] * away, log_determinant

    def inverse(self, z: Tensor) -> Tensor:
        alpha, both, away = self._parts(z)
        target = torch.linalg.vector_norm(away, dim=1)  # r (both + r) / (alpha + r)
        excess = target - both
        root = (excess.square() + 4 * alpha * target).sqrt()
        # Of the root's two forms, the one without a difference of near numbers.
        r = torch.where(excess > 0, (root + excess) / 2, 2 * alpha * target / (root - excess))
        x: Tensor = self.z_0.to(z) + ((alpha + r) / (both + r))[:, None] * away
        return x
