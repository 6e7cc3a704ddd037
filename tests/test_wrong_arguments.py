"""Every public function against a table of wrong arguments: what the error says, and that nothing changed.

A parameter's wrong values are a pool of nasty ones, without those that it may take, and some of its own. A
new public function, or a new parameter, fails until the table has it.
"""

import importlib
import inspect
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import latentfit
from latentfit import Diagnosis, LatentSampler, LatentStore, fit_latent_sampler
from latentfit.errors import LatentfitError
from latentfit.options import describe_options, resolve_options
from latentfit.plugin import Run
from latentfit.registry import list_samplers, load_sampler_class
from latentfit.reporting import Exhibits, Report, Row

UNKNOWN = re.compile("^Unknown .*(installed: |there are )|has no option .* its options: ")
DESCRIBED = ("__name__", "shape", "dtype", "layout")
MANY = 10**5  # values, which no message may hold
MOST_CHARACTERS = 1400

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 2


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


POOL: dict[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "nan": math.nan,
    "inf": math.inf,
    "10**30": 10**30,
    "10**5000": 10**5000,  # Python refuses to print it
    "text": "3",
    "empty text": "",
    "text with \\0": "a\0b",
    "bytes": b"x",
    "[]": [],
    "{}": {},
    "set": {1, 2},
    "object": object(),
    "unprintable": Unprintable(),
    "np.float64(nan)": np.float64(math.nan),
    "np.int64(-1)": np.int64(-1),
    "array of one text": np.array("text"),
    "tensor(2.5)": torch.tensor(2.5),
    "tensor([1, 2])": torch.tensor([1, 2]),
    "complex": 1j,
    "path": Path("no") / "such" / "folder",
    "class": int,
    "lambda": lambda *_: None,
    "module without forward": nn.Module(),
    "long text": "x" * MANY,
    "long list": [0.5] * MANY,
    "large tensor": torch.zeros(MANY, 1, 1, 1, 1),
    "large array": np.zeros((MANY, 1, 1, 1, 1)),
    "array of texts": np.array([["a"], ["b"]]),
    "complex tensor": torch.zeros(9, 2, dtype=torch.complex64),
    "ragged": [[1.0], [1.0, 2.0]],
}


class Parameter:
    """What a parameter is tried with.

    Args:
        fine: The names of the pool's values that it may take.
        more: Wrong values of its own; for ``**`` parameters dicts of arguments.
        called: What a message may call it instead of its name.
        reads: Whether it is a path that is read: what the system says of it, with the path, will do.
    """

    def __init__(
        self,
        *fine: str,
        more: tuple[Any, ...] = (),
        called: tuple[str, ...] = (),
        reads: bool = False,
    ) -> None:
        assert set(fine) <= set(POOL)
        self.fine, self.more, self.called, self.reads = fine, more, called, reads

    def wrong(self) -> dict[str, Any]:
        own = {f"own {i}": value for i, value in enumerate(self.more)}
        return {name: value for name, value in POOL.items() if name not in self.fine} | own


@dataclass
class World:
    """What calls need; made once."""

    sampler: LatentSampler
    conditioned: LatentSampler
    file: Path
    folder: Path
    store: LatentStore
    diagnosis: Diagnosis


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    arguments: Any = {"method": "gaussian", "decoder": lambda z: z}
    sampler = fit_latent_sampler(None, X, store=folder / "store", **arguments)
    conditioned = fit_latent_sampler(None, X, method="gmm", components=1, condition=LABELS)
    sampler.save(folder / "file")
    sampler.save_pretrained(folder / "pretrained")
    store = LatentStore(folder / "store")
    store.moments(covariance=True)  # which are kept from here on
    return World(
        sampler, conditioned, folder / "file", folder / "pretrained", store, latentfit.diagnose(X)
    )


def unused(*_: Any) -> None:
    raise AssertionError("called too early")


def network() -> nn.Module:
    return nn.Linear(2, 2)


def trained(*networks: str, functions: tuple[str, ...]) -> dict[str, Any]:
    base: dict[str, Any] = {name: network() for name in networks}
    base |= dict.fromkeys(functions, unused)
    base |= {"rows": X, "held_out": X, "run": Run(torch.Generator())}
    return base | {"steps": 1, "learning_rate": 1e-3}


WORDS = ("text", "text with \\0", "long text")
POSITIVE = ("1.5", "10**30", "tensor(2.5)")
NONE = Parameter("None")
SIZE = Parameter("10**30", "10**5000", more=(2.0, np.True_, torch.tensor(True)))
COUNT = Parameter("0", more=(2.0, np.True_, torch.tensor(2.0), torch.tensor([2])))
SEED = Parameter("None", "0", more=(2**63, 1.0))
DEVICE = Parameter("None", *(("0",) if torch.cuda.is_available() else ()), more=("gpu", "cuda:99"))
MODEL = Parameter("None", "lambda", more=(nn.Linear, nn.ModuleList(), bytearray(b"x")))
NO_LATENTS = (torch.full((3, 2), math.nan), torch.zeros(3, 2).to_sparse(), torch.zeros(0, 2, 3))
LATENTS = Parameter(more=(torch.zeros(3, 9), *NO_LATENTS))
NUMBERS = ("tensor([1, 2])", "long list", "large tensor", "large array")
TRANSFORM = Parameter("None", more=("whiten",))
CONDITION = Parameter("0", "True", more=([0, 1, 7], [[0]], 7))
FLAG = Parameter("True", more=("no",))
MAYBE = Parameter("None", "True", more=("no",))
FEATURES = Parameter(more=([[math.nan], [1.0]], [[1.0]], np.zeros((40, 3, 3)), torch.zeros(40, 0)))
SECONDS = Parameter(*POSITIVE, more=(-0.5, "9"))
MAY_TELL = Parameter("None", *WORDS)
MEAN = Parameter(more=([0.0, 1.0], [math.inf]))
SAMPLER = Parameter(more=("no such", nn.Linear))
PROPER = Parameter(more=(nn.Linear,))
NETWORK = Parameter("module without forward", more=(nn.Linear,))
FUNCTION = Parameter("lambda", "module without forward")
ROWS = Parameter(more=(X.tolist(), X.numpy(), X.long(), X[0]))
RUN = Parameter(more=(Run,))
SHARE = Parameter("0", "True", more=(1.5, -0.5))
END = Parameter("-1", "0", "1.5", "inf", "10**30")
DATASET = Parameter(
    *NUMBERS[:1],
    *NUMBERS[2:],
    more=([X, X[:, :1]], [None], [X[0]], (1, 2), [[]], np.zeros(3, "M8[s]"), X[:20]),
    called=("latents", "batches"),
)
EVALUATED = {
    "encoder": MODEL,
    "dataset": DATASET,
    "decoder": MODEL,
    "output": Parameter(
        "None", "lambda", "module without forward", more=(1.0,), called=("features",)
    ),
    "features": Parameter("None", more=(nn.Linear, nn.ModuleList(), bytearray(b"x"))),
    "labels": Parameter("None", more=(LABELS[:-1], ["cat"] * 40)),
    "n": Parameter("10**30", "10**5000", more=(2.0, 15, np.True_)),
    "seed": SEED,
}
IMAGES = Parameter("large array", more=(np.zeros((2, 3)), torch.zeros(2, 3, 3, 2)))
REPORT = Report("t", "n", (Row("a", {"fcd": [1.0]}),))

TRAINING = {
    "rows": ROWS,
    "held_out": ROWS,
    "run": RUN,
    "steps": SIZE,
    "learning_rate": Parameter(*POSITIVE),
    "ema": Parameter("0", more=(1.5, -0.5)),
}
LOADING = {"device": DEVICE, "decoder": MODEL, "transform": TRANSFORM}
CARD = Parameter(
    more=(
        *({"license": value} for value in (3, "", b"x", [], math.nan, "\n")),
        *({"encoder": value} for value in (3, "", nn.Module())),
        *({"dataset": value} for value in (3, "", X)),
        *({"metrics": value} for value in (3, [1.0], {"FCD": "1"}, {"FCD": math.nan}, {1: 1.0})),
        *({"metrics": {"FCD": value}} for value in (True, None, 1j, [0.5] * MANY)),
        {"licence": "mit"},
    )
)
METHODS = ((), "gmm", [3], ("no such",), {"gmm": 1})
FIT = {
    "encoder": MODEL,
    "dataset": Parameter(
        *NUMBERS[:1],
        *NUMBERS[2:],
        more=([X, X[:, :1]], [None], [X[0]], (1, 2), {"a": X, "b": X}, [[]], np.zeros(3, "M8[s]")),
        called=("latents", "batches"),
    ),
    "method": Parameter(more=("no such", ["gmm"])),
    "condition": Parameter("None", more=(LABELS[:-1], ["cat"] * 40, LABELS[:, None, None])),
    "decoder": MODEL,
    "output": Parameter("None"),
    "autocast": Parameter("None", more=(torch.float32, "float32")),
    "transform": Parameter(more=("zca", latentfit.transforms.Transform)),
    "validation": Parameter("0", more=(1, -0.1, "0.1")),
    "batch_size": SIZE,
    "device": DEVICE,
    "seed": SEED,
    "progress": MAYBE,
    "max_seconds": Parameter("None", *POSITIVE, more=(-0.5, "9")),
    "store": Parameter("None", "text", "path", more=(".", "/proc/x", "\ud800")),
    "checkpoint": Parameter("None", "text", "path", more=("/proc/x", "\ud800")),
    "accelerator": Parameter("None"),
    "**options": Parameter(
        more=(
            *({"components": value} for value in (0, -1, 1.5, "3", [], True, math.nan, 1j)),
            {"component": 3},
            *({"method": "auto", "methods": value} for value in METHODS),
            *({"method": "auto", "metric": value} for value in (None, "fid", 3, [])),
        )
    ),
}

# The function with the arguments that are right, and what each parameter is tried with.
Row = tuple[Callable[[World], tuple[Callable[..., Any], dict[str, Any]]], dict[str, Parameter]]
TABLE: dict[str, Row] = {
    "fit_latent_sampler": (
        lambda w: (fit_latent_sampler, {"encoder": None, "dataset": X, "method": "gmm"}),
        FIT,
    ),
    "fit_latent_sampler with an encoder": (
        lambda w: (fit_latent_sampler, {"encoder": lambda x: x, "dataset": X, "method": "gmm"}),
        {
            "output": Parameter("None", "lambda", "module without forward", more=(1, "a.b")),
            "autocast": FIT["autocast"],
        },
    ),
    "diagnose": (
        lambda w: (latentfit.diagnose, {"latents": X}),
        {
            "latents": Parameter(*NUMBERS, more=(*NO_LATENTS, [[1.0]])),
            "validation": Parameter("None", more=LATENTS.more),
            "seed": SEED,
        },
    ),
    "load_sampler": (
        lambda w: (latentfit.load_sampler, {"path": w.file}),
        {"path": Parameter(reads=True), **LOADING},
    ),
    "list_samplers": (lambda w: (latentfit.list_samplers, {}), {"check": FLAG}),
    "LatentStore": (lambda w: (LatentStore, {}), {"path": Parameter(reads=True)}),
    "LatentStore.read": (
        lambda w: (w.store.read, {"start": 0, "stop": 1}),
        {"start": Parameter("0", more=(2, 1.0)), "stop": Parameter("0", more=(41, 1.0))},
    ),
    "LatentStore.take": (
        lambda w: (w.store.take, {}),
        {"index": Parameter("[]", "tensor([1, 2])", more=([2, 1], [40], [[1]], [1.0], ["a"]))},
    ),
    "LatentStore.parts": (
        lambda w: (w.store.parts, {}),
        {"rows": Parameter("None", "10**30", "10**5000")},
    ),
    "LatentStore.moments": (lambda w: (w.store.moments, {}), {"covariance": FLAG}),
    "LatentSampler.to": (
        lambda w: (w.sampler.to, {}),
        {"device": Parameter(*set(DEVICE.fine) - {"None"}, more=DEVICE.more)},
    ),
    "LatentSampler.sample": (
        lambda w: (w.sampler.sample, {"n": 3}),
        {"n": COUNT, "seed": SEED, "condition": NONE},
    ),
    "LatentSampler.sample of a condition": (
        lambda w: (w.conditioned.sample, {"n": 3, "condition": 0}),
        {"n": COUNT, "seed": SEED, "condition": CONDITION},
    ),
    "LatentSampler.log_prob": (
        lambda w: (w.sampler.log_prob, {"z": X}),
        {"z": LATENTS, "condition": NONE},
    ),
    "LatentSampler.log_prob of a condition": (
        lambda w: (w.conditioned.log_prob, {"z": X[:3]}),
        {"z": LATENTS, "condition": CONDITION},
    ),
    "LatentSampler.score_samples": (
        lambda w: (w.sampler.score_samples, {"z": X}),
        {"z": LATENTS, "condition": NONE},
    ),
    "LatentSampler.decode": (lambda w: (w.sampler.decode, {}), {"z": LATENTS}),
    "LatentSampler.generate": (
        lambda w: (w.sampler.generate, {"n": 3}),
        {"n": COUNT, "seed": SEED, "condition": NONE},
    ),
    "LatentSampler.save": (
        lambda w: (w.sampler.save, {}),
        {"path": Parameter("text", more=("/proc/x", "absent/x", "."), reads=True)},
    ),
    "LatentSampler.save_pretrained": (
        lambda w: (w.sampler.save_pretrained, {"directory": "folder"}),
        {
            "directory": Parameter("text", "path", more=("/proc/x",), reads=True),
            "**card": CARD,
        },
    ),
    "LatentSampler.from_pretrained": (
        lambda w: (LatentSampler.from_pretrained, {"source": w.folder}),
        {
            "source": Parameter(reads=True),
            **LOADING,
            "revision": MAY_TELL,
            "token": Parameter("None", "True", *WORDS),
            "cache_dir": Parameter("None", "text", "path"),
            "local_files_only": FLAG,
        },
    ),
    "LatentSampler.push_to_hub": (
        lambda w: (w.sampler.push_to_hub, {"repo_id": "somebody/sampler"}),
        {
            "repo_id": Parameter(*WORDS),
            "private": MAYBE,
            "token": Parameter("None", "True", *WORDS),
            "revision": MAY_TELL,
            "commit_message": Parameter(*WORDS),
            "**card": CARD,
        },
    ),
    "LatentSampler.report": (
        lambda w: (
            w.sampler.report,
            {"path": "page.html", "encoder": None, "dataset": X, "n": 16},
        ),
        {"path": Parameter("text", more=("/proc/x", "absent/x", "."), reads=True), **EVALUATED},
    ),
    "Diagnosis.__getitem__": (lambda w: (w.diagnosis.__getitem__, {}), {"name": Parameter()}),
    "Diagnosis.save_figure": (
        lambda w: (w.diagnosis.save_figure, {}),
        {"path": Parameter(more=("figure.gif", "absent/figure.svg"), reads=True)},
    ),
    "metrics.frechet_distance": (
        lambda w: (latentfit.metrics.frechet_distance, {"x": X, "y": X}),
        {"x": FEATURES, "y": FEATURES},
    ),
    "metrics.gaussian_moments": (
        lambda w: (latentfit.metrics.gaussian_moments, {}),
        {"x": FEATURES},
    ),
    "metrics.frechet_distance_from_moments": (
        lambda w: (
            latentfit.metrics.frechet_distance_from_moments,
            {"mean_x": [0.0], "cov_x": [[1.0]], "mean_y": [0.0], "cov_y": [[1.0]]},
        ),
        dict.fromkeys(("mean_x", "cov_x", "mean_y", "cov_y"), MEAN),
    ),
    "metrics.c2st": (
        lambda w: (latentfit.metrics.c2st, {"x": X, "y": X}),
        {"x": FEATURES, "y": FEATURES, "seed": SEED},
    ),
    "metrics.c2st_interval": (
        lambda w: (latentfit.metrics.c2st_interval, {"x": X, "y": X}),
        {
            "x": FEATURES,
            "y": FEATURES,
            "level": Parameter(more=(1, 1.0, -0.5, "0.95")),
            "seed": SEED,
        },
    ),
    "metrics.energy_distance": (
        lambda w: (latentfit.metrics.energy_distance, {"x": X, "y": X}),
        {"x": FEATURES, "y": FEATURES},
    ),
    "metrics.kernel_distance": (
        lambda w: (latentfit.metrics.kernel_distance, {"x": X, "y": X}),
        {
            "x": FEATURES,
            "y": FEATURES,
            "bandwidth": Parameter("None", *POSITIVE, more=(-0.5, "1")),
        },
    ),
    "metrics.sliced_wasserstein": (
        lambda w: (latentfit.metrics.sliced_wasserstein, {"x": X, "y": X}),
        {
            "x": FEATURES,
            "y": FEATURES,
            "projections": Parameter(more=(2.0, np.True_, 10**6 + 1)),
            "seed": SEED,
        },
    ),
    "metrics.precision_recall": (
        lambda w: (latentfit.metrics.precision_recall, {"real": X, "fake": X}),
        {"real": FEATURES, "fake": FEATURES, "k": Parameter(more=(40, 2.0))},
    ),
    "metrics.data_copying": (
        lambda w: (latentfit.metrics.data_copying, {"train": X, "held_out": X, "samples": X}),
        {
            **dict.fromkeys(("train", "held_out", "samples"), FEATURES),
            "cells": Parameter(more=(41, 2.0)),
            "seed": SEED,
        },
    ),
    "metrics.density_coverage": (
        lambda w: (latentfit.metrics.density_coverage, {"real": X, "fake": X}),
        {"real": FEATURES, "fake": FEATURES, "k": Parameter(more=(40, 2.0))},
    ),
    "reporting.evaluate": (
        lambda w: (
            latentfit.reporting.evaluate,
            {"samplers": {"a": w.sampler}, "encoder": None, "dataset": X, "n": 16},
        ),
        {"samplers": Parameter(more=({"a": 3}, {3: 3})), **EVALUATED},
    ),
    "reporting.draw_grid": (
        lambda w: (latentfit.reporting.draw_grid, {"images": np.zeros((2, 3, 3))}),
        {"images": IMAGES, "columns": SIZE},
    ),
    "reporting.find_neighbours": (
        lambda w: (
            latentfit.reporting.find_neighbours,
            {"row": "a", "images": np.zeros((2, 3, 3)), "train": np.zeros((2, 3, 3))},
        ),
        {"row": Parameter(*WORDS), "images": IMAGES, "train": IMAGES, "shown": SIZE},
    ),
    "reporting.map_latents": (
        lambda w: (latentfit.reporting.map_latents, {"name": "a", "real": X, "sampled": {"b": X}}),
        {
            "name": Parameter(*WORDS),
            "real": Parameter(*NUMBERS, "complex tensor", more=(X[:7], *NO_LATENTS[:1])),
            "sampled": Parameter("{}", more=({"b": X[:, :1]}, {"b": 3})),
            "labels": Parameter("None", more=(LABELS[:-1], X)),
            "seed": SEED,
        },
    ),
    "reporting.read_report": (
        lambda w: (latentfit.reporting.read_report, {}),
        {"path": Parameter(reads=True)},
    ),
    "reporting.report_of": (
        lambda w: (latentfit.reporting.report_of, {"results": {"schema": 1}}),
        {
            "results": Parameter(more=({"schema": 2}, {"schema": 1})),
            "exhibits": Parameter("None", more=(Exhibits,)),
            "name": Parameter(*WORDS, "empty text"),
        },
    ),
    "reporting.render": (
        lambda w: (latentfit.reporting.render, {}),
        {"reports": Parameter(more=([REPORT, 3], Report))},
    ),
    "reporting.write_report": (
        lambda w: (latentfit.reporting.write_report, {"path": "page.html", "reports": REPORT}),
        {
            "path": Parameter("text", more=("/proc/x", "absent/x", "."), reads=True),
            "reports": Parameter(more=([REPORT, 3], Report)),
        },
    ),
    "reporting.headline": (
        lambda w: (latentfit.reporting.headline, {}),
        {"report": Parameter(more=(Report,))},
    ),
    "reporting.exhibits_to": (
        lambda w: (latentfit.reporting.exhibits_to, {}),
        {"exhibits": Parameter(more=(Exhibits,))},
    ),
    "testing.run_checks": (
        lambda w: (latentfit.testing.run_checks, {"sampler": "gaussian"}),
        {
            "sampler": SAMPLER,
            "options": Parameter("None", "{}", more=({"no such": 1}, [("ridge", 1)])),
            "max_seconds": SECONDS,
            "only": Parameter("None", "[]", "{}", more=(["no such"], [3]), called=("checks",)),
        },
    ),
    "testing.check_sampler": (
        lambda w: (latentfit.testing.check_sampler, {"sampler": "gaussian"}),
        {
            "sampler": SAMPLER,
            "max_seconds": SECONDS,
            "**options": Parameter(more=({"no_such": 1}, {"steps": -1})),
        },
    ),
    "testing.parametrize_with_checks": (
        lambda w: (latentfit.testing.parametrize_with_checks, {"samplers": ["gaussian"]}),
        {
            "samplers": Parameter(
                "[]",
                "{}",
                more=([3], [()], [("gaussian", 3)], ["no such"]),
                called=("sampler", "options"),
            ),
            "max_seconds": SECONDS,
        },
    ),
    "plugin.train": (
        lambda w: (latentfit.plugin.train, trained("module", functions=("loss",))),
        {
            "module": NETWORK,
            "loss": FUNCTION,
            **TRAINING,
            "patience": SIZE,
            "max_norm": Parameter(*POSITIVE),
        },
    ),
    "plugin.train_adversarially": (
        lambda w: (
            latentfit.plugin.train_adversarially,
            trained("generator", "critic", functions=("draw", "critic_loss", "generator_loss")),
        ),
        {
            "generator": NETWORK,
            "critic": NETWORK,
            **dict.fromkeys(("draw", "critic_loss", "generator_loss"), FUNCTION),
            **TRAINING,
            "critic_steps": SIZE,
            "betas": Parameter(more=((0.5,), (0.5, 1.0), ("0", 0.9), (math.nan, 0.9))),
        },
    ),
    "plugin.minibatches": (
        lambda w: (
            latentfit.plugin.minibatches,
            {"rows": X, "batch_size": 4, "generator": torch.Generator()},
        ),
        {
            "rows": Parameter(
                "tensor([1, 2])",
                "large tensor",
                "complex tensor",
                more=(X.tolist(), X.numpy(), X[:0]),
            ),
            "batch_size": SIZE,
            "generator": Parameter(more=(torch.Generator, np.random.default_rng(0))),
            "context": Parameter("None", more=(X.tolist(), X.numpy(), X[0], X[:-1])),
        },
    ),
    "plugin.mixture_size": (
        lambda w: (latentfit.plugin.mixture_size, {"n": 9, "dim": 2}),
        {"n": Parameter("0", *SIZE.fine, more=(2.0,)), "dim": SIZE, "most": SIZE},
    ),
    "plugin.Interval": (
        lambda w: (latentfit.plugin.Interval, {}),
        {
            "low": Parameter(*END.fine, "np.int64(-1)", "tensor(2.5)", "10**5000"),
            "high": Parameter(*END.fine, "np.int64(-1)", "tensor(2.5)", "10**5000"),
            "open_low": FLAG,
            "open_high": FLAG,
        },
    ),
    "plugin.ParameterAverage": (
        lambda w: (latentfit.plugin.ParameterAverage, {"parameters": [], "decay": 0.5}),
        {"parameters": Parameter("[]", "{}", more=([X], X)), "decay": Parameter("0", more=(1.5,))},
    ),
    "plugin.GaussianMixture": (
        lambda w: (latentfit.plugin.GaussianMixture, {"dim": 2, "components": 2}),
        {"dim": SIZE, "components": SIZE, "context_dim": Parameter("0", *SIZE.fine)},
    ),
    "plugin.StandardNormal": (
        lambda w: (latentfit.plugin.StandardNormal, {}),
        {"dim": Parameter(*SIZE.fine)},
    ),
}

MADE_BY_LATENTFIT = {"LatentSampler", "Diagnosis", "PluginInfo", "plugin.Run", "plugin.Rows"}
# What a report is made of: records, which are checked where they are used.
RECORDS = {
    f"reporting.{name}"
    for name in (
        *("Cloud", "Curves", "Exhibits", "LatentMap", "Neighbours", "Picture", "Report", "Row"),
    )
}
# Networks, whose sizes are a plugin's options, and bases, whose arguments are those of the plugin's class.
OF_CHECKED_OPTIONS = {
    "plugin.ConvField",
    "plugin.DeepField",
    "plugin.Field",
    "plugin.FlowSampler",
    "plugin.GaussianField",
    "plugin.Sampler",
    "plugin.VelocityField",
}


def public() -> Iterator[tuple[str, Any]]:
    """All that can be called, by name: functions, constructors, and the methods of what users hold."""
    for module in ("", "metrics", "reporting", "testing", "plugin"):
        found = importlib.import_module(f"latentfit.{module}".rstrip("."))
        for name in found.__all__:
            value, told = getattr(found, name), f"{module}.{name}".lstrip(".")
            if not callable(value) or (inspect.isclass(value) and issubclass(value, Exception)):
                continue
            if told not in MADE_BY_LATENTFIT | OF_CHECKED_OPTIONS | RECORDS:
                yield told, value
            if not module and inspect.isclass(value):
                for member, method in vars(value).items():
                    if isinstance(method, classmethod):
                        method = getattr(value, member)
                    if callable(method) and (member[0] != "_" or member == "__getitem__"):
                        yield f"{told}.{member}", method


def test_the_table_has_every_public_parameter() -> None:
    missing = {}
    for name, function in public():
        if name in ("plugin.c2st", "testing.CheckResult"):  # of the metrics; a result
            continue
        parameters = {
            f"**{p.name}" if p.kind is p.VAR_KEYWORD else p.name
            for p in inspect.signature(function).parameters.values()
            if p.name != "self"
        }
        known = set(TABLE[name][1]) if name in TABLE else set()
        if parameters != known:
            missing[name] = parameters ^ known
    assert missing == {}
    assert {name.partition(" ")[0] for name in TABLE} <= {name for name, _ in public()}
    # What users derive from, and what is given to them.
    assert latentfit.transforms.__all__ == ["Moments", "Transform"]


def states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    numpys = (kind, keys.tobytes(), *rest)
    return random.getstate(), numpys, torch.get_rng_state().numpy().tobytes()


def files(*folders: Path) -> list[tuple[Path, int]]:
    found = [path for folder in folders for path in folder.rglob("*")]
    return sorted((path, path.stat().st_mtime_ns) for path in found)


def texts(value: Any) -> list[str]:
    """A value's own texts, shortened; none where Python has none, or a long one."""
    if isinstance(value, Unprintable) or (isinstance(value, int) and value > 10**40):
        return []
    if getattr(value, "ndim", 0) or (isinstance(value, list) and len(value) > 9):
        return []
    found = (repr(value), str(value), str(value).removeprefix("torch."))
    return [" ".join(text[:20].split()) for text in found if text]


def came(value: Any, depth: int = 3) -> list[str]:
    """What a message may tell of a value: its text, type, shape or dtype, or those of a member."""
    told = [type(value).__name__, *texts(value)]
    told += [str(getattr(value, what)) for what in DESCRIBED if hasattr(value, what)]
    members: list[Any] = []
    if isinstance(value, dict | set):
        members = [*value, *(value.values() if isinstance(value, dict) else ())]
    elif isinstance(value, list | tuple) or getattr(value, "ndim", 0):
        members = [value[0], value[-1]] if len(value) else []
        told += [
            f"({len(value)}",
            f"(M{', ' * (getattr(value, 'ndim', 1) > 1)}",
            str(len(value)),
            "NaN",
        ]
    else:
        return told
    return told + (
        [text for part in members for text in came(part, depth - 1)] if members else ["none"]
    )


def says(message: str, *words: str) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}", message) for word in words)


def fault(call: Callable[[], Any], name: str, value: Any, parameter: Parameter) -> str | None:
    """Call with a wrong argument, and tell what is wrong with what comes of it."""
    try:
        call()
    except LatentfitError as error:
        message = str(error)
    except OSError as error:
        is_told = str(value) in str(error) or str(Path(value).parent.absolute()) in str(error)
        return None if parameter.reads and is_told else f"raises {type(error).__name__}: {error}"
    except Exception as error:
        return f"raises {type(error).__name__}: {str(error)[:300]}"
    else:
        return "is taken"
    if len(message) > MOST_CHARACTERS:
        return f"is told in {len(message)} characters"
    if UNKNOWN.search(message):  # of a name that there is not: the choices are what is expected
        return None if says(message, name, *came(value)) else f"does not say what came: {message}"
    names = [rf"\b{called}\b" for called in (name, *parameter.called)]
    names += [re.escape(text) for text in texts(value)] if parameter.reads else []
    if "xpected" not in message:
        return f"does not say what was expected: {message}"
    if not any(re.search(called, message) for called in names):
        return f"does not name {name}: {message}"
    if (
        f"for {name}=" in message
    ):  # what an encoder returned has come, for an argument of the user's
        return None
    if not says(message.partition("got ")[2] or message, repr(name), *came(value)):
        return f"does not say what came: {message}"
    return None


@pytest.mark.filterwarnings("ignore::latentfit.errors.LatentsWarning")
@pytest.mark.parametrize(
    "name, parameter", [(name, parameter) for name, row in TABLE.items() for parameter in row[1]]
)
def test_a_wrong_argument_is_told(
    name: str, parameter: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare, parameters = TABLE[name]
    function, base = prepare(world)
    tried = parameters[parameter]
    before, there = states(), files(tmp_path, world.folder.parent)
    if parameter.startswith("**"):
        cases = [(list(given)[-1], given, list(given.values())[-1]) for given in tried.more]
    else:
        cases = [(parameter, {parameter: value}, value) for value in tried.wrong().values()]
    labels = list(tried.wrong())[-len(cases) :]
    faults = {}
    for label, (key, given, value) in zip(labels, cases, strict=True):
        arguments = {**base, **given}
        told = fault(partial(function, **arguments), key, value, tried)
        if told is None and states() != before:
            told = "changes the global random state"
        if told is None and files(tmp_path, world.folder.parent) != there:
            told = "changes files"
            there = files(tmp_path, world.folder.parent)
        if told:
            faults[label] = told
    assert not faults, "".join(f"\n{label}: {told[:400]}" for label, told in faults.items())


METHODS_HERE = [info.name for info in list_samplers()]


@pytest.mark.parametrize("method", METHODS_HERE)
def test_an_option_is_taken_or_told(method: str) -> None:
    cls = load_sampler_class(method)
    for name, option in describe_options(cls).items():
        for label, value in POOL.items():
            call = partial(resolve_options, cls, {name: value}, method=method)
            told = fault(call, name, value, Parameter())
            assert told in (None, "is taken"), f"{name}, {label}: {told}"
            if option.annotation is int:
                assert told is None or label in SIZE.fine


INTEGERS = [np.int64, np.uint8, np.array, torch.tensor]
FLOATS = [np.float32, np.float64, np.array, torch.tensor]
FLAGS = [np.bool_, np.array, torch.tensor]
RIGHT: list[tuple[str, str, Any, list[Any]]] = [
    ("diagnose", "seed", 3, INTEGERS),
    ("fit_latent_sampler", "batch_size", 16, INTEGERS),
    ("fit_latent_sampler", "seed", 3, INTEGERS),
    ("fit_latent_sampler", "validation", 0.25, FLOATS),
    ("fit_latent_sampler", "max_seconds", 50.0, FLOATS),
    ("fit_latent_sampler", "progress", False, FLAGS),
    ("fit_latent_sampler", "components", 1, INTEGERS),
    ("fit_latent_sampler", "tolerance", 0.25, FLOATS),
    ("LatentSampler.sample", "n", 5, INTEGERS),
    ("LatentSampler.sample", "seed", 5, INTEGERS),
    ("LatentSampler.sample of a condition", "condition", 1, INTEGERS),
    ("LatentSampler.log_prob of a condition", "condition", 1, INTEGERS),
    ("LatentSampler.generate", "n", 5, INTEGERS),
    ("LatentSampler.generate", "seed", 5, INTEGERS),
    ("LatentStore.read", "start", 1, INTEGERS),
    ("LatentStore.read", "stop", 5, INTEGERS),
    ("LatentStore.parts", "rows", 7, INTEGERS),
    ("LatentStore.moments", "covariance", False, FLAGS),
    ("list_samplers", "check", False, FLAGS),
    ("metrics.c2st", "seed", 5, INTEGERS),
    ("metrics.c2st_interval", "level", 0.75, FLOATS),
    ("metrics.kernel_distance", "bandwidth", 0.25, FLOATS),
    ("metrics.sliced_wasserstein", "projections", 7, INTEGERS),
    ("metrics.precision_recall", "k", 2, INTEGERS),
    ("metrics.data_copying", "cells", 1, INTEGERS),
    ("metrics.density_coverage", "k", 3, INTEGERS),
    ("plugin.mixture_size", "n", 100, INTEGERS),
    ("testing.run_checks", "max_seconds", 5.0, FLOATS),
]


def outcome(name: str, world: World, parameter: str, value: Any) -> list[Any]:
    function, base = TABLE[name][0](world)
    if "stop" in base:
        base = {"start": 0, "stop": 20}
    if "method" in base and parameter not in ("components", "tolerance"):
        base = {**base, "method": "gaussian"}
    if name.startswith("LatentSampler.") and "log_prob" not in name:
        base = {"seed": 0, **base}
    found = function(**{**base, parameter: value})
    if isinstance(found, LatentSampler):
        told = {k: v for k, v in found.info.items() if k not in ("seconds", "fit")}
        return [told, found.sample(9, seed=0).tolist()]
    if isinstance(found, Diagnosis):
        return [found.to_dict()]
    if isinstance(found, torch.Tensor):
        return [found.tolist()]
    if inspect.isgenerator(found) and name == "LatentStore.parts":
        return [part.tolist() for part in found]
    return [repr(found)] if not inspect.isgenerator(found) else []


@pytest.mark.parametrize("name, parameter, value, kinds", RIGHT)
def test_numbers_of_numpy_and_torch_are_numbers(
    name: str, parameter: str, value: Any, kinds: list[Any], world: World
) -> None:
    expected = outcome(name, world, parameter, value)
    for kind in kinds:
        assert outcome(name, world, parameter, kind(value)) == expected, kind


def test_a_batch_may_be_larger_than_any_data() -> None:
    info = fit_latent_sampler(None, X, method="gaussian", batch_size=10**30).info
    assert info["batch_size"] == 10**30


def test_a_method_that_there_is_not_is_told_with_all_that_there_are() -> None:
    with pytest.raises(LatentfitError) as e:
        fit_latent_sampler(None, X, method="atuo")
    assert all(repr(name)[1:-1] in str(e.value) for name in ("auto", *METHODS_HERE))
