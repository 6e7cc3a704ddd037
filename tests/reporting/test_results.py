"""What is read of a benchmark's folder, and what the page says of it in words."""

import base64
import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest

from latentfit.errors import DataError, FileFormatError
from latentfit.reporting import (
    Exhibits,
    Report,
    Row,
    exhibits_to,
    headline,
    read_report,
    render,
    report_of,
)
from latentfit.reporting._gallery import exhibits_from
from latentfit.reporting._verdict import conclude

from .conftest import FCD, HOSTILE, exhibits, results

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "results"


def report(values: dict[str, list[float]], **more) -> Report:
    rows = tuple(
        Row(name, {"fcd": v}, is_reference=name in ("Real", "Resample"))
        for name, v in values.items()
    )
    return Report(title="t", name="n", rows=rows, seeds=(0, 1), **more)


def test_the_rows_are_those_of_the_results(run_folder):
    read = read_report(run_folder)
    assert {row.name: list(row.values["fcd"]) for row in read.rows} == FCD
    assert [row.name for row in read.samplers] == ["flow", HOSTILE, "gan", "long" * 60]
    assert read.floor_value == pytest.approx(0.95)
    assert [row.is_reference for row in read.rows[:3]] == [True, True, False]
    assert read.rows[2].spread("fcd") == pytest.approx(np.std([1.2, 1.4], ddof=1))
    assert len(read.exhibits.pictures) == 13
    assert read_report(run_folder / "results.json").rows == read.rows


def test_the_verdict_says_who_is_best_and_by_how_much():
    told = conclude(report({"Resample": [1.0, 1.0], "a": [1.1, 1.3], "b": [2.0, 2.2]}))
    assert told.headline == "a is best, at 1.20 times the floor."
    text = " ".join(told.sentences)
    assert "b follows with 2.10 ± 0.14, behind on each of the 2 seeds." in text


def test_what_may_be_chance_is_said_to_be():
    text = " ".join(conclude(report({"a": [1.0, 2.0], "b": [1.2, 1.9]})).sentences)
    assert "ahead on 1 of the 2 seeds: the two are too close to tell apart." in text
    text = " ".join(conclude(report({"a": [1.0, 3.0], "b": [1.2, 3.1]})).sentences)
    assert "by less than they scatter" in text
    text = " ".join(conclude(report({"a": [1.0], "b": [1.2]})).sentences)
    assert "nothing tells how much of that is chance" in text


def test_where_nothing_was_measured_nothing_is_claimed():
    assert headline(report({"Real": [1.0, 1.0]})) == "No sampler was measured."
    failed = Report(title="t", name="n", rows=(Row("a", errors=("seed 0: e",)),))
    assert conclude(failed).sentences == [
        "a failed at least once; the errors stand below the table."
    ]
    assert "<html" in render(failed)


def test_an_auc_is_not_told_as_a_ratio():
    rows = (Row("Real", {"c2st": [0.5]}, is_reference=True), Row("a", {"c2st": [0.6]}))
    told = conclude(Report("t", "n", rows, primary="c2st", floor="Real"))
    assert told.headline == "a is the only sampler: its C2ST AUC is 0.60, where 0.50 is perfect."
    assert "times" not in " ".join(told.sentences)


def test_a_gallery_comes_back_as_it_was_written():
    shown = exhibits()
    again = exhibits_from(json.loads(json.dumps(exhibits_to(shown), allow_nan=False)), "file")
    assert again.pictures == shown.pictures
    assert again.neighbours[0].png == shown.neighbours[0].png
    assert np.allclose(again.maps[0].real.points, shown.maps[0].real.points, rtol=1e-3)
    assert np.array_equal(again.maps[0].real.labels, shown.maps[0].real.labels)
    assert again.curves[0].losses.keys() == shown.curves[0].losses.keys()
    assert exhibits_to(again) == exhibits_to(shown)


@pytest.mark.parametrize("name", ["mnist", "methods", "conditional"])
def test_published_results_can_be_read(name):
    read = read_report(PUBLISHED / name)
    page = render(read)
    kept = json.loads((PUBLISHED / name / "results.json").read_text())
    for row in read.rows:
        own = kept["systems"][re.sub(r" \(.*", "", row.name)]["fcd"]["mean"]
        assert row.mean("fcd") == pytest.approx(own)
        assert row.name in page


@pytest.mark.parametrize("name", ["peers", "steps"])
def test_results_of_a_study_are_told_to_be_none_of_a_benchmark(name):
    with pytest.raises(FileFormatError, match="Expected the results of a benchmark"):
        read_report(PUBLISHED / name)


def test_nothing_there_is_told(tmp_path):
    with pytest.raises(DataError, match=r"results\.json"):
        read_report(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"schema": 1}', "null", "\xff"])
def test_damaged_files_are_told(run_folder, tmp_path, text):
    (tmp_path / "results.json").write_text(text, encoding="latin-1")
    with pytest.raises(FileFormatError, match=r"results\.json"):
        read_report(tmp_path)
    (tmp_path / "results.json").write_bytes((run_folder / "results.json").read_bytes())
    (tmp_path / "gallery.json").write_text(text, encoding="latin-1")
    with pytest.raises(FileFormatError, match=r"gallery\.json"):
        read_report(tmp_path)


def damaged():
    """Results, each with one member that is something else."""
    for key in results():
        for value in (None, 3, "x", [], {}, [[]], {"a": 1}):
            changed = copy.deepcopy(results())
            changed[key] = value
            yield key, value, changed
    for value in (float("nan"), float("inf"), "1", None, True, [1]):
        changed = results()
        changed["systems"]["flow"]["fcd"]["values"] = [value, 1.0]
        yield "fcd", value, changed


@pytest.mark.parametrize("key, value, changed", list(damaged()))
def test_results_of_any_form_are_shown_or_told(key, value, changed):
    try:
        page = render(report_of(changed))
    except FileFormatError:
        return
    assert "</html>" in page


def test_only_png_images_are_taken():
    kept = exhibits_to(exhibits())
    kept["pictures"][0]["png"] = base64.b64encode(b"<svg onload=alert(1)>").decode()
    with pytest.raises(FileFormatError, match="expected images as PNG"):
        exhibits_from(kept, "gallery.json")
    assert report_of(results(), Exhibits()).exhibits == Exhibits()
