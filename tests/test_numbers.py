"""Numbers that are hard, through every method: NaN and infinity, dtypes, scales, tails, copies, few rows."""

import json
import math
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nflows.transforms.splines as splines
import numpy as np
import pytest
import torch
from nflows.transforms import PiecewiseRationalQuadraticCDF
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from latentfit import LatentSampler, diagnose, fit_latent_sampler, list_samplers, metrics
from latentfit.errors import DataError, DivergenceError, LatentsWarning, NonFiniteError
from latentfit.options import describe_options
from latentfit.registry import load_sampler_class
from latentfit_nflows import Spline

METHODS = [info.name for info in list_samplers() if info.distribution == "latentfit"]
TRAINED = [m for m in METHODS if "learning_rate" in describe_options(load_sampler_class(m))]
Options = Callable[[str], dict[str, Any]]

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
every = pytest.mark.parametrize("method", METHODS)
every_and_auto = pytest.mark.parametrize("method", [*METHODS, "auto"])


def fit(method: str, latents: Tensor, options: dict[str, Any], **arguments: Any) -> LatentSampler:
    return fit_latent_sampler(
        None, latents, method=method, **{"validation": 0.3, **options, **arguments}
    )


# --- what latents may be ---

# The quantiles of a Cauchy distribution, in no order: their largest is 95 times their quartiles.
CAUCHY = torch.tan(
    math.pi * (torch.randperm(180, generator=torch.Generator().manual_seed(1)) / 180 - 0.4972)
)
LATENTS = {
    "float16": X.half(),
    "float16 to its end": (X / X.abs().max() * 65504).half(),
    "bfloat16": X.bfloat16(),
    "float64": X.double(),
    "int64": (5 * X).long(),
    "int8": (40 * X).to(torch.int8),
    "denormal": X * 1e-40,
    "float32 to its end": X / X.abs().max() * 3e38,
    "scales of 1e-30, 1 and 1e30": X.double() * torch.tensor([1e-30, 1, 1e30]).double(),
    "Cauchy": CAUCHY.view(60, 3),
    "Cauchy, one column": CAUCHY[:60, None],
    "a few values": X[:3].repeat(20, 1),
    "all but one equal": torch.cat((X[:1].expand(59, -1), X[1:2])),
    "one column": X[:, :1],
    "numbers": X[:, 0],
}
WARNED_OF = {"a few values": "copies", "all but one equal": "copies"}


@every_and_auto
@pytest.mark.parametrize("kind", LATENTS)
def test_latents_of_any_kind_are_fitted(method: str, kind: str, tiny: Options) -> None:
    x = LATENTS[kind]
    if (method, kind) == ("auto", "all but one equal"):
        with pytest.warns(LatentsWarning), pytest.raises(DataError, match="vary among the 18 set"):
            fit(method, x, tiny(method))
        return
    told: Any = nullcontext()
    if kind in WARNED_OF:
        told = pytest.warns(LatentsWarning, match=WARNED_OF[kind])
    with told:
        sampler = fit(method, x, tiny(method))
    z = sampler.sample(40, seed=0)
    assert z.isfinite().all()
    assert z.dtype == (x.dtype if x.is_floating_point() else torch.float32)
    if sampler.has_density:
        for latents in (x, z):
            assert sampler.log_prob(latents).isfinite().all()
    if kind != "all but one equal":  # the one may not be among the samples
        ratio = z.double().std(0) / x.double().std(0)
        assert ((ratio > 0.01) & (ratio < 30)).all()


@every
@pytest.mark.parametrize("power", [-100, 100])  # about 1e-30 and 1e30
def test_a_unit_changes_nothing_but_the_unit(method: str, power: int, tiny: Options) -> None:
    one, other = (fit(method, x, tiny(method)) for x in (X, X * 2.0**power))
    z = one.sample(20, seed=0)
    torch.testing.assert_close(other.sample(20, seed=0) / 2.0**power, z, rtol=1e-3, atol=1e-3)
    if one.has_density:
        expected = one.log_prob(z) - 3 * power * math.log(2)
        torch.testing.assert_close(other.log_prob(z * 2.0**power), expected, rtol=1e-3, atol=0.01)


@every_and_auto
def test_one_latent_is_refused(method: str, tiny: Options) -> None:
    with pytest.raises(DataError, match="got 1"):
        fit(method, X[:1], tiny(method))


@every
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("n", [2, 9])
def test_a_handful_is_fitted_and_warned_of(method: str, n: int, dim: int, tiny: Options) -> None:
    with pytest.warns(LatentsWarning, match=f"hundreds of latents .*; got {n}, .*complete"):
        sampler = fit(method, X[:n, :dim], tiny(method))
    assert sampler.sample(20, seed=0).isfinite().all()


# --- NaN and infinity: each where it arises, with the count, the place and what to do ---


def broken(bad: float, x: Tensor = X) -> Tensor:
    x = x.clone()
    x[41, 1] = x[7, 2] = bad
    return x


class Breaking(nn.Module):
    def __init__(self, bad: float) -> None:
        super().__init__()
        self.bad = bad

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] == x[:, :1].max(), torch.full_like(x, self.bad), x)


ORIGINS: dict[str, tuple[Callable[[float, LatentSampler, Path], object], str]] = {
    "latents": (
        lambda bad, *_: fit("gaussian", broken(bad), {}),
        "latents; got 2 of 60 rows .*index 7; leave these rows out",
    ),
    "an encoder's": (
        lambda bad, *_: fit_latent_sampler(Breaking(bad), X, method="gaussian"),
        "latents; got 1 of 60 rows .*index .*; the encoder makes them of finite inputs: if the encoder runs",
    ),
    "a loader's": (
        lambda bad, *_: fit_latent_sampler(
            None, DataLoader(TensorDataset(broken(bad)), batch_size=8), method="gaussian"
        ),
        "latents; got 2 of 60 rows .*index 7",
    ),
    "a store's": (
        lambda bad, _, path: fit_latent_sampler(
            None, broken(bad), method="gaussian", store=path / "store"
        ),
        "latents; got 2 of 60 rows .*index 7",
    ),
    "log_prob's": (
        lambda bad, s, _: s.log_prob(broken(bad)),
        "latents in z; got 2 of 60 .*index 7",
    ),
    "decode's": (lambda bad, s, _: s.decode(broken(bad)), "latents in z; got 2 of 60 .*index 7"),
    "diagnose's": (lambda bad, *_: diagnose(broken(bad)), "latents; got 2 of 60 .*index 7"),
    "validation's": (
        lambda bad, *_: diagnose(X, validation=broken(bad)),
        "latents; got 2 of 60 .*index 7",
    ),
    "labels": (
        lambda bad, *_: fit_latent_sampler(None, X, method="gaussian", condition=broken(bad)),
        "finite; got 2 that are NaN or infinite",
    ),
    **{
        f"{metric.__name__}'s": (lambda bad, *_, metric=metric: metric(X, broken(bad)), "finite.*2")
        for metric in (
            metrics.c2st,
            metrics.c2st_interval,
            metrics.density_coverage,
            metrics.energy_distance,
            metrics.frechet_distance,
            metrics.kernel_distance,
            metrics.precision_recall,
            metrics.sliced_wasserstein,
        )
    },
    "data_copying's": (lambda bad, *_: metrics.data_copying(X, X, broken(bad)), "finite.*2"),
}


@pytest.fixture(scope="module")
def sampler() -> LatentSampler:
    return fit_latent_sampler(None, X, method="gaussian", decoder=nn.Identity())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("origin", ORIGINS)
def test_what_is_not_finite_is_told_where_it_comes_in(
    origin: str, bad: float, sampler: LatentSampler, tmp_path: Path
) -> None:
    act, message = ORIGINS[origin]
    with pytest.raises(DataError, match=message):
        act(bad, sampler, tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["sample", "log_prob"])
def test_what_a_method_makes_that_is_no_number_is_an_error(
    what: str, bad: float, sampler: LatentSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(sampler._plugin, what)

    def wrong(*arguments: Any) -> Tensor:
        values = original(*arguments)
        values[7] = values[41] = bad
        return values

    monkeypatch.setattr(sampler._plugin, what, wrong)
    with pytest.raises(NonFiniteError, match=r"got 2 of 60 .*index 7; .*lower learning_rate"):
        sampler.sample(60) if what == "sample" else sampler.log_prob(X)


def test_minus_infinity_is_a_log_density(sampler: LatentSampler) -> None:
    assert sampler.log_prob(X[:2] * 1e30).isneginf().all()


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize("validation", [0, 0.1])
def test_training_that_diverges_stops_with_the_last_finite_state(
    method: str, validation: float, tiny: Options
) -> None:
    options = {**tiny(method), "learning_rate": 1e30, "steps": 50}
    with pytest.raises(DivergenceError, match=r"diverged at step \d+ .*lower learning_rate") as e:
        fit(method, X, options, validation=validation)
    kept = e.value.sampler
    if kept is None:  # a GAN may have had no evaluation yet
        assert not load_sampler_class(method).has_density
        return
    assert all(math.isfinite(v) for curve in kept.history.values() for v in curve)
    assert kept.sample(20, seed=0).isfinite().all()
    if kept.has_density:
        assert kept.log_prob(X).isfinite().all()


# --- nflows' assert ---


@pytest.mark.parametrize("labels", [None, torch.arange(60) % 2], ids=["plain", "classes"])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("method", ["spline", "spline-ar"])
def test_nflows_own_spline_with_its_assert_is_never_called(
    method: str, dim: int, labels: Tensor | None, tiny: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("nflows' own")

    for name in ("rational_quadratic_spline", "unconstrained_rational_quadratic_spline"):
        monkeypatch.setattr(splines, name, called)
        monkeypatch.setattr(splines.rational_quadratic, name, called)
    with pytest.raises(AssertionError, match="nflows' own"):
        PiecewiseRationalQuadraticCDF([1], tails="linear")(torch.zeros(1, 1))
    given = None if labels is None else 1
    sampler = fit(method, X[:, :dim], tiny(method), condition=labels)
    assert sampler.log_prob(sampler.sample(9, condition=given), condition=given).isfinite().all()


@pytest.mark.parametrize("spread", [5.0, 20.0, 100.0])
def test_one_wild_spline_is_finite_where_nflows_own_is_not_always(spread: float) -> None:
    x = torch.linspace(-6, 6, 4001)[:, None]
    for seed in range(20):
        flow = Spline(bins=8, base="normal")
        flow.build(1, 100)
        for parameter in flow.parameters():
            nn.init.normal_(parameter, std=spread, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            rows, (noise, log_determinant) = flow.from_base(x), flow.to_base(x)
        for values in (rows, noise, log_determinant):
            assert values.isfinite().all()
        assert (rows.diff(dim=0) >= -1e-3).all()  # monotone, but for rounding


OPTIMISED = """
import json, sys
import torch
from latentfit import fit_latent_sampler

x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
found = []
for method, options in json.loads(sys.argv[1]).items():
    for latents in (x[:, :1], x):
        sampler = fit_latent_sampler(None, latents, method=method, **options)
        with torch.no_grad():
            for tensor in sampler._plugin.state_dict().values():
                if tensor.is_floating_point():
                    tensor.mul_(30)
        try:
            found.append(sampler.sample(500, seed=0).double().sum().item())
            found.append(sampler.log_prob(latents).double().sum().item())
        except Exception as error:
            found.append(repr(error))
assert __debug__ or not any(value != value for value in found if isinstance(value, float))
print(json.dumps(found))
"""


def test_python_without_asserts_gives_the_same(
    tiny: Options, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    options = json.dumps({method: tiny(method) for method in ("spline", "spline-ar", "realnvp")})
    plain, optimised = (
        json.loads(run_python(*flags, "-c", OPTIMISED, options).stdout) for flags in ((), ("-O",))
    )
    assert plain == optimised
    assert len(plain) > 6
    assert not [v for v in plain if isinstance(v, float) and not np.isfinite(v)]


@pytest.mark.parametrize("transform", ["scale", "none"])
def test_a_dimension_that_one_scale_drowns_is_warned_of(transform: str) -> None:
    x = torch.randn(500, 2) * torch.tensor([1.0, 5000.0])
    with pytest.warns(
        LatentsWarning, match="dimension 0 deviates by .*transform='standardize'"
    ) as told:
        fit_latent_sampler(None, x, method="gaussian", transform=transform)
    assert told[0].filename == __file__
    drawn = fit_latent_sampler(None, x, method="gaussian").sample(2000, seed=0)  # by its own choice
    assert float(drawn[:, 0].std() / x[:, 0].std()) == pytest.approx(1, abs=0.1)
