"""Velocity fields about a Gaussian's flow against closed forms and autograd, and flow matching with them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentfit.plugin import ConvField, DeepField, GaussianField, OptionError, Run
from latentfit_flow_matching import FlowMatching

CENTRE = 0.8  # in each column, of the one of two clusters; the other's is its negative


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def random_field(
    shape: tuple[int, int, int], context_dim: int = 0, channels: int = 8, blocks: int = 1
) -> ConvField:
    """A field that is not zero, as a new one is, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        field = ConvField(shape, context_dim, channels, blocks)
        for parameter in field.parameters():
            nn.init.normal_(parameter, std=0.4)
    return field.double().requires_grad_(False)


def random_deep_field(dim: int, context_dim: int = 0, *, rotate: bool = True) -> DeepField:
    """A field that is not zero, about a Gaussian that is not standard, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        field = DeepField(dim, context_dim, 16, 2, rotate=rotate)
        for parameter in field.parameters():
            nn.init.normal_(parameter, std=0.3)
    field = field.double()
    field.start(normal(400, dim).double() @ normal(dim, dim, seed=1).double() + 1)
    return field.requires_grad_(False)


def build(layout: tuple[int, ...] | None, *, dim: int = 8, **options: Any) -> FlowMatching:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plugin = FlowMatching(**options)
        plugin.layout = layout
        plugin.build(dim if layout is None else math.prod(layout), 1000)
    return plugin


# --- the field ---


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 1, 5), (2, 5, 7), (2, 8, 8), (4, 16, 8)])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_any_layout_gives_a_velocity_for_each_row(
    shape: tuple[int, int, int], context_dim: int
) -> None:
    field, dim = random_field(shape, context_dim), shape[0] * shape[1] * shape[2]
    x = normal(5, dim).double()
    context = normal(5, context_dim, seed=1).double() if context_dim else None
    velocity = field(x, 0.3, context)
    assert velocity.shape == (5, dim)
    for i in range(5):  # a row's own, whatever the others are
        own = None if context is None else context[i : i + 1]
        torch.testing.assert_close(field(x[i : i + 1], 0.3, own), velocity[i : i + 1])
    times = torch.full((5, 1), 0.3, dtype=torch.float64)
    torch.testing.assert_close(field(x, times, context), velocity)


def test_a_new_field_is_zero() -> None:
    assert (ConvField((2, 8, 8), 0, 8, 1)(normal(3, 128), 0.5) == 0).all()
    assert (DeepField(20, 0, 8, 1)(normal(3, 20), 0.5) == 0).all()


@pytest.mark.parametrize(
    "shape, levels", [((4, 4, 4), 1), ((2, 8, 8), 2), ((4, 32, 32), 4), ((1, 7, 14), 1)]
)
def test_even_sizes_above_four_are_halved(shape: tuple[int, int, int], levels: int) -> None:
    level: Any = ConvField(shape, 0, 8, 1).level
    found = 1
    while level.inner is not None:
        found, level = found + 1, level.inner
    assert found == levels


def test_time_context_and_position_matter() -> None:
    field = random_field((2, 4, 4), 2)
    x, context = normal(4, 32).double(), normal(4, 2, seed=1).double()
    velocity = field(x, 0.2, context)
    assert (field(x, 0.7, context) - velocity).abs().amax(1).min() > 1e-3
    assert (field(x, 0.2, context + 1) - velocity).abs().amax(1).min() > 1e-3
    constant = torch.ones(1, 32, dtype=torch.float64)
    # Far from the edges a convolution of a constant is one; what the field has learnt of places is not.
    inner = random_field((1, 12, 12))(torch.ones(1, 144).double(), 0.2).view(12, 12)[5:7, 5:7]
    assert inner.std() > 1e-3
    assert field(constant, 0.2, context[:1]).std() > 1e-3


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("kind", ["conv", "deep"])
def test_the_divergence_is_the_trace_of_the_jacobian(kind: str, context_dim: int) -> None:
    conv = kind == "conv"
    field: GaussianField = (
        random_field((2, 2, 3), context_dim) if conv else random_deep_field(12, context_dim)
    )
    x = normal(4, 12).double()
    context = normal(4, context_dim, seed=1).double() if context_dim else None
    units = 12**0.5 * torch.eye(12, dtype=torch.float64)
    velocity, divergence = field.with_divergence(x, 0.3, context, units)
    torch.testing.assert_close(velocity, field(x, 0.3, context))
    for i in range(4):
        own = None if context is None else context[i : i + 1]

        def alone(z: Tensor, own: Tensor | None = own) -> Tensor:
            velocity: Tensor = field(z[None], 0.3, own)[0]
            return velocity

        jacobian: Any = torch.autograd.functional.jacobian(alone, x[i])
        torch.testing.assert_close(divergence[i], jacobian.trace())
        assert abs(float(jacobian.trace())) > 1e-3


@pytest.mark.parametrize("rotate", [True, False])
def test_the_error_is_that_of_the_velocity_in_the_rows_own_units(rotate: bool) -> None:
    field, starts = random_deep_field(5, rotate=rotate), normal(7, 5).double()
    rows, t = normal(7, 5, seed=2).double(), torch.linspace(0.05, 0.95, 7).double()[:, None]
    ends = rows - field.mean
    if rotate:
        ends = ends @ field.axes
        torch.testing.assert_close(field.axes @ field.axes.T, torch.eye(5).double())
    deviation, x = ((1 - t) ** 2 + t**2 * field.variance).sqrt(), torch.lerp(starts, ends, t)
    growth = (t * field.variance - (1 - t)) / deviation  # the deviation's derivative
    place = x / deviation
    velocity = growth * place + deviation * field(place, t)
    torch.testing.assert_close(field.error(starts, rows, t, None), velocity - (ends - starts))
    assert (velocity - growth * place).abs().max() > 1e-2


def test_places_and_rows_turn_into_each_other() -> None:
    field, rows = random_deep_field(4), normal(6, 4, seed=3).double()
    places, constant = field.enter(rows)
    torch.testing.assert_close(field.leave(places), rows)
    jacobian: Any = torch.autograd.functional.jacobian(
        lambda z: field.enter(z[None])[0][0], rows[0]
    )
    torch.testing.assert_close(constant, jacobian.slogdet()[1])


@pytest.mark.parametrize("dim, context_dim", [(3, 0), (3, 2)])
def test_time_and_context_matter_to_the_deep_field(dim: int, context_dim: int) -> None:
    field, x = random_deep_field(dim, context_dim), normal(4, dim).double()
    context = normal(4, context_dim, seed=1).double() if context_dim else None
    given = [field.network(x, torch.full((4, 1), t).double(), context) for t in (0.2, 0.7)]
    assert (given[0] - given[1]).abs().amax(1).min() > 1e-3
    if context is not None:
        other = field.network(x, torch.full((4, 1), 0.2).double(), context + 1)
        assert (given[0] - other).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("t, share", [(0.0, 0.0), (0.3, 0.0), (0.45, 0.5), (0.6, 1.0), (1.0, 1.0)])
def test_guidance_multiplies_what_the_network_adds_later_on(t: float, share: float) -> None:
    field, x = random_deep_field(6), normal(4, 6).double()
    units = 6**0.5 * torch.eye(6, dtype=torch.float64)
    plain = field.with_divergence(x, t, None, units)
    error = field.error(x, x + 1, torch.full((4, 1), t).double(), None)
    field.guidance.fill_(0.5)
    guided = field.with_divergence(x, t, None, units)
    torch.testing.assert_close(guided[0], (1 + 0.5 * share) * plain[0])
    torch.testing.assert_close(guided[1], (1 + 0.5 * share) * plain[1])
    torch.testing.assert_close(field(x, t), guided[0])
    again = field.error(x, x + 1, torch.full((4, 1), t).double(), None)
    assert torch.equal(again, error)  # training does not see it


# --- flow matching with them ---


@pytest.mark.parametrize(
    "held_out, given, used", [(0, None, 0.0), (90, None, 0.0), (90, 0.7, 0.7), (90, 0.0, 0.0)]
)
def test_guidance_is_as_given_and_needs_held_out_rows(
    held_out: int, given: float | None, used: float
) -> None:
    plugin = build(None, dim=20, guidance=given, hidden=8, blocks=1, steps=3)
    run = Run(seeded(0), batch_size=64)
    plugin.fit(normal(200, 20), normal(held_out, 20, seed=1), run)
    assert run.facts["guidance"] == pytest.approx(used)
    again = build(None, dim=20, hidden=8, blocks=1)
    again.load_state_dict(plugin.state_dict())
    field: Any = again.field
    assert float(field.guidance) == pytest.approx(used)


@pytest.mark.parametrize("slope, least, most", [(0.7, 0.4, 0.6), (1.0, 0.0, 0.2), (1.3, 0.0, 0.0)])
def test_guidance_goes_as_far_as_a_classifier_sees_nothing(
    slope: float, least: float, most: float
) -> None:
    """Two clusters, the flow to which a field knows in closed form, but for a factor."""

    class Known(DeepField):
        def network(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
            d = self._spread(t)
            place, noise = x * d.sqrt(), (1 - t) ** 2 + t**2 * (1 - CENTRE**2)
            log_odds = (place @ torch.ones(x.shape[1], 1)) * 2 * t * CENTRE / noise
            mean = CENTRE * (log_odds / 2).tanh()  # the cluster's centre, as far as the place tells
            inner = (1 - CENTRE**2) * t / noise * (place - t * mean) + mean  # E[row | place]
            velocity = (inner - place) / (1 - t).clamp_min(1e-3)
            known = (t - (1 - t)) / d * place
            return slope * (velocity - known) * d.sqrt()

    signs = 2.0 * (torch.arange(4000) % 2)[:, None] - 1
    rows = CENTRE * signs + math.sqrt(1 - CENTRE**2) * normal(4000, 20)
    plugin = build(None, dim=20)
    plugin.field = field = Known(20, 0, 8, 1, rotate=False)
    run = Run(seeded(0))
    chosen, areas = plugin._find_guidance(field, rows, run)
    assert least <= chosen <= most
    assert all(0 <= area <= 1 for area in areas.values())


def test_training_leaves_time_for_the_guidance() -> None:
    plugin = build(None, dim=20, hidden=8, blocks=1, steps=10**6)
    times = []

    def show(step: int, total: int, values: dict[str, float]) -> None:
        times.append(run.elapsed())

    run = Run(seeded(0), batch_size=64, max_seconds=8.0, show=show)
    plugin.fit(normal(400, 20), normal(300, 20, seed=1), run)
    assert 0.5 < times[-1] < 0.95  # of them 0.85 are for training
    assert run.facts["c2st"]


def test_before_training_it_is_the_gaussian_of_the_rows() -> None:
    rows = normal(3000, 20) @ (normal(20, 20, seed=1) * torch.logspace(-2, 1, 20)) + 5
    rows = rows.double()
    plugin = build(None, dim=20, hidden=16).double().requires_grad_(False)
    assert isinstance(plugin.field, DeepField)
    plugin.field.start(rows)
    expected = torch.distributions.MultivariateNormal(rows.mean(0), rows.T.cov(correction=0))
    torch.testing.assert_close(plugin.log_prob(rows[:50]), expected.log_prob(rows[:50]))
    drawn = plugin.from_base(normal(20_000, 20, seed=2).double())
    scale, centred = expected.scale_tril, (drawn - expected.mean).double().T
    whitened = torch.linalg.solve_triangular(scale, centred, upper=False)
    torch.testing.assert_close(whitened.cov(), torch.eye(20).double(), rtol=0, atol=0.06)


def test_many_columns_start_from_noise_unless_a_mixture_is_asked_for() -> None:
    assert isinstance(build(None, dim=17).field, DeepField)
    for plugin in (build(None, dim=16), build(None, dim=17, components=3)):
        assert not isinstance(plugin.field, GaussianField)
    with pytest.raises(OptionError, match="Leave one of the two out"):
        build((2, 8, 8), network="conv", components=2)


def test_a_deep_field_learns_clusters_in_many_columns() -> None:
    centres = 3 * normal(4, 24, seed=5)
    rows = centres[torch.arange(3000) % 4] + 0.3 * normal(3000, 24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plugin = FlowMatching(hidden=64, blocks=2, steps=400)
        plugin.build(24, 2700)
        run = Run(seeded(0), batch_size=256)
        plugin.fit(rows[:2700], rows[2700:], run)
    assert (run.facts["network"], run.facts["trace"]) == ("deep mlp", "hutchinson")
    drawn = plugin.requires_grad_(False).sample(1000, seeded(1))
    distance, nearest = torch.cdist(drawn, centres).min(1)
    assert (nearest.bincount(minlength=4) > 180).all()
    # A row's own is 0.3 * sqrt(24) = 1.5; between two centres it would be more than 9.
    assert (distance < 3).double().mean() > 0.9
    fresh = centres[torch.arange(400) % 4] + 0.3 * normal(400, 24, seed=9)
    clusters = torch.distributions.Independent(torch.distributions.Normal(centres, 0.3), 1)
    equal = torch.distributions.Categorical(torch.ones(4))
    true = torch.distributions.MixtureSameFamily(equal, clusters).log_prob(fresh).mean()
    one = torch.distributions.MultivariateNormal(rows.mean(0), rows.T.cov()).log_prob(fresh).mean()
    scored = plugin.log_prob(fresh).mean()
    assert one + 0.5 * (true - one) < scored < true + 0.5


@pytest.mark.parametrize("shape", [None, (2, 4, 4)])
def test_training_in_bfloat16_comes_near(shape: tuple[int, int, int] | None) -> None:
    rows = smooth_fields(400, (2, 4, 4), seed=0)
    options: dict[str, Any] = {"hidden": 32, "channels": 8, "blocks": 1, "steps": 60}
    losses = {}
    for precision in ("float32", "bfloat16"):
        network = "conv" if shape else "mlp"
        plugin = build(shape, dim=32, network=network, precision=precision, **options)
        run = Run(seeded(0), batch_size=64)
        plugin.fit(rows[:350], rows[350:], run)
        losses[precision] = run.history["validation_loss"]
        assert all(parameter.dtype == torch.float32 for parameter in plugin.parameters())
    assert losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"][-1] == pytest.approx(losses["float32"][-1], rel=0.02)


def test_the_network_follows_the_layout() -> None:
    assert isinstance(build((2, 8, 8)).field, ConvField)
    for layout, network in ((None, "auto"), ((8, 1, 1), "auto"), ((2, 8, 8), "mlp")):
        assert not isinstance(build(layout, network=network).field, ConvField)
    assert isinstance(build((2, 2, 2), network="conv").field, ConvField)


@pytest.mark.parametrize("layout", [None, (8, 1, 1)])
def test_a_convolution_needs_positions(layout: tuple[int, ...] | None) -> None:
    with pytest.raises(OptionError, match="Choose network='mlp'"):
        build(layout, network="conv")


def smooth_fields(n: int, layout: tuple[int, int, int], seed: int) -> Tensor:
    """Gaussian fields whose neighbours are alike, each channel also like the next: rows (n, D)."""
    noise = normal(n, *layout, seed=seed)
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
    kernel = (kernel[:, None] * kernel).expand(layout[0], 1, 5, 5)
    for _ in range(2):
        noise = nn.functional.conv2d(noise, kernel, padding=2, groups=layout[0])
    mixed = noise + 0.5 * noise.roll(1, 1)
    return (mixed / mixed.std((0, 2, 3), keepdim=True) + 0.3).flatten(1)


@pytest.mark.slow
def test_a_fit_learns_the_covariance_of_fields_from_normal_noise() -> None:
    layout = (2, 8, 8)
    rows = smooth_fields(6000, layout, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plugin = FlowMatching(channels=16, blocks=1, steps=300)
        plugin.layout = layout
        plugin.build(128, 5500)
        run = Run(seeded(0), batch_size=128)
        plugin.fit(rows[:5500], rows[5500:], run)
    assert run.facts["network"] == "conv"
    drawn = plugin.requires_grad_(False).sample(2000, seeded(1))
    covariance = rows.T.cov()
    independent = covariance.diagonal().diag()  # what a diagonal Gaussian would have at its best
    assert (drawn.T.cov() - covariance).norm() < 0.35 * (independent - covariance).norm()
    assert (drawn.mean(0) - rows.mean(0)).abs().max() < 0.15


def small(layout: tuple[int, int, int], **options: Any) -> FlowMatching:
    plugin = build(layout, network="conv", channels=8, blocks=1, steps=3, **options)
    rows = smooth_fields(60, layout, seed=0)
    plugin.fit(rows[:50], rows[50:], Run(seeded(0), batch_size=16))
    return plugin.requires_grad_(False)


def test_a_latent_diffusion_latent_fits_in_bounded_memory() -> None:
    plugin = small((4, 32, 32), solver_steps=2, probes=2)
    assert plugin.sample(3, seeded(0)).shape == (3, 4096)
    assert plugin.log_prob(plugin.sample(2, seeded(0))).isfinite().all()
    assert sum(tensor.numel() for tensor in plugin.state_dict().values()) < 1e6  # no D x D matrix


def test_a_state_carries_over_and_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = small((2, 4, 4), solver_steps=2)
    again = build((2, 4, 4), network="conv", channels=8, blocks=1, solver_steps=2)
    again.load_state_dict(plugin.state_dict())
    whole = plugin.sample(40, seeded(0))
    torch.testing.assert_close(again.sample(40, seeded(0)), whole)
    monkeypatch.setattr("latentfit_flow_matching._PART", 1)
    torch.testing.assert_close(again.sample(40, seeded(0)), whole)


def test_densities_are_differentiable_and_undo_the_samples() -> None:
    plugin = build((2, 2, 2), network="conv", channels=8, blocks=1, solver_steps=6)
    field: Any = plugin.field
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.2, generator=seeded(0))
    plugin.double().requires_grad_(False)
    noise = normal(2, 8, seed=2).double()
    rows = plugin.from_base(noise)
    assert (rows - noise).abs().max() > 0.1
    back, log_determinant = plugin.to_base(rows)
    torch.testing.assert_close(back, noise, rtol=0, atol=1e-3)

    def towards_base(z: Tensor) -> Tensor:
        return plugin.to_base(z[None])[0][0]

    for row, expected in zip(rows, log_determinant, strict=True):
        jacobian: Any = torch.autograd.functional.jacobian(towards_base, row)
        assert float(jacobian.slogdet()[1]) == pytest.approx(float(expected), abs=2e-3)
    x = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(plugin.log_prob(x).sum(), x)
    step = 1e-5 * torch.eye(8, dtype=torch.float64)[3]
    difference = (plugin.log_prob(rows + step) - plugin.log_prob(rows - step)) / 2e-5
    torch.testing.assert_close(gradient[:, 3], difference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["classes", "vector"])
def test_conditions_reach_the_field(kind: Any) -> None:
    rows = smooth_fields(80, (1, 4, 4), seed=0)
    label = torch.arange(80) % 2
    rows = rows + 4 * label[:, None]
    context = (
        nn.functional.one_hot(label).float() if kind == "classes" else 2.0 * label[:, None] - 1
    )
    plugin = FlowMatching(network="conv", channels=8, blocks=1, steps=200)
    plugin.layout, plugin.context_dim, plugin.context_kind = (1, 4, 4), context.shape[1], kind
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plugin.build(16, 70)
    run = Run(seeded(0), context=context[:70], held_out_context=context[70:])
    plugin.fit(rows[:70], rows[70:], run)
    means = [
        plugin.requires_grad_(False).sample(200, seeded(1), own.expand(200, -1)).mean()
        for own in context[:2]
    ]
    assert float(means[1] - means[0]) == pytest.approx(4, abs=1)
