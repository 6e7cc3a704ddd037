"""WGAN-GP: the critic's loss against equation (7) of the paper, and what a fit leaves."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentfit import fit_latent_sampler
from latentfit.errors import DivergenceError
from latentfit_gan import WGANGP

X = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))


def loss(critic: Any, real: Tensor, fake: Tensor, *, penalty: float, seed: int = 0) -> Tensor:
    plugin = WGANGP(penalty=penalty)
    return plugin._critic_loss(critic, real, fake, torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """w x: its gradient is w wherever the penalty looks."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, 0, 4]))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w)[:, None]


def test_a_linear_critics_loss_has_a_closed_form() -> None:
    critic, fake = Linear(), X[:100] * 2 + 1
    got = loss(critic, X[100:200], fake, penalty=0.5)
    expected = (fake.mean(0) - X[100:200].mean(0)) @ critic.w + 0.5 * (5 - 1) ** 2
    torch.testing.assert_close(got, expected)
    got.backward()
    gradient = fake.mean(0) - X[100:200].mean(0) + 0.5 * 2 * (5 - 1) * critic.w.detach() / 5
    torch.testing.assert_close(critic.w.grad, gradient)


def test_the_penalty_is_taken_uniformly_between_real_and_generated_rows() -> None:
    # f(x) = x^2 / 2 has the gradient x; between 0 and 2 that makes E (x - 1)^2 = 1/3.
    real, fake = torch.zeros(200_000, 1), torch.full((200_000, 1), 2.0)
    got = loss(lambda x: x.square() / 2, real, fake, penalty=3.0)
    assert got.item() == pytest.approx(2 + 3 * 1 / 3, abs=0.02)
    narrow = loss(lambda x: x.square() / 2, fake, fake, penalty=3.0)  # nothing between
    assert narrow.item() == pytest.approx(3 * 1)


def test_a_networks_loss_is_equation_7_from_scratch() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    real, fake = X[:50], X[50:100] * 2
    t = torch.rand(50, 1, generator=torch.Generator().manual_seed(7))

    def score(z: Tensor) -> Tensor:
        result: Tensor = critic(z).squeeze()
        return result

    def by_hand(between: Tensor) -> Tensor:
        norms = [torch.autograd.functional.jacobian(score, z).norm() for z in between]
        penalty = sum(((norm - 1) ** 2 for norm in norms), torch.zeros(())) / len(norms)
        return -score(real).mean() + score(fake).mean() + 10 * penalty

    got = loss(critic, real, fake, penalty=10.0, seed=7)
    # The law is symmetric in t; which end it starts from is the author's to choose.
    choices = [by_hand(t * real + (1 - t) * fake), by_hand(t * fake + (1 - t) * real)]
    assert any(torch.allclose(got, choice, rtol=1e-5) for choice in choices)


def test_a_critic_that_is_flat_has_a_finite_gradient() -> None:
    critic = nn.Linear(3, 1)
    nn.init.zeros_(critic.weight)
    loss(critic, X[:10], X[10:20], penalty=1.0).backward()
    assert critic.weight.grad is not None
    assert critic.weight.grad.isfinite().all()


@pytest.mark.parametrize("noise", [None, 1, 7])
def test_samples_have_the_rows_dimension_whatever_the_noise(noise: int | None) -> None:
    sampler = fit_latent_sampler(None, X, method="wgan-gp", noise=noise, steps=2, hidden=(8,))
    assert sampler.sample(5).shape == (5, 3)


def test_the_critic_is_not_kept() -> None:
    small = fit_latent_sampler(None, X, method="wgan-gp", noise=2, steps=2, hidden=(8,))
    assert small.info["parameters"] == 2 * 8 + 8 + 8 * 3 + 3


def test_it_learns_a_mean_and_a_deviation() -> None:
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)).abs()
    options: dict[str, Any] = {"steps": 300, "hidden": (32,), "batch_size": 128, "ema": 0.95}
    sampler = fit_latent_sampler(None, x, method="wgan-gp", learning_rate=2e-3, **options)
    z = sampler.sample(4000, seed=0)
    assert float(z.mean()) == pytest.approx(float(x.mean()), abs=0.12)
    assert float(z.std()) == pytest.approx(float(x.std()), abs=0.15)
    assert float((z < -0.2).float().mean()) < 0.1  # the half that is empty


def test_the_curves_have_the_steps_up_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = fit_latent_sampler(None, X, method="wgan-gp", steps=205, critic_steps=1, hidden=(4,))
    assert sampler.history["step"][-1] == 205
    assert len(sampler.history["step"]) <= 103


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("after", [150, 204])
def test_divergence_keeps_the_last_finite_generator(
    bad: float, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = WGANGP._critic_loss, 0

    def broken(self: WGANGP, *arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return original(self, *arguments) * (bad if calls > after else 1)

    monkeypatch.setattr(WGANGP, "_critic_loss", broken)
    options: dict[str, Any] = {"steps": 205, "critic_steps": 1, "hidden": (8,)}
    with pytest.raises(DivergenceError, match="lower learning_rate or raise penalty") as e:
        fit_latent_sampler(None, X, method="wgan-gp", **options)
    sampler = e.value.sampler
    assert sampler is not None
    assert sampler.sample(100).isfinite().all()
    assert after - 5 <= sampler.history["step"][-1] <= after
    assert all(math.isfinite(v) for curve in sampler.history.values() for v in curve)
