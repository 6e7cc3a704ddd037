"""The few things about latents that a fit warns of."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from latentfit.diagnosis._advice import MOST_COPIES
from latentfit.diagnosis._anomalies import find_copies
from latentfit.diagnosis._moments import fingerprints
from latentfit.diagnosis._rows import Rows
from latentfit.errors import LatentsWarning
from latentfit.randomness import plugin_defaults
from latentfit.rows import draw_index
from latentfit.store import LatentStore

__all__ = ["warn_about"]

_FEW = 10  # so few rows are more often a mistake than a dataset
_LEAST_ROWS = 20
# Numbers that are looked at: each takes a tenth of a second or two.
_HASHED, _MEASURED = 2**22, 2**26
_CENTRE_ROWS = 1000  # that the medians are of
_SQUEEZED = 5.0  # how many times smaller than the scale 95 % of the rows may be


def warn_about(latents: Tensor | LatentStore, *, stacklevel: int = 2) -> None:
    r"""Warn of what makes a fit useless, whatever the method: a handful of rows, many copies, a lost scale.

    Of very many latents a random subset is looked at: it shows a row that is a tenth of all, though not that
    each row is there twice.

    Args:
        latents: (N, \*shape), finite; or a store of them.
        stacklevel: Whose line the warning shows, as :func:`warnings.warn` counts: 2 is the caller's.

    Warns:
        LatentsWarning: There are fewer than ten rows; more than a tenth of them are copies of others; or a
            twentieth of them holds nearly all of the variance, so that on any scale the others are next to
            nothing.
    """
    if math.prod(latents.shape) == 0:
        return
    if 1 < len(latents) < _FEW:  # one row is refused by the fit
        warnings.warn(
            f"Expected hundreds of latents or more to learn a distribution from; got {len(latents)}, and "
            "samples will be little else than these. Is the dataset complete?",
            LatentsWarning,
            stacklevel=stacklevel,
        )
    if len(latents) < _LEAST_ROWS:
        return
    rows = Rows(latents)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), plugin_defaults(torch.device("cpu")):
        # Where nearly all rows are equal, the others are no outliers.
        message = _about_copies(rows, generator) or _about_scale(rows, generator)
    if message:
        warnings.warn(message, LatentsWarning, stacklevel=stacklevel)


def _about_copies(rows: Rows, generator: torch.Generator) -> str:
    index = draw_index(len(rows), max(_LEAST_ROWS, _HASHED // rows.dim), generator)
    copies = find_copies(torch.cat([fingerprints(part) for part in rows.parts(index)]).numpy())
    # Where all are equal the fit says so itself; narrow numbers of few dimensions may be equal by rounding.
    if copies.fraction <= MOST_COPIES or copies.most == len(index) or rows.crowded:
        return ""
    return (
        f"{100 * copies.fraction:.0f} % of the latents are exact copies of others (that at index "
        f"{int(index[copies.first])}, for one): a density grows without bound on them. Drop the copies; "
        "latentfit.diagnose tells more."
    )


def _about_scale(rows: Rows, generator: torch.Generator) -> str:
    index = draw_index(len(rows), max(_LEAST_ROWS, _MEASURED // rows.dim), generator)
    some = draw_index(len(rows), _CENTRE_ROWS, generator)
    centre = rows.take(some).median(0).values
    distances = [torch.linalg.vector_norm(part - centre, dim=1) for part in rows.parts(index)]
    distance = torch.cat(distances)
    farthest = distance.max()
    if not 0 < float(farthest) < torch.inf:
        return ""
    scale = float((distance / farthest).square().mean().sqrt() * farthest)
    bulk = float(distance.sort().values[int(0.95 * (len(index) - 1))])
    if scale <= _SQUEEZED * bulk:
        return ""
    return (
        f"95 % of the latents lie within {bulk:.3g} of the median, but the root mean square distance is "
        f"{scale:.3g}, because of a few far out (that at index {int(index[distance.argmax()])}, for one): on "
        "this scale the others are next to nothing. Drop or clip these few; latentfit.diagnose lists them."
    )
