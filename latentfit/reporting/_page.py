"""From reports to one page of HTML, by the templates beside this module."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentfit._version import __version__
from latentfit.arguments import told
from latentfit.errors import OptionError
from latentfit.persistence import atomic_path, check_target
from latentfit.reporting._charts import bars, line_plot, map_panels, scatter
from latentfit.reporting._measures import MEASURES, number
from latentfit.reporting._model import Neighbours, Report, Row
from latentfit.reporting._tables import compare, measures_table, paper_lines
from latentfit.reporting._verdict import conclude

__all__ = ["PAGES", "render", "write_report"]

PAGES = (".html",)  # what the name of a page ends in


def write_report(path: str | os.PathLike[str], reports: Report | Sequence[Report]) -> None:
    """Write reports as one page of HTML that loads nothing, whole or not at all.

    Args:
        path: The file.
        reports: One, or several to be compared.

    Raises:
        OptionError: No path, or no reports.
        DataError: The name does not end in .html, or there is no such folder.
        OSError: The file can't be written.
    """
    target = check_target(path, suffixes=PAGES)
    text = render(reports)
    with atomic_path(target) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")


def render(reports: Report | Sequence[Report]) -> str:
    """Make one page of HTML of reports: style, script and images are in it, and it loads nothing.

    Args:
        reports: One, or several to be compared.

    Raises:
        OptionError: No reports.
    """
    given = [reports] if isinstance(reports, Report) else reports
    if (
        not isinstance(given, list | tuple)
        or not given
        or not all(isinstance(report, Report) for report in given)
    ):
        raise OptionError(f"Expected reports as a Report or a list of them; got {told(reports)}.")
    environment = _environment()
    script, style = (
        _dense(environment.loader.get_source(environment, name)[0])
        for name in ("report.js", "report.css")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = _distinct([report.name for report in given])
    several = len(given) > 1
    runs = [
        _run(report, name, f"r{at}-" if several else "", 3 if several else 2)
        for at, (report, name) in enumerate(zip(given, names, strict=True))
    ]
    from markupsafe import Markup

    page: str = environment.get_template("report.html.jinja").render(
        title=f"{len(given)} runs compared" if several else given[0].title,
        tab="" if several or given[0].kind == "benchmark" else given[0].name,
        subtitle=", ".join(names) if several else _subtitle(given[0]),
        comparison=compare(given, names) if several else None,
        links=_links(runs, several),
        runs=runs,
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        script_hash=digest,
    )
    return _dense(page) + "\n"


def _dense(text: str) -> str:
    """Leave out empty lines, of which templates make many; the script's hash is that of what is left."""
    return "\n".join(line for line in text.split("\n") if line.strip())


def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("latentfit.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": lambda at: f"{100 * at:.2f}%",
        "place": lambda at: f"{at:.4f}",
        "png": _address,
        "width": _width,
        "number": number,
    }
    return environment


def _address(png: bytes) -> str:
    """Give a PNG file as the address of an image that is in it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _width(png: bytes) -> int:
    """Tell how many pixels a PNG file is wide."""
    return int.from_bytes(png[16:20], "big")


def _run(report: Report, name: str, prefix: str, level: int) -> dict[str, Any]:
    """Gather what the template shows of a run."""
    exhibits = report.exhibits
    albums = _albums(report, report.rows, by_class=False)
    # What is decoded is smoother, and by that nearer to anything, than real images are.
    distances = {shown.row: shown.distances for shown in exhibits.neighbours if shown.distances}
    unlearnt = "Reconstruction" if "Reconstruction" in distances else "Real"
    return {
        "report": report,
        "name": name,
        "id": prefix,
        "level": level,
        "measure": MEASURES[report.primary],
        "verdict": conclude(report),
        "bars": bars(report),
        "seeds": sorted({p.seed for p in exhibits.pictures if not p.by_class}),
        "albums": albums,
        "table": measures_table(report, report.rows),
        "failures": [
            f"{row.name}, {error}"
            for row in (*report.rows, *report.conditional)
            for error in row.errors
        ],
        "by_class": measures_table(report, report.conditional) if report.conditional else None,
        "class_albums": _albums(report, report.conditional, by_class=True),
        "time": scatter(report),
        "maps": [
            {"name": shown.name, "method": shown.method, "panels": map_panels(shown)}
            for shown in exhibits.maps
        ],
        "unlearnt": unlearnt,
        "unlearnt_distance": statistics.median(distances[unlearnt])
        if unlearnt in distances
        else None,
        "neighbours": [_neighbour(shown) for shown in exhibits.neighbours],
        "curves": [p for p in map(line_plot, exhibits.curves) if p is not None],
        "paper": paper_lines(report),
        "options": [
            (
                row.name,
                ", ".join(
                    f"{key} = {json.dumps(value, ensure_ascii=False, default=str)}"
                    for key, value in row.options.items()
                ),
            )
            for row in report.rows
            if row.options
        ],
    }


def _albums(report: Report, rows: Sequence[Row], *, by_class: bool) -> list[dict[str, Any]]:
    """Gather the pictures by row, in the rows' order, with the first measure below each."""
    albums = []
    for row in rows:
        pictures = [
            p for p in report.exhibits.pictures if p.row == row.name and p.by_class == by_class
        ]
        mean = row.mean(report.primary)
        if pictures:
            pictures.sort(key=lambda picture: picture.seed)
            note = "" if mean is None else f"{MEASURES[report.primary].name} {number(mean)}"
            note = note or row.description
            albums.append({"row": row.name, "pictures": pictures, "note": note})
    return albums


def _neighbour(shown: Neighbours) -> dict[str, Any]:
    told = ""
    if shown.distances:
        copies = sum(distance == 0 for distance in shown.distances)
        told = f"median distance {number(statistics.median(shown.distances))}"
        if copies:
            told += f"; {copies} of {len(shown.distances)} are images of the data"
    return {"row": shown.row, "png": shown.png, "shown": shown.shown, "told": told}


def _subtitle(report: Report) -> str:
    facts = dict(report.facts)
    parts = [report.name, *(facts[key] for key in ("Data", "Made") if key in facts)]
    return " · ".join(parts)


_SECTIONS = (
    ("result", "Result", ""),
    ("bars", "Distances", "bars"),
    ("samples", "Samples", "albums"),
    ("table", "All numbers", ""),
    ("conditional", "By class", "by_class"),
    ("time", "Time", "time"),
    ("maps", "Maps", "maps"),
    ("neighbours", "Neighbours", "neighbours"),
    ("curves", "Training", "curves"),
    ("paper", "Paper", "paper"),
    ("run", "How it was run", ""),
)


def _links(runs: Sequence[dict[str, Any]], several: bool) -> list[tuple[str, str]]:
    if several:
        return [("side-by-side", "Side by side"), *((f"{r['id']}title", r["name"]) for r in runs)]
    (run,) = runs
    return [(name, text) for name, text, needs in _SECTIONS if not needs or run[needs]]


def _distinct(names: Sequence[str]) -> list[str]:
    """Tell runs of one name apart by a number."""
    counts: dict[str, int] = {}
    told = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        told.append(name if names.count(name) == 1 else f"{name} ({counts[name]})")
    return told
