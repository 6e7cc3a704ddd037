"""What diagnose measures, against numpy, scipy, scikit-learn and known answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.datasets import make_swiss_roll
from sklearn.neighbors import NearestNeighbors
from torch.utils.data import DataLoader, TensorDataset

from latentfit import Diagnosis, diagnose
from latentfit.errors import DataError, NonFiniteError, OptionError

FINDINGS = [
    "spectrum",
    "effective_rank",
    "intrinsic_dimension",
    "kurtosis",
    "clusters",
    "outliers",
    "duplicate_rows",
    "constant_dimensions",
    "duplicated_dimensions",
    "scale_range",
    "shift",
]


def normal(n: int, d: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, d))


def embedded(x: Any, dim: int) -> Any:
    """Rows in more dimensions, by an isometry."""
    frame = np.linalg.qr(np.random.default_rng(99).normal(size=(dim, x.shape[1])))[0]
    return x @ frame.T


def values(diagnosis: Diagnosis, name: str) -> dict[str, Any]:
    return dict(diagnosis[name].values)


# The spectrum


@pytest.mark.parametrize("d", [1, 7, 80])
def test_the_spectrum_is_the_covariance_s(d: int) -> None:
    x = normal(2000, d) @ normal(d, d, 1) + 5
    found = diagnose(x)
    expected = np.linalg.eigvalsh(np.atleast_2d(np.cov(x.T, bias=True)))[::-1]
    np.testing.assert_allclose(found.eigenvalues, expected, rtol=1e-9, atol=1e-12 * expected[0])
    entropy = scipy.stats.entropy(expected / expected.sum())
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-9)
    shares = expected.cumsum() / expected.sum()
    assert values(found, "spectrum")["directions_90"] == np.searchsorted(shares, 0.9) + 1
    assert values(found, "spectrum")["largest"] == pytest.approx(expected[0])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_numerical_rank_is_that_of_the_matrix(dtype: Any, offset: float) -> None:
    x = (normal(500, 11) @ normal(11, 64, 1) + offset).astype(dtype)
    found = diagnose(x)
    assert found.numerical_rank == 11
    assert "transform='auto', 'scale' or 'whiten'" in found["effective_rank"].advice
    assert diagnose(normal(500, 64)).numerical_rank == 64


def test_a_direction_is_not_null_because_it_is_small() -> None:
    x = normal(1000, 3) * [1, 1e-2, 1e-4]
    assert diagnose(x).numerical_rank == 3
    assert diagnose(x.astype(np.float32)).numerical_rank == 3


def test_in_thousands_of_dimensions_the_rows_tell_the_spectrum() -> None:
    """Gram matrix and covariance have the same eigenvalues; the leading ones are numpy's."""
    x = (normal(300, 5) * [5, 4, 3, 2, 1]) @ normal(5, 4200, 1)
    found = diagnose(x)
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    np.testing.assert_allclose(found.eigenvalues[:5], singular[:5] ** 2 / 300, rtol=1e-8)
    assert found.numerical_rank == 5
    assert "more latents" in found["effective_rank"].advice


# The intrinsic dimension


@pytest.mark.parametrize("d, dim", [(1, 3), (2, 10), (5, 50), (10, 50)])
def test_the_intrinsic_dimension_of_a_gaussian_in_a_subspace(d: int, dim: int) -> None:
    found = values(diagnose(embedded(normal(4000, d), dim)), "intrinsic_dimension")
    assert found["twonn"] == pytest.approx(d, rel=0.1)
    assert found["mle"] == pytest.approx(d, rel=0.1)


def test_the_intrinsic_dimension_of_surfaces() -> None:
    roll = make_swiss_roll(2500, random_state=0)[0]
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (2500, 2))
    torus = np.hstack((np.cos(angles), np.sin(angles)))
    for surface in (roll, torus, embedded(roll, 40).astype(np.float32)):
        found = values(diagnose(surface), "intrinsic_dimension")
        assert found["twonn"] == pytest.approx(2, rel=0.1)
        assert found["mle"] == pytest.approx(2, rel=0.1)


def test_the_estimates_are_their_definitions() -> None:
    x = normal(400, 4) @ normal(4, 4, 1)
    distances = NearestNeighbors(n_neighbors=21).fit(x).kneighbors(x)[0][:, 1:]
    found = values(diagnose(x), "intrinsic_dimension")
    inverse = [np.log(distances[:, [k - 1]] / distances[:, : k - 1]).mean() for k in range(10, 21)]
    assert found["mle"] == pytest.approx(np.mean(1 / np.array(inverse)), rel=1e-9)
    mu = np.sort(distances[:, 1] / distances[:, 0])[:360]
    line = -np.log(1 - np.arange(1, 361) / 401)
    slope = scipy.linalg.lstsq(np.log(mu)[:, None], line)[0][0]
    assert found["twonn"] == pytest.approx(slope, rel=1e-9)


def test_neighbours_keep_their_digits_beside_a_row_far_away() -> None:
    x = embedded(normal(2000, 3), 8)
    alone = values(diagnose(x), "intrinsic_dimension")
    x = np.vstack((x, 1e6 + np.zeros((1, 8))))
    assert values(diagnose(x), "intrinsic_dimension")["twonn"] == pytest.approx(
        alone["twonn"], rel=0.01
    )


def test_copies_do_not_change_the_intrinsic_dimension() -> None:
    x = normal(1000, 3)
    once, twice = diagnose(x), diagnose(np.vstack((x, x)))
    assert once.intrinsic_dimension == pytest.approx(twice.intrinsic_dimension)


# Tails, outliers, copies


def test_the_kurtosis_is_scipy_s() -> None:
    x = np.random.default_rng(0).standard_t(5, size=(2000, 6)) * 10.0 ** np.arange(-3, 3) + 7
    expected = scipy.stats.kurtosis(x)
    found = values(diagnose(x), "kurtosis")
    assert found["largest"] == pytest.approx(expected.max(), rel=1e-9)
    assert found["dimension"] == expected.argmax()
    assert found["heavy_dimensions"] == (expected > 5).sum()


def test_heavy_tails_are_told_by_degrees() -> None:
    rng = np.random.default_rng(0)
    assert diagnose(rng.normal(size=(1500, 3)))["kurtosis"].severity == "ok"
    assert diagnose(rng.laplace(size=(1500, 3)) ** 3)["kurtosis"].severity == "warning"
    faint = np.hstack((rng.normal(size=(1500, 3)), np.eye(1500, 1) * 0.1))
    found = diagnose(faint)["kurtosis"]
    assert (found.severity, found.values["dimension"]) == ("note", 3)
    assert "transform='scale'" in found.advice


BULKS = {
    "a line": normal(2000, 1),
    "a Gaussian": normal(2000, 10),
    "many dimensions": normal(2000, 120),
    "a stretched one": normal(2000, 10) * np.logspace(0, -3, 10),
    "a cube": np.random.default_rng(0).random((2000, 5)),
    "two blobs": normal(2000, 4) + 8 * (np.arange(2000) % 2)[:, None],
    "a skewed one": np.random.default_rng(0).exponential(size=(2000, 6)),
    "sparse": np.maximum(normal(2000, 30) - 1, 0),
}


@pytest.mark.parametrize("name", BULKS)
def test_injected_outliers_are_found_by_index_and_no_others(name: str) -> None:
    x = BULKS[name].copy()
    assert diagnose(x)["outliers"].values["count"] == 0
    rng = np.random.default_rng(5)
    direction = rng.normal(size=x.shape[1]) * x.std(0)
    x[[31, 1234]] = x.mean(0) + direction * ([[80], [50]] / np.linalg.norm(direction / x.std(0)))
    found = diagnose(x)["outliers"]
    assert found.values["indices"] == [31, 1234]
    assert found.values["ratios"][0] > found.values["ratios"][1] > 1
    assert "row 31" in found.advice


@pytest.mark.parametrize("rank", [5, 40])
def test_a_row_off_the_others_subspace_is_an_outlier(rank: int) -> None:
    x = embedded(normal(2000, rank), 100)
    off = np.linalg.svd(x, full_matrices=True)[2][-1]
    x[77] += 0.5 * off  # half a deviation, where the others have none
    assert diagnose(x)["outliers"].values["indices"] == [77]


def test_rows_that_hold_most_of_the_variance_are_a_warning() -> None:
    x = normal(2000, 3)
    x[9] *= 1e4
    found = diagnose(x)["outliers"]
    assert found.severity == "warning"
    centred = x - np.median(x, axis=0)
    share = (centred[9] ** 2).sum() / (centred**2).sum()
    assert found.values["variance_share"] == pytest.approx(share)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_copies_are_counted_and_found(dtype: Any) -> None:
    x = normal(2000, 4).astype(dtype)
    assert len(np.unique(x, axis=0)) == 2000
    x[1000:1300] = x[100:400]
    x[[10, 20, 30]] = x[5]
    found = diagnose(x)["duplicate_rows"]
    assert found.values["count"] == 2000 - len(np.unique(x, axis=0)) == 303
    assert found.values["fraction"] == pytest.approx(303 / 2000)
    assert (found.values["most"], found.values["most_index"]) == (4, 5)
    assert found.severity == "warning"


def test_zeros_of_either_sign_are_equal_and_nearly_equal_rows_are_not() -> None:
    x = normal(100, 3).astype(np.float32)
    tiny = np.nextafter(np.float32(0), np.float32(1))
    x[0], x[1], x[2] = [0, 1, 2], [-0.0, 1, 2], [tiny, 1, 2]
    assert diagnose(x)["duplicate_rows"].values["count"] == 1


def test_many_copies_are_a_warning() -> None:
    x = normal(900, 3)
    assert diagnose(np.vstack((x, x[:90])))["duplicate_rows"].severity == "note"
    assert diagnose(np.vstack((x, x[:120])))["duplicate_rows"].severity == "warning"


# Dimensions


def test_dimensions_that_never_vary_or_repeat_others() -> None:
    x = normal(2000, 9)
    x[:, 2] = 7.25
    x[:, 5] = x[:, 1]
    x[:, 7] = 3 - 1e-3 * x[:, 0]
    x[:, 8] = x[:, 3] + 1e-3 * normal(2000, 1, 5)[:, 0]  # correlated, though not the same
    for given in (x, x.astype(np.float32)):
        found = diagnose(given)
        assert values(found, "constant_dimensions")["indices"] == [2]
        assert values(found, "duplicated_dimensions") == {"count": 2, "pairs": [[5, 1], [7, 0]]}
        assert found.numerical_rank == 6
    assert diagnose(normal(2000, 9))["duplicated_dimensions"].values["count"] == 0


def test_repeated_dimensions_are_found_among_many_and_sparse_ones() -> None:
    x = np.maximum(normal(2000, 700) - 1.5, 0)
    x[:, 650] = 2 * x[:, 3]
    assert diagnose(x)["duplicated_dimensions"].values["pairs"] == [[650, 3]]


def test_the_range_of_scales() -> None:
    x = normal(2000, 3) * [1, 1e-5, 10]
    found = diagnose(x)["scale_range"]
    assert found.values["ratio"] == pytest.approx(x.std(0).max() / x.std(0).min())
    assert (found.values["smallest"], found.values["largest"]) == (1, 2)
    assert found.severity == "warning"
    assert diagnose(normal(2000, 3))["scale_range"].severity == "ok"


# Clusters


def blobs(k: int, gap: float, d: int, n: int = 2000) -> Any:
    """Unit Gaussians on the corners of a cube of this width."""
    rng = np.random.default_rng(k)
    corners = np.array(list(np.ndindex(*(2,) * min(d, 4))))[rng.permutation(2 ** min(d, 4))[:k]]
    centres = np.pad(corners, ((0, 0), (0, d - corners.shape[1]))) * gap
    return centres[np.arange(n) % k] + rng.normal(size=(n, d))


@pytest.mark.parametrize("k, d", [(2, 1), (2, 3), (3, 2), (5, 4), (8, 20)])
def test_groups_that_stand_apart_are_counted(k: int, d: int) -> None:
    x = blobs(k, 7, d)
    found = diagnose(x[np.random.default_rng(1).permutation(len(x))])["clusters"]
    assert found.values["count"] == k
    assert found.values["gain"] > 0.3
    assert "base='mixture'" in found.advice


angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 2000)
ONE_PIECE = {
    "Gaussian": normal(2000, 8),
    "stretched": normal(2000, 8) * np.logspace(0, -2, 8),
    "cube": np.random.default_rng(0).random((2000, 8)),
    "line": np.random.default_rng(0).random((2000, 1)),
    "heavy tails": np.random.default_rng(0).standard_t(2, size=(2000, 4)),
    "skewed": np.exp(normal(2000, 4)),
    "ring": np.c_[np.cos(angle), np.sin(angle)] + 0.05 * normal(2000, 2),
    "roll": make_swiss_roll(2000, random_state=0)[0],
    "sparse": np.maximum(normal(2000, 30) - 1, 0),
    "close blobs": blobs(2, 2, 3),
}


@pytest.mark.parametrize("name", ONE_PIECE)
def test_what_is_of_one_piece_is_one_group(name: str) -> None:
    assert diagnose(ONE_PIECE[name])["clusters"].values["count"] == 1


def test_the_gain_is_that_of_the_likelihood() -> None:
    """Two far, equal blobs: knowing which one saves log(ratio of the deviations) less log 2, in nats."""
    x = blobs(2, 20, 1, 5000)
    expected = 0.5 * np.log(x.var() / 1.0) - np.log(2)
    assert diagnose(x)["clusters"].values["gain"] == pytest.approx(expected, abs=0.08)


# Shift


def test_a_shift_is_found_at_its_place_and_size() -> None:
    x = normal(2000, 5)
    x[1000:, 2] += 0.5
    found = diagnose(x)["shift"]
    assert found.values["p_value"] == 0.001  # the least that 999 permutations can give
    assert found.severity == "note"
    assert diagnose(x[np.random.default_rng(0).permutation(2000)])["shift"].severity == "ok"
    other = diagnose(normal(1000, 5, 1), validation=x[1000:])["shift"]
    assert other.severity == "warning"
    assert other.values["between"] == "latents and validation"
    assert diagnose(normal(1000, 5, 1), validation=normal(900, 5, 2))["shift"].severity == "ok"


def test_a_change_of_spread_is_a_shift_too() -> None:
    found = diagnose(normal(1500, 5), validation=1.3 * normal(1500, 5, 1))["shift"]
    assert found.values["p_value"] == 0.001


def test_the_effect_is_the_energy_distance_s() -> None:
    x, y = normal(200, 3), normal(150, 3, 1) + np.eye(3)[0]
    both = np.vstack((x, y))
    both = (both - both.mean(0)) / both.std(0)
    distances = scipy.spatial.distance.cdist(both, both)
    within = distances[:200, :200].mean() + distances[200:, 200:].mean()
    across = distances[:200, 200:].mean()
    found = diagnose(x, validation=y)["shift"].values
    assert found["effect"] == pytest.approx((2 * across - within) / (2 * across), rel=1e-9)


def test_the_test_s_p_values_are_those_of_chance() -> None:
    """Under the null they are uniform: also for heavy tails, few rows and unequal sets."""
    rng = np.random.default_rng(0)
    p = []
    for seed in range(300):
        x = rng.standard_t(2, size=(30, 2))
        p.append(diagnose(x[:18], validation=x[18:], seed=seed)["shift"].values["p_value"])
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09


# What comes in, what comes out


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_findings_do_not_depend_on_units(scale: float) -> None:
    x = blobs(3, 8, 4, 1500).astype(np.float32)
    x[:, 3] = 2
    x[700] = x[3]
    x[5, :3] += 100
    one, other = diagnose(x), diagnose(x * np.float32(scale))
    for name in FINDINGS:
        before, after = values(one, name), values(other, name)
        if name == "spectrum":
            before["largest"] *= float(scale) ** 2
            before["smallest"] *= float(scale) ** 2
        assert one[name].severity == other[name].severity
        for key, value in before.items():
            if isinstance(value, str | None):
                assert after[key] == value
            else:
                np.testing.assert_allclose(after[key], before[key], rtol=1e-3, err_msg=key)
    np.testing.assert_allclose(other.eigenvalues, one.eigenvalues * float(scale) ** 2, rtol=1e-3)


@pytest.mark.parametrize("n", [*range(2, 11), 17, 40])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2, 2)])
def test_few_rows_and_dimensions(n: int, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(n).normal(size=(n, *shape))
    for given in (x, np.round(x), np.zeros_like(x), np.where(x == x.max(), 1.0, 0.0)):
        found = diagnose(given)
        assert (found.rows, found.shape) == (n, shape)
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["rows"] == n
        assert max(map(len, str(found).splitlines())) <= 80
        assert bool(found.figure().axes) == bool(found.numerical_rank)
    if n < 16:
        assert diagnose(x)["shift"].summary == "not computed"
        assert "too few rows" in diagnose(x)["shift"].advice


def test_latents_that_are_all_equal() -> None:
    found = diagnose(np.full((50, 3), 0.1))
    assert found["constant_dimensions"].severity == "warning"
    assert "ignore its input" in found["constant_dimensions"].advice
    assert found.effective_rank is found.intrinsic_dimension is None
    assert found.numerical_rank == 0
    assert {"constant_dimensions", "duplicate_rows"} == {f.name for f in found.warnings}


def test_any_kind_of_array_gives_the_same(tmp_path: Any) -> None:
    x = normal(600, 6).astype(np.float32).reshape(600, 2, 3)
    expected = diagnose(x).to_dict()
    np.save(tmp_path / "x.npy", x)
    wide = np.zeros((600, 2, 6), np.float32)
    wide[..., ::2] = x
    for given in (
        torch.from_numpy(x),
        torch.from_numpy(x).requires_grad_(),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        wide[..., ::2],
        x.astype(">f4"),
    ):
        found = diagnose(given).to_dict()
        found["dtype"] = expected["dtype"]
        assert found == expected
    assert diagnose(x.tolist()).shape == (2, 3)
    assert diagnose(torch.from_numpy(x).bfloat16()).dtype == "bfloat16"
    assert diagnose(np.arange(30)).numerical_rank == 1
    with torch.inference_mode():
        assert diagnose(torch.from_numpy(x)).to_dict() == expected


def test_the_order_of_findings_and_their_names() -> None:
    found = diagnose(normal(100, 2))
    assert [finding.name for finding in found.findings] == FINDINGS
    assert {finding.severity for finding in found.findings} <= {"ok", "note", "warning"}
    for finding in found.findings:
        assert finding.advice.endswith((".", "?"))
        assert ". " not in finding.advice  # one sentence
    with pytest.raises(OptionError, match="finding's name .*kurtosis.*; got 'kurtoses'"):
        found["kurtoses"]


@pytest.mark.parametrize(
    "given, told",
    [
        ("latents", "numbers .*; got str"),
        (None, "got NoneType"),
        ({"a": 1}, "got dict"),
        (np.array(["a", "b"]), "dtype <U1"),
        ([[1.0, 2.0], [3.0]], "as numbers"),
        (np.array(3.0), "got a scalar"),
        (np.zeros((1, 3)), "at least 2 latents; got 1"),
        (np.zeros((0, 3)), "at least 2 latents; got 0"),
        (np.zeros((5, 0)), r"at least one value; got shape \(5, 0\)"),
        (torch.zeros(5, 2, dtype=torch.complex64), "view_as_real"),
        (np.array([[1e200], [-1e200]]), "squares are finite"),
    ],
)
def test_what_is_no_latents_is_refused(given: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        diagnose(given)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_count_and_place(bad: float) -> None:
    x = normal(400_000, 8)  # in more than one part
    x[[399_000, 399_500], 3] = bad
    with pytest.raises(NonFiniteError, match="latents; got 2 of 400000 rows.* index 399000; leave"):
        diagnose(x)
    with pytest.raises(NonFiniteError, match="finite validation latents; got 2 of"):
        diagnose(normal(100, 8), validation=x)


def test_validation_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(M, 3\); got \(M, 4\)"):
        diagnose(normal(50, 3), validation=normal(50, 4))
    with pytest.raises(DataError, match="at least 2 validation latents"):
        diagnose(normal(50, 3), validation=normal(1, 3))


def test_a_seed_decides_and_the_global_state_is_left_alone() -> None:
    x = normal(5500, 1)
    torch.manual_seed(1)
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = diagnose(x, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    torch.manual_seed(2)
    assert diagnose(x, seed=3).to_dict() == first.to_dict()
    assert diagnose(x, seed=4).intrinsic_dimension != first.intrinsic_dimension
    assert diagnose(x, seed=None).seed != diagnose(x, seed=None).seed
    with pytest.raises(OptionError, match="seed"):
        diagnose(x, seed=-1)


def test_the_caller_s_default_dtype_does_not_matter() -> None:
    x = normal(500, 3)
    expected = diagnose(x).to_dict()
    torch.set_default_dtype(torch.float64)
    try:
        assert diagnose(x).to_dict() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_holds_latents_elsewhere_is_told_how_to_get_them(tmp_path: Path) -> None:
    for path in ("z.npy", tmp_path / "z.npy"):
        with pytest.raises(
            DataError, match=r"Load the file first, as by np\.load; LatentStore\(path\)"
        ):
            diagnose(path)
    with pytest.raises(DataError, match=r"got DataLoader.*torch\.cat.*store=path.*LatentStore"):
        diagnose(DataLoader(TensorDataset(torch.zeros(4, 2))))


@pytest.mark.parametrize(
    "dtype, remedy", [(torch.float32, "; leave these rows out"), (torch.float16, "half precision")]
)
def test_the_remedy_for_nan_suits_the_dtype(dtype: torch.dtype, remedy: str) -> None:
    with pytest.raises(NonFiniteError, match=remedy):
        diagnose(torch.full((9, 2), torch.nan, dtype=dtype))
