"""Reports from the files that a benchmark leaves: its results, and its gallery beside them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentfit.arguments import check_kind, check_path, told
from latentfit.errors import DataError, FileFormatError
from latentfit.reporting._gallery import GALLERY, exhibits_from, what_is_wrong
from latentfit.reporting._measures import seconds
from latentfit.reporting._model import Exhibits, Report, Row

__all__ = ["RESULTS", "read_report", "report_of"]

RESULTS = "results.json"
_SCHEMA = 1
_REFERENCES = ("Real", "Reconstruction", "Resample")
_MOST_BYTES = 2**28  # a folder of results may come from anyone


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read what a benchmark left.

    Args:
        path: Its folder, or the ``results.json`` in it; a ``gallery.json`` beside that is read too.

    Raises:
        OptionError: It is no path.
        DataError: There are no results.
        FileFormatError: They are damaged, or no results of a benchmark.
    """
    place = Path(check_path("path", path))
    file = place / RESULTS if place.is_dir() else place
    if not file.is_file():
        raise DataError(
            f"Expected path as a folder with the {RESULTS} of a benchmark, or that file; got "
            f"{told(str(path))}, and there is no file {file}."
        )
    results = _json(file)
    if not isinstance(results, Mapping):
        raise FileFormatError(
            f"Expected the results of a benchmark in {file}; got {told(results)}."
        )
    gallery = file.with_name(GALLERY)
    exhibits = exhibits_from(_json(gallery), str(gallery)) if gallery.is_file() else Exhibits()
    name = file.absolute().parent.name if file.name == RESULTS else file.stem
    try:
        return report_of(results, exhibits, name=name)
    except FileFormatError as error:
        raise FileFormatError(f"{file}: {error}") from error


def _json(file: Path) -> Any:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        return json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"Expected {file} to be JSON; {error}.") from error


def report_of(
    results: Mapping[str, Any], exhibits: Exhibits | None = None, *, name: str = ""
) -> Report:
    """Make a report of a benchmark's results.

    Args:
        results: As they stand in ``results.json``.
        exhibits: What there is to look at beside them.
        name: What tells the run from others.

    Raises:
        OptionError: Arguments of another kind.
        FileFormatError: They are no results of a benchmark.
    """
    check_kind("results", results, Mapping, "a dict, as it stands in results.json")
    check_kind("exhibits", exhibits, (Exhibits, type(None)), "Exhibits or None")
    check_kind("name", name, str, "a text")
    try:
        if results["schema"] != _SCHEMA:
            raise ValueError(f"schema {results['schema']!r}")
        return _report(results, exhibits or Exhibits(), name)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise FileFormatError(
            f"Expected the results of a benchmark, schema {_SCHEMA}, as results; got {told(dict(results))} "
            f"({what_is_wrong(error)})."
        ) from error


def _report(results: Mapping[str, Any], exhibits: Exhibits, name: str) -> Report:
    benchmark = str(results["benchmark"])
    data, classifier = results["data"], results["classifier"]
    samples = int(results["settings"]["samples"])
    seeds = tuple(int(seed) for seed in results["seeds"])
    rows = tuple(_row(*item) for item in results["systems"].items())
    notes = [
        f"FCD is the Fréchet distance between {samples:,} images and the {int(data['train']):,} training "
        f"images in the logits of a frozen classifier. It depends on the number of images.",
        "Resample, training latents drawn again and decoded, is the floor: what a perfect sampler would "
        "reach with this autoencoder.",
    ]
    if any(row.paper is not None for row in rows):
        notes.append(
            "The paper's classifier is not published: compare order and ratios with its values, not the "
            "values."
        )
    if len(seeds) > 1:
        notes.append("± is the standard deviation over the seeds.")
    check_kind("quick", results["quick"], bool, "a flag")
    for what in ("models", "conditional"):  # which not all results have
        check_kind(what, results.get(what, {}), Mapping, "a dict")
    quick = "This is a quick run: its trainings are too short to be quoted."
    digest = str(classifier["sha256"])
    return Report(
        title=f"latentfit bench {benchmark}",
        name=name or benchmark,
        rows=rows,
        conditional=tuple(_row(*item) for item in results.get("conditional", {}).items()),
        seeds=seeds,
        notes=tuple(notes),
        warnings=(quick,) if results["quick"] else (),
        facts=_facts(results),
        comparable=json.dumps([benchmark, digest, samples, data["binarize"]]),
        exhibits=exhibits,
    )


def _row(name: str, entry: Mapping[str, Any]) -> Row:
    values = {
        str(key): [_finite(value) for value in found["values"]]
        for key, found in entry.items()
        if isinstance(found, Mapping) and isinstance(found.get("values"), list)
    }
    chosen = dict.fromkeys(str(method) for method in entry.get("chosen", ()))
    paper = entry.get("paper_fcd")
    return Row(
        name=f"{name} ({', '.join(chosen)})" if chosen else str(name),
        values=values,
        is_reference=name in _REFERENCES,
        description=str(entry.get("description", "")),
        paper=None if paper is None else _finite(paper),
        errors=tuple(f"seed {e['seed']}: {e['error']}" for e in entry.get("errors", ())),
        options=dict(entry.get("options", {})),
    )


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected finite numbers; got {value!r:.40}")
    return float(value)


def _facts(results: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Tell how a run was made."""
    data, machine, settings = results["data"], results["machine"], results["settings"]
    classifier = results["classifier"]
    facts = [
        ("Made", str(results["created"])),
        ("Took", seconds(_finite(results["seconds"]))),
        ("Seeds", ", ".join(str(seed) for seed in results["seeds"])),
        (
            "Machine",
            ", ".join(
                [
                    *([str(machine["platform"])] if "platform" in machine else []),
                    str(results["device"]),
                    f"{machine['torch_threads']} thread"
                    + ("" if machine["torch_threads"] == 1 else "s"),
                ]
            ),
        ),
        (
            "Data",
            f"{int(data['train']):,} training"
            + (f" and {int(data['test']):,} test" if "test" in data else "")
            + f" images, binarised by {data['binarize']}",
        ),
        (
            "Classifier",
            f"test accuracy {_finite(classifier['test_accuracy']):.2%}, SHA-256 {classifier['sha256']}",
        ),
        (
            "Settings",
            "; ".join(
                f"{key} {_plain(value)}"
                for key, value in settings.items()
                if value not in ({}, None)
            ),
        ),
        ("Versions", ", ".join(f"{key} {value}" for key, value in results["versions"].items())),
    ]
    hashes = data.get("sha256", {})
    if hashes:
        facts.append(
            ("SHA-256 of the data", ", ".join(f"{key}: {value}" for key, value in hashes.items()))
        )
    return tuple(facts)


def _plain(value: Any) -> str:
    """Write a setting without the brackets of a language."""
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_plain(member)}" for key, member in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "-".join(map(_plain, value))
    return str(value)
