"""Checkpoints: a fit that was ended goes on, and gives what it would have given."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentfit import LatentSampler, fit_latent_sampler, list_samplers, load_sampler
from latentfit.checkpoint import Phase, checkpoint_path, remove_checkpoints
from latentfit.errors import FileFormatError, OptionError
from latentfit.fitting import Plan, fit_class
from latentfit.minibatches import TensorBatches
from latentfit.persistence import CHECKPOINT, read_tensors, write_tensors
from latentfit.plugin import Run, Sampler, train
from latentfit.store import LatentStore

METHODS = [info.name for info in list_samplers() if info.distribution == "latentfit"]
every = pytest.mark.parametrize("method", METHODS)
SHORT = {"gan": 45, "wgan-gp": 45, "r3gan": 45}


def latents(n: int = 700, seed: int = 0) -> Tensor:
    """Two clusters in three dimensions."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randint(2, (n, 1), generator=generator) * 4.0
    return centre + torch.randn(n, 3, generator=generator)


def options(method: str) -> dict[str, Any]:
    """Give a short fit, where it has steps."""
    if method in ("gmm", "gaussian", "kde"):
        return {}
    return {"steps": SHORT.get(method, 130), "batch_size": 64}


def fit(method: str, x: Tensor | LatentStore | None = None, **arguments: Any) -> LatentSampler:
    x = latents() if x is None else x
    return fit_latent_sampler(None, x, method=method, **(options(method) | arguments))


class Ended(BaseException):
    """What ends a fit from outside."""


@pytest.fixture
def at_every_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write whenever there is something to write."""
    monkeypatch.setattr("latentfit.checkpoint.SECONDS", 0.0)


def ends_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End a fit once its checkpoint was written so often."""
    from latentfit.checkpoint import Checkpoint

    write, count = Checkpoint.write, [0]

    def counting(self: Checkpoint) -> None:
        write(self)
        count[0] += 1
        if count[0] == writes:
            raise Ended

    monkeypatch.setattr(Checkpoint, "write", counting)


def assert_same(one: LatentSampler, other: LatentSampler) -> None:
    mine, theirs = one._plugin.state_dict(), other._plugin.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert one.history == other.history
    assert one.info["fit"] == other.info["fit"]
    assert torch.equal(one.sample(9, seed=1), other.sample(9, seed=1))


@every
@pytest.mark.parametrize("writes", [2, 33])
@pytest.mark.usefixtures("at_every_offer")
def test_a_fit_that_was_ended_goes_on_bit_for_bit(
    method: str, writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(method)
    with monkeypatch.context() as patch:
        ends_after(writes, patch)
        with contextlib.suppress(Ended):  # some write less often
            fit(method, checkpoint=tmp_path)
    assert_same(fit(method, checkpoint=tmp_path), whole)


@pytest.mark.parametrize("method", ["realnvp", "flow-matching", "r3gan", "gmm"])
@pytest.mark.usefixtures("at_every_offer")
def test_it_goes_on_where_it_was(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        ends_after(4, patch)
        with pytest.raises(Ended):
            fit(method, checkpoint=tmp_path)
    known: list[bool] = []
    restore, steps, made = Phase.restore, Run.steps, [0]

    def counting(self: Run, *arguments: Any) -> Any:
        for step in steps(self, *arguments):
            made[0] += 1
            yield step

    monkeypatch.setattr(Run, "steps", counting)
    fit(method)
    whole, made[0] = made[0], 0

    def watching(self: Phase, load: Any) -> None:
        known.append(self.state is not None)
        restore(self, load)

    monkeypatch.setattr(Phase, "restore", watching)
    fit(method, checkpoint=tmp_path)
    assert known[0]
    assert (
        method == "gmm" or made[0] == whole - {"realnvp": 4, "flow-matching": 3, "r3gan": 3}[method]
    )
    known.clear()
    fit(method, checkpoint=tmp_path)  # all of it is over
    assert known
    assert all(known)


# --- rows in other places ---


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    x = latents(4000)
    fit_latent_sampler(lambda rows: rows, x, method="gaussian", store=tmp_path / "store")
    return LatentStore(tmp_path / "store")


@pytest.mark.parametrize("method", ["realnvp", "flow-matching", "wgan-gp"])
@pytest.mark.parametrize("writes", [3, 23])
@pytest.mark.usefixtures("at_every_offer")
def test_rows_that_are_read_as_they_are_needed(
    method: str, writes: int, store: LatentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfit.preparing.MEMORY", 0)
    whole = fit(method, store)
    with monkeypatch.context() as patch:
        ends_after(writes, patch)
        with pytest.raises(Ended):
            fit(method, store, checkpoint=tmp_path / "checkpoint")
    assert_same(fit(method, store, checkpoint=tmp_path / "checkpoint"), whole)


@pytest.mark.usefixtures("at_every_offer")
def test_a_fit_with_a_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"condition": torch.arange(700) % 3}
    whole = fit("realnvp", **labels)
    with monkeypatch.context() as patch:
        ends_after(20, patch)
        with pytest.raises(Ended):
            fit("realnvp", checkpoint=tmp_path, **labels)
    continued = fit("realnvp", checkpoint=tmp_path, **labels)
    drawn = (one.sample(9, seed=1, condition=2) for one in (continued, whole))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("taken", [0, 1, 6, 7, 8, 30])
@pytest.mark.parametrize("n", [5, 49, 50])
def test_minibatches_go_on_where_they_were(n: int, taken: int) -> None:
    # The generator gives other numbers in between, as a loss takes them.
    def made(seed: int) -> tuple[TensorBatches, torch.Generator]:
        generator = torch.Generator().manual_seed(seed)
        return TensorBatches((torch.arange(n), torch.arange(n) * 2), 7, generator), generator

    def drawn(batches: TensorBatches, generator: torch.Generator, n: int) -> list[list[int]]:
        parts = []
        for _ in range(n):
            x, doubled = next(batches)
            assert torch.equal(doubled, 2 * x)
            parts.append(x.tolist() + torch.randint(99, (2,), generator=generator).tolist())
        return parts

    batches, generator = made(0)
    drawn(batches, generator, taken)
    state, random_state = batches.state(), generator.get_state()
    expected = drawn(batches, generator, 20)
    others, other_generator = made(1)
    drawn(others, other_generator, 3)
    others.restore(state)
    other_generator.set_state(random_state)
    assert drawn(others, other_generator, 20) == expected


@pytest.mark.parametrize("n", [5, 49, 50])
@pytest.mark.parametrize("taken", [0, 1, 6, 7, 8, 30])
def test_minibatches_of_a_generator_of_their_own_go_on_alone(n: int, taken: int) -> None:
    def made(seed: int) -> TensorBatches:
        return TensorBatches((torch.arange(n),), 7, torch.Generator().manual_seed(seed))

    def drawn(batches: TensorBatches, count: int) -> list[list[int]]:
        return [next(batches)[0].tolist() for _ in range(count)]

    batches, others = made(0), made(1)
    drawn(batches, taken)
    others.restore(batches.state())
    assert drawn(others, 20) == drawn(batches, 20)


class Dropping(Sampler):
    """Its loss and its network draw from the global generators, its start from all three."""

    has_density = True

    def build(self, dim: int, n: int) -> None:
        self.network = nn.Sequential(nn.Linear(dim, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.register_buffer("start", torch.zeros(dim))

    def fit(self, rows: Tensor, held_out: Tensor, run: Run) -> None:
        def work() -> dict[str, Any]:
            return {"start": rows.mean(0) + torch.rand(rows.shape[1]), "kind": "uniform"}

        def load(result: dict[str, Any]) -> None:
            self.start.copy_(result["start"])
            result["start"].add_(99)  # what it is given is its own

        run.once("start", work, load)

        def loss(x: Tensor) -> Tensor:
            noise = random.random() + float(np.random.rand())  # noqa: NPY002
            return (self.network(x - self.start)[:, 0] - noise).square().mean()

        train(self, loss, rows, held_out, run, steps=60, learning_rate=1e-2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, len(self.start), generator=generator) + self.start

    def log_prob(self, rows: Tensor) -> Tensor:
        return self.network(rows)[:, 0]


@pytest.mark.parametrize("writes", [2, 8])
@pytest.mark.usefixtures("at_every_offer")
def test_a_plugin_that_draws_from_the_global_generators(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted(plan: Plan) -> LatentSampler:
        return fit_class(Dropping, latents(), method="dropping", plan=plan)

    whole = fitted(Plan())
    with monkeypatch.context() as patch:
        ends_after(writes, patch)
        with pytest.raises(Ended):
            fitted(Plan(checkpoint=tmp_path))
    assert_same(fitted(Plan(checkpoint=tmp_path)), whole)
    assert_same(fitted(Plan(checkpoint=tmp_path)), whole)


@pytest.mark.usefixtures("at_every_offer")
def test_parts_that_a_clock_decided_on_are_not_mistaken_for_others(tmp_path: Path) -> None:
    fit("gmm", checkpoint=tmp_path)
    short = fit("gmm", checkpoint=tmp_path, max_seconds=1e-6)
    assert short.sample(9, seed=0).isfinite().all()
    assert_same(fit("gmm", checkpoint=tmp_path), fit("gmm"))


def test_what_cannot_be_written_is_told_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("latentfit.checkpoint.write_tensors", full)
    with pytest.warns(RuntimeWarning, match=r"can't be written: .*No space left.* goes on"):
        fit("realnvp", checkpoint=tmp_path)


def test_a_folder_that_goes_away_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = Phase.offer

    def removing(self: Phase, state: Any) -> None:
        shutil.rmtree(tmp_path, ignore_errors=True)
        offer(self, state)

    monkeypatch.setattr(Phase, "offer", removing)
    fit("realnvp", checkpoint=tmp_path)
    assert (tmp_path / "realnvp.checkpoint.safetensors").exists()


def test_what_killed_writes_left_is_removed(tmp_path: Path) -> None:
    litter = tmp_path / ".realnvp.checkpoint.safetensors.01234567.tmp"
    litter.write_bytes(b"half")
    fit("realnvp", checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["realnvp.checkpoint.safetensors"]


def test_a_new_seed_each_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"Expected a seed with checkpoint="):
        fit("gaussian", checkpoint=tmp_path, seed=None)


def test_every_name_has_a_file_of_its_own_in_the_folder(tmp_path: Path) -> None:
    plain = ["gmm", "spline-ar", "gmm, again", "a_b"]
    odd = [
        "../a",
        "/a",
        "..",
        ".",
        "a/b",
        "a\\b",
        "a\0",
        "*",
        "[a]",
        "é",
        "x" * 300,
        "x" * 301,
        "a%2Fb",
    ]
    paths = [checkpoint_path(tmp_path, name) for name in (*plain, *odd)]
    assert [path.name for path in paths[: len(plain)]] == [
        f"{name}.checkpoint.safetensors" for name in plain
    ]
    assert len(set(paths)) == len(paths)
    for path in paths:
        path.write_bytes(b"")
    assert set(tmp_path.iterdir()) == set(paths)
    (tmp_path / "mine").write_bytes(b"")
    remove_checkpoints(tmp_path, [*plain, *odd, "../mine"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_auto_does_not_take_another_fits_checkpoint_for_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "gmm.checkpoint.safetensors"
    fit("realnvp", checkpoint=tmp_path)
    (tmp_path / "realnvp.checkpoint.safetensors").rename(path)
    with pytest.raises(OptionError, match="another method"):
        fit_latent_sampler(None, latents(), method="auto", methods=("gmm",), checkpoint=tmp_path)


@pytest.mark.filterwarnings("ignore:The time for the fit")
@pytest.mark.usefixtures("at_every_offer")
def test_auto_goes_on_with_what_its_candidates_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"methods": ("gmm", "realnvp"), "max_seconds": 12.0, "checkpoint": tmp_path}
    with monkeypatch.context() as patch:
        ends_after(2, patch)
        with pytest.raises(Ended):
            fit_latent_sampler(None, latents(), method="auto", **arguments)
    assert (tmp_path / "gmm.checkpoint.safetensors").exists()
    sampler = fit_latent_sampler(None, latents(), method="auto", **arguments)
    assert {row["method"] for row in sampler.info["ranking"]} == {"gmm", "realnvp"}
    assert not any("error" in row for row in sampler.info["ranking"])


# --- what ends a fit ---

KILLED = """
    import sys, torch
    from latentfit import checkpoint, fit_latent_sampler
    checkpoint.SECONDS = 0.01
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)).cumsum(1)
    print("started", flush=True)
    sampler = fit_latent_sampler(None, x, method=sys.argv[1], steps=250, checkpoint="checkpoint")
    sampler.save("sampler.safetensors")
"""


@pytest.mark.parametrize("method", ["realnvp", "r3gan"])
def test_kills_at_any_instant_cost_nothing_but_time(method: str, tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text("\n".join(line[4:] for line in KILLED.splitlines()))
    at_random = random.Random(0)
    kills = 0
    while kills < 50:
        process = subprocess.Popen(
            [sys.executable, script, method], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        if kills < 4:
            time.sleep(at_random.uniform(0.1, 1.0))
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert kills
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)).cumsum(1)
    whole = fit_latent_sampler(None, x, method=method, steps=250)
    continued = load_sampler(tmp_path / "sampler.safetensors")
    assert torch.equal(continued.sample(9, seed=0), whole.sample(9, seed=0))
    left = [path.name for path in (tmp_path / "checkpoint").iterdir()]
    assert [name for name in left if not name.endswith(".tmp")] == [
        f"{method}.checkpoint.safetensors"
    ]


@pytest.mark.filterwarnings("ignore:The time for the fit")
@pytest.mark.usefixtures("at_every_offer")
def test_time_before_the_end_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"checkpoint": tmp_path, "max_seconds": 3.0, "steps": 10**9, "layers": 2}
    with monkeypatch.context() as patch:
        ends_after(10, patch)
        with pytest.raises(Ended):
            fit("realnvp", **arguments)
    path = tmp_path / "realnvp.checkpoint.safetensors"
    tensors, header = read_tensors(path, CHECKPOINT)
    header["state"]["present"]["run"]["seconds"] = 2.5
    write_tensors(path, tensors, header)
    began = time.monotonic()
    sampler = fit("realnvp", **arguments)
    assert time.monotonic() - began < 2.5
    assert sampler.info["seconds"] > 2.5
    assert sampler.info["fit"]["stopped_by"] == "max_seconds"


# --- files that are not this fit's ---


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"seed": 1}, "seed: 0, here 1"),
        ({"batch_size": 65}, "batch_size: 64, here 65"),
        ({"layers": 3}, "options"),
        ({"transform": "none"}, "latents' SHA-256"),
        ({"validation": 0.2}, "latents"),
        ({"x": latents(700, seed=1)}, "latents' SHA-256"),
        ({"condition": torch.arange(700) % 3}, "latents' SHA-256"),
    ],
    ids=str,
)
def test_another_fit_is_refused_and_the_file_stays(
    changed: dict[str, Any], named: str, tmp_path: Path
) -> None:
    fit("realnvp", checkpoint=tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    with pytest.raises(OptionError, match="checkpoint of this fit") as told:
        fit("realnvp", checkpoint=tmp_path, **changed)
    assert named in str(told.value)
    assert path.read_bytes() == before


def test_more_time_is_no_other_fit(tmp_path: Path) -> None:
    fit("realnvp", checkpoint=tmp_path)
    fit("realnvp", checkpoint=tmp_path, max_seconds=600)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_damaged_file_is_told(at: float, tmp_path: Path) -> None:
    fit("realnvp", checkpoint=tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    for damaged in (content, content[: int(at * len(content))], content[:5]):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"Delete it to start anew\.$") as caught:
            fit("realnvp", checkpoint=tmp_path)
        assert "save it anew" not in str(caught.value)


@pytest.mark.parametrize("over", [True, False])
@pytest.mark.parametrize("change", ["left out", "shape", "dtype", "place", "text"])
def test_a_state_that_does_not_fit_is_told(
    change: str, over: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if over:
        fit("realnvp", checkpoint=tmp_path)
    else:
        monkeypatch.setattr("latentfit.checkpoint.SECONDS", 0.0)
        with monkeypatch.context() as patch:
            ends_after(5, patch)
            with pytest.raises(Ended):
                fit("realnvp", checkpoint=tmp_path)
    (path,) = tmp_path.iterdir()
    tensors, header = read_tensors(path, CHECKPOINT)
    names = sorted(name for name in tensors if json.loads(name)[-3:-1] == ["state", "module"])
    name = names[0]
    if change == "left out":
        del tensors[name]
    elif change == "shape":
        tensors[name] = torch.cat((tensors[name], tensors[name]))
    elif change == "dtype":
        tensors[name] = tensors[name].double()
    elif change == "place":
        tensors[json.dumps(["nowhere", "x"])] = tensors.pop(name)
    else:
        tensors["no JSON"] = tensors.pop(name)
    write_tensors(path, tensors, header)
    with pytest.raises(FileFormatError, match="Delete it to start anew"):
        fit("realnvp", checkpoint=tmp_path)


def test_a_sampler_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "gmm.checkpoint.safetensors"
    fit("gmm").save(path)
    before = path.read_bytes()
    with pytest.raises(FileFormatError, match="expected the checkpoint of a fit.* another folder"):
        fit("gmm", checkpoint=tmp_path)
    assert path.read_bytes() == before


def test_a_checkpoint_is_no_sampler(tmp_path: Path) -> None:
    fit("realnvp", checkpoint=tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(FileFormatError, match=r"expected a sampler; .* checkpoint="):
        load_sampler(path)


@pytest.mark.parametrize("wrong", [3, True, b"\xff", ["a"], "a file/below"], ids=str)
def test_what_is_no_folder_is_refused(
    wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a file").write_text("")
    with pytest.raises(OptionError, match="Expected checkpoint as the path of a folder"):
        fit("gaussian", checkpoint=wrong)


def test_the_commands_checkpoint_is_removed_once_the_sampler_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from latentfit.cli import cli

    monkeypatch.chdir(tmp_path)
    torch.save(latents(), "z.pt")
    command = ["fit", "--latents", "z.pt", "-m", "realnvp", "-o", "steps=9", "--checkpoint", "c"]
    done = CliRunner().invoke(cli, [*command, "--out", "absent/s.safetensors"])
    assert done.exit_code != 0
    done = CliRunner().invoke(cli, [*command, "--out", "s.safetensors"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.safetensors", "z.pt"]
