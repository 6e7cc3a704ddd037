"""fit_latent_sampler: arguments, seeds, random state, few rows, time, interrupts, divergence."""

import math
import random
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from latentfit import LatentSampler, fit_latent_sampler
from latentfit.errors import DataError, DivergenceError, LatentsWarning, NonFiniteError, OptionError
from latentfit.plugin import Run, Sampler
from latentfit.registry import load_sampler_class

X = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
# A flow on normflows, one on nflows, and one without a density; test_contract.py has all methods.
METHODS = ["realnvp", "spline", "wgan-gp"]
every = pytest.mark.parametrize("method", METHODS)


def fit(
    method: str = "realnvp", data: Any = X, encoder: Any = None, **arguments: Any
) -> LatentSampler:
    return fit_latent_sampler(encoder, data, method=method, **{"steps": 4, **arguments})


def states() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return (random.getstate(), kind, keys.tolist(), *rest, torch.get_rng_state().tolist())


def equal(one: LatentSampler, other: LatentSampler) -> bool:
    mine, theirs = one._plugin.state_dict(), other._plugin.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


# --- seeds and global state ---


@every
def test_one_seed_gives_one_sampler_bit_for_bit(method: str) -> None:
    one = fit(method, seed=3)
    torch.rand(7), np.random.rand(), random.random()  # noqa: NPY002
    again = fit(method, seed=np.int64(3))
    assert equal(one, again)
    assert one.history == again.history
    assert torch.equal(one.sample(9, seed=0), again.sample(9, seed=0))
    assert not equal(one, fit(method, seed=4))


@every
def test_no_seed_is_a_new_one_that_is_told(method: str) -> None:
    one, other = fit(method, seed=None), fit(method, seed=None)
    assert one.info["seed"] != other.info["seed"]
    assert not equal(one, other)
    assert equal(one, fit(method, seed=one.info["seed"]))


def shuffled() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X), batch_size=16, shuffle=True)


def drawing(x: Tensor) -> Tensor:
    random.random(), np.random.rand()  # noqa: NPY002
    return x + 0.1 * torch.randn_like(x)


@every
def test_the_global_random_state_stays_as_it_was(method: str) -> None:
    before = states()
    sampler = fit(method, shuffled(), drawing)
    sampler.sample(3)
    sampler.sample(3, seed=1)
    if sampler.has_density:
        sampler.log_prob(X)
    assert states() == before
    assert torch.equal(
        sampler.sample(3, seed=1), fit(method, shuffled(), drawing).sample(3, seed=1)
    )


def test_a_shuffled_loader_with_a_generator_of_its_own_is_read_in_one_order() -> None:
    own = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(X), batch_size=16, shuffle=True, generator=own)
    one, again = fit(data=loader), fit(data=loader)
    assert equal(one, again)
    torch.rand(1, generator=own)
    assert not equal(one, fit(data=loader))


class Stop(Exception):
    pass


def stopping(x: Tensor) -> Tensor:
    drawing(x)
    raise Stop


def breaking_fit(self: Sampler, rows: Tensor, held_out: Tensor, run: Run) -> None:
    drawing(rows)
    raise Stop


@pytest.mark.parametrize("where", ["encoder", "plugin"])
def test_it_stays_when_something_raises(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_sampler_class("wgan-gp"), "fit", breaking_fit)
    before, dtype = states(), torch.get_default_dtype()
    with pytest.raises(Stop):
        fit("wgan-gp", X, stopping if where == "encoder" else None)
    assert states() == before
    assert torch.get_default_dtype() == dtype


@contextmanager
def defaults(dtype: torch.dtype = torch.float32, device: str | None = None) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


@every
def test_the_default_dtype_changes_nothing_and_stays(method: str) -> None:
    expected = fit(method)
    with defaults(torch.float64):
        sampler = fit(method)
        assert equal(sampler, expected)
        assert torch.equal(sampler.sample(5, seed=0), expected.sample(5, seed=0))
    assert sampler.sample(1).dtype == torch.float32


@every
def test_a_callers_autocast_halves_nothing(method: str) -> None:
    expected = fit(method)
    z = expected.sample(5, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        sampler = fit(method)
        assert equal(sampler, expected)
        assert torch.equal(sampler.sample(5, seed=0), z)
        if sampler.has_density:
            scores = sampler.log_prob(z)
        assert torch.is_autocast_enabled("cpu")
    if sampler.has_density:
        assert torch.equal(scores, expected.log_prob(z))


def test_an_encoder_runs_under_the_callers_default_dtype() -> None:
    with defaults(torch.float64):
        assert fit(encoder=lambda x: x @ torch.eye(3), data=X.double()).dtype == torch.float64


@every
def test_a_default_device_that_is_not_the_samplers_is_not_used(method: str) -> None:
    expected = fit(method).sample(5, seed=0)
    with defaults(device="meta"):  # stands for any other: nothing can be computed there
        sampler = fit(method)
        z = sampler.sample(5, seed=0)
        if sampler.has_density:
            assert sampler.log_prob(z).device.type == "cpu"
    assert torch.equal(z, expected)


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_the_caller_has_turned_gradients_off(method: str, mode: Any) -> None:
    expected = fit(method)
    with mode():
        sampler = fit(method)
        assert not torch.is_grad_enabled()
    assert equal(sampler, expected)
    if sampler.has_density:
        z = X.clone().requires_grad_()
        sampler.log_prob(z).sum().backward()
        assert z.grad is not None


# --- data ---


@every
@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("validation", [0, 0.1, 0.9])
def test_few_rows_are_enough_for_a_sampler(method: str, n: int, validation: float) -> None:
    told = pytest.warns(LatentsWarning, match=f"got {n}, ") if n < 10 else nullcontext()
    with told:
        sampler = fit(method, X[:n], validation=validation)
    assert sampler.sample(20, seed=0).isfinite().all()
    assert sampler.info["n"] + sampler.info["n_validation"] == n
    assert sampler.info["n"] >= 1
    if sampler.has_density:
        assert sampler.log_prob(X[:n]).isfinite().all()


@pytest.mark.filterwarnings("ignore:Expected hundreds of latents")
@pytest.mark.parametrize(
    "n, validation, held_out",
    [(100, 0.1, 10), (100, 0, 0), (100, 0.001, 1), (2, 0.1, 1), (10, 0.99, 9), (101, 0.5, 50)],
)
def test_rows_are_split_once_into_training_and_held_out(
    n: int, validation: float, held_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def record(self: Sampler, rows: Tensor, held_out: Tensor, run: Run) -> None:
        seen.append((rows, held_out))

    monkeypatch.setattr(load_sampler_class("wgan-gp"), "fit", record)
    x = torch.arange(float(n))
    for seed in (0, 0, 1):
        info = fit("wgan-gp", x, validation=validation, transform="none", seed=seed).info
        assert (info["n"], info["n_validation"]) == (n - held_out, held_out)
    for rows, rest in seen:
        assert torch.equal(torch.cat((rows, rest)).flatten().sort().values, x)
    assert torch.equal(seen[0][0], seen[1][0])
    if n > 10 and held_out:
        assert not torch.equal(seen[0][1].sort(0).values, seen[2][1].sort(0).values)


@every
def test_rows_that_a_sampler_sees_are_standardised_float32(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def record(self: Sampler, rows: Tensor, held_out: Tensor, run: Run) -> None:
        seen.append(torch.cat((rows, held_out)))

    monkeypatch.setattr(load_sampler_class(method), "fit", record)
    fit(method, X.double().view(120, 3, 1) * 1e6 + 1e8, transform="standardize")
    assert seen[0].dtype == torch.float32
    assert seen[0].shape == (120, 3)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].std(0, correction=0), torch.ones(3))


@every
@pytest.mark.filterwarnings("ignore:Expected latents that deviate")
@pytest.mark.parametrize("transform", ["auto", "scale", "whiten", "none"])
@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (1e-6, 0.0), (1e6, 0.0), (1.0, 1e5)])
def test_latents_of_any_units_are_fitted(
    method: str, transform: str, scale: float, shift: float
) -> None:
    x = X * scale + shift
    sampler = fit(method, x, transform=transform)
    assert sampler.sample(50).isfinite().all()
    if sampler.has_density:
        assert sampler.log_prob(x).isfinite().all()
    if transform != "none":
        z = (sampler.sample(500, seed=0) - x.mean(0)) / x.std(0)
        assert z.abs().mean() < 3


DISCRETE = {
    "binary": (X > 0).float(),
    "two points": X[:2].repeat(60, 1),
    "a duplicated dimension": torch.cat((X, X), 1),
    "an outlier": torch.cat((X, torch.full((1, 3), 1e6))),
    "a line": torch.linspace(0, 1, 120)[:, None] * torch.ones(3),
}
WARNED_OF = {"binary", "two points", "an outlier"}


@every
@pytest.mark.parametrize("kind", DISCRETE)
def test_degenerate_latents_are_fitted(method: str, kind: str) -> None:
    x = DISCRETE[kind]
    told = pytest.warns(LatentsWarning) if kind in WARNED_OF else nullcontext()
    with told:
        sampler = fit(method, x, steps=20)
    assert sampler.sample(100, seed=0).isfinite().all()
    if sampler.has_density:
        assert sampler.log_prob(x).isfinite().all()


@pytest.mark.parametrize(
    "data, message",
    [
        (X[:1], "at least 2 latents; got 1"),
        (torch.ones(50, 3), "all 50 are equal.*Does the encoder ignore its input"),
        (torch.zeros(5, 0), r"at least one value; got shape \(5, 0\)"),
        (None, "got NoneType"),
    ],
)
def test_data_that_cannot_be_fitted_are_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(data=data)


def test_non_finite_latents_are_refused_before_training() -> None:
    with pytest.raises(NonFiniteError, match="120 of 120 rows .* index 0"):
        fit(encoder=lambda x: x / 0)


# --- arguments ---


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"validation": 1}, r"validation as a fraction in \[0, 1\); got 1"),
        ({"validation": -0.1}, "validation"),
        ({"validation": math.nan}, "validation"),
        ({"validation": "0.1"}, "validation"),
        ({"validation": True}, "validation"),
        ({"batch_size": 0}, "batch_size as a whole number >= 1; got 0"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"max_seconds": 0}, "max_seconds as a number > 0 or None; got 0"),
        ({"max_seconds": math.inf}, "max_seconds"),
        ({"max_seconds": math.nan}, "max_seconds"),
        ({"max_seconds": "9"}, "max_seconds"),
        ({"progress": 1}, "progress as True, False or None; got 1"),
        ({"seed": -1}, "seed as a whole number"),
        ({"seed": 0.5}, "seed as a whole number"),
        ({"transform": "zca"}, "transform as one of 'auto', 'scale', .*, or an object"),
        ({"device": "gpu"}, "Expected a device that this machine has, .*; got 'gpu'"),
        ({"encoder": 3}, "encoder as an nn.Module"),
        ({"decoder": 3}, "decoder as an nn.Module"),
        ({"steps": 0}, "Option 'steps' of 'realnvp': expected int >= 1; got 0"),
        ({"layer": 3}, "'realnvp' has no option 'layer'; .* Did you mean 'layers'"),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_encoded(
    wrong: dict[str, Any], message: str
) -> None:
    def encoder(x: Tensor) -> Tensor:
        raise AssertionError("too late")

    with pytest.raises(OptionError, match=message):
        fit(**{"encoder": encoder, **wrong})


def test_numpy_numbers_are_numbers() -> None:
    sampler = fit(
        batch_size=np.int64(16),
        validation=np.float32(0.25),
        max_seconds=np.float32(100),
        steps=np.int32(3),
        learning_rate=np.float64(1e-3),
    )
    assert sampler.info["batch_size"] == 16
    assert sampler.info["n_validation"] == 30
    assert sampler.options["steps"] == 3


def test_a_missing_accelerator_is_told_before_anything_is_encoded() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(OptionError, match="Expected a device that this machine has"):
        fit(encoder=lambda x: 1 / 0, device="cuda")


# --- time and interrupts ---


@pytest.mark.filterwarnings("ignore:The time for the fit")
@every
@pytest.mark.parametrize("validation", [0, 0.1])
def test_the_time_is_bounded(method: str, validation: float) -> None:
    began = time.monotonic()
    sampler = fit(method, steps=10**9, max_seconds=0.3, validation=validation)
    assert time.monotonic() - began < 3
    assert sampler.info["seconds"] < 2
    assert sampler.sample(5).isfinite().all()


@every
def test_no_time_at_all_still_gives_a_sampler(method: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sampler = fit(method, max_seconds=1e-9)
    untrained = sampler.info["fit"].get("best_step") == 0
    assert [w.category for w in told] == [LatentsWarning] * untrained
    assert all("max_seconds" in str(w.message) for w in told)
    assert sampler.sample(5).isfinite().all()
    assert sampler.info["fit"]["stopped_by"] == "max_seconds"
    assert len({len(curve) for curve in sampler.history.values()}) <= 1


@every
def test_ctrl_c_comes_through_and_leaves_all_as_it_was(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout())
    weights = {k: v.clone() for k, v in network.state_dict().items()}

    def interrupt(self: Run, total: int, start: int = 0) -> Iterator[tuple[int, float]]:
        yield 0, 0.0
        torch.rand(3)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "steps", interrupt)
    before = states()
    with pytest.raises(KeyboardInterrupt):
        fit(method, encoder=network)
    assert states() == before
    assert all(part.training for part in network.modules())
    assert all(torch.equal(v, weights[k]) for k, v in network.state_dict().items())


@every
@pytest.mark.parametrize("progress", [True, False, None])
def test_progress_is_shown_on_stderr_only_when_asked_for(
    method: str, progress: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(method, encoder=lambda x: x, batch_size=16, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    if progress:
        assert "encoding" in err
        assert method in err
    else:
        assert err == ""


def test_on_a_terminal_progress_is_shown_unasked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fit()
    assert "realnvp" in capsys.readouterr().err


# --- divergence ---


@every
@pytest.mark.parametrize("validation", [0, 0.1])
def test_a_fit_that_diverges_says_so_and_keeps_a_finite_sampler(
    method: str, validation: float
) -> None:
    before = states()
    with pytest.raises(DivergenceError, match=r"diverged at step \d+ .*lower learning_rate") as e:
        fit(method, validation=validation, learning_rate=1e30, steps=50)
    assert states() == before
    sampler = e.value.sampler
    if sampler is None:  # a GAN may have had no evaluation yet
        assert not load_sampler_class(method).has_density
        return
    assert sampler.sample(50).isfinite().all()
    assert sampler.history["step"]
    if sampler.has_density:
        assert sampler.log_prob(X).isfinite().all()


def test_a_single_step_that_goes_too_far_is_noticed() -> None:
    for method in METHODS:
        with pytest.raises(DivergenceError):
            fit(method, validation=0, learning_rate=1e30, steps=1)


def test_a_stream_without_a_length_is_fitted() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)))

    loader = DataLoader(Stream(), batch_size=10)
    assert fit_latent_sampler(nn.Identity(), loader, method="gaussian").info["n"] == 54


def test_a_number_is_no_store() -> None:
    with pytest.raises(OptionError, match="store"):
        fit_latent_sampler(nn.Identity(), torch.randn(60, 3), method="gaussian", store=3)  # type: ignore[arg-type]
