"""Conditions: labels from datasets, contexts for samplers, and what a user may ask for."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from latentfit import LatentSampler, fit_latent_sampler, load_sampler
from latentfit.condition import Classes, Vector, as_labels, fit_condition
from latentfit.errors import DataError, FileFormatError, OptionError
from latentfit.fitting import Plan, fit_class
from latentfit.plugin import Run, Sampler
from latentfit.preparing import split
from latentfit.reporting import evaluate

N = 600
CLASSES = torch.tensor([-7, 3, 40])  # not 0, 1, 2
CENTRES = torch.tensor([[0.0, 9.0], [9.0, 0.0], [-9.0, -9.0]])
Y = CLASSES[torch.arange(N) % 3]
X = CENTRES[torch.arange(N) % 3] + torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
FAST = {"steps": 20, "base": "mixture", "components": 3}


def fit(dataset: Any, condition: Any = "labels", **arguments: Any) -> LatentSampler:
    return fit_latent_sampler(None, dataset, condition=condition, **{**FAST, **arguments})


@pytest.fixture(scope="module")
def by_class() -> LatentSampler:
    return fit(TensorDataset(X, Y))


@pytest.fixture(scope="module")
def by_vector() -> LatentSampler:
    """Rows around their own condition, whose units are far from standard."""
    data = TensorDataset(X, X * 1000 + 5e4)
    return fit(data, steps=300, learning_rate=1e-2, base="normal", components=None)


# --- where labels come from ---


class Dicts(Dataset[dict[str, Any]]):
    def __init__(self, key: str) -> None:
        self.key = key

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": X[index], self.key: int(Y[index])}


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=7),
        Dicts("label"),
        Dicts("targets"),
        [(X[:100], Y[:100].numpy()), (X[100:], Y[100:].tolist())],
        {"x": X, "labels": Y.to(torch.int16)},
        iter([{"x": X, "y": Y[:, None]}]),
    ],
    ids=["TensorDataset", "DataLoader", "label", "targets", "list", "dict of tensors", "column"],
)
def test_labels_come_from_every_kind_of_dataset(dataset: Any, by_class: LatentSampler) -> None:
    sampler = fit(dataset)
    assert sampler.info["condition"] == {"kind": "classes", "classes": [-7, 3, 40]}
    assert torch.equal(
        sampler.sample(9, seed=0, condition=3), by_class.sample(9, seed=0, condition=3)
    )


def test_labels_may_be_given_themselves(by_class: LatentSampler) -> None:
    for labels in (Y, Y.numpy(), Y.tolist()):
        sampler = fit(X, labels)
        assert torch.equal(
            sampler.log_prob(X[:5], condition=-7), by_class.log_prob(X[:5], condition=-7)
        )


@pytest.mark.parametrize(
    "dataset, message",
    [
        (X, "items .x, y.*condition='labels'; got Tensor"),
        ({"x": X}, "'labels'.*got dict"),
        (TensorDataset(X), r"items .x, y.*got list"),
        ([(X[:300], ["cat"] * 300)], "300 labels: whole numbers.*got "),
        ([(X[:300], Y[:200])], r"Expected 300 labels.*got torch.int64 \(200,\)"),
        ([(X[:300], Y[:300]), (X[300:], Y[300:].float())], "one kind and shape.*int64.*float32"),
    ],
)
def test_datasets_without_usable_labels_are_told(dataset: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(dataset)


@pytest.mark.parametrize(
    "labels, message",
    [
        (Y[:-1], r"Expected 600 labels.*got torch.int64 \(599,\)"),
        (torch.zeros(N, 2, dtype=torch.int64), r"got torch.int64 \(600, 2\). Of one-hot.*argmax"),
        (["cat"] * N, "return_inverse"),
        (torch.full((N,), math.nan), "finite; got 600 that are NaN"),
        (torch.zeros(N, dtype=torch.complex64), "complex64"),
        (3.0, r"got torch.float64 \(\)"),
        (torch.arange(N), "classes of several rows each; got 600 different ones among 600"),
        ([object()] * N, "Expected N labels"),
    ],
)
def test_labels_of_another_kind_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit(X, labels)


def test_another_word_for_the_condition_is_refused() -> None:
    with pytest.raises(OptionError, match="condition as 'labels', labels or None; got 'class'"):
        fit(TensorDataset(X, Y), "class")


# --- what may be asked for ---


def test_samples_are_of_their_class(by_class: LatentSampler) -> None:
    for index, label in enumerate(CLASSES.tolist()):
        z = by_class.sample(200, condition=label, seed=0)
        nearest = torch.cdist(z, CENTRES).argmin(1)
        assert float((nearest == index).float().mean()) > 0.98


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray, list])
def test_one_class_for_each_latent(by_class: LatentSampler, kind: Any) -> None:
    wanted = CLASSES[torch.randint(3, (20_000,), generator=torch.Generator().manual_seed(1))]
    z = by_class.sample(len(wanted), condition=kind(wanted.tolist()), seed=0)  # several chunks
    nearest = CLASSES[torch.cdist(z, CENTRES).argmin(1)]
    assert float((nearest == wanted).float().mean()) > 0.98


def test_scores_are_of_the_class_that_is_asked_for(by_class: LatentSampler) -> None:
    own = by_class.log_prob(X, condition=Y)
    other = by_class.log_prob(X, condition=CLASSES.roll(1)[torch.arange(N) % 3])
    assert float((own > other + 3).float().mean()) > 0.99
    one = by_class.log_prob(X[:1], condition=int(Y[0]))
    torch.testing.assert_close(own[:1], one, rtol=1e-4, atol=1e-4)
    assert torch.equal(by_class.score_samples(X, condition=Y), own)


def test_samples_follow_their_vector(by_vector: LatentSampler) -> None:
    assert by_vector.info["condition"] == {"kind": "vector", "dim": 2}
    for centre in CENTRES:
        vector = centre * 1000 + 5e4
        z = by_vector.sample(300, condition=vector, seed=0)
        assert float((z.mean(0) - centre).norm()) < 2
        many = by_vector.sample(300, condition=vector.expand(300, 2).numpy(), seed=0)
        assert torch.equal(z, many)
    assert by_vector.log_prob(X, condition=X * 1000 + 5e4).shape == (N,)


def test_a_single_number_is_a_vector_of_one() -> None:
    sampler = fit(X, X[:, 0] * 2)
    assert sampler.info["condition"] == {"kind": "vector", "dim": 1}
    five = sampler.sample(5, condition=4.0, seed=0)
    assert torch.equal(five, sampler.sample(5, condition=[4.0], seed=0))
    assert torch.equal(five, sampler.sample(5, condition=torch.full((5,), 4.0), seed=0))
    assert torch.equal(five, sampler.sample(5, condition=np.full((5, 1), 4), seed=0))


@pytest.mark.parametrize(
    "condition, message",
    [
        (None, "Expected a condition.*got None"),
        (4, "one of the classes -7, 3, 40, or 5 of them; got 4"),
        (3.0, "one of the classes.*got 3.0"),
        ("3", "one of the classes.*got '3'"),
        ([3, 3], r"or 5 of them; got \[3, 3\]"),
        (torch.full((4, 1), 3), r"got an array of torch.int64 \(4, 1\)"),
        (torch.full((5, 2), 3), r"got an array of torch.int64 \(5, 2\)"),
        (True, "one of the classes -7, 3, 40, or 5 of them; got True, a flag. Pass the class"),
        (np.ones(5, bool), r"got an array of bool \(5,\), a flag"),
        ([3, 3, 3, 3, 99], "got 99"),
        (2**62, "got 4611686018427387904"),
        (object(), "got <object"),
    ],
)
def test_other_classes_are_refused(by_class: LatentSampler, condition: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        by_class.sample(5, condition=condition)
    with pytest.raises(OptionError, match=message):
        by_class.log_prob(X[:5], condition=condition)


@pytest.mark.parametrize("condition", [1.0, [1.0, 2.0, 3.0], torch.zeros(4, 2), "x", None])
def test_other_vectors_are_refused(by_vector: LatentSampler, condition: Any) -> None:
    with pytest.raises(OptionError, match="Expected (a )?condition"):
        by_vector.sample(5, condition=condition)


def test_vectors_that_are_not_finite_are_told_as_such(by_vector: LatentSampler) -> None:
    with pytest.raises(OptionError, match=r"finite numbers; got 1 that .* NaN .* in \[nan, 0.0\]"):
        by_vector.sample(5, condition=[math.nan, 0.0])


def test_a_column_of_classes_is_taken_wherever_labels_are(by_class: LatentSampler) -> None:
    column = Y[:, None]
    sampler = fit(X, column)
    assert sampler.info["condition"] == by_class.info["condition"]
    drawn = sampler.sample(5, condition=column[:5], seed=0)
    assert torch.equal(drawn, sampler.sample(5, condition=Y[:5], seed=0))
    scores = sampler.log_prob(X[:5], condition=column[:5].numpy())
    assert torch.equal(scores, sampler.log_prob(X[:5], condition=Y[:5]))


def test_no_samples_need_no_particular_condition(by_class: LatentSampler) -> None:
    assert by_class.sample(0, condition=3).shape == (0, 2)
    assert by_class.sample(0, condition=[]).shape == (0, 2)
    assert by_class.log_prob(X[:0], condition=3).shape == (0,)


def test_a_condition_of_an_unconditional_sampler_is_refused() -> None:
    sampler = fit(X, None)
    with pytest.raises(OptionError, match="Expected no condition.*got 3.*condition='labels'"):
        sampler.sample(2, condition=3)
    assert sampler.info["condition"] is None


def test_generate_takes_the_condition_too() -> None:
    sampler = fit(TensorDataset(X, Y), decoder=lambda z: z + 1)
    z = sampler.sample(4, condition=3, seed=0)
    assert torch.equal(sampler.generate(4, condition=3, seed=0), z + 1)


# --- files ---


def test_a_condition_survives_a_file(
    by_class: LatentSampler, by_vector: LatentSampler, tmp_path: Path
) -> None:
    for sampler, condition in ((by_class, 40), (by_vector, [1.0, 2.0])):
        sampler.save(tmp_path / "s.safetensors")
        again = load_sampler(tmp_path / "s.safetensors")
        assert again.info["condition"] == sampler.info["condition"]
        assert torch.equal(
            again.sample(9, seed=0, condition=condition),
            sampler.sample(9, seed=0, condition=condition),
        )
        assert repr(again) == repr(sampler)


@pytest.mark.parametrize(
    "cls, state",
    [
        (Classes, {}),
        (Classes, {"classes": torch.tensor([2, 1])}),
        (Classes, {"classes": torch.tensor([1.0, 2.0])}),
        (Classes, {"classes": torch.tensor([[1, 2]])}),
        (Classes, {"classes": torch.tensor([1, 2]), "more": torch.zeros(1)}),
        (Vector, {"mean": torch.zeros(2)}),
        (Vector, {"mean": torch.zeros(2), "scale": torch.ones(3)}),
        (Vector, {"mean": torch.zeros(2), "scale": torch.zeros(2)}),
        (Vector, {"mean": torch.full((2,), math.nan), "scale": torch.ones(2)}),
    ],
)
def test_tensors_of_no_condition_are_refused(cls: Any, state: dict[str, Tensor]) -> None:
    with pytest.raises(FileFormatError, match="Expected condition tensors"):
        cls.from_state(state)


# --- what samplers get ---


class Recorder(Sampler):
    """Remembers what it was given."""

    conditions = ("classes",)
    seen: Any = None

    def build(self, dim: int, n: int) -> None:
        self.register_buffer("kept", torch.zeros(dim))
        type(self).seen = {"dim": self.context_dim, "kind": self.context_kind}

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        type(self).seen |= {"rows": rows, "held_out": held_out, "run": run}
        run.facts |= {"answer": 42, "odd": torch.zeros(1), "nan": math.nan}

    def sample(self, n: int, generator: torch.Generator, context: Any = None) -> Tensor:
        return torch.zeros(n, len(self.kept))


def test_contexts_are_one_hot_and_belong_to_their_rows() -> None:
    sampler = fit_class(Recorder, X, method="recorder", labels=Y, plan=Plan(transform="none"))
    seen, run = Recorder.seen, Recorder.seen["run"]
    assert (seen["dim"], seen["kind"]) == (3, "classes")
    for rows, context in (
        (seen["rows"], run.context),
        (seen["held_out"], run.held_out_context),
    ):
        assert context.shape == (len(rows), 3)
        assert context.dtype == torch.float32
        assert torch.equal(context.sum(1), torch.ones(len(rows)))
        assert torch.equal(context.argmax(1), torch.cdist(rows, CENTRES).argmin(1))
    assert sampler.info["fit"] == {"answer": 42, "odd": "tensor([0.])", "nan": "nan"}


def test_without_a_condition_there_are_no_contexts() -> None:
    fit_class(Recorder, X, method="recorder")
    run = Recorder.seen["run"]
    assert (Recorder.seen["dim"], Recorder.seen["kind"]) == (0, None)
    assert run.context is None
    assert run.held_out_context is None


def test_a_kind_that_a_method_cannot_take_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'recorder' can take \('classes'\); got 'vector'.*long"):
        fit_class(Recorder, X, method="recorder", labels=X)


def test_a_method_without_conditions_refuses_before_it_encodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import latentfit.fit

    class Plain(Recorder):
        conditions = ()

    def encoder(x: Tensor) -> Tensor:
        raise AssertionError("encoded")

    monkeypatch.setattr(latentfit.fit, "load_method", lambda name: Plain)
    with pytest.raises(OptionError, match=r"'plain' can take \(nothing\)"):
        fit_latent_sampler(encoder, X, method="plain", condition=Y)


def test_standardised_vectors_are_contexts() -> None:
    condition = fit_condition(as_labels(np.array([1.5, 3.5, 5.5]), 3))
    assert isinstance(condition, Vector)
    encoded = condition.encode([1.5, 3.5, 5.5], 3)
    torch.testing.assert_close(encoded[:, 0], torch.tensor([-1.0, 0, 1]) * math.sqrt(1.5))
    constant = fit_condition(torch.full((4, 1), 7.5))
    assert torch.equal(constant.encode(7.5, 2), torch.zeros(2, 1))


def test_whole_numbers_of_a_floating_dtype_are_a_vector_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"whole numbers of a floating dtype.*y\.long"):
        assert fit_condition(as_labels(Y.float())).describe() == {"kind": "vector", "dim": 1}


def test_booleans_are_two_classes() -> None:
    condition = fit_condition(as_labels([True, False, True, True], 4))
    assert condition.describe() == {"kind": "classes", "classes": [0, 1]}
    assert condition.encode(True, 2).tolist() == [[0, 1], [0, 1]]


# --- the split ---


@pytest.mark.parametrize("validation", [0.1, 0.5, 0.99])
def test_every_class_has_a_row_to_learn_from(validation: float) -> None:
    labels = torch.tensor([0] * 50 + [1, 2, 3])
    for seed in range(20):
        training, held_out = split(len(labels), validation, seed, labels)
        assert sorted(torch.cat((training, held_out)).tolist()) == list(range(len(labels)))
        assert set(labels[training].tolist()) == {0, 1, 2, 3}
        assert len(held_out) == min(round(validation * 53), 49)


@pytest.mark.parametrize("kind", ["shuffle", "batches", "own"])
def test_labels_that_come_apart_need_the_datasets_order(kind: str) -> None:
    x, y = torch.randn(200, 4), torch.arange(200) % 2
    data = TensorDataset(x, y)
    order = RandomSampler(data)
    loader: Any = {
        "shuffle": lambda: DataLoader(data, batch_size=50, shuffle=True),
        "batches": lambda: DataLoader(data, batch_sampler=BatchSampler(order, 50, False)),
        "own": lambda: DataLoader(data, batch_size=50, sampler=torch.randperm(200).tolist()),
    }[kind]()
    with pytest.raises(OptionError, match="in the dataset's order where condition= comes apart"):
        fit_latent_sampler(lambda v: v, loader, method="gaussian", condition=y)
    sampler = fit_latent_sampler(lambda v: v, loader, method="gmm", condition="labels")
    assert sampler.sample(3, condition=1).shape == (3, 4)
    with pytest.raises(OptionError, match="where labels= comes apart"):
        evaluate({"a": sampler}, lambda v: v, loader, labels=y, n=20)
    ordered = DataLoader(data, batch_size=50)
    assert fit_latent_sampler(lambda v: v, ordered, method="gmm", condition=y).info["n"] == 180
