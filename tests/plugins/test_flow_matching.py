"""Flow matching: solver and divergence against closed forms, the loss against its minimiser, and fits."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import latentfit_flow_matching
from latentfit import LatentSampler, fit_latent_sampler, load_sampler
from latentfit.plugin import Field, Run
from latentfit_flow_matching import FlowMatching, VelocityField

SMALL: dict[str, Any] = {"hidden": 32, "blocks": 1, "steps": 300, "learning_rate": 1e-2}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def built(dim: int, n: int = 100, **options: Any) -> FlowMatching:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plugin = FlowMatching(**{**SMALL, **options})
        plugin.build(dim, n)
    return plugin.requires_grad_(False)


def random_field(
    dim: int, context_dim: int = 0, blocks: int = 2, hidden: int = 16
) -> VelocityField:
    """A field that is not zero, as a new one is, with a scale that is not the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(dim)
        field = VelocityField(dim, context_dim, hidden, blocks)
        nn.init.normal_(field.last.weight, std=0.3)
        nn.init.normal_(field.last.bias)
        field.start(torch.randn(500, dim) @ torch.randn(dim, dim))
    return field.double().requires_grad_(False)


@pytest.fixture(scope="module")
def ring() -> Tensor:
    """Points about a circle, which few Gaussians make badly."""
    angle = 2 * math.pi * torch.rand(3000, 1, generator=seeded(0))
    radius = 2 + 0.2 * normal(3000, 1, seed=1)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), 1)


@pytest.fixture(scope="module")
def fitted(ring: Tensor) -> LatentSampler:
    return fit_latent_sampler(None, ring, method="flow-matching", components=1, **SMALL)


# --- the solver, on fields that are known ---


class GaussianField(Field):
    """What flow matching converges to between N(0, I) and N(mean, diag(deviation^2))."""

    width = 16

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def rate(self, t: float) -> Tensor:
        variance = (1 - t) ** 2 + (t * self.deviation) ** 2
        rate: Tensor = (t * self.deviation**2 - (1 - t)) / variance  # of the deviation's logarithm
        return rate

    def forward(self, x: Tensor, t: float, context: Tensor | None = None) -> Tensor:
        return self.mean + self.rate(t) * (x - t * self.mean)

    def with_divergence(
        self, x: Tensor, t: float, context: Tensor | None, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        divergence = (directions.square() * self.rate(t)).sum(1).mean()
        return self(x, t), divergence.expand(len(x))


class LinearField(Field):
    """v(x, t) = x A'."""

    width = 16

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x: Tensor, t: float, context: Tensor | None = None) -> Tensor:
        return x @ self.matrix.T

    def with_divergence(
        self, x: Tensor, t: float, context: Tensor | None, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        divergence = torch.einsum("pi,ij,pj->p", directions, self.matrix, directions).mean()
        return self(x, t), divergence.expand(len(x))


def carried_by(field: nn.Module, dim: int, steps: int) -> FlowMatching:
    """The flow of a field from N(0, I), in float64."""
    plugin = built(dim, components=1, solver_steps=steps).double()
    plugin.field = field  # type: ignore[assignment]
    return plugin


MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
DEVIATION = torch.tensor([0.4, 1.0, 1.7], dtype=torch.float64)


def errors(steps: int) -> Tensor:
    """Of samples, of the way back, of log densities: the largest of each."""
    plugin = carried_by(GaussianField(MEAN, DEVIATION), 3, steps)
    noise = normal(500, 3).double()
    # The closed form moves noise by an affine map: straight paths do not cross in one dimension.
    rows = MEAN + DEVIATION * noise
    density = torch.distributions.Normal(MEAN, DEVIATION).log_prob(rows).sum(1)
    pairs = (
        (plugin.from_base(noise), rows),
        (plugin.to_base(rows)[0], noise),
        (plugin.log_prob(rows), density),
    )
    return torch.stack([(got - expected).abs().max() for got, expected in pairs])


def test_gaussians_map_to_gaussians_as_the_closed_form_says() -> None:
    assert (errors(6) < 1e-2).all()
    assert (errors(24) < 1e-4).all()


def test_the_solver_is_of_fourth_order() -> None:
    ratio = errors(16) / errors(32)
    assert (ratio > 12).all()  # 2^4 = 16 in the limit
    assert (ratio < 25).all()


class SineField(Field):
    """v(x, t) = sin x, whose divergence changes along a path."""

    width = 16

    def forward(self, x: Tensor, t: float, context: Tensor | None = None) -> Tensor:
        return x.sin()

    def with_divergence(
        self, x: Tensor, t: float, context: Tensor | None, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self(x, t), x.cos() @ directions.square().mean(0)


def test_a_divergence_that_changes_along_the_path_is_integrated_to_fourth_order() -> None:
    x = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)
    x = torch.stack((x, x.flip(0) / 2), 1)
    # tan(x / 2) grows by the factor e.
    tangent = (x / 2).tan()
    noise = 2 * (tangent / math.e).atan()
    slope = (1 + tangent.square()) / (1 + (tangent / math.e).square()) / math.e
    error = []
    for steps in (8, 16):
        back, log_determinant = carried_by(SineField(), 2, steps).to_base(x)
        torch.testing.assert_close(back, noise, rtol=0, atol=1e-4)
        error.append(float((log_determinant - slope.log().sum(1)).abs().max()))
    assert error[0] < 1e-4
    assert 12 < error[0] / error[1] < 25


def test_a_linear_field_flows_by_the_matrix_exponential() -> None:
    matrix = normal(4, 4, seed=3).double() / 2
    plugin = carried_by(LinearField(matrix), 4, 20)
    noise = normal(50, 4).double()
    exponential = torch.linalg.matrix_exp(matrix)
    torch.testing.assert_close(plugin.from_base(noise), noise @ exponential.T, rtol=0, atol=1e-5)
    back, log_determinant = plugin.to_base(noise @ exponential.T)
    torch.testing.assert_close(back, noise, rtol=0, atol=1e-5)
    # log |det d noise / d rows| = -tr A
    torch.testing.assert_close(log_determinant, -matrix.trace().expand(50), rtol=0, atol=1e-9)


# --- the divergence ---


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_the_divergence_is_the_trace_of_the_jacobian(
    dim: int, blocks: int, context_dim: int
) -> None:
    field = random_field(dim, context_dim, blocks)
    x = normal(6, dim).double()
    context = normal(6, context_dim, seed=1).double() if context_dim else None
    units = math.sqrt(dim) * torch.eye(dim, dtype=torch.float64)
    velocity, divergence = field.with_divergence(x, 0.3, context, units)
    torch.testing.assert_close(velocity, field(x, 0.3, context))
    for i in range(6):
        own = None if context is None else context[i : i + 1]

        def alone(z: Tensor, own: Tensor | None = own) -> Tensor:
            velocity: Tensor = field(z[None], 0.3, own)[0]
            return velocity

        jacobian: Any = torch.autograd.functional.jacobian(alone, x[i])
        assert float(divergence[i]) == pytest.approx(float(jacobian.trace()), abs=1e-9)
        assert abs(float(jacobian.trace())) > 1e-3


def test_random_signs_give_the_divergence_on_average() -> None:
    field, x = random_field(6), normal(10, 6).double()
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
    units = math.sqrt(6) * torch.eye(6, dtype=torch.float64)
    exact = field.with_divergence(x, 0.5, None, units)[1]
    torch.testing.assert_close(field.with_divergence(x, 0.5, None, signs)[1], exact)
    one = field.with_divergence(x, 0.5, None, signs[:1])[1]
    assert (one - exact).abs().max() > 1e-3  # and not each by itself


def test_estimated_densities_come_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(20, 70).double()

    def log_prob(probes: int) -> Tensor:
        plugin = built(70, solver_steps=3, probes=probes).double()
        plugin.field = random_field(70)
        return plugin.log_prob(x)

    few, many = log_prob(4), log_prob(1000)
    assert torch.equal(few, log_prob(4))
    monkeypatch.setattr(latentfit_flow_matching, "_EXACT", 70)
    exact = log_prob(1)
    mean_error = [float((estimate - exact).abs().mean()) for estimate in (few, many)]
    assert 0 < mean_error[1] < 0.2 * mean_error[0]  # 1 / sqrt(250) = 0.06 is expected


@pytest.mark.parametrize(
    "dim, components, trace",
    [(16, None, "exact"), (17, None, "hutchinson"), (64, 1, "exact"), (65, 1, "hutchinson")],
)
def test_a_fit_says_how_the_trace_is_taken(dim: int, components: int | None, trace: str) -> None:
    x = normal(2 * dim, dim)
    sampler = fit_latent_sampler(
        None, x, method="flow-matching", hidden=8, steps=2, components=components
    )
    assert sampler.info["fit"]["trace"] == trace
    assert sampler.log_prob(normal(5, dim)).isfinite().all()


# --- what is trained ---


def test_the_field_learns_the_mean_velocity_of_straight_paths() -> None:
    # From N(0, 1) to N(3, 1/4) it is known, and one Gaussian is started from where it is given.
    plugin = built(1, 4000, components=1)
    rows = 3 + 0.5 * normal(4000, 1)
    plugin.field.requires_grad_(True)
    run = Run(seeded(0))
    plugin.noise.fit_supported = lambda *a, **k: 1  # type: ignore[method-assign]
    with torch.enable_grad():
        plugin.fit(rows, rows[:0], run)
    expected = GaussianField(torch.tensor([3.0]), torch.tensor([0.5]))
    for t in (0.1, 0.5, 0.9):
        centre, deviation = 3 * t, math.sqrt((1 - t) ** 2 + 0.25 * t**2)
        x = centre + deviation * torch.linspace(-1.5, 1.5, 7)[:, None]
        assert (plugin.field(x, t) - expected(x, t)).abs().max() < 0.25


def test_paths_start_from_the_mixture_as_a_whole_and_as_each_class_has_it() -> None:
    plugin = FlowMatching(components=5)
    plugin.context_dim, plugin.context_kind = 2, "classes"
    plugin.build(2, 1000)
    rows, label = normal(1000, 2), (normal(1000, seed=5) > 0.5).long()
    rows = rows + 2 * label[:, None]
    context = torch.eye(2)[label]
    plugin.noise.fit(rows, seeded(0), context=context)
    component = plugin._assign(rows, context, seeded(1))
    plugin._weigh(component, context)
    member = torch.eye(5)[component]
    torch.testing.assert_close(plugin.noise.logits.softmax(0), member.mean(0), atol=1e-5, rtol=0)
    assert plugin.noise.gate is not None
    by_class = (plugin.noise.logits + plugin.noise.gate).softmax(1)
    for c in (0, 1):
        torch.testing.assert_close(by_class[c], member[label == c].mean(0), atol=1e-4, rtol=0)


def test_components_are_drawn_from_their_posterior() -> None:
    plugin = built(1, components=2)
    mixture = plugin.noise
    mixture.means.copy_(torch.tensor([[-1.0], [2.0]]))
    mixture.log_diagonal.copy_(torch.tensor([[0.0], [0.5]]))
    mixture.logits.copy_(torch.tensor([0.3, -0.2]))
    got = plugin._assign(torch.full((20_000, 1), 0.4), None, seeded(0)).double().mean()
    scales, means = (-mixture.log_diagonal).exp()[:, 0], mixture.means[:, 0]
    density = torch.distributions.Normal(means, scales).log_prob(torch.tensor(0.4)).exp()
    weighted = mixture.logits.softmax(0) * density
    assert float(got) == pytest.approx(float(weighted[1] / weighted.sum()), abs=0.015)


@pytest.mark.parametrize("components", [1, 3])
def test_paths_start_like_samples_of_their_component(components: int) -> None:
    plugin = built(2, components=components)
    rows = normal(900, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.3]])
    plugin.noise.fit(rows + 3 * torch.arange(900)[:, None] % 9, seeded(0))
    draw = latentfit_flow_matching._component_sampler(plugin.noise)
    for k in range(components):
        starts = draw(torch.full((20_000,), k), seeded(1))
        root = plugin.noise.off_diagonal[k].triu(1) + plugin.noise.log_diagonal[k].exp().diag()
        covariance = torch.linalg.inv(root @ root.T)
        assert (starts.mean(0) - plugin.noise.means[k]).abs().max() < 0.1
        torch.testing.assert_close(starts.T.cov(), covariance, rtol=0.05, atol=0.05)


def test_the_loss_is_random_in_training_and_fixed_in_evaluation() -> None:
    plugin = built(2, components=3)
    loss = plugin._loss(seeded(0))
    batch = torch.cat((normal(50, 2), torch.arange(50)[:, None] % 3), 1)

    def two() -> list[float]:
        return [float(loss(batch)) for _ in range(2)]

    plugin.field.eval()
    first = two()
    assert first[0] != first[1]  # as parts of one evaluation, in which no noise comes twice
    plugin.field.train()
    assert two() != two()
    plugin.field.eval()
    assert two() == first


def test_the_scale_is_a_root_of_the_covariance() -> None:
    rows = normal(300, 3) @ normal(3, 3, seed=1)
    rows = torch.cat((rows, rows[:, :1]), 1)
    field = VelocityField(4, 0, 8, 1)
    field.start(rows)
    torch.testing.assert_close(field.scale @ field.scale, rows.T.cov(correction=0))
    torch.testing.assert_close(field.scale, field.scale.T)


# --- fits ---


def test_the_density_integrates_to_one(fitted: LatentSampler) -> None:
    axis = torch.linspace(-4, 4, 161)
    grid = torch.cartesian_prod(axis, axis)
    total = fitted.log_prob(grid).double().exp().sum() * (axis[1] - axis[0]).double() ** 2
    assert float(total) == pytest.approx(1, abs=0.01)


def test_noise_comes_back_from_the_rows(fitted: LatentSampler) -> None:
    plugin: Any = fitted._plugin
    noise = plugin.noise.sample(2000, seeded(0))
    rows = plugin.from_base(noise)
    assert (rows - noise).abs().max() > 0.05
    assert (plugin.to_base(rows)[0] - noise).abs().max() < 1e-3


def test_the_field_makes_one_gaussian_a_ring(fitted: LatentSampler) -> None:
    plugin: Any = fitted._plugin
    angle = 2 * math.pi * torch.rand(5000, 1, generator=seeded(8))
    radius = 2 + 0.2 * normal(5000, 1, seed=9)
    fresh = radius * torch.cat((angle.cos(), angle.sin()), 1)
    entropy = math.log(2 * math.pi) + 0.5 * math.log(2 * math.pi * math.e * 0.04) + math.log(2)
    assert entropy - 0.01 < float(-fitted.log_prob(fresh).mean()) < entropy + 0.1
    rows = fitted._transform.forward(fresh)
    assert plugin.log_prob(rows).mean() > plugin.noise.log_prob(rows).mean() + 1
    distance = (fitted.sample(5000, seed=0).norm(dim=1) - 2).abs()
    assert distance.mean() < 0.25  # 0.16 is the data's own


def test_two_far_blobs_from_one_gaussian() -> None:
    x = torch.cat((normal(1000, 1, seed=1) - 5, normal(1000, 1, seed=2) + 5))
    sampler = fit_latent_sampler(None, x, method="flow-matching", components=1, **SMALL)
    z = sampler.sample(4000, seed=0)
    assert float((z > 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert float((z.abs() < 2).float().mean()) < 0.05
    assert float(z[z > 0].mean()) == pytest.approx(5, abs=0.3)


def test_classes_have_their_own_blobs() -> None:
    label = torch.arange(900) % 3
    centres = torch.tensor([[4.0, 0], [-4, 0], [0, 4]])
    x = centres[label] + 0.5 * normal(900, 2)
    sampler = fit_latent_sampler(None, x, method="flow-matching", condition=label, **SMALL)
    wanted = torch.arange(300) % 3
    z = sampler.sample(300, condition=wanted, seed=0)
    assert (torch.cdist(z, centres).argmin(1) == wanted).float().mean() > 0.98
    own = sampler.log_prob(x[:90], condition=label[:90])
    other = sampler.log_prob(x[:90], condition=(label[:90] + 1) % 3)
    assert (own > other + 2).float().mean() > 0.95


def test_a_vector_moves_the_mean() -> None:
    y = 4 * torch.rand(1500, 1, generator=seeded(3)) - 2
    x = torch.cat((2 * y, -y), 1) + 0.3 * normal(1500, 2)
    sampler = fit_latent_sampler(
        None, x, method="flow-matching", condition=y, **{**SMALL, "steps": 600}
    )
    for value in (-1.0, 1.5):
        z = sampler.sample(1000, condition=torch.tensor([value]), seed=0)
        torch.testing.assert_close(z.mean(0), torch.tensor([2 * value, -value]), atol=0.2, rtol=0)
        assert (z.std(0) < 0.6).all()


def test_the_number_of_components_is_chosen_or_given(ring: Tensor) -> None:
    options: dict[str, Any] = {"method": "flow-matching", "hidden": 8, "steps": 1}
    blob = fit_latent_sampler(None, normal(2000, 2), **options)
    assert blob.info["fit"]["components"] <= 5
    assert fit_latent_sampler(None, ring, **options).info["fit"]["components"] >= 6
    assert fit_latent_sampler(None, ring, components=7, **options).info["fit"]["components"] == 7
    plugin: Any = blob._plugin
    used = (plugin.noise.logits.softmax(0) > 1e-6).sum()
    assert int(used) <= blob.info["fit"]["components"] < plugin.noise.components


def test_one_seed_gives_one_sampler(ring: Tensor, fitted: LatentSampler) -> None:
    short: dict[str, Any] = {**SMALL, "steps": 20, "method": "flow-matching"}
    first, second = (fit_latent_sampler(None, ring, **short) for _ in range(2))
    assert torch.equal(first.sample(50, seed=0), second.sample(50, seed=0))
    other = fit_latent_sampler(None, ring, seed=1, **short)
    assert not torch.equal(first.sample(50, seed=0), other.sample(50, seed=0))


def test_a_rows_density_does_not_depend_on_the_others(fitted: LatentSampler) -> None:
    z = fitted.sample(700, seed=0)
    together = fitted.log_prob(z)
    apart = torch.cat([fitted.log_prob(part) for part in z.split(97)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.flip(0), fitted.log_prob(z.flip(0)), rtol=1e-4, atol=1e-4)


def test_densities_are_differentiable_in_the_rows(fitted: LatentSampler) -> None:
    plugin: Any = built(2, components=1)
    plugin.load_state_dict(fitted._plugin.state_dict())
    plugin.double()
    x = normal(8, 2).double().requires_grad_()
    value = plugin.log_prob(x)
    torch.testing.assert_close(value, plugin.log_prob(x.detach()))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    for column in (0, 1):
        step = 1e-5 * torch.eye(2, dtype=torch.float64)[column]
        up, down = plugin.log_prob(x.detach() + step), plugin.log_prob(x.detach() - step)
        torch.testing.assert_close(gradient[:, column], (up - down) / 2e-5, rtol=1e-5, atol=1e-5)


def test_a_saved_sampler_is_the_same(fitted: LatentSampler, tmp_path: Any) -> None:
    fitted.save(tmp_path / "flow.safetensors")
    again = load_sampler(tmp_path / "flow.safetensors")
    z = fitted.sample(20, seed=0)
    assert torch.equal(again.sample(20, seed=0), z)
    assert torch.equal(again.log_prob(z), fitted.log_prob(z))


@pytest.mark.parametrize("n, dim, held_out", [(1, 3, 0), (1, 3, 1), (5, 1, 2), (40, 2, 0)])
def test_few_rows_give_finite_samples(n: int, dim: int, held_out: int) -> None:
    plugin = built(dim, n, steps=20)
    plugin.field.requires_grad_(True)
    plugin.fit(normal(n, dim), normal(held_out, dim, seed=1), Run(seeded(0)))
    with torch.no_grad():
        z = plugin.sample(30, seeded(0))
        assert z.shape == (30, dim)
        assert z.isfinite().all()
        assert plugin.log_prob(z).isfinite().all()
        assert plugin.log_prob(z[:0]).shape == (0,)
        assert plugin.sample(0, seeded(0)).shape == (0, dim)


def test_samples_stay_in_a_plane_that_holds_the_rows() -> None:
    x = normal(600, 2)
    x = torch.cat((x, x[:, :1]), 1)
    z = fit_latent_sampler(None, x, method="flow-matching", **SMALL).sample(1000, seed=0)
    assert (z[:, 0] - z[:, 2]).abs().max() < 0.02


def test_a_fit_ends_in_time(ring: Tensor) -> None:
    sampler = fit_latent_sampler(
        None, ring, method="flow-matching", steps=100_000, hidden=16, max_seconds=0.5
    )
    assert sampler.info["seconds"] < 2
    assert 0 < sampler.history["step"][-1] < 100_000
