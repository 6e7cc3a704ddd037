"""The kernel density estimate: against scikit-learn, SciPy and sums that are written out."""

import json
import math
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import gaussian_kde
from sklearn.neighbors import KernelDensity
from torch import Tensor

import latentfit_kde
from latentfit.plugin import Run
from latentfit_kde import KDE

NOTHING = torch.empty(0, 0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bent(n: int, seed: int = 0) -> Tensor:
    """Rows (n, 2) along a parabola."""
    x = torch.randn(n, 2, generator=generator(seed))
    return torch.stack((x[:, 0], x[:, 0] ** 2 + 0.3 * x[:, 1]), dim=1)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).float()


def fitted(
    sampler: KDE,
    rows: Tensor,
    held_out: Tensor = NOTHING,
    *,
    kind: Any = None,
    context: Tensor | None = None,
    held_out_context: Tensor | None = None,
    **arguments: Any,
) -> tuple[KDE, Run]:
    """Build and fit as latentfit does; return the sampler and its run."""
    sampler.context_kind, sampler.context_dim = kind, 0 if context is None else context.shape[1]
    sampler.build(rows.shape[1], len(rows))
    if held_out is NOTHING:
        held_out, held_out_context = rows[:0], None if context is None else context[:0]
    run = Run(generator(1), context=context, held_out_context=held_out_context, **arguments)
    sampler.fit(rows, held_out, run)
    json.dumps(run.facts, allow_nan=False)
    return sampler, run


@pytest.mark.parametrize("bandwidth", [0.02, 0.3, 2.0])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_the_density_is_that_of_scikit_learn(bandwidth: float, shift: float) -> None:
    x, at = bent(300) + shift, bent(200, 1) + shift
    model, run = fitted(KDE(bandwidth=bandwidth), x)
    theirs = KernelDensity(bandwidth=bandwidth).fit(x.double().numpy())
    expected = theirs.score_samples(at.double().numpy())
    np.testing.assert_allclose(model.log_prob(at).numpy(), expected, rtol=1e-4, atol=2e-3)
    assert run.facts == {"bandwidth": pytest.approx(bandwidth), "points": 300}


def test_a_kernel_of_the_covariances_shape_is_scipys() -> None:
    x, at = bent(300), bent(200, 1)
    model, _ = fitted(KDE(bandwidth=0.4, kernel="covariance"), x)
    factor = 0.4 * (299 / 300) ** 0.5  # SciPy's covariance is the unbiased one
    expected = gaussian_kde(x.double().numpy().T, factor).logpdf(at.double().numpy().T)
    np.testing.assert_allclose(model.log_prob(at).numpy(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kernel", ["isotropic", "covariance"])
@pytest.mark.parametrize("held_out", [True, False])
def test_the_bandwidth_is_the_likeliest(kernel: Any, held_out: bool) -> None:
    x, other = bent(300), bent(200, 1)
    model, run = fitted(KDE(kernel=kernel), x, other if held_out else NOTHING)
    white = model.centres.double()  # where the kernel is round
    judged = model._round(other).double() if held_out else white
    squares = torch.cdist(judged, white).square().numpy()
    if not held_out:
        np.fill_diagonal(squares, np.inf)

    def score(h: float) -> float:
        return float((logsumexp(-0.5 * squares / h**2, axis=1)).mean() - 2 * math.log(h))

    best = max(score(h) for h in np.geomspace(0.02, 1, 100))
    assert score(run.facts["bandwidth"]) > best - 1e-3
    named = "held-out rows" if held_out else "kept rows, each left out"
    assert run.facts["chosen_by"] == named
    curve = run.history["validation_loss" if held_out else "train_loss"]
    # Up to the kernel's constants, which do not depend on the bandwidth.
    number = 300 if held_out else 299
    assert min(curve) == pytest.approx(math.log(number) - score(run.facts["bandwidth"]), abs=1e-3)


def test_samples_are_rows_and_noise() -> None:
    x = torch.tensor([[-30.0, 0], [0, 30], [30, 0]])
    for kernel in ("isotropic", "covariance"):
        model, _ = fitted(KDE(bandwidth=0.02, kernel=kernel), x)
        drawn = model.sample(10_000, generator())
        assert torch.equal(drawn, model.sample(10_000, generator()))
        own = torch.cdist(drawn, x).argmin(1)
        torch.testing.assert_close(
            own.bincount() / 10_000, torch.full((3,), 1 / 3), atol=0.02, rtol=0
        )
        shape = torch.eye(2) if kernel == "isotropic" else x.T.cov(correction=0)
        got = (drawn - x[own]).T.cov() / 0.02**2
        torch.testing.assert_close(got, shape, atol=0.05 * float(shape.max()), rtol=0)


def test_only_so_many_rows_are_kept() -> None:
    x = bent(500)
    model, run = fitted(KDE(points=50), x)
    assert run.facts["points"] == len(model.centres) == 50
    kept = model.centres + model.shift
    assert ((kept[:, None] - x).abs().amax(2).amin(1) < 1e-5).all()
    assert len(kept.unique(dim=0)) == 50
    assert not torch.allclose(kept, x[:50])


def test_classes_have_their_own_rows() -> None:
    x, labels = bent(300), torch.randint(3, (300,), generator=generator(1))
    context = one_hot(labels, 4)  # the last class has no rows
    model, _ = fitted(KDE(bandwidth=0.2), x, kind="classes", context=context)
    at = bent(100, 2)
    asked = torch.arange(100) % 4
    got = model.log_prob(at, one_hot(asked, 4))
    for k in range(4):
        own = x[labels == k] if k < 3 else x
        theirs = KernelDensity(bandwidth=0.2).fit(own.double().numpy())
        expected = theirs.score_samples(at[asked == k].double().numpy())
        np.testing.assert_allclose(got[asked == k].numpy(), expected, rtol=1e-4, atol=1e-3)
    narrow, _ = fitted(KDE(bandwidth=1e-4), x, kind="classes", context=context)
    asked = torch.arange(8000) % 4
    nearest = torch.cdist(narrow.sample(8000, generator(), one_hot(asked, 4)), x).argmin(1)
    for k in range(4):
        drawn = nearest[asked == k].bincount(minlength=300) > 0
        assert torch.equal(drawn, labels == k) if k < 3 else drawn.sum() > 290


def near_a_line(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    context = torch.randn(n, 2, generator=generator(seed))
    rows = context @ torch.tensor([[1.0, -1, 0], [0, 1, 1]])
    return context, rows + 0.2 * torch.randn(n, 3, generator=generator(seed + 1))


def conditional(
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    contexts: Tensor,
    h: float,
    g: float,
    *,
    left_out: bool = False,
) -> np.ndarray:
    """Log p(x | y): every kernel on rows, weighed by a kernel on contexts, written out."""
    squares = torch.cdist(x.double(), rows.double()).square().numpy() / h**2
    others = torch.cdist(y.double(), contexts.double()).square().numpy() / g**2
    if left_out:
        np.fill_diagonal(others, np.inf)
    total = logsumexp(-0.5 * (squares + others), axis=1) - logsumexp(-0.5 * others, axis=1)
    return total - x.shape[1] * (math.log(h) + 0.5 * math.log(2 * math.pi))


def test_under_a_vector_kernels_count_by_their_contexts() -> None:
    (context, rows), (y, x) = near_a_line(300), near_a_line(100, 5)
    options = {"bandwidth": 0.3, "context_bandwidth": 0.25}
    model, run = fitted(KDE(**options), rows, kind="vector", context=context)
    expected = conditional(x, y, rows, context, 0.3, 0.25)
    np.testing.assert_allclose(model.log_prob(x, y).numpy(), expected, rtol=1e-4, atol=1e-3)
    assert run.facts["context_bandwidth"] == pytest.approx(0.25)
    narrow, _ = fitted(
        KDE(bandwidth=1e-4, context_bandwidth=0.25), rows, kind="vector", context=context
    )
    drawn = narrow.sample(40_000, generator(), y[:2].repeat(20_000, 1))
    nearest = torch.cdist(drawn, rows).argmin(1).view(-1, 2)
    for k in range(2):
        weights = torch.softmax(-0.5 * (y[k] - context).square().sum(1) / 0.25**2, dim=0)
        share = nearest[:, k].bincount(minlength=300) / 20_000
        torch.testing.assert_close(share, weights, atol=0.015, rtol=0)
    assert narrow.sample(0, generator(), y[:0]).shape == (0, 3)


@pytest.mark.parametrize("held_out", [True, False])
def test_both_bandwidths_are_the_likeliest_together(held_out: bool) -> None:
    (context, rows), (y, x) = near_a_line(300), near_a_line(200, 5)
    given = {"held_out_context": y} if held_out else {}
    arguments = (rows, x) if held_out else (rows,)
    _, run = fitted(KDE(), *arguments, kind="vector", context=context, **given)

    def score(h: float, g: float) -> float:
        if held_out:
            return float(conditional(x, y, rows, context, h, g).mean())
        return float(conditional(rows, context, rows, context, h, g, left_out=True).mean())

    best = max(score(h, g) for h in np.geomspace(0.1, 1, 14) for g in np.geomspace(0.05, 1, 14))
    assert score(run.facts["bandwidth"], run.facts["context_bandwidth"]) > best - 2e-3


def test_a_class_of_one_row_does_not_judge_and_one_alone_follows_scotts_rule() -> None:
    x = bent(40)
    labels = torch.tensor([0] * 39 + [1])
    _, run = fitted(KDE(), x, kind="classes", context=one_hot(labels, 2))
    assert 0.05 < run.facts["bandwidth"] < 1
    _, run = fitted(KDE(), x[:3], kind="classes", context=one_hot(torch.arange(3), 3))
    assert run.facts["chosen_by"] == "Scott's rule"
    spread = float(x[:3].std(0, correction=0).square().mean().sqrt())
    assert run.facts["bandwidth"] == pytest.approx(spread * 3 ** (-1 / 6))


@pytest.mark.parametrize("kind", [None, "classes", "vector"])
def test_gradients_in_parts_are_those_of_the_sum(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, rows = near_a_line(200)
    context = {None: None, "classes": one_hot(torch.arange(200) % 3, 3), "vector": context}[kind]
    model, _ = fitted(KDE(bandwidth=0.4, kernel="covariance"), rows, kind=kind, context=context)
    x = (rows[:20] + 0.1).requires_grad_()
    given = () if context is None else (context[:20],)
    results = []
    for numbers in (2**20, 500):
        monkeypatch.setattr(latentfit_kde, "_NUMBERS", numbers)
        score = model.log_prob(x, *given)
        results.append((score.detach(), *torch.autograd.grad(score.sum(), x)))
        with torch.no_grad():
            assert torch.equal(score, model.log_prob(x, *given))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    wide, step = model.double(), 1e-5
    at = x.detach().double()
    given = tuple(value.double() for value in given)
    for column in range(3):
        shift = step * torch.eye(3, dtype=torch.float64)[column]
        difference = wide.log_prob(at + shift, *given) - wide.log_prob(at - shift, *given)
        torch.testing.assert_close(
            results[0][1][:, column].double(), difference / (2 * step), rtol=1e-3, atol=1e-3
        )


def test_distances_are_never_all_in_memory() -> None:
    # 2,000 x 100,000 of them at once would be 800 MB, and more with gradients.
    program = (
        "import resource, torch, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from latentfit_kde import KDE\n"
        "model = KDE(); model.build(2, 100_000); model.centres.normal_()\n"
        "x = torch.randn(2000, 2, requires_grad=True)\n"
        "model.log_prob(x[:10]).sum().backward()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, -1))\n"
        "model.log_prob(x).sum().backward()\n"
    )
    if not sys.platform.startswith("linux") or resource.getrlimit(resource.RLIMIT_AS)[1] != -1:
        pytest.skip("needs Linux without a limit on memory")
    folder = latentfit_kde.__file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_max_seconds_ends_the_search() -> None:
    x = torch.randn(30_000, 4, generator=generator())
    began = time.monotonic()
    _, run = fitted(KDE(), x[:29_000], x[29_000:], max_seconds=0.05)
    assert time.monotonic() - began < 2
    assert 0.05 < run.facts["bandwidth"] < 1


ODD = {
    "one row": torch.tensor([[0.3, -1.0]]),
    "two rows": torch.tensor([[0.3, -1.0], [1.0, 2]]),
    "one column": torch.randn(300, 1, generator=generator()),
    "equal columns": torch.randn(300, 1, generator=generator()).expand(-1, 3),
    "equal rows": torch.tensor([[0.3, -1.0], [1.0, 2]]).repeat(100, 1),
    "more columns than rows": torch.randn(10, 30, generator=generator()),
}


@pytest.mark.parametrize("kernel", ["isotropic", "covariance"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", [None, "classes", "vector"])
def test_odd_rows_give_finite_samples_and_densities(kernel: Any, odd: str, kind: Any) -> None:
    x = ODD[odd].contiguous()
    n = len(x)
    context = {
        None: None,
        "classes": one_hot(torch.arange(n) % 3, 4),
        "vector": torch.linspace(-1, 1, n)[:, None].repeat(1, 2),
    }[kind]
    model, _ = fitted(KDE(kernel=kernel), x, kind=kind, context=context)
    drawn = model.sample(n, generator(), context)
    assert drawn.shape == x.shape
    assert drawn.isfinite().all()
    assert drawn.abs().max() < 20
    assert model.log_prob(x, context).isfinite().all()
    assert model.log_prob(drawn + 100, context).isfinite().all()


@pytest.mark.parametrize("kind", [None, "classes", "vector"])
def test_the_state_fits_a_freshly_built_sampler(kind: Any) -> None:
    context, x = near_a_line(200)
    context = {None: None, "classes": one_hot(torch.arange(200) % 3, 3), "vector": context}[kind]
    options: Any = {"points": 150, "kernel": "covariance"}
    model, _ = fitted(KDE(**options), x, kind=kind, context=context)
    fresh = KDE(**options)
    fresh.context_kind, fresh.context_dim = model.context_kind, model.context_dim
    fresh.build(3, 200)
    fresh.load_state_dict(model.state_dict())
    given = () if context is None else (context[:20],)
    assert torch.equal(fresh.sample(20, generator(), *given), model.sample(20, generator(), *given))
    assert torch.equal(fresh.log_prob(x[:20], *given), model.log_prob(x[:20], *given))
