"""The minibatch training that samplers share: steps, schedules, averaging, early stopping, divergence."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from latentfit.arguments import (
    check_callable,
    check_kind,
    check_listed,
    check_number,
    check_rows,
    check_whole,
)
from latentfit.checkpoint import (
    Checkpoint,
    Phase,
    State,
    load_module,
    optimiser_state,
    restore_optimiser,
)
from latentfit.early_stopping import EVALUATION_ROWS, Best, Watched
from latentfit.errors import DivergenceError
from latentfit.minibatches import Batches, TensorBatches
from latentfit.options import Interval
from latentfit.parallel import SOLO, Workers
from latentfit.randomness import global_states, importing, restore_global_states
from latentfit.rows import Rows

__all__ = ["ParameterAverage", "Run", "adam", "check_training", "train"]

_EVALUATIONS = 40  # in a run of full length
_MOST_EVALUATED = 2**14  # held-out rows: more would cost more than the training, and tell no more
_MOST_SUBSET = 2**18  # rows
_SUBSET_BYTES = 2**28
_REMEDY = "lower learning_rate, check the latents for outliers, or choose another method"

Result = TypeVar("Result")


@dataclass
class Clock:
    """When a fit began, in the seconds of ``time.monotonic``."""

    started: float = field(default_factory=time.monotonic)


@dataclass
class Run:
    """What a fit is given besides its rows.

    Attributes:
        generator: The source of randomness, on the rows' device.
        batch_size: Rows in a minibatch.
        max_seconds: The time that the fit may take, or None.
        show: Called with the step, the number of steps and the newest values; draws the progress bar.
        history: The training curves; :meth:`log` appends to them.
        context: The condition of each training row, (N, C) float32; None without a condition, and where the
            rows are :class:`Rows`, which have theirs with them.
        held_out_context: The condition of each held-out row, (M, C); None without a condition.
        facts: What the fit chose or found, by name, as JSON values; it becomes ``sampler.info["fit"]``.
        workers: The processes that share the training.
        checkpoint: Where to write what is done, and what was done before; None without.
        clock: When the fit began, the same for copies with another batch size or less time.
    """

    generator: torch.Generator
    batch_size: int = 512
    max_seconds: float | None = None
    show: Callable[[int, int, dict[str, float]], None] = lambda *_: None
    history: dict[str, list[float]] = field(default_factory=dict)
    context: Tensor | None = None
    held_out_context: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    workers: Workers = SOLO
    checkpoint: Checkpoint | None = None
    clock: Clock = field(default_factory=Clock)
    _phases: Iterator[int] = field(default_factory=itertools.count)

    def phase(self, name: str) -> Phase:
        """Begin a part of the fit: each has to be begun in every run of it, and in the same order."""
        return Phase(self, next(self._phases), name)

    def once(self, name: str, work: Callable[[], State], load: Callable[[State], Result]) -> Result:
        """Do a part of the fit, or take its result from the checkpoint.

        Args:
            name: What is done.
            work: Does it and gives its result, nested dicts of tensors and JSON values.
            load: Makes of the result what is wanted, and keeps none of its tensors.

        Returns:
            What ``load`` gives.
        """
        phase = self.phase(name)
        if not phase.is_over:
            state = work()
            phase.end(lambda: state, together=False)
            return load(state)
        results: list[Result] = []
        phase.restore(lambda state, _: results.append(load(state)))
        return results[0]

    def state(self) -> tuple[State, State]:
        """Where the run is, and what of that is this process's own."""
        now = {
            "history": {
                name: torch.tensor(curve, dtype=torch.float64)
                for name, curve in self.history.items()
            },
            "facts": {name: plain(value) for name, value in self.facts.items()},
            "seconds": self.seconds(),
        }
        own = {
            "generator": self.generator.get_state(),
            "global": global_states(self.generator.device),
        }
        return now, own

    def restore(self, state: State, own: State) -> None:
        """Go on from a state."""
        history = {name: curve.tolist() for name, curve in state["history"].items()}
        facts, seconds = dict(state["facts"]), float(state["seconds"])
        self.generator.set_state(own["generator"])
        restore_global_states(own["global"], self.generator.device)
        for mine, given in ((self.history, history), (self.facts, facts)):
            mine.clear()
            mine.update(given)
        self.clock.started = time.monotonic() - seconds

    def steps(self, total: int, start: int = 0) -> Iterator[tuple[int, float]]:
        """Count training steps from ``start`` until ``total`` or until the time is up.

        Yields:
            The step and the fraction of the run that is behind it, in [0, 1): by steps or by time,
            whichever is further, so that a schedule over it ends with the run.
        """
        for step in range(start, total):
            fraction = max(step / total, self.elapsed())
            if self.max_seconds is not None:
                fraction = self.workers.largest(fraction)  # all stop at one step
            if fraction >= 1:
                self.facts["stopped_by"] = "max_seconds"
                return
            self.show(step, total, {})
            yield step, fraction
        self.show(total, total, {})

    def batches(self, rows: Tensor | Rows) -> Batches:
        """Yield shuffled minibatches of the training rows for ever, with their contexts if there are any.

        Of several processes each gets its share of every minibatch.
        """
        order, workers = self.generator, self.workers
        if workers.count > 1:
            # One order for all, whatever each has drawn until now; for all else each goes its own way.
            seed = torch.randint(2**62, (), generator=order, device=order.device)
            order = torch.Generator(order.device).manual_seed(workers.first(int(seed)))
            self.generator.manual_seed((self.generator.initial_seed() + 1 + workers.rank) % 2**63)
        if isinstance(rows, Rows):
            size = max(1, self.batch_size // workers.count)
            return rows.batches(size, order, workers.rank, workers.count)
        parts = (rows,) if self.context is None else (rows, self.context)
        return TensorBatches(parts, self.batch_size, order, pick=workers.pick)

    def subset(self, rows: Tensor | Rows, most: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Give at most so many of the training rows as a tensor, drawn at random, and their contexts.

        Args:
            rows: The training rows (N, D).
            most: How many at most; None means 262,144, or what 256 MB hold if that is less: more would tell
                a mixture nothing new.

        Returns:
            Rows (n, D), the very tensor where that has no more; and contexts (n, C), or None.
        """
        if most is None:
            most = min(_MOST_SUBSET, max(1, _SUBSET_BYTES // (4 * rows.shape[1])))
        if isinstance(rows, Rows):
            drawn, *context = rows.subset(most, self.generator)
            return drawn, context[0] if context else None
        if len(rows) <= most:
            return rows, self.context
        index = torch.randperm(len(rows), generator=self.generator, device=rows.device)[:most]
        return rows[index], None if self.context is None else self.context[index]

    def judges(self, held_out: Tensor, most: int) -> tuple[Tensor, Tensor | None]:
        """Give at most so many of the held-out rows, always the same, and their contexts.

        They are drawn at random where there are more, as those of a stored dataset are in its order.

        Args:
            held_out: The held-out rows (M, D) that the sampler's ``fit`` was given.
            most: How many at most.

        Returns:
            Rows (n, D), and contexts (n, C) or None.
        """
        context = self.held_out_context
        if len(held_out) <= most:
            return held_out, context
        fixed = torch.Generator(held_out.device).manual_seed(0)
        index = torch.randperm(len(held_out), generator=fixed, device=held_out.device)[:most]
        return held_out[index], None if context is None else context[index]

    def first(self, rows: Tensor | Rows, most: int) -> tuple[Tensor, ...]:
        """Give a few training rows (n, D), always the same ones, and their contexts if there are any."""
        if isinstance(rows, Rows):
            return rows.first(most)
        return tuple(part[:most] for part in (rows, self.context) if part is not None)

    def elapsed(self) -> float:
        """Tell the fraction of ``max_seconds`` that is over; 0 where there is no such limit."""
        if self.max_seconds is None:
            return 0.0
        return self.seconds() / self.max_seconds

    def seconds(self) -> float:
        """Tell how long the fit has taken, in all runs of it."""
        return time.monotonic() - self.clock.started

    def log(self, step: int, total: int, **values: float) -> None:
        """Append a point to the training curves and show it."""
        for name, value in {"step": float(step), **values}.items():
            self.history.setdefault(name, []).append(float(value))
        self.show(step, total, values)


def plain(value: Any) -> Any:
    """Give what JSON can hold as it is, and anything else as text: a long fit must not fail at its end."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return str(value)
    return value


class ParameterAverage:
    """An exponential moving average of parameters, warmed up so that the start is forgotten.

    Args:
        parameters: What to average.
        decay: The weight of the past in each update, in [0, 1]; the early ones use ``(1 + t) / (10 + t)``
            where that is less.

    Raises:
        OptionError: No parameters, or another decay.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.decay = check_number("decay", decay, Interval(0, 1))
        given = check_listed("parameters", parameters, "an iterable of parameters")
        for parameter in given:
            check_kind("parameters", parameter, nn.Parameter, "an iterable of parameters")
        self._live: list[Tensor] = [p for p in given if p.requires_grad]
        self.updates = 0
        self.average = [p.detach().clone() for p in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters' present values into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, self._live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters and their average; a second call takes that back."""
        for live, average in zip(self._live, self.average, strict=True):
            live.data, average.data = average.data, live.data

    def state(self) -> State:
        """The averages, and how many updates they have in them."""
        averages = {str(i): average for i, average in enumerate(self.average)}
        return {"updates": self.updates, "average": averages}

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.updates = int(state["updates"])
        for i, average in enumerate(self.average):
            average.copy_(state["average"][str(i)])


def train(
    module: nn.Module,
    loss: Callable[..., Tensor],
    rows: Tensor | Rows,
    held_out: Tensor,
    run: Run,
    *,
    steps: int,
    learning_rate: float,
    patience: int = 10,
    ema: float = 0.99,
    max_norm: float = 5.0,
) -> None:
    """Train a module by a mean loss over minibatches, and leave it with its best averaged weights.

    Adam, a cosine schedule after a short warm-up, gradient clipping, an exponential moving average of the
    weights, and early stopping on the average's held-out loss. Without held-out rows the last average
    stays. The weights before the first step count as a candidate too. ``run.facts["best_step"]`` tells which
    step's weights were kept.

    Args:
        module: What is trained.
        loss: The mean loss of rows (n, D), a scalar; in a fit with a condition it is also given the rows'
            contexts (n, C).
        rows: Training rows (N, D), a tensor or Rows.
        held_out: Held-out rows (M, D); M may be 0.
        run: The run that the sampler's ``fit`` was given.
        steps: Optimiser steps at most, >= 1.
        learning_rate: The schedule's highest, > 0.
        patience: Evaluations after which training stops if in none of them the held-out loss got lower by
            more than the standard error of the difference.
        ema: The average's decay, in [0, 1].
        max_norm: The gradient norm that is clipped to, > 0.

    Raises:
        OptionError: An argument that does not fit; DataError for rows.
        DivergenceError: The loss or the weights are no longer finite; the module has its best finite weights.
    """
    check_kind("module", module, nn.Module, "an nn.Module")
    check_callable("loss", loss)
    steps, learning_rate, ema = check_training(rows, held_out, run, steps, learning_rate, ema)
    patience = check_whole("patience", patience, 1)
    max_norm = check_number("max_norm", max_norm, Interval(0, open_low=True))
    phase = run.phase("training")
    if phase.is_over:
        phase.restore(lambda state, _: load_module(module, state["module"]))
        module.eval()
        return
    run.workers.share(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = adam(parameters, learning_rate)
    average = ParameterAverage(parameters, ema)
    every = max(1, min(steps // _EVALUATIONS, 100))
    best = Best(module, patience)
    if len(held_out):
        watched = Watched(*run.judges(held_out, _MOST_EVALUATED))
    else:
        first, *context = run.first(rows, EVALUATION_ROWS)
        watched = Watched(first, context[0] if context else None)
    total, since = torch.zeros((), device=rows.device), 0

    def stop_after_evaluation(done: int) -> bool:
        nonlocal since
        mean, since = float(total) / since, 0
        total.zero_()
        average.swap()
        losses = watched.measure(module, loss)
        measured = losses.mean
        if run.workers.any(not (math.isfinite(mean) and math.isfinite(measured))):
            best.restore()
            raise DivergenceError(
                f"Training diverged at step {done} (training loss {mean:.4g}, evaluated {measured:.4g}); "
                f"{_REMEDY}."
            )
        stop = best.offer(losses, done) if len(held_out) else best.keep(measured, done)
        stop = run.workers.any(stop)
        average.swap()
        module.train()
        curves = {"validation_loss": measured} if len(held_out) else {}
        run.log(done, steps, train_loss=mean, **curves)
        return stop

    module.train()
    batches = run.batches(rows)
    warm_up = max(1, min(100, steps // 10))
    done = 0

    def state() -> tuple[State, State]:
        shared = {
            "module": module.state_dict(),
            "optimiser": optimiser_state(optimiser),
            "average": average.state(),
            "best": best.state_dict(),
            "counts": {"done": done, "since": since},
        }
        return shared, {"batches": batches.state(), "total": total}

    def load(state: State, own: State) -> None:
        nonlocal done, since
        load_module(module, state["module"])
        restore_optimiser(optimiser, state["optimiser"], parameters)
        average.restore(state["average"])
        best.load_state_dict(state["best"])
        done, since = int(state["counts"]["done"]), int(state["counts"]["since"])
        batches.restore(own["batches"])
        total.copy_(own["total"])

    if phase.state is None:
        first_losses = watched.measure(module, loss)
        initial = first_losses.mean
        if not math.isfinite(initial):
            raise DivergenceError(
                f"The loss is {initial} before the first training step; {_REMEDY}."
            )
        if len(held_out):
            best.offer(first_losses, 0)
        run.log(
            0, steps, train_loss=initial, **({"validation_loss": initial} if len(held_out) else {})
        )
        module.train()
    else:
        phase.restore(load)
    for step, fraction in run.steps(steps, done):
        rate = (
            learning_rate
            * min(1.0, (step + 1) / warm_up)
            * 0.5
            * (1 + math.cos(math.pi * fraction))
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        value = loss(*next(batches))
        value.backward()
        run.workers.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
        optimiser.step()
        average.update()
        total += value.detach()
        done, since = step + 1, since + 1
        if done % every == 0 and stop_after_evaluation(done):
            break
        phase.offer(state)
    if since:  # the steps after the last evaluation count too
        stop_after_evaluation(done)
    best.restore()
    run.facts["best_step"] = best.step
    module.eval()
    phase.end(lambda: {"module": module.state_dict()}, together=True)


def check_training(
    rows: Any, held_out: Any, run: Any, steps: Any, learning_rate: Any, ema: Any
) -> tuple[int, float, float]:
    """Check what all trainings are given; give steps, learning_rate and ema as plain numbers.

    Raises:
        OptionError: One does not fit.
        DataError: The rows are none.
    """
    if not isinstance(rows, Rows):
        check_rows("rows", rows, least=1)
    check_rows("held_out", held_out)
    check_kind("run", run, Run, "the Run that the sampler's fit was given")
    return (
        check_whole("steps", steps, 1),
        check_number("learning_rate", learning_rate, Interval(0, open_low=True)),
        check_number("ema", ema, Interval(0, 1)),
    )


def adam(
    parameters: list[nn.Parameter], learning_rate: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Adam:
    """Make an Adam optimiser, fused where the parameters' device has that."""
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    with importing():  # the first optimiser of a process brings torch's compiler
        return torch.optim.Adam(parameters, lr=learning_rate, betas=betas, fused=fused)
