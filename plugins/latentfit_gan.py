"""Generators trained against a critic."""

from __future__ import annotations

import itertools
import math
from typing import Annotated

import torch
from torch import Tensor, nn

from latentfit.plugin import DivergenceError, Interval, ParameterAverage, Run, Sampler, minibatches

__all__ = ["WGANGP"]

_Positive = Annotated[int, Interval(1)]
_Rate = Annotated[float, Interval(0, open_low=True)]
_Beta = Annotated[float, Interval(0, 1, open_high=True)]


class WGANGP(Sampler):
    """Wasserstein GAN with a gradient penalty (Gulrajani et al., 2017, arXiv:1704.00028): the paper's AdvAE.

    The generator maps normal noise to rows; critic and generator minimise the paper's equations (7) and (8).
    Samples come from a moving average of the generator's weights. There is no density.

    Args:
        hidden: Widths of the hidden layers, in the generator and in the critic alike.
        noise: The dimension of the normal noise; None means that of the rows.
        steps: Generator steps.
        critic_steps: Critic steps before each.
        penalty: The gradient penalty's weight, lambda.
        learning_rate: Adam's, at the start; it falls linearly to a twentieth.
        betas: Adam's.
        ema: Decay of the moving average of the generator's weights.
    """

    def __init__(
        self,
        *,
        hidden: tuple[_Positive, ...] = (256, 256),
        noise: _Positive | None = None,
        steps: _Positive = 3000,
        critic_steps: _Positive = 5,
        penalty: Annotated[float, Interval(0)] = 0.1,
        learning_rate: _Rate = 1e-3,
        betas: tuple[_Beta, _Beta] = (0.0, 0.9),
        ema: _Beta = 0.999,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.noise = noise
        self.steps = steps
        self.critic_steps = critic_steps
        self.penalty = penalty
        self.learning_rate = learning_rate
        self.betas = betas
        self.ema = ema

    def build(self, dim: int, n: int) -> None:  # noqa: ARG002 - the data's size changes nothing
        """Create the generator; the critic lives only in a fit."""
        self.generator = _network((self.noise or dim, *self.hidden, dim))

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:  # noqa: ARG002
        """Train generator and critic in turn."""
        critic = _network((rows.shape[1], *self.hidden, 1)).to(rows.device)
        on_generator = self._adam(self.generator)
        on_critic = self._adam(critic)
        average = ParameterAverage(self.generator.parameters(), self.ema)
        batches = minibatches(rows, run.batch_size, run.generator)
        every = max(1, self.steps // 100)
        critic_total = rows.new_zeros(())
        generator_total = rows.new_zeros(())
        since = 0
        finite = [a.clone() for a in average.average]

        @torch.no_grad()
        def evaluate(done: int) -> None:
            nonlocal since, finite
            losses = float(critic_total) / since / self.critic_steps, float(generator_total) / since
            average.swap()
            drawn = self.sample(64, torch.Generator(rows.device).manual_seed(0))
            average.swap()
            if not (all(map(math.isfinite, losses)) and bool(drawn.isfinite().all())):
                average.average = finite
                average.swap()
                raise DivergenceError(
                    f"Training diverged at step {done} (critic loss {losses[0]:.4g}, generator loss "
                    f"{losses[1]:.4g}); lower learning_rate or raise penalty."
                )
            finite = [a.clone() for a in average.average]
            run.log(done, self.steps, critic_loss=losses[0], generator_loss=losses[1])
            critic_total.zero_()
            generator_total.zero_()
            since = 0

        step = -1
        for step, fraction in run.steps(self.steps):
            for group in (*on_generator.param_groups, *on_critic.param_groups):
                group["lr"] = self.learning_rate * (1 - 0.95 * fraction)
            for _ in range(self.critic_steps):
                real = next(batches)
                with torch.no_grad():
                    fake = self.sample(len(real), run.generator)
                loss = self._critic_loss(critic, real, fake, run.generator)
                on_critic.zero_grad()
                loss.backward()
                on_critic.step()
                critic_total += loss.detach()
            critic.requires_grad_(False)
            loss = -critic(self.sample(run.batch_size, run.generator)).mean()  # equation (8)
            on_generator.zero_grad()
            loss.backward()
            on_generator.step()
            critic.requires_grad_(True)
            average.update()
            generator_total += loss.detach()
            since += 1
            if since == every:
                evaluate(step + 1)
        if since:  # the steps after the last evaluation count too
            evaluate(step + 1)
        average.swap()

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n rows, (n, D)."""
        first = self.generator[0]
        assert isinstance(first, nn.Linear)
        noise = torch.randn(n, first.in_features, generator=generator, device=first.weight.device)
        rows: Tensor = self.generator(noise)
        return rows

    def _critic_loss(
        self, critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Equation (7): the penalty is taken at random points between real and generated rows."""
        t = torch.rand(len(real), 1, generator=generator, device=real.device)
        between = torch.lerp(real, fake, t).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        norm = (gradient.square().sum(dim=1) + 1e-12).sqrt()  # differentiable at zero
        penalty = (norm - 1).square().mean()
        scores: Tensor = critic(torch.cat((real, fake))).view(2, -1).mean(dim=1)
        return scores[1] - scores[0] + self.penalty * penalty

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        fused = next(network.parameters()).device.type in ("cpu", "cuda")
        return torch.optim.Adam(
            network.parameters(), lr=self.learning_rate, betas=self.betas, fused=fused
        )


def _network(widths: tuple[int, ...]) -> nn.Sequential:
    """Fully connected layers with leaky ReLU between."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])
