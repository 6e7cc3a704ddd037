"""The tables of a report: what stands in each cell, what it is sorted by, and where the best is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from latentfit.reporting._measures import MEASURES, Measure, measures_of, number, value_text
from latentfit.reporting._model import Report, Row
from latentfit.reporting._verdict import conclude_runs, floors_differ

__all__ = [
    "Cell",
    "Column",
    "Comparison",
    "Line",
    "PaperLine",
    "Table",
    "compare",
    "measures_table",
    "paper_lines",
]


class Column(NamedTuple):
    """A column's head, and what it tells."""

    name: str
    tells: str


class Cell(NamedTuple):
    """A cell: its text, what it is sorted by ("" is last), the spread, whether it is the best."""

    text: str
    value: str
    spread: str = ""
    is_best: bool = False


class Line(NamedTuple):
    """A row of a table."""

    name: str
    description: str
    is_reference: bool
    cells: list[Cell]


class Table(NamedTuple):
    """A table: its first head, its columns, its rows, and what it is called."""

    head: str
    columns: list[Column]
    lines: list[Line]
    caption: str = ""


class PaperLine(NamedTuple):
    """A system of a publication: their value and ours, and the rank of each."""

    name: str
    theirs: str
    ours: str
    their_rank: str
    our_rank: str


def measures_table(report: Report, rows: Sequence[Row], *, head: str = "System") -> Table:
    """Lay out the measures of rows, with the paper's values and the ratio to the floor."""
    # What was decoded only has images, but no numbers.
    rows = [r for r in rows if not r.is_reference or r.errors or any(map(len, r.values.values()))]
    measures = measures_of(rows)
    floors = [row.mean(report.primary) for row in rows if row.name == report.floor]
    floor = floors[0] if floors else None
    columns: list[tuple[Column, list[Cell]]] = []
    if any(row.paper is not None for row in rows):
        name = f"Paper's {MEASURES[report.primary].name}"
        cells = [_cell("" if r.paper is None else number(r.paper), r.paper) for r in rows]
        columns.append((Column(name, "What the paper has, with another classifier."), cells))
    for measure in measures:
        columns.append((Column(measure.name, measure.tells), _cells(measure, rows)))
        if measure.key == report.primary and floor and not measure.least:
            ratios = [_ratio(row.mean(measure.key), floor) for row in rows]
            cells = [_cell("" if ratio is None else f"{ratio:.2f}", ratio) for ratio in ratios]
            tells = (
                f"The column before over that of {report.floor}: 1 is as good as can be expected."
            )
            columns.append((Column(f"{measure.name}\u00a0/ floor", tells), cells))
    lines = [
        Line(row.name, row.description, row.is_reference, [cells[at] for _, cells in columns])
        for at, row in enumerate(rows)
    ]
    if columns:
        for at, row in enumerate(rows):
            if row.errors and not row.values.get(report.primary):
                place = next(
                    (
                        i
                        for i, (c, _) in enumerate(columns)
                        if c.name == MEASURES[report.primary].name
                    ),
                    0,
                )
                lines[at].cells[place] = Cell("failed", "")
    return Table(head, [column for column, _ in columns], lines)


def _cells(measure: Measure, rows: Sequence[Row]) -> list[Cell]:
    means = [row.mean(measure.key) for row in rows]
    own = [
        m
        for m, row in zip(means, rows, strict=True)
        if m is not None and not row.is_reference and measure.better and measure.style != "count"
    ]
    best = (min(own) if measure.better == "low" else max(own)) if len(own) > 1 else None
    return [
        _cell(
            value_text(measure, row.values.get(measure.key, ())),
            mean,
            is_best=mean is not None and mean == best and not row.is_reference,
        )
        for row, mean in zip(rows, means, strict=True)
    ]


def _cell(text: str, value: float | None, *, is_best: bool = False) -> Cell:
    mean, _, spread = text.partition(" ± ")
    return Cell(mean, "" if value is None else f"{value:.9g}", spread, is_best)


def _ratio(value: float | None, floor: float) -> float | None:
    return None if value is None else value / floor


def paper_lines(report: Report) -> list[PaperLine]:
    """Put a paper's values beside ours, in its order; nothing for less than two."""
    rows = [r for r in report.rows if r.paper is not None and r.mean(report.primary) is not None]
    if len(rows) < 2:
        return []
    measure = MEASURES[report.primary]
    theirs = sorted(row.paper or 0.0 for row in rows)
    ours = sorted(row.mean(report.primary) or 0.0 for row in rows)
    return [
        PaperLine(
            row.name,
            number(row.paper or 0.0),
            value_text(measure, row.values[report.primary]),
            str(1 + theirs.index(row.paper or 0.0)),
            str(1 + ours.index(row.mean(report.primary) or 0.0)),
        )
        for row in sorted(rows, key=lambda row: row.paper or 0.0)
    ]


class Comparison(NamedTuple):
    """Several runs side by side."""

    headline: str
    warnings: list[str]
    notes: list[str]
    tables: list[Table]


def compare(reports: Sequence[Report], names: Sequence[str]) -> Comparison:
    """Put the first measure of several runs side by side: a table for those that can be compared."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for at, report in enumerate(reports):
        groups.setdefault((report.title, report.primary, report.comparable), []).append(at)
    tables = [
        table
        for group in groups.values()
        for table in _runs_tables([reports[at] for at in group], [names[at] for at in group])
    ]
    if len(groups) > 1:
        headline = f"{len(reports)} runs, of which not all can be compared."
        notes = [
            "Runs of another benchmark, with another classifier or another number of samples, stand in "
            "tables of their own: their numbers mean something else."
        ]
    else:
        headline, notes = conclude_runs(reports, names)
    warnings = [
        f"{name}: {warning}"
        for report, name in zip(reports, names, strict=True)
        for warning in report.warnings
    ]
    return Comparison(headline, warnings, notes, tables)


def _runs_tables(reports: Sequence[Report], names: Sequence[str]) -> list[Table]:
    """Lay out the first measure of runs, and where their floors differ that over the floors."""
    measure = MEASURES[reports[0].primary]
    systems = dict.fromkeys(row.name for report in reports for row in report.rows)
    references = {r.name for report in reports for r in report.rows if r.is_reference}
    described = {r.name: r.description for report in reports for r in report.rows}

    def table(columns: list[list[Cell]], caption: str) -> Table:
        lines = [
            Line(name, described[name], name in references, [column[at] for column in columns])
            for at, name in enumerate(systems)
        ]
        return Table("System", [Column(name, "") for name in names], lines, caption)

    columns = [_cells(measure, _rows_named(report, systems)) for report in reports]
    best = "The best sampler of each run stands out."
    tables = [table(columns, f"{measure.name} of each run ({reports[0].title}). {best}")]
    if floors_differ(reports):
        over = [_over_floor(report, cells) for report, cells in zip(reports, columns, strict=True)]
        tables.append(table(over, f"The same over each run's own floor, {reports[0].floor}"))
    return tables


def _over_floor(report: Report, cells: Sequence[Cell]) -> list[Cell]:
    """Give cells of the first measure as multiples of the run's floor."""
    floor = report.floor_value or 1.0
    ratios = [float(cell.value) / floor if cell.value else None for cell in cells]
    return [
        _cell("" if ratio is None else f"{ratio:.2f}", ratio, is_best=cell.is_best)
        for ratio, cell in zip(ratios, cells, strict=True)
    ]


def _rows_named(report: Report, names: Sequence[str] | dict[str, None]) -> list[Row]:
    found = {row.name: row for row in report.rows}
    return [found.get(name, Row(name)) for name in names]
