"""The result in words: which sampler is best, by how much, and how sure that is."""

from __future__ import annotations

from typing import NamedTuple

from latentfit.arguments import check_kind
from latentfit.reporting._measures import MEASURES, number, value_text
from latentfit.reporting._model import Report, Row

__all__ = ["Verdict", "conclude", "headline"]


class Verdict(NamedTuple):
    """The result: a headline, sentences that qualify it, and the numbers that it stands on."""

    headline: str
    sentences: list[str]
    tiles: list[tuple[str, str, str]]


def conclude(report: Report) -> Verdict:
    """Say what the report's numbers come to; each word of it follows from them."""
    measure = MEASURES[report.primary]
    ranked = report.samplers
    failed = [row.name for row in report.rows if row.errors]
    if not ranked:
        what = "No sampler was measured" if not failed else "No sampler could be measured"
        return Verdict(f"{what}.", _failures(failed), [])
    best = ranked[0]
    value = best.mean(report.primary) or 0.0
    floor = report.floor_value
    headline = f"{best.name} is {'best' if len(ranked) > 1 else 'the only sampler'}"
    tiles = [(measure.name, value_text(measure, best.values[report.primary]), best.name)]
    sentences = []
    told = value_text(measure, best.values[report.primary])
    if measure.least:
        headline += (
            f": its {measure.name} is {number(value)}, where {number(measure.least)} is perfect."
        )
        sentences.append(measure.tells)
    elif floor:
        headline += f", at {_times(value / floor)} the floor."
    else:
        headline += "."
        sentences.append(f"Its {measure.name} is {told}.")
    if floor is not None:
        what = "the floor for any sampler of this autoencoder"
        that = f"that of {report.floor}, {what}, is {number(floor)}."
        sentences.append(f"Its {measure.name} is {told}; {that}")
    if floor and not measure.least:
        over = f"{value / floor:.2f} ×"
        tiles.append(("Over the floor", over, f"{report.floor}: {number(floor)}"))
    if len(ranked) > 1:
        sentences.append(_lead(best, ranked[1], report))
        last = ranked[-1]
        if len(ranked) > 2 and value > 0 and not measure.least:
            ratio = (last.mean(report.primary) or 0.0) / value
            sentences.append(f"The last, {last.name}, is {_times(ratio)} as far away as the best.")
    time = best.mean("fit_seconds")
    if time is not None:
        fastest = min(
            (row.mean("fit_seconds") or 0.0, row.name)
            for row in ranked
            if row.mean("fit_seconds") is not None
        )
        note = "the fastest fit" if fastest[1] == best.name else f"fastest: {fastest[1]}"
        tiles.append(("To fit", value_text(MEASURES["fit_seconds"], [time]) + " s", note))
    tiles.append(
        (
            "Seeds",
            str(len(report.seeds)),
            "± is their deviation" if len(report.seeds) > 1 else "so chance is not seen",
        )
    )
    return Verdict(headline, sentences + _failures(failed), tiles)


def headline(report: Report) -> str:
    """Say in a sentence which sampler of a report is best, and how good that is."""
    check_kind("report", report, Report, "a Report")
    return conclude(report).headline


def _lead(best: Row, second: Row, report: Report) -> str:
    """Tell how far the best is ahead of the second, and whether that may be chance."""
    measure = MEASURES[report.primary]
    ours, theirs = best.values[report.primary], second.values[report.primary]
    told = f"{second.name} follows with {value_text(measure, theirs)}"
    if len(ours) != len(theirs) or len(ours) < 2:
        return f"{told}. With one seed, nothing tells how much of that is chance."
    wins = sum(a < b for a, b in zip(ours, theirs, strict=True))
    seeds = len(ours)
    if wins == seeds:
        gap = sum(theirs) / seeds - sum(ours) / seeds
        spread = (best.spread(report.primary) or 0.0) + (second.spread(report.primary) or 0.0)
        close = ", by less than they scatter" if gap < spread else ""
        return f"{told}, behind on each of the {seeds} seeds{close}."
    ahead = f"ahead on {seeds - wins} of the {seeds} seeds"
    return f"{told}, {ahead}: the two are too close to tell apart."


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 10 else f"{ratio:.0f} times"


def _failures(names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"{', '.join(names)} failed at least once; the errors stand below the table."]
