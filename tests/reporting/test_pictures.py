"""Pictures, maps and neighbours, against independent references."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from latentfit.errors import DataError
from latentfit.reporting import Curves, draw_grid, find_neighbours, map_latents
from latentfit.reporting._charts import Scale, line_plot
from latentfit.reporting._images import as_images

GENERATOR = np.random.default_rng(0)


def opened(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    image.load()
    return np.asarray(image)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_a_grid_has_its_images_where_they_belong(shape):
    images = GENERATOR.random((7, *shape))
    grid = opened(draw_grid(images, columns=3))
    assert grid.shape == (3 * 7 + 1, 3 * 6 + 1, *shape[2:])
    for index, image in enumerate(images):
        row, column = divmod(index, 3)
        part = grid[1 + 7 * row : 7 + 7 * row, 1 + 6 * column : 6 + 6 * column]
        assert np.abs(part / 255 - image).max() <= 0.5 / 255 + 1e-9


def test_neighbours_are_scikit_learns():
    images, train = GENERATOR.random((20, 6, 5)), GENERATOR.random((300, 6, 5))
    images[3] = train[17]
    found = find_neighbours("a", images, train, shown=4)
    reference = NearestNeighbors(n_neighbors=1).fit(train.reshape(300, -1))
    distances, at = reference.kneighbors(images.reshape(20, -1))
    assert np.allclose(found.distances, distances[:, 0], atol=1e-4)
    assert found.distances[3] == 0
    assert at[3, 0] == 17
    grid = opened(found.png)
    assert grid.shape == (2 * 7 + 1, 4 * 6 + 1)
    below = grid[8:14, 1 + 3 * 6 : 6 + 3 * 6]
    assert np.array_equal(below, grid[1:7, 1 + 3 * 6 : 6 + 3 * 6])


def test_neighbours_do_not_depend_on_the_chunks(monkeypatch):
    images, train = GENERATOR.random((5, 4, 4)), GENERATOR.random((50, 4, 4))
    whole = find_neighbours("a", images, train)
    monkeypatch.setattr("latentfit.reporting._pictures._CHUNK", 7)
    assert find_neighbours("a", images, train) == whole


def test_a_map_keeps_what_lies_together_together():
    real = np.concatenate([GENERATOR.normal(m, 0.1, (40, 5)) for m in (-3, 3)])
    sampled = {"a": GENERATOR.normal(3, 0.1, (30, 5))}
    shown = map_latents("latents", real, sampled, labels=np.arange(80) // 40)
    assert shown.method == "t-SNE"
    assert (shown.real.points.shape, shown.sampled[0].points.shape) == ((80, 2), (30, 2))
    centres = [shown.real.points[shown.real.labels == c].mean(0) for c in (0, 1)]
    near = [np.linalg.norm(shown.sampled[0].points - centre, axis=1) for centre in centres]
    assert (near[1] < near[0]).all()
    again = map_latents("latents", real, sampled, labels=np.arange(80) // 40)
    assert np.array_equal(again.real.points, shown.real.points)


def test_latents_of_two_dimensions_are_drawn_as_they_are():
    real = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
    shown = map_latents("latents", real, {"a": real[:3]})
    assert shown.method == ""
    scaled = (real - real.mean(0)) / real.std(0, correction=0)
    assert np.allclose(shown.real.points, scaled)


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((3, 8, 8), (3, 8, 8)),
        ((3, 1, 8, 8), (3, 8, 8)),
        ((3, 3, 8, 8), (3, 8, 8, 3)),
        ((3, 8, 8, 3), (3, 8, 8, 3)),
        ((3, 64), (3, 8, 8)),
        ((3, 3, 300, 200), (3, 75, 50, 3)),
        ((3, 10), None),
        ((3, 4), None),
        ((3, 2, 8, 8), None),
        ((3,), None),
        ((0, 8, 8), None),
    ],
)
def test_images_are_told_by_their_shape(shape, expected):
    found = as_images(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    assert (None if found is None else tuple(found.shape)) == expected


@pytest.mark.parametrize("low, high", [(0, 1), (-1, 1), (0, 255), (0, 16), (-2.1, 2.6)])
def test_shades_are_those_of_the_values(low, high):
    images = torch.linspace(low, high, 64).reshape(1, 8, 8)
    found = as_images(images)
    assert found.min() == 0
    assert found.max() == 1


@pytest.mark.parametrize("log", [True, False])
def test_scales_are_monotonous_and_their_ticks_lie_on_them(log):
    for low, high in ((0.07, 20), (1, 1), (3e-7, 2e9), (0.5, 0.50001)):
        scale = Scale([low, high], log=log, margin=0.05)
        assert 0 <= scale(low) <= scale(high) <= 1
        ticks = scale.ticks()
        assert len(ticks) <= 6
        assert ticks == sorted(ticks)
        assert all(0 <= scale(tick) <= 1 for tick in ticks)


def test_curves_are_thinned_and_end_where_they_end():
    history = {"step": [float(s) for s in range(5000)], "a_loss": [1.0] * 4999 + [0.5], "x": [1.0]}
    curves = Curves.of("a", history)
    assert len(curves.steps) <= 301
    assert (curves.steps[-1], curves.losses["a_loss"][-1]) == (4999, 0.5)
    assert curves.losses.keys() == {"a_loss"}
    assert Curves.of("a", {"step": [0.0], "a_loss": [1.0]}) is None
    assert Curves.of("a", {}) is None
    assert line_plot(Curves("a", [0, 1], {"a": [float("nan")] * 2})) is None


def test_images_of_two_shapes_are_refused():
    with pytest.raises(DataError, match="one shape"):
        find_neighbours("a", np.zeros((2, 4, 4)), np.zeros((2, 5, 4)))
