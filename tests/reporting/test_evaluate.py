"""Reports on a user's own samplers: what is measured, from which data, and what may be missing."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from latentfit import fit_latent_sampler
from latentfit.errors import (
    DataError,
    EncoderOutputError,
    LatentsWarning,
    NonFiniteError,
    OptionError,
)
from latentfit.metrics import frechet_distance
from latentfit.models import encoder_of
from latentfit.reporting import evaluate, render
from latentfit.reporting._charts import map_panels
from latentfit.reporting._subset import random_subset

DIGITS = load_digits()
X, Y = DIGITS.data.astype(np.float32), DIGITS.target


@pytest.fixture(scope="module")
def pca() -> PCA:
    return PCA(6, random_state=0).fit(X[:1000])


@pytest.fixture(scope="module")
def sampler(pca):
    return fit_latent_sampler(pca, X[:1000], decoder=pca, method="gmm", components=20)


def rows(report):
    return {row.name: row for row in report.rows}


def test_a_page_is_written_of_a_sampler(sampler, pca, tmp_path):
    found = sampler.report(tmp_path / "page.html", pca, X[1000:], labels=Y[1000:], n=200)
    names = ["Real", "Reconstruction", "Resample", "gmm"]
    assert [row.name for row in found.rows] == names
    assert found.primary == "c2st"
    measured = rows(found)
    assert 0.4 < measured["Real"].mean("c2st") < 0.6
    assert measured["gmm"].values.keys() >= {"c2st", "nll", "density", "coverage", "fit_seconds"}
    shown = found.exhibits
    assert [picture.row for picture in shown.pictures] == names
    assert [near.row for near in shown.neighbours] == names
    assert shown.maps[0].real.labels.shape == (200,)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page == render(found)
    assert "gmm: its C2ST AUC is" in page
    assert "best sampler" not in page
    assert "fastest" not in page


def test_the_same_seed_finds_the_same_and_the_global_state_stays(sampler, pca):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two = (evaluate({"a": sampler}, pca, X, n=50, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.rows, two.rows, strict=True):
        kept = a.values.keys() - {"sample_seconds"}
        assert {k: a.values[k] for k in kept} == {k: b.values[k] for k in kept}


def test_with_features_images_are_compared(sampler, pca):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Linear(64, 5), nn.Dropout())  # which is in eval mode meanwhile
    found = rows(evaluate({"a": sampler}, pca, X[1000:], features=features, n=150, seed=1))
    data = random_subset(X[1000:], 300, encoder_of(pca), seed=1)
    linear = features[0]
    with torch.no_grad():
        expected = frechet_distance(linear(data.inputs[150:]), linear(data.inputs[:150]))
    assert found["Real"].mean("fd") == pytest.approx(expected)
    assert found["Real"].mean("fd") < found["Resample"].mean("fd")
    assert features.training


def test_a_sampler_of_another_place_is_seen(sampler, pca):
    far = fit_latent_sampler(None, 100 + torch.randn(200, 6), method="gaussian", decoder=pca)
    found = evaluate({"near": sampler, "far": far}, pca, X[1000:], n=150)
    assert found.samplers[0].name == "near"
    assert rows(found)["far"].mean("c2st") > 0.99
    assert rows(found)["far"].mean("coverage") < 0.01


@pytest.mark.parametrize("kind", ["array", "tensor", "pairs", "loader", "dicts"])
def test_any_dataset_will_do_and_its_labels_are_found(sampler, pca, kind):
    x, y = torch.from_numpy(X[:400]), torch.from_numpy(Y[:400])
    dataset = {
        "array": X[:400],
        "tensor": x,
        "pairs": TensorDataset(x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=64),
        "dicts": {"x": x, "labels": y},
    }[kind]
    found = evaluate({"a": sampler}, pca, dataset, n=100)
    without = kind in ("array", "tensor")
    assert (found.exhibits.maps[0].real.labels is None) == without
    first = map_panels(found.exhibits.maps[0])[0]
    # Without classes real latents have the colour that the key says.
    assert ([layer for layer, _ in first.layers] == ["real"]) == without
    assert ("Data", "200 of 400 rows (n=100), chosen at random, seed 0") in found.facts


def test_rows_are_chosen_at_random_in_one_pass():
    data = torch.arange(1000.0)[:, None]
    chosen = random_subset(data, 100, None, labels=torch.arange(1000), seed=0)
    values = chosen.latents[:, 0]
    assert chosen.rows == 1000
    assert len(values.unique()) == 100
    assert torch.equal(chosen.labels.float(), values)
    assert 400 < values.mean() < 600
    assert not torch.equal(values, values.sort().values)
    means = [random_subset(data, 20, None, seed=s).latents[:10].mean() for s in range(50)]
    assert torch.stack(means).mean() == pytest.approx(499.5, abs=50)


def test_without_a_decoder_latents_are_compared(sampler, pca):
    plain = fit_latent_sampler(pca, X[:500], method="gaussian")
    found = evaluate({"a": plain}, pca, X[500:], n=100)
    assert [row.name for row in found.rows] == ["Real", "a"]
    assert [picture.row for picture in found.exhibits.pictures] == ["Real"]
    found = evaluate({"a": plain}, None, torch.randn(300, 6), n=100)
    assert found.exhibits.pictures == found.exhibits.neighbours == ()
    assert "</html>" in render(found)


def test_a_sampler_on_a_condition_is_asked_for_the_data_s_classes(pca):
    given = fit_latent_sampler(pca, X, condition=Y, decoder=pca, method="gmm", components=2)
    found = evaluate({"a": given}, pca, X, labels=Y, n=200)
    assert rows(found)["a"].mean("c2st") < 0.7
    with pytest.raises(DataError, match="Expected labels"):
        evaluate({"a": given}, pca, X, n=200)


def test_images_with_colours_in_any_range_are_shown():
    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :4]

    class Up(nn.Module):
        def forward(self, z):
            return z.mean(1)[:, None, None, None].expand(-1, 3, 8, 8)

    x = torch.rand(100, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sampler = fit_latent_sampler(Flat(), x, decoder=Up(), method="gaussian")
    shown = evaluate({"a": sampler}, Flat(), x, n=40).exhibits
    assert len(shown.pictures) == 4
    assert all(picture.png[25] == 2 for picture in shown.pictures)  # the PNG's colour type: RGB


def test_too_few_rows_and_latents_of_another_shape_are_told(sampler, pca):
    with pytest.raises(DataError, match="at least 32 rows; got 20"):
        evaluate({"a": sampler}, pca, X[:20])
    with pytest.raises(DataError, match=r"Expected latents of shape \(n, 6\).*'a'"):
        evaluate({"a": sampler}, None, torch.randn(100, 5))


def some_nan(pca, every=1):
    def decoder(z):
        images = torch.from_numpy(pca.inverse_transform(z.numpy()).astype(np.float32))
        images[::every] = torch.nan
        return images

    return decoder


def test_a_decoder_that_makes_nan_is_told_of(sampler, pca, tmp_path):
    path = tmp_path / "page.html"
    with pytest.warns(LatentsWarning, match="300 of 300 rows hold NaN") as warned:
        found = sampler.report(path, pca, X[1000:], decoder=some_nan(pca), n=100)
    assert warned[0].filename == __file__
    assert [near.row for near in found.exhibits.neighbours] == ["Real"]
    assert "Reconstruction (100 of 100)" in path.read_text("utf-8")
    with pytest.warns(LatentsWarning, match="102 of 300"):
        found = evaluate({"a": sampler}, pca, X[1000:], decoder=some_nan(pca, 3), n=100)
    whole = evaluate({"a": sampler}, pca, X[1000:], n=100)
    near, reference = (r.exhibits.neighbours[3].distances for r in (found, whole))
    assert len(near) == 64
    assert near[0] == pytest.approx(reference[1], rel=1e-2)  # the first image is one of NaN
    assert whole.warnings == ()
    with pytest.raises(NonFiniteError, match="images of the decoder"):
        evaluate({"a": sampler}, pca, X, decoder=some_nan(pca), features=lambda x: x[:, :3])


def test_it_is_shown_in_a_line_in_a_notebook(sampler, pca):
    found = evaluate({"a": sampler}, pca, X[1000:], n=50)
    assert "4 rows (Real, Reconstruction, Resample, a); 4 pictures" in repr(found)
    assert max(len(repr(found)), len(repr(found.exhibits.pictures[0]))) < 200
    assert len(repr(found.exhibits)) < 1000


def test_a_page_that_can_not_be_written_is_told_before_the_work(sampler, tmp_path):
    for path, told in (
        (tmp_path / "no" / "a.html", "Make it first"),
        (tmp_path / "a.png", "a .html file to write; got"),
    ):
        with pytest.raises(DataError, match=told):
            sampler.report(path, None, None)


@pytest.mark.parametrize("name", ["Real", "Resample", "", 3])
def test_names_that_are_taken_or_none_are_refused(sampler, pca, name):
    with pytest.raises(OptionError, match="Expected a sampler's name"):
        evaluate({name: sampler}, pca, None)


def test_errors_name_who_failed(sampler, pca):
    wrong = nn.Linear(3, 3)
    with pytest.raises(EncoderOutputError, match="the feature extractor to return exactly one"):
        evaluate({"a": sampler}, pca, X, features=lambda x: (x, x), n=20)
    for given, who in (({"features": wrong}, "feature extractor"), ({"decoder": wrong}, "decoder")):
        with pytest.raises(RuntimeError) as raised:
            evaluate({"a": sampler}, pca, X, n=20, **given)
        assert f"while the {who} was given (20, " in raised.value.__notes__[0]
    with pytest.raises(DataError, match="pass encoder"):
        evaluate({"a": sampler}, None, X)
