"""Datasets of every kind, through an encoder or none, to the same latents; and what can't be used."""

import functools
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from latentfit.encoding import encode as encode_with_labels
from latentfit.errors import DataError, EncoderOutputError, NonFiniteError
from latentfit.models import encoder_of
from latentfit.storing import fill_store


def encode(*arguments: Any, **options: Any) -> Tensor:
    return encode_with_labels(*arguments, **options)[0]


X = torch.randn(25, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(25)


class Dicts(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"label": Y[index], "image": X[index]}


class Arrays(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index].numpy()


class Stream(IterableDataset[Tensor]):
    def __init__(self, rows: Tensor = X) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.rows)


class ArrayLike:
    def __init__(self, tensor: Tensor) -> None:
        self.array = tensor.numpy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


def memory_map(folder: Path) -> np.ndarray:
    np.save(folder / "x.npy", X.numpy())
    return np.load(folder / "x.npy", mmap_mode="r")


DATASETS: dict[str, Callable[[Path], Any]] = {
    "tensor": lambda _: X,
    "array": lambda _: X.numpy(),
    "big-endian array": lambda _: X.numpy().astype(">f4"),
    "memory map": memory_map,
    "object with __array__": lambda _: ArrayLike(X),
    "dict of arrays": lambda _: {"x": X.numpy(), "y": Y.numpy()},
    "dict of one tensor": lambda _: {"whatever": X, "note": "text"},
    "TensorDataset (x,)": lambda _: TensorDataset(X),
    "TensorDataset (x, y)": lambda _: TensorDataset(X, Y),
    "Dataset of dicts": lambda _: Dicts(),
    "Dataset of arrays": lambda _: Arrays(),
    "IterableDataset": lambda _: Stream(),
    "DataLoader": lambda _: DataLoader(TensorDataset(X, Y), batch_size=6),
    "DataLoader of dicts": lambda _: DataLoader(Dicts(), batch_size=6),
    "generator of batches": lambda _: iter(X.split(7)),
    "generator of (x, y)": lambda _: zip(X.split(7), Y.split(7), strict=True),
    "list of batches": lambda _: list(X.split(7)),
    "list of arrays": lambda _: [part.numpy() for part in X.split(7)],
    "list of array-likes": lambda _: [ArrayLike(part) for part in X.split(7)],
    "list with an empty batch": lambda _: [X[:7], X[:0], X[7:]],
    "list of dicts": lambda _: [{"pixel_values": part, "more": part} for part in X.split(7)],
}


def plain_encode(dataset: Any, encoder: Any = None, batch_size: int = 8) -> Tensor:
    model = None if encoder is None else encoder_of(encoder)
    return encode(model, dataset, batch_size=batch_size, progress=False)


@pytest.mark.parametrize("kind", DATASETS)
@pytest.mark.parametrize("encoder", [None, nn.Linear(4, 2).requires_grad_(False)])
def test_every_kind_of_dataset_gives_the_same_latents(
    kind: str, encoder: nn.Module | None, tmp_path: Path
) -> None:
    latents = plain_encode(DATASETS[kind](tmp_path), encoder)
    expected = X if encoder is None else encoder(X)
    torch.testing.assert_close(latents, expected)
    assert not latents.is_inference()
    assert not latents.requires_grad


@pytest.mark.parametrize("batch_size", [1, 7, 25, 1000])
def test_batches_have_the_size_that_was_asked_for(batch_size: int) -> None:
    seen: list[int] = []

    def encoder(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    plain_encode(X.numpy(), encoder, batch_size)
    assert seen == [len(part) for part in X.split(batch_size)]


@pytest.mark.parametrize(
    "given, dtype",
    [
        (X.double(), torch.float64),
        (X.half(), torch.float16),
        (X.bfloat16(), torch.bfloat16),
        ((X * 10).int(), torch.float32),
        (X > 0, torch.float32),
        ((X.numpy() * 10).astype("uint16"), torch.float32),
    ],
)
def test_latents_keep_their_floating_dtype_and_whole_numbers_become_float32(
    given: Any, dtype: torch.dtype
) -> None:
    latents = plain_encode(given)
    assert latents.dtype == dtype
    np.testing.assert_allclose(
        latents.double().numpy(), np.asarray(torch.as_tensor(given).double())
    )


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 4, 4)])
def test_latents_may_have_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(9, *shape)
    assert torch.equal(plain_encode(x, batch_size=4), x)


def test_latents_are_a_copy() -> None:
    x = X.clone()
    latents = plain_encode(x)
    latents.zero_()
    assert torch.equal(x, X)


def test_an_encoder_may_reuse_its_output_buffer() -> None:
    buffer = torch.empty(5, 4)

    def encoder(x: Tensor) -> Tensor:
        return buffer.copy_(x)

    assert torch.equal(plain_encode(X, encoder, batch_size=5), X)


def test_a_large_array_is_read_batch_by_batch() -> None:
    array = np.broadcast_to(np.zeros((1, 4), np.float32), (10**12, 4))  # no memory behind it

    def encoder(x: Tensor) -> Tensor:
        raise InterruptedError(f"{len(x)} rows")

    with pytest.raises(InterruptedError, match="^8 rows"):
        plain_encode(array, encoder)


@pytest.mark.parametrize(
    "dataset, message",
    [
        (None, "Expected dataset as a tensor.*; got NoneType"),
        (3, "got int"),
        ("folder/images", "got str"),
        (b"bytes", "got bytes"),
        (lambda: X, "got function"),
        (torch.tensor(3.0), "got a scalar"),
        (np.float32(3), "got a scalar"),
        ([], "at least 2 rows; got none"),
        (iter(()), "iterator used up"),
        (X[:0], "got none"),
        (TensorDataset(X[:0]), "got none"),
        ([[]], "empty tuple or list"),
        ([torch.tensor(1.0)], "got a scalar torch.float32"),
        ([np.float64(1)], "got a scalar"),
        ([1.0, 2.0], "got float"),
        ([[1.0, 2.0]], "got float"),
        (["a"], "got str"),
        ([None], "got NoneType"),
        ([X, X[:, :2]], r"one shape \(n, 4\); batch 1 has \(25, 2\). A list or tuple is read as"),
        ((X, Y), r"got a tuple of \(25, 4\) and \(25,\). .* not as \(x, y\): pass TensorDataset"),
        ([X.numpy(), np.zeros((25, 1))], r"\(25, 1\). A list or tuple is read .* TensorDataset"),
        ({"a": X, "b": X}, "one called x, input, .*; got the keys 'a', 'b'"),
        ({}, "got the keys none"),
        ([{"label": 3}], "got the keys 'label'"),
        (X.to(torch.complex64), "real latents; got torch.complex64"),
        (X.numpy().astype(object), "array of numbers; got dtype object"),
        (np.array([["a"], ["b"]]), "array of numbers; got dtype <U1"),
        (np.zeros(3, "datetime64[s]"), "array of numbers"),
    ],
)
def test_what_is_no_dataset_is_refused(dataset: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plain_encode(dataset)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_latents_are_counted(bad: float) -> None:
    x = X.clone()
    x[11, 2] = bad
    x[20] = bad
    with pytest.raises(
        NonFiniteError, match="2 of 25 rows with NaN or infinity, the first at index 11"
    ):
        plain_encode(x)


@pytest.mark.parametrize("where", ["in memory", "loader", "store"])
def test_inputs_that_are_not_finite_are_no_fault_of_the_encoders(
    where: str, tmp_path: Path
) -> None:
    x = X.clone()
    x[11, 2] = torch.nan
    told = r"first at index 11; the dataset's rows hold such themselves, the first in batch 1: leave them out"
    loader = DataLoader(TensorDataset(x), batch_size=8)
    calls: dict[str, Callable[[], Any]] = {
        "in memory": lambda: plain_encode(x, nn.Identity()),
        "loader": lambda: plain_encode(loader, nn.Identity()),
        "store": lambda: fill_store(tmp_path, encoder_of(nn.Identity()), x, batch_size=8),
    }
    with pytest.raises(NonFiniteError, match=told) as caught:
        calls[where]()
    assert "half precision" not in str(caught.value)


def test_an_encoder_that_writes_nan_over_its_input_is_at_fault_itself() -> None:
    loader = DataLoader(TensorDataset(X), batch_size=8)
    with pytest.raises(NonFiniteError, match="index 0; if the encoder runs in half precision"):
        plain_encode(loader, lambda x: x.sub_(9).log_())
    for dataset in (X, loader):
        with pytest.raises(
            NonFiniteError, match="index 0; the encoder makes them of finite inputs"
        ):
            plain_encode(dataset, lambda x: (x - 9).log())


def test_an_encoder_that_overflows_in_half_precision_is_told_so() -> None:
    with pytest.raises(NonFiniteError, match="half precision, run it in float32"):
        plain_encode(X, lambda x: x.half() * 60000 * 60000)


@pytest.mark.parametrize(
    "encoder",
    [lambda x: x[0], lambda x: x.sum(), lambda x: x[:3], lambda x: torch.cat((x, x))],
)
def test_an_encoder_returns_one_row_for_each_input(encoder: Any) -> None:
    with pytest.raises(
        EncoderOutputError, match="one row for each of the 8 rows of a batch; got shape"
    ):
        plain_encode(X, encoder)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, StopIteration])
def test_what_the_dataset_raises_comes_through(error: type[BaseException]) -> None:
    class Broken:
        def __iter__(self) -> Iterator[Tensor]:
            return self

        def __next__(self) -> Tensor:
            raise error("mine")

    expected = DataError if error is StopIteration else error  # that one means the end
    with pytest.raises(expected):
        plain_encode(Broken())


@pytest.mark.parametrize(
    "x, hint", [(X, ""), (X.long(), r"; if it takes no whole numbers, give it x.float\(\)")]
)
def test_an_error_of_the_encoders_tells_what_it_was_given(x: Tensor, hint: str) -> None:
    def encoder(x: Tensor) -> Tensor:
        raise KeyError("a")

    with pytest.raises(KeyError) as caught:
        plain_encode(x, encoder)
    (note,) = caught.value.__notes__
    assert re.fullmatch(rf"while the encoder was given batch 0, \(8, 4\) {x.dtype}{hint}", note)


class Items(Dataset[Any]):
    """What a function gives, of a length that may not be true; None is no length."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class Counted(Items):
    def __len__(self) -> int:
        return 40


def broken(index: int) -> Tensor:
    if index == 13:
        raise OSError("truncated file")
    return X[0]


@pytest.mark.parametrize(
    "make", [lambda items: items, lambda items: DataLoader(items, batch_size=8)]
)
def test_a_dataset_without_a_length_is_refused(make: Any) -> None:
    with pytest.raises(
        DataError, match="with a length; got Items .* derive it from IterableDataset"
    ):
        plain_encode(make(Items(X.__getitem__)))


@pytest.mark.parametrize("workers", [None, 0, 1])
@pytest.mark.parametrize(
    "item, error, place",
    [
        (X.__getitem__, IndexError, "batch 3: it is item 25, of the 40 that the dataset's len()"),
        (broken, OSError, "batch 1: it is item 13, of the 40"),
    ],
)
def test_an_error_of_the_datasets_tells_the_item(
    item: Any, error: type[Exception], place: str, workers: int | None
) -> None:
    items: Any = Counted(item)
    if workers is not None:
        items = DataLoader(items, batch_size=8, num_workers=workers)
    with pytest.raises(error) as caught:
        plain_encode(items)
    assert any(f"while the dataset gave {place}" in note for note in caught.value.__notes__)


def test_an_error_that_does_not_come_again_tells_the_batch() -> None:
    calls = iter(range(99))

    def once(index: int) -> Tensor:
        if next(calls) == 20:
            raise OSError("the network")
        return X[0]

    def collate(items: list[Any]) -> Any:
        raise ZeroDivisionError

    def stream() -> Iterator[Tensor]:
        yield X
        raise ZeroDivisionError

    loader = DataLoader(Counted(once), batch_size=8, shuffle=True, collate_fn=collate)
    for dataset, place in (
        (Counted(once), "batch 2, items 16 to 23 of 40"),
        (loader, "batch 0"),
        (stream(), "batch 1"),
    ):
        with pytest.raises((OSError, ZeroDivisionError)) as caught:
            plain_encode(dataset)
        assert caught.value.__notes__ == [f"while the dataset gave {place}"]


def test_images_of_pil_get_a_remedy_of_theirs() -> None:
    image = pytest.importorskip("PIL.Image").new("L", (4, 4))
    images = Counted(lambda index: (image, 1))
    for dataset in (images, DataLoader(images, batch_size=8), [[image] * 8], [(image, 1)] * 8):
        with pytest.raises(
            DataError, match=r"got (PIL\.Image\.)?Image.*ToTensor\(\), or .*np\.array"
        ):
            plain_encode(dataset)


def test_a_default_dtype_that_the_encoder_sets_is_given_back(tmp_path: Path) -> None:
    def encoder(x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return x

    plain_encode(X, encoder)
    assert torch.get_default_dtype() == torch.float32
    fill_store(tmp_path, encoder_of(encoder), X, batch_size=8)
    assert torch.get_default_dtype() == torch.float32


def test_a_module_is_not_taken_for_a_dataset() -> None:
    with pytest.raises(DataError, match="got Linear"):
        plain_encode(nn.Linear(2, 2))
    with pytest.raises(DataError, match="got module"):
        plain_encode(types)


@pytest.mark.parametrize(
    "samples",
    [
        [torch.ones(3)] * 10,
        [(torch.ones(3, 2), 1)] * 10,
        [(torch.ones(3, 2), torch.tensor(1))] * 10,
    ],
)
def test_a_list_of_samples_is_not_read_as_batches(samples: list[Any]) -> None:
    with pytest.raises(DataError, match=r"single samples of shape.*torch\.stack"):
        encode(None, samples, batch_size=4)


def test_a_list_of_labelled_batches_is() -> None:
    batches = [(torch.ones(3, 2), torch.zeros(3))] * 2
    assert encode(None, batches, batch_size=4).shape == (6, 2)


@pytest.mark.parametrize("path", ["latents", Path("latents")])
def test_a_path_is_no_dataset(path: Any) -> None:
    with pytest.raises(DataError, match=r"got \w+. Load the file first; LatentStore\(path\) opens"):
        encode(None, path, batch_size=8)


@pytest.mark.parametrize(
    "encoder",
    [
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)),
        lambda x: x.mul_(2),
        FunctionTransformer(lambda a: np.multiply(a, 2, out=a)),
    ],
)
def test_an_encoder_that_writes_over_its_input_is_given_copies(encoder: Any) -> None:
    for data in (X.clone(), X.numpy().copy()):
        before = data.copy() if isinstance(data, np.ndarray) else data.clone()
        expected = encoder_of(encoder)(X.clone()).detach()
        found = encode(encoder_of(encoder), data, batch_size=10)
        assert (data == before).all()
        torch.testing.assert_close(found, expected)


def test_sparse_outputs_of_scikit_learn_become_dense() -> None:
    x = np.arange(30).reshape(-1, 1) % 5
    found = encode(encoder_of(OneHotEncoder().fit(x)), x, batch_size=10)
    assert torch.equal(found, torch.eye(5)[torch.from_numpy(x[:, 0])].to(found.dtype))


def test_sparse_and_eight_bit_outputs_become_plain() -> None:
    encoders: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.round().to_sparse(),
        lambda x: x.round().to(torch.float8_e4m3fn),
    ]
    for encoder in encoders:
        assert torch.equal(encode(encoder_of(encoder), X, batch_size=10), X.round())


@pytest.mark.parametrize(
    "data, message",
    [
        (X.to_sparse(), "dense tensor.*to_dense"),
        (np.ma.array(X.numpy(), mask=X.numpy() > 1), "no value masked; got [0-9]+ that are"),
        ([np.ma.array(X.numpy(), mask=X.numpy() > 1)], "no value masked"),
    ],
)
def test_what_holds_no_plain_numbers_is_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(None, data, batch_size=10)


def test_latents_of_the_users_own_get_a_remedy_of_theirs() -> None:
    x = X.clone()
    x[3] = torch.nan
    with pytest.raises(NonFiniteError, match="leave these rows out"):
        encode(None, x, batch_size=10)


def _as_is(items: list[Any]) -> Any:
    """Collate one slice of the user's own memory."""
    return items[0]


class _Whole(Dataset[Any]):
    """Items are slices of the user's memory, each a batch."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.rows[25 * index : 25 * index + 25]


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "into a store"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: x.numpy(),
        lambda x: {"x": x},
        lambda x: x.split(25),
        lambda x: TensorDataset(x),
        lambda x: DataLoader(TensorDataset(x), batch_size=25),
        lambda x: DataLoader(TensorDataset(x), batch_size=1),
        lambda x: DataLoader(_Whole(x), batch_size=1, collate_fn=_as_is),
    ],
    ids=[
        "tensor",
        "array",
        "dict",
        "batches",
        "dataset",
        "loader",
        "loader of one",
        "own collation",
    ],
)
def test_an_encoder_that_writes_over_later_batches_changes_no_dataset(
    wrap: Callable[[Tensor], Any], stored: bool, tmp_path: Path
) -> None:
    data = torch.cat((X.abs(), -X.abs(), X.abs(), -X.abs()))
    before, encoder = data.clone(), encoder_of(nn.ReLU(inplace=True))
    if stored:
        found = fill_store(tmp_path / "s", encoder, wrap(data), batch_size=25).read(0, 100)
    else:
        found = encode(encoder, wrap(data), batch_size=25)
    assert torch.equal(data, before)
    assert torch.equal(found, before.relu())


def test_sparse_batches_are_refused() -> None:
    with pytest.raises(DataError, match="dense tensor.*to_dense"):
        encode(encoder_of(nn.Linear(4, 2)), [X.to_sparse()], batch_size=10)


class _Odd(Dataset[Tensor]):
    """One item is unlike the others."""

    def __init__(self, odd: Any) -> None:
        self.odd = odd

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return self.odd if index == 25 else torch.zeros(4)


@pytest.mark.parametrize("odd, told", [(None, "is NoneType"), (torch.zeros(3), r"shape \(3,\)")])
def test_an_item_unlike_the_others_is_named(odd: Any, told: str) -> None:
    with pytest.raises(DataError, match=f"item 25 of the dataset .*{told}.*shape .4,"):
        encode(None, _Odd(odd), batch_size=10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DataLoader(torch.randn(60, 3, 8, 8), batch_size=None),
        lambda: (row for row in torch.randn(60, 4)),
        lambda: ((row, i) for i, row in enumerate(torch.randn(60, 3, 4))),
        lambda: ((row, torch.tensor(1)) for row in torch.randn(60, 3, 4)),
    ],
)
def test_single_samples_are_not_taken_for_batches(make: Any) -> None:
    with pytest.raises(DataError, match=r"single samples.*batch_size=512"):
        encode(None, make(), batch_size=10)


@pytest.mark.parametrize(
    "encoder, shape",
    [
        (nn.Conv2d(3, 3, 3), (3, 8, 8)),
        (nn.Conv2d(1, 1, 3), (1, 8, 8)),
        (nn.Conv2d(2, 2, 3), (2, 8, 8)),
        (nn.Conv3d(2, 2, 3), (2, 8, 8, 8)),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.AvgPool2d(6)), (3, 8, 8)),
    ],
)
@pytest.mark.parametrize("kind", ["list", "generator", "loader"])
def test_samples_that_an_encoder_takes_for_batches_are_seen(
    encoder: nn.Module, shape: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    samples = torch.randn(20, *shape)
    datasets = {
        "list": list(samples),
        "generator": (row for row in samples),
        "loader": DataLoader(Stream(samples), batch_size=None),
    }
    with pytest.raises(DataError, match=rf"single samples of shape \({shape[0]}, .*torch\.stack"):
        plain_encode(datasets[kind], encoder)
    with pytest.raises(DataError, match="single samples"):
        fill_store(tmp_path / "store", encoder_of(encoder), list(samples), batch_size=4)


def test_samples_that_make_other_rows_get_the_hint() -> None:
    with pytest.raises(
        EncoderOutputError, match=r"3 rows of a batch.*single samples.*torch\.stack"
    ):
        plain_encode(list(torch.randn(20, 3, 8, 8)), nn.Conv2d(3, 5, 3))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_batches_of_few_rows_are_no_samples(n: int) -> None:
    encoder = nn.Conv2d(3, 3, 3)
    images = torch.randn(14, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(plain_encode(list(images.split(n)), encoder), encoder(images))


def test_trying_the_first_batch_changes_no_random_numbers() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + torch.randn_like(x)

    torch.testing.assert_close(
        plain_encode(list(X.split(5)), noisy), encode(encoder_of(noisy), X, batch_size=5)
    )


def test_an_encoder_that_caches_by_its_input_gets_other_objects() -> None:
    cached = functools.lru_cache(lambda x: 2 * x)
    torch.testing.assert_close(plain_encode(X, cached), 2 * X)
