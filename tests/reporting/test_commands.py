"""`latentfit report`, `latentfit evaluate` and `latentfit sample --grid`."""

import importlib
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from latentfit.cli import main

MODELS = """
import torch

print("noise of the import")
torch.manual_seed(0)
encoder = torch.nn.Linear(64, 4)
decoder = torch.nn.Linear(4, 64)
features = torch.nn.Linear(64, 3)
noimages = torch.nn.Linear(4, 10)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(MODELS)
    np.save(tmp_path / "x.npy", load_digits().data[:300].astype("float32"))
    np.save(tmp_path / "y.npy", load_digits().target[:300])
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    words = ("--encoder", "own_models:encoder", "--data", "x.npy", "--quiet", "--method")
    for method in ("gaussian", "gmm"):
        assert main(["fit", *words, method, "--out", f"{method}.safetensors"]) == 0
    yield tmp_path
    sys.modules.pop("own_models", None)


MODEL = ("--encoder", "own_models:encoder", "--decoder", "own_models:decoder", "--data", "x.npy")


def test_samplers_are_evaluated_together(here, capsys):
    files = ("gaussian.safetensors", "gmm.safetensors")
    extra = ("--labels", "y.npy", "--feature-extractor", "own_models:features", "-n", "100")
    capsys.readouterr()
    assert main(["evaluate", *files, *MODEL, *extra, "--out", "page.html"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == [
        "Real",
        "Reconstruction",
        "Resample",
        "gaussian",
        "gmm",
    ]
    assert max(map(len, lines)) <= 80
    assert " is best, at " in out
    assert "page.html: " in out
    assert err == ""
    assert "gaussian" in (here / "page.html").read_text("utf-8")


def test_json_is_all_there_is_on_stdout(here, capsys):
    capsys.readouterr()
    assert main(["evaluate", "gmm.safetensors", *MODEL, "-n", "50", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["Real", "Reconstruction", "Resample", "gmm"]
    assert told["gmm"]["c2st"] > 0.3


def test_images_are_written_as_a_grid(here, capsys):
    words = ("sample", "gmm.safetensors", "-n", "25", "--seed", "1")
    both = ("--decoder", "own_models:decoder", "--grid", "grid.png", "--out", "z.npy")
    assert main([*words, *both]) == 0
    assert np.load(here / "z.npy").shape == (25, 4)
    with Image.open(here / "grid.png") as image:
        assert image.size == (5 * 33 + 1, 5 * 33 + 1)  # four times as large as 8 x 8
        assert len(set(np.asarray(image)[1:5, 1:5].flat)) == 1
    assert main([*words, *both[:4]]) == 0


@pytest.mark.parametrize(
    "words, code, told",
    [
        (("sample", "gmm.safetensors", "-n", "3"), 2, "--out FILE, or --grid FILE and --decoder"),
        (("sample", "gmm.safetensors", "-n", "3", "--grid", "a.png"), 2, "--decoder"),
        (
            *[
                (
                    "sample",
                    "gmm.safetensors",
                    "-n",
                    "3",
                    "--grid",
                    "a.gif",
                    "--decoder",
                    "own_models:decoder",
                )
            ],
            1,
            ".png",
        ),
        (
            *[
                (
                    "sample",
                    "gmm.safetensors",
                    "-n",
                    "3",
                    "--grid",
                    "a.png",
                    "--decoder",
                    "own_models:noimages",
                )
            ],
            1,
            "Expected images",
        ),
        (("evaluate", "gmm.safetensors", *MODEL, "--out", "y.npy"), 1, ".html"),
        (("evaluate", "gmm.safetensors", *MODEL, "--out", "no/x.html"), 1, "no"),
        (("evaluate", "gmm.safetensors", "--data", "x.npy"), 1, "Expected latents of shape"),
        (("evaluate", "gmm.safetensors", "--data", "x.npy"), 1, "--encoder"),
        (("evaluate", "gmm.safetensors", "./gmm.safetensors", *MODEL), 1, "each sampler once"),
        (
            (
                "sample",
                "gmm.safetensors",
                "-n",
                "0",
                "--grid",
                "a.png",
                "--decoder",
                "own_models:decoder",
            ),
            2,
            "Expected -n of at least 1",
        ),
        (("report", "."), 1, "results.json"),
        (("report", ".", "--out", "x.png"), 1, ".html"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(here, capsys, words, code, told):
    before = sorted(here.iterdir())
    capsys.readouterr()
    assert main(list(words)) == code
    assert told in capsys.readouterr().err
    assert sorted(path for path in here.iterdir() if path.name != "__pycache__") == [
        path for path in before if path.name != "__pycache__"
    ]


def test_runs_are_compared_from_their_folders(run_folder, tmp_path, capsys):
    page = tmp_path / "both.html"
    folders = [tmp_path / day / "mnist" for day in ("monday", "tuesday")]
    for folder in folders:
        shutil.copytree(run_folder, folder)
    words = [str(folders[0]), str(folders[1] / "results.json"), "--out", str(page)]
    assert main(["report", *words]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["monday/mnist:", "tuesday/mnist:"]
    assert out.count("flow is best, at 1.37 times the floor.") == 2
    assert "2 runs compared" in page.read_text("utf-8")
    assert main(["report", str(run_folder), "--out", str(run_folder / "results.json")]) == 1
    twice = ["report", str(run_folder), str(run_folder / "results.json"), "--out", str(page)]
    assert main(twice) == 1
    assert "Expected each run once" in capsys.readouterr().err
