"""The result in words: which sampler is best, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from latentfit.arguments import check_kind
from latentfit.reporting._measures import MEASURES, number, value_text
from latentfit.reporting._model import Report, Row

__all__ = ["Verdict", "conclude", "conclude_runs", "floors_differ", "headline"]

_CHANCE = "With one seed, nothing tells how much of that is chance."


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
    headline, its, at = f"{best.name} is best", "its", ", at"
    if len(ranked) > 1 and _turns(best, ranked[1], report.primary):
        headline = f"{best.name} and {ranked[1].name} are best, and too close to tell apart"
        its, at = f"{best.name}'s", f"; {best.name} is at"
    elif len(ranked) == 1:
        headline, at = best.name, " is at"
    tiles = [(measure.name, value_text(measure, best.values[report.primary]), best.name)]
    sentences = []
    told = value_text(measure, best.values[report.primary])
    if measure.least:
        headline += (
            f": {its} {measure.name} is {number(value)}, where {number(measure.least)} is perfect."
        )
        sentences.append(measure.tells)
    elif floor:
        headline += f"{at} {_times(value / floor)} the floor."
    else:
        headline += ", the only sampler." if len(ranked) == 1 else "."
        sentences.append(f"Its {measure.name} is {told}.")
    if floor is not None:
        what = (
            "other rows of the data"
            if measure.least
            else "the floor for any sampler of this autoencoder"
        )
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
        note = best.name
        if len(ranked) > 1:
            note += ", the fastest" if fastest[1] == best.name else f"; the fastest: {fastest[1]}"
        tiles.append(("To fit", value_text(MEASURES["fit_seconds"], [time]) + " s", note))
    tiles.append(
        (
            "Seeds",
            str(len(report.seeds)),
            "± is their deviation" if len(report.seeds) > 1 else "no deviation without a second",
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
        return f"{told}. {_CHANCE}"
    seeds, turns = len(ours), _turns(best, second, report.primary)
    if turns:
        return f"{told}, ahead on {turns} of the {seeds} seeds."
    close = ", by less than they scatter" if _is_close(ours, theirs) else ""
    return f"{told}, behind on each of the {seeds} seeds{close}."


def _turns(best: Row, second: Row, primary: str) -> int:
    """Count the seeds on which the second is as good or better; none where the two can't be paired."""
    ours, theirs = best.values[primary], second.values[primary]
    if len(ours) != len(theirs) or len(ours) < 2:
        return 0
    return sum(a >= b for a, b in zip(ours, theirs, strict=True))


def floors_differ(reports: Sequence[Report]) -> bool:
    """Tell whether runs have floors of their own that a ratio can be formed with."""
    floors = [report.floor_value for report in reports]
    if any(MEASURES[report.primary].least for report in reports) or not all(floors):
        return False
    return len({number(floor) for floor in floors if floor}) > 1


def conclude_runs(reports: Sequence[Report], names: Sequence[str]) -> tuple[str, list[str]]:
    """Say which sampler of comparable runs is best, and how sure that is.

    Runs are compared over their own floors, where these differ: a lower one is the autoencoder's merit.

    Args:
        reports: Of one benchmark.
        names: What tells them apart.

    Returns:
        A headline, and sentences that qualify it.
    """
    leaders = [
        (report, name) for report, name in zip(reports, names, strict=True) if report.samplers
    ]
    if not leaders:
        return f"{len(reports)} runs; no sampler was measured in any.", []
    measure = MEASURES[reports[0].primary]
    over_floor = floors_differ([report for report, _ in leaders])
    found = []
    for report, name in leaders:
        best = report.samplers[0]
        values = list(best.values[report.primary])
        told = f"{measure.name} {value_text(measure, values)}"
        if over_floor and (floor := report.floor_value):
            values = [value / floor for value in values]
            told = f"{_times(fmean(values))} its floor ({told})"
        found.append((fmean(values), f"{best.name} in {name}", values, told))
    found.sort(key=lambda leader: leader[0])
    _, who, ours, told = found[0]
    sentences = []
    if over_floor:
        floors = ", ".join(f"{name} {number(r.floor_value or 0.0)}" for r, name in leaders)
        sentences.append(
            f"The runs' floors differ ({floors}): each sampler is held against that of its own run."
        )
    headline = f"Best of {len(reports)} runs is {who}: {told}."
    if len(found) > 1:
        _, other, theirs, theirs_told = found[1]
        if min(len(ours), len(theirs)) < 2:
            sentences.append(f"{other} follows with {theirs_told}. {_CHANCE}")
        elif _is_close(ours, theirs):
            headline = (
                f"The best of {len(reports)} runs, {who} and {other}, are too close to tell apart."
            )
            sentences.append(
                f"{who}: {told}; {other}: {theirs_told}. They differ by less than they scatter."
            )
        else:
            sentences.append(f"{other} follows with {theirs_told}.")
    return headline, sentences


def _is_close(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Tell whether means are nearer to each other than the values, two or more of each, scatter."""
    return abs(fmean(theirs) - fmean(ours)) <= stdev(ours) + stdev(theirs)


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 10 else f"{ratio:.0f} times"


def _failures(names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"{', '.join(names)} failed at least once; the errors stand below the table."]
