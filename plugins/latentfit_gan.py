"""Generators trained against a critic: WGAN-GP (the AdvAE's), the non-saturating GAN, and R3GAN."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from latentfit.plugin import (
    GaussianMixture,
    Interval,
    OptionError,
    Rows,
    Run,
    Sampler,
    mixture_size,
    train_adversarially,
)

__all__ = ["GAN", "R3GAN", "WGANGP"]

_MOST = 512  # components
_DENSE = 1024  # columns up to which the D * D numbers of each are worth their size
_Base = Literal["normal", "mixture"]
_Positive = Annotated[int, Interval(1)]
_Rate = Annotated[float, Interval(0, open_low=True)]
_Weight = Annotated[float, Interval(0)]
_Beta = Annotated[float, Interval(0, 1, open_high=True)]


class _Adversarial(Sampler):
    """What the three have in common: the networks, the noise and the fit; they differ in the losses.

    On normal noise the generator maps noise to rows. On mixture noise it adds to it, nothing at first: it
    begins with the mixture's samples and learns what to change. A context is appended to the inputs of
    generator and critic, and the mixture's weights depend on it. There is no density.

    Args:
        hidden: Widths of the hidden layers, in the generator and in the critic alike.
        base: "normal", noise that the generator maps to rows, or "mixture", noise from Gaussians fitted to
            the rows, to which the generator adds; None means "mixture" up to 1,024 columns, unless ``noise``
            is given.
        noise: The dimension of the normal noise; None means that of the rows.
        components: The mixture's size; None chooses it by held-out likelihood, at most 512.
        steps: Generator steps.
        critic_steps: Critic steps before each.
        learning_rate: Adam's, at the start; it falls linearly to a twentieth.
        betas: Adam's.
        ema: Decay of the moving average of the generator's weights.
    """

    conditions: ClassVar[tuple[str, ...]] = ("classes", "vector")
    streams: ClassVar[bool] = True
    preferred_transform = "scale"

    def __init__(
        self,
        *,
        hidden: tuple[_Positive, ...] = (256, 256),
        base: _Base | None = "normal",
        noise: _Positive | None = None,
        components: _Positive | None = None,
        steps: _Positive = 8000,
        critic_steps: _Positive = 1,
        learning_rate: _Rate = 1e-3,
        betas: tuple[_Beta, _Beta] = (0.0, 0.9),
        ema: _Beta = 0.999,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.base = base
        self.noise = noise
        self.components = components
        self.steps = steps
        self.critic_steps = critic_steps
        self.learning_rate = learning_rate
        self.betas = betas
        self.ema = ema

    @abstractmethod
    def critic_loss(
        self,
        critic: nn.Module,
        real: Tensor,
        fake: Tensor,
        generator: torch.Generator,
        context: Tensor | None = None,
    ) -> Tensor:
        """Return what the critic minimises, a scalar, of rows (n, D) and as many generated ones."""

    @abstractmethod
    def generator_loss(
        self, critic: nn.Module, real: Tensor, fake: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Return what the generator minimises, a scalar."""

    def build(self, dim: int, n: int) -> None:
        """Create the generator and its noise; the critic lives only in a fit."""
        self._noise_dim = dim
        fits = self.noise is None and dim <= _DENSE
        self._mixed = self.base == "mixture" or (self.base is None and fits)
        if self._mixed:
            if self.noise not in (None, dim):
                raise OptionError(
                    f"Mixture noise has the rows' dimension: expected noise=None or {dim}; got {self.noise}. "
                    "Leave noise out, or choose base='normal'."
                )
            components = min(n, self.components or mixture_size(n, dim, most=_MOST))
            self.mixture = GaussianMixture(dim, components, self.context_dim).requires_grad_(False)
        elif self.noise is not None:
            self._noise_dim = self.noise
        self.generator = _network((self._noise_dim + self.context_dim, *self.hidden, dim))
        if self._mixed:
            for parameter in self.generator[-1].parameters():
                nn.init.zeros_(parameter)

    def fit(self, rows: Tensor | Rows, held_out: Tensor, run: Run) -> None:
        """Fit the mixture, if it is the noise, and train generator and critic in turn."""
        if self._mixed:
            some, context = run.subset(rows)
            choose = not self.components
            self.mixture.fit_within(run, some, context, held_out, choose=choose, share=0.5)
        critic = _network((rows.shape[1] + self.context_dim, *self.hidden, 1)).to(rows.device)

        def critic_loss(real: Tensor, fake: Tensor, context: Tensor | None = None) -> Tensor:
            return self.critic_loss(critic, real, fake, run.generator, context)

        def generator_loss(real: Tensor, fake: Tensor, context: Tensor | None = None) -> Tensor:
            return self.generator_loss(critic, real, fake, context)

        train_adversarially(
            self.generator,
            critic,
            self.sample,
            critic_loss,
            generator_loss,
            rows,
            held_out,
            run,
            steps=self.steps,
            critic_steps=self.critic_steps,
            learning_rate=self.learning_rate,
            betas=self.betas,
            ema=self.ema,
        )

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        """Draw n rows, (n, D)."""
        rows: Tensor
        if self._mixed:
            noise = self.mixture.sample(n, generator, context)
            rows = noise + self.generator(_joined(noise, context))
            return rows
        device = next(self.generator.parameters()).device
        noise = torch.randn(n, self._noise_dim, generator=generator, device=device)
        rows = self.generator(_joined(noise, context))
        return rows


class WGANGP(_Adversarial):
    """Wasserstein GAN with a gradient penalty (Gulrajani et al., 2017, arXiv:1704.00028), the AdvAE's.

    Critic and generator minimise the paper's equations (7) and (8). Samples come from a moving average of
    the generator's weights. There is no density. The paper's AdvAE has normal noise; that takes more steps,
    as ``base="normal", learning_rate=1e-3, steps=3000``, and ends further away.

    Args:
        penalty: The gradient penalty's weight, lambda.
    """

    def __init__(
        self,
        *,
        hidden: tuple[_Positive, ...] = (256, 256),
        base: _Base | None = None,
        noise: _Positive | None = None,
        components: _Positive | None = None,
        steps: _Positive = 1000,
        critic_steps: _Positive = 5,
        penalty: _Weight = 0.1,
        learning_rate: _Rate = 3e-4,
        betas: tuple[_Beta, _Beta] = (0.0, 0.9),
        ema: _Beta = 0.999,
    ) -> None:
        super().__init__(
            hidden=hidden,
            base=base,
            noise=noise,
            components=components,
            steps=steps,
            critic_steps=critic_steps,
            learning_rate=learning_rate,
            betas=betas,
            ema=ema,
        )
        self.penalty = penalty

    def critic_loss(
        self,
        critic: nn.Module,
        real: Tensor,
        fake: Tensor,
        generator: torch.Generator,
        context: Tensor | None = None,
    ) -> Tensor:
        """Return equation (7): the penalty is taken at random points between real and generated rows."""
        t = torch.rand(len(real), 1, generator=generator, device=real.device)
        between = torch.lerp(real, fake, t).requires_grad_()
        score = critic(_joined(between, context)).sum()
        (gradient,) = torch.autograd.grad(score, between, create_graph=True)
        norm = (gradient.square().sum(dim=1) + 1e-12).sqrt()  # differentiable at zero
        penalty = (norm - 1).square().mean()
        of_real, of_fake = _scores(critic, (real, fake), context).mean(dim=1)
        loss: Tensor = of_fake - of_real + self.penalty * penalty
        return loss

    def generator_loss(
        self,
        critic: nn.Module,
        real: Tensor,  # noqa: ARG002
        fake: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """Return equation (8)."""
        return -_scores(critic, (fake,), context).mean()


class GAN(_Adversarial):
    """The GAN with the non-saturating loss (Goodfellow et al., 2014, arXiv:1406.2661).

    Critic and generator minimise the paper's equations (5) and (6). Samples come from a moving average of
    the generator's weights. There is no density. Nothing penalises the critic's gradient, so a step costs
    the least of the three, and nothing keeps the generator from losing modes.
    """

    def critic_loss(
        self,
        critic: nn.Module,
        real: Tensor,
        fake: Tensor,
        generator: torch.Generator,  # noqa: ARG002
        context: Tensor | None = None,
    ) -> Tensor:
        """Return equation (5), with the critic's score as the logit of D."""
        of_real, of_fake = _scores(critic, (real, fake), context)
        return softplus(-of_real).mean() + softplus(of_fake).mean()

    def generator_loss(
        self,
        critic: nn.Module,
        real: Tensor,  # noqa: ARG002
        fake: Tensor,
        context: Tensor | None = None,
    ) -> Tensor:
        """Return equation (6)."""
        return softplus(-_scores(critic, (fake,), context)).mean()


class R3GAN(_Adversarial):
    """Relativistic pairing GAN with R1 and R2 penalties (Huang et al., 2024, arXiv:2501.05441).

    Each generated row is scored against a real one, and the critic's gradient is penalised at both. Samples
    come from a moving average of the generator's weights. There is no density.

    Args:
        penalty: The weight of the two penalties, gamma / 2 in the paper's notation.
    """

    def __init__(
        self,
        *,
        hidden: tuple[_Positive, ...] = (256, 256),
        base: _Base | None = None,
        noise: _Positive | None = None,
        components: _Positive | None = None,
        steps: _Positive = 4000,
        critic_steps: _Positive = 1,
        penalty: _Weight = 0.05,
        learning_rate: _Rate = 3e-4,
        betas: tuple[_Beta, _Beta] = (0.0, 0.9),
        ema: _Beta = 0.999,
    ) -> None:
        super().__init__(
            hidden=hidden,
            base=base,
            noise=noise,
            components=components,
            steps=steps,
            critic_steps=critic_steps,
            learning_rate=learning_rate,
            betas=betas,
            ema=ema,
        )
        self.penalty = penalty

    def critic_loss(
        self,
        critic: nn.Module,
        real: Tensor,
        fake: Tensor,
        generator: torch.Generator,  # noqa: ARG002
        context: Tensor | None = None,
    ) -> Tensor:
        """Return the pairing loss and both penalties; one gradient serves R1 and R2."""
        rows = torch.cat((real, fake)).requires_grad_()
        scores = _scores(critic, (rows,), context)
        (gradient,) = torch.autograd.grad(scores.sum(), rows, create_graph=True)
        of_real, of_fake = scores.view(2, -1)
        penalties = gradient.square().sum() / len(real)  # R1 + R2
        return softplus(of_fake - of_real).mean() + self.penalty * penalties

    def generator_loss(
        self, critic: nn.Module, real: Tensor, fake: Tensor, context: Tensor | None = None
    ) -> Tensor:
        """Return the pairing loss, with the parts exchanged."""
        of_real, of_fake = _scores(critic, (real, fake), context)
        return softplus(of_real - of_fake).mean()


def _scores(critic: nn.Module, parts: Sequence[Tensor], context: Tensor | None) -> Tensor:
    """Score parts of n rows that have the same contexts: (parts, n)."""
    rows = torch.cat(tuple(parts))
    if context is not None:
        context = context.repeat(len(rows) // len(context), 1)
    scores: Tensor = critic(_joined(rows, context))
    return scores.view(len(parts), -1)


def _joined(rows: Tensor, context: Tensor | None) -> Tensor:
    return rows if context is None else torch.cat((rows, context), dim=1)


def _network(widths: tuple[int, ...]) -> nn.Sequential:
    """Fully connected layers with leaky ReLU between."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])
