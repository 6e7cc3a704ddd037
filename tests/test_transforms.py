"""Transforms: their inverse, their determinant, and that they follow the latents' units."""

import math

import pytest
import torch
from torch import Tensor

from latentfit.errors import DataError, FileFormatError, OptionError
from latentfit.transforms import TRANSFORMS, Identity, Standardize, Transform, make_transform

EVERY = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


def latents(dtype: torch.dtype = torch.float64, n: int = 500) -> Tensor:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x @ torch.tensor([[1.0, 0.5, 0], [0, 1, -2], [0, 0, 1]], dtype=x.dtype) + 3).to(dtype)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_inverse_undoes_forward_in_the_dtype_of_the_latents(
    transform: type[Transform], dtype: torch.dtype
) -> None:
    x = latents(dtype)
    fitted = transform.fit(x)
    rows = fitted.forward(x)
    assert rows.dtype == torch.float32
    back = fitted.inverse(rows, dtype)
    assert back.dtype == dtype
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(back, x, rtol=2 * eps, atol=10 * eps)


@EVERY
def test_log_determinant_is_that_of_the_jacobian(transform: type[Transform]) -> None:
    x = latents() * torch.tensor([1e-3, 1.0, 1e3])
    if transform is Identity:
        x = latents()
    fitted = transform.fit(x)
    got = fitted.log_determinant(x[:4])
    for row, value in zip(x[:4], got, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: fitted.forward(z[None])[0], row)
        assert float(value) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-4)


@EVERY
def test_its_state_rebuilds_it(transform: type[Transform]) -> None:
    x = latents()
    fitted = transform.fit(x)
    again = transform.from_state(fitted.state(), 3)
    assert torch.equal(again.forward(x), fitted.forward(x))
    assert again.dim == fitted.dim == 3


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_standardized_rows_have_mean_zero_and_deviation_one_at_any_scale(scale: float) -> None:
    rows = Standardize.fit(latents() * scale).forward(latents() * scale)
    torch.testing.assert_close(rows.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(3))


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@pytest.mark.parametrize("shift", [0.0, -1e4])
def test_standardized_rows_do_not_depend_on_units(factor: float, shift: float) -> None:
    moved = (latents() + shift) * factor
    torch.testing.assert_close(
        Standardize.fit(moved).forward(moved), Standardize.fit(latents()).forward(latents())
    )


def test_float32_latents_far_from_zero_keep_their_digits() -> None:
    x = (latents() - latents().mean(0) + 1e6).float()  # steps of 1/16 at a deviation near 1
    fitted = Standardize.fit(x)
    rows = fitted.forward(x)
    assert fitted.constant == []
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(3))
    assert torch.equal(fitted.inverse(rows, torch.float32), x)


def test_float64_latents_may_be_further_from_zero_than_float32_could_tell() -> None:
    x = latents() + 1e9
    assert Standardize.fit(x).constant == []
    assert Standardize.fit(x.float()).constant == [0, 1, 2]  # here they are all rounded to 1e9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, -1e5, 1e-20])
def test_constant_dimensions_are_dropped_and_come_back_exactly(
    dtype: torch.dtype, constant: float
) -> None:
    x = latents(dtype)
    x[:, 1] = constant
    fitted = Standardize.fit(x)
    assert fitted.constant == [1]
    assert fitted.dim == 2
    rows = fitted.forward(x)
    assert rows.shape == (500, 2)
    assert torch.equal(fitted.inverse(rows, dtype)[:, 1], x[:, 1])
    again = Standardize.from_state(fitted.state(), 3)
    assert torch.equal(again.inverse(rows, dtype), fitted.inverse(rows, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_off_the_constants_the_density_is_zero(dtype: torch.dtype) -> None:
    x = latents(dtype)
    x[:, 1] = 7
    fitted = Standardize.fit(x)
    expected = -x[:, [0, 2]].double().std(0, correction=0).log().sum()
    torch.testing.assert_close(fitted.log_determinant(x), expected.float().expand(500))
    x[3, 1] += 0.01
    assert fitted.log_determinant(x).isneginf().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_row_that_was_fitted_counts_as_off_the_constants(dtype: torch.dtype) -> None:
    x = latents(dtype, 1000)
    x[:, 0] = 1
    x[17, 0] += 1e-5  # the standard deviation alone would drown it in float32's rounding
    x[:, 1] = 1
    x[17, 1] += torch.finfo(dtype).eps  # rounding
    fitted = Standardize.fit(x)
    assert fitted.constant == [1]
    for given in (x, x.float(), x.double()):
        assert fitted.log_determinant(given).isfinite().all()


def test_latents_that_are_all_equal_leave_no_dimension() -> None:
    assert Standardize.fit(torch.full((5, 2), 0.1)).dim == 0


@EVERY
def test_samples_beyond_the_dtypes_range_become_its_largest(transform: type[Transform]) -> None:
    x = torch.tensor([[-65000.0, 0], [65000, 1]]).half()
    fitted = transform.fit(x)
    rows = fitted.forward(x) * 2
    assert fitted.inverse(rows, torch.float16)[:, 0].tolist() == [-65504, 65504]


def test_numbers_beyond_what_can_be_squared_are_refused() -> None:
    with pytest.raises(DataError, match="squares are finite; got values from .*e\\+200"):
        Standardize.fit(latents() * 1e200)
    with pytest.raises(DataError, match="transform='standardize'"):
        Identity.fit(latents() * 1e20)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"mean": torch.zeros(3)},
        {"mean": torch.zeros(2), "scale": torch.ones(2)},
        {"mean": torch.zeros(3), "scale": -torch.ones(3)},
        {"mean": torch.zeros(3), "scale": torch.full((3,), math.nan)},
        {"mean": torch.full((3,), math.inf), "scale": torch.ones(3)},
    ],
)
def test_a_state_that_does_not_fit_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(FileFormatError, match=r"Expected"):
        Standardize.from_state(state, 3)


def test_the_identity_takes_no_state() -> None:
    with pytest.raises(FileFormatError, match="mean"):
        Identity.from_state({"mean": torch.zeros(3)}, 3)


@pytest.mark.parametrize("name", ["whitening", None, 3, ["standardize"]])
def test_an_unknown_transform_lists_those_there_are(name: object) -> None:
    with pytest.raises(OptionError, match="'standardize', 'none'; got"):
        make_transform(name)
