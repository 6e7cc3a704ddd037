"""Paths as users name them: the home folder, a folder for a file or the reverse, and what is not there."""

import errno
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
from latentfit.errors import FileFormatError, OptionError

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


def test_a_sampler_that_is_not_there_is_told_with_what_may_be_meant(tmp_path: Path) -> None:
    sampler = fit()
    sampler.save_pretrained(tmp_path)
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(
            IsADirectoryError, match=r"is a folder. What .* LatentSampler\.from_pre"
        ):
            load_sampler(folder)
    with pytest.raises(
        FileNotFoundError, match=r"Expected the file of a sampler; there is no 'absent'"
    ):
        load_sampler("absent")
    with pytest.raises(IsADirectoryError, match="is a folder. Name a file in it."):
        sampler.save(tmp_path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_is_read_only_is_told(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = fit()

    def refusing(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.open", refusing)  # whoever is root may write anywhere
    with pytest.raises(
        OSError, match="expected a folder that may be written to; name another"
    ) as e:
        sampler.save(tmp_path / "s")
    assert (e.value.errno, e.value.filename) == (code, str(tmp_path / "s"))


def test_a_file_is_no_store(tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", X.numpy())
    with pytest.raises(FileFormatError, match=r"z\.npy' is a file. An array file .* np\.load"):
        LatentStore(tmp_path / "z.npy")
