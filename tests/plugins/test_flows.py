"""The flows: inverses and determinants of their transformations, and the spline's kernel."""

from typing import Any

import pytest
import torch
from nflows.transforms.splines.rational_quadratic import (
    unconstrained_rational_quadratic_spline as reference,
)
from torch import Tensor

from latentfit.plugin import FlowSampler, GaussianMixture, OptionError
from latentfit_nflows import Spline, rational_quadratic_spline
from latentfit_normflows import RealNVP

FLOWS: dict[str, Any] = {
    "realnvp": lambda: RealNVP(layers=3, hidden=(16,)),
    "realnvp, deep": lambda: RealNVP(layers=4, hidden=(8, 8), base="normal"),
    "realnvp, linear": lambda: RealNVP(layers=2, hidden=()),
    "spline": lambda: Spline(layers=3, hidden=16),
    "spline, fine": lambda: Spline(
        layers=2, hidden=8, blocks=2, bins=20, tail_bound=2.0, base="normal"
    ),
}


def built(name: str, dim: int, *, spread: float = 0.2) -> FlowSampler:
    """A flow whose weights are random, so that it is far from the identity it starts as."""
    torch.manual_seed(dim)
    flow: FlowSampler = FLOWS[name]()
    flow.build(dim, 1000)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return flow.requires_grad_(False).eval()


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("dim", [2, 3, 5, 8])
def test_from_base_undoes_to_base(name: str, dim: int) -> None:
    flow = built(name, dim).double()
    x = 2 * torch.randn(100, dim, dtype=torch.float64)
    noise, _ = flow.to_base(x)
    assert (noise - x).abs().max() > 0.1
    torch.testing.assert_close(flow.from_base(noise), x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flow.to_base(flow.from_base(x))[0], x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("dim", [2, 5])
def test_the_log_determinant_is_that_of_the_jacobian(name: str, dim: int) -> None:
    flow = built(name, dim).double()
    x = torch.randn(6, dim, dtype=torch.float64)
    _, got = flow.to_base(x)
    assert got.shape == (6,)
    for row, value in zip(x, got, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda z: flow.to_base(z[None])[0][0], row)
        assert float(value) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-8)


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_starts_as_the_identity_up_to_the_order_of_the_columns(name: str) -> None:
    flow: FlowSampler = FLOWS[name]()
    flow.build(4, 1000)
    x = torch.randn(50, 4)
    noise, log_determinant = flow.to_base(x)
    torch.testing.assert_close(noise.sort(1).values, x.sort(1).values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_determinant, torch.zeros(50), atol=1e-3, rtol=0)


def test_the_spline_couples_every_dimension() -> None:
    flow = built("spline", 6)
    x = torch.randn(1, 6, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.to_base(z)[0][0], x)[:, 0]
    assert ((jacobian.abs() > 0).sum(0) > 1).all()


@pytest.mark.parametrize("name", ["spline", "spline, fine"])
def test_a_spline_in_one_dimension_needs_no_network(name: str) -> None:
    flow = built(name, 1).double()
    x = torch.linspace(-8, 8, 101, dtype=torch.float64)[:, None]
    noise, log_determinant = flow.to_base(x)
    torch.testing.assert_close(flow.from_base(noise), x, rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(flow.to_base(x.requires_grad_())[0].sum(), x)
    torch.testing.assert_close(log_determinant, slope[:, 0].log())
    assert log_determinant.abs().max() > 0.1


def test_realnvp_in_one_dimension_is_its_mixture() -> None:
    flow = RealNVP(components=3)
    flow.build(1, 100)
    x = torch.randn(20, 1)
    assert isinstance(flow.noise, GaussianMixture)
    torch.testing.assert_close(flow.log_prob(x), flow.noise.log_prob(x))
    with pytest.raises(OptionError, match="two or more dimensions.*base='mixture'.*base='normal'"):
        RealNVP(base="normal").build(1, 100)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_extreme_weights_and_rows_give_no_nan(name: str, spread: float) -> None:
    flow = built(name, 4, spread=spread)
    x = torch.cat([10.0**k * torch.randn(50, 4) for k in range(-6, 5)])
    noise, log_determinant = flow.to_base(x)
    back = flow.from_base(x)
    for tensor in (noise, log_determinant, back):
        assert not tensor.isnan().any()


# --- the kernel ---


def parameters(
    n: int, bins: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    made = (torch.randn(n, bins), torch.randn(n, bins), torch.randn(n, bins - 1))
    return tuple((scale * tensor).to(dtype) for tensor in made)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    "bins, bound, scale", [(2, 1.0, 1.0), (8, 5.0, 1.0), (8, 5.0, 6.0), (30, 3.0, 3.0)]
)
def test_the_kernel_is_that_of_nflows_with_its_gradients(
    inverse: bool, bins: int, bound: float, scale: float
) -> None:
    x = 1.3 * bound * (2 * torch.rand(2000, dtype=torch.float64) - 1)  # some of it in the tails
    given = (x, *parameters(2000, bins, scale=scale))
    mine = tuple(tensor.clone().requires_grad_() for tensor in given)
    theirs = tuple(tensor.clone().requires_grad_() for tensor in given)
    got = rational_quadratic_spline(*mine, tail_bound=bound, inverse=inverse)
    expected = reference(*theirs, tails="linear", tail_bound=bound, inverse=inverse)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    weights = torch.randn(2, 2000, dtype=torch.float64)
    ((got[0] * weights[0]).sum() + (got[1] * weights[1]).sum()).backward()
    ((expected[0] * weights[0]).sum() + (expected[1] * weights[1]).sum()).backward()
    for one, other in zip(mine, theirs, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_the_kernel_is_its_own_inverse(scale: float) -> None:
    x = 7 * (2 * torch.rand(4000, dtype=torch.float64) - 1)
    shape = parameters(4000, 8, scale=scale)
    y, forward = rational_quadratic_spline(x, *shape, tail_bound=5.0)
    again, backward = rational_quadratic_spline(y, *shape, tail_bound=5.0, inverse=True)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(backward, -forward, rtol=0, atol=1e-4)


def test_the_kernel_is_increasing_and_the_identity_in_the_tails() -> None:
    x = torch.linspace(-9, 9, 5001, dtype=torch.float64)
    shape = tuple(p.expand(5001, -1) for p in parameters(1, 8, scale=4.0))
    y, log_derivative = rational_quadratic_spline(x, *shape, tail_bound=5.0)
    assert (y.diff() > 0).all()
    outside = x.abs() > 5
    assert torch.equal(y[outside], x[outside])
    assert (log_derivative[outside] == 0).all()
    assert (y[~outside].abs() <= 5).all()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_no_float32_input_gives_nan_where_nflows_may_raise(inverse: bool, scale: float) -> None:
    n = 20_000
    shape = parameters(n, 8, scale=scale, dtype=torch.float32)
    x = 5 * (2 * torch.rand(n) - 1)
    edges = torch.tensor([-5.0, 5.0, 0.0, -0.0, 1e-30, 1e30, -1e30, float("inf")])
    x[: len(edges)] = edges
    x[len(edges) : 2 * len(edges)] = torch.nextafter(edges, torch.zeros(()))
    knots, _ = rational_quadratic_spline(x, *shape, tail_bound=5.0)
    for given in (x, knots):
        y, log_derivative = rational_quadratic_spline(
            given, *shape, tail_bound=5.0, inverse=inverse
        )
        assert not y.isnan().any()
        assert log_derivative.isfinite().all()
        inside = given.abs() <= 5
        assert (y[inside].abs() <= 5 + 1e-5).all()
        assert torch.equal(y[~inside], given[~inside])


def test_gradients_of_the_kernel_are_finite_for_float32_training() -> None:
    given = tuple(p.requires_grad_() for p in parameters(5000, 8, scale=20.0, dtype=torch.float32))
    x = (6 * (2 * torch.rand(5000) - 1)).requires_grad_()
    y, log_derivative = rational_quadratic_spline(x, *given, tail_bound=5.0)
    (y.sum() + log_derivative.sum()).backward()
    for tensor in (x, *given):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
