"""What is on normflows' layers: against normflows itself, and the inverses that normflows lacks."""

import math
from typing import Any

import normflows as nf
import pytest
import torch
from torch import Tensor, nn

from latentfit.plugin import Run
from latentfit_normflows import MAF, Planar, Radial, RealNVP


@pytest.fixture(autouse=True)
def _own_random_numbers() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def randomise(module: nn.Module, spread: float) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=spread)
    module.requires_grad_(False)


def test_a_realnvp_without_a_context_has_the_state_of_version_1() -> None:
    flow = RealNVP(layers=2, hidden=(6,), components=3)
    flow.build(5, 1000)
    network = {
        "0.weight": (6, 3),
        "0.bias": (6,),
        "2.weight": (4, 6),
        "2.bias": (4,),
    }
    layers = [f"flows.{i}.flows.1.param_map.network.net." for i in (0, 2)]
    assert {name: tuple(t.shape) for name, t in flow.state_dict().items()} == {
        "noise.logits": (3,),
        "noise.means": (3, 5),
        "noise.log_diagonal": (3, 5),
        "noise.off_diagonal": (3, 5, 5),
    } | {layer + name: shape for layer in layers for name, shape in network.items()}


def test_a_conditional_realnvp_is_normflows_own_where_the_context_is_zero() -> None:
    flow = RealNVP(layers=3, hidden=(8,), base="normal")
    flow.context_dim = 2
    flow.build(5, 100)
    randomise(flow, 0.5)
    plain = RealNVP(layers=3, hidden=(8,), base="normal")
    plain.build(5, 100)
    state = flow.state_dict()
    kept = {k: v[:, :3] if k.endswith("net.0.weight") else v for k, v in state.items()}
    plain.load_state_dict(kept)
    x = torch.randn(20, 5)
    for got, expected in zip(flow.to_base(x, torch.zeros(20, 2)), plain.to_base(x), strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(flow.from_base(x, torch.zeros(20, 2)), plain.from_base(x))


def test_one_dimension_takes_a_context() -> None:
    flow = RealNVP(layers=2, hidden=(4,), base="normal")
    flow.context_dim = 2
    flow.build(1, 100)
    randomise(flow, 1.0)
    context = torch.randn(1, 2).expand(500, -1)
    x = torch.linspace(-3, 3, 500)[:, None]
    noise, log_determinant = flow.to_base(x, context)
    slope = noise.diff(dim=0) / x.diff(dim=0)  # affine in x, whatever the context
    torch.testing.assert_close(slope, log_determinant[1:, None].exp(), rtol=1e-3, atol=1e-4)


# --- MAF ---


def test_mafs_layer_is_normflows_own_up_to_the_scale() -> None:
    flow = MAF(layers=1, hidden=8, blocks=2, base="normal")
    flow.build(4, 100)
    randomise(flow, 0.3)
    theirs = nf.flows.MaskedAffineAutoregressive(4, 8, num_blocks=2)
    theirs.load_state_dict(flow.flows[0].state_dict(), strict=False)
    x = torch.randn(20, 4)
    raw, shift = theirs.autoregressive_net(x.flip(1)).view(20, 4, 2).unbind(2)
    log_scale = 3 * torch.tanh(raw / 3)
    noise, log_determinant = flow.to_base(x)
    torch.testing.assert_close(noise, x.flip(1) * log_scale.exp() + shift)
    torch.testing.assert_close(log_determinant, log_scale.sum(1))
    # The same scales through normflows' sigmoid, in both of its directions.
    theirs._unconstrained_scale_and_shift = lambda params: (  # type: ignore[method-assign]
        torch.logit((3 * torch.tanh(params.view(-1, 4, 2)[..., 0] / 3) - 3).exp() - 1e-3) - 2,
        params.view(-1, 4, 2)[..., 1] * math.exp(-3),
    )
    flow.double()
    theirs.double()
    x = x.double()
    noise, log_determinant = flow.to_base(x)
    expected, theirs_log_determinant = theirs(x.flip(1))
    torch.testing.assert_close(noise * math.exp(-3), expected)
    torch.testing.assert_close(log_determinant - 3 * 4, theirs_log_determinant)
    torch.testing.assert_close(flow.from_base(noise), theirs.inverse(expected)[0].flip(1))


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("dim", [1, 2, 6])
def test_mafs_layer_is_autoregressive(dim: int, context_dim: int) -> None:
    flow = MAF(layers=1, hidden=24, base="normal")
    flow.context_dim = context_dim
    flow.build(dim, 100)
    randomise(flow, 0.3)
    context = [torch.randn(1, context_dim)] if context_dim else []
    jacobian = torch.autograd.functional.jacobian(
        lambda z: flow.flows[0](z, *context)[0][0], torch.randn(1, dim)
    )[:, 0]
    assert torch.equal(jacobian != 0, torch.ones(dim, dim).tril().bool())


def test_mafs_masks_are_no_state() -> None:
    flow = MAF(layers=1)
    flow.build(3, 100)
    assert not [name for name in flow.state_dict() if "mask" in name or "degrees" in name]


# --- planar and radial ---


def steep(layer: Any, slope: float) -> Any:
    """A planar or radial layer whose least slope is about so much, or the least that is allowed."""
    raw = slope + math.log(-math.expm1(-slope))  # softplus(raw) is the slope
    with torch.no_grad():
        if isinstance(layer, nf.flows.Planar):
            layer.u += (raw - (layer.u * layer.w).sum()) * layer.w / layer.w.square().sum()
        else:
            layer.beta.fill_(raw)
    return layer


def layers_of(cls: type[Planar | Radial], dim: int, layers: int, **options: Any) -> Any:
    flow = cls(layers=layers, **options)
    flow.build(dim, 100)
    for layer in flow.flows:
        randomise(layer, 1.0)
    return flow.double()


both = pytest.mark.parametrize("cls", [Planar, Radial])


@both
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_a_layer_is_normflows_own(cls: type[Planar | Radial], dim: int) -> None:
    flow = layers_of(cls, dim, 5)
    for layer in flow.flows:
        theirs = (nf.flows.Planar if cls is Planar else nf.flows.Radial)((dim,)).double()
        theirs.load_state_dict(layer.state_dict())
        x = 3 * torch.randn(50, dim, dtype=torch.float64)
        for got, expected in zip(layer(x), theirs(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@both
@pytest.mark.parametrize("dim", [1, 2, 7])
@pytest.mark.parametrize("slope", [1.0, 1e-2, 1e-13, 50.0, 1e4])
def test_a_layer_is_inverted_to_the_stated_tolerance_both_ways(
    cls: type[Planar | Radial], dim: int, slope: float
) -> None:
    flow = layers_of(cls, dim, 1)
    layer = steep(flow.flows[0], slope)
    size = 10.0 ** torch.arange(-3, 9, dtype=torch.float64).repeat_interleave(50)[:, None]
    special = layer.z_0 if cls is Radial else -layer.b * layer.w / layer.w.square().sum()
    x = torch.cat(
        (size * torch.randn(600, dim), torch.zeros(1, dim), special)
    )  # there it is steepest

    def worst(back: Tensor, x: Tensor, between: Tensor) -> float:
        largest = torch.maximum(x.abs().amax(1), between.abs().amax(1)).clamp_min(1)
        return float(((back - x).abs().amax(1) / largest).max())

    rows = flow.from_base(x)
    assert worst(flow.to_base(rows)[0], x, rows) <= 1e-10
    noise, _ = flow.to_base(x)
    assert worst(flow.from_base(noise), x, noise) <= 1e-10


@both
def test_a_fitted_flow_is_inverted_layer_by_layer(cls: type[Planar | Radial]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 2, generator=generator)
    rows[:, 1] += rows[:, 0].square()
    flow = cls(layers=8, steps=100)
    flow.build(2, len(rows))
    start = flow.log_prob(rows).mean().item()
    flow.fit(rows, rows[:0], Run(generator))
    assert flow.log_prob(rows).mean().item() > start + 0.1
    flow.double().requires_grad_(False)
    for noise in (torch.randn(500, 2), 1e4 * torch.randn(500, 2)):
        again, _ = flow.to_base(flow.from_base(noise.double()))
        torch.testing.assert_close(again, noise.double(), rtol=1e-9, atol=1e-9)


@both
def test_the_boundary_of_invertibility_is_out_of_reach(cls: type[Planar | Radial]) -> None:
    flow = layers_of(cls, 3, 1).float()
    layer = steep(flow.flows[0], 1e-13)
    on_it = torch.randn(20_000, 3)
    if cls is Planar:  # move rows onto the plane where the slope is least
        on_it -= (on_it @ layer.w.T + layer.b) * layer.w / layer.w.square().sum()
    else:
        on_it = on_it * 1e-6 + layer.z_0
    _, log_determinant = flow.to_base(on_it)
    least = math.log(1e-3) * (1 if cls is Planar else 3)
    assert log_determinant.min() == pytest.approx(least, abs=0.02)


@both
def test_float32_rows_come_back_in_float32(cls: type[Planar | Radial]) -> None:
    flow = layers_of(cls, 5, 8).float()
    noise = torch.randn(300, 5)
    rows = flow.from_base(noise)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(flow.to_base(rows)[0], noise, rtol=1e-3, atol=1e-3)


def test_planars_gradient_is_finite_where_normflows_is_not() -> None:
    flow = Planar(layers=1)
    flow.build(2, 100)
    rows = torch.tensor([[1e3, 1e3], [-1e3, 0.0]])

    def gradient(layer: nn.Module) -> Tensor:
        layer.zero_grad()
        noise, log_determinant = layer(rows)
        (noise.sum() + log_determinant.sum()).backward()
        assert isinstance(layer.w, nn.Parameter)
        assert layer.w.grad is not None
        return layer.w.grad

    assert gradient(flow.flows[0]).isfinite().all()
    theirs = nf.flows.Planar((2,))
    theirs.load_state_dict(flow.flows[0].state_dict())
    assert gradient(theirs).isnan().any()  # else the layer here need not be one


def test_a_planar_layer_without_a_direction_is_a_shift() -> None:
    flow = layers_of(Planar, 3, 1)
    layer = flow.flows[0]
    layer.w.zero_()
    x = torch.randn(20, 3, dtype=torch.float64)
    noise, log_determinant = flow.to_base(x)
    torch.testing.assert_close(noise, x + layer.u * layer.b.tanh())
    torch.testing.assert_close(log_determinant, torch.zeros_like(log_determinant))
    torch.testing.assert_close(flow.from_base(noise), x)


@both
def test_great_parameters_stay_finite(cls: type[Planar | Radial]) -> None:
    flow = layers_of(cls, 3, 3).float().requires_grad_(True)
    for factor in (0.0, 1e2, 1e3):
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.mul_(factor).add_(factor * torch.randn_like(parameter))
        flow.zero_grad()
        noise, log_determinant = flow.to_base(torch.randn(50, 3))
        (noise.square().sum() + log_determinant.sum()).backward()
        for tensor in (noise, log_determinant, *[p.grad for p in flow.parameters()]):
            assert tensor is not None
            assert tensor.isfinite().all()
