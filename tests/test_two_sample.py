"""Two-sample metrics, against closed forms, definitions and other implementations."""

from typing import Any

import numpy as np
import ot
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from sklearn.metrics import pairwise, roc_auc_score
from torchmetrics.image.kid import KernelInceptionDistance

from latentfit.errors import DataError, NonFiniteError, OptionError
from latentfit.metrics import (
    _arrays,
    _two_sample,
    c2st,
    c2st_interval,
    energy_distance,
    kernel_distance,
    sliced_wasserstein,
)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_the_two_sample_test_approaches_the_best_classifiers_area(shift: float) -> None:
    """Of N(0, I) and N(shift, I) the best area is Phi(|shift| / sqrt(2))."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 3)), rng.normal(size=(5000, 3)) + np.eye(3)[0] * shift
    best = scipy.stats.norm.cdf(shift / np.sqrt(2))
    measured = c2st(x, y)
    assert best - 0.03 < measured < best + 0.02
    assert c2st(torch.from_numpy(x), torch.from_numpy(y)) == measured


def test_the_two_sample_test_sees_what_moments_do_not() -> None:
    rng = np.random.default_rng(0)
    ring = rng.normal(size=(2000, 2))
    ring *= np.sqrt(2) / np.linalg.norm(ring, axis=1, keepdims=True)  # covariance I, no middle
    assert c2st(ring, rng.normal(size=(2000, 2))) > 0.9


def test_the_two_sample_test_does_not_mind_order_or_constant_columns() -> None:
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.normal(size=(2000, 1)), axis=0), rng.normal(size=(2000, 1))
    same = np.ones((2000, 1))
    assert 0.45 < c2st(np.hstack((x, same)), np.hstack((y, same)), seed=3) < 0.55


def test_the_two_sample_test_does_not_mind_units() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 2)), rng.normal(size=(600, 2)) + np.array([0, 1.5])
    expected = c2st(x, y)
    assert expected > 0.75
    for factor, shift in ((1e-6, 0), ([1e6, 1e-3], 0), (1, [1e6, -1e6])):
        assert c2st(x * factor + shift, y * factor + shift) == pytest.approx(expected, abs=0.02)


def test_the_two_sample_test_has_a_seed() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 2)), rng.normal(size=(40, 2)) + 0.5
    found = {seed: c2st(x, y, seed=seed) for seed in (0, 1, 2**40)}
    assert len(set(found.values())) == 3
    assert c2st(x, y) == found[0]
    assert c2st_interval(x, y) == c2st_interval(x, y, level=0.95, seed=0)
    assert c2st_interval(x, y, seed=1)[0] == found[1]


def test_the_two_sample_test_leaves_the_global_random_state_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    c2st(np.random.default_rng(0).normal(size=(50, 2)), np.ones((8, 2)))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_the_energy_distance_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1500, 2)), rng.normal(size=(30, 2)) + 1
    far = [np.linalg.norm(a - b) for a in x for b in y]
    in_x, in_y = scipy.spatial.distance.pdist(x), scipy.spatial.distance.pdist(y)
    expected = 2 * np.mean(far) - in_x.mean() - in_y.mean()
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert energy_distance(y, torch.from_numpy(x)) == pytest.approx(expected, rel=1e-9)


def test_the_energy_distance_of_one_distribution_averages_to_zero() -> None:
    rng = np.random.default_rng(0)
    drawn = [
        energy_distance(rng.normal(size=(40, 2)), rng.normal(size=(40, 2))) for _ in range(200)
    ]
    assert abs(np.mean(drawn)) < 4 * np.std(drawn) / np.sqrt(200)
    assert min(drawn) < 0 < max(drawn)


def test_the_area_is_that_of_scikit_learn_and_its_variance_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    of_x, of_y = rng.normal(size=150).round(1), rng.normal(size=90).round(1) + 0.7  # with ties
    labels = np.repeat([0, 1], [150, 90])
    expected = roc_auc_score(labels, np.concatenate((of_x, of_y)))
    assert _two_sample._area(of_x, of_y) == pytest.approx(expected)
    wins = (of_y > of_x[:, None]) + 0.5 * (of_y == of_x[:, None])
    again = [
        wins[np.ix_(rng.integers(150, size=150), rng.integers(90, size=90))].mean()
        for _ in range(4000)
    ]
    assert _two_sample._variance(of_x, of_y) == pytest.approx(np.var(again), rel=0.1)
    # DeLong's by his definition.
    expected = wins.mean(0).var(ddof=1) / 90 + wins.mean(1).var(ddof=1) / 150
    assert _two_sample._variance(of_x, of_y) == pytest.approx(expected)


def test_the_interval_is_around_the_area_and_narrows() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 2)), rng.normal(size=(700, 2)) + 0.7
    area, low, high = c2st_interval(x, y, seed=3)
    assert area == c2st(x, y, seed=3)
    assert low < area < high
    half = c2st_interval(x, y, seed=3, level=0.5)
    assert half[0] == area
    assert low < half[1] < area < half[2] < high
    _, fewer_low, fewer_high = c2st_interval(x[:100], y[:100])
    assert (high - low) / (fewer_high - fewer_low) == pytest.approx(0.5, abs=0.1)
    assert c2st_interval(torch.tensor(x), torch.tensor(y), seed=3, level=0.95) == (area, low, high)


def test_the_interval_is_wilsons_of_as_many_rows_as_delongs_variance_is_worth() -> None:
    """Solved for the area at which the one found lies at the end of what is expected."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 1)), rng.normal(size=(300, 1)) + 1
    area, *ends = c2st_interval(x, y, level=0.9)
    halves = _two_sample._scores(x, y, 0)
    error = np.mean([_two_sample._variance(*scores) ** 0.5 for scores in halves])
    rows = area * (1 - area) / error**2
    assert 150 < rows < 300
    for end in ends:
        assert abs(area - end) == pytest.approx(1.6449 * np.sqrt(end * (1 - end) / rows), rel=1e-3)


@pytest.mark.parametrize("n", [8, 9, 40])
def test_sets_that_are_far_apart_still_have_an_interval(n: int) -> None:
    rows = np.random.default_rng(0).normal(size=(n, 1))
    area, low, high = c2st_interval(rows, rows + 1e3)
    assert area == high == 1
    # What n / 2 rows without an error say of a share, after Wilson.
    assert low == pytest.approx(1 / (1 + 1.96**2 / (n // 2)), rel=1e-3)


def test_the_interval_is_of_at_most_twice_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair of 50 * 50 in the wrong order: DeLong's variance would make it more than a thousand rows."""
    scores = np.arange(50.0), np.arange(50.0) + 48.5
    monkeypatch.setattr(_two_sample, "_scores", lambda *_: [scores, scores])
    area, *ends = c2st_interval([[0.0]], [[0.0]])
    assert area == pytest.approx(1 - 1 / 2500)
    for end in ends:
        assert abs(area - end) == pytest.approx(1.96 * np.sqrt(end * (1 - end) / 100), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("d, n", [(1, 60), (8, 120)])
def test_the_interval_holds_a_half_where_there_is_nothing_to_tell(d: int, n: int) -> None:
    held, areas = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        area, low, high = c2st_interval(rng.normal(size=(n, d)), rng.normal(size=(n, d)), seed=seed)
        held.append(low <= 0.5 <= high)
        areas.append(area)
    assert np.mean(held) >= 0.89  # of 95 % and 100 repeats: within three deviations
    assert 0.4 < np.std(areas) * np.sqrt(n) < 0.7  # as the docstring of c2st has it


@pytest.mark.parametrize("level", [0.6, 0.95])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_of_a_classifier_that_is_given_the_interval_holds_the_area(
    shift: float, level: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of scores N(0, 1) and N(shift, 1) the area is Phi(shift / sqrt(2)); the halves count as one."""
    rng = np.random.default_rng(0)
    true = scipy.stats.norm.cdf(shift / np.sqrt(2))
    held = []
    for _ in range(400):
        scores = (rng.normal(size=50), rng.normal(size=50) + shift)
        monkeypatch.setattr(_two_sample, "_scores", lambda *_, scores=scores: [scores, scores])
        _, low, high = c2st_interval([[0.0]], [[0.0]], level=level)
        held.append(low <= true <= high)
    assert abs(np.mean(held) - level) < 0.08


@pytest.mark.parametrize("level", [0, 1, -0.5, 1.5, np.nan])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(OptionError, match=r"level as a number in \(0, 1\); got"):
        c2st_interval(np.ones((9, 1)), np.ones((9, 1)), level=level)


def test_the_kernel_distance_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 6)), rng.normal(size=(200, 6)) * 1.3 + 0.2
    with pytest.warns(UserWarning, match="save all extracted features"):
        theirs = KernelInceptionDistance(torch.nn.Identity(), subsets=1, subset_size=200)
    theirs.update(torch.tensor(x), real=True)
    theirs.update(torch.tensor(y), real=False)
    expected = theirs.compute()[0].item()
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-5)  # theirs is of float32
    assert kernel_distance(torch.tensor(y), torch.tensor(x)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bandwidth", [None, 0.3, 5.0])
def test_the_kernel_distance_is_its_definition(
    bandwidth: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(70, 3)), rng.normal(size=(40, 3)) + 0.5

    def kernel(a: Any, b: Any) -> Any:
        if bandwidth is None:
            return pairwise.polynomial_kernel(a, b, degree=3)  # gamma is 1 / d
        return pairwise.rbf_kernel(a, b, gamma=1 / (2 * bandwidth**2))

    def of_others(a: Any) -> Any:
        return kernel(a, a)[~np.eye(len(a), dtype=bool)].mean()

    expected = of_others(x) + of_others(y) - 2 * kernel(x, y).mean()
    assert kernel_distance(x, y, bandwidth=bandwidth) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(_arrays, "_PIECE", 100)
    assert kernel_distance(x, y, bandwidth=bandwidth) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bandwidth", [None, 1.0])
def test_the_kernel_distance_of_one_distribution_averages_to_zero(bandwidth: float | None) -> None:
    rng = np.random.default_rng(0)

    def one(shift: float) -> float:
        x, y = rng.normal(size=(30, 2)), rng.normal(size=(40, 2)) + shift
        return kernel_distance(x, y, bandwidth=bandwidth)

    none = [one(0.0) for _ in range(300)]
    assert abs(np.mean(none)) < 4 * np.std(none) / np.sqrt(300)
    assert min(none) < 0 < max(none)
    assert np.mean([one(2.0) for _ in range(30)]) > 5 * np.std(none)


@pytest.mark.parametrize("bandwidth", [1e-300, 1e300])
def test_any_bandwidth_is_taken(bandwidth: float) -> None:
    x = np.arange(6.0)[:, None]
    assert kernel_distance(x, x + 0.5, bandwidth=bandwidth) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n, m", [(50, 50), (60, 45), (7, 300)])
def test_on_a_line_the_sliced_distance_is_the_exact_one(n: int, m: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 1)), rng.gamma(2, size=(m, 1))
    expected = np.sqrt(ot.wasserstein_1d(x[:, 0], y[:, 0], p=2))
    for projections in (1, 40):
        found = sliced_wasserstein(x, y, projections=projections)
        assert found == pytest.approx(expected, rel=1e-9)
    # Between equal numbers of rows it is that of the sorted ones.
    if n == m:
        assert expected == pytest.approx(np.sqrt(((np.sort(x, 0) - np.sort(y, 0)) ** 2).mean()))


def test_the_sliced_distance_is_that_of_pot() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 4)), rng.normal(size=(130, 4)) * [1, 1, 3, 1] + [0, 0, 0, 1]
    expected = ot.sliced_wasserstein_distance(x, y, n_projections=4000, seed=1)
    assert sliced_wasserstein(x, y, projections=4000) == pytest.approx(expected, rel=0.03)
    assert sliced_wasserstein(y, torch.tensor(x)) == sliced_wasserstein(x, y)


def test_a_shift_is_seen_along_each_line_by_its_share() -> None:
    x = np.random.default_rng(0).normal(size=(40, 5))
    shift = np.array([3.0, 0, 0, 4.0, 0])
    found = sliced_wasserstein(x, x + shift, projections=5000)
    assert found == pytest.approx(5 / np.sqrt(5), rel=0.03)
    assert sliced_wasserstein(x, x[::-1]) == pytest.approx(0, abs=1e-15)
    assert sliced_wasserstein(1e3 * x, 1e3 * (x + shift)) == pytest.approx(
        1e3 * sliced_wasserstein(x, x + shift)
    )


@pytest.mark.parametrize("projections", [0, 10**6 + 1])
def test_lines_are_one_to_a_million(projections: int) -> None:
    with pytest.raises(OptionError, match="projections as a whole number from 1 to 1000000; got"):
        sliced_wasserstein([[0.0], [1.0]], [[0.0], [1.0]], projections=projections)


def test_the_lines_are_the_seeds() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(30, 5)) + np.eye(5)[0]
    found = {seed: sliced_wasserstein(x, y, projections=3, seed=seed) for seed in (0, 0, 1, 2**40)}
    assert found[0] == sliced_wasserstein(x, y, projections=3)
    assert len(set(found.values())) == 3
    assert sliced_wasserstein(x, y, seed=None) != sliced_wasserstein(x, y, seed=None)
    default = sliced_wasserstein(x, y)
    assert default == sliced_wasserstein(x, y, projections=200, seed=0)
    # More lines go on with the same ones: the mean of squares is over all of them.
    first, both = (sliced_wasserstein(x, y, projections=n) ** 2 for n in (16, 17))
    assert both == pytest.approx(first, rel=0.5)
    assert 17 * both > 16 * first


@pytest.mark.parametrize(
    "metric", [c2st, c2st_interval, energy_distance, kernel_distance, sliced_wasserstein]
)
def test_sets_that_do_not_match_are_refused(metric: Any) -> None:
    ones = np.ones((10, 2))
    for other in (np.ones((10, 3)), np.ones((1, 2)), np.ones(10)):
        with pytest.raises(DataError):
            metric(ones, other)
    with pytest.raises(DataError, match=r"two sets of .* got x of \(10, 2\) and y of \(10, 3\)"):
        metric(ones, np.ones((10, 3)))
    with pytest.raises(NonFiniteError, match="for y"):
        metric(ones, ones * np.nan)
    with pytest.raises(NonFiniteError, match="for x"):
        metric(ones * np.inf, ones)
