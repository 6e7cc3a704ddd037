"""Flow matching: a velocity field that carries a Gaussian mixture, or normal noise, to the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from latentfit.plugin import (
    ConvField,
    DeepField,
    GaussianField,
    GaussianMixture,
    Interval,
    OptionError,
    Rows,
    Run,
    Sampler,
    StandardNormal,
    VelocityField,
    c2st,
    mixture_size,
    train,
)

__all__ = ["FlowMatching", "VelocityField"]

_Count = Annotated[int, Interval(1)]
_Work = Annotated[int, Interval(1, 1000)]  # of each draw: a file that asks for more would never end
_FEW = 16  # columns up to which a mixture describes the rows well enough to start from it
_EXACT = 64  # columns up to which the divergence is
_PATHS = 2  # to each row of a minibatch
_VALUES = 1 << 18  # in the largest intermediate of a chunk: it should stay in the cache
_STEP = 1 << 22  # values of the convolution's channels in a training step, for memory's sake
_PART = 1 << 22  # the same where no gradient is kept
_GUIDANCE = (0.0, 0.2, 0.4, 0.6)  # to choose from,
_JUDGES, _LEAST_JUDGES = 4096, 256  # by so many held-out rows at most and at least,
_JUDGED = 1 << 24  # values of them,
_JUDGES_A_SECOND = 160  # of the time for it: four tries with so many take about that on a core
_SHARE, _MOST = 0.15, 45.0  # of the time that a fit may take, and seconds of it, at most
_TOLD = 0.55  # up to this area under the curve of a classifier that tells samples from them
_DENSE = 1024  # columns up to which the D * D numbers of principal axes are worth their size


class FlowMatching(Sampler):
    """Flow matching on straight paths from a Gaussian mixture, or from normal noise, to the rows.

    A network learns the mean velocity of straight paths (Lipman et al., 2022, arXiv:2210.02747; Liu et al.,
    2022, arXiv:2209.03003). Up to 16 columns they start from a mixture that EM has fitted to the rows: each
    row is assigned to one of the components, drawn from its posterior, and its paths start from that
    component only; they are short, and still they start from the mixture as a whole. Beyond, a mixture helps
    no more. Paths start from normal noise, the velocity is a deeper network's correction to the flow to one
    Gaussian, which is known, and times near the middle of the paths are trained on more often (Esser et al.,
    2024, arXiv:2403.03206).

    The density is that of what paths start from and the integral of the field's divergence along them (Chen
    et al., 2018, arXiv:1806.07366), exact but for the solver's steps. The divergence is exact up to 16
    columns, from a mixture up to 64, and beyond estimated with random signs, always the same ones (Grathwohl
    et al., 2018, arXiv:1810.01367).

    Args:
        hidden: Width of the network without convolutions; None means 192 from a mixture, and else 512.
        blocks: Its residual blocks, after one input layer; of a convolutional one those of each level.
        components: The size of the mixture, then at any number of columns; None chooses it by held-out
            likelihood, at most 200, up to 16 columns, and none beyond.
        steps: Optimiser steps at most; a held-out loss that no longer falls stops earlier. None means 3,000
            from a mixture, 6,000 of a convolutional network, and else some 200 passes through the rows, at
            least 3,000 and at most 20,000.
        learning_rate: The highest of the cosine schedule; None means 8e-3 from a mixture, and else 3e-3.
        solver_steps: Runge-Kutta steps from noise to the rows, and back for the density.
        probes: Vectors of random signs in each estimate of the divergence.
        network: "mlp", or "conv" for spatial latents in their own order (not rotated); "auto" takes "conv"
            for those of more than 16 positions.
        channels: Those of the convolutional network at its finest level.
        precision: What training multiplies in; "auto" takes "bfloat16" where no mixture is started from and
            the device is fast at it. Sampling and density are in float32.
        guidance: How much more than it has learnt the network adds to the flow to one Gaussian (autoguidance,
            Karras et al., 2024, arXiv:2406.02507), in the later part of the paths: samples get sharper, and
            rows less likely: fit with 0 for the likelihood's sake. None takes the most of 0, 0.2, 0.4 and
            0.6 with which a classifier can't tell samples from held-out rows (a C2ST of at most 0.55, or that
            without guidance), tried in the last part of ``max_seconds``, 45 s at most, which training leaves;
            and 0 with convolutions or fewer than 256 held-out rows.
    """

    has_density: ClassVar[bool] = True
    conditions: ClassVar[tuple[str, ...]] = ("classes", "vector")
    streams: ClassVar[bool] = True
    preferred_transform = "scale"
    spatial = True
    least_positions = 17  # up to 4x4 a network without convolutions learns as much as one with

    def __init__(
        self,
        *,
        hidden: _Count | None = None,
        blocks: Annotated[int, Interval(0, 1000)] = 3,
        components: _Count | None = None,
        steps: _Count | None = None,
        learning_rate: Annotated[float, Interval(0, open_low=True)] | None = None,
        solver_steps: _Work = 6,
        probes: _Work = 16,
        network: Literal["auto", "mlp", "conv"] = "auto",
        channels: _Count = 64,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        guidance: Annotated[float, Interval(0)] | None = None,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.blocks = blocks
        self.components = components
        self.steps = steps
        self.learning_rate = learning_rate
        self.solver_steps = solver_steps
        self.probes = probes
        self.network = network
        self.channels = channels
        self.precision = precision
        self.guidance = guidance

    def build(self, dim: int, n: int) -> None:
        """Create the distribution that paths start from, and the field, which adds nothing at first.

        Raises:
            OptionError: A convolutional field for rows that are no images, or from a mixture.
        """
        self.noise: GaussianMixture | StandardNormal = StandardNormal(dim)
        self.field: VelocityField | DeepField | ConvField
        if self._is_convolutional():
            assert self.layout is not None
            colours, height, width = self.layout
            shape = (colours, height, width)
            self.field = ConvField(shape, self.context_dim, self.channels, self.blocks)
        elif dim <= _FEW or self.components:
            most = mixture_size(n, dim, most=min(200, math.isqrt(n)))
            components = min(n, self.components or most)
            self.noise = GaussianMixture(dim, components, self.context_dim)
            self.field = VelocityField(dim, self.context_dim, self.hidden or 192, self.blocks)
        else:
            self.field = DeepField(
                dim, self.context_dim, self.hidden or 512, self.blocks, rotate=dim <= _DENSE
            )

    def _is_convolutional(self) -> bool:
        positions = 1 if self.layout is None else math.prod(self.layout[1:])
        if self.network == "conv" and positions == 1:
            raise OptionError(
                "Expected latents of shape (C, H, W), not rotated, for network='conv'; got "
                f"{'flat rows' if self.layout is None else self.layout}. Choose network='mlp', or, for "
                "spatial latents, transform='standardize'."
            )
        convolutional = self.network == "conv" or (
            self.network == "auto" and positions >= self.least_positions and not self.components
        )
        if convolutional and self.components:
            raise OptionError(
                f"Expected no components for network='conv', whose paths start from normal noise; got "
                f"{self.components}. Leave one of the two out."
            )
        return convolutional

    def fit(self, rows: Tensor | Rows, held_out: Tensor, run: Run) -> None:
        """Fit the mixture by EM, then the field by least squares."""
        some, context = run.subset(rows)
        if isinstance(self.noise, GaussianMixture):
            choose = not self.components
            self.noise.fit_within(run, some, context, held_out, choose=choose, share=1 / 3)
        kinds = {VelocityField: "mlp", DeepField: "deep mlp", ConvField: "conv"}
        run.facts["network"] = kinds[type(self.field)]
        run.facts["trace"] = "exact" if self._is_exact() else "hutchinson"
        self.field.start(some)
        steps, learning_rate = 3000, 8e-3
        if isinstance(self.field, GaussianField):
            passes = 200 * rows.shape[0] // run.batch_size
            conv = isinstance(self.field, ConvField)
            steps, learning_rate = 6000 if conv else min(20_000, max(3000, passes)), 3e-3
            fast = _is_fast_at_bfloat16(some.device)
            self.field.halve = fast if self.precision == "auto" else self.precision == "bfloat16"
            run.facts["precision"] = "bfloat16" if self.field.halve else "float32"
        if isinstance(self.field, ConvField):  # its values at all positions are many
            fits = max(16, _STEP // self.field.width // _PATHS)
            run = replace(run, batch_size=min(run.batch_size, fits))
        component = self._assign(some, context, run.generator)
        self._weigh(component, context)
        run.workers.share(self)  # the mixture is not trained: it has to be the same everywhere
        mark = partial(self._mark, generator=run.generator)
        marked: Tensor | Rows
        if some is rows:
            marked = torch.cat((some, component[:, None].to(some)), 1)
        elif isinstance(rows, Rows):
            marked = rows.map(mark, rows.shape[1] + 1)
        else:
            marked = mark(rows, run.context)
        guiding = self._seeks_guidance(len(held_out))
        limit = run.max_seconds
        if guiding and limit is not None:
            limit -= min(_SHARE * limit, _MOST)
        steps = self.steps or steps
        train(
            self.field,
            self._loss(run.generator),
            marked,
            mark(held_out, run.held_out_context),
            replace(run, max_seconds=limit),
            steps=steps,
            learning_rate=self.learning_rate or learning_rate,
            patience=max(10, steps // 500),  # a fifth of evaluations every 100 steps
            ema=0.999,
        )
        if isinstance(self.field, GaussianField):
            chosen = self.guidance or 0.0
            if guiding:
                areas: dict[str, float] = {}
                if run.workers.is_first:
                    chosen, areas = self._find_guidance(self.field, held_out, run)
                chosen, areas = run.workers.first((chosen, areas))
                run.facts["c2st"] = areas
            self.field.guidance.fill_(chosen)
            run.facts["guidance"] = chosen

    def _seeks_guidance(self, held_out: int) -> bool:
        few = held_out < _LEAST_JUDGES
        return self.guidance is None and isinstance(self.field, DeepField) and not few

    @torch.no_grad()
    def _find_guidance(
        self, field: GaussianField, held_out: Tensor, run: Run
    ) -> tuple[float, dict[str, float]]:
        """Find the most guidance with which a classifier can't tell samples from held-out rows.

        Where it can without guidance already, guidance may make nothing worse.

        Returns:
            The guidance, and the areas of those that were tried.
        """
        most = min(_JUDGES, _JUDGED // held_out.shape[1])
        if run.max_seconds is not None:
            most = min(most, int(_JUDGES_A_SECOND * _SHARE * run.max_seconds))
        most = max(_LEAST_JUDGES, most)
        judges, context = run.judges(held_out, most)
        noise = self.noise.sample(len(judges), run.generator)
        chosen, bound, told = 0.0, _TOLD, {}
        for guidance in _GUIDANCE:
            began = run.elapsed()
            field.guidance.fill_(guidance)
            drawn = self.from_base(noise, context)
            pair = [
                rows if context is None else torch.cat((rows, context), 1)
                for rows in (judges, drawn)
            ]
            finite = bool(drawn.isfinite().all())
            area = c2st(*(rows.cpu() for rows in pair)) if finite else 1.0
            told[f"guidance {guidance:g}"] = round(area, 4)
            if guidance and area > bound:
                break
            if not guidance:
                bound = max(_TOLD, area)
            chosen = guidance
            now = run.elapsed()
            if 2 * now - began > 1:  # another one would not be in time
                break
        return chosen, told

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        """Draw n rows, (n, D)."""
        return self.from_base(self.noise.sample(n, generator, context), context)

    def log_prob(self, rows: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density in nats, (n,), of rows (n, D)."""
        noise, log_determinant = self.to_base(rows, context)
        return self.noise.log_prob(noise, context) + log_determinant

    def from_base(self, noise: Tensor, context: Tensor | None = None) -> Tensor:
        """Carry noise (n, D), of the mixture or normal, along the field to rows (n, D)."""
        conv = isinstance(self.field, ConvField)
        size = max(16, _PART // self.field.width) if conv else len(noise)
        if len(noise) > size:
            parts = [self.from_base(*pair) for pair in _paired(noise, context, size)]
            return torch.cat(parts)
        step = 1 / self.solver_steps
        for i in range(self.solver_steps):
            velocity = self.field(noise, i * step, context)
            noise = self._advance(noise, i * step, step, velocity, context)
        return self.field.leave(noise)

    def to_base(self, rows: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Carry rows (n, D) back to noise: (n, D) and the log absolute determinant (n,)."""
        directions = self._directions(rows)
        # Parts that stay in the cache; under a gradient each is computed twice, for memory's sake.
        size = max(16, _VALUES // (directions.shape[1] * self.field.width))
        again = torch.is_grad_enabled() and rows.requires_grad
        saving = partial(checkpoint, self._back, use_reentrant=False, preserve_rng_state=False)
        back: Callable[..., Any] = saving if again else self._back
        places, constant = self.field.enter(rows)
        parts = [back(part, own, directions) for part, own in _paired(places, context, size)]
        noise, log_determinant = zip(*parts, strict=True)
        return torch.cat(noise), torch.cat(log_determinant) + constant

    def _back(self, x: Tensor, context: Tensor | None, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Integrate from t = 1 to 0, and the divergence along the way by Simpson's rule."""
        step = -1 / self.solver_steps
        velocity, divergence = self.field.with_divergence(x, 1.0, context, directions[0])
        total = x.new_zeros(len(x))
        for i in range(self.solver_steps):
            t, start, before, leaving = 1 + i * step, x, divergence, velocity
            x = self._advance(x, t, step, velocity, context)
            velocity, divergence = self.field.with_divergence(
                x, t + step, context, directions[2 * i + 2]
            )
            # The cubic through both ends; a Runge-Kutta stage would be too far from the path.
            middle = (start + x) / 2 + step / 8 * (leaving - velocity)
            _, between = self.field.with_divergence(
                middle, t + step / 2, context, directions[2 * i + 1]
            )
            total = total + step / 6 * (before + 4 * between + divergence)
        return x, total

    def _advance(
        self, x: Tensor, t: float, step: float, first: Tensor, context: Tensor | None
    ) -> Tensor:
        """Take a step of the classical Runge-Kutta method, given the velocity at its start."""
        second = self.field(x + step / 2 * first, t + step / 2, context)
        third = self.field(x + step / 2 * second, t + step / 2, context)
        fourth = self.field(x + step * third, t + step, context)
        end: Tensor = x + step / 6 * (first + 2 * (second + third) + fourth)
        return end

    def _is_exact(self) -> bool:
        return self.noise.dim <= (_FEW if isinstance(self.field, GaussianField) else _EXACT)

    def _directions(self, rows: Tensor) -> Tensor:
        """Vectors whose mean outer product is the identity, or is expected to be.

        (S, P, D): P of them in each of the S places on a path where the divergence is taken.
        """
        dim, places = rows.shape[1], 2 * self.solver_steps + 1
        if self._is_exact():
            units = math.sqrt(dim) * torch.eye(dim, dtype=rows.dtype, device=rows.device)
            return units.expand(places, -1, -1)
        # Others in each place, so that their errors average out; the same for all rows and in all calls.
        generator = torch.Generator().manual_seed(0)
        shape = (places, self.probes, dim)
        return (torch.randint(2, shape, generator=generator, device="cpu") * 2 - 1).to(rows)

    def _loss(self, randomness: torch.Generator) -> Callable[..., Tensor]:
        """Make the loss of rows with their components in one more column."""
        draw = _component_sampler(self.noise)
        fixed: torch.Generator | None = None  # of one evaluation

        def loss(batch: Tensor, context: Tensor | None = None) -> Tensor:
            nonlocal fixed
            generator = randomness
            if self.field.training:  # a larger batch in place of a second step
                batch = batch.repeat(_PATHS, 1)
                context = None if context is None else context.repeat(_PATHS, 1)
                fixed = None
            else:  # the same noise in every evaluation, so that they compare, and other noise in each part
                fixed = fixed or torch.Generator(batch.device).manual_seed(0)
                generator = fixed
            ends, component = batch[:, :-1], batch[:, -1].long()
            if self.context_kind == "vector" and isinstance(self.noise, GaussianMixture):
                # Here the rows' components depend on the context and the mixture doesn't: draw from it all.
                weights = self.noise.logits.detach().softmax(0)
                component = torch.multinomial(weights, len(ends), True, generator=generator)
            starts = draw(component, generator)
            # A random time in each of n equal intervals: less noise than n independent ones.
            t = torch.rand(len(ends), 1, generator=generator, device=batch.device)
            t = (t + torch.arange(len(ends), device=batch.device)[:, None]) / len(ends)
            if isinstance(self.field, GaussianField):  # more of the times at which rows take shape
                t = torch.special.ndtri(t.clamp(1e-4, 1 - 1e-4)).sigmoid()
            return self.field.error(starts, ends, t, context).square().mean()

        return loss

    def _mark(
        self, rows: Tensor, context: Tensor | None = None, *, generator: torch.Generator
    ) -> Tensor:
        """Put each row's component in one more column."""
        component = self._assign(rows, context, generator)
        return torch.cat((rows, component[:, None].to(rows)), 1)

    @torch.no_grad()
    def _assign(self, rows: Tensor, context: Tensor | None, generator: torch.Generator) -> Tensor:
        """Draw a component (n,) for each row from its posterior."""
        mixture = self.noise
        if isinstance(mixture, StandardNormal):
            return torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        factor = mixture.off_diagonal.triu(1) + torch.diag_embed(mixture.log_diagonal.exp())
        offset = torch.einsum("kd,kde->ke", mixture.means, factor)
        constant = mixture.log_diagonal.sum(1)
        # In one piece: small tensors between large ones would keep the memory of these from being used again.
        drawn, done = torch.empty(len(rows), dtype=torch.long, device=rows.device), 0
        for part, own in _paired(rows, context, max(1, _VALUES // offset.numel())):
            white = torch.einsum("nd,kde->nke", part, factor) - offset
            logits: Tensor = mixture.logits
            if own is not None and mixture.gate is not None:
                logits = logits + own @ mixture.gate
            joint = logits + constant - 0.5 * white.square().sum(2)
            if len(part):
                one = torch.multinomial(joint.softmax(1), 1, generator=generator)
                drawn[done : done + len(part)] = one[:, 0]
                done += len(part)
        return drawn

    @torch.no_grad()
    def _weigh(self, component: Tensor, context: Tensor | None) -> None:
        """Make the weights those of the assignment: paths then start from just the mixture."""
        mixture = self.noise
        if isinstance(mixture, StandardNormal):
            return
        k = mixture.components
        counts = component.bincount(minlength=k).to(mixture.logits)
        weights = (counts + 1e-6) / (len(component) + 1e-6 * k)
        mixture.logits.copy_(weights.log())
        if mixture.gate is not None and context is not None and self.context_kind == "classes":
            pairs = context.argmax(1) * k + component
            counts = pairs.bincount(minlength=mixture.gate.numel()).to(weights)
            counts = counts.view(-1, k)  # (C, K)
            shares = (counts + 1e-3 * weights) / (counts.sum(1, keepdim=True) + 1e-3)
            mixture.gate.copy_((shares / weights).log())


def _is_fast_at_bfloat16(device: torch.device) -> bool:
    """Tell whether products of bfloat16 take a fraction of the time of those of float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = [getattr(torch.cpu, name, lambda: False) for name in names]
    return device.type == "cpu" and any(check() for check in checks)


def _paired(
    rows: Tensor, context: Tensor | None, size: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Split rows, and contexts where there are any."""
    if context is None:
        return ((part, None) for part in rows.split(size))
    return zip(rows.split(size), context.split(size), strict=True)


def _component_sampler(
    mixture: GaussianMixture | StandardNormal,
) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Make a function that draws a row from each of the given components (n,)."""
    if isinstance(mixture, StandardNormal):
        return lambda component, generator: mixture.sample(len(component), generator)
    means: Tensor = mixture.means.detach()
    dim = mixture.dim
    factor = mixture.off_diagonal.triu(1) + torch.diag_embed(mixture.log_diagonal.exp())
    eye = torch.eye(dim, device=means.device).expand(len(means), -1, -1)
    roots: Tensor = torch.linalg.solve_triangular(factor.detach(), eye, upper=True)  # (K, D, D)
    size = max(1, 4 * _VALUES // dim**2)

    def draw(component: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(component), 1, dim, generator=generator, device=means.device)
        if len(means) == 1:
            return means + noise[:, 0] @ roots[0]
        pairs = zip(noise.split(size), component.split(size), strict=True)
        return means[component] + torch.cat([torch.bmm(e, roots[k])[:, 0] for e, k in pairs])

    return draw
