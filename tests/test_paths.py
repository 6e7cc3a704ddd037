"""Paths as users name them: the home folder, a folder for a file or the reverse, and what is not there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentfit
from latentfit import LatentSampler, LatentStore, fit_latent_sampler, load_sampler
from latentfit.cli import main
from latentfit.errors import OptionError

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


def fit(**arguments: Any) -> LatentSampler:
    return fit_latent_sampler(None, X, **{"method": "gaussian", **arguments})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own; the working folder is another."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def names(folder: Path) -> list[str]:
    """What is in a folder, without what matplotlib keeps in a home of its own."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_tilde_is_the_home_folder_everywhere(kind: Callable[[str], Any], home: Path) -> None:
    sampler = fit(store=kind("~/store"), checkpoint=kind("~/checkpoint"))
    sampler.save(kind("~/sampler.safetensors"))
    sampler.save_pretrained(kind("~/pretrained"))
    latentfit.diagnose(X).save_figure(kind("~/figure.svg"))
    assert names(home) == [
        "checkpoint",
        "figure.svg",
        "pretrained",
        "sampler.safetensors",
        "store",
    ]
    assert len(LatentStore(kind("~/store"))) == 40
    assert load_sampler(kind("~/sampler.safetensors")).dim == 2
    assert LatentSampler.from_pretrained(kind("~/pretrained")).dim == 2
    assert os.listdir() == []


def test_the_command_expands_what_the_shell_left(home: Path) -> None:
    np.save(home / "z.npy", X.numpy())
    words = [
        "--latents=~/z.npy",
        "--out=~/s.safetensors",
        "-m",
        "gmm",
        "--store=~/store",
        "--quiet",
    ]
    assert main(["fit", "--checkpoint=~/fit", *words]) == 0
    assert main(["sample", "~/s.safetensors", "-n", "3", "--out=~/new.npy"]) == 0
    assert main(["score", "~/s.safetensors", "--latents=~/new.npy"]) == 0
    assert main(["info", "~/s.safetensors"]) == 0
    assert main(["diagnose", "~/store", "--figure=~/z.png"]) == 0
    assert main(["sample", "~/s.safetensors", "-n", "3", "--out=~/s.safetensors"]) == 1
    assert names(home) == ["new.npy", "s.safetensors", "store", "z.npy", "z.png"]
    assert os.listdir() == []


@pytest.mark.parametrize(
    "store, checkpoint",
    [
        ("same", "same"),
        ("same", "./same/"),
        ("same", "other/../same"),
        ("link", "same"),
        ("same", "link"),
        ("same", "same/fit"),
    ],
)
def test_a_checkpoint_in_a_stores_folder_is_refused_at_once(
    store: str, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("same")

    def encoder(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("called too early")

    with pytest.raises(OptionError, match=r"checkpoint as a folder outside the store's.*another"):
        fit_latent_sampler(encoder, X, store=store, checkpoint=checkpoint)
    assert os.listdir() == ["link"]


def test_a_checkpoint_in_the_folder_of_the_store_that_is_read_is_refused(tmp_path: Path) -> None:
    fit(store=tmp_path / "store")
    before = sorted(os.listdir(tmp_path / "store"))
    with pytest.raises(OptionError, match="checkpoint as a folder outside the store's"):
        fit_latent_sampler(None, LatentStore(tmp_path / "store"), checkpoint=tmp_path / "store")
    assert sorted(os.listdir(tmp_path / "store")) == before


def test_a_store_in_the_folder_of_checkpoints_is_none_of_them(tmp_path: Path) -> None:
    for _ in range(2):
        fit(store=tmp_path / "store", checkpoint=tmp_path, method="gmm")
