"""Stores of latents: filled once, resumed after any end, reused only where nothing has changed."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import latentfit.preparing
from latentfit import LatentStore, fit_latent_sampler
from latentfit.encoding import encode
from latentfit.errors import DataError, FileFormatError, NonFiniteError, OptionError
from latentfit.models import encoder_of
from latentfit.storing import SHARD_ROWS, fill_store

N = 2 * SHARD_ROWS + 700
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 7


class Counting(nn.Module):
    """An encoder that counts the rows it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.linear.requires_grad_(False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(18.0).view(3, 6) / 10)
            self.linear.bias.zero_()
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        latents: Tensor = self.linear(x)
        return latents


def fill(path: Path, encoder: Any, dataset: Any = None, batch_size: int = 512) -> LatentStore:
    model = None if encoder is None else encoder_of(encoder)
    dataset = TensorDataset(X, Y) if dataset is None else dataset
    return fill_store(path, model, dataset, batch_size=batch_size, progress=False)


def whole(store: LatentStore) -> Tensor:
    return torch.cat(list(store.parts()))


class Items(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return {"image": X[index].numpy(), "label": int(Y[index])}


DATASETS: dict[str, Any] = {
    "tensor": lambda: X,
    "array": lambda: X.numpy(),
    "dict of arrays": lambda: {"x": X.numpy(), "y": Y.numpy()},
    "TensorDataset": lambda: TensorDataset(X, Y),
    "Dataset of dicts": Items,
    "DataLoader": lambda: DataLoader(TensorDataset(X, Y), batch_size=300),
    "generator": lambda: zip(X.split(512), Y.split(512), strict=True),
    "list": lambda: list(X.split(1000)),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_a_store_holds_every_kind_of_dataset_once_and_in_order(kind: str, tmp_path: Path) -> None:
    encoder = Counting()
    store = fill(tmp_path / "store", encoder, DATASETS[kind]())
    assert len(store) == N
    assert encoder.seen == N
    assert torch.allclose(whole(store), encoder.linear(X), atol=1e-6)
    assert store.has_labels == (kind not in {"tensor", "array", "list"})
    if store.has_labels:
        assert torch.equal(store.labels(), Y)
    assert sum(shard.rows for shard in store.shards) == N


def test_what_is_not_there_is_not_read(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", None, X)
    for wrong in ((-1, 5), (0, N + 1), (5, 4)):
        with pytest.raises(DataError, match=f"<= {N}"):
            store.read(*wrong)
    for index in ([N], [-1], [5, 2], [[1]]):
        with pytest.raises(DataError, match="ascending index"):
            store.take(torch.tensor(index))
    with pytest.raises(DataError, match="rows"):
        next(store.parts(0))


def test_reading_parts_agrees_with_indexing(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", None, X, batch_size=300)
    for start, stop in ((0, 0), (0, 1), (5, 4000), (4090, 4100), (0, N), (N - 1, N)):
        assert torch.equal(store.read(start, stop), X[start:stop])
    assert torch.equal(torch.cat(list(store.parts(777))), X)
    index = torch.randperm(N, generator=torch.Generator().manual_seed(1))[:400].sort().values
    assert torch.equal(store.take(index), X[index])
    assert store.take(index[:0]).shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_latents_keep_their_dtype_and_shape(dtype: torch.dtype, tmp_path: Path) -> None:
    latents = X.view(N, 1, 2, 3).to(dtype)
    store = fill(tmp_path / "store", None, latents)
    assert store.dtype == dtype
    assert store.shape == (1, 2, 3)
    assert torch.equal(whole(store), latents)


def test_nothing_is_encoded_again_when_nothing_has_changed(tmp_path: Path) -> None:
    fill(tmp_path / "store", Counting())
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in files(tmp_path / "store")}
    again = Counting()
    store = fill(tmp_path / "store", again)
    assert again.seen == 0
    assert len(store) == N
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in files(tmp_path / "store")}
    assert after == before


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != ".lock")


def test_one_ulp_in_one_weight_is_another_encoder(tmp_path: Path) -> None:
    fill(tmp_path / "store", Counting())
    other = Counting()
    weight = other.linear.weight
    with torch.no_grad():
        weight[1, 2] = torch.nextafter(weight[1, 2], torch.tensor(9.0))
    store = fill(tmp_path / "store", other)
    assert other.seen == N
    assert torch.equal(whole(store), encode(encoder_of(other), X, batch_size=512)[0])
    assert len(files(tmp_path / "store")) == len(store.shards) + 1  # the old ones are gone


@pytest.mark.parametrize("row", [0, 511, 512, 5000, N - 1])
def test_a_changed_row_is_encoded_and_little_else(row: int, tmp_path: Path) -> None:
    fill(tmp_path / "store", Counting())
    changed, again = X.clone(), Counting()
    changed[row, 3] += 1e-6
    store = fill(tmp_path / "store", again, TensorDataset(changed, Y))
    assert 0 < again.seen <= SHARD_ROWS
    assert torch.equal(whole(store), encode(encoder_of(Counting()), changed, batch_size=512)[0])


def test_a_batch_that_changed_is_encoded_alone(tmp_path: Path) -> None:
    x, encoder = X.clone(), Counting()
    fill(tmp_path / "store", encoder, x)
    x[10] += 1  # in the first of several batches of a file
    again = Counting()
    again.load_state_dict(encoder.state_dict())
    store = fill(tmp_path / "store", again, x)
    assert again.seen == 512
    assert torch.allclose(whole(store), again.linear(x), atol=1e-6)


def test_a_store_in_a_store_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "store", None, X)
    with pytest.raises(OptionError, match="outside of other stores"):
        fill(tmp_path / "store" / "inner", None, X)
    assert len(LatentStore(tmp_path / "store")) == N


def test_an_encoder_without_its_weights_yet_is_refused(tmp_path: Path) -> None:
    lazy = nn.LazyLinear(3)
    with pytest.raises(OptionError, match="a lazy module, .* Call it with a batch first"):
        fill(tmp_path / "store", lazy, X)
    lazy(X[:2])
    assert len(fill(tmp_path / "store", lazy, X)) == N


def test_changed_labels_are_seen(tmp_path: Path) -> None:
    fill(tmp_path / "store", Counting())
    labels = Y.clone()
    labels[3] = 6
    assert torch.equal(
        fill(tmp_path / "store", Counting(), TensorDataset(X, labels)).labels(), labels
    )


def test_rows_that_are_added_or_removed_are_seen(tmp_path: Path) -> None:
    fill(tmp_path / "store", Counting(), X[:5000])
    grown = Counting()
    assert torch.allclose(whole(fill(tmp_path / "store", grown, X)), grown.linear(X), atol=1e-6)
    assert grown.seen == N - SHARD_ROWS - (5000 - SHARD_ROWS) // 512 * 512  # what is new
    shrunk = Counting()
    assert len(fill(tmp_path / "store", shrunk, X[:100])) == 100
    assert len(files(tmp_path / "store")) == 2


def test_a_fit_from_a_store_is_the_fit_without_one(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"condition": "labels", "steps": 20, "layers": 2, "seed": 3}
    plain = fit_latent_sampler(Counting(), TensorDataset(X, Y), **arguments)
    path = tmp_path / "store"
    stored = fit_latent_sampler(Counting(), TensorDataset(X, Y), store=path, **arguments)
    opened = fit_latent_sampler(None, LatentStore(path), **arguments)
    for sampler in (stored, opened):
        assert torch.equal(
            sampler.sample(9, seed=1, condition=2), plain.sample(9, seed=1, condition=2)
        )


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(len(x), 6) + np.random.default_rng().normal() * 0


def test_an_encoder_that_draws_draws_the_same_whatever_is_there_already(tmp_path: Path) -> None:
    expected = encode(encoder_of(Drawing()), X, batch_size=512)[0]
    assert torch.equal(whole(fill(tmp_path / "store", Drawing(), X)), expected)
    changed = X.clone()
    changed[5000] = 0
    fill(tmp_path / "store", Drawing(), changed)
    assert torch.equal(whole(fill(tmp_path / "store", Drawing(), X)), expected)


def test_nan_is_told_with_its_place_and_what_was_encoded_stays(tmp_path: Path) -> None:
    broken = X.clone()
    broken[5000:5003] = torch.nan
    with pytest.raises(
        NonFiniteError, match=r"got 3 of rows 4608 to 5119 .* index 5000.*rows hold such"
    ):
        fill(tmp_path / "store", Counting(), broken)
    with pytest.raises(FileFormatError, match="complete store"):
        LatentStore(tmp_path / "store")
    again = Counting()
    fill(tmp_path / "store", again, X)
    assert again.seen == N - SHARD_ROWS


def test_labels_that_are_asked_for_must_be_there(tmp_path: Path) -> None:
    for dataset, told in (
        (X, "Expected items"),
        (TensorDataset(X, torch.full((N,), torch.nan)), "NaN"),
        ([(X[:5000], Y[:5000]), (X[5000:], Y[5000:].float())], "labels"),
    ):
        with pytest.raises(DataError, match=told):
            fit_latent_sampler(
                None, dataset, store=tmp_path / "store", condition="labels", batch_size=8192
            )


def test_shuffled_loaders_are_refused(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(X), batch_size=512, shuffle=True)
    with pytest.raises(OptionError, match="shuffle=False"):
        fill(tmp_path / "store", Counting(), loader)


def test_moments_are_measured_once_and_belong_to_their_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(tmp_path / "store", None, X)
    assert store.moments(covariance=False).covariance is None
    moments = store.moments(covariance=True)
    assert moments.covariance is not None
    reference = np.cov(X.double().numpy().T, bias=True)
    np.testing.assert_allclose(moments.covariance.numpy(), reference, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(LatentStore, "parts", lambda self: pytest.fail("a second pass"))
    again = LatentStore(tmp_path / "store").moments(covariance=True)
    for name in ("mean", "variance", "low", "high", "covariance"):
        assert torch.equal(getattr(again, name), getattr(moments, name))
    assert (again.n, again.shape, again.dtype) == (moments.n, moments.shape, moments.dtype)
    monkeypatch.undo()
    other = fill(tmp_path / "store", None, X + 1)
    assert torch.allclose(other.moments(covariance=False).mean, X.double().mean(0) + 1)
    (tmp_path / "store" / "moments.safetensors").write_bytes(b"no file of ours")
    assert torch.allclose(other.moments(covariance=False).mean, X.double().mean(0) + 1)


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OptionError, match=r"thesis\.tex"):
        fill(tmp_path, Counting())
    assert [path.name for path in files(tmp_path)] == ["thesis.tex"]
    with pytest.raises(OptionError, match="is a file"):
        fill(tmp_path / "thesis.tex", Counting())
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "index.json").write_text('{"my": "data"}')
    with pytest.raises(OptionError, match=r"index\.json"):
        fill(tmp_path / "web", Counting())
    assert [path.name for path in (tmp_path / "web").iterdir()] == ["index.json"]
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("wrong", [3, "", None, True, ["x"], "a\0b"])
def test_a_path_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(OptionError, match="store"):
        fill_store(wrong, None, X, batch_size=8)


def test_a_store_of_a_newer_format_is_not_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "store", Counting())
    path = tmp_path / "store" / "index.json"
    newer = json.dumps(json.loads(path.read_text()) | {"format_version": 99})
    path.write_text(newer)
    with pytest.raises(FileFormatError, match="Upgrade"):
        fill(tmp_path / "store", Counting(), X[:100])
    assert path.read_text() == newer


def test_a_seed_of_what_is_drawn_counts(tmp_path: Path) -> None:
    def pair(x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros_like(x)

    model = encoder_of(pair, output="sample")
    path = tmp_path / "store"
    drawn = [whole(fill_store(path, model, X, batch_size=512, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_an_empty_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got none"):
        fill(tmp_path / "store", Counting(), iter(()))


def test_batches_of_two_shapes_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shape"):
        fill(tmp_path / "store", None, [X[:5000], X[:5000, :2]], batch_size=5000)


def test_a_store_takes_no_encoder(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", Counting())
    with pytest.raises(OptionError, match="without an encoder"):
        fit_latent_sampler(Counting(), store)


KILLED = """
    import os, signal, sys
    import torch
    from torch import nn
    from latentfit import fit_latent_sampler

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4))
            self._calls = {"left": int(sys.argv[2])}  # no setting, as its name says
        def forward(self, x):
            if self._calls["left"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._calls["left"] -= 1
            with open(sys.argv[3], "a") as log:
                log.write(f"{len(x)}\\n")
            return x @ self.weight

    x = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    fit_latent_sampler(Encoder(), x, store=sys.argv[1], method="gaussian", batch_size=256)
"""


def run(script: Path, *words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    script, store, log = tmp_path / "run.py", tmp_path / "store", tmp_path / "log"
    script.write_text(textwrap.dedent(KILLED))
    for batches in (40, 20):
        assert run(script, store, batches, log).returncode == -signal.SIGKILL
    done = run(script, store, -1, log)
    assert done.returncode == 0, done.stderr
    encoded = sum(int(n) for n in log.read_text().split())
    assert 20_000 <= encoded < 20_000 + 2 * SHARD_ROWS  # twice only what a kill cut off
    x = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole(LatentStore(store)), x)
    assert not [name for name in os.listdir(store) if name.endswith(".tmp")]


def test_two_writers_encode_once(tmp_path: Path) -> None:
    script, store, log = tmp_path / "run.py", tmp_path / "store", tmp_path / "log"
    script.write_text(textwrap.dedent(KILLED))
    command = [sys.executable, str(script), str(store), "-1", str(log)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert sum(int(n) for n in log.read_text().split()) == 20_000


@pytest.fixture
def tiny_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything too large for memory."""
    monkeypatch.setattr(latentfit.preparing, "MEMORY", 2**12)
    monkeypatch.setattr(latentfit.preparing, "CONTEXTS", 2**12)


BLOBS = torch.randn(30_000, 2, generator=torch.Generator().manual_seed(5)) + 6.0 * (
    torch.arange(30_000) * 3 // 30_000
).unsqueeze(1)


@pytest.mark.usefixtures("tiny_memory")
@pytest.mark.parametrize("progress", [None, True, False])
def test_who_waits_for_a_store_is_told_once(
    progress: bool | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("latentfit.storing._PATIENCE", 0.05)
    own = FileLock(tmp_path / ".lock")
    own.acquire()
    with ThreadPoolExecutor(1) as pool:
        filled = pool.submit(fill_store, tmp_path, None, X[:9], batch_size=9, progress=progress)
        time.sleep(0.5)
        waited = not filled.done()
        own.release()
        assert len(filled.result(60)) == 9
    assert waited
    said = [line for line in capsys.readouterr().err.splitlines() if "waiting" in line]
    line = f"latentfit: waiting for another process, which fills the store {str(tmp_path)!r}."
    assert said == ([] if progress is False else [line])


@pytest.mark.parametrize("method", ["realnvp", "flow-matching", "r3gan"])
def test_fits_that_stream_learn_data_that_comes_in_order(method: str, tmp_path: Path) -> None:
    store = fill(tmp_path / "store", None, BLOBS)
    sampler = fit_latent_sampler(None, store, method=method, steps=300)
    assert sampler.info["n"] + sampler.info["n_validation"] == len(BLOBS)
    drawn = sampler.sample(6000, seed=0)
    assert torch.allclose(drawn.mean(0), BLOBS.mean(0), atol=0.5)
    assert torch.allclose(drawn.T.cov(), BLOBS.T.cov(), rtol=0.15)
    shares = (drawn.mean(1, keepdim=True) - torch.tensor([0.0, 6.0, 12.0])).abs().argmin(1)
    assert torch.allclose(shares.bincount(minlength=3) / 6000, torch.full((3,), 1 / 3), atol=0.05)


@pytest.mark.usefixtures("tiny_memory")
@pytest.mark.parametrize("method", ["realnvp", "flow-matching", "r3gan"])
def test_fits_that_stream_take_conditions(method: str, tmp_path: Path) -> None:
    labels = torch.arange(30_000) * 3 // 30_000
    store = fill(tmp_path / "store", None, TensorDataset(BLOBS, labels))
    sampler = fit_latent_sampler(None, store, method=method, condition="labels", steps=200)
    for label in range(3):
        mean = sampler.sample(1000, seed=0, condition=label).mean()
        assert abs(float(mean) - 6 * label) < 0.6


@pytest.mark.usefixtures("tiny_memory")
def test_contexts_that_are_too_wide_for_memory_are_made_as_needed() -> None:
    labels = torch.arange(30_000) * 3 // 30_000
    sampler = fit_latent_sampler(None, BLOBS, condition=labels, steps=100)
    mean = sampler.sample(1000, seed=0, condition=1).mean()
    assert abs(float(mean) - 6) < 0.6


@pytest.mark.usefixtures("tiny_memory")
def test_a_method_that_can_not_stream_says_what_it_used(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", None, BLOBS)
    with pytest.warns(UserWarning, match="fitted to 512 of the 27,000"):
        sampler = fit_latent_sampler(None, store, method="gaussian")
    assert sampler.info["n"] == 512
    sampler.save(tmp_path / "s.safetensors")


@pytest.mark.usefixtures("tiny_memory")
@pytest.mark.filterwarnings("ignore:The time for the fit")
def test_auto_compares_on_rows_that_no_fit_has_seen(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", None, BLOBS)
    sampler = fit_latent_sampler(
        None, store, method="auto", methods=("realnvp", "flow-matching"), max_seconds=6
    )
    assert {row["method"] for row in sampler.info["ranking"]} == {"realnvp", "flow-matching"}
    assert all("error" not in row for row in sampler.info["ranking"])
    assert sampler.info["n"] + sampler.info["n_validation"] == 0.9 * len(BLOBS)


def damaged(store: Path) -> Iterator[Any]:
    index = json.loads((store / "index.json").read_text())
    shard = index["shards"][0]
    yield "{"
    yield {"format": "mine"}
    yield index | {"format_version": 99}
    yield {k: v for k, v in index.items() if k != "shape"}
    yield index | {"dtype": "complex64"}
    yield index | {"shards": []}
    yield index | {"shards": [shard | {"file": "../x.safetensors"}]}
    yield index | {"shards": [shard | {"file": "/etc/passwd"}]}
    yield index | {"shards": [shard | {"rows": -1}]}


def test_a_damaged_index_is_told(tmp_path: Path) -> None:
    fill(tmp_path / "store", Counting())
    for content in list(damaged(tmp_path / "store")):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "store" / "index.json").write_text(text)
        with pytest.raises(FileFormatError, match=r"index\.json"):
            LatentStore(tmp_path / "store")


@pytest.mark.parametrize("value", ["many", [1], None, 1.5, {}])
@pytest.mark.parametrize(
    "field", ["n", "order", "encoder", "data", "labels", "dtype", "shape", "shards"]
)
def test_every_field_of_an_index_has_a_type(field: str, value: Any, tmp_path: Path) -> None:
    fill(tmp_path, None, X[:9])
    content = (tmp_path / "index.json").read_text()
    if type(json.loads(content)[field]) is type(value):
        value = 7
    (tmp_path / "index.json").write_text(json.dumps({**json.loads(content), field: value}))
    with pytest.raises(FileFormatError, match=rf"{field} .* Fit with store= .* is written anew\."):
        LatentStore(tmp_path)
    assert len(fill(tmp_path, None, X[:9])) == 9  # which is the remedy
    assert (tmp_path / "index.json").read_text() == content


def test_a_number_of_latents_that_the_files_do_not_have_is_told(tmp_path: Path) -> None:
    fill(tmp_path, None, X[:9])
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "n": 10}))
    with pytest.raises(FileFormatError, match="n 10, which the files' rows do not add up to"):
        LatentStore(tmp_path)


def test_missing_damaged_and_replaced_files_are_told(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", Counting())
    path = tmp_path / "store" / store.shards[1].file
    content = path.read_bytes()
    for harm in (
        path.unlink,
        lambda: path.write_bytes(b"nothing"),
        lambda: path.write_bytes(content[:-9]),
        lambda: path.write_bytes((tmp_path / "store" / store.shards[0].file).read_bytes()),
    ):
        path.write_bytes(content)
        harm()
        with pytest.raises(FileFormatError, match=r"expected"):
            store.read(SHARD_ROWS, SHARD_ROWS + 1)
        again = Counting()
        fill(tmp_path / "store", again)
        assert again.seen == SHARD_ROWS
        assert path.read_bytes() == content


def test_latents_in_the_order_of_channels_last(tmp_path: Path) -> None:
    x = torch.randn(100, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(whole(fill(tmp_path / "store", None, x)), x)


@pytest.mark.parametrize("place", [0.0, "a", None])
def test_places_that_are_no_whole_numbers_are_refused(place: Any, tmp_path: Path) -> None:
    store = fill(tmp_path / "store", None, X[:100])
    with pytest.raises(DataError, match="whole numbers 0 <= start"):
        store.read(place, 3)
    with pytest.raises(DataError, match="whole numbers from 0"):
        store.take(torch.tensor([1.5]))
    assert torch.equal(store.read(np.int64(1), 3), store.take([1, 2]))


def _doubled(batch: Tensor) -> Tensor:
    return batch * 2


def test_a_damaged_file_is_seen_and_made_again(tmp_path: Path) -> None:
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    arguments = {"method": "gaussian", "store": tmp_path / "s"}
    fit_latent_sampler(_doubled, x, **arguments)
    store = LatentStore(tmp_path / "s")
    store.verify()
    path = store.path / store.shards[0].file
    whole = path.read_bytes()
    for place in (len(whole) - 1, len(whole) - 4000, len(whole) // 2):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match="damaged"):
            store.verify()
        with pytest.raises(FileFormatError, match="damaged"):
            fit_latent_sampler(None, LatentStore(store.path), method="gaussian")
        fit_latent_sampler(_doubled, x, **arguments)
        assert path.read_bytes() == whole
