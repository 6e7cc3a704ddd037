"""Rows that are read as they are needed: each once a pass, whoever reads them, in no order."""

import itertools

import pytest
import torch
from torch import Tensor

from latentfit.condition import fit_condition
from latentfit.rows import Rows, TensorLatents, draw_index

N = 20_000
X = torch.stack((torch.arange(N), -torch.arange(N)), 1).double()
NONE = torch.zeros(0, dtype=torch.int64)


def rows(left_out: Tensor = NONE, labels: Tensor | None = None) -> Rows:
    condition = None if labels is None else fit_condition(labels)
    return Rows(
        TensorLatents(X), Tensor.float, 2, left_out=left_out, condition=condition, labels=labels
    )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def passes(of: Rows, size: int, rank: int = 0, count: int = 1) -> Tensor:
    """The numbers of the rows in about one pass."""
    n = (len(of) // count - 512) // size  # one process may have a block less
    batches = itertools.islice(of.batches(size, generator(), rank, count), n)
    return torch.cat([batch[:, 0] for (batch,) in batches]).long()


def test_a_pass_has_each_row_once_and_mixes_them_well() -> None:
    left_out = torch.arange(0, N, 7)
    seen = passes(rows(left_out), 100)
    assert len(seen.unique()) == len(seen)
    assert len(seen) > len(rows(left_out)) - 700
    assert not torch.isin(seen, left_out).any()
    # A minibatch is spread over the whole: the mean of 100 numbers below N deviates by N / sqrt(12 * 100).
    means = torch.stack([part.double().mean() for part in seen.split(100)])
    assert float((means - N / 2).abs().max()) < 6 * N / (12 * 100) ** 0.5


def test_processes_share_a_pass() -> None:
    one, other = passes(rows(), 50, 0, 2), passes(rows(), 50, 1, 2)
    both = torch.cat((one, other))
    assert len(both) > 0.9 * N
    assert len(both.unique()) == len(both)


def test_parts_are_all_rows_in_order() -> None:
    left_out = torch.tensor([0, 5, 511, 512, N - 1])
    read = torch.cat([part for (part,) in rows(left_out).parts()])[:, 0].long()
    assert torch.equal(read, torch.tensor(sorted(set(range(N)) - set(left_out.tolist()))))


def test_contexts_belong_to_their_rows() -> None:
    labels = torch.arange(N) % 3
    for batch, context in itertools.islice(rows(labels=labels).batches(64, generator()), 9):
        assert torch.equal(context.argmax(1), batch[:, 0].long() % 3)
    some, context = rows(labels=labels).subset(500, generator())
    assert torch.equal(context.argmax(1), some[:, 0].long() % 3)


def test_a_map_is_applied_as_rows_are_read() -> None:
    doubled = rows().map(lambda part: torch.cat((part, 2 * part), 1), 4)
    assert doubled.shape == (N, 4)
    (batch,) = next(doubled.batches(10, generator()))
    assert torch.equal(batch[:, 2:], 2 * batch[:, :2])
    assert rows().shape == (N, 2)


@pytest.mark.parametrize("size", [0, 1, 100, N // 2, N - 3, N, 2 * N])
@pytest.mark.parametrize("left_out", [NONE, torch.tensor([1, 2, N - 1])])
def test_drawn_numbers_are_distinct_ascending_and_allowed(size: int, left_out: Tensor) -> None:
    drawn = draw_index(N, size, generator(), left_out)
    assert len(drawn) == min(size, N - len(left_out))
    assert bool((drawn.diff() > 0).all())
    assert not torch.isin(drawn, left_out).any()
    assert not len(drawn) or 0 <= int(drawn[0]) <= int(drawn[-1]) < N


def test_drawn_numbers_are_uniform() -> None:
    drawn = torch.cat(
        [draw_index(1000, 100, torch.Generator().manual_seed(seed)) for seed in range(300)]
    )
    counts = drawn.bincount(minlength=1000).double()  # each is binomial: mean 30, variance 27
    chi_square = float(((counts - 30).square() / 27).sum())
    assert abs(chi_square - 1000) < 5 * (2 * 1000) ** 0.5
