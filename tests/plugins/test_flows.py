"""The laws of all flows: inverses, determinants, densities, contexts; and the spline's kernel."""

import math
from typing import Any

import pytest
import torch
from nflows.transforms.splines.rational_quadratic import (
    unconstrained_rational_quadratic_spline as reference,
)
from torch import Tensor

from latentfit.plugin import FlowSampler, GaussianMixture, OptionError, Run
from latentfit_nflows import Spline, SplineAR
from latentfit_normflows import MAF, Planar, Radial, RealNVP
from latentfit_rational_quadratic import rational_quadratic_spline

FLOWS: dict[str, Any] = {
    "realnvp": lambda **o: RealNVP(**{"layers": 3, "hidden": (16,)} | o),
    "realnvp, deep": lambda **o: RealNVP(
        **{"layers": 4, "hidden": (8, 8), "base": "normal"} | o,
    ),
    "realnvp, linear": lambda **o: RealNVP(**{"layers": 2, "hidden": ()} | o),
    "spline": lambda **o: Spline(**{"layers": 3, "hidden": 16} | o),
    "spline, fine": lambda **o: Spline(
        **{"layers": 2, "hidden": 8, "blocks": 2, "bins": 20, "tail_bound": 2.0, "base": "normal"}
        | o
    ),
    "maf": lambda **o: MAF(**{"layers": 3, "hidden": 16} | o),
    "maf, deep": lambda **o: MAF(**{"layers": 2, "hidden": 4, "blocks": 2, "base": "normal"} | o),
    "planar": lambda **o: Planar(**{"layers": 4} | o),
    "radial": lambda **o: Radial(**{"layers": 4} | o),
    "spline-ar": lambda **o: SplineAR(**{"layers": 2, "hidden": 16} | o),
    "spline-ar, fine": lambda **o: SplineAR(
        **{"layers": 1, "hidden": 4, "blocks": 2, "bins": 20, "tail_bound": 2.0, "base": "normal"}
        | o
    ),
}
METHODS = [name for name in FLOWS if "," not in name]
CONDITIONAL = [name for name in FLOWS if name not in ("planar", "radial")]
CASES = [(name, 0) for name in FLOWS] + [(name, 3) for name in CONDITIONAL]
every_case = pytest.mark.parametrize("name, context_dim", CASES)


def built(
    name: str,
    dim: int,
    context_dim: int = 0,
    *,
    spread: float = 0.2,
    from_start: bool = False,
    **options: Any,
) -> FlowSampler:
    """A flow with random weights, or random changes to those that make it start as the identity."""
    torch.manual_seed(dim)
    flow: FlowSampler = FLOWS[name](**options)
    if context_dim:
        flow.context_dim, flow.context_kind = context_dim, "vector"
    flow.build(dim, 1000)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(from_start).add_(spread * torch.randn_like(parameter))
    return flow.requires_grad_(False).eval()


def contexts(n: int, context_dim: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """The arguments that follow the rows: a random context, or none."""
    return (torch.randn(n, context_dim, dtype=dtype),) if context_dim else ()


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@every_case
@pytest.mark.parametrize("dim", [2, 3, 8])
def test_from_base_undoes_to_base(name: str, context_dim: int, dim: int) -> None:
    flow = built(name, dim, context_dim).double()
    x = 2 * torch.randn(100, dim, dtype=torch.float64)
    context = contexts(100, context_dim)
    noise, _ = flow.to_base(x, *context)
    assert (noise - x).abs().max() > 0.1
    torch.testing.assert_close(flow.from_base(noise, *context), x, rtol=1e-6, atol=1e-6)
    again, _ = flow.to_base(flow.from_base(x, *context), *context)
    torch.testing.assert_close(again, x, rtol=1e-6, atol=1e-6)


@every_case
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_log_determinant_is_that_of_the_jacobian(name: str, context_dim: int, dim: int) -> None:
    if dim == 1 and name.startswith("realnvp") and not context_dim:
        pytest.skip("there RealNVP is its base alone")
    flow = built(name, dim, context_dim).double()
    x, context = torch.randn(6, dim, dtype=torch.float64), contexts(6, context_dim)
    _, got = flow.to_base(x, *context)
    assert got.shape == (6,)
    for i, (row, value) in enumerate(zip(x, got, strict=True)):
        given = [c[i : i + 1] for c in context]
        jacobian = torch.autograd.functional.jacobian(
            lambda z, given=given: flow.to_base(z[None], *given)[0][0], row
        )
        assert float(value) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), abs=1e-8)


@every_case
def test_a_flow_starts_as_the_identity_up_to_the_order_of_the_columns(
    name: str, context_dim: int
) -> None:
    flow: FlowSampler = FLOWS[name]()
    flow.context_dim = context_dim
    flow.build(4, 1000)
    x, context = torch.randn(50, 4), contexts(50, context_dim, torch.float32)
    noise, log_determinant = flow.to_base(x, *context)
    torch.testing.assert_close(noise.sort(1).values, x.sort(1).values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_determinant, torch.zeros(50), atol=1e-3, rtol=0)


@every_case
@pytest.mark.parametrize("base", ["normal", "mixture"])
def test_the_density_integrates_to_one(name: str, context_dim: int, base: str) -> None:
    flow = built(name, 2, context_dim, spread=0.1, base=base, components=3, from_start=True)
    side = torch.linspace(-9, 9, 241)
    rows = torch.cartesian_prod(side, side)
    context = [c.expand(len(rows), -1) for c in contexts(1, context_dim, torch.float32)]
    mass = flow.log_prob(rows, *context).double().exp().sum() * (side[1] - side[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["spline", "maf", "spline-ar", "planar", "radial"])
def test_the_columns_are_coupled(name: str) -> None:
    flow = built(name, 6)
    x = torch.randn(1, 6)
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.to_base(z)[0][0], x)[:, 0]
    assert ((jacobian.abs() > 0).sum(0) > 1).all()


@pytest.mark.parametrize("name", [n for n in FLOWS if not n.startswith("realnvp")])
def test_one_dimension_is_a_monotone_function(name: str) -> None:
    flow = built(name, 1, spread=0.5).double()
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)[:, None]
    noise, log_determinant = flow.to_base(x)
    torch.testing.assert_close(flow.from_base(noise), x, rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad(flow.to_base(x.requires_grad_())[0].sum(), x)
    torch.testing.assert_close(log_determinant, slope[:, 0].abs().log())
    assert log_determinant.abs().max() > 0.1
    change = noise.diff(dim=0)
    assert (change > 0).all() or (change < 0).all()


def test_realnvp_in_one_dimension_is_its_mixture() -> None:
    flow = RealNVP(components=3)
    flow.build(1, 100)
    x = torch.randn(20, 1)
    assert isinstance(flow.noise, GaussianMixture)
    torch.testing.assert_close(flow.log_prob(x), flow.noise.log_prob(x))
    with pytest.raises(OptionError, match="two or more dimensions.*base='mixture'.*base='normal'"):
        RealNVP(base="normal").build(1, 100)


@every_case
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_extreme_weights_and_rows_give_no_nan(name: str, context_dim: int, spread: float) -> None:
    flow = built(name, 4, context_dim, spread=spread)
    x = torch.cat([10.0**k * torch.randn(50, 4) for k in range(-6, 5)])
    context = contexts(len(x), context_dim, torch.float32)
    noise, log_determinant = flow.to_base(x, *context)
    back = flow.from_base(x, *context)
    for tensor in (noise, log_determinant, back):
        assert not tensor.isnan().any()


@every_case
def test_far_rows_have_finite_values_and_gradients(name: str, context_dim: int) -> None:
    flow = built(name, 4, context_dim, base="normal").requires_grad_(True)
    x = 1e4 * torch.randn(200, 4)
    context = contexts(len(x), context_dim, torch.float32)
    value = flow.log_prob(x, *context)
    assert value.isfinite().all()
    assert flow.from_base(x, *context).isfinite().all()
    value.mean().backward()
    for parameter in flow.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", FLOWS)
def test_no_rows_give_no_rows(name: str) -> None:
    flow = built(name, 3)
    noise, log_determinant = flow.to_base(torch.zeros(0, 3))
    assert (noise.shape, log_determinant.shape) == ((0, 3), (0,))
    assert flow.from_base(torch.zeros(0, 3)).shape == (0, 3)


# --- contexts ---


@pytest.mark.parametrize("name, layers", [("realnvp", 3), ("maf", 1), ("spline-ar", 1)])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_every_column_sees_the_context(name: str, layers: int, dim: int) -> None:
    flow = built(name, dim, 3, layers=layers)
    x, (context,) = torch.randn(1, dim), contexts(1, 3, torch.float32)
    jacobian = torch.autograd.functional.jacobian(lambda c: flow.to_base(x, c)[0][0], context)
    assert (jacobian.abs().amax((1, 2)) > 0).all()


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_spline_layer_changes_every_second_column_by_the_context(dim: int) -> None:
    flow = built("spline", dim, 3, layers=1)
    x, (context,) = torch.randn(1, dim), contexts(1, 3, torch.float32)
    jacobian = torch.autograd.functional.jacobian(lambda c: flow.to_base(x, c)[0][0], context)
    assert (jacobian.abs().amax((1, 2)) > 0).sum() == max(1, dim // 2)


CENTRES = torch.tensor([[-1.2, -0.8], [1.2, -0.8], [0.0, 1.4]])


def blobs(n: int) -> tuple[Tensor, Tensor]:
    """Three separated blobs and their one-hot classes."""
    label = torch.randint(3, (n,))
    return CENTRES[label] + 0.15 * torch.randn(n, 2), torch.eye(3)[label]


@pytest.mark.parametrize(
    "name, base",
    [
        ("realnvp", "normal"),
        ("realnvp", "mixture"),
        ("spline", "normal"),
        ("maf", "normal"),
        ("spline-ar", "normal"),
    ],
)
def test_a_conditional_fit_knows_its_classes(name: str, base: str) -> None:
    rows, context = blobs(2000)
    test, given = blobs(1000)
    generator = torch.Generator().manual_seed(0)
    flow: FlowSampler = FLOWS[name](
        base=base, components=3, layers=2, steps=200, learning_rate=2e-2
    )
    flow.context_dim, flow.context_kind = 3, "classes"
    flow.build(2, len(rows))
    flow.fit(rows, rows[:0], Run(generator, batch_size=100, context=context))

    # The three blobs' own entropies: what a class is known for is worth log 3 nats less than without.
    entropy = math.log(2 * math.pi * math.e * 0.15**2)
    with torch.no_grad():
        assert -float(flow.log_prob(test, given).mean()) < entropy + 0.6
        assert -float(flow.log_prob(test, given.roll(1, 1)).mean()) > entropy + 5
        drawn = flow.sample(len(given), generator, given)
    nearest = torch.cdist(drawn, CENTRES).argmin(1)
    assert (nearest == given.argmax(1)).float().mean() > 0.97


# --- fits on little data ---


@pytest.mark.parametrize("base", ["normal", "mixture"])
@pytest.mark.parametrize("name", METHODS)
def test_a_fit_on_one_row_or_on_equal_columns_is_finite(name: str, base: str) -> None:
    generator = torch.Generator().manual_seed(0)
    column = torch.randn(50, 1)
    for rows in (torch.ones(1, 2), torch.cat((column, column, -column), dim=1)):
        flow: FlowSampler = FLOWS[name](base=base, steps=10)
        flow.build(rows.shape[1], len(rows))
        flow.fit(rows, rows[:0], Run(generator))
        with torch.no_grad():
            assert flow.log_prob(rows).isfinite().all()
            assert flow.sample(7, generator).isfinite().all()


# --- the kernel ---


def parameters(
    n: int, bins: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    return (scale * torch.randn(n, 3 * bins - 1)).to(dtype)


def split(params: Tensor, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Into what nflows is given."""
    bins = (params.shape[-1] + 1) // 3
    widths, heights, derivatives = params.split((bins, bins, bins - 1), -1)
    return widths * scale, heights * scale, derivatives


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    "bins, bound, scale", [(2, 1.0, 1.0), (8, 5.0, 1.0), (8, 5.0, 6.0), (30, 3.0, 3.0)]
)
def test_the_kernel_is_that_of_nflows_with_its_gradients(
    inverse: bool, bins: int, bound: float, scale: float
) -> None:
    x = 1.3 * bound * (2 * torch.rand(2000, dtype=torch.float64) - 1)  # some of it in the tails
    given = (x, parameters(2000, bins, scale=scale))
    mine = tuple(tensor.clone().requires_grad_() for tensor in given)
    theirs = tuple(tensor.clone().requires_grad_() for tensor in given)
    got = rational_quadratic_spline(*mine, tail_bound=bound, inverse=inverse)
    expected = reference(
        theirs[0], *split(theirs[1]), tails="linear", tail_bound=bound, inverse=inverse
    )
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    weights = torch.randn(2, 2000, dtype=torch.float64)
    ((got[0] * weights[0]).sum() + (got[1] * weights[1]).sum()).backward()
    ((expected[0] * weights[0]).sum() + (expected[1] * weights[1]).sum()).backward()
    for one, other in zip(mine, theirs, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(
    "bins, bound, spread", [(2, 1.0, 1.0), (8, 5.0, 1.0), (8, 5.0, 6.0), (30, 3.0, 3.0)]
)
def test_the_fused_kernel_is_that_of_nflows_with_its_gradients(
    bins: int, bound: float, spread: float, scale: float
) -> None:
    x = 1.3 * bound * (2 * torch.rand(400, 5, dtype=torch.float64) - 1)
    x[0] = torch.tensor([bound, -bound, 0.0, 2 * bound, torch.inf])
    params = spread * torch.randn(400, 5, 3 * bins - 1, dtype=torch.float64)
    mine, theirs = ([t.clone().requires_grad_() for t in (x, params)] for _ in range(2))
    got = rational_quadratic_spline(*mine, tail_bound=bound, scale=scale, fused=True)
    shape = split(theirs[1], scale)
    expected = reference(theirs[0], *shape, tails="linear", tail_bound=bound)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    weights = torch.randn(2, 400, 5, dtype=torch.float64)
    for out, log_derivative in (got, expected):
        inside = out.isfinite()
        ((out * weights[0])[inside].sum() + (log_derivative * weights[1]).sum()).backward()
    for one, other in zip(mine, theirs, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        rows = slice(1, None)  # nflows' own gradient at a bound is that of one side
        torch.testing.assert_close(one.grad[rows], other.grad[rows], rtol=1e-7, atol=1e-8)
        assert one.grad.isfinite().all()


def test_the_fused_kernel_trains_in_float32_and_knows_no_second_gradient() -> None:
    params = (20 * torch.randn(5000, 1, 23)).requires_grad_()
    x = (6 * (2 * torch.rand(5000, 1) - 1)).requires_grad_()
    y, log_derivative = rational_quadratic_spline(x, params, tail_bound=5.0, fused=True)
    (gradient,) = torch.autograd.grad(y.sum() + log_derivative.sum(), x, create_graph=True)
    assert gradient.isfinite().all()
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


@pytest.mark.parametrize("cls", [Spline, SplineAR])
def test_a_spline_in_training_is_the_same_spline(cls: Any) -> None:
    flow = cls(layers=2, base="normal").requires_grad_(True)
    flow.build(4, 100)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows = 3 * torch.randn(300, 4)
    found = []
    for module in (flow.double().train(), flow.eval()):
        module.zero_grad()
        score = module.log_prob(rows.double())
        score.mean().backward()
        found.append((score.detach(), [p.grad.clone() for p in module.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_the_kernel_is_its_own_inverse(scale: float) -> None:
    x = 7 * (2 * torch.rand(4000, dtype=torch.float64) - 1)
    shape = parameters(4000, 8, scale=scale)
    y, forward = rational_quadratic_spline(x, shape, tail_bound=5.0)
    again, backward = rational_quadratic_spline(y, shape, tail_bound=5.0, inverse=True)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(backward, -forward, rtol=0, atol=1e-4)


def test_the_kernel_is_increasing_and_the_identity_in_the_tails() -> None:
    x = torch.linspace(-9, 9, 5001, dtype=torch.float64)
    shape = parameters(1, 8, scale=4.0).expand(5001, -1)
    y, log_derivative = rational_quadratic_spline(x, shape, tail_bound=5.0)
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
    knots, _ = rational_quadratic_spline(x, shape, tail_bound=5.0)
    for given in (x, knots):
        y, log_derivative = rational_quadratic_spline(given, shape, tail_bound=5.0, inverse=inverse)
        assert not y.isnan().any()
        assert log_derivative.isfinite().all()
        inside = given.abs() <= 5
        assert (y[inside].abs() <= 5 + 1e-5).all()
        assert torch.equal(y[~inside], given[~inside])


def test_gradients_of_the_kernel_are_finite_for_float32_training() -> None:
    given = parameters(5000, 8, scale=20.0, dtype=torch.float32).requires_grad_()
    x = (6 * (2 * torch.rand(5000) - 1)).requires_grad_()
    y, log_derivative = rational_quadratic_spline(x, given, tail_bound=5.0)
    (y.sum() + log_derivative.sum()).backward()
    for tensor in (x, given):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("name", ["realnvp", "spline", "maf", "radial"])
def test_a_fit_warns_once_of_more_dimensions_than_flows_are_good_for(name: str) -> None:
    def fit(dim: int) -> None:
        flow = built(name, dim, layers=1, base="normal", steps=1).requires_grad_(True)
        rows = torch.randn(20, dim)
        flow.fit(rows[:16], rows[16:], Run(torch.Generator().manual_seed(0)))

    fit(512)  # a warning would be an error here
    with pytest.warns(UserWarning, match=r"got 513, .* Use method='flow-matching'") as caught:
        fit(513)
    assert len(caught) == 1


@pytest.mark.parametrize("name", ["realnvp", "spline", "maf", "radial"])
def test_draws_in_parts_are_those_of_one_piece(name: str) -> None:
    flow = built(name, 3, layers=2, base="normal").eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        drawn = flow.sample(5000, torch.Generator().manual_seed(3))
        noise = flow.noise.sample(5000, torch.Generator().manual_seed(3))
        torch.testing.assert_close(drawn, flow.from_base(noise))
