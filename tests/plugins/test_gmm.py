"""The mixture and the Gaussian: against scikit-learn, SciPy and closed forms, with and without conditions."""

import json
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture as Reference
from torch import Tensor

from latentfit.plugin import DataError, DivergenceError, Run, Sampler
from latentfit_gmm import GMM, Gaussian

NOTHING = torch.empty(0, 0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Four correlated Gaussians in three dimensions, well apart, of weights 1 to 4, and which one: (n,)."""
    draw = generator(seed)
    which = torch.multinomial(torch.tensor([1.0, 2, 3, 4]), n, True, generator=draw)
    means = 4 * torch.tensor([[1.0, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])
    noise = torch.randn(n, 3, generator=draw) @ torch.tensor(
        [[1.0, 0.4, 0.2], [0, 0.6, 0.1], [0, 0, 1]]
    )
    return means[which] + noise, which


def fitted(
    sampler: Sampler,
    rows: Tensor,
    held_out: Tensor = NOTHING,
    *,
    kind: Any = None,
    context: Tensor | None = None,
    held_out_context: Tensor | None = None,
    **arguments: Any,
) -> tuple[Any, Run]:
    """Build and fit as latentfit does; return the sampler and its run."""
    sampler.context_kind, sampler.context_dim = kind, 0 if context is None else context.shape[1]
    sampler.build(rows.shape[1], len(rows))
    if held_out is NOTHING:
        held_out, held_out_context = rows[:0], None if context is None else context[:0]
    run = Run(generator(1), context=context, held_out_context=held_out_context, **arguments)
    sampler.fit(rows, held_out, run)
    json.dumps(run.facts, allow_nan=False)
    assert len({len(curve) for curve in run.history.values()}) <= 1
    assert np.isfinite([v for curve in run.history.values() for v in curve]).all()
    return sampler.requires_grad_(False), run


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).float()


def test_a_mixture_is_as_likely_as_scikit_learns() -> None:
    draw = generator()
    centres = 2 * torch.randn(12, 4, generator=draw)
    x = centres[torch.randint(12, (6000,), generator=draw)] + torch.randn(6000, 4, generator=draw)
    train, held_out, test = x[:3000], x[3000:3500], x[3500:]
    theirs = Reference(12, random_state=0).fit(train.numpy()).score(test.numpy())
    for given in (held_out, NOTHING):
        model, run = fitted(GMM(components=12), train, given)
        assert float(model.log_prob(test).mean()) > theirs - 0.02
        assert run.facts["components"] == 12


def test_the_density_is_that_of_the_components_in_use() -> None:
    x, _ = clusters(1000)
    model, run = fitted(GMM(), x[:900], x[900:])
    used = run.facts["components"]
    assert used < len(model.mixture.means)
    same = Reference(used, covariance_type="full")
    part = model.mixture.head(components=used)
    upper = part.off_diagonal.double().triu(1) + torch.diag_embed(part.log_diagonal.double().exp())
    same.weights_ = part.logits.double().softmax(0).numpy()
    same.means_, same.precisions_cholesky_ = part.means.double().numpy(), upper.numpy()
    expected = same.score_samples(x.double().numpy())
    np.testing.assert_allclose(model.log_prob(x).numpy(), expected, rtol=1e-4, atol=1e-4)
    drawn = model.sample(50, generator())
    for parameter in model.mixture.parameters():  # what is not in use is not looked at
        parameter[used:] = math.nan
    np.testing.assert_allclose(model.log_prob(x).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.sample(50, generator()), drawn)


@pytest.mark.parametrize("held_out", [True, False])
def test_the_number_of_components_is_found(held_out: bool) -> None:
    x, _ = clusters(3000)
    arguments = (x[:2500], x[2500:]) if held_out else (x,)
    model, run = fitted(GMM(), *arguments)
    assert run.facts["components"] == 4
    scores = run.facts["scores"]
    assert {"1", "2", "4", "8"} <= set(scores)
    assert max(scores, key=scores.get) == "4"
    assert str(len(model.mixture.means)) not in scores  # larger ones were not even tried
    named = "held-out rows" if held_out else "a tenth of the training rows"
    assert run.facts["chosen_by"] == named
    if not held_out:  # in the end it is fitted to all rows
        assert (model.mixture.head(components=4).logits.softmax(0) * 3000).sum() == 3000
        theirs = Reference(4, random_state=0, n_init=3).fit(x.numpy()).score(x.numpy())
        assert float(model.log_prob(x).mean()) == pytest.approx(theirs, abs=0.01)


def test_the_training_curve_shows_every_candidate_and_rises() -> None:
    x, _ = clusters(2000)
    _, run = fitted(GMM(), x[:1800], x[1800:])
    assert set(run.history) == {"step", "train_loss", "validation_loss", "components"}
    assert set(map(int, run.facts["scores"])) == set(map(int, run.history["components"]))
    assert run.history["step"] == sorted(run.history["step"])
    best = -run.facts["scores"][str(run.facts["components"])]
    assert min(run.history["validation_loss"]) == pytest.approx(best)


def test_shrinkage_follows_the_held_out_rows() -> None:
    draw = generator()
    # Thin clusters, each turned its own way: what is common to all says nothing of one.
    turns = torch.linalg.qr(torch.randn(6, 4, 4, generator=draw)).Q
    which = torch.randint(6, (3600,), generator=draw)
    noise = torch.randn(3600, 4, generator=draw) * torch.tensor([1.0, 1, 0.03, 0.03])
    thin = 6 * turns[which, 0] + torch.einsum("nij,nj->ni", turns[which], noise)
    # Few rows of one shape: nearly all that is known of a component is known from the others.
    equal = 3 * torch.randn(12, 4, generator=draw)[torch.randint(12, (3600,), generator=draw)]
    equal = equal + 0.5 * torch.randn(3600, 4, generator=draw)
    for x, components, n, low, high in ((thin, 6, 3000, 0, 0.03), (equal, 12, 200, 0.3, 20)):
        scores = {}
        for shrinkage in (None, 0.0, 0.3, 10.0):
            sampler = GMM(components=components, shrinkage=shrinkage)
            model, run = fitted(sampler, x[:n], x[n : n + 300])
            scores[shrinkage] = float(model.log_prob(x[n + 300 :]).mean())
            if shrinkage is None:
                assert low < run.facts["shrinkage"] < high
        assert scores[None] > max(scores.values()) - 0.06
        assert scores[None] > min(scores.values()) + 0.3


def test_overfitting_is_stopped_at_the_best_step() -> None:
    x = torch.randn(200, 4, generator=generator())
    held_out = torch.randn(2000, 4, generator=generator(2))
    model, run = fitted(GMM(components=40, shrinkage=0.02, tolerance=0), x, held_out)
    scores = [-loss for loss in run.history["validation_loss"]]
    assert scores[-1] < max(scores)
    got = float(model.log_prob(held_out).mean())
    assert got == pytest.approx(max(scores), abs=0.01)


def test_max_seconds_ends_the_fit() -> None:
    x = torch.randn(20_000, 8, generator=generator()).abs()
    began = time.monotonic()
    model, run = fitted(GMM(tolerance=0), x[:18_000], x[18_000:], max_seconds=0.5)
    assert time.monotonic() - began < 3
    assert model.log_prob(x).isfinite().all()
    assert run.facts["components"] < len(model.mixture.means)


def test_rows_that_overflow_are_refused() -> None:
    with pytest.raises(DivergenceError, match="Expected a finite likelihood; got .* outliers"):
        fitted(GMM(), 1e30 * torch.randn(100, 2, generator=generator()))


def test_classes_share_components_and_have_their_own_weights() -> None:
    x, which = clusters(4000)
    context = one_hot(
        which // 2, 3
    )  # two clusters in each of two classes, and a class without rows
    model, run = fitted(
        GMM(),
        x[:3500],
        x[3500:],
        kind="classes",
        context=context[:3500],
        held_out_context=context[3500:],
    )
    assert run.facts["components"] == 4
    for label in range(2):
        own = x[which // 2 == label]
        given = one_hot(torch.tensor([label]), 3)
        theirs = Reference(2, random_state=0, n_init=3).fit(own.numpy()).score(own.numpy())
        got = float(model.log_prob(own, given.expand(len(own), -1)).mean())
        assert got == pytest.approx(theirs, abs=0.03)
        drawn = model.sample(500, generator(), given.expand(500, -1))
        nearest = torch.cdist(drawn, torch.stack([x[which == k].mean(0) for k in range(4)]))
        assert (nearest.argmin(1) // 2 == label).float().mean() > 0.99
    empty = one_hot(torch.tensor([2]), 3).expand(len(x), -1)
    torch.testing.assert_close(model.log_prob(x, empty), model.log_prob(x))


def joint(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts (n, 2) and rows (n, 3) that are Gaussian together, and the covariance of both."""
    factor = torch.randn(5, 5, generator=generator(9)) + torch.eye(5)
    both = torch.randn(n, 5, generator=generator(seed)) @ factor
    return both[:, :2], both[:, 2:], factor.T @ factor


@pytest.mark.parametrize("method", ["gmm", "gaussian"])
def test_under_a_vector_a_gaussian_is_linear_regression(method: str) -> None:
    context, rows, _ = joint(2000)
    sampler = GMM(components=1) if method == "gmm" else Gaussian(shrinkage=0)
    model, _ = fitted(sampler, rows, kind="vector", context=context)
    design = np.c_[np.ones(2000), context.double().numpy()]
    slope, *_ = np.linalg.lstsq(design, rows.double().numpy(), rcond=None)
    residual = rows.double().numpy() - design @ slope
    normal = multivariate_normal(np.zeros(3), residual.T @ residual / 2000)
    expected = normal.logpdf(residual)
    np.testing.assert_allclose(
        model.log_prob(rows, context).numpy(), expected, rtol=5e-3, atol=0.02
    )
    at = torch.tensor([[1.0, -0.5]]).expand(20_000, -1)
    drawn = model.sample(20_000, generator(), at).double().numpy()
    spread = residual.std(0)
    mean = np.array([1.0, 1.0, -0.5]) @ slope
    np.testing.assert_array_less(np.abs(drawn.mean(0) - mean), 5 * spread / 20_000**0.5 + 0.01)
    np.testing.assert_allclose(np.cov(drawn.T), normal.cov, atol=0.05 * spread.max() ** 2)


def test_under_a_vector_the_mixture_may_have_any_shape() -> None:
    draw = generator()
    angle = 2 * math.pi * torch.rand(6000, 1, generator=draw)
    radius = 1 + 0.1 * torch.randn(6000, 1, generator=draw)
    context, rows = radius * angle.cos(), radius * angle.sin()  # under x = 0, y is near 1 or -1
    model, run = fitted(
        GMM(),
        rows[:5000],
        rows[5000:],
        kind="vector",
        context=context[:5000],
        held_out_context=context[5000:],
    )
    drawn = model.sample(2000, generator(), torch.zeros(2000, 1))[:, 0]
    assert (drawn.abs() - 1).abs().median() < 0.12
    assert 800 < (drawn > 0).sum() < 1200
    axis = torch.linspace(-3, 3, 2001)[:, None]
    for given in (-1.0, 0.0, 0.5):
        density = model.log_prob(axis, torch.full_like(axis, given)).exp()
        assert float(torch.trapezoid(density, axis[:, 0])) == pytest.approx(1, abs=1e-3)
    best = run.facts["scores"][str(run.facts["components"])]
    assert float(model.log_prob(rows[5000:], context[5000:]).mean()) == pytest.approx(
        best, abs=1e-3
    )


# --- the Gaussian ---


def test_the_gaussian_is_that_of_scipy() -> None:
    _, x, _ = joint(500)
    model, _ = fitted(Gaussian(shrinkage=0), x)
    covariance = np.cov(x.double().numpy().T, bias=True)
    normal = multivariate_normal(x.double().numpy().mean(0), covariance)
    expected = normal.logpdf(x.double().numpy())
    np.testing.assert_allclose(model.log_prob(x).numpy(), expected, rtol=1e-3, atol=1e-3)
    drawn = model.sample(50_000, generator()).double().numpy()
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.03 * covariance.max())


def test_each_class_has_its_gaussian_and_few_rows_lean_on_the_others() -> None:
    x, which = clusters(5000)
    few = torch.cat([(which == k).nonzero()[: 1 if k == 2 else 5000, 0] for k in range(4)])
    x, which = x[few], which[few]
    model, _ = fitted(Gaussian(), x, kind="classes", context=one_hot(which, 5))
    covariances = model.factor.double() @ model.factor.double().mT
    for k in (0, 1, 3):
        own = x[which == k].double()
        torch.testing.assert_close(model.mean[k].double(), own.mean(0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(covariances[k], own.T.cov(), atol=0.05, rtol=0.02)
    # The class of one row has the covariance within the others, and that without rows is all of them.
    torch.testing.assert_close(model.mean[2], x[which == 2][0])
    torch.testing.assert_close(covariances[2], 0.75 * covariances[0], atol=0.1, rtol=0)
    torch.testing.assert_close(model.mean[4], x.mean(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(covariances[4], x.double().T.cov(), atol=0.02, rtol=1e-3)
    labels = torch.arange(5).repeat(2000)
    drawn = model.sample(10_000, generator(), one_hot(labels, 5))
    means = torch.stack([drawn[labels == k].mean(0) for k in range(5)])
    torch.testing.assert_close(means, model.mean, atol=0.4, rtol=0)
    scored = model.log_prob(drawn[:25], one_hot(labels[:25], 5))
    for row, label, got in zip(drawn[:25], labels[:25].tolist(), scored, strict=True):
        normal = multivariate_normal(model.mean[label].double(), covariances[label])
        assert float(got) == pytest.approx(normal.logpdf(row.double()), abs=1e-3)


def test_many_conditions_do_not_make_a_gaussian_too_sure() -> None:
    # 150 columns that mean nothing explain most of 200 training rows, and none of fresh ones.
    context, rows = (
        torch.randn(2200, 150, generator=generator()),
        torch.randn(2200, 2, generator=generator(3)),
    )
    model, _ = fitted(Gaussian(), rows[:200], kind="vector", context=context[:200])
    errors = rows[200:] - context[200:] @ model.slope - model.mean
    expected = errors.square().mean(0).sqrt()
    torch.testing.assert_close(model.factor[0].square().sum(1).sqrt(), expected, atol=0, rtol=0.25)


def test_a_ridge_that_is_too_small_is_told() -> None:
    # Of two equal columns rounding may go the right way, of forty not.
    x = torch.randn(50, 1, generator=generator()).expand(-1, 40)
    with pytest.raises(DataError, match="positive definite.*ridge=1e-30. Raise ridge"):
        fitted(Gaussian(ridge=1e-30, shrinkage=0), x)


# --- both ---

METHODS: dict[str, Any] = {"gmm": GMM, "gmm, 5": lambda: GMM(components=5), "gaussian": Gaussian}

ODD = {
    "one row": torch.tensor([[0.3, -1.0]]),
    "two rows": torch.tensor([[0.3, -1.0], [1.0, 2]]),
    "one column": torch.randn(300, 1, generator=generator()),
    "equal columns": torch.randn(300, 1, generator=generator()).expand(-1, 3),
    "equal rows": torch.tensor([[0.3, -1.0], [1.0, 2]]).repeat(100, 1),
    "more columns than rows": torch.randn(10, 30, generator=generator()),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", [None, "classes", "vector"])
def test_odd_rows_give_finite_samples_and_densities(name: str, odd: str, kind: Any) -> None:
    x = ODD[odd].contiguous()
    n = len(x)
    context = {
        None: None,
        "classes": one_hot(torch.arange(n) % 3, 4),
        "vector": torch.linspace(-1, 1, n)[:, None].repeat(1, 2),
    }[kind]
    model, _ = fitted(METHODS[name](), x, kind=kind, context=context)
    drawn = model.sample(n, generator(), context)
    assert drawn.shape == x.shape
    assert drawn.isfinite().all()
    assert drawn.abs().max() < 20
    assert model.log_prob(x, context).isfinite().all()
    assert model.log_prob(x, context).mean() > -200


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [None, "classes", "vector"])
def test_the_state_fits_a_freshly_built_sampler(name: str, kind: Any) -> None:
    x, which = clusters(400)
    context = {None: None, "classes": one_hot(which, 4), "vector": x[:, :1].clone()}[kind]
    model, _ = fitted(METHODS[name](), x, kind=kind, context=context)
    fresh = METHODS[name]()
    fresh.context_kind, fresh.context_dim = model.context_kind, model.context_dim
    fresh.build(3, 400)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(
        fresh.sample(20, generator(), context if context is None else context[:20]),
        model.sample(20, generator(), context if context is None else context[:20]),
    )
    assert torch.equal(fresh.log_prob(x, context), model.log_prob(x, context))
