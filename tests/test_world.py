"""The user's world is as it was: after each entry point, and after one that an exception ends.

Run as a script it goes through all entry points, for the test of the files that they leave.
"""

import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import sklearn
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from latentfit import (
    LatentSampler,
    LatentStore,
    diagnose,
    fit_latent_sampler,
    list_benchmarks,
    list_samplers,
    load_sampler,
    metrics,
)
from latentfit.errors import LatentfitError
from latentfit.registry import load_sampler_class
from latentfit.testing import run_checks

METHODS = [info.name for info in list_samplers() if info.distribution == "latentfit"]
Snapshot = dict[str, Any]


def digest(*parts: Any) -> str:
    """Hash tensors, arrays and what has a repr."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().numpy()
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()[:12]


def process() -> Snapshot:
    """What belongs to the whole process."""
    names = [None, *sorted(logging.root.manager.loggerDict)]
    keys: Any = np.random.get_state()  # noqa: NPY002 - the global state is what is meant
    found: Snapshot = {
        "random": digest(random.getstate()),
        "numpy.random": digest(keys[1], keys[0], keys[2:]),
        "torch's generator": digest(torch.get_rng_state()),
        "default dtype": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "anomaly detection": torch.is_anomaly_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "numpy errors": np.geterr(),
        "warnings filters": (list(warnings.filters), warnings.showwarning),
        "sklearn": sklearn.get_config(),
        "matplotlib": digest(sorted(matplotlib.rcParams.items())),
        "working directory": os.getcwd(),
        "files there": sorted(map(str, Path().rglob("*"))),
        "sys": (list(sys.path), list(sys.argv), sys.getrecursionlimit()),
        "streams": (sys.stdout, sys.stderr, sys.stdin, sys.excepthook, sys.displayhook),
        "tracing": (sys.gettrace(), sys.getswitchinterval()),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "running threads": threading.active_count(),
    }
    found |= {f"os.environ[{name!r}]": value for name, value in os.environ.items()}
    for logger in map(logging.getLogger, names):
        state = (logger.level, list(logger.handlers), logger.propagate, logger.disabled)
        found[f"logger {logger.name}"] = state
    return found


def module(name: str, whole: nn.Module) -> Snapshot:
    """All of a module that a user could notice."""
    found: Snapshot = {}
    for path, part in whole.named_modules():
        hooks = {k: len(v) for k, v in vars(part).items() if k.endswith("_hooks") and v is not None}
        found[f"{name}.{path}"] = (part.training, hooks, sorted(vars(part)))
    for path, tensor in (*whole.named_parameters(), *whole.named_buffers()):
        grad = None if tensor.grad is None else digest(tensor.grad)
        state = (digest(tensor), grad, tensor.requires_grad, tensor.device, tensor.dtype)
        found[f"{name}.{path} (tensor)"] = (*state, id(tensor), tensor.data_ptr())
    return found


class User:
    """What a user has at hand, in states of their own choice."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Sequential(
                nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(), nn.Linear(4, 3))
            )
            self.decoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
            self.data = torch.randn(40, 5)
        for network in (self.encoder, self.decoder):
            network[1].eval()
            network[0].weight.requires_grad_(False)
            network[0].register_forward_hook(lambda *_: None)
            for parameter in network.parameters():
                parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        self.labels = torch.arange(40) % 2
        self.loader = DataLoader(
            TensorDataset(self.data, self.labels),
            batch_size=8,
            shuffle=True,
            generator=torch.Generator().manual_seed(5),
        )
        self.latents = self.data[:, :3].clone()
        self.array = self.latents.numpy().copy()

    def snapshot(self) -> Snapshot:
        """What of it must stay."""
        states = [s.generator.get_state() for s in (self.loader, self.loader.sampler)]  # type: ignore[attr-defined]
        return {
            **module("encoder", self.encoder),
            **module("decoder", self.decoder),
            "dataset": (digest(self.data, self.labels, self.latents, self.array)),
            "loader's generator": digest(*states),
        }


@contextmanager
def untouched(*snapshots: Callable[[], Snapshot]) -> Iterator[None]:
    """Take snapshots before and after, whatever comes out of the block, and name what changed."""
    before = {name: value for take in snapshots for name, value in take().items()}
    try:
        yield
    finally:
        after = {name: value for take in snapshots for name, value in take().items()}
        changed = {
            name: (before.get(name, "nothing"), after.get(name, "nothing"))
            for name in before.keys() | after.keys()
            if before.get(name, "nothing") != after.get(name, "nothing")
        }
        # A logger that an import makes is nobody's.
        new = [name for name in changed if name.startswith("logger ") and name not in before]
        for name in new:
            del changed[name]
        assert not changed


@contextmanager
def of_their_own() -> Iterator[None]:
    """Settings that are not the defaults: who sets one to its default is found out, too."""
    handler = logging.NullHandler()
    level, precision = logging.root.level, torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(np.errstate(all="raise"))
        stack.enter_context(sklearn.config_context(assume_finite=True))
        stack.enter_context(matplotlib.rc_context({"font.size": 7}))
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, cache_enabled=False))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.callback(torch.set_float32_matmul_precision, precision)
        stack.callback(torch.use_deterministic_algorithms, False)
        stack.callback(logging.root.setLevel, level)
        stack.callback(logging.root.removeHandler, handler)
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("high")
        torch.use_deterministic_algorithms(True)
        warnings.filterwarnings("error", message="nobody says this")
        logging.root.setLevel(logging.DEBUG)
        logging.root.addHandler(handler)
        yield


Options = Callable[[str], dict[str, Any]]
Ready = Callable[[], object]


def fitted(user: User, method: str, options: Options) -> LatentSampler:
    return fit_latent_sampler(
        None, user.latents, method=method, decoder=user.decoder, batch_size=16, **options(method)
    )


def fitting(user: User, method: str, options: Options) -> Ready:
    conditional = method != "auto" and "classes" in load_sampler_class(method).conditions
    return lambda: fit_latent_sampler(
        user.encoder,
        user.loader,
        method=method,
        decoder=user.decoder,
        condition="labels" if conditional else None,
        validation=0.3,
        batch_size=16,
        **options(method),
    )


def using(user: User, method: str, options: Options) -> Ready:
    sampler, path = fitted(user, method, options), user.folder / f"{method}.safetensors"
    sampler.save(path)

    def use() -> None:
        sampler.sample(9)
        sampler.generate(9, seed=1)
        sampler.decode(user.array)
        if sampler.has_density:
            sampler.log_prob(user.latents)
            sampler.log_prob(user.array)
        sampler.save(path)
        load_sampler(path, decoder=user.decoder).sample(3)

    return use


def storing(user: User, options: Options) -> Ready:
    def store() -> None:
        given: dict[str, Any] = {"method": "maf", "batch_size": 16, **options("maf")}
        path, kept = user.folder / "store", user.folder / "fit"
        fit_latent_sampler(user.encoder, user.data, store=path, checkpoint=kept, **given)
        latents = LatentStore(path)
        latents.verify()
        fit_latent_sampler(None, latents, **given)
        diagnose(latents)

    return store


def publishing(user: User, options: Options) -> Ready:
    sampler, path = fitted(user, "gaussian", options), user.folder / "card"

    def publish() -> None:
        sampler.save_pretrained(path, dataset="none")
        LatentSampler.from_pretrained(path, decoder=user.decoder).generate(3)

    return publish


def measuring(user: User) -> None:
    metrics.frechet_distance(user.latents, user.array + 1)
    metrics.c2st(user.latents, user.array + 1)
    metrics.energy_distance(user.latents, user.array + 1)
    metrics.c2st_interval(user.latents, user.array + 1)
    metrics.data_copying(user.latents, user.array, user.array + 1, cells=2)
    metrics.density_coverage(user.latents, user.array + 1)
    metrics.kernel_distance(user.latents, user.array + 1)
    metrics.precision_recall(user.latents, user.array + 1)
    metrics.sliced_wasserstein(user.latents, user.array + 1)


def looking(user: User) -> None:
    found = diagnose(user.latents, validation=user.array)
    found.save_figure(user.folder / "figure.png")
    str(found), found.to_dict()


def checking() -> None:
    names = ("samples_have_shape_and_dtype", "fit_is_reproducible", "state_is_complete")
    assert len(list(run_checks("gaussian", only=names))) == 3


def listing() -> None:
    assert list_samplers()
    assert list_benchmarks()


def entry_points(user: User, options: Options) -> dict[str, Callable[[], Ready]]:
    """What can be called, each made ready before the world is looked at."""
    found: dict[str, Callable[[], Ready]] = {}
    for method in (*METHODS, "auto"):
        found[f"fit {method}"] = lambda method=method: fitting(user, method, options)  # type: ignore[misc]
    for method in METHODS:
        found[f"use {method}"] = lambda method=method: using(user, method, options)  # type: ignore[misc]
    return found | {
        "store": lambda: storing(user, options),
        "folder": lambda: publishing(user, options),
        "metrics": lambda: lambda: measuring(user),
        "diagnose": lambda: lambda: looking(user),
        "conformance suite": lambda: checking,
        "list": lambda: listing,
    }


class Ending(TorchFunctionMode):
    """Count calls of torch, and raise an error at one of them."""

    def __init__(self, at: int = -1, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.calls, self.at, self.error = 0, at, error

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # The ends of torch's own contexts: nobody is safe from an error in the midst of these.
        self.calls += not getattr(func, "__name__", "").startswith(("_set_", "set_"))
        if self.calls == self.at:
            self.at = -1
            raise self.error("midway")
        return func(*args, **(kwargs or {}))


NAMES = list(entry_points(None, dict))  # type: ignore[arg-type]


def no_grad_left(user: User) -> None:
    user.encoder[0].bias.grad = None


FAULTS: dict[str, Callable[[User], object]] = {
    "random": lambda _: random.random(),
    "numpy.random": lambda _: np.random.rand(),  # noqa: NPY002
    "torch's generator": lambda _: torch.rand(1),
    "default dtype": lambda _: torch.set_default_dtype(torch.float64),
    "grad mode": lambda _: torch.set_grad_enabled(False),
    "deterministic algorithms": lambda _: torch.use_deterministic_algorithms(True),
    "threads": lambda _: torch.set_num_threads(2),
    "matmul precision": lambda _: torch.set_float32_matmul_precision("medium"),
    "autocast": lambda _: torch.set_autocast_enabled("cpu", True),
    "numpy errors": lambda _: np.seterr(all="raise"),
    "warnings filters": lambda _: warnings.simplefilter("always"),
    "sklearn": lambda _: sklearn.set_config(assume_finite=True),
    "matplotlib": lambda _: matplotlib.rc("font", size=5),
    "working directory": lambda _: (os.mkdir("sub"), os.chdir("sub")),
    "files there": lambda _: Path("litter").touch(),
    "sys": lambda _: sys.path.append("nowhere"),
    "signals": lambda _: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
    "os.environ['LITTER']": lambda _: os.environ.update(LITTER="1"),
    "logger root": lambda _: logging.root.setLevel(logging.CRITICAL),
    "encoder.1": lambda user: user.encoder.train(),
    "encoder.0": lambda user: user.encoder[0].register_forward_pre_hook(print),
    "encoder.1.running_mean (tensor)": lambda user: user.encoder[1].running_mean.add_(1),
    "encoder.0.bias (tensor)": no_grad_left,
    "decoder.0.weight (tensor)": lambda user: user.decoder[0].weight.requires_grad_(True),
    "dataset": lambda user: user.array.fill(0),
    "loader's generator": lambda user: next(iter(user.loader)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_change_of_the_world_is_seen(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("LITTER", "0")
    user, before = User(tmp_path), (np.geterr(), torch.get_num_threads())
    try:
        with ExitStack() as stack:
            stack.enter_context(of_their_own())
            stack.callback(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
            stack.callback(torch.set_grad_enabled, True)
            with torch.random.fork_rng():
                torch.set_default_dtype(torch.float32)
                torch.use_deterministic_algorithms(False)
                np.seterr(all="ignore")
                sklearn.set_config(assume_finite=False)
                torch.set_autocast_enabled("cpu", False)
                states = random.getstate(), np.random.get_state()  # noqa: NPY002
                stack.callback(random.setstate, states[0])
                stack.callback(np.random.set_state, states[1])
                with pytest.raises(AssertionError) as told, untouched(process, user.snapshot):
                    FAULTS[name](user)
    finally:
        np.seterr(**before[0])
        torch.set_num_threads(before[1])
    assert repr(name) in str(told.value)


def prepared(
    name: str, tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[User, Callable[[], object]]:
    """A user in a folder of their own, and an entry point that is ready to be called there."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    user = User(tmp_path)
    return user, entry_points(user, tiny)[name]()


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_point_leaves_the_world_as_it_was(
    name: str, tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, ready = prepared(name, tiny, tmp_path, monkeypatch)
    with of_their_own(), untouched(process, user.snapshot):
        ready()
    with torch.inference_mode(), untouched(process, user.snapshot):
        ready()


CUTS = {0.1: KeyboardInterrupt, 0.5: RuntimeError, 0.95: KeyboardInterrupt}
TORCHLESS = ("list", "metrics")


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # safetensors', under a mode
@pytest.mark.parametrize("name", [name for name in NAMES if name not in TORCHLESS])
def test_an_entry_point_that_is_ended_midway_leaves_it_so_too(
    name: str, tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, ready = prepared(name, tiny, tmp_path, monkeypatch)
    with Ending() as whole:
        ready()
    for share, error in CUTS.items():
        cut = Ending(1 + int(share * whole.calls), error)
        # What was kept in a folder is not done again; and safetensors, the ranking of "auto" and the results
        # of checks take some errors; of a file they are the file's. Ctrl-C is nobody's to take.
        must = name.startswith("fit ") and name != "fit auto"
        swallowed = name == "store" or not (must or error is KeyboardInterrupt)
        told: Any = (
            suppress(error, LatentfitError) if swallowed else pytest.raises(error, match="midway")
        )
        with of_their_own(), told, untouched(process, user.snapshot), cut:
            ready()
        assert not list(tmp_path.rglob("*.tmp"))
    ready()


FILES = ("home", "tmp", "here")


@pytest.mark.slow
def test_no_files_are_left_outside_of_what_was_asked_for(tiny: Options, tmp_path: Path) -> None:
    for name in (*FILES, "asked"):
        (tmp_path / name).mkdir()
    options = json.dumps({method: tiny(method) for method in (*METHODS, "auto")})
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL"))}
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    places["MPLCONFIGDIR"] = str(tmp_path / "fonts")  # matplotlib keeps a list of them
    done = subprocess.run(
        [sys.executable, "-B", __file__, str(tmp_path / "asked"), options],
        cwd=tmp_path / "here",
        env=kept | places,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "asked").iterdir())
    left = [path for name in FILES for path in (tmp_path / name).rglob("*")]
    assert not left


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    everything = entry_points(User(Path(sys.argv[1])), given.__getitem__)
    for start in everything.values():
        start()()
