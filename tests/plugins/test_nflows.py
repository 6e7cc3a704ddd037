"""What is on nflows' transforms: against nflows itself, with what it can't do."""

from typing import Any

import pytest
import torch
from nflows.transforms import (
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform as Reference,
)
from nflows.transforms import (
    PiecewiseRationalQuadraticCDF,
    PiecewiseRationalQuadraticCouplingTransform,
)
from torch import nn

from latentfit_nflows import Spline, SplineAR


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def randomise(module: nn.Module, spread: float) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=spread)
    module.requires_grad_(False)


def test_a_spline_without_a_context_has_the_state_of_version_1() -> None:
    flow = Spline(layers=1, hidden=4, blocks=1, bins=3, base="normal")
    flow.build(5, 1000)
    coupling = {
        "identity_features": (3,),
        "transform_features": (2,),
        "transform_net.initial_layer.weight": (4, 3),
        "transform_net.initial_layer.bias": (4,),
        "transform_net.blocks.0.linear_layers.0.weight": (4, 4),
        "transform_net.blocks.0.linear_layers.0.bias": (4,),
        "transform_net.blocks.0.linear_layers.1.weight": (4, 4),
        "transform_net.blocks.0.linear_layers.1.bias": (4,),
        "transform_net.final_layer.weight": (16, 4),
        "transform_net.final_layer.bias": (16,),
    }
    assert {name: tuple(t.shape) for name, t in flow.state_dict().items()} == {
        "flow._transforms.0._permutation": (5,)
    } | {f"flow._transforms.1.{name}": shape for name, shape in coupling.items()}

    single = Spline(bins=3, base="normal")
    single.build(1, 1000)
    assert {name: tuple(t.shape) for name, t in single.state_dict().items()} == {
        "flow._transforms.0.unnormalized_widths": (1, 3),
        "flow._transforms.0.unnormalized_heights": (1, 3),
        "flow._transforms.0.unnormalized_derivatives": (1, 2),
    }


@pytest.mark.parametrize("context_dim", [0, 3])
def test_the_coupling_layer_is_nflows_own(context_dim: int) -> None:
    flow = Spline(layers=1, hidden=8, bins=5, tail_bound=3.0, base="normal")
    flow.context_dim = context_dim
    flow.build(5, 100)
    randomise(flow, 1.0)
    layer = flow.double().flow._transforms[1]
    theirs = PiecewiseRationalQuadraticCouplingTransform(
        torch.arange(5) % 2, lambda *_: layer.transform_net, 5, tails="linear", tail_bound=3.0
    )
    x = 2 * torch.randn(200, 5, dtype=torch.float64)
    context = torch.randn(200, 3, dtype=torch.float64) if context_dim else None
    for mine, reference in ((layer, theirs), (layer.inverse, theirs.inverse)):
        for got, expected in zip(mine(x, context), reference(x, context), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_the_spline_of_one_column_is_nflows_own() -> None:
    flow = Spline(bins=5, tail_bound=3.0, base="normal")
    flow.build(1, 100)
    randomise(flow, 1.0)
    layer = flow.double().flow._transforms[0]
    theirs = PiecewiseRationalQuadraticCDF([1], 5, tails="linear", tail_bound=3.0).double()
    theirs.load_state_dict(layer.state_dict())
    x = 2 * torch.randn(200, 1, dtype=torch.float64)
    assert (x.abs() > 3).any()
    for mine, reference in ((layer, theirs), (layer.inverse, theirs.inverse)):
        for got, expected in zip(mine(x), reference(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_the_autoregressive_layer_is_nflows_own(dim: int, context_dim: int) -> None:
    flow = SplineAR(layers=1, hidden=8, blocks=2, bins=5, tail_bound=3.0, base="normal")
    flow.context_dim = context_dim
    flow.build(dim, 100)
    randomise(flow, 0.7)
    layer = flow.double().flow._transforms[1]
    theirs = Reference(dim, 8, context_dim or None, 5, "linear", 3.0, num_blocks=2)
    if context_dim:  # the masks differ on purpose; the rest does not
        theirs.autoregressive_net = layer.autoregressive_net
    else:  # the masks are nflows' own
        names = {name for name in theirs.state_dict() if name.endswith((".mask", ".degrees"))}
        missing, unexpected = theirs.double().load_state_dict(layer.state_dict(), strict=False)
        assert (set(missing), unexpected) == (names, [])
    x = 2 * torch.randn(200, dim, dtype=torch.float64)
    context = torch.randn(200, 3, dtype=torch.float64) if context_dim else None
    assert (x.abs() > 3).any()
    for mine, reference in ((layer, theirs), (layer.inverse, theirs.inverse)):
        for got, expected in zip(mine(x, context), reference(x, context), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("dim", [1, 2, 6])
def test_the_autoregressive_layer_is_autoregressive(dim: int, context_dim: int) -> None:
    flow = SplineAR(layers=1, hidden=24, base="normal")
    flow.context_dim = context_dim
    flow.build(dim, 100)
    randomise(flow, 0.3)
    context = [torch.randn(1, context_dim)] if context_dim else []
    layer = flow.flow._transforms[1]
    jacobian = torch.autograd.functional.jacobian(
        lambda z: layer(z, *context)[0][0], torch.randn(1, dim)
    )[:, 0]
    assert torch.equal(jacobian != 0, torch.ones(dim, dim).tril().bool())


def test_the_masks_are_no_state() -> None:
    flow = SplineAR(layers=1)
    flow.build(3, 100)
    assert not [name for name in flow.state_dict() if "mask" in name or "degrees" in name]


def test_samples_can_be_differentiated() -> None:
    flow = SplineAR(layers=2, hidden=8, base="normal")
    flow.build(3, 100)
    noise = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    flow.double()
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.from_base(z)[0], noise)[:, 0]
    _, log_determinant = flow.to_base(flow.from_base(noise.detach()))
    assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(
        -log_determinant[0].item(), abs=1e-6
    )
