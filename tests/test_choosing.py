"""The transform of a fit: named, the user's own, or what suits the method; and what follows from it."""

import math
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from latentfit import LatentSampler, fit_latent_sampler, load_sampler
from latentfit.choosing import TRANSFORMS, needs_covariance
from latentfit.errors import FileFormatError, NonFiniteError, OptionError
from latentfit.fitting import Plan, fit_class
from latentfit.persistence import read_tensors
from latentfit.plugin import Run, Sampler
from latentfit.transforms import Moments, Transform


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Rows(Sampler):
    """Draws the rows that it was fitted with; remembers the layout that build saw."""

    has_density = False

    def build(self, dim: int, n: int) -> None:
        self.seen = self.layout
        self.register_buffer("rows", torch.zeros(n, dim))

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        self.rows.copy_(rows)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.rows[:n]


class Density(Rows):
    """The standard normal density."""

    has_density = True

    def log_prob(self, rows: Tensor) -> Tensor:
        return -0.5 * (rows.square() + math.log(2 * math.pi)).sum(1)


class Scaled(Rows):
    preferred_transform = "scale"


class Spatial(Rows):
    preferred_transform = "scale"
    spatial = True


def fit(cls: type[Sampler], x: Tensor, transform: Any = "auto") -> LatentSampler:
    return fit_class(cls, x, method="it", plan=Plan(transform=transform, validation=0))


FLAT = normal(40, 5)
IMAGES = normal(40, 3, 2, 2)
DEPENDENT = torch.cat((FLAT, FLAT[:, :2]), 1)


@pytest.mark.parametrize(
    "cls, x, chosen",
    [
        (Rows, FLAT, "standardize"),
        (Rows, DEPENDENT, "standardize"),
        (Density, FLAT, "standardize"),
        (Density, DEPENDENT, "whiten"),
        (Density, FLAT[:4], "whiten"),
        (Scaled, FLAT, "scale"),
        (Scaled, DEPENDENT, "scale"),
        (Scaled, IMAGES, "scale"),
        (Spatial, IMAGES, "standardize"),
        (Spatial, FLAT, "scale"),
        (Spatial, IMAGES.flatten(2), "scale"),
        (Scaled, normal(10, 5000), "standardize"),
        (Density, normal(10, 5000), "standardize"),
    ],
)
def test_auto_is_what_suits_the_method_and_the_latents(
    cls: type[Sampler], x: Tensor, chosen: str
) -> None:
    sampler, named = fit(cls, x), fit(cls, x, chosen)
    assert sampler.info["transform"] == named.info["transform"] == chosen
    assert torch.equal(sampler.sample(3), named.sample(3))
    assert sampler.info["kept_dimensions"] == sampler._transform.dim


def test_a_constant_dimension_is_no_dependency() -> None:
    x = torch.cat((FLAT, torch.ones(40, 1)), 1)
    assert fit(Density, x).info["transform"] == "standardize"


def test_the_covariance_is_measured_only_where_it_is_wanted() -> None:
    def wanted(transform: str, cls: type[Sampler], *shape: int) -> bool:
        return needs_covariance(transform, cls, shape)

    assert not wanted("standardize", Scaled, 5)
    assert not wanted("none", Density, 5)
    assert wanted("scale", Rows, 5)
    assert not wanted("auto", Rows, 5)
    assert wanted("auto", Density, 5)
    assert not wanted("auto", Spatial, 4, 32, 32)
    assert wanted("auto", Scaled, 4, 32, 32)
    assert not wanted("auto", Scaled, 4, 64, 64)
    with pytest.raises(OptionError, match="at most 4096 .* got 16384"):
        wanted("whiten", Rows, 4, 64, 64)


@pytest.mark.parametrize("transform", [*TRANSFORMS, "auto"])
def test_a_plugin_is_told_the_layout_of_its_rows(transform: str) -> None:
    sampler = fit(Spatial, IMAGES, transform)
    keeps = transform not in ("scale", "whiten")
    assert sampler._plugin.seen == ((3, 2, 2) if keeps else None)
    assert fit(Spatial, FLAT, transform)._plugin.seen is None


# --- the whole path ---


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("shape", [(6,), (3, 2, 1)])
def test_a_file_keeps_the_transform(transform: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    x = normal(300, *shape) * 3 + 1
    sampler = fit_latent_sampler(None, x, method="gaussian", transform=transform)
    sampler.save(tmp_path / "s")
    again = load_sampler(tmp_path / "s")
    assert again.info == sampler.info
    assert again._plugin.layout == sampler._plugin.layout == sampler._transform.layout
    assert torch.equal(again.sample(5, seed=0), sampler.sample(5, seed=0))
    assert torch.equal(again.log_prob(x), sampler.log_prob(x))


@pytest.mark.parametrize("transform", ["scale", "standardize", "whiten"])
@pytest.mark.parametrize("factor, shift", [(1e-6, 0.0), (1e6, 0.0), (1e3, 1e6)])
@pytest.mark.parametrize("method", ["gmm", "realnvp"])
def test_samples_and_densities_follow_the_units(
    transform: str, factor: float, shift: float, method: str
) -> None:
    x = normal(300, 3).double() @ torch.tensor([[1, 0.5, 0], [0, 1, -2], [0, 0, 1]]).double()
    options = {"steps": 20} if method == "realnvp" else {}
    one, other = (
        fit_latent_sampler(None, z, method=method, transform=transform, **options)
        for z in (x, factor * x + shift)
    )
    expected = factor * one.sample(200, seed=0) + shift
    torch.testing.assert_close(other.sample(200, seed=0), expected, rtol=1e-6, atol=3e-3 * factor)
    torch.testing.assert_close(
        other.log_prob(factor * x + shift),
        one.log_prob(x) - 3 * math.log(factor),
        rtol=0,
        atol=0.03,
    )


@pytest.mark.parametrize("transform", ["auto", "scale", "whiten"])
@pytest.mark.parametrize("method", ["gmm", "realnvp"])
def test_the_density_is_over_the_subspace_that_the_latents_span(
    transform: str, method: str
) -> None:
    """Of 2 + 2 equal dimensions: a plane, in which a step of one dimension is one of sqrt(2)."""
    x = normal(500, 2)
    options = {"steps": 30} if method == "realnvp" else {}
    sampler = fit_latent_sampler(
        None, torch.cat((x, x), 1), method=method, transform=transform, **options
    )
    assert sampler.info["kept_dimensions"] == 2
    drawn = sampler.sample(300, seed=0)
    torch.testing.assert_close(drawn[:, :2], drawn[:, 2:], rtol=1e-6, atol=1e-6)
    grid = torch.linspace(-6, 6, 121)
    plane = torch.cartesian_prod(grid, grid)
    density = sampler.log_prob(torch.cat((plane, plane), 1)).exp()
    cell = 2 * (12 / 120) ** 2  # its area in the plane
    assert float(density.sum() * cell) == pytest.approx(1, abs=0.02)
    assert sampler.log_prob(torch.cat((x, x + 0.01), 1)).isneginf().all()


@pytest.mark.parametrize("method", ["gaussian", "flow-matching"])
def test_auto_loses_no_dimension_to_the_scale_of_another(method: str) -> None:
    x = normal(400, 4) * torch.tensor([1.0, 1.0, 1.0, 1e8])
    options = {} if method == "gaussian" else {"steps": 5}
    sampler = fit_latent_sampler(None, x, method=method, **options)
    assert (sampler.info["transform"], sampler.info["kept_dimensions"]) == ("standardize", 4)


NASTY = {
    "heavy tails": torch.empty(600, 4).cauchy_(generator=torch.Generator().manual_seed(0)),
    "huge outliers": torch.cat((normal(600, 4), torch.full((2, 4), 1e12))),
    "duplicated": torch.cat((normal(600, 3), normal(600, 3)), 1),
    "constant and dependent": torch.cat((DEPENDENT.repeat(10, 1), torch.ones(400, 1)), 1),
    "fewer rows than dimensions": normal(50, 200),
    "scales from 1e-6 to 1e6": normal(600, 5) * torch.logspace(-6, 6, 5),
    "float16": (normal(600, 4) @ normal(4, 8)).half(),
    "bfloat16": (normal(600, 4) @ normal(4, 8)).bfloat16(),
}


@pytest.mark.filterwarnings("ignore::latentfit.errors.LatentsWarning")  # and no wonder
@pytest.mark.parametrize("transform", ["auto", "scale", "standardize", "whiten"])
@pytest.mark.parametrize("method", ["gmm", "realnvp"])
@pytest.mark.parametrize("kind", NASTY)
def test_nasty_latents_are_fitted(kind: str, method: str, transform: str) -> None:
    x = NASTY[kind]
    options = {"steps": 30} if method == "realnvp" else {}
    sampler = fit_latent_sampler(None, x, method=method, transform=transform, **options)
    assert sampler.sample(200, seed=0).isfinite().all()
    scores = sampler.log_prob(x)
    assert scores.isfinite().all()
    assert sampler.log_prob(sampler.sample(200, seed=0)).isfinite().all()


# --- the user's own ---


class Bounded(Transform):
    """Numbers between two bounds, to all numbers: the logit."""

    def __init__(self, margin: float = 0.01) -> None:
        self.margin = margin

    def fit(self, moments: Moments) -> Self:
        room = self.margin * (moments.high - moments.low)
        return self.load_state(
            {"low": moments.low - room, "high": moments.high + room}, moments.shape
        )

    def load_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> Self:
        self.low, self.high = state["low"], state["high"]
        return self

    def state(self) -> dict[str, Tensor]:
        return {"low": self.low, "high": self.high}

    def forward(self, latents: Tensor) -> Tensor:
        share = (latents.double() - self.low) / (self.high - self.low)
        return share.logit().float()

    def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return (self.low + (self.high - self.low) * rows.double().sigmoid()).to(dtype)

    def log_determinant(self, latents: Tensor) -> Tensor:
        share = (latents.double() - self.low) / (self.high - self.low)
        return -(share * (1 - share) * (self.high - self.low)).log().sum(1).float()

    @property
    def dim(self) -> int:
        return len(self.low)


SQUARE = torch.rand(800, 2, generator=torch.Generator().manual_seed(0)) * 4 - 1


def test_the_users_transform_is_used_saved_and_given_again(tmp_path: Path) -> None:
    mine = Bounded()
    sampler = fit_latent_sampler(None, SQUARE, method="gaussian", transform=mine)
    assert not hasattr(mine, "low")  # a copy was fitted
    assert sampler.info["transform"] == "custom"
    drawn = sampler.sample(5000, seed=0)
    assert drawn.min() >= -1.05
    assert drawn.max() <= 3.05
    middle = torch.cartesian_prod(*[torch.linspace(-0.999, 2.999, 200)] * 2)
    mass = sampler.log_prob(middle).exp().mean() * 3.998**2
    assert float(mass) == pytest.approx(1, abs=0.03)

    sampler.save(tmp_path / "s")
    again = load_sampler(tmp_path / "s", transform=Bounded())
    assert torch.equal(again.sample(9, seed=1), sampler.sample(9, seed=1))
    assert torch.equal(again.log_prob(SQUARE), sampler.log_prob(SQUARE))
    # The name is there to compare with, but not where it is from.
    assert read_tensors(tmp_path / "s")[1]["info"]["transform_class"] == "Bounded"
    assert __name__ not in str(read_tensors(tmp_path / "s"))


class Other(Bounded):
    def load_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> Self:
        self.width = state["width"]
        return self


class Renamed(Bounded.__base__):  # type: ignore[name-defined,misc]
    fit, forward, inverse = Bounded.fit, Bounded.forward, Bounded.inverse
    log_determinant, dim = Bounded.log_determinant, Bounded.dim
    state, load_state = Bounded.state, Bounded.load_state
    margin = 0.01


def test_a_file_with_the_users_transform_asks_for_it(tmp_path: Path) -> None:
    fit_latent_sampler(None, SQUARE, method="gaussian", transform=Bounded()).save(tmp_path / "s")
    with pytest.raises(OptionError, match=r"fitted with, .* load_sampler\(path, transform="):
        load_sampler(tmp_path / "s")
    with pytest.raises(OptionError, match=r"derived from latentfit.transforms.Transform; got 3"):
        load_sampler(tmp_path / "s", transform=3)  # type: ignore[arg-type]
    with pytest.raises(
        FileFormatError, match=r"\['high', 'low'\].* got Other, .* KeyError: 'width'"
    ):
        load_sampler(tmp_path / "s", transform=Other())
    with pytest.raises(OptionError, match="object of Bounded, .*; got one of Renamed. If that is"):
        load_sampler(tmp_path / "s", transform=Renamed())
    alias = type("Bounded", (Renamed,), {})
    assert load_sampler(tmp_path / "s", transform=alias()).shape == (2,)


def test_a_file_with_a_transform_of_latentfits_takes_no_other(tmp_path: Path) -> None:
    fit_latent_sampler(None, SQUARE, method="gaussian").save(tmp_path / "s")
    with pytest.raises(OptionError, match="Expected no transform, .* 'standardize'"):
        load_sampler(tmp_path / "s", transform=Bounded())


@pytest.mark.parametrize("wrong", [Bounded, "zca", None, 3, ["scale"]])
def test_what_is_no_transform_is_refused(wrong: Any) -> None:
    with pytest.raises(
        OptionError, match="Expected transform as one of 'auto', .*, or an object of"
    ):
        fit_latent_sampler(None, SQUARE, transform=wrong)


class Forgetful(Bounded):
    def fit(self, moments: Moments) -> None:  # type: ignore[override]
        super().fit(moments)


class Wide(Bounded):
    def forward(self, latents: Tensor) -> Tensor:
        return super().forward(latents).double()


class Tight(Bounded):
    def __init__(self) -> None:
        super().__init__(margin=0)


@pytest.mark.parametrize(
    "transform, error, message",
    [
        (Forgetful(), OptionError, "Forgetful.fit to return the transform itself; got None"),
        (
            Wide(),
            OptionError,
            r"Wide.forward to give .*float32 and shape \(16, 2\) on 'cpu'; got .*float64",
        ),
        (Tight(), NonFiniteError, "Expected finite transformed latents; got 4 of 800"),
    ],
)
def test_a_users_mistake_is_told(
    transform: Transform, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_latent_sampler(None, SQUARE, method="gaussian", transform=transform)
