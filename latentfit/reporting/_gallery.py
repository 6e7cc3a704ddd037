"""Exhibits as JSON: what a benchmark keeps beside its results, and what is read of it again."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from latentfit.arguments import check_kind, reason
from latentfit.errors import FileFormatError, LatentfitError
from latentfit.reporting._model import Cloud, Curves, Exhibits, LatentMap, Neighbours, Picture
from latentfit.reporting._pictures import PNG

__all__ = ["GALLERY", "exhibits_from", "exhibits_to", "what_is_wrong"]

GALLERY = "gallery.json"
_SCHEMA = 1


def exhibits_to(exhibits: Exhibits) -> dict[str, Any]:
    """Give exhibits as JSON values: images as base64, points with four digits.

    Raises:
        OptionError: They are something else.
    """
    check_kind("exhibits", exhibits, Exhibits, "Exhibits")
    return {
        "schema": _SCHEMA,
        "pictures": [
            {
                "row": p.row,
                "seed": p.seed,
                "count": p.count,
                "by_class": p.by_class,
                "png": _text(p.png),
            }
            for p in exhibits.pictures
        ],
        "curves": [
            {
                "name": c.name,
                "unit": c.unit,
                "steps": [_json(v) for v in c.steps],
                "losses": {name: [_json(v) for v in values] for name, values in c.losses.items()},
            }
            for c in exhibits.curves
        ],
        "maps": [
            {
                "name": m.name,
                "method": m.method,
                "real": _cloud_to(m.real),
                "sampled": [_cloud_to(cloud) for cloud in m.sampled],
            }
            for m in exhibits.maps
        ],
        "neighbours": [
            {
                "row": n.row,
                "shown": n.shown,
                "distances": [_json(v) for v in n.distances],
                "png": _text(n.png),
            }
            for n in exhibits.neighbours
        ],
    }


def exhibits_from(kept: Any, file: str) -> Exhibits:
    """Make exhibits of what :func:`exhibits_to` gave.

    Args:
        kept: The JSON values.
        file: Where they come from, for the message.

    Raises:
        FileFormatError: They are something else.
    """
    try:
        if kept["schema"] != _SCHEMA:
            raise ValueError(f"schema {kept['schema']!r}")
        return Exhibits(
            pictures=tuple(
                Picture(
                    str(p["row"]),
                    int(p["seed"]),
                    _bytes(p["png"]),
                    int(p["count"]),
                    bool(p["by_class"]),
                )
                for p in kept["pictures"]
            ),
            curves=tuple(
                Curves(
                    str(c["name"]),
                    _numbers(c["steps"]),
                    {str(name): _numbers(values) for name, values in c["losses"].items()},
                    str(c["unit"]),
                )
                for c in kept["curves"]
            ),
            maps=tuple(
                LatentMap(
                    str(m["name"]),
                    str(m["method"]),
                    _cloud_from(m["real"]),
                    tuple(_cloud_from(cloud) for cloud in m["sampled"]),
                )
                for m in kept["maps"]
            ),
            neighbours=tuple(
                Neighbours(
                    str(n["row"]), _bytes(n["png"]), int(n["shown"]), _numbers(n["distances"])
                )
                for n in kept["neighbours"]
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FileFormatError(
            f"{file}: expected the gallery of a benchmark, schema {_SCHEMA}; {what_is_wrong(error)}."
        ) from error


def what_is_wrong(error: Exception) -> str:
    """Tell in words why a benchmark's file could not be read."""
    if isinstance(error, KeyError):
        return f"{error} is missing; run the benchmark again"
    if isinstance(error, LatentfitError):
        return str(error).rstrip(".")
    return f"{type(error).__name__}: {reason(error)}"


def _cloud_to(cloud: Cloud) -> dict[str, Any]:
    labels = None if cloud.labels is None else [int(label) for label in cloud.labels]
    points = [[float(f"{v:.4g}") for v in point] for point in np.asarray(cloud.points)]
    return {"name": cloud.name, "points": points, "labels": labels}


def _cloud_from(kept: Mapping[str, Any]) -> Cloud:
    points = np.asarray(kept["points"], dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("expected finite points")
    labels: npt.NDArray[np.int64] | None = None
    if kept["labels"] is not None:
        labels = np.asarray(kept["labels"], dtype=np.int64)
        if labels.shape != (len(points),):
            raise ValueError(f"{len(points)} points with labels {labels.shape}")
    return Cloud(str(kept["name"]), points, labels)


def _json(value: float) -> float | None:
    """Give a number as JSON has it, which knows no NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _text(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _bytes(text: str) -> bytes:
    png = base64.b64decode(text, validate=True)
    if not png.startswith(PNG):
        raise ValueError("expected images as PNG")
    return png
