"""method="auto": the best of a short list, within a budget, by data that no fit has seen."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import latentfit.auto
from latentfit import LatentSampler, fit_latent_sampler
from latentfit.errors import DataError, OptionError, UnknownPluginError
from latentfit.plugin import DivergenceError, Run, Sampler

G = torch.Generator().manual_seed(0)
SIGNS = torch.randint(2, (2000, 1), generator=G) * 2.0 - 1
X = SIGNS * 3 + torch.randn(2000, 2, generator=G) * 0.5  # two blobs


class Fake(Sampler):
    """Draws training rows again with some noise; how much makes it good or bad."""

    noise = 0.05
    seconds: list[float | None] = []  # noqa: RUF012 - the test reads it

    def build(self, dim: int, n: int) -> None:
        self.register_buffer("rows", torch.zeros(n, dim))

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        self.seconds.append(run.max_seconds)
        self.rows.copy_(rows)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(self.rows), (n,), generator=generator)
        noise = torch.randn(n, self.rows.shape[1], generator=generator)
        return self.rows[index] + self.noise * noise


class Worse(Fake):
    noise = 0.5


class Worst(Fake):
    """Has the best likelihood by far, and the worst samples."""

    noise = 3.0
    has_density = True

    def log_prob(self, rows: Tensor) -> Tensor:
        return rows.new_full((len(rows),), 100.0)


class Diverging(Fake):
    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        raise DivergenceError("Training diverged at step 3.")


class NotANumber(Fake):
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.full((n, 2), torch.nan)


class Slow(Fake):
    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        super().fit(rows, held_out, run)
        for _ in run.steps(10**9):
            time.sleep(0.01)


class ByClass(Fake):
    conditions = ("classes",)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        assert context is not None
        noise = torch.randn(n, 2, generator=generator)
        return (context @ torch.tensor([[-1.0, -1.0], [1.0, 1.0]])) + 0.16 * noise


CLASSES = {
    cls.__name__.lower(): cls for cls in (Fake, Worse, Worst, Diverging, NotANumber, Slow, ByClass)
}


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = latentfit.auto.load_sampler_class
    monkeypatch.setattr(
        latentfit.auto, "load_sampler_class", lambda name: CLASSES.get(name) or real(name)
    )
    monkeypatch.setattr(latentfit.auto, "sampler_distribution", lambda name: "fakes 1.0")
    monkeypatch.setattr(Fake, "seconds", [])


def auto(*methods: str, **arguments: Any) -> LatentSampler:
    data = arguments.pop("data", X)
    return fit_latent_sampler(None, data, method="auto", methods=methods, **arguments)


@pytest.mark.parametrize("metric", ["c2st", "energy"])
def test_samples_decide_and_not_the_likelihood(metric: str) -> None:
    sampler = auto("worst", "fake", "worse", metric=metric)
    ranking = sampler.info["ranking"]
    assert [row["method"] for row in ranking] == ["fake", "worse", "worst"]
    assert sampler.method == "fake"
    scores = [row[metric] for row in ranking]
    assert scores == sorted(scores)
    if metric == "c2st":
        assert 0.4 < scores[0] < 0.6
        assert scores[2] > 0.8
    assert ranking[2]["nll"] < -90  # by this one it would have won
    assert all("c2st" in row and "energy" in row and "fit_seconds" in row for row in ranking)
    json.dumps(sampler.info, allow_nan=False)


def test_what_fails_is_told_and_hurts_nobody() -> None:
    ranking = auto("diverging", "notanumber", "worse").info["ranking"]
    assert [row["method"] for row in ranking] == ["worse", "diverging", "notanumber"]
    assert "step 3" in ranking[1]["error"]
    assert "NaN" in ranking[2]["error"]
    with pytest.raises(
        OptionError, match="at least one.*diverging: DivergenceError: Training diverged"
    ):
        auto("diverging")


def test_a_quarter_of_the_budget_is_shared() -> None:
    began = time.monotonic()
    sampler = auto("fake", "slow", "worse", max_seconds=6.0)
    assert Fake.seconds[:3] == [0.5, 0.5, 0.5]
    assert time.monotonic() - began < 20
    assert {row["method"] for row in sampler.info["ranking"]} == {"fake", "slow", "worse"}
    auto("fake", max_seconds=6.0)
    assert Fake.seconds[4:] == [6.0]  # nobody to share it with


def test_the_comparison_uses_rows_that_no_fit_has_seen() -> None:
    sampler = auto("fake")
    assert sampler.info["n"] + sampler.info["n_validation"] == 1800  # a tenth is kept apart
    kept = {tuple(row) for row in X.tolist()} - {
        tuple(row) for row in sampler._transform.inverse(sampler._plugin.rows, X.dtype).tolist()
    }
    assert len(kept) >= 200


def test_methods_that_cannot_take_the_condition_are_left_out() -> None:
    labels = (SIGNS[:, 0] > 0).long()
    sampler = auto("fake", "byclass", condition=labels)
    assert sampler.method == "byclass"
    assert [row["method"] for row in sampler.info["ranking"]] == ["byclass"]
    assert sampler.info["ranking"][0]["c2st"] < 0.65
    with pytest.raises(OptionError, match="that can take the condition; got fake"):
        auto("fake", condition=labels)


def test_a_wrong_class_for_a_row_is_seen() -> None:
    """Each class alone looks right in the marginal; the joint distribution does not."""
    right = auto("byclass", condition=(SIGNS[:, 0] > 0).long())
    wrong = auto("byclass", condition=(SIGNS[:, 0] < 0).long())
    assert right.info["ranking"][0]["c2st"] < 0.65
    assert wrong.info["ranking"][0]["c2st"] > 0.9


def test_one_seed_gives_one_ranking() -> None:
    first, second = (auto("worse", "fake", seed=4).info["ranking"] for _ in range(2))
    for row in (*first, *second):
        del row["fit_seconds"]
    assert first == second


def test_too_few_latents_to_compare_on_are_told() -> None:
    with pytest.raises(DataError, match="to set 8 aside.*got 30 in all"):
        auto("fake", data=X[:30])


def test_what_a_classifier_cannot_tell_apart_is_ranked_by_energy() -> None:
    rows = [
        {"c2st": 0.42, "energy": 0.3},
        {"c2st": 0.49, "energy": 0.1},
        {"c2st": 0.51, "energy": 0},
    ]
    ranked = sorted([*rows, {"error": "it"}], key=lambda row: latentfit.auto._rank(row, "c2st"))
    assert ranked == [rows[1], rows[0], rows[2], {"error": "it"}]


def test_the_options_are_checked_before_anything_is_fitted() -> None:
    with pytest.raises(UnknownPluginError, match="nothing-like-it"):
        auto("fake", "nothing-like-it")
    with pytest.raises(OptionError, match="'auto' has no option 'steps'.*methods, metric"):
        auto("fake", steps=3)
    with pytest.raises(OptionError, match="'metric' of 'auto'.*'c2st' or 'energy'; got 'nll'"):
        auto("fake", metric="nll")
    with pytest.raises(OptionError, match="methods"):
        auto()
    assert Fake.seconds == []


@pytest.mark.filterwarnings("ignore:The time for the fit")
def test_the_defaults_run_and_can_be_saved(tmp_path: Path) -> None:
    sampler = fit_latent_sampler(None, X[:400], method="auto", max_seconds=4)
    assert len(sampler.info["ranking"]) >= 4
    sampler.save(tmp_path / "s.safetensors")
    again = latentfit.load_sampler(tmp_path / "s.safetensors")
    assert again.method == sampler.info["ranking"][0]["method"]
    assert again.info["ranking"] == sampler.info["ranking"]


class Learning(Slow):
    """The longer it may fit, the better it gets; it is the best early already."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(self.rows), (n,), generator=generator)
        noise = torch.randn(n, self.rows.shape[1], generator=generator)
        return self.rows[index] + 0.2 / self.seconds[-1] * noise  # type: ignore[operator]


def test_the_best_is_fitted_again_in_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLASSES, "learning", Learning)
    monkeypatch.setattr(latentfit.auto, "c2st", lambda x, y, seed: 0.5)
    monkeypatch.setattr(latentfit.auto, "_MOST_ROWS", 500)
    sampler = auto("worst", "learning", max_seconds=6.0)
    assert sampler.method == "learning"
    assert [row["method"] for row in sampler.info["ranking"]] == ["learning", "worst"]
    _, early, late = Fake.seconds
    assert early == 0.75
    assert 3.75 < late < 5.25
    assert sampler.info["ranking"][0]["fit_seconds"] == pytest.approx(late, abs=0.5)
    assert sampler.info["seconds"] == pytest.approx(late, abs=0.5)


@pytest.mark.parametrize(
    "metric, noise, first",
    [("energy", 2.0, "learning"), ("energy", 0.01, "done"), ("c2st", 0.01, "learning")],
)
def test_what_was_stopped_is_fitted_again_though_another_that_was_done_is_ahead(
    metric: str, noise: float, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Slow):
        @property
        def noise(self) -> float:  # type: ignore[override]
            return 3.0 if self.seconds[-1] < 3 else 1.0  # type: ignore[operator]

    class Done(Fake):
        pass

    monkeypatch.setattr(Done, "noise", noise)
    monkeypatch.setitem(CLASSES, "learning", Late)
    monkeypatch.setitem(CLASSES, "done", Done)
    monkeypatch.setattr(latentfit.auto, "c2st", lambda x, y, seed: 0.5)  # it can't tell them
    monkeypatch.setattr(latentfit.auto, "_MOST_ROWS", 500)
    sampler = auto("done", "learning", metric=metric, max_seconds=6.0)
    assert len(Fake.seconds) == 3
    ranking = {row["method"]: row for row in sampler.info["ranking"]}
    assert ranking["learning"]["stopped"]
    assert not ranking["done"]["stopped"]
    assert ranking["learning"]["fit_seconds"] > 3
    assert sampler.method == sampler.info["ranking"][0]["method"] == first


def test_of_those_that_may_be_as_good_the_last_is_fitted_again() -> None:
    areas = {"a": 0.53, "b": 0.548, "c": 0.56, "d": 0.5}
    rows = [{"method": name, "c2st": areas[name], "energy": 0.1} for name in "abc"]
    chosen = latentfit.auto._most_promising
    assert chosen(rows, ["a", "b", "c"], 0.02)["method"] == "b"
    assert chosen(rows, ["b", "a", "c"], 0.02)["method"] == "a"
    assert chosen(rows, ["a", "b", "c"], 0.01)["method"] == "a"
    assert chosen(rows, ["a", "b", "c"], 0.0)["method"] == "a"
    assert chosen([{"method": "d", "c2st": 0.3}, *rows], list("dabc"), 0.02)["method"] == "d"


@pytest.mark.parametrize(
    "dim, names", [(16, latentfit.auto.SHORT_LIST), (17, ("gmm", "flow-matching"))]
)
def test_the_short_list_depends_on_the_dimensions(
    dim: int, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(latentfit.auto, "load_sampler_class", lambda name: CLASSES["fake"])
    x = torch.randn(200, dim, generator=torch.Generator().manual_seed(0))
    sampler = fit_latent_sampler(None, x, method="auto", progress=False)
    assert {row["method"] for row in sampler.info["ranking"]} == set(names)
    monkeypatch.setattr("latentfit.preparing.MEMORY", 12_000)  # bytes: not all of them
    sampler = fit_latent_sampler(None, x, method="auto", progress=False, store=tmp_path / "store")
    assert {row["method"] for row in sampler.info["ranking"]} == set(names)
    assert not any("error" in row for row in sampler.info["ranking"])
    assert sampler.info["n"] > 100  # a tenth of the rows, not all of them, is for the comparison


def test_a_second_fit_that_is_worse_or_fails_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing(Slow):
        def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
            super().fit(rows, held_out, run)
            if len(self.seconds) > 2:
                raise DivergenceError("Training diverged at step 3.")

    monkeypatch.setitem(CLASSES, "failing", Failing)
    sampler = auto("worst", "failing", max_seconds=6.0)
    assert len(Fake.seconds) == 3
    assert sampler.method == "failing"
    assert "error" not in sampler.info["ranking"][0]
    assert sampler.info["seconds"] < 3


def test_the_first_comparison_of_a_process_leaves_the_random_state_alone() -> None:
    script = (
        "import random, torch\n"
        "from latentfit import fit_latent_sampler\n"
        "random.seed(5); before = random.getstate()\n"
        "fit_latent_sampler(None, torch.randn(300, 4), method='auto', methods=('gaussian',))\n"
        "assert random.getstate() == before\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
