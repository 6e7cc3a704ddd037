"""What neighbours tell: density and coverage, precision and recall, and whether samples are copies."""

from typing import Any

import numpy as np
import prdc
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from latentfit.errors import DataError, NonFiniteError, OptionError
from latentfit.metrics import _arrays, data_copying, density_coverage, precision_recall


def normal(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("n, m", [(1500, 700), (300, 1300)])
def test_it_is_the_definition(n: int, m: int, k: int) -> None:
    real, fake = normal(n, 3, 0), normal(m, 3, 1) * 1.5
    radius = NearestNeighbors(n_neighbors=k + 1).fit(real).kneighbors(real)[0][:, -1]
    fakes = NearestNeighbors().fit(fake)
    inside = [
        len(fakes.radius_neighbors([row], reach, return_distance=False)[0])
        for row, reach in zip(real, radius, strict=True)
    ]
    expected = sum(inside) / (k * m), np.mean([count > 0 for count in inside])
    assert density_coverage(real, fake, k=k) == pytest.approx(expected)
    assert density_coverage(torch.tensor(real), torch.tensor(fake), k=k) == pytest.approx(expected)


def test_fakes_that_are_as_good_as_real_rows_have_a_density_of_one() -> None:
    density, coverage = density_coverage(normal(2000, 5, 0), normal(2000, 5, 1))
    assert density == pytest.approx(1, abs=0.05)
    # Each ball holds 5 of 2,000 real rows: a coverage of 1 - 1 / 2^5, as the paper's lemma has it.
    assert coverage == pytest.approx(1 - 2**-5, abs=0.02)


def test_a_mode_that_is_missing_shows_in_coverage_and_noise_in_density() -> None:
    real = normal(1000, 2, 0) + 20 * (np.arange(1000) % 2)[:, None]
    density, coverage = density_coverage(real, normal(1000, 2, 1))
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(0.5, abs=0.05)
    density, coverage = density_coverage(real, np.concatenate((real + 1e-9, real + 300)))
    assert density < 0.6
    assert coverage == 1


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("n, m", [(300, 300), (400, 90), (60, 500)])
def test_all_four_are_those_of_their_authors(
    n: int, m: int, k: int, capsys: pytest.CaptureFixture[str]
) -> None:
    real, fake = normal(n, 4, 0), normal(m, 4, 1) * 0.8 + 0.3
    theirs = prdc.compute_prdc(real, fake, k)  # which prints
    ours = *precision_recall(real, fake, k=k), *density_coverage(real, fake, k=k)
    assert ours == pytest.approx(
        [theirs[name] for name in ("precision", "recall", "density", "coverage")]
    )


def test_precision_and_recall_are_the_definition() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.integers(0, 9, (70, 2)), rng.integers(2, 12, (40, 2))  # with copies and ties

    def among(rows: Any, others: Any, k: int) -> float:
        reach = [np.sort(np.linalg.norm(others - other, axis=1))[k] for other in others]
        found = [
            any(np.linalg.norm(row - o) <= r for o, r in zip(others, reach, strict=True))
            for row in rows
        ]
        return float(np.mean(found))

    for k in (1, 3, 39):
        expected = among(fake, real, k), among(real, fake, k)
        assert precision_recall(real, fake, k=k) == pytest.approx(expected)
        assert precision_recall(fake, real, k=k) == pytest.approx(expected[::-1])
    assert precision_recall(real, fake) == precision_recall(real, fake, k=3)


def test_density_and_coverage_have_balls_without_a_rim() -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.integers(0, 9, (70, 2)), rng.integers(2, 12, (40, 2))  # with copies and ties
    for k in (1, 3, 39):
        reach = np.sort(np.linalg.norm(real[:, None] - real, axis=2), axis=1)[:, k]
        inside = np.linalg.norm(real[:, None] - fake, axis=2) < reach[:, None]
        expected = inside.sum() / (k * 40), inside.any(axis=1).mean()
        assert density_coverage(real, fake, k=k) == pytest.approx(expected)
    assert density_coverage(real, fake) == density_coverage(real, fake, k=5)


def test_copies_are_precise_and_recall_what_they_copy() -> None:
    real = normal(400, 3, 0)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, torch.tensor(real[::-1].copy())) == (1, 1)
    precision, recall = precision_recall(np.concatenate((real, real + 99)), real)
    assert (precision, recall) == (1, 0.5)


def test_memory_is_bounded_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake, held_out = normal(150, 2, 0), normal(130, 2, 1), normal(90, 2, 2)

    def all_of_them() -> list[Any]:
        return [
            precision_recall(real, fake),
            density_coverage(real, fake),
            data_copying(real, held_out, fake),
        ]

    whole = all_of_them()
    sizes = []

    def watched(a: Any, b: Any) -> Any:
        sizes.append(len(a) * len(b))
        return cdist(a, b)

    monkeypatch.setattr(_arrays, "_PIECE", 1000)
    monkeypatch.setattr("latentfit.metrics._neighbours.distances", watched)
    assert all_of_them() == whole
    assert 500 < max(sizes) <= 1000


def test_data_copying_is_the_rank_test_of_the_distances() -> None:
    train, held_out, samples = normal(300, 3, 0), normal(120, 3, 1), normal(200, 3, 2) * 0.9
    near = [
        NearestNeighbors(n_neighbors=1).fit(train).kneighbors(rows)[0][:, 0]
        for rows in (held_out, samples)
    ]
    u = scipy.stats.mannwhitneyu(near[1], near[0]).statistic
    n, m = 120, 200
    expected = (u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)
    assert data_copying(train, held_out, samples) == pytest.approx(expected)
    assert data_copying(train, samples, held_out) == pytest.approx(-expected)
    # Its z-score is the one that gives scipy's p-value.
    p = scipy.stats.mannwhitneyu(near[1], near[0], method="asymptotic", use_continuity=False).pvalue
    assert 2 * scipy.stats.norm.sf(abs(expected)) == pytest.approx(p)


def test_a_resampler_is_flagged_and_held_out_rows_are_not() -> None:
    """The positive control and the null: z of copies is far below -3, z of fresh rows standard normal."""
    rng = np.random.default_rng(0)
    fresh = []
    for seed in range(60):
        train, held_out, more = (normal(200, 5, 3 * seed + part) for part in range(3))
        fresh.append(data_copying(train, held_out, more))
        copies = train[rng.integers(200, size=150)]
        assert data_copying(train, held_out, copies) < -10
        near_copies = copies + 0.05 * rng.normal(size=copies.shape)
        assert data_copying(train, held_out, near_copies) < -10
        assert data_copying(train, held_out, more * 3) > 5  # these stray
    assert abs(np.mean(fresh)) < 4 / np.sqrt(60)
    assert 0.7 < np.std(fresh) < 1.3
    assert scipy.stats.kstest(fresh, "norm").pvalue > 0.01


def test_a_share_of_copies_is_flagged() -> None:
    train, held_out, fresh = (normal(1000, 5, seed) for seed in range(3))
    mixed = np.concatenate((fresh[:700], train[:300]))
    assert data_copying(train, held_out, mixed) < -3
    assert abs(data_copying(train, held_out, fresh)) < 3


def test_cells_show_copies_in_one_mode_that_strays_in_another_hide() -> None:
    far = np.array([50.0, 0.0])

    def two_modes(n: int, seed: int) -> Any:
        rows = normal(2 * n, 2, seed)
        rows[n:] += far
        return rows

    train, held_out = two_modes(400, 0), two_modes(400, 1)
    strays = 3 * normal(150, 2, 2)
    samples = np.concatenate((strays, train[400:550]))  # copies in the second mode only
    assert abs(data_copying(train, held_out, samples)) < 5
    halves = [
        data_copying(train, rows, drawn)
        for rows, drawn in ((held_out[:400], strays), (held_out[400:], train[400:550]))
    ]
    assert data_copying(train, held_out, samples, cells=2) == pytest.approx(np.mean(halves))
    # The mode that strays has no sample any more: it has no say.
    only = data_copying(train, held_out, train[400:550], cells=2)
    assert only == pytest.approx(halves[1])
    assert only < -10
    # Weights are the shares of the held-out rows.
    uneven = np.concatenate((held_out[:400], held_out[400:500]))
    parts = [
        data_copying(train, rows, drawn)
        for rows, drawn in ((held_out[:400], strays), (held_out[400:500], train[400:550]))
    ]
    expected = (4 * parts[0] + parts[1]) / 5
    assert data_copying(train, uneven, samples, cells=2) == pytest.approx(expected)


def test_data_copying_has_a_seed_and_leaves_the_global_random_state_alone() -> None:
    rows = [normal(300, 4, seed) for seed in range(3)]
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    found = {seed: data_copying(*rows, cells=6, seed=seed) for seed in (0, 0, 1, 2**40)}
    assert found[0] == data_copying(*rows, cells=6)
    assert len(set(found.values())) > 1
    assert isinstance(data_copying(*rows, cells=2, seed=None), float)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert data_copying(*(torch.tensor(part) for part in rows), cells=6) == found[0]


def test_data_copying_needs_enough_rows_in_a_cell() -> None:
    train, held_out, samples = normal(100, 2, 0), normal(20, 2, 1), normal(20, 2, 2)
    assert data_copying(train, held_out, samples) == data_copying(train, held_out, samples, cells=1)
    with pytest.raises(DataError, match="at least 20 rows for samples; got 19"):
        data_copying(train, held_out, samples[1:])
    with pytest.raises(DataError, match="at least 20 rows for held_out; got 19"):
        data_copying(train, held_out[1:], samples)
    with pytest.raises(DataError, match="none among 5 cells.* fewer cells"):
        data_copying(train, held_out, samples, cells=5)
    with pytest.raises(DataError, match="cells as a whole number from 1 to 100; got 101"):
        data_copying(train, held_out, samples, cells=101)
    copies = np.zeros((100, 2))  # fewer distinct rows than cells: no warning, one cell has all
    assert data_copying(copies, np.zeros((50, 2)), np.zeros((50, 2)), cells=4) == 0
    with pytest.raises(OptionError, match="seed"):
        data_copying(train, held_out, samples, seed=-1)
    with pytest.raises(
        DataError,
        match=r"three sets of at least 2 rows with as many columns; got train of \(100, 2\), "
        r"held_out of \(20, 2\) and samples of \(30, 3\)",
    ):
        data_copying(train, held_out, np.zeros((30, 3)))


@pytest.mark.parametrize("metric", [density_coverage, precision_recall])
@pytest.mark.parametrize("k", [0, 30])
def test_k_is_checked(k: int, metric: Any) -> None:
    with pytest.raises(DataError, match=f"k as a whole number from 1 to 29; got {k}"):
        metric(normal(30, 2, 0), normal(40, 2, 1), k=k)
    assert max(metric(normal(30, 2, 0), normal(40, 2, 1), k=29)) <= 40 / 29


def test_recall_has_balls_around_the_fakes() -> None:
    with pytest.raises(DataError, match="k as a whole number from 1 to 9; got 10"):
        precision_recall(normal(30, 2, 0), normal(10, 2, 1), k=10)


@pytest.mark.parametrize("metric", [density_coverage, precision_recall])
def test_what_is_no_pair_of_features_is_refused(metric: Any) -> None:
    told = r"two sets of at least 2 rows with as many columns; got real of \(30, 2\) and fake of"
    with pytest.raises(DataError, match=told):
        metric(normal(30, 2, 0), normal(30, 3, 1))
    for name in ("real", "fake"):
        given = {"real": normal(30, 2, 0), "fake": normal(30, 2, 1), name: np.full((30, 2), np.nan)}
        with pytest.raises(NonFiniteError, match=f"finite features for {name}; got 30 of 30 rows"):
            metric(**given)
