"""The adversarial training that samplers share: a generator and a critic, in turn, by two optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.arguments import check_callable, check_kind, check_number, check_whole, told
from latentfit.checkpoint import State, load_module, optimiser_state, restore_optimiser
from latentfit.errors import DivergenceError, OptionError
from latentfit.options import Interval
from latentfit.rows import Rows
from latentfit.training import ParameterAverage, Run, adam, check_training

__all__ = ["train_adversarially"]

_EVALUATIONS = 100  # in a run of full length
_EVALUATION_ROWS = 1024
_PROJECTIONS = 32
_LAST_RATE = 0.05  # of the first
_REMEDY = "lower learning_rate or raise penalty, where the method has one, or check the latents for outliers"


def train_adversarially(
    generator: nn.Module,
    critic: nn.Module,
    draw: Callable[..., Tensor],
    critic_loss: Callable[..., Tensor],
    generator_loss: Callable[..., Tensor],
    rows: Tensor | Rows,
    held_out: Tensor,
    run: Run,
    *,
    steps: int,
    learning_rate: float,
    critic_steps: int = 1,
    betas: tuple[float, float] = (0.0, 0.9),
    ema: float = 0.999,
) -> None:
    """Train a generator against a critic, and leave the generator with its averaged weights.

    Each step is ``critic_steps`` steps of the critic, each on a new minibatch, and one of the generator, on
    the last of them, with the critic frozen. Adam, for both with a rate that falls linearly to a twentieth,
    and an exponential moving average of the generator's weights, which is what samples well. In a fit with a
    condition the generated rows have the contexts of the minibatch's rows.

    The curves are the two losses and, with held-out rows, ``validation_distance``: the sliced Wasserstein
    distance of order 1 (Rabin et al., 2011) between them and as many of the averaged generator's. Unlike the
    losses it tells how good the samples are, and whether they still get better.

    Args:
        generator: What is trained and averaged; its other parameters and buffers stay as they are.
        critic: What it is trained against; the caller's to keep or to forget.
        draw: ``draw(n, randomness)``, rows (n, D) from the generator, differentiable in its weights, with a
            ``torch.Generator`` to draw from: a sampler's own ``sample``.
        critic_loss: ``critic_loss(real, fake)``, what the critic minimises, a scalar, of as many generated
            rows, detached, as real ones, (n, D) each.
        generator_loss: ``generator_loss(real, fake)``, what the generator minimises. In a fit with a
            condition all three are also given the rows' contexts (n, C).
        rows: Training rows (N, D), a tensor or Rows.
        held_out: Held-out rows (M, D); M may be 0.
        run: The run that the sampler's ``fit`` was given.
        steps: Generator steps.
        learning_rate: Adam's, at the start.
        critic_steps: Critic steps before each.
        betas: Adam's.
        ema: The average's decay.

    Raises:
        OptionError: An argument that does not fit; DataError for rows.
        DivergenceError: The losses or the samples are no longer finite; the generator has the last averaged
            weights that were.
    """
    for name, module in (("generator", generator), ("critic", critic)):
        check_kind(name, module, nn.Module, "an nn.Module")
    functions = {"draw": draw, "critic_loss": critic_loss, "generator_loss": generator_loss}
    for name, function in functions.items():
        check_callable(name, function)
    steps, learning_rate, ema = check_training(rows, held_out, run, steps, learning_rate, ema)
    critic_steps = check_whole("critic_steps", critic_steps, 1)
    given: Any = betas
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise OptionError(f"Expected betas as two numbers in [0, 1); got {told(given)}.")
    first, second = (check_number("betas", b, Interval(0, 1, open_high=True)) for b in given)
    betas = (first, second)
    phase = run.phase("adversarial training")
    if phase.is_over:
        phase.restore(lambda state, _: load_module(generator, state["generator"]))
        generator.eval()
        return
    run.workers.share(generator, critic)
    judges = [p for p in critic.parameters() if p.requires_grad]
    on_critic = adam(judges, learning_rate, betas)
    makers = [p for p in generator.parameters() if p.requires_grad]
    on_generator = adam(makers, learning_rate, betas)
    watch = _Watch(generator, draw, ema, held_out, rows, run)
    batches = run.batches(rows)
    every = max(1, steps // _EVALUATIONS)
    totals = torch.zeros(2, device=rows.device)
    done = since = 0

    def evaluate() -> None:
        nonlocal since
        in_critic, in_generator = (totals / since).tolist()
        watch.evaluate(done, steps, in_critic / critic_steps, in_generator)
        totals.zero_()
        since = 0

    def state() -> tuple[State, State]:
        shared = {
            "generator": generator.state_dict(),
            "critic": critic.state_dict(),
            "on_generator": optimiser_state(on_generator),
            "on_critic": optimiser_state(on_critic),
            "average": watch.average.state(),
            "finite": {str(i): tensor for i, tensor in enumerate(watch.finite)},
            "counts": {"done": done, "since": since},
        }
        return shared, {"batches": batches.state(), "totals": totals}

    def load(state: State, own: State) -> None:
        nonlocal done, since
        load_module(generator, state["generator"])
        load_module(critic, state["critic"])
        restore_optimiser(on_generator, state["on_generator"], makers)
        restore_optimiser(on_critic, state["on_critic"], judges)
        watch.average.restore(state["average"])
        for i, tensor in enumerate(watch.finite):
            tensor.copy_(state["finite"][str(i)])
        done, since = int(state["counts"]["done"]), int(state["counts"]["since"])
        batches.restore(own["batches"])
        totals.copy_(own["totals"])

    phase.restore(load)
    generator.train()
    for step, fraction in run.steps(steps, done):
        for group in (*on_generator.param_groups, *on_critic.param_groups):
            group["lr"] = learning_rate * (1 - (1 - _LAST_RATE) * fraction)
        for _ in range(critic_steps):
            real, *context = next(batches)
            with torch.no_grad():
                fake = draw(len(real), run.generator, *context)
            loss = critic_loss(real, fake, *context)
            on_critic.zero_grad()
            loss.backward()
            run.workers.average_gradients(judges)
            on_critic.step()
            totals[0] += loss.detach()
        for parameter in judges:
            parameter.requires_grad_(False)
        loss = generator_loss(real, draw(len(real), run.generator, *context), *context)
        on_generator.zero_grad()
        loss.backward()
        run.workers.average_gradients(makers)
        on_generator.step()
        totals[1] += loss.detach()
        for parameter in judges:
            parameter.requires_grad_(True)
        watch.average.update()
        done, since = step + 1, since + 1
        if since == every:
            evaluate()
        phase.offer(state)
    if since:  # the steps after the last evaluation count too
        evaluate()
    watch.average.swap()
    generator.eval()
    phase.end(lambda: {"generator": generator.state_dict()}, together=True)


class _Watch:
    """The averaged generator: what it draws, and its last weights that were finite."""

    def __init__(
        self,
        generator: nn.Module,
        draw: Callable[..., Tensor],
        ema: float,
        held_out: Tensor,
        rows: Tensor | Rows,
        run: Run,
    ) -> None:
        self.generator, self.draw, self.run = generator, draw, run
        self.average = ParameterAverage(generator.parameters(), ema)
        self.finite = [a.clone() for a in self.average.average]
        self.measured = len(held_out) > 0
        watched: tuple[Tensor | None, ...]
        if self.measured:
            watched = run.judges(held_out, _EVALUATION_ROWS)
        else:
            watched = run.first(rows, _EVALUATION_ROWS)
        self.rows, *self.context = (part for part in watched if part is not None)
        fixed = torch.Generator(rows.device).manual_seed(0)
        dim = sum(part.shape[1] for part in (self.rows, *self.context))
        directions = torch.randn(_PROJECTIONS, dim, generator=fixed, device=rows.device)
        self.directions = directions / directions.norm(dim=1, keepdim=True)
        self.reference = self._projected(self.rows)

    @torch.no_grad()
    def evaluate(self, done: int, steps: int, critic_loss: float, generator_loss: float) -> None:
        """Append to the curves, or put the last finite average in place and raise DivergenceError."""
        values = {"critic_loss": critic_loss, "generator_loss": generator_loss}
        fixed = torch.Generator(self.rows.device).manual_seed(0)
        self.average.swap()
        self.generator.eval()
        drawn = self.draw(len(self.rows), fixed, *self.context)
        self.generator.train()
        self.average.swap()
        distance = (self._projected(drawn) - self.reference).abs().mean()
        if self.measured:
            values["validation_distance"] = float(distance)
        finite = bool(distance.isfinite()) and all(map(math.isfinite, values.values()))
        if self.run.workers.any(not finite):
            self.average.average = self.finite
            self.average.swap()
            self.generator.eval()
            raise DivergenceError(
                f"Training diverged at step {done} (critic loss {critic_loss:.4g}, generator loss "
                f"{generator_loss:.4g}); {_REMEDY}."
            )
        self.finite = [a.clone() for a in self.average.average]
        self.run.log(done, steps, **values)

    def _projected(self, rows: Tensor) -> Tensor:
        """Sort rows, with their contexts, along each direction: (_PROJECTIONS, n)."""
        projections = self.directions @ torch.cat((rows, *self.context), dim=1).T
        return torch.sort(projections, dim=1).values
