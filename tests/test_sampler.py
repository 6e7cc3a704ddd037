"""A sampler as a user holds it: drawing, scoring, decoding.

The laws are checked here on one method of each shape; test_contract.py has all methods.
"""

import json
import math
from contextlib import nullcontext
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from latentfit import LatentSampler, fit_latent_sampler
from latentfit.errors import (
    DataError,
    DecoderUnavailable,
    DensityUnavailable,
    LatentsWarning,
    NonFiniteError,
    OptionError,
)
from latentfit.options import describe_options
from latentfit.registry import load_sampler_class
from latentfit.sampler_base import Sampler


def _configurations() -> list[Any]:
    """One in closed form, a flow with each of its bases, and one without a density."""
    found = []
    for method in ("gaussian", "realnvp", "wgan-gp"):
        options = describe_options(load_sampler_class(method))
        bases = ("normal", "mixture") if "base" in options else ()
        for base in bases or [None]:
            name = f"{method}-{base}" if base else method
            found.append(pytest.param((method, base), id=name))
    return found


ALL = _configurations()
Method = tuple[str, str | None]
every = pytest.mark.parametrize("method", ALL)
with_density = pytest.mark.parametrize(
    "method", [p for p in ALL if load_sampler_class(p.values[0][0]).has_density]
)
without_density = pytest.mark.parametrize(
    "method", [p for p in ALL if not load_sampler_class(p.values[0][0]).has_density]
)


trained = pytest.mark.parametrize("method", [p for p in ALL if p.values[0][0] != "gaussian"])


def fit(method: Method, latents: Any, *, steps: int = 5, **arguments: Any) -> LatentSampler:
    name, base = method
    known = describe_options(load_sampler_class(name))
    own: dict[str, Any] = {"steps": steps} if "steps" in known else {}
    if base is not None:
        own["base"] = base
    return fit_latent_sampler(None, latents, method=name, **{**own, **arguments})


def blobs(n: int = 400, seed: int = 0) -> Tensor:
    """Three clusters and a correlation in two dimensions, float64."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[-2.0, 0], [1, 2], [1, -2]], dtype=torch.float64)
    which = torch.randint(3, (n,), generator=draw)
    noise = torch.randn(n, 2, generator=draw, dtype=torch.float64)
    return centres[which] + noise @ torch.tensor([[0.5, 0.3], [0, 0.4]], dtype=torch.float64)


@cache
def fitted(method: Method) -> LatentSampler:
    """A sampler of 2 x 3 x 2 latents around 100, shared by the tests that only read it."""
    x = torch.randn(300, 2, 3, 2, generator=torch.Generator().manual_seed(0))
    return fit(method, x * 5 + 100)


# --- drawing ---


@every
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_samples_have_the_shape_dtype_and_units_of_the_latents(
    method: Method, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0)) * 5 + 100
    if method == ("realnvp", "normal") and math.prod(shape) == 1:
        with pytest.raises(OptionError, match="two or more dimensions.*base='mixture'"):
            fit(method, x)
        return
    few_values = dtype == torch.int64 and math.prod(shape) == 1
    with pytest.warns(LatentsWarning, match="copies") if few_values else nullcontext():
        sampler = fit(method, x.to(dtype))
    z = sampler.sample(50, seed=0)
    assert z.shape == (50, *shape)
    assert z.dtype == sampler.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert sampler.shape == shape
    assert sampler.dim == math.prod(shape)
    assert z.device == sampler.device == torch.device("cpu")
    assert not z.requires_grad
    assert 80 < float(z.double().mean()) < 120
    assert 0.1 < float(z.double().std()) < 25


@every
def test_one_seed_gives_the_same_samples_and_none_gives_new_ones(method: Method) -> None:
    sampler = fitted(method)
    one = sampler.sample(7, seed=1)
    assert torch.equal(one, sampler.sample(7, seed=1))
    assert torch.equal(one, sampler.sample(np.int64(7), seed=np.int64(1)))
    assert not torch.equal(one, sampler.sample(7, seed=2))
    assert not torch.equal(sampler.sample(7), sampler.sample(7))
    assert len(one.unique(dim=0)) == 7


@every
@pytest.mark.parametrize("n", [0, 1, 8191, 8193, 20_000])
def test_any_number_of_samples_is_drawn(method: Method, n: int) -> None:
    z = fitted(method).sample(n, seed=0)
    assert z.shape == (n, 2, 3, 2)
    assert z.dtype == torch.float32
    assert len(z.unique(dim=0)) == n  # no chunk repeats another


@pytest.mark.parametrize("n", [-1, 1.0, "3", None, True, np.float64(2), [1]])
def test_another_number_is_refused(n: Any) -> None:
    with pytest.raises(OptionError, match="Expected n as a whole number >= 0; got"):
        fitted(("wgan-gp", None)).sample(n)


@pytest.mark.parametrize("seed", [-1, 1.5, "0"])
def test_another_seed_is_refused(seed: Any) -> None:
    with pytest.raises(OptionError, match="Expected seed"):
        fitted(("wgan-gp", None)).sample(1, seed=seed)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_dimensions_come_back_exactly(method: Method, dtype: torch.dtype) -> None:
    x = blobs().to(dtype)
    x = torch.stack((x[:, 0], torch.full_like(x[:, 0], 0.1), x[:, 1], torch.zeros_like(x[:, 0])), 1)
    sampler = fit(method, x)
    assert sampler.info["constant_dimensions"] == [1, 3]
    z = sampler.sample(30, seed=0)
    assert torch.equal(z[:, [1, 3]], x[:30, [1, 3]])
    if sampler.has_density:
        plain = fit(method, x[:, [0, 2]])
        assert torch.equal(sampler.log_prob(x), plain.log_prob(x[:, [0, 2]]))
        assert sampler.log_prob(z).isfinite().all()
        assert sampler.log_prob(x + 0.01).isneginf().all()


def test_a_fit_that_went_wrong_draws_an_error_and_not_nan() -> None:
    sampler = fit(("wgan-gp", None), blobs())
    for parameter in sampler._plugin.generator.parameters():
        parameter.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="4 of 4 rows .* lower learning_rate"):
        sampler.sample(4)


# --- scoring ---


@with_density
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-3, 1e3)])
def test_the_density_integrates_to_one(method: Method, scales: tuple[float, float]) -> None:
    scale = torch.tensor(scales, dtype=torch.float64)
    x = blobs(600) * scale + 7 * scale
    sampler = fit(method, x, steps=60)
    deviation = x.std(0)
    axis = torch.linspace(-8, 8, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis) * deviation + x.mean(0)
    cell = (axis[1] - axis[0]) ** 2 * deviation.prod()
    total = sampler.log_prob(grid).double().exp().sum() * cell
    assert float(total) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    "method", [("realnvp", "mixture"), ("spline", "mixture"), ("spline", "normal")]
)
def test_the_density_in_one_dimension_integrates_to_one(method: Method) -> None:
    x = blobs()[:, 0] * 1e-2
    sampler = fit(method, x, steps=60)
    axis = torch.linspace(-10, 10, 20_001, dtype=torch.float64) * x.std() + x.mean()
    total = sampler.log_prob(axis).double().exp().sum() * (axis[1] - axis[0])
    assert float(total) == pytest.approx(1, abs=0.01)


@with_density
def test_samples_are_drawn_from_the_density(method: Method) -> None:
    # Where a grid puts the mass is where the samples fall.
    sampler = fit(method, blobs(600), steps=60)
    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    mass = sampler.log_prob(grid).double().exp() * (axis[1] - axis[0]) ** 2
    z = sampler.sample(40_000, seed=0)
    for direction in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, -2.0)):
        along = torch.tensor(direction, dtype=torch.float64)
        for threshold in (-2.0, -0.5, 0.5, 2.0):
            expected = float(mass[grid @ along < threshold].sum())
            got = float((z @ along < threshold).double().mean())
            assert got == pytest.approx(expected, abs=0.02)


@with_density
def test_the_density_follows_the_units(method: Method) -> None:
    x, factor = blobs(), torch.tensor([1e-3, 50], dtype=torch.float64)
    moved = x * factor + torch.tensor([1e4, -3], dtype=torch.float64)
    # Few components: a hundred for 360 rows would make much of rounding.
    options = {"steps": 20, **({"components": 5} if method[1] == "mixture" else {})}
    one, other = fit(method, x, **options), fit(method, moved, **options)
    torch.testing.assert_close(
        other.log_prob(moved), one.log_prob(x) - float(factor.log().sum()), atol=5e-3, rtol=1e-3
    )
    torch.testing.assert_close(
        (other.sample(50, seed=0) - moved.mean(0)) / factor,
        one.sample(50, seed=0) - x.mean(0),
        atol=5e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize("method", ["realnvp", "spline"])
def test_a_linear_gaussian_case_has_its_closed_form(method: str) -> None:
    # z = A e + b. One Gaussian, not trained, is the data's moments; those are near the truth.
    draw = np.random.default_rng(0)
    a, b, n, d = draw.normal(size=(4, 4)), np.array([1e3, 0, -5, 1e-2]), 20_000, 4
    z, fresh = (draw.normal(size=(n, d)) @ a.T + b for _ in range(2))
    still: dict[str, Any] = {"steps": 1, "learning_rate": 1e-8, "validation": 0}
    sampler = fit((method, "mixture"), z, components=1, **still)
    got = sampler.log_prob(fresh).numpy()
    moments = scipy.stats.multivariate_normal(z.mean(0), np.cov(z.T, bias=True))
    np.testing.assert_allclose(got, moments.logpdf(fresh), atol=1e-3, rtol=1e-3)
    truth = scipy.stats.multivariate_normal(b, a @ a.T).logpdf(fresh)
    assert 0 < np.mean(truth - got) < 3 * d * (d + 3) / 4 / n  # (parameters) / 2n is expected


@pytest.mark.parametrize("method", ["realnvp", "spline"])
def test_training_brings_a_normal_base_to_a_linear_gaussians_entropy(method: str) -> None:
    draw = np.random.default_rng(1)
    a, b = np.array([[2.0, 0], [1.5, 0.4]]), np.array([3.0, -1])
    z, fresh = (draw.normal(size=(4000, 2)) @ a.T + b for _ in range(2))
    sampler = fit((method, "normal"), z, steps=400, learning_rate=5e-3)
    truth = scipy.stats.multivariate_normal(b, a @ a.T).logpdf(fresh)
    gap = truth - sampler.log_prob(fresh).numpy()
    assert -0.01 < gap.mean() < 0.03
    untrained = fit((method, "normal"), z, steps=1)
    assert (truth - untrained.log_prob(fresh).numpy()).mean() > 0.3


@with_density
def test_many_latents_are_scored_like_few(method: Method) -> None:
    sampler = fitted(method)
    z = sampler.sample(9000, seed=0)
    scores = sampler.log_prob(z)
    assert scores.shape == (9000,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    torch.testing.assert_close(scores[8990:], sampler.log_prob(z[8990:]))
    assert torch.equal(sampler.score_samples(z), scores)
    assert sampler.log_prob(z[:0]).shape == (0,)


@with_density
def test_latents_may_be_arrays_of_any_kind(method: Method) -> None:
    sampler = fitted(method)
    z = sampler.sample(4, seed=0)
    expected = sampler.log_prob(z)
    frozen = z.numpy().copy()
    frozen.flags.writeable = False
    for given in (z.numpy(), frozen, z.double(), z.numpy()[::-1][::-1], z.numpy().astype(">f8")):
        torch.testing.assert_close(sampler.log_prob(given), expected)
    torch.testing.assert_close(sampler.log_prob(z.numpy()[::-1]), expected.flip(0))
    torch.testing.assert_close(sampler.log_prob(z.tolist()), expected)  # type: ignore[arg-type]


@with_density
def test_the_score_is_differentiable_in_the_latents(method: Method) -> None:
    sampler = fit(method, blobs(), steps=30)
    z = blobs(20, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(sampler.log_prob(z).sum(), z)
    step = 1e-2  # float32 inside: differences over less drown in rounding
    for axis in range(2):
        offset = torch.zeros(2, dtype=torch.float64)
        offset[axis] = step
        up, down = sampler.log_prob(z.detach() + offset), sampler.log_prob(z.detach() - offset)
        difference = (up - down).double() / (2 * step)
        # A kink of a network or a spline's knot may lie within the step of a few.
        off = (gradient[:, axis] - difference).abs() > 0.05 * (1 + difference.abs())
        assert int(off.sum()) <= 2
    assert all(p.grad is None for p in sampler._plugin.parameters())


@with_density
def test_scores_do_not_depend_on_the_default_dtype(method: Method) -> None:
    sampler = fitted(method)
    z = sampler.sample(5, seed=0)
    expected = sampler.log_prob(z)
    torch.set_default_dtype(torch.float64)
    try:
        scores, again = sampler.log_prob(z), sampler.sample(5, seed=0)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected)
    assert torch.equal(again, z)


@with_density
@pytest.mark.parametrize(
    "z, message",
    [
        (torch.zeros(3, 2), r"shape \(n, 2, 3, 2\); got \(3, 2\)"),
        (torch.zeros(2, 3, 2), r"got \(2, 3, 2\)"),
        (torch.zeros(1, 2, 2, 3), r"got \(1, 2, 2, 3\)"),
        (torch.zeros(()), r"got \(\)"),
        (
            torch.zeros(1, 2, 3, 2, dtype=torch.complex64),
            "Expected real latents; got torch.complex64",
        ),
        ([[1.0], [1.0, 2.0]], "Expected latents as a tensor or an array"),
        ([["a"]], "Expected latents as a tensor or an array"),
        (None, "Expected latents as a tensor or an array"),
    ],
)
def test_latents_of_another_kind_are_refused(method: Method, z: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fitted(method).log_prob(z)


@with_density
def test_non_finite_latents_are_counted(method: Method) -> None:
    z = fitted(method).sample(5, seed=0)
    z[3, 0, 0, 0] = math.nan
    with pytest.raises(
        NonFiniteError, match="1 of 5 rows with NaN or infinity, the first at index 3"
    ):
        fitted(method).log_prob(z)


@with_density
def test_latents_far_away_are_unlikely_and_not_nan(method: Method) -> None:
    sampler = fit(method, blobs(), steps=60)
    near = sampler.log_prob(blobs()).min()
    for distance in (1e2, 1e4, 1e6):
        far = sampler.log_prob(torch.full((1, 2), distance))
        assert not far.isnan().any()
        assert far < near


@without_density
def test_a_method_without_density_says_so(method: Method) -> None:
    sampler = fitted(method)
    assert not sampler.has_density
    for score in (sampler.log_prob, sampler.score_samples):
        for z in (sampler.sample(2), sampler.sample(0)):
            with pytest.raises(DensityUnavailable, match=f"'{sampler.method}' .* has no density"):
                score(z)


def test_a_base_class_without_density_says_so() -> None:
    class Plain(Sampler):
        def build(self, dim: int, n: int) -> None: ...
        def fit(self, rows: Tensor, held_out: Tensor, run: Any) -> None: ...
        def sample(self, n: int, generator: torch.Generator) -> Tensor:
            return torch.zeros(n, 1)

    with pytest.raises(DensityUnavailable, match="Plain"):
        Plain().log_prob(torch.zeros(1, 1))


@with_density
def test_has_density_tells_beforehand(method: Method) -> None:
    assert fitted(method).has_density


# --- decoding and description ---


def test_without_a_decoder_decoding_says_what_to_do() -> None:
    sampler = fitted(("wgan-gp", None))
    for call in (lambda: sampler.decode(sampler.sample(1)), lambda: sampler.generate(1)):
        with pytest.raises(DecoderUnavailable, match="pass decoder= to fit_latent_sampler or load"):
            call()


@every
def test_generating_is_drawing_and_decoding(method: Method) -> None:
    sizes: list[int] = []

    def decoder(z: Tensor) -> Tensor:
        sizes.append(len(z))
        return z.flatten(1).sum(1, keepdim=True)

    x = torch.randn(100, 2, 2, generator=torch.Generator().manual_seed(0))
    sampler = fit(method, x, decoder=decoder, batch_size=64)
    images = sampler.generate(150, seed=4)
    assert torch.equal(images, sampler.sample(150, seed=4).flatten(1).sum(1, keepdim=True))
    assert sizes == [64, 64, 22]
    assert sampler.generate(0).shape == (0, 1)
    with pytest.raises(DataError, match=r"shape \(n, 2, 2\); got \(3, 4\)"):
        sampler.decode(torch.zeros(3, 4))


def test_an_error_of_the_decoders_tells_what_it_was_given() -> None:
    sampler = fit_latent_sampler(None, blobs(), method="gaussian", decoder=nn.Linear(3, 2).double())
    for call in (lambda: sampler.decode(blobs()[:4]), lambda: sampler.generate(4)):
        with pytest.raises(RuntimeError, match="shapes") as caught:
            call()
        assert caught.value.__notes__ == ["while the decoder was given (4, 2) torch.float64"]


def test_nan_of_the_decoders_is_counted_in_a_warning_and_given() -> None:
    def decoder(z: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return torch.where(torch.arange(len(z))[:, None] < 2, torch.nan, z)

    sampler = fit_latent_sampler(None, blobs(), method="gaussian", decoder=decoder)
    for call in (lambda: sampler.decode(blobs()[:5]), lambda: sampler.generate(5)):
        with pytest.warns(
            LatentsWarning, match="from the decoder; 2 of 5 rows hold NaN."
        ) as caught:
            assert call().isnan().sum() == 4
        assert caught[0].filename == __file__
    assert torch.get_default_dtype() == torch.float32


def test_infinities_of_the_decoders_are_its_own_affair() -> None:
    signs = torch.tensor([torch.inf, -torch.inf])
    sampler = fit_latent_sampler(
        None, blobs(), method="gaussian", decoder=lambda z: z.abs() * signs
    )
    assert sampler.generate(5).isinf().all()  # without a warning, which would be an error here


def test_a_seed_counts_for_a_decoder_that_draws_too() -> None:
    sampler = fit_latent_sampler(
        None, blobs().float(), decoder=lambda z: z + torch.randn(len(z), 2), steps=2
    )
    before = torch.get_rng_state()

    assert torch.equal(sampler.generate(5, seed=1), sampler.generate(5, seed=1))
    assert not torch.equal(sampler.generate(5, seed=1), sampler.sample(5, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_its_description_tells_all_at_a_glance(method: Method) -> None:
    sampler = fit(method, torch.randn(100, 2, 2), decoder=nn.Flatten(), seed=5)
    text = repr(sampler)
    told = [repr(method[0]), "shape=(2, 2)", "dtype=float32", "device='cpu'", "decoder=yes"]
    suits = load_sampler_class(method[0]).preferred_transform
    told += [f"has_density={sampler.has_density}", f"transform={suits!r}"]
    told += ["fitted on 90 latents + 10 held out"]
    told += [f"{name}={value!r}" for name, value in sampler.options.items()]
    for part in told:
        assert part in text


@every
def test_its_info_is_complete_and_json(method: Method) -> None:
    sampler = fit(method, torch.randn(100, 2, 2), seed=5)
    info = json.loads(json.dumps(sampler.info, allow_nan=False))
    expected = {
        "method": method[0],
        "shape": [2, 2],
        "dim": 4,
        "dtype": "float32",
        "n": 90,
        "n_validation": 10,
        "seed": 5,
        "transform": load_sampler_class(method[0]).preferred_transform,
        "constant_dimensions": [],
        "parameters": sum(p.numel() for p in sampler._plugin.parameters()),
    }
    assert expected.items() <= info.items()
    assert info["seconds"] >= 0
    assert info["options"].keys() == describe_options(load_sampler_class(method[0])).keys()
    assert info["versions"].keys() == {"latentfit", "torch", "plugin"}
    assert info["versions"]["torch"] == version("torch")


@trained
def test_its_history_has_curves_of_one_length(method: Method) -> None:
    sampler = fit(method, blobs(), steps=13)
    lengths = {len(curve) for curve in sampler.history.values()}
    assert len(lengths) == 1
    assert lengths.pop() > 0
    assert sampler.history["step"] == sorted(set(sampler.history["step"]))
    losses = (
        {"train_loss", "validation_loss"}
        if sampler.has_density
        else {"critic_loss", "generator_loss", "validation_distance"}
    )
    assert sampler.history.keys() == {"step"} | losses
    assert all(math.isfinite(value) for curve in sampler.history.values() for value in curve)


@pytest.mark.parametrize("method", [("realnvp", "mixture"), ("realnvp", "normal")])
def test_the_validation_loss_is_in_nats_per_standardised_latent(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, seen = load_sampler_class(method[0]), []
    original = cls.fit

    def watched(self: Sampler, rows: Tensor, held_out: Tensor, run: Any) -> None:
        seen.append(held_out)
        original(self, rows, held_out, run)

    monkeypatch.setattr(cls, "fit", watched)
    x = blobs() * 3
    sampler = fit(method, x, steps=40, validation=0.25)
    scale = x.std(0, correction=0)
    held_out = seen[0] * scale + x.mean(0)
    nll = -float(sampler.log_prob(held_out).mean() + scale.log().sum())
    assert min(sampler.history["validation_loss"]) == pytest.approx(nll, abs=1e-4)


def test_options_are_a_copy_and_to_returns_the_sampler() -> None:
    sampler = fitted(("wgan-gp", None))
    sampler.options["steps"] = "changed"
    assert sampler.options["steps"] == 5
    assert sampler.to("cpu") is sampler
    with pytest.raises(OptionError, match="Expected a device"):
        sampler.to("abacus")


@pytest.mark.parametrize("n", [10**14, 10**25])
def test_more_samples_than_memory_holds_are_refused_at_once(n: int) -> None:
    sampler = fit_latent_sampler(None, blobs(), steps=2)
    with pytest.raises(OptionError, match="fit in memory"):
        sampler.sample(n)


@pytest.mark.parametrize("method", ["gmm", "kde", "realnvp", "flow-matching", "gaussian"])
@pytest.mark.parametrize("far", [1e17, 1e25, 1e38, 1e60, 1e300])
def test_latents_too_far_for_a_density_have_minus_infinity(method: str, far: float) -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).double()
    few = {"steps": 2} if method in ("realnvp", "flow-matching") else {}
    sampler = fit_latent_sampler(None, x, method=method, **few)
    z = torch.cat((x[:2], torch.full((1, 3), far, dtype=torch.float64)))
    z.requires_grad_(True)
    scores = sampler.log_prob(z)
    assert scores[2] == -torch.inf
    assert torch.equal(scores[:2], sampler.log_prob(x[:2]))
    scores[:2].sum().backward()
    assert z.grad is not None
    assert z.grad[:2].isfinite().all()


def test_sparse_latents_are_refused() -> None:
    sampler = fit_latent_sampler(None, torch.randn(50, 3), method="gaussian")
    with pytest.raises(DataError, match="to_dense"):
        sampler.log_prob(torch.eye(3).to_sparse())
