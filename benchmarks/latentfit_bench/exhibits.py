"""What the report shows of a run beside its numbers: images, maps of latents, curves."""

from collections.abc import Sequence

import torch

from latentfit.reporting import (
    Curves,
    Exhibits,
    LatentMap,
    Neighbours,
    Picture,
    draw_grid,
    find_neighbours,
    map_latents,
)
from latentfit_bench.measure import CLASSES
from latentfit_bench.settings import Gallery, first

MOST_POINTS = 3000  # sampled ones of a map, all samplers together: t-SNE takes a minute then


def exhibit(
    gallery: Gallery, rows: Sequence[str], shape: tuple[int, int], *, points: int, seed: int
) -> Exhibits:
    """Make the report's exhibits.

    Args:
        gallery: What the run has kept.
        rows: The table's rows, in their order.
        shape: Of one image: height and width in pixels.
        points: Real latents in a map; of each sampler it has half as many.
        seed: Of the maps.
    """
    return Exhibits(
        pictures=tuple(_pictures(gallery, rows, shape)),
        curves=tuple(_curves(gallery, rows)),
        maps=tuple(_maps(gallery, rows, points, seed)),
        neighbours=tuple(_neighbours(gallery, rows, shape)),
    )


def _pictures(gallery: Gallery, rows: Sequence[str], shape: tuple[int, int]) -> list[Picture]:
    kinds = (
        (gallery.images, rows, 8, False),
        (gallery.conditional, [*gallery.conditional], CLASSES, True),
    )
    return [
        Picture(
            row, seed, draw_grid(images.view(-1, *shape), columns=columns), len(images), by_class
        )
        for shelf, names, columns, by_class in kinds
        for row in names
        for seed, images in sorted(shelf.get(row, {}).items())
    ]


def _curves(gallery: Gallery, rows: Sequence[str]) -> list[Curves]:
    """Samplers' curves over their steps, then the autoencoders' over their epochs."""
    samplers = (Curves.of(row, gallery.histories.get(row, {})) for row in rows)
    found = [curves for curves in samplers if curves is not None]
    for name, phases in gallery.losses.items():
        epochs = range(1, 1 + max(map(len, phases.values()), default=0))
        if len(epochs) > 1:
            found.append(Curves(f"{name}, the autoencoder", list(epochs), phases, "epoch"))
    return found


def _maps(gallery: Gallery, rows: Sequence[str], points: int, seed: int) -> list[LatentMap]:
    maps = []
    for model, z in gallery.latents.items():
        drawn = gallery.sampled.get(model, {})
        each = max(1, min(points // 2, MOST_POINTS // max(len(drawn), 1)))
        sampled = {row: drawn[row][:each] for row in rows if row in drawn}
        if sampled:
            labels = gallery.labels[: len(z)][:points]
            title = f"Latents of the {model}"
            maps.append(map_latents(title, z[:points], sampled, labels=labels, seed=seed))
    return maps


def _neighbours(gallery: Gallery, rows: Sequence[str], shape: tuple[int, int]) -> list[Neighbours]:
    """The training images that are nearest to those of each row; of latents drawn again as a control."""
    train = gallery.train.view(-1, *shape) if len(gallery.train) else torch.empty(0)
    return [
        find_neighbours(row, first(gallery.images[row]).view(-1, *shape), train)
        for row in rows
        if len(train) and row in gallery.images
    ]
