"""Reports: what was measured and made, as one page of HTML that loads nothing."""

from latentfit.reporting._evaluate import evaluate
from latentfit.reporting._gallery import exhibits_to
from latentfit.reporting._maps import map_latents
from latentfit.reporting._model import (
    Cloud,
    Curves,
    Exhibits,
    LatentMap,
    Neighbours,
    Picture,
    Report,
    Row,
)
from latentfit.reporting._page import render, write_report
from latentfit.reporting._pictures import draw_grid, find_neighbours
from latentfit.reporting._results import read_report, report_of
from latentfit.reporting._verdict import headline

__all__ = [
    "Cloud",
    "Curves",
    "Exhibits",
    "LatentMap",
    "Neighbours",
    "Picture",
    "Report",
    "Row",
    "draw_grid",
    "evaluate",
    "exhibits_to",
    "find_neighbours",
    "headline",
    "map_latents",
    "read_report",
    "render",
    "report_of",
    "write_report",
]
