"""The adversarial methods: losses against independent formulas, noise, conditions, what a fit leaves."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor, nn

from latentfit import fit_latent_sampler, load_sampler
from latentfit.errors import DivergenceError, LatentsWarning, OptionError
from latentfit.plugin import GaussianMixture, Run
from latentfit_gan import GAN, R3GAN, WGANGP

X = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
METHODS = ("wgan-gp", "gan", "r3gan")
every = pytest.mark.parametrize("method", METHODS)
on_both = pytest.mark.parametrize("base", ["normal", "mixture"])
TINY: dict[str, Any] = {"steps": 2, "hidden": (8,)}


def loss(
    plugin: WGANGP | GAN | R3GAN, critic: Any, real: Tensor, fake: Tensor, *, seed: int = 0
) -> Tensor:
    value: Tensor = plugin.critic_loss(critic, real, fake, torch.Generator().manual_seed(seed))
    return value


class Linear(nn.Module):
    """w x: its gradient is w wherever a penalty looks."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, 0, 4]))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w)[:, None]


def network(n_in: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(n_in, 8), nn.Tanh(), nn.Linear(8, 1))


REAL, FAKE = X[:50], 2 * X[50:100] + 1


def score_of(critic: nn.Module, z: Tensor) -> Tensor:
    result: Tensor = critic(z).squeeze()
    return result


def gradient_norms(critic: nn.Module, rows: Tensor) -> Tensor:
    """|f'(z)| of each row, one at a time."""
    jacobian = torch.autograd.functional.jacobian
    return torch.stack([jacobian(lambda z: score_of(critic, z), z).norm() for z in rows])


# --- WGAN-GP ---


def test_wgan_a_linear_critics_loss_has_a_closed_form() -> None:
    critic, fake = Linear(), X[:100] * 2 + 1
    got = loss(WGANGP(penalty=0.5), critic, X[100:200], fake)
    expected = (fake.mean(0) - X[100:200].mean(0)) @ critic.w + 0.5 * (5 - 1) ** 2
    torch.testing.assert_close(got, expected)
    got.backward()
    gradient = fake.mean(0) - X[100:200].mean(0) + 0.5 * 2 * (5 - 1) * critic.w.detach() / 5
    torch.testing.assert_close(critic.w.grad, gradient)


def test_wgan_the_penalty_is_taken_uniformly_between_real_and_generated_rows() -> None:
    # f(x) = x^2 / 2 has the gradient x; between 0 and 2 that makes E (x - 1)^2 = 1/3.
    real, fake = torch.zeros(200_000, 1), torch.full((200_000, 1), 2.0)
    got = loss(WGANGP(penalty=3.0), lambda x: x.square() / 2, real, fake)
    assert got.item() == pytest.approx(2 + 3 * 1 / 3, abs=0.02)
    narrow = loss(WGANGP(penalty=3.0), lambda x: x.square() / 2, fake, fake)  # nothing between
    assert narrow.item() == pytest.approx(3 * 1)


def test_wgan_the_losses_are_equations_7_and_8() -> None:
    critic, plugin = network(), WGANGP(penalty=10.0)
    t = torch.rand(50, 1, generator=torch.Generator().manual_seed(7))

    def by_hand(between: Tensor) -> Tensor:
        penalty = (gradient_norms(critic, between) - 1).square().mean()
        return -critic(REAL).mean() + critic(FAKE).mean() + 10 * penalty

    got = loss(plugin, critic, REAL, FAKE, seed=7)
    # The law is symmetric in t; which end it starts from is the author's to choose.
    choices = [by_hand(t * REAL + (1 - t) * FAKE), by_hand(t * FAKE + (1 - t) * REAL)]
    assert any(torch.allclose(got, choice, rtol=1e-5) for choice in choices)
    torch.testing.assert_close(plugin.generator_loss(critic, REAL, FAKE), -critic(FAKE).mean())


def test_wgan_a_critic_that_is_flat_has_a_finite_gradient() -> None:
    critic = nn.Linear(3, 1)
    nn.init.zeros_(critic.weight)
    loss(WGANGP(penalty=1.0), critic, X[:10], X[10:20]).backward()
    assert critic.weight.grad is not None
    assert critic.weight.grad.isfinite().all()


# --- GAN ---


def test_gan_the_losses_are_equations_5_and_6() -> None:
    critic = network()
    of_real, of_fake = (expit(critic(z).detach().numpy()) for z in (REAL, FAKE))  # D(z)
    expected = -np.log(of_real).mean() - np.log(1 - of_fake).mean()
    assert loss(GAN(), critic, REAL, FAKE).item() == pytest.approx(expected, rel=1e-5)
    got = GAN().generator_loss(critic, REAL, FAKE)
    assert got.item() == pytest.approx(-np.log(of_fake).mean(), rel=1e-5)


def test_gan_the_losses_are_finite_for_a_critic_that_is_sure() -> None:
    certain = Linear()
    certain.w.data.fill_(1e4)
    real, fake = torch.ones(4, 3), -torch.ones(4, 3)
    assert loss(GAN(), certain, real, fake).item() == 0
    assert GAN().generator_loss(certain, real, fake).item() == pytest.approx(3e4)


# --- R3GAN ---


def test_r3gan_the_losses_pair_real_and_generated_rows() -> None:
    critic = network()
    of_real, of_fake = (critic(z).detach().numpy()[:, 0] for z in (REAL, FAKE))
    # -log sigmoid(D(real) - D(fake)), and for the generator with the two exchanged.
    expected = -np.log(expit(of_real - of_fake)).mean()
    assert loss(R3GAN(penalty=0), critic, REAL, FAKE).item() == pytest.approx(expected, rel=1e-5)
    expected = -np.log(expit(of_fake - of_real)).mean()
    got = R3GAN().generator_loss(critic, REAL, FAKE)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_r3gan_the_penalties_are_the_mean_squared_gradients_at_real_and_at_generated_rows() -> None:
    critic = network()
    plain, whole = (loss(R3GAN(penalty=p), critic, REAL, FAKE) for p in (0, 0.7))
    r1, r2 = (gradient_norms(critic, rows).square().mean() for rows in (REAL, FAKE))
    torch.testing.assert_close(whole - plain, 0.7 * (r1 + r2))


def test_r3gan_the_penalties_gradient_has_a_closed_form() -> None:
    # f(x) = x' A x / 2 with A symmetric has the gradient A x: R1 = mean |A x|^2, dR1/dA = 2 A mean(x x').
    a = nn.Parameter(torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64))
    real, fake = REAL[:, :2].double(), FAKE[:, :2].double()

    def critic(x: Tensor) -> Tensor:
        return ((x @ ((a + a.T) / 2)) * x).sum(1, keepdim=True) / 2

    def gradient(penalty: float) -> Tensor:
        (found,) = torch.autograd.grad(loss(R3GAN(penalty=penalty), critic, real, fake), a)
        return found

    second = (real.T @ real + fake.T @ fake) / len(real)
    expected = a.detach() @ second + second @ a.detach()  # 2 A M, symmetrised
    torch.testing.assert_close(gradient(0.3) - gradient(0), 0.3 * expected)


@every
def test_a_context_reaches_the_critic_beside_every_row(method: str) -> None:
    plugin = {"wgan-gp": WGANGP, "gan": GAN, "r3gan": R3GAN}[method]()
    critic, context = network(5), torch.eye(2).repeat(25, 1)
    seen: list[Tensor] = []
    critic.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    plugin.critic_loss(critic, REAL, FAKE, torch.Generator().manual_seed(0), context)
    plugin.generator_loss(critic, REAL, FAKE, context)
    assert len(seen) >= 2
    for rows in seen:
        for part in rows.split(50):
            torch.testing.assert_close(part[:, 3:], context)
    torch.testing.assert_close(seen[-2][:50, :3], REAL)
    torch.testing.assert_close(seen[-1][-50:, :3], FAKE)


# --- noise ---


@every
@pytest.mark.parametrize("noise", [None, 1, 7])
def test_samples_have_the_rows_dimension_whatever_the_noise(method: str, noise: int | None) -> None:
    sampler = fit_latent_sampler(None, X, method=method, base="normal", noise=noise, **TINY)
    assert sampler.sample(5).shape == (5, 3)


@every
def test_mixture_noise_has_the_rows_dimension(method: str) -> None:
    fit_latent_sampler(None, X, method=method, base="mixture", noise=3, **TINY)
    with pytest.raises(OptionError, match="expected noise=None or 3; got 7.*base='normal'"):
        fit_latent_sampler(None, X, method=method, base="mixture", noise=7, **TINY)


@pytest.mark.parametrize("cls, base", [(WGANGP, None), (R3GAN, None), (GAN, "normal")])
def test_by_default_a_mixture_is_the_noise_where_it_is_not_too_large(cls: Any, base: Any) -> None:
    assert cls().base == base
    for dim in (1024, 1025):
        plugin = cls()
        plugin.build(dim, 3)
        assert hasattr(plugin, "mixture") == (base is None and dim == 1024)
        assert plugin.sample(2, torch.Generator().manual_seed(0)).shape == (2, dim)
    given = cls(noise=3)
    given.build(5, 9)
    assert given.generator[0].in_features == 3


@every
def test_on_mixture_noise_the_generator_begins_with_the_mixtures_samples(method: str) -> None:
    sampler = fit_latent_sampler(
        None, X, method=method, base="mixture", components=4, max_seconds=1e-9, transform="none"
    )
    n = sampler.info["n"]
    held_in = X[torch.randperm(300, generator=torch.Generator().manual_seed(0))[300 - n :]]
    mixture = GaussianMixture(3, 4)
    # The fit's own: k-means, without the time for a step of EM.
    mixture.fit(held_in, torch.Generator().manual_seed(0), steps=0)
    expected = mixture.sample(50, torch.Generator().manual_seed(8)).detach()
    torch.testing.assert_close(sampler.sample(50, seed=8), expected)


def test_the_mixture_is_fitted_and_then_left_alone() -> None:
    class Watched(R3GAN):
        before: dict[str, Tensor]

        def sample(self, *arguments: Any) -> Tensor:
            if not hasattr(self, "before"):
                self.before = {k: v.clone() for k, v in self.mixture.state_dict().items()}
            return super().sample(*arguments)

    plugin = Watched(steps=20, hidden=(8,))
    plugin.build(3, 300)
    started = {k: v.clone() for k, v in plugin.mixture.state_dict().items()}
    run = Run(torch.Generator().manual_seed(0), batch_size=64)
    plugin.fit(X, X[:0], run)
    after = plugin.mixture.state_dict()
    assert all(torch.equal(after[k], v) for k, v in plugin.before.items())
    assert not torch.equal(started["means"], after["means"])
    assert not any(p.requires_grad for p in plugin.mixture.parameters())
    assert plugin.generator[-1].weight.abs().max() > 0
    assert run.facts["components"] == plugin.mixture.components


# --- conditions ---


@pytest.mark.parametrize(
    "method, base",
    [("wgan-gp", "normal"), ("gan", "normal"), ("r3gan", "normal"), ("r3gan", "mixture")],
)
def test_samples_honour_the_label(method: str, base: str) -> None:
    centres = torch.tensor([[4.0, 0], [-4, 0], [0, 5]])
    labels = torch.arange(1500) % 3
    draw = torch.Generator().manual_seed(0)
    rows = centres[labels] + 0.5 * torch.randn(1500, 2, generator=draw)
    options: dict[str, Any] = {"hidden": (32,), "batch_size": 64, "components": 3, "ema": 0.9}
    options |= {"learning_rate": 5e-3, "critic_steps": 1 if method == "r3gan" else 2, "steps": 200}
    sampler = fit_latent_sampler(None, rows, method=method, base=base, condition=labels, **options)
    for label, centre in enumerate(centres):
        z = sampler.sample(300, condition=label, seed=0)
        nearest = torch.cdist(z, centres).argmin(1)
        assert float((nearest == label).float().mean()) > 0.9
        assert float((z.mean(0) - centre).abs().max()) < 1


@every
def test_the_mixtures_weights_depend_on_the_label(method: str) -> None:
    labels = torch.arange(300) % 3
    rows = 10 * torch.eye(3)[labels] + X
    options: dict[str, Any] = {"base": "mixture", "components": 3, **TINY}
    sampler = fit_latent_sampler(None, rows, method=method, condition=labels, **options)
    for label in range(3):
        z = sampler.sample(200, condition=label, seed=0)  # the generator has hardly begun
        assert float((z.argmax(1) == label).float().mean()) > 0.95


@on_both
def test_samples_follow_a_vector(base: str) -> None:
    draw = torch.Generator().manual_seed(0)
    at = 2 * torch.rand(1500, 1, generator=draw) - 1
    rows = 3 * at + 0.2 * torch.randn(1500, 1, generator=draw)
    options: dict[str, Any] = {"hidden": (32,), "batch_size": 64, "components": 5, "ema": 0.9}
    sampler = fit_latent_sampler(
        None,
        rows,
        method="r3gan",
        base=base,
        condition=at,
        steps=200,
        learning_rate=5e-3,
        **options,
    )
    given = torch.linspace(-0.9, 0.9, 400)[:, None]
    z = sampler.sample(400, condition=given, seed=0)
    assert float(torch.corrcoef(torch.cat((z, given), dim=1).T)[0, 1]) > 0.9


# --- what a fit leaves ---


def test_a_saved_wgan_has_the_tensors_it_always_had() -> None:
    plugin = WGANGP(hidden=(8, 4), base="normal", noise=2)
    plugin.build(3, 100)
    shapes = {name: tuple(tensor.shape) for name, tensor in plugin.state_dict().items()}
    assert shapes == {
        "generator.0.weight": (8, 2),
        "generator.0.bias": (8,),
        "generator.2.weight": (4, 8),
        "generator.2.bias": (4,),
        "generator.4.weight": (3, 4),
        "generator.4.bias": (3,),
    }


@every
def test_the_critic_is_not_kept(method: str) -> None:
    small = fit_latent_sampler(None, X, method=method, base="normal", noise=2, **TINY)
    assert small.info["parameters"] == 2 * 8 + 8 + 8 * 3 + 3


@pytest.mark.parametrize("labelled", [False, True])
@on_both
@every
def test_a_file_gives_the_same_samples_and_a_seed_the_same_fit(
    method: str, base: str, labelled: bool, tmp_path: Path
) -> None:
    labels = torch.arange(300) % 2 if labelled else None
    options = {"base": base, "condition": labels, **TINY, "steps": 5}
    one, again = (fit_latent_sampler(None, X, method=method, **options) for _ in range(2))
    one.save(tmp_path / "sampler")
    loaded = load_sampler(tmp_path / "sampler")
    given = {"condition": 1} if labelled else {}
    expected = one.sample(20, seed=0, **given)
    assert torch.equal(again.sample(20, seed=0, **given), expected)
    assert torch.equal(loaded.sample(20, seed=0, **given), expected)


@on_both
@every
def test_one_dimension_and_one_training_row(method: str, base: str) -> None:
    rows = torch.tensor([[0.0], [1.0]])
    with pytest.warns(LatentsWarning, match="got 2"):
        sampler = fit_latent_sampler(None, rows, method=method, base=base, validation=0.5, **TINY)
    assert sampler.info["n"] == 1
    assert sampler.sample(100).isfinite().all()


@every
def test_equal_rows_and_equal_columns_give_finite_samples(method: str) -> None:
    rows = X[:60, :1].expand(60, 3).repeat(2, 1)
    with pytest.warns(LatentsWarning, match="50 % of the latents"):
        sampler = fit_latent_sampler(None, rows, method=method, base="mixture", **TINY)
    assert sampler.sample(100).isfinite().all()


@pytest.mark.parametrize("method", ["wgan-gp", "gan"])
def test_it_learns_a_mean_and_a_deviation(method: str) -> None:
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)).abs()
    options: dict[str, Any] = {"hidden": (32,), "batch_size": 128, "ema": 0.95, "base": "normal"}
    steps = 300 if method == "wgan-gp" else 600
    sampler = fit_latent_sampler(None, x, method=method, learning_rate=2e-3, steps=steps, **options)
    z = sampler.sample(4000, seed=0)
    assert float(z.mean()) == pytest.approx(float(x.mean()), abs=0.12)
    assert float(z.std()) == pytest.approx(float(x.std()), abs=0.15)
    assert float((z < -0.2).float().mean()) < 0.1  # the half that is empty


def test_r3gan_finds_all_modes_of_a_ring() -> None:
    angle = torch.arange(8) * (2 * math.pi / 8)
    centres = torch.stack((angle.cos(), angle.sin()), dim=1)
    draw = torch.Generator().manual_seed(0)
    rows = centres[torch.arange(4000) % 8] + 0.05 * torch.randn(4000, 2, generator=draw)
    options: dict[str, Any] = {"hidden": (64, 64), "batch_size": 128, "ema": 0.98}
    options |= {"steps": 600, "learning_rate": 2e-3}
    sampler = fit_latent_sampler(None, rows, method="r3gan", base="normal", **options)
    distance, nearest = torch.cdist(sampler.sample(4000, seed=0), centres).min(dim=1)
    close = nearest[distance < 0.3].bincount(minlength=8)  # the centres are 0.77 apart
    assert int(close.min()) > 4000 / 8 / 4
    assert int(close.sum()) > 0.6 * 4000


def test_the_curves_have_the_steps_up_to_the_last() -> None:
    sampler = fit_latent_sampler(None, X, method="wgan-gp", steps=205, critic_steps=1, hidden=(4,))
    assert sampler.history["step"][-1] == 205
    assert len(sampler.history["step"]) <= 103


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every
def test_divergence_keeps_the_last_finite_generator(
    method: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls: Any = {"wgan-gp": WGANGP, "gan": GAN, "r3gan": R3GAN}[method]
    original, calls, after = cls.critic_loss, 0, 104

    def broken(self: Any, *arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        value: Tensor = original(self, *arguments) * (bad if calls > after else 1)
        return value

    monkeypatch.setattr(cls, "critic_loss", broken)
    options: dict[str, Any] = {"steps": 205, "critic_steps": 1, "hidden": (8,)}
    with pytest.raises(DivergenceError, match="lower learning_rate or raise penalty") as e:
        fit_latent_sampler(None, X, method=method, **options)
    sampler = e.value.sampler
    assert sampler is not None
    assert sampler.sample(100).isfinite().all()
    assert after - 5 <= sampler.history["step"][-1] <= after
    assert all(math.isfinite(v) for curve in sampler.history.values() for v in curve)
