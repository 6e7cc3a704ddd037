"""A user's transform with a fault is told of before anything is fitted."""

import itertools
import re
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from latentfit import fit_latent_sampler, load_sampler
from latentfit.custom import check_transform_object
from latentfit.errors import FileFormatError, NonFiniteError, OptionError
from latentfit.moments import measure
from latentfit.persistence import read_tensors, write_tensors
from latentfit.transforms import Moments, Transform

LATENTS = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1


class Good(Transform):
    """The hyperbolic sine of centred latents: monotone, with a determinant that varies."""

    def fit(self, moments: Moments) -> Self:
        return self.load_state({"mean": moments.mean}, moments.shape)

    def forward(self, latents: Tensor) -> Tensor:
        return (latents.double() - self.mean).sinh().float()

    def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return (rows.double().asinh() + self.mean).to(dtype)

    def log_determinant(self, latents: Tensor) -> Tensor:
        return (latents.double() - self.mean).cosh().log().sum(1).float()

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> Self:
        self.mean = state["mean"]
        return self

    @property
    def dim(self) -> int:
        return len(self.mean)


def faulty(**members: Any) -> Transform:
    """Make a Good with other members."""
    made: Transform = type("Faulty", (Good,), members)()
    return made


def raising(self: Any, *arguments: Any) -> Any:
    raise ZeroDivisionError("mine")


def fit(transform: Transform, latents: Tensor = LATENTS) -> Any:
    return fit_latent_sampler(None, latents, method="gaussian", transform=transform)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_good_one_passes(dtype: torch.dtype) -> None:
    sampler = fit(Good(), LATENTS.to(dtype))
    assert sampler.info["transform_class"] == "Good"
    assert sampler.sample(5, seed=0).dtype == dtype


def test_one_without_derivatives_passes() -> None:
    class Cut(Good):
        def forward(self, latents: Tensor) -> Tensor:
            return super().forward(latents.detach())

    assert fit(Cut()).log_prob(LATENTS).shape == (300,)


def test_one_that_numpy_computes_passes() -> None:
    class Plain(Good):
        def forward(self, latents: Tensor) -> Tensor:
            return torch.from_numpy(super().forward(latents).numpy())  # refuses what has gradients

    assert fit(Plain()).dim == 4


def test_one_with_a_layout_and_constants_passes() -> None:
    sampler = fit(faulty(layout=(1, 2, 2), constant=[0, 3]))
    assert sampler.dim == 4


def test_one_that_is_right_within_rounding_passes() -> None:
    """A hundredth of a dimension's range, and of the determinant: clipping, and sums in float32."""

    class Rough(Good):
        def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
            return super().inverse(rows, dtype) + 0.03

        def log_determinant(self, latents: Tensor) -> Tensor:
            return super().log_determinant(latents) + 0.012

        def load_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> Self:
            return super().load_state({"mean": state["mean"].half().double()}, shape)

    assert fit(Rough(), LATENTS - 7).dim == 4


@pytest.mark.parametrize("needed", [None, False, True])
def test_moments_have_a_covariance_if_it_is_asked_for(needed: bool | None) -> None:
    seen = []

    def fitted(self: Any, moments: Moments) -> Any:
        seen.append(moments.covariance)
        return Good.fit(self, moments)

    members = {} if needed is None else {"needs_covariance": needed}
    sampler = fit(faulty(fit=fitted, **members))
    assert sampler.info["transform"] == "custom" == Good.name
    if not needed:
        assert seen == [None]
    else:
        torch.testing.assert_close(seen[0], LATENTS.double().T.cov(correction=0))


def test_the_users_own_object_stays_as_it_was() -> None:
    class Noting(Good):
        def __init__(self) -> None:
            self.notes: list[int] = []

        def load_state(self, state: dict[str, Tensor], shape: tuple[int, ...]) -> Self:
            self.notes.append(1)
            return super().load_state(state, shape)

    mine = Noting()
    fit(mine)
    assert vars(mine) == {"notes": []}


def test_rows_that_are_not_finite_are_told_of_as_such() -> None:
    with pytest.raises(NonFiniteError, match="transformed latents; got 1 of 300 rows"):
        fit(faulty(forward=lambda self, x: Good.forward(self, x) / (x != x[0])))


CALLS = itertools.count()
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "rows of another dtype": (
        {"forward": lambda self, x: Good.forward(self, x).double()},
        r"Faulty.forward to give a tensor of torch.float32 and shape \(16, 4\) on 'cpu'; got torch.float64",
    ),
    "rows of another shape": (
        {"forward": lambda self, x: Good.forward(self, x)[:, :3]},
        r"Faulty.forward .* \(16, 4\) on 'cpu'; got torch.float32, \(16, 3\)",
    ),
    "rows that are no tensor": ({"forward": lambda self, x: None}, "Faulty.forward .* got None"),
    "rows that are a text": ({"forward": lambda self, x: "rows"}, "Faulty.forward .* got 'rows'"),
    "latents of another shape": (
        {"inverse": lambda self, x, dtype: x[0].to(dtype)},
        r"Faulty.inverse .* \(16, 4\) on 'cpu'; got torch.float32, \(4,\)",
    ),
    "no inverse": (
        {"inverse": lambda self, x, dtype: x.to(dtype)},
        r"Faulty.inverse to undo its forward; of .* \(latent 0, dimension 0\) it made",
    ),
    "NaN from the inverse": (
        {"inverse": lambda self, x, dtype: (x * torch.nan).to(dtype)},
        r"Faulty.inverse to undo its forward; .* it made nan",
    ),
    "one determinant for all": (
        {"log_determinant": lambda self, x: torch.tensor(0.0)},
        r"Faulty.log_determinant .* shape \(16,\) on 'cpu'; got torch.float32, \(\)",
    ),
    "the inverse's determinant": (
        {"log_determinant": lambda self, x: -Good.log_determinant(self, x)},
        "Faulty.log_determinant to be that of its forward, .* at latent 0; got -",
    ),
    "a state of numbers": ({"state": lambda self: {"mean": 0.5}}, "Faulty.state to give a dict of"),
    "the determinant of the first latent": (
        {
            "log_determinant": lambda self, x: (
                Good.log_determinant(self, x[:1]).expand(len(x)).clone()
            )
        },
        "Faulty.log_determinant to be that of its forward, .* at latent 1; got",
    ),
    "a map that differs from call to call": (
        {"forward": lambda self, x: Good.forward(self, x) * (1 + 0.0008 * next(CALLS))},
        "Faulty.load_state .* is forward free of chance",
    ),
    "a name of latentfit's": ({"name": "scale"}, "Faulty, whose name is 'scale'"),
    "no state": (
        {"state": lambda self: None},
        "Faulty.state to give a dict of tensors .* got None",
    ),
    "a state that lacks something": (
        {"load_state": lambda self, state, shape: setattr(self, "mean", 0 * state["mean"])},
        "Faulty.load_state to make the map again .*; rows differ",
    ),
    "columns that are no number": ({"dim": "4"}, "Faulty.dim as a whole number .* got '4'"),
    "more columns than latents have": ({"dim": 5}, "Faulty.dim as a whole number .* 4; got 5"),
    "a layout of another size": (
        {"layout": (1, 2, 3)},
        r"Faulty.layout as None or \(C, H, W\) of 4 values; got \(1, 2, 3\)",
    ),
    "fewer columns than none": ({"dim": -1}, "Faulty.dim as a whole number .* got -1"),
    "a layout of two axes": ({"layout": (2, 2)}, r"Faulty.layout as .* got \(2, 2\)"),
    "constant dimensions that are no whole numbers": (
        {"constant": [0, 1.0]},
        r"Faulty.constant as a list of dimensions; got \[0, 1.0\]",
    ),
    "a state without names": (
        {"state": lambda self: {0: self.mean}},
        "Faulty.state to give a dict of tensors by name",
    ),
    "an inverse that is off by a twentieth of the range": (
        {"inverse": lambda self, x, dtype: Good.inverse(self, x, dtype) + 0.5},
        r"Faulty.inverse to undo its forward; of .* \(latent 0, dimension 0\) it made",
    ),
    "a determinant that is a little off": (
        {"log_determinant": lambda self, x: Good.log_determinant(self, x) + 0.05},
        "Faulty.log_determinant to be that of its forward, .* at latent 0",
    ),
    "a state that is a little off": (
        {"state": lambda self: {"mean": self.mean + 0.01}},
        "Faulty.load_state to make the map again .*; rows differ",
    ),
    **{
        f"a {name} that the state does not hold": (
            {
                "fit": lambda self, m: setattr(Good.fit(self, m), "fitted", True) or self,
                name: property(
                    lambda self, fitted=fitted, loaded=loaded: (
                        fitted if hasattr(self, "fitted") else loaded
                    )
                ),
            },
            f"Faulty.load_state to restore {name}, .*; got {re.escape(str(loaded))}. Does the state hold",
        )
        for name, fitted, loaded in (
            ("dim", 4, 3),
            ("layout", (1, 2, 2), None),
            ("constant", [1], []),
        )
    },
    "constant dimensions that are a tensor": (
        {"constant": torch.zeros(1)},
        r"Faulty.constant as a list of dimensions; got tensor",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_with_the_method_that_has_it(fault: str) -> None:
    members, message = FAULTS[fault]
    if fault == "a state that lacks something":
        members = {
            "fit": lambda self, m: Good.load_state(self, {"mean": m.mean}, m.shape)
        } | members
    with pytest.raises(OptionError, match=message):
        fit(faulty(**members))


@pytest.mark.parametrize(
    "method",
    [
        *("fit", "forward", "inverse", "log_determinant", "state", "load_state"),
        *("dim", "layout", "constant"),
    ],
)
def test_an_error_of_the_users_keeps_its_type_and_tells_where(method: str) -> None:
    is_property = isinstance(getattr(Transform, method), property)
    members: dict[str, Any] = {method: property(raising) if is_property else raising}
    if method == "load_state":
        members["fit"] = lambda self, m: Good.load_state(self, {"mean": m.mean}, m.shape)
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        fit(faulty(**members))
    assert f"in Faulty.{method}, the transform= of the fit" in caught.value.__notes__


@pytest.mark.parametrize("method", ["forward", "layout"])
def test_an_error_for_want_of_what_only_fit_knows_tells_where(method: str) -> None:
    def wanting(self: Any, *given: Tensor) -> Any:
        assert self.known
        return Good.forward(self, *given) if given else None

    bad = faulty(
        fit=lambda self, m: setattr(Good.fit(self, m), "known", True) or self,
        **{method: property(wanting) if method == "layout" else wanting},
    )
    with pytest.raises(AttributeError, match="known") as caught:
        fit(bad)
    assert f"in Faulty.{method}, the transform= of the fit" in caught.value.__notes__


def test_fewer_columns_need_no_inverse_of_all() -> None:
    class First(Good):
        """Keeps all dimensions but the last."""

        def forward(self, latents: Tensor) -> Tensor:
            return latents[:, :3].float()

        def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
            return torch.cat((rows, self.mean[3].expand(len(rows), 1)), 1).to(dtype)

        def log_determinant(self, latents: Tensor) -> Tensor:
            return torch.zeros(len(latents))

        @property
        def dim(self) -> int:
            return 3

    assert fit(First()).sample(7, seed=0).shape == (7, 4)

    class Turned(First):
        def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
            return super().inverse(rows.flip(1), dtype)

    with pytest.raises(OptionError, match="Turned.forward to give the rows again"):
        fit(Turned())


@pytest.mark.parametrize("method", ["forward", "inverse", "log_determinant"])
def test_what_it_is_given_is_the_users_and_not_written_over(method: str) -> None:
    def in_place(self: Any, given: Tensor, *rest: Any) -> Tensor:
        result: Tensor = getattr(Good, method)(self, given, *rest)
        given.mul_(2)
        return result

    latents = LATENTS[:16].clone()
    moments = measure([latents], covariance=False)
    bad = faulty(**{method: in_place})
    with pytest.raises(OptionError, match=f"Faulty.{method} to leave what it is given as it is"):
        check_transform_object(bad.fit(moments), bad, latents, moments, latents.device)
    assert torch.equal(latents, LATENTS[:16])


def test_rounding_of_a_constant_dimension_is_no_fault() -> None:
    latents = torch.cat((LATENTS.double(), torch.full((300, 1), 0.1).double()), 1)
    assert fit(Good(), latents).dim == 5


def test_a_name_of_its_own_is_custom_all_the_same(tmp_path: Path) -> None:
    sampler = fit(faulty(name="mine"))
    assert sampler.info["transform"] == "custom"
    sampler.save(tmp_path / "s")
    again = load_sampler(tmp_path / "s", transform=faulty())
    assert torch.equal(again.sample(3, seed=0), sampler.sample(3, seed=0))


def test_auto_tells_of_a_fault_once_and_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError, match="mine"):
        fit_latent_sampler(None, LATENTS, method="auto", transform=faulty(forward=raising))
    bad = faulty(log_determinant=lambda self, x: -Good.log_determinant(self, x))
    with pytest.raises(OptionError, match="^Expected Faulty.log_determinant"):
        fit_latent_sampler(None, LATENTS, method="auto", transform=bad)


# --- the same class, another map ---


def named_good(**members: Any) -> Transform:
    """Make a Good with other members that a file takes for one."""
    made: Transform = type("Good", (Good,), members)()
    return made


OTHERS: dict[str, tuple[str, Any]] = {
    "another inverse": ("inverse", lambda self, x, dtype: 1.01 * Good.inverse(self, x, dtype)),
    "another forward": ("forward", lambda self, x: Good.forward(self, x) + 0.01),
    "another determinant": ("log_determinant", lambda self, x: Good.log_determinant(self, x) + 1),
    "rows of another shape": ("forward", lambda self, x: Good.forward(self, x)[:, :1]),
    "NaN": ("inverse", lambda self, x, dtype: torch.full_like(x, torch.nan).to(dtype)),
    "an error": ("forward", raising),
}


@pytest.mark.parametrize("other", OTHERS)
def test_an_object_with_another_map_is_refused(other: str, tmp_path: Path) -> None:
    fit(Good()).save(tmp_path / "s")
    method, member = OTHERS[other]
    what = "raises ZeroDivisionError: mine" if member is raising else "gives other numbers"
    message = rf"the map that the sampler was saved with; Good\.{method} {what}.* \S+s keeps"
    with pytest.raises(OptionError, match=message) as caught:
        load_sampler(tmp_path / "s", transform=named_good(**{method: member}))
    assert isinstance(caught.value.__cause__, ZeroDivisionError | None)


def test_rounding_makes_no_other_map(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return Good.forward(self, x) * (1 + 1e-6)

    sampler = fit(Good(), LATENTS * torch.tensor([1e-3, 1.0, 1.0, 2.0]))
    sampler.save(tmp_path / "s")
    again = load_sampler(tmp_path / "s", transform=named_good(forward=forward))
    again.save(tmp_path / "t")
    assert load_sampler(tmp_path / "t", transform=Good()).dim == 4


def test_a_map_that_is_a_thousandth_off_is_the_same(tmp_path: Path) -> None:
    def inverse(self: Any, rows: Tensor, dtype: torch.dtype) -> Tensor:
        return Good.inverse(self, rows, dtype) + 5e-4

    latents = torch.cat((LATENTS, LATENTS[:, :1].flip(0)), 1) - 7
    fit(Good(), latents).save(tmp_path / "s")
    assert load_sampler(tmp_path / "s", transform=named_good(inverse=inverse)).dim == 5
    off = named_good(inverse=lambda *given: inverse(*given) + 0.05)
    with pytest.raises(OptionError, match=r"Good\.inverse gives other numbers"):
        load_sampler(tmp_path / "s", transform=off)


def test_a_map_that_is_not_defined_everywhere_is_known_again(tmp_path: Path) -> None:
    class Positive(Good):
        """Has NaN for rows below zero."""

        def forward(self, latents: Tensor) -> Tensor:
            return latents.double().exp().float()

        def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
            return rows.double().log().to(dtype)

        def log_determinant(self, latents: Tensor) -> Tensor:
            return latents.double().sum(1).float()

    fit(Positive()).save(tmp_path / "s")
    assert load_sampler(tmp_path / "s", transform=Positive()).dim == 4
    members = {"inverse": lambda self, x, dtype: 2 * Positive.inverse(self, x, dtype)}
    with pytest.raises(OptionError, match=r"Positive\.inverse gives other numbers"):
        load_sampler(tmp_path / "s", transform=type("Positive", (Positive,), members)())


def test_what_is_saved_is_the_same_under_any_default(tmp_path: Path) -> None:
    sampler = fit(Good())
    sampler.save(tmp_path / "s")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            sampler.save(tmp_path / "t")
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tmp_path / "t").read_bytes() == (tmp_path / "s").read_bytes()


def test_a_file_without_rows_to_compare_is_taken_as_it_is(tmp_path: Path) -> None:
    fit(Good()).save(tmp_path / "s")
    tensors, header = read_tensors(tmp_path / "s")
    assert {name for name in tensors if name.startswith("probe.")} == {
        "probe.rows",
        "probe.latents",
        "probe.again",
        "probe.log_determinant",
    }
    told = {"info": header["info"], "history": header["history"]}
    older = {name: t for name, t in tensors.items() if not name.startswith("probe.")}
    write_tensors(tmp_path / "older", older, told)
    assert load_sampler(tmp_path / "older", transform=Good()).dim == 4
    changes: list[dict[str, Tensor | None]] = [
        {"probe.rows": torch.zeros(0, 4)},
        {name: t[:0] for name, t in tensors.items() if name.startswith("probe.")},
        {"probe.more": torch.zeros(1)},
        {"probe.latents": tensors["probe.latents"][:, :, None].clone()},
        {"probe.again": tensors["probe.again"][:, :3].clone()},
        *({name: None} for name in tensors if name.startswith("probe.")),
    ]
    for change in changes:
        forged = {name: t for name, t in {**tensors, **change}.items() if t is not None}
        write_tensors(tmp_path / "forged", forged, told)
        with pytest.raises(FileFormatError, match="a transform's probe of shapes"):
            load_sampler(tmp_path / "forged", transform=Good())


def test_a_map_that_takes_no_normal_rows_can_be_saved(tmp_path: Path) -> None:
    class Positive(Good):
        """Refuses rows that it never makes."""

        def forward(self, latents: Tensor) -> Tensor:
            return latents.double().exp().float()

        def inverse(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
            if (rows <= 0).any():
                raise ValueError("negative rows")
            return rows.double().log().to(dtype)

        def log_determinant(self, latents: Tensor) -> Tensor:
            return latents.double().sum(1).float()

    fit(Positive()).save(tmp_path / "s")
    assert load_sampler(tmp_path / "s", transform=Positive()).dim == 4


def test_saving_and_loading_leave_the_random_state_alone(tmp_path: Path) -> None:
    sampler = fit(Good())
    before = torch.get_rng_state()
    sampler.save(tmp_path / "s")
    load_sampler(tmp_path / "s", transform=Good())
    assert torch.equal(torch.get_rng_state(), before)
