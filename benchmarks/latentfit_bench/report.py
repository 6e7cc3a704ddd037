"""The results as tables: for a screen of 80 columns, and in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from latentfit_bench.systems import FLOOR


def _digits(value: float) -> int:
    # A large value needs no cents, and the table must fit 80 columns.
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


def _rows(results: Mapping[str, Any]) -> list[list[str]]:
    systems = results["systems"]
    floor = systems[FLOOR]["fcd"]["mean"] if FLOOR in systems else None
    rows = []
    for name, system in systems.items():
        ratio = system["fcd"]["mean"] / floor if floor else None
        rows.append(
            [
                name,
                _number(system["paper_fcd"]),
                _spread(system["fcd"]),
                _number(ratio),
                _spread(system["fcd_penultimate"]),
                _spread(system["nll"]),
                _seconds(system["fit_seconds"]["mean"]),
            ]
        )
    return rows


_HEAD = ["system", "paper", "FCD", "/floor", "FCD penult.", "NLL", "fit, s"]
_LONG_HEAD = [
    "System",
    "Paper's FCD",
    "FCD",
    "FCD / Resample",
    "FCD, penultimate layer",
    "NLL, nats",
    "Fit, s",
]


def _columns(head: Sequence[str], results: Mapping[str, Any]) -> list[list[str]]:
    """Return the table by columns, with their heads, without those that are empty."""
    columns = [[*cells] for cells in zip(head, *_rows(results), strict=True)]
    return [column for column in columns if any(column[1:])]


def screen_table(results: Mapping[str, Any]) -> str:
    """Return an aligned table of at most 80 columns."""
    first, *others = _columns(_HEAD, results)
    columns = [[cell.ljust(max(map(len, first))) for cell in first]]
    columns += [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    lines = ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown_table(results: Mapping[str, Any]) -> str:
    """Return the table with its provenance, as a Markdown document."""
    classifier, data = results["classifier"], results["data"]
    rows = [
        "| " + " | ".join(row) + " |" for row in zip(*_columns(_LONG_HEAD, results), strict=True)
    ]
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
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    made = (
        f"Made {results['created']} on {results['device']}, "
        f"{results['machine']['torch_threads']} threads, in {results['seconds']:.0f} s, with "
        f"{versions}."
    )
    title = f"# `latentfit bench {results['benchmark']}`"
    separator = "| --- |" + " ---: |" * (rows[0].count("|") - 2)
    parts = [title, "\n".join([rows[0], separator, *rows[1:]]), " ".join(notes), made]
    return "\n\n".join(parts) + "\n"
