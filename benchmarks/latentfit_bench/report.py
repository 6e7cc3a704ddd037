"""The results as tables: for a screen, and in Markdown."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from latentfit_bench.systems import FLOOR

WIDTH = 80  # of a screen
LABEL = 22  # letters of a row's name there


def _digits(value: float) -> int:
    # A large value needs no cents, and the table must fit a screen.
    return 2 if abs(value) < 100 else 1


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.{_digits(value)}f}"


def _spread(statistic: Mapping[str, Any]) -> str:
    mean = statistic["mean"]
    if len(statistic["values"]) < 2:
        return _number(mean)
    return f"{_number(mean)} ± {statistic['std']:.{_digits(mean)}f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _short(value: float | None) -> str:
    """Write a count with three digits: 950, 12.3k, 1.25M."""
    if value is None:
        return ""
    rounded = float(f"{value:.3g}")
    size, unit = (1e6, "M") if rounded >= 1e6 else (1e3, "k") if rounded >= 1e3 else (1, "")
    return f"{rounded / size:g}{unit}"


def _percent(statistic: Mapping[str, Any]) -> str:
    if statistic["mean"] is None:
        return ""
    spread = f" ± {100 * statistic['std']:.1f}" if len(statistic["values"]) > 1 else ""
    return f"{100 * statistic['mean']:.1f}{spread}"


def _label(name: str, row: Mapping[str, Any]) -> str:
    """Name the row, and for "auto" what it chose."""
    chosen = dict.fromkeys(row.get("chosen", ()))
    return f"{name} ({', '.join(chosen)})" if chosen else name


def _marked(text: str) -> str:
    """Escape a plugin's name, or its error, for Markdown: it stands there as the text that it is."""
    return re.sub(r"([\\`*_{}\[\]<>|~$&#!])", r"\\\1", " ".join(text.split()))


def printable(text: str) -> str:
    """Escape what would steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _mean(row: Mapping[str, Any], key: str) -> float | None:
    mean: float | None = row.get(key, {}).get("mean")  # results of earlier versions lack some keys
    return mean


def _fcd(row: Mapping[str, Any]) -> str:
    return _spread(row["fcd"]) or "failed"


Column = tuple[str, str, Callable[[Mapping[str, Any]], str]]
"""Heads on the screen and in Markdown, and what gives a row's cell."""
PAPER: Column = ("paper", "Paper's FCD", lambda row: _number(row["paper_fcd"]))
ACCURACY: Column = ("acc., %", "Accuracy, %", lambda row: _percent(row["accuracy"]))
DRAW: Column = ("draw, s", "Draw, s", lambda row: _number(_mean(row, "sample_seconds")))
PARAMETERS: Column = ("params", "Parameters", lambda row: _short(_mean(row, "parameters")))
LEFT_OUT = (PARAMETERS[0], DRAW[0], "penult.", PAPER[0], "fit, s", "NLL")
"""The columns that a narrow screen can do without, those that are missed least first."""


def _columns(floor: float | None, *, conditional: bool) -> list[Column]:
    def over_floor(row: Mapping[str, Any]) -> str:
        fcd = _mean(row, "fcd")
        return "" if floor is None or fcd is None else _number(fcd / floor)

    return [
        ACCURACY if conditional else PAPER,
        ("FCD", "FCD", _fcd),
        ("/floor", "FCD / Resample", over_floor),
        ("penult.", "FCD, penultimate layer", lambda row: _spread(row["fcd_penultimate"])),
        ("NLL", "NLL, nats", lambda row: _spread(row["nll"])),
        ("fit, s", "Fit, s", lambda row: _seconds(_mean(row, "fit_seconds"))),
        DRAW,
        PARAMETERS,
    ]


def _cells(
    rows: Mapping[str, Mapping[str, Any]], *, long: bool, conditional: bool = False
) -> list[list[str]]:
    """Return the table by columns, with their heads, without those that are empty."""
    floor = rows[FLOOR]["fcd"]["mean"] if FLOOR in rows else None
    head = "by digit" if conditional else "system"
    escape = _marked if long else printable
    labels = (escape(_label(*item)) for item in rows.items())
    cells = [[head.capitalize() if long else head, *labels]]
    for short_head, long_head, cell in _columns(floor, conditional=conditional):
        column = [cell(row) for row in rows.values()]
        if any(column):
            cells.append([long_head if long else short_head, *column])
    return cells


def failures(results: Mapping[str, Any]) -> list[str]:
    """Return a line for each failure: the row, the seed and the error."""
    kinds = ((results["systems"], ""), (results.get("conditional", {}), " by digit"))
    return [
        f"{name}{kind}, seed {failure['seed']}: {failure['error']}"
        for rows, kind in kinds
        for name, row in rows.items()
        for failure in row.get("errors", ())
    ]


def _aligned(cells: list[list[str]]) -> list[str]:
    first, *others = cells
    others = [[cell.replace(" ± ", "±") for cell in column] for column in others]  # it is wide
    columns = [[cell.ljust(max(map(len, first))) for cell in first]]
    columns += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _fitting(cells: list[list[str]]) -> list[str]:
    """Align a table, without the columns that can be missed most easily if it is too wide."""
    cells = [[_cut(cell) for cell in cells[0]], *cells[1:]]
    for head in ("", *LEFT_OUT):
        cells = [column for column in cells if column[0] != head]
        lines = _aligned(cells)
        if max(map(len, lines)) <= WIDTH:
            break
    return lines


def _cut(label: str) -> str:
    return label if len(label) <= LABEL else f"{label[: LABEL - 1]}…"


def screen_table(results: Mapping[str, Any]) -> str:
    """Return aligned tables of at most 80 columns; the report and `table.md` have what is left out."""
    lines = _fitting(_cells(results["systems"], long=False))
    conditional = results.get("conditional")
    if conditional:
        lines += ["", *_fitting(_cells(conditional, long=False, conditional=True))]
    return "\n".join(lines)


def _markdown(cells: list[list[str]]) -> str:
    head, *rows = ("| " + " | ".join(row) + " |" for row in zip(*cells, strict=True))
    return "\n".join([head, "| --- |" + " ---: |" * (len(cells) - 1), *rows])


def markdown_table(results: Mapping[str, Any], *, brief: bool = False) -> str:
    """Return the tables with their provenance, as a Markdown document.

    Args:
        results: Of a run, or read from `results.json`.
        brief: Leaves out the times to draw and the numbers of parameters.
    """
    classifier, data = results["classifier"], results["data"]
    tables = [_cells(results["systems"], long=True)]
    conditional = results.get("conditional")
    if conditional:
        tables.append(_cells(conditional, long=True, conditional=True))
    if brief:
        left_out = {DRAW[1], PARAMETERS[1]}
        tables = [[column for column in cells if column[0] not in left_out] for cells in tables]
    notes = [
        f"Fréchet classifier distance (FCD, lower is better) between {results['settings']['samples']:,} "
        f"images and the {data['train']:,} binary training images ({data['binarize']}), in the logits "
        f"of the reference classifier (test accuracy {classifier['test_accuracy']:.2%}, SHA-256 "
        f"`{classifier['sha256'][:12]}`), and in its penultimate layer.",
        "Resample, training latents drawn again and decoded, is the floor: what a perfect sampler "
        "would reach with this autoencoder.",
        "NLL is of held-out latents, standardised.",
        "Seconds to fit are those of the sampler alone for systems on the autoencoder, and of the "
        "whole training for AAE and VAE.",
    ]
    if not brief:
        notes.append("Seconds to draw are those of sampling and decoding.")
    if conditional:
        notes.append(
            "By digit: samplers that are given the digit, asked for as many samples of each. The accuracy is "
            "the classifier's on them, and the NLL is given the digit. Resample, training latents of each "
            "digit drawn again, is the floor of the distance and the ceiling of an honest sampler's accuracy."
        )
    if any(system["paper_fcd"] is not None for system in results["systems"].values()):
        notes.append(
            "The paper's classifier is not published: compare order and ratios with its values, "
            "not the values."
        )
    seeds = results["seeds"]
    notes.append(f"Seeds: {', '.join(map(str, seeds))}.")
    if len(seeds) > 1:
        notes.append("± is the standard deviation over them.")
    if results["quick"]:
        notes.append("This is a **quick** run: its trainings are too short to be quoted.")
    versions = _marked(
        ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    )
    made = (
        f"Made {results['created']} on {results['device']}, "
        f"{results['machine']['torch_threads']} threads, in {results['seconds']:.0f} s, with "
        f"{versions}."
    )
    title = f"# `latentfit bench {results['benchmark']}`"
    failed = "\n".join(f"- Failed: {_marked(line)}" for line in failures(results))
    parts = [title, *map(_markdown, tables), failed, " ".join(notes), made]
    parts = [part for part in parts if part]
    return "\n\n".join(parts) + "\n"
