"""The training loop: batches, schedules, averaging, early stopping, divergence."""

import math
import time
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentfit.errors import DivergenceError
from latentfit.minibatches import minibatches
from latentfit.training import Clock, ParameterAverage, Run, train


def run(**arguments: Any) -> Run:
    return Run(torch.Generator().manual_seed(0), **arguments)


class Location(nn.Module):
    """One trainable number, and the squared distance of rows (n, 1) from it."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(start))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def loss(self, rows: Tensor) -> Tensor:
        return (rows - self.at).square().mean()


@pytest.mark.parametrize("n, size", [(12, 4), (12, 5), (3, 8), (1, 1), (7, 7)])
def test_each_pass_takes_every_row_at_most_once(n: int, size: int) -> None:
    batches = minibatches(torch.arange(n)[:, None], size, torch.Generator().manual_seed(0))
    real = min(size, n)
    per_pass = n // real
    orders = []
    for _ in range(3):
        taken = [next(batches)[:, 0].tolist() for _ in range(per_pass)]
        assert [len(batch) for batch in taken] == [real] * per_pass
        flat = [row for batch in taken for row in batch]
        assert len(set(flat)) == len(flat) == per_pass * real  # all of them where it divides
        orders.append(flat)
    if n == 12:
        assert orders[0] != orders[1]


def test_batches_are_the_generators() -> None:
    rows = torch.arange(20)

    def taken(seed: int) -> list[list[int]]:
        draw = torch.Generator().manual_seed(seed)
        return [batch.tolist() for batch in islice(minibatches(rows, 6, draw), 7)]

    assert taken(0) == taken(0) != taken(1)


def test_steps_count_and_their_fraction_grows_to_the_end() -> None:
    shown: list[int] = []
    counted = list(run(show=lambda step, total, values: shown.append(step)).steps(4))
    assert counted == [(0, 0), (1, 0.25), (2, 0.5), (3, 0.75)]
    assert shown == [0, 1, 2, 3, 4]


def test_time_ends_the_steps_and_moves_the_schedule_on() -> None:
    began = time.monotonic()
    fractions = []
    for _, fraction in run(max_seconds=0.2).steps(10**9):
        fractions.append(fraction)
        time.sleep(0.01)
    assert time.monotonic() - began < 1
    assert fractions == sorted(fractions)
    assert 0.8 < fractions[-1] < 1


def test_no_step_is_made_when_the_time_is_up() -> None:
    late = run(max_seconds=5, clock=Clock(time.monotonic() - 6))
    assert list(late.steps(10)) == []
    assert late.elapsed() == pytest.approx(1.2, abs=0.1)
    assert run(clock=Clock(0.0)).elapsed() == 0


def test_curves_have_one_length() -> None:
    shown: list[dict[str, float]] = []
    logged = run(show=lambda step, total, values: shown.append(values))
    logged.log(0, 2, a=1.0, b=2.0)
    logged.log(2, 2, a=3.0, b=4.0)
    assert logged.history == {"step": [0, 2], "a": [1, 3], "b": [2, 4]}
    assert shown == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


def test_swapping_twice_changes_nothing() -> None:
    layer = nn.Linear(3, 2)
    average = ParameterAverage(layer.parameters(), 0.9)
    nn.init.normal_(layer.weight)
    average.update()
    live, averaged = layer.weight.clone(), average.average[0].clone()
    average.swap()
    assert torch.equal(layer.weight, averaged)
    average.swap()
    assert torch.equal(layer.weight, live)
    assert torch.equal(average.average[0], averaged)


def test_the_average_is_the_warmed_up_recursion() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist()
    model = Location(5.0)
    average = ParameterAverage(model.parameters(), 0.9)
    expected = 5.0
    for t, value in enumerate(values, start=1):
        model.at.data.fill_(value)
        average.update()
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
    assert len(average.average) == 1  # the frozen one is left alone
    assert float(average.average[0]) == pytest.approx(expected, rel=1e-5)


def test_training_finds_the_minimum() -> None:
    model, training = Location(), run(batch_size=8)
    rows = 2 + torch.randn(64, 1, generator=torch.Generator().manual_seed(1))
    train(model, model.loss, rows, rows, training, steps=600, learning_rate=0.05)
    assert model.at.item() == pytest.approx(float(rows.mean()), abs=0.02)
    assert not model.training
    assert len({len(curve) for curve in training.history.values()}) == 1
    assert training.history["step"][0] == 0


def test_early_stopping_brings_back_the_best_weights() -> None:
    # Towards the training rows at 5, past the held-out ones at 1.
    model, training = Location(), run()
    rows, held_out = torch.full((16, 1), 5.0), torch.full((16, 1), 1.0)
    train(model, model.loss, rows, held_out, training, steps=4000, learning_rate=0.01, patience=5)
    curve = training.history["validation_loss"]
    assert training.history["step"][-1] < 4000
    assert model.loss(held_out).item() == pytest.approx(min(curve))
    assert len(curve) - 1 - curve.index(min(curve)) == 5
    assert curve[-1] > min(curve)


def test_training_that_only_harms_leaves_the_start() -> None:
    model = Location(1.0)
    rows, held_out = torch.full((16, 1), 5.0), torch.full((16, 1), 1.0)
    train(model, model.loss, rows, held_out, run(), steps=100, learning_rate=0.1)
    assert model.at.item() == 1.0


def test_without_held_out_rows_the_last_average_stays() -> None:
    model, training = Location(), run()
    rows = torch.full((16, 1), 3.0)
    train(model, model.loss, rows, rows[:0], training, steps=500, learning_rate=0.05)
    assert model.at.item() == pytest.approx(3, abs=0.01)
    assert set(training.history) == {"step", "train_loss"}
    assert training.history["step"][-1] == 500


@pytest.mark.parametrize("held_out", [0, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_leaves_the_best_finite_weights(held_out: int, bad: float) -> None:
    model, calls = Location(), 0

    def loss(rows: Tensor) -> Tensor:
        nonlocal calls
        calls += model.training
        return model.loss(rows) * (bad if calls > 50 and model.training else 1)

    rows = torch.full((16, 1), 3.0)
    training = run()
    with pytest.raises(DivergenceError, match=r"diverged at step \d+ .*lower learning_rate"):
        train(model, loss, rows, rows[:held_out], training, steps=400, learning_rate=0.05)
    assert 0 < model.at.item() < 3.1
    assert all(math.isfinite(value) for curve in training.history.values() for value in curve)


def test_a_step_that_goes_too_far_is_noticed_without_held_out_rows() -> None:
    # The loss is finite when the step is taken, and not after it.
    model, start = Location(), torch.full((16, 1), 3.0)
    with pytest.raises(DivergenceError, match="step 1 "):
        train(model, model.loss, start, start[:0], run(), steps=1, learning_rate=1e35)
    assert model.at.item() == 0


def test_a_loss_that_starts_infinite_is_told_before_the_first_step() -> None:
    model, rows = Location(), torch.ones(4, 1)
    with pytest.raises(DivergenceError, match="before the first training step"):
        train(model, lambda r: model.loss(r) / 0, rows, rows, run(), steps=9, learning_rate=0.1)


@pytest.fixture
def optimiser_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The learning rate and the gradient at each step of the optimiser."""
    seen: list[tuple[float, float]] = []
    original = torch.optim.Adam.step

    def step(self: torch.optim.Adam, *arguments: Any) -> Any:
        (group,) = self.param_groups
        seen.append((group["lr"], float(group["params"][0].grad)))
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    return seen


def test_gradients_are_clipped_to_the_norm(optimiser_steps: list[tuple[float, float]]) -> None:
    model, rows = Location(), torch.full((8, 1), 1000.0)
    train(model, model.loss, rows, rows, run(), steps=5, learning_rate=1e-3, max_norm=2.0)
    assert [gradient for _, gradient in optimiser_steps] == pytest.approx([-2.0] * 5)


def test_the_rate_warms_up_and_falls_to_nothing(optimiser_steps: list[tuple[float, float]]) -> None:
    model, rows = Location(), torch.full((8, 1), 1000.0)
    train(model, model.loss, rows, rows, run(), steps=1000, learning_rate=0.01)
    rates = [rate for rate, _ in optimiser_steps]
    assert len(rates) == 1000
    peak = rates.index(max(rates))
    assert rates[0] < 0.002
    assert 0.009 < rates[peak] <= 0.01
    assert peak < 200
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[500] == pytest.approx(0.005, rel=0.01)  # of a cosine's half
    assert rates[-1] < 1e-6


def test_an_interrupt_comes_through() -> None:
    def interrupt(step: int, total: int, values: dict[str, float]) -> None:
        if step == 7:
            raise KeyboardInterrupt

    model, rows = Location(), torch.ones(8, 1)
    with pytest.raises(KeyboardInterrupt):
        train(model, model.loss, rows, rows, run(show=interrupt), steps=50, learning_rate=0.1)


@pytest.mark.parametrize("n, most", [(30, 10), (10, 10), (3, 10), (0, 10)])
def test_judges_are_some_of_the_held_out_rows_with_their_contexts(n: int, most: int) -> None:
    rows = torch.arange(n).float()[:, None]
    one = run(held_out_context=10 * rows)
    before = one.generator.get_state()
    drawn, context = one.judges(rows, most)
    assert context is not None
    assert torch.equal(context, 10 * drawn)
    assert len(drawn.unique()) == len(drawn) == min(n, most)
    assert torch.equal(one.judges(rows, most)[0], drawn)
    assert torch.equal(one.generator.get_state(), before)
    if n > most:
        assert drawn.max() > most  # not the first ones
    assert run().judges(rows, most)[1] is None


def test_evaluations_take_at_most_so_many_held_out_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentfit.training._MOST_EVALUATED", 20)
    seen = []

    class Watched(Location):
        def loss(self, rows: Tensor) -> Tensor:
            if not self.training:
                seen.append(rows[:, 0].clone())
            return super().loss(rows)

    module = Watched()
    held_out = torch.arange(100).float()[:, None]
    train(module, module.loss, torch.ones(50, 1), held_out, run(), steps=3, learning_rate=0.1)
    first = torch.cat(seen[: len(seen) // 4])  # before the first step, and after each of three
    assert len(first) == len(first.unique()) == 20
    assert first.max() > 20
    assert torch.equal(torch.cat(seen), first.repeat(4))


def test_training_stops_when_what_is_gained_is_noise() -> None:
    """A held-out loss that falls steadily, and one whose fall is lost in noise."""

    def steps_made(noise: float) -> int:
        torch.manual_seed(0)

        class Falling(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.at = nn.Parameter(torch.zeros(1))

            def loss(self, rows: Tensor) -> Tensor:
                if self.training:
                    return self.at.sum()
                return self.at.sum() + noise * torch.randn(())

        module = Falling()
        one = run()
        rows = torch.zeros(800, 1)
        train(module, module.loss, rows, rows, one, steps=400, learning_rate=1e-4, patience=5)
        return int(one.history["step"][-1])

    assert steps_made(0.0) == 400
    assert steps_made(10.0) < 200
