"""Transforms: their inverse, their determinant, and that they follow the latents' units."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.autograd.functional import jacobian

from latentfit.choosing import TRANSFORMS
from latentfit.errors import DataError, FileFormatError, LatentsWarning, OptionError
from latentfit.moments import measure
from latentfit.principal import check_size
from latentfit.transforms import Transform

EVERY = pytest.mark.parametrize("name", TRANSFORMS)
ROTATED = pytest.mark.parametrize("name", ["scale", "whiten"])
SCALED = pytest.mark.parametrize("name", ["scale", "standardize", "whiten"])
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16]
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(dtype: torch.dtype = torch.float64, n: int = 500) -> Tensor:
    x = torch.randn(n, 3, generator=generator(), dtype=torch.float64)
    return (x @ torch.tensor([[1.0, 0.5, 0], [0, 1, -2], [0, 0, 1]], dtype=x.dtype) + 3).to(dtype)


def images(dtype: torch.dtype = torch.float32, n: int = 200) -> Tensor:
    """Three channels of very different means and scales, whose positions differ."""
    x = torch.randn(n, 3, 4, 5, generator=generator(), dtype=torch.float64)
    x = x * torch.linspace(1, 2, 20).view(4, 5) + torch.linspace(-1, 1, 20).view(4, 5)
    return ((x + 5) * torch.tensor([0.1, 1, 30]).view(3, 1, 1)).to(dtype)


def fit(name: str, x: Tensor) -> Transform:
    kind = TRANSFORMS[name]
    return kind().fit(measure([x], covariance=kind.needs_covariance))


def close(dtype: torch.dtype) -> float:
    """The relative step of a dtype, or of the rows'."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def half_log_gram(fitted: Transform, latent: Tensor) -> float:
    """Half of log det(J J^T): the log volume that a unit of the subspace gets among the rows."""
    j = jacobian(lambda z: fitted.forward(z[None])[0].double(), latent)
    return float(torch.linalg.slogdet(j @ j.T)[1]) / 2


# --- laws of all ---


@EVERY
@DTYPES
def test_inverse_undoes_forward_in_the_dtype_of_the_latents(name: str, dtype: torch.dtype) -> None:
    x = latents(dtype)
    fitted = fit(name, x)
    rows = fitted.forward(x)
    assert rows.dtype == torch.float32
    assert rows.shape == (500, 3)
    back = fitted.inverse(rows, dtype)
    assert back.dtype == dtype
    torch.testing.assert_close(back, x, rtol=2 * close(dtype), atol=10 * close(dtype))


@EVERY
def test_log_determinant_is_that_of_the_jacobian(name: str) -> None:
    x = latents()
    if name != "none":
        x = x * torch.tensor([1e-3, 1.0, 1e3])
    fitted = fit(name, x)
    for row, value in zip(x[:4], fitted.log_determinant(x[:4]), strict=True):
        assert float(value) == pytest.approx(half_log_gram(fitted, row), abs=1e-4)


@EVERY
@pytest.mark.parametrize("make", [latents, images])
def test_its_state_rebuilds_it(name: str, make: Callable[[], Tensor]) -> None:
    x = make()
    fitted = fit(name, x)
    again = TRANSFORMS[name]().load_state(fitted.state(), tuple(x.shape[1:]))
    flat = x.flatten(1)
    assert torch.equal(again.forward(flat), fitted.forward(flat))
    assert torch.equal(again.log_determinant(flat), fitted.log_determinant(flat))
    assert (again.dim, again.layout) == (fitted.dim, fitted.layout)


@EVERY
def test_rows_beyond_one_piece_are_mapped_alike(name: str) -> None:
    x = torch.randn(5000, 900, generator=generator(), dtype=torch.float32)  # more than 2**22
    fitted = fit(name, x)
    rows = fitted.forward(x)
    assert torch.equal(rows[4990:], fitted.forward(x[4990:]))
    torch.testing.assert_close(fitted.inverse(rows, x.dtype), x, rtol=1e-5, atol=1e-5)


@EVERY
def test_samples_beyond_the_dtypes_range_become_its_largest(name: str) -> None:
    x = torch.tensor([[-65000.0, 0], [65000, 1], [0, 0], [0, 1]]).half()
    fitted = fit(name, x)
    back = fitted.inverse(fitted.forward(x[:2]) * 2, torch.float16)
    assert back[:, 0].tolist() == [-65504, 65504]


@EVERY
def test_forward_is_differentiable(name: str) -> None:
    x = latents(torch.float32).requires_grad_()
    fitted = fit(name, x)
    (fitted.forward(x).square().sum() + fitted.log_determinant(x).sum()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@EVERY
def test_it_is_called_what_transform_takes(name: str) -> None:
    assert TRANSFORMS[name].name == name


@EVERY
def test_it_works_where_the_latents_are_and_whatever_the_default_dtype(
    name: str,
) -> None:
    fitted = fit(name, latents())
    there = latents(torch.float16).to("meta")  # every machine has this device, which has no numbers
    torch.set_default_dtype(torch.float64)
    try:
        rows = fitted.forward(there)
        back = fitted.inverse(rows, torch.float16)
        value = fitted.log_determinant(there)
        here = fitted.log_determinant(latents())
    finally:
        torch.set_default_dtype(torch.float32)
    assert (rows.device.type, rows.dtype, rows.shape) == ("meta", torch.float32, (500, 3))
    assert (back.device.type, back.dtype, back.shape) == ("meta", torch.float16, (500, 3))
    assert (value.device.type, value.dtype, value.shape) == ("meta", torch.float32, (500,))
    assert here.dtype == torch.float32


# --- equivariance ---


@SCALED
@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, -1.0, 1e6])
@pytest.mark.parametrize("make", [latents, images])
def test_rows_do_not_depend_on_units(
    name: str, factor: float, shift: float, make: Callable[..., Tensor]
) -> None:
    x = make(torch.float64)
    moved = (x + shift) * factor
    one, other = fit(name, x), fit(name, moved)
    rows = one.forward(x.flatten(1))
    torch.testing.assert_close(other.forward(moved.flatten(1)), rows, rtol=1e-4, atol=1e-4)
    expected = one.log_determinant(x.flatten(1)) - one.dim * math.log(factor)
    torch.testing.assert_close(
        other.log_determinant(moved.flatten(1)), expected, rtol=1e-5, atol=1e-4
    )


@SCALED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor, shift", [(1e-6, 0), (1e6, 0), (1, 1e4), (1, -1e6)])
def test_units_cost_no_more_than_the_latents_own_rounding(
    name: str, dtype: torch.dtype, factor: float, shift: float
) -> None:
    moved = ((latents() + shift) * factor).to(dtype)
    step = torch.finfo(dtype).eps * max(1, abs(shift))
    torch.testing.assert_close(
        fit(name, moved).forward(moved),
        fit(name, latents()).forward(latents()),
        rtol=1e-4,
        atol=1e-4 + 10 * step,
    )


@ROTATED
def test_the_order_of_the_dimensions_does_not_matter(name: str) -> None:
    x = latents()
    order = [2, 0, 1]
    torch.testing.assert_close(
        fit(name, x[:, order]).forward(x[:, order]), fit(name, x).forward(x), rtol=1e-5, atol=1e-5
    )


@ROTATED
def test_the_sign_of_an_axis_is_not_left_to_rounding(name: str) -> None:
    signs = []
    for seed in range(20):
        x = torch.randn(300, 1, generator=generator(seed), dtype=torch.float64)
        x = torch.cat((x, -x), 1)  # the components of the axis are equal in size
        signs.append(float((fit(name, x).forward(x)[:, 0] * x[:, 0]).sum().sign()))
    assert signs == [1.0] * 20


@ROTATED
def test_the_largest_component_of_an_axis_is_positive(name: str) -> None:
    for seed in range(5):
        mixed = torch.randn(4, 4, generator=generator(seed), dtype=torch.float64)
        x = torch.randn(300, 4, generator=generator(seed + 5), dtype=torch.float64) @ mixed
        rotation = fit(name, x).state()["rotation"]
        assert rotation.amax(0).tolist() == rotation.abs().amax(0).tolist()


# --- standardize ---


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_standardized_rows_have_mean_zero_and_deviation_one_at_any_scale(scale: float) -> None:
    rows = fit("standardize", latents() * scale).forward(latents() * scale)
    torch.testing.assert_close(rows.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(3))


def test_float32_latents_far_from_zero_keep_their_digits() -> None:
    x = (latents() - latents().mean(0) + 1e6).float()  # steps of 1/16 at a deviation near 1
    fitted = fit("standardize", x)
    rows = fitted.forward(x)
    assert fitted.constant == []
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(3))
    assert torch.equal(fitted.inverse(rows, torch.float32), x)


def test_float64_latents_may_be_further_from_zero_than_float32_could_tell() -> None:
    x = latents() + 1e9
    assert fit("standardize", x).constant == []
    assert fit("standardize", x.float()).constant == [0, 1, 2]  # they are all rounded to 1e9 here


@DTYPES
def test_images_have_one_mean_and_deviation_a_channel(dtype: torch.dtype) -> None:
    x = images(dtype)
    fitted = fit("standardize", x)
    assert fitted.layout == (3, 4, 5)
    assert fitted.dim == 60
    channels = x.double().transpose(0, 1).flatten(1)  # (3, n * 20)
    expected = (channels - channels.mean(1, keepdim=True)) / channels.std(1, False, keepdim=True)
    rows = fitted.forward(x.flatten(1)).view(200, 3, 4, 5)
    torch.testing.assert_close(rows.transpose(0, 1).flatten(1), expected.float())
    back = fitted.inverse(rows.flatten(1), dtype).view_as(x)
    scale = fitted.state()["scale"].view(3, 4, 5)
    torch.testing.assert_close(back / scale, x / scale, rtol=2 * close(dtype), atol=1e-6)
    value = float(fitted.log_determinant(x[:1].flatten(1)))
    assert value == pytest.approx(-20 * float(channels.std(1, False).log().sum()), rel=1e-5)


@pytest.mark.parametrize("shape", [(60,), (3, 20), (60, 1, 1), (3, 2, 2, 5)])
def test_what_is_no_image_is_standardized_by_dimension(shape: tuple[int, ...]) -> None:
    fitted = fit("standardize", images().view(200, *shape))
    rows = fitted.forward(images().flatten(1))
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(60))
    assert fitted.layout is None
    assert fit("none", images().view(200, *shape)).layout is None


@pytest.mark.parametrize("name", ["none", "standardize"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (30, 2, 1), (30, 1, 2), (3, 20, 1), (3, 1, 20)])
def test_an_image_has_more_than_one_position(name: str, shape: tuple[int, ...]) -> None:
    assert fit(name, images().view(200, *shape)).layout == shape


def test_a_constant_channel_leaves_an_image_of_the_others() -> None:
    x = images()
    x[:, 1] = torch.linspace(0, 1, 20).view(4, 5)
    fitted = fit("standardize", x)
    assert fitted.layout == (2, 4, 5)
    assert fitted.constant == list(range(20, 40))
    rows = fitted.forward(x.flatten(1))
    back = fitted.inverse(rows, torch.float32).view_as(x)
    assert torch.equal(back[:, 1], x[:, 1])
    torch.testing.assert_close(back, x)
    rest = fit("standardize", x[:, [0, 2]])
    assert torch.equal(rows, rest.forward(x[:, [0, 2]].flatten(1)))


def test_a_constant_position_leaves_no_image_and_does_not_count_in_its_channel() -> None:
    x = images()
    x[:, 1, 0, 0] = 1e6
    fitted = fit("standardize", x)
    assert fitted.layout is None
    assert fitted.constant == [20]
    rows = fitted.forward(x.flatten(1))
    assert rows.shape == (200, 59)
    channel = rows[:, 20:39]
    assert float(channel.double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(channel.double().std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert torch.equal(fitted.inverse(rows, torch.float32)[:, 20], torch.full((200,), 1e6))


def test_a_channel_with_one_position_that_varies_has_its_mean_and_deviation() -> None:
    x = images(torch.float64)
    x[:, 1].view(200, -1)[:, 1:] = 4
    position = x[:, 1, 0, 0]
    rows = fit("standardize", x).forward(x.flatten(1))
    expected = (position - position.mean()) / position.std(correction=0)
    torch.testing.assert_close(rows[:, 20], expected.float())


@pytest.mark.parametrize("differ", ["mean", "scale", "both"])
def test_means_or_deviations_that_differ_within_channels_make_no_image(differ: str) -> None:
    whole, flat = (fit("standardize", x).state() for x in (images(), images().flatten(1)))
    state = flat if differ == "both" else {**whole, differ: flat[differ]}
    assert TRANSFORMS["standardize"]().load_state(whole, (3, 4, 5)).layout == (3, 4, 5)
    assert TRANSFORMS["standardize"]().load_state(state, (3, 4, 5)).layout is None


def test_images_of_4096_numbers_need_no_covariance() -> None:
    assert not TRANSFORMS["standardize"].needs_covariance
    x = torch.randn(20, 4, 32, 32, generator=generator())
    assert fit("standardize", x).layout == (4, 32, 32)
    assert fit("none", x).layout == (4, 32, 32)


# --- scale and whiten ---


def test_whitened_rows_are_those_of_scikit_learn() -> None:
    x = torch.randn(400, 6, generator=generator(), dtype=torch.float64)
    x = x @ torch.randn(6, 6, generator=generator(1), dtype=torch.float64) + 2
    rows = fit("whiten", x).forward(x).double().numpy()
    theirs = PCA(whiten=True).fit_transform(x.numpy())
    theirs *= math.sqrt(400 / 399)  # it divides by n - 1
    theirs *= np.sign((theirs * rows).sum(0))
    np.testing.assert_allclose(rows, theirs, atol=1e-5)
    np.testing.assert_allclose(np.cov(rows.T, bias=True), np.eye(6), atol=1e-6)


def test_scaled_rows_are_the_latents_but_for_a_rotation_and_one_scale() -> None:
    x = latents() * torch.tensor([0.01, 1, 10])
    rows = fit("scale", x).forward(x).double()
    torch.testing.assert_close(rows.mean(0), torch.zeros(3).double(), atol=1e-6, rtol=0)
    ratio = torch.pdist(rows[:50]) / torch.pdist(x[:50])
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)
    covariance = rows.T.cov(correction=0)
    assert float(covariance.trace()) == pytest.approx(3, rel=1e-5)
    variances = covariance.diagonal()
    assert torch.equal(variances, variances.sort(descending=True).values)
    torch.testing.assert_close(covariance, variances.diag(), atol=1e-6, rtol=0)


def deficient(dtype: torch.dtype = torch.float64, n: int = 300) -> Tensor:
    """Rank 3 in 8 dimensions: sums, a duplicate, a constant and unequal scales."""
    x = torch.randn(n, 3, generator=generator(), dtype=torch.float64)
    a, b, c = x.T
    columns = [a, 100 * b, a, a + b, 0 * a + 7, 3 * c - b, -c, a + 50]
    return torch.stack(columns, 1).to(dtype)


@ROTATED
@DTYPES
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_only_directions_that_vary_are_kept(name: str, dtype: torch.dtype, shift: float) -> None:
    x = deficient(dtype) + shift
    fitted = fit(name, x)
    assert fitted.dim == 3
    assert fitted.constant == [4]
    assert fitted.layout is None
    rows = fitted.forward(x)
    back = fitted.inverse(rows, dtype)
    step = 2 * close(dtype)
    torch.testing.assert_close(back, x, rtol=step, atol=step * float(x.abs().max()))
    assert torch.equal(back[:, 4], x[:, 4])
    assert fitted.log_determinant(x).isfinite().all()
    assert fitted.log_determinant(back).isfinite().all()


@ROTATED
def test_new_rows_keep_the_dependencies(name: str) -> None:
    fitted = fit(name, deficient())
    rows = torch.randn(1000, 3, generator=generator(5))
    z = fitted.inverse(rows, torch.float64)
    a, b, c = z[:, 0], z[:, 1] / 100, -z[:, 6]
    expected = torch.stack([a, 100 * b, a, a + b, 0 * a + 7, 3 * c - b, -c, a + 50], 1)
    torch.testing.assert_close(z, expected, rtol=1e-9, atol=1e-9)
    narrow = fitted.inverse(rows, torch.float32)
    torch.testing.assert_close(narrow[:, 0], narrow[:, 2], rtol=1e-6, atol=1e-6)


@ROTATED
def test_the_determinant_of_a_subspace_is_that_of_its_own_volume(name: str) -> None:
    x = deficient()
    fitted = fit(name, x)
    value = float(fitted.log_determinant(x[:1]))
    assert value == pytest.approx(half_log_gram(fitted, x[0]), abs=1e-4)
    basis = torch.linalg.qr(
        fitted.inverse(torch.eye(3), x.dtype).sub(fitted.inverse(torch.zeros(1, 3), x.dtype)).T
    )[0]
    within = jacobian(
        lambda t: fitted.forward((x[0] + basis @ t)[None])[0].double(), x.new_zeros(3)
    )
    assert value == pytest.approx(float(torch.linalg.slogdet(within)[1]), abs=1e-4)


@ROTATED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_off_the_subspace_the_density_is_zero(name: str, dtype: torch.dtype) -> None:
    x = deficient(dtype)
    fitted = fit(name, x)
    moved = x.clone()
    moved[0, 4] += 0.01  # the constant
    moved[1, 2] += 0.01  # the duplicate
    moved[2] += 0.01 * x.std(0)  # a sum
    moved[3] = fitted.inverse(fitted.forward(x[3:4]) + 5, dtype)  # inside, if far out
    assert fitted.log_determinant(moved).isneginf().nonzero()[:, 0].tolist() == [0, 1, 2]


@ROTATED
@pytest.mark.parametrize("seed", range(5))
@DTYPES
def test_no_row_that_was_fitted_counts_as_off_the_subspace(
    name: str, seed: int, dtype: torch.dtype
) -> None:
    """Whatever the spectrum, its small end below, at and above what rounding hides, with outliers."""
    g = generator(seed)
    spectrum = torch.logspace(0, -12, 25, dtype=torch.float64)
    x = torch.randn(400, 25, generator=g, dtype=torch.float64) * spectrum
    x[:3] *= 1000
    x = x @ torch.linalg.qr(torch.randn(25, 25, generator=g, dtype=torch.float64))[0] + seed
    x = x.to(dtype)
    fitted = fit(name, x)
    assert 1 <= fitted.dim < 25
    rows = fitted.forward(x)
    assert rows.isfinite().all()
    for given in (x, x.float(), x.double(), fitted.inverse(rows, dtype)):
        assert fitted.log_determinant(given).isfinite().all()


@ROTATED
def test_fewer_rows_than_dimensions(name: str) -> None:
    x = torch.randn(50, 200, generator=generator()) + 10
    fitted = fit(name, x)
    assert fitted.dim == 49  # the mean takes one
    torch.testing.assert_close(fitted.inverse(fitted.forward(x), x.dtype), x, rtol=1e-5, atol=1e-5)
    assert fitted.log_determinant(x).isfinite().all()
    assert fitted.log_determinant(torch.randn(9, 200) + 10).isneginf().all()


@ROTATED
def test_small_directions_are_kept_as_long_as_float32_can_tell(name: str) -> None:
    """A rotation of deviations 1 and 1e-4: more than a thousand steps of float32."""
    x = torch.randn(1000, 2, generator=generator(), dtype=torch.float64)
    x = (x * torch.tensor([1, 1e-4])) @ torch.linalg.qr(torch.ones(2, 2).double() + torch.eye(2))[0]
    fitted = fit(name, x.float())
    assert fitted.dim == 2
    if name == "whiten":
        torch.testing.assert_close(
            fitted.forward(x).std(0, correction=0), torch.ones(2), atol=0.01, rtol=0
        )


@ROTATED
def test_float64_latents_keep_directions_that_float32_could_not_tell(name: str) -> None:
    """A rotation of deviations 1 and 1e-6, which an encoder's sums in float32 could hide."""
    x = torch.randn(1000, 2, generator=generator(), dtype=torch.float64)
    x = (x * torch.tensor([1, 1e-6])) @ torch.linalg.qr(torch.ones(2, 2).double() + torch.eye(2))[0]
    assert fit(name, x).dim == 2
    assert fit(name, x.float()).dim == 1


@ROTATED
def test_what_an_encoder_leaves_of_a_dependency_in_float32_is_dropped(name: str) -> None:
    """A linear layer from 10 to 64 numbers, computed in float32, has rank 10 but for its rounding."""
    hidden = torch.randn(2000, 10, generator=generator())
    weight = torch.randn(10, 64, generator=generator(1))
    assert fit(name, hidden @ weight + torch.randn(64, generator=generator(2))).dim == 10


def test_latents_that_are_all_equal_leave_no_dimension() -> None:
    for name in ("scale", "standardize", "whiten"):
        x = torch.full((5, 2), 0.1)
        fitted = fit(name, x)
        assert fitted.dim == 0
        assert torch.equal(fitted.inverse(fitted.forward(x), x.dtype), x)


@ROTATED
def test_more_dimensions_than_axes_can_be_found_of_are_refused(name: str) -> None:
    moments = measure([torch.randn(2, 4097)], covariance=False)
    with pytest.raises(OptionError, match=r"at most 4096 .* got 4097. Use transform='standardize'"):
        TRANSFORMS[name]().fit(moments)
    check_size(name, (4, 32, 32))
    with pytest.raises(OptionError, match=f"for transform='{name}'; got 4100"):
        check_size(name, (4, 1025))


# --- constants ---


@SCALED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e5, 1e-20])
def test_constant_dimensions_are_dropped_and_come_back_exactly(
    name: str, dtype: torch.dtype, constant: float
) -> None:
    x = latents(dtype)
    x[:, 1] = constant
    fitted = fit(name, x)
    assert fitted.constant == [1]
    assert fitted.dim == 2
    rows = fitted.forward(x)
    assert rows.shape == (500, 2)
    assert torch.equal(fitted.inverse(rows, dtype)[:, 1], x[:, 1])
    again = TRANSFORMS[name]().load_state(fitted.state(), (3,))
    assert torch.equal(again.inverse(rows, dtype), fitted.inverse(rows, dtype))


@SCALED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_off_the_constants_the_density_is_zero(name: str, dtype: torch.dtype) -> None:
    x = latents(dtype)
    x[:, 1] = 7
    fitted = fit(name, x)
    x[3, 1] += 0.01
    assert fitted.log_determinant(x).isneginf().nonzero().flatten().tolist() == [3]


@SCALED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [1.0, -1e6])
def test_no_row_that_was_fitted_counts_as_off_the_constants(
    name: str, dtype: torch.dtype, constant: float
) -> None:
    x = latents(dtype, 1000)
    x[:, 0] = 1
    x[17, 0] += 1e-5  # the standard deviation alone would drown it in float32's rounding
    x[:, 1] = constant
    x[17, 1] += constant * torch.finfo(dtype).eps  # rounding
    fitted = fit(name, x)
    assert 1 in fitted.constant
    if name == "standardize":
        assert fitted.constant == [1]
    for given in (x, x.float(), x.double()):
        assert fitted.log_determinant(given).isfinite().all()


# --- heavy tails and narrow dtypes ---


@SCALED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outlier", [1e3, 1e9, 1e15])
def test_outliers_and_heavy_tails_give_finite_rows(
    name: str, dtype: torch.dtype, outlier: float
) -> None:
    x = torch.empty(2000, 4, dtype=torch.float64).cauchy_(generator=generator()).to(dtype)
    x[0, 0] = outlier
    fitted = fit(name, x)
    rows = fitted.forward(x)
    assert rows.isfinite().all()
    assert float(rows.abs().max()) <= 2 * math.sqrt(2000)
    assert fitted.log_determinant(x).isfinite().all()
    assert fitted.inverse(rows, dtype).isfinite().all()


# --- files ---


def states() -> list[Any]:
    good = {n: fit(n, latents()).state() for n in ("scale", "standardize", "whiten")}

    def bad(name: str, what: str, **changes: Tensor) -> Any:
        return pytest.param(name, {**good[name], **changes}, what, id=f"{name} {what}")

    cases = [pytest.param(name, {}, "shapes", id=f"{name} empty") for name in good]
    for name in good:
        cases += [
            bad(name, "shapes", mean=torch.zeros(2)),
            bad(name, "shapes", extra=torch.zeros(1)),
            bad(name, "finite", mean=torch.full((3,), math.inf)),
            bad(name, "finite", scale=good[name]["scale"] * math.nan),
            bad(name, "finite", mean=torch.zeros(3, dtype=torch.int64)),
            bad(name, "scales", scale=-good[name]["scale"]),
        ]
    for name in ("scale", "whiten"):
        rotation = good[name]["rotation"]
        cases += [
            bad(name, "orthonormal", rotation=rotation * 1.001),
            bad(name, "orthonormal", rotation=rotation[:, [0, 0, 1]]),
            bad(name, "shapes", rotation=rotation.flatten()),
            bad(name, "shapes", rotation=rotation.T[:2]),
            bad(name, "slack", slack=torch.tensor([0.0, -1.0])),
            bad(name, "slack", slack=torch.tensor([-1.0, 0.0])),
            bad(
                name,
                "at most 3 columns",
                rotation=torch.eye(3, 4),
                scale=torch.ones(4 if name == "whiten" else 1),
            ),
            bad(name, "scales", scale=torch.zeros_like(good[name]["scale"])),
        ]
    cases.append(bad("whiten", "shapes", scale=torch.ones(2)))
    cases.append(pytest.param("none", {"mean": torch.zeros(3)}, "shapes", id="none takes none"))
    return cases


@pytest.mark.parametrize("name, state, what", states())
def test_a_state_that_does_not_fit_is_refused(
    name: str, state: dict[str, Tensor], what: str
) -> None:
    with pytest.raises(FileFormatError, match=f"Expected .*{what}"):
        TRANSFORMS[name]().load_state(state, (3,))


def test_a_rotation_that_a_file_holds_in_float32_is_taken() -> None:
    state = {name: tensor.float() for name, tensor in fit("whiten", latents()).state().items()}
    again = TRANSFORMS["whiten"]().load_state(state, (3,))
    torch.testing.assert_close(
        again.forward(latents()), fit("whiten", latents()).forward(latents()), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("factor", [1e20, -1e20])
def test_the_identity_refuses_what_rows_cannot_hold(factor: float) -> None:
    with pytest.raises(DataError, match=r"up to 1e\+12 .* got .*e\+2\d. Use transform='auto'"):
        fit("none", latents() * factor)


def test_the_identity_takes_what_deviates_enough_along_one_dimension() -> None:
    x = latents() * torch.tensor([0.02, 1e-6, 1e-6])
    assert torch.equal(fit("none", x).forward(x), x.float())


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 0.0])
def test_the_identity_warns_of_what_methods_take_for_nothing(scale: float) -> None:
    with pytest.warns(LatentsWarning, match="deviate by 0.01 or more .*transform='auto'"):
        fit("none", latents() * scale)
