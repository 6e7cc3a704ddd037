"""The Gaussian mixture: its density and EM against scikit-learn's, its conditionals against closed forms."""

import resource
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture as Reference
from torch import Tensor

from latentfit import em, mixture
from latentfit.mixture import GaussianMixture, mixture_size


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def known(n: int, seed: int = 0) -> Tensor:
    """Three Gaussians of different weight, place and shape in two dimensions."""
    draw = generator(seed)
    which = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, True, generator=draw)
    factors = torch.tensor([[[1, 0], [0, 0.3]], [[0.4, 0.3], [0, 0.4]], [[0.2, 0], [0.5, 1]]])
    means = torch.tensor([[-3.0, 0], [2, 2], [2, -3]])
    noise = torch.randn(n, 2, generator=draw)
    return means[which] + torch.einsum("nij,nj->ni", factors[which], noise)


def random_mixture(dim: int, components: int, context_dim: int = 0) -> GaussianMixture:
    model = GaussianMixture(dim, components, context_dim)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator(dim))
    return model.requires_grad_(False)


def reference(model: GaussianMixture, context: Tensor | None = None) -> Any:
    """scikit-learn's mixture with the same parameters, and the weights of one context (C,)."""
    same = Reference(model.components, covariance_type="full")
    logits = model.logits.double()
    if context is not None:
        logits = logits + context.double() @ model.gate.double()
    same.weights_ = logits.softmax(0).numpy()
    same.means_ = model.means.double().numpy()
    upper = model.off_diagonal.double().triu(1) + torch.diag_embed(
        model.log_diagonal.double().exp()
    )
    same.precisions_cholesky_ = upper.numpy()
    same.covariances_ = torch.linalg.inv(upper @ upper.mT).numpy()
    return same


@pytest.mark.parametrize("dim, components", [(1, 1), (1, 4), (2, 3), (7, 20)])
def test_log_prob_is_that_of_scikit_learn(dim: int, components: int) -> None:
    model = random_mixture(dim, components)
    x = 3 * torch.randn(200, dim, generator=generator())
    expected = reference(model).score_samples(x.double().numpy())
    np.testing.assert_allclose(model.log_prob(x).numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dim, components", [(1, 3), (3, 4)])
def test_samples_have_the_mixtures_moments(dim: int, components: int) -> None:
    model, n = random_mixture(dim, components), 200_000
    same = reference(model)
    mean = same.weights_ @ same.means_
    centred = same.means_ - mean
    covariance = np.einsum("k,kij->ij", same.weights_, same.covariances_)
    covariance += np.einsum("k,ki,kj->ij", same.weights_, centred, centred)
    x = model.sample(n, generator()).double().numpy()
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 5 * spread / n**0.5)
    got = np.cov(x.T).reshape(dim, dim) / np.outer(spread, spread)
    np.testing.assert_allclose(got, covariance / np.outer(spread, spread), atol=0.05)


def test_samples_come_in_random_order_and_by_the_generator() -> None:
    model = GaussianMixture(1, 2).requires_grad_(False)
    model.means.copy_(torch.tensor([[-9.0], [9.0]]))
    x = model.sample(1000, generator(1))
    assert torch.equal(x, model.sample(1000, generator(1)))
    assert not torch.equal(x, model.sample(1000, generator(2)))
    changes = int((x[1:].sign() != x[:-1].sign()).sum())
    assert 400 < changes < 600  # scikit-learn's come grouped by component
    assert model.sample(0, generator()).shape == (0, 1)


def test_em_is_as_likely_as_scikit_learns() -> None:
    x, fresh = known(3000, 1), known(3000, 2)
    model = GaussianMixture(2, 3).requires_grad_(False)
    model.fit(x, generator(), steps=30)
    theirs = Reference(3, random_state=0, n_init=3).fit(x.numpy()).score(fresh.numpy())
    assert float(model.log_prob(fresh).mean()) == pytest.approx(theirs, abs=0.01)
    weights = model.logits.softmax(0).sort().values
    torch.testing.assert_close(weights, torch.tensor([0.2, 0.3, 0.5]), atol=0.05, rtol=0)


def test_one_component_is_the_sample_mean_and_covariance() -> None:
    x = known(500)
    model = GaussianMixture(2, 1).requires_grad_(False)
    model.fit(x, generator())
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov(correction=0))
    torch.testing.assert_close(model.log_prob(x), normal.log_prob(x), atol=1e-3, rtol=1e-4)


def test_the_same_seed_gives_the_same_fit_and_chunks_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = known(400)
    fits = []
    for chunk in (2**20, 2**20, 37):
        monkeypatch.setattr(em, "_NUMBERS", {"cpu": chunk})
        monkeypatch.setattr(mixture, "_NUMBERS", chunk)
        model = GaussianMixture(2, 5).requires_grad_(False)
        model.fit(x, generator(3))
        fits.append(model.log_prob(x))
    assert torch.equal(fits[0], fits[1])
    torch.testing.assert_close(fits[0], fits[2], atol=1e-3, rtol=1e-3)


def test_em_stops_when_it_is_told_to() -> None:
    x, asked = known(400), []
    fits = []
    for arguments in (
        {"steps": 2},
        {"steps": 50, "stop": lambda: asked.append(1) or len(asked) > 2},
    ):
        model = GaussianMixture(2, 3).requires_grad_(False)
        model.fit(x, generator(), **arguments)
        fits.append(model.log_prob(x))
    assert torch.equal(fits[0], fits[1])


@pytest.mark.parametrize("shift", [-1e3, 1e5])
def test_a_fit_follows_the_data_however_far_from_zero(shift: float) -> None:
    x = known(400) * 16  # so that float32 still resolves them there
    scores = []
    for moved in (x, x + shift):
        model = GaussianMixture(2, 3).requires_grad_(False)
        model.fit(moved, generator())
        scores.append(model.log_prob(moved).mean())
    torch.testing.assert_close(scores[0], scores[1], atol=0.02, rtol=0)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("dim, components", [(1, 3), (4, 3), (100, 2)])
def test_an_em_step_is_that_of_scikit_learn(dim: int, components: int) -> None:
    # Above 96 columns the step is computed another way.
    x = torch.randn(500, dim, generator=generator()).abs()
    model = GaussianMixture(dim, components).requires_grad_(False)
    model.fit(x, generator(), steps=0)
    theirs = reference(model)
    theirs = Reference(
        components,
        weights_init=theirs.weights_,
        means_init=theirs.means_,
        precisions_init=theirs.precisions_cholesky_ @ theirs.precisions_cholesky_.swapaxes(1, 2),
        reg_covar=0,
        max_iter=1,
    ).fit(x.double().numpy())
    assert model.improve(x, shrinkage=0) == pytest.approx(theirs.lower_bound_, abs=1e-4)
    got = reference(model)
    for name in ("weights_", "means_", "covariances_"):
        ours, expected = getattr(got, name), getattr(theirs, name)
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dim", [1, 3, 100])
def test_em_without_shrinkage_never_lowers_the_likelihood(dim: int) -> None:
    x = torch.randn(800, dim, generator=generator()).abs()
    model = GaussianMixture(dim, 4).requires_grad_(False)
    model.start(x, generator())
    steps = [model.improve(x, shrinkage=0) for _ in range(25)]
    assert min(np.diff(steps)) > -1e-4
    assert steps[-1] > steps[0] + 0.02


@pytest.mark.parametrize("dim, components", [(1, 2), (3, 5), (100, 3)])
def test_the_fast_mean_is_that_of_the_exact_log_densities(dim: int, components: int) -> None:
    model, x = random_mixture(dim, components, 2), torch.randn(300, dim, generator=generator())
    onehot, vector = torch.eye(2).repeat(150, 1), torch.randn(300, 2, generator=generator(1))
    for context in (None, onehot, vector):
        exact = float(model.log_prob(x, context).double().mean())
        assert model.mean_log_prob(x, context) == pytest.approx(exact, rel=1e-5)
    model.logits.zero_()
    model.gate.zero_()
    before = float(model.log_prob(x).double().mean())
    assert model.improve(x) == pytest.approx(before, rel=1e-5)


def test_thin_components_are_fitted_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    # Columns that nearly agree: in float32 their squares and products cancel to nothing.
    x = torch.randn(2000, 1, generator=generator()).expand(-1, 2)
    x = x + 2e-3 * torch.randn(2000, 2, generator=generator(1))
    model = GaussianMixture(2, 3).requires_grad_(False)
    model.fit(x, generator())
    exact = float(model.double().log_prob(x.double()).mean())
    assert model.float().mean_log_prob(x) == pytest.approx(exact, abs=1e-4)
    theirs = Reference(1, reg_covar=2e-6).fit(x.double().numpy()).score(x.double().numpy())
    assert exact > theirs - 0.02
    monkeypatch.setattr(mixture, "_SINGLE", float("inf"))
    assert model.mean_log_prob(x) != pytest.approx(exact, abs=3e-4)


def test_kmeans_is_as_good_as_scikit_learns() -> None:
    x = torch.randn(3000, 3, generator=generator()).abs()
    theirs = KMeans(30, n_init=3, random_state=0).fit(x.numpy()).inertia_
    ours = torch.cdist(x, em.kmeans(x, 30, generator())).amin(1).square().sum()
    assert float(ours) < 1.1 * theirs


# --- contexts ---


@pytest.mark.parametrize("kind", ["classes", "vector"])
def test_a_context_changes_the_weights_and_nothing_else(kind: str) -> None:
    model = random_mixture(3, 5, context_dim=2)
    contexts = torch.eye(2) if kind == "classes" else torch.tensor([[0.5, -2.0], [1.0, 3.0]])
    x = torch.randn(50, 3, generator=generator())
    together = model.log_prob(x.repeat(2, 1), contexts.repeat_interleave(50, 0)).view(2, -1)
    for context, got in zip(contexts, together, strict=True):
        expected = reference(model, context).score_samples(x.double().numpy())
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_rows_drawn_under_contexts_are_each_of_their_own() -> None:
    model = GaussianMixture(1, 3, context_dim=2).requires_grad_(False)
    model.means.copy_(torch.tensor([[-9.0], [0], [9]]))
    weights = torch.tensor([[0.7, 0.3, 1e-9], [1e-9, 0.5, 0.5]])
    model.gate.copy_(weights.log())
    n = 20_000
    labels = torch.randint(2, (n,), generator=generator())
    context = torch.eye(2)[labels]
    x = model.sample(n, generator(1), context)
    assert torch.equal(x, model.sample(n, generator(1), context))
    component = (x / 9).round().long()[:, 0] + 1
    for c in range(2):
        share = component[labels == c].bincount(minlength=3) / (labels == c).sum()
        torch.testing.assert_close(share, weights[c], atol=0.02, rtol=0)
    assert model.sample(0, generator(), context[:0]).shape == (0, 1)


def test_em_finds_the_weights_of_each_class() -> None:
    draw = generator()
    weights = torch.tensor([[0.8, 0.2, 0.0], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])
    labels = torch.randint(3, (6000,), generator=draw)
    component = torch.multinomial(weights[labels], 1, generator=draw)[:, 0]
    means = torch.tensor([[-6.0, 0], [0, 6], [6, 0]])
    x = means[component] + torch.randn(6000, 2, generator=draw)
    model = GaussianMixture(2, 3, context_dim=4).requires_grad_(False)  # one class has no rows
    model.fit(x, generator(), context=torch.eye(4)[labels])
    order = torch.cdist(means, model.means).argmin(1)
    got = (model.logits + model.gate).softmax(1)[:, order]
    torch.testing.assert_close(got[:3], weights, atol=0.03, rtol=0)
    overall = model.logits.softmax(0)[order]
    torch.testing.assert_close(overall, component.bincount() / 6000, atol=0.01, rtol=0)
    torch.testing.assert_close(got[3], overall)
    # The classes' weights are those of the likelihood's maximum, not only of the right order.
    best = model.mean_log_prob(x, torch.eye(4)[labels])
    model.gate.mul_(0.9)
    assert model.mean_log_prob(x, torch.eye(4)[labels]) < best


def test_a_vector_leaves_the_gate_to_the_gradient() -> None:
    x, context = known(300), torch.randn(300, 2, generator=generator())
    model, plain = GaussianMixture(2, 4, context_dim=2), GaussianMixture(2, 4)
    model.fit(x, generator(), context=context)
    plain.fit(x, generator())
    assert (model.gate == 0).all()
    assert torch.equal(model.log_prob(x, context), plain.log_prob(x))
    model.log_prob(x, context).mean().backward()
    assert model.gate.grad.abs().max() > 0
    with pytest.raises(ValueError, match="no context, because context_dim is 0; got one of.*2"):
        plain.log_prob(x, context)


# --- marginals and conditionals ---


@pytest.mark.parametrize("columns", [1, 2])
def test_the_head_is_the_marginal_of_the_first_columns(columns: int) -> None:
    model = random_mixture(3, 2)
    same, head = reference(model), model.head(columns=columns)
    x = torch.randn(50, columns, generator=generator())
    expected = sum(
        weight * multivariate_normal(mean[:columns], covariance[:columns, :columns]).pdf(x)
        for weight, mean, covariance in zip(
            same.weights_, same.means_, same.covariances_, strict=True
        )
    )
    np.testing.assert_allclose(head.log_prob(x).numpy(), np.log(expected), rtol=1e-4, atol=1e-4)


def test_the_head_shares_storage() -> None:
    model, other = GaussianMixture(2, 5, context_dim=2), random_mixture(2, 3, context_dim=2)
    model.head(components=3).load_state_dict(other.state_dict())
    x, context = known(20), torch.eye(2).repeat(10, 1)
    assert torch.equal(model.head(components=3).log_prob(x, context), other.log_prob(x, context))
    assert (model.means[3:] == 0).all()


def test_as_many_components_are_used_as_held_out_rows_support() -> None:
    x, held_out = known(90), known(500, seed=1)
    model = GaussianMixture(2, 32).requires_grad_(False)
    used = model.fit_supported(x, generator(), held_out)
    assert 2 <= used <= 8
    assert (model.logits[used:] == -1e4).all()
    assert model.sample(5000, generator()).isfinite().all()
    best = model.mean_log_prob(held_out)
    for size in (used // 2, 2 * used):
        other = GaussianMixture(2, size).requires_grad_(False)
        other.fit(x, generator(size))
        assert best > other.mean_log_prob(held_out) - 0.1
    assert GaussianMixture(2, 32).fit_supported(x, generator(), held_out[:0]) == 32
    assert GaussianMixture(2, 32).fit_supported(x, generator(), held_out, stop=lambda: True) == 32


@pytest.mark.parametrize("n", [1, 7, 4000])
def test_samples_are_the_same_in_a_batch_and_one_component_at_a_time(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_mixture(7, 20)
    drawn = model.sample(n, generator())
    monkeypatch.setattr(mixture, "_NUMBERS", 0)
    torch.testing.assert_close(model.sample(n, generator()), drawn)


def test_completing_a_gaussian_is_linear_regression() -> None:
    model, n = random_mixture(4, 1), 40_000
    covariance, mean = torch.from_numpy(reference(model).covariances_[0]), model.means[0].double()
    given = torch.tensor([0.7, -1.3])
    rows = model.complete(given.expand(n, -1), generator())
    assert torch.equal(rows[:, :2], given.expand(n, -1))
    rows = rows.double()
    slope = torch.linalg.solve(covariance[:2, :2], covariance[:2, 2:])
    expected = mean[2:] + (given - mean[:2]) @ slope
    spread = covariance[2:, 2:] - covariance[2:, :2] @ slope
    deviation = spread.diagonal().sqrt()
    assert ((rows[:, 2:].mean(0) - expected).abs() < 5 * deviation / n**0.5).all()
    got = rows[:, 2:].T.cov() / deviation.outer(deviation)
    torch.testing.assert_close(got, spread / deviation.outer(deviation), atol=0.03, rtol=0)


def test_completing_a_mixture_weighs_components_by_what_is_given() -> None:
    model = GaussianMixture(2, 2).requires_grad_(False)
    model.means.copy_(torch.tensor([[-1.0, -50], [1, 50]]))
    model.logits.copy_(torch.tensor([0.25, 0.75]).log())
    given = torch.tensor([[-1.0], [0.0], [0.4]])
    rows = model.complete(given.repeat(20_000, 1), generator()).view(-1, 3, 2)
    odds = 3 * torch.exp(-0.5 * (given - 1) ** 2 + 0.5 * (given + 1) ** 2)[:, 0]
    torch.testing.assert_close(
        (rows[:, :, 1] > 0).float().mean(0), odds / (1 + odds), atol=0.02, rtol=0
    )
    assert model.complete(given[:0], generator()).shape == (0, 2)


DEGENERATE = {
    "one row": torch.tensor([[1.0, 2, 3]]),
    "two rows": torch.tensor([[1.0, 2, 3], [4, 5, 6]]),
    "all equal": torch.ones(50, 3),
    "fewer points than components": torch.eye(3).repeat(20, 1),
    "a constant column": torch.randn(50, 3, generator=generator()) * torch.tensor([1.0, 0, 1]),
    "a line": torch.linspace(-1, 1, 50)[:, None].expand(50, 3),
    "an outlier": torch.cat((torch.randn(50, 3, generator=generator()), torch.full((1, 3), 1e4))),
    "tiny": torch.randn(50, 3, generator=generator()) * 1e-12,
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("components", [1, 7])
def test_degenerate_rows_give_a_finite_mixture(kind: str, components: int) -> None:
    x = DEGENERATE[kind]
    model = GaussianMixture(3, components)
    model.fit(x, generator())
    assert model.log_prob(x).isfinite().all()
    drawn = model.sample(1000, generator()).detach()
    assert drawn.isfinite().all()
    wide = x.amax(0) - x.amin(0)
    assert (drawn <= x.amax(0) + 0.1 + 5 * wide).all()
    assert (drawn >= x.amin(0) - 0.1 - 5 * wide).all()


def test_all_its_parameters_learn() -> None:
    model = GaussianMixture(3, 4, context_dim=2)
    context = torch.randn(50, 2, generator=generator(2))
    model.fit(torch.randn(100, 3, generator=generator()), generator())
    model.log_prob(torch.randn(50, 3, generator=generator(1)), context).mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


def test_only_the_parameters_are_kept() -> None:
    names = set(GaussianMixture(3, 4).state_dict())
    assert names == {"logits", "means", "log_diagonal", "off_diagonal"}
    assert set(GaussianMixture(3, 4, context_dim=1).state_dict()) == names | {"gate"}


@pytest.mark.parametrize("n, dim", [(1, 1), (2, 3), (100, 3), (60_000, 10), (10**6, 2), (500, 700)])
def test_the_size_leaves_a_row_for_each_parameter(n: int, dim: int) -> None:
    size = mixture_size(n, dim)
    assert 1 <= size <= 100
    assert size == 1 or size * dim * (dim + 3) / 2 <= n
    assert mixture_size(n, dim, most=5) == min(5, size)


def test_many_dimensions_fit_in_memory() -> None:
    # Rows x D x D at once would be 8.6 GB here.
    program = (
        "import resource, torch\n"
        "from latentfit.mixture import GaussianMixture\n"
        "x = torch.randn(8192, 512)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, -1))\n"
        "GaussianMixture(512, 1).fit(x, torch.Generator(), steps=1)\n"
    )
    if not sys.platform.startswith("linux") or resource.getrlimit(resource.RLIMIT_AS)[1] != -1:
        pytest.skip("needs Linux without a limit on memory")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
