"""The adversarial loop: its steps against plain torch, what the losses are given, curves, divergence."""

import math
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from latentfit.errors import DivergenceError
from latentfit.plugin import Run, minibatches, train_adversarially
from latentfit.training import Clock

X = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) + 3
Y = torch.randn(80, 2, generator=torch.Generator().manual_seed(1)) + 3


def run(**arguments: Any) -> Run:
    return Run(torch.Generator().manual_seed(0), **{"batch_size": 32, **arguments})


class Game:
    """A linear generator, a small critic, and Wasserstein losses with a ridge that damps the rotation."""

    def __init__(self, dim: int = 2, context_dim: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.generator: nn.Module = nn.Linear(dim + context_dim, dim)
            self.critic: nn.Module = nn.Sequential(
                nn.Linear(dim + context_dim, 8), nn.Tanh(), nn.Linear(8, 1)
            )
        self.dim = dim
        self.on_critic: Callable[..., None] = lambda *_: None
        self.on_generator: Callable[..., None] = lambda *_: None

    def draw(self, n: int, randomness: torch.Generator, *context: Tensor) -> Tensor:
        noise = torch.randn(n, self.dim, generator=randomness)
        rows: Tensor = self.generator(torch.cat((noise, *context), dim=1))
        return rows

    def score(self, rows: Tensor, *context: Tensor) -> Tensor:
        mean: Tensor = self.critic(torch.cat((rows, *context), dim=1)).mean()
        return mean

    def critic_loss(self, real: Tensor, fake: Tensor, *context: Tensor) -> Tensor:
        self.on_critic(real, fake, *context)
        ridge = sum((p.square().sum() for p in self.critic.parameters()), torch.zeros(()))
        return self.score(fake, *context) - self.score(real, *context) + 0.05 * ridge

    def generator_loss(self, real: Tensor, fake: Tensor, *context: Tensor) -> Tensor:
        self.on_generator(real, fake, *context)
        return -self.score(fake, *context)

    def train(
        self, training: Run, rows: Tensor = X, held_out: Tensor = Y, **options: Any
    ) -> "Game":
        train_adversarially(
            self.generator,
            self.critic,
            self.draw,
            self.critic_loss,
            self.generator_loss,
            rows,
            held_out,
            training,
            **{"steps": 20, "learning_rate": 1e-2, **options},
        )
        return self


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_the_steps_are_those_of_plain_torch() -> None:
    options: dict[str, Any] = {"steps": 12, "critic_steps": 3, "betas": (0.4, 0.8), "ema": 0.7}
    got = Game().train(run(), learning_rate=0.02, **options)

    game, randomness = Game(), torch.Generator().manual_seed(0)
    for_generator = torch.optim.Adam(game.generator.parameters(), betas=(0.4, 0.8), fused=False)
    for_critic = torch.optim.Adam(game.critic.parameters(), betas=(0.4, 0.8), fused=False)
    batches, average = minibatches(X, 32, randomness), weights(game.generator)
    for step in range(12):
        for optimiser in (for_generator, for_critic):
            optimiser.param_groups[0]["lr"] = 0.02 + (0.001 - 0.02) * step / 12
        for _ in range(3):
            real = next(batches)
            fake = game.draw(32, randomness).detach()
            for_critic.zero_grad()
            game.critic_loss(real, fake).backward()
            for_critic.step()
        for_generator.zero_grad()
        game.generator_loss(real, game.draw(32, randomness)).backward()
        for_generator.step()
        decay = min(0.7, (2 + step) / (11 + step))
        average = [
            decay * a + (1 - decay) * p
            for a, p in zip(average, weights(game.generator), strict=True)
        ]
    torch.testing.assert_close(weights(got.generator), average, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(got.critic), weights(game.critic), rtol=1e-4, atol=1e-5)


def test_it_moves_the_generator_to_the_data() -> None:
    game = Game().train(run(), steps=200, learning_rate=0.04, ema=0.9)
    drawn = game.draw(4000, torch.Generator().manual_seed(3))
    assert (drawn.mean(0) - X.mean(0)).abs().max() < 0.5  # it began 3 away


def test_each_loss_may_change_its_own_network_only() -> None:
    game = Game()
    order: list[str] = []
    before: list[Tensor] = []

    def on_critic(real: Tensor, fake: Tensor) -> None:
        order.append("c")
        assert not fake.requires_grad
        assert len(real) == len(fake) == 32

    def on_generator(real: Tensor, fake: Tensor) -> None:
        order.append("g")
        assert fake.requires_grad
        assert not any(p.requires_grad for p in game.critic.parameters())

    game.on_critic, game.on_generator = on_critic, on_generator
    before = weights(game.critic)
    game.train(run(), steps=2, critic_steps=2)
    assert order == ["c", "c", "g"] * 2
    assert all(p.requires_grad for p in game.critic.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(game.critic), strict=True))


def test_what_the_author_froze_stays_frozen() -> None:
    game = Game()
    for module in (game.generator, game.critic):
        next(module.parameters()).requires_grad_(False)
    before = weights(game.generator)[0], weights(game.critic)[0]
    game.train(run(), steps=3)
    for module, was in zip((game.generator, game.critic), before, strict=True):
        first, second, *_ = module.parameters()
        assert not first.requires_grad
        assert second.requires_grad
        assert torch.equal(first, was)


def test_the_generators_step_has_the_critics_last_minibatch() -> None:
    game, seen = Game(), []
    game.on_critic = lambda real, fake: seen.append(real)
    checked = []
    game.on_generator = lambda real, fake: checked.append(torch.equal(real, seen[-1]))
    game.train(run(), steps=5, critic_steps=2)
    assert checked == [True] * 5
    expected = islice(minibatches(X, 32, torch.Generator().manual_seed(0)), 1)
    assert torch.equal(seen[0], next(expected))


def test_in_a_fit_with_a_condition_all_are_given_the_rows_contexts() -> None:
    game, calls = Game(context_dim=1), [0, 0, 0]
    contexts = {"rows": X.sum(1, keepdim=True), "held out": Y.sum(1, keepdim=True)}
    draw = game.draw

    def own(real: Tensor, fake: Tensor, context: Tensor) -> None:
        calls[0] += 1
        torch.testing.assert_close(context, real.sum(1, keepdim=True), rtol=0, atol=0)
        assert len(fake) == len(real)

    def drawn(n: int, randomness: torch.Generator, *context: Tensor) -> Tensor:
        calls[1] += 1
        (given,) = context
        calls[2] += torch.equal(given, contexts["held out"])
        assert given.shape == (n, 1)
        return draw(n, randomness, *context)

    game.on_critic = game.on_generator = own
    game.draw = drawn  # type: ignore[method-assign]
    training = run(context=contexts["rows"], held_out_context=contexts["held out"])
    game.train(training, steps=5, critic_steps=2)
    assert calls == [5 * 3, 5 * 3 + 5, 5]  # drawn once more for each evaluation


# --- curves ---


def test_the_curves_end_with_the_last_step() -> None:
    training = run()
    Game().train(training, steps=205)
    assert training.history.keys() == {
        "step",
        "critic_loss",
        "generator_loss",
        "validation_distance",
    }
    assert training.history["step"] == [*range(2, 205, 2), 205]
    assert len({len(curve) for curve in training.history.values()}) == 1


def test_the_losses_are_means_over_the_steps_since_the_last_point() -> None:
    training, game = run(), Game()
    losses: dict[str, list[float]] = {"critic": [], "generator": []}

    def recorded(name: str, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*arguments: Tensor) -> Tensor:
            value = loss(*arguments)
            losses[name].append(float(value.detach()))
            return value

        return wrapped

    game.critic_loss = recorded("critic", game.critic_loss)  # type: ignore[method-assign]
    game.generator_loss = recorded("generator", game.generator_loss)  # type: ignore[method-assign]
    game.train(training, steps=205, critic_steps=3)
    critic, generator = torch.tensor(losses["critic"]), torch.tensor(losses["generator"])
    expected = [float(part.mean()) for part in critic.split(6)]
    assert training.history["critic_loss"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    expected = [float(part.mean()) for part in generator.split(2)]
    assert training.history["generator_loss"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_in_one_dimension_the_distance_is_scipys() -> None:
    training, game, drawn = run(), Game(dim=1), []
    draw = game.draw

    def kept(n: int, randomness: torch.Generator) -> Tensor:
        drawn.append(draw(n, randomness))
        return drawn[-1]

    game.draw = kept  # type: ignore[method-assign]
    game.train(training, X[:, :1], Y[:, :1], steps=3)
    expected = [
        wasserstein_distance(rows[:, 0].detach(), Y[:, 0])
        for rows in drawn
        if len(rows) == len(Y)  # those of the evaluations
    ]
    assert training.history["validation_distance"] == pytest.approx(expected, rel=1e-4)


def test_the_distance_falls_and_is_not_measured_without_held_out_rows() -> None:
    with_held_out, without = run(), run()
    Game().train(with_held_out, steps=200, learning_rate=0.04, ema=0.9)
    curve = with_held_out.history["validation_distance"]
    assert min(curve[-10:]) < 0.3 * curve[0]
    Game().train(without, held_out=Y[:0])
    assert without.history.keys() == {"step", "critic_loss", "generator_loss"}


# --- edges ---


@pytest.mark.parametrize("n, m", [(1, 0), (1, 1), (3, 2), (31, 0)])
def test_a_few_rows_are_one_batch(n: int, m: int) -> None:
    game = Game().train(run(), X[:n], Y[:m], steps=3)
    assert all(w.isfinite().all() for w in weights(game.generator))


def test_one_seed_gives_the_same_weights() -> None:
    one, again = Game().train(run()), Game().train(run())
    assert all(map(torch.equal, weights(one.generator), weights(again.generator)))


def test_time_ends_the_training() -> None:
    began = time.monotonic()
    training = run(max_seconds=0.2)
    game = Game().train(training, steps=10**9)
    assert time.monotonic() - began < 2
    assert training.history["step"][-1] >= 1
    assert all(w.isfinite().all() for w in weights(game.generator))


def test_without_time_the_generator_stays_as_it_was() -> None:
    training, game = run(max_seconds=1, clock=Clock(time.monotonic() - 2)), Game()
    before = weights(game.generator)
    game.train(training)
    assert all(map(torch.equal, before, weights(game.generator)))
    assert training.history == {}


def test_batch_norm_draws_by_its_running_statistics_outside_of_training() -> None:
    game = Game()
    game.generator = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    modes: list[bool] = []
    draw = game.draw

    def watched(n: int, randomness: torch.Generator) -> Tensor:
        modes.append(game.generator.training)
        return draw(n, randomness)

    game.draw = watched  # type: ignore[method-assign]
    game.train(run(), steps=2)
    assert modes == [True, True, False] * 2
    assert not game.generator.training


def diverging(where: str, bad: float, after: int) -> Game:
    """A game of which one part leaves the finite numbers."""
    game, calls = Game(), 0
    original: Callable[..., Tensor] = getattr(game, where)

    def broken(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        value = original(*arguments)
        return value * bad if calls > after else value

    setattr(game, where, broken)
    return game


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["critic_loss", "generator_loss", "draw"])
def test_divergence_leaves_the_last_finite_average(where: str, bad: float) -> None:
    game, training = diverging(where, bad, 30), run()
    with pytest.raises(DivergenceError, match=r"diverged at step \d+ .*; lower learning_rate"):
        game.train(training, steps=50)
    assert all(w.isfinite().all() for w in weights(game.generator))
    assert all(math.isfinite(v) for curve in training.history.values() for v in curve)
    # The average at the last point of the curves, from a run that ended there on the same schedule.
    last = int(training.history["step"][-1])
    assert 5 < last < 50

    class Ended(Run):
        def steps(self, total: int, start: int = 0) -> Any:
            return islice(super().steps(total, start), last)

    ended = Ended(torch.Generator().manual_seed(0), batch_size=32)
    expected = Game().train(ended, steps=50)
    assert all(map(torch.equal, weights(game.generator), weights(expected.generator)))
    assert not game.generator.training


@pytest.mark.parametrize("m", [0, 80])
def test_an_average_that_draws_no_finite_rows_is_found_beside_finite_losses(m: int) -> None:
    game = Game()
    draw = game.draw

    def broken(n: int, randomness: torch.Generator) -> Tensor:
        return draw(n, randomness) * (1 if game.generator.training else math.nan)

    game.draw = broken  # type: ignore[method-assign]
    with pytest.raises(DivergenceError, match="diverged at step 1 "):
        game.train(run(), held_out=Y[:m])
