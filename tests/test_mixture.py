"""The Gaussian mixture: its density and EM against scikit-learn's, its samples against their moments."""

import resource
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
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


def random_mixture(dim: int, components: int) -> GaussianMixture:
    model = GaussianMixture(dim, components)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=generator(dim))
    return model.requires_grad_(False)


def reference(model: GaussianMixture) -> Any:
    """scikit-learn's mixture with the same parameters."""
    same = Reference(model.components, covariance_type="full")
    same.weights_ = model.logits.double().softmax(0).numpy()
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
    model = GaussianMixture(3, 4)
    model.fit(torch.randn(100, 3, generator=generator()), generator())
    model.log_prob(torch.randn(50, 3, generator=generator(1))).mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


def test_only_the_parameters_are_kept() -> None:
    names = set(GaussianMixture(3, 4).state_dict())
    assert names == {"logits", "means", "log_diagonal", "off_diagonal"}


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
