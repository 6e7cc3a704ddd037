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
from latentfit.reporting._charts import bars
from latentfit.reporting._gallery import exhibits_from
from latentfit.reporting._measures import MEASURES, value_text
from latentfit.reporting._tables import compare, measures_table
from latentfit.reporting._verdict import conclude, conclude_runs

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
    told = conclude(report({"Resample": [1.0, 1.0], "a": [1.0, 2.0], "b": [1.2, 1.9]}))
    assert told.headline == (
        "a and b are best, and too close to tell apart; a is at 1.50 times the floor."
    )
    assert "b follows with 1.55 ± 0.49, ahead on 1 of the 2 seeds." in " ".join(told.sentences)
    text = " ".join(conclude(report({"a": [1.0, 3.0], "b": [1.2, 3.1]})).sentences)
    assert "by less than they scatter" in text
    text = " ".join(conclude(report({"a": [1.0], "b": [1.2]})).sentences)
    assert "nothing tells how much of that is chance" in text


@pytest.mark.parametrize(
    "one, other, headline",
    [
        (
            [3.0, 4.0],
            [3.1, 3.2],
            "The best of 2 runs, a in y and a in x, are too close to tell apart.",
        ),
        ([1.0, 1.1], [3.1, 3.2], "Best of 2 runs is a in x: FCD 1.05 ± 0.07."),
        ([1.0], [3.1], "Best of 2 runs is a in x: FCD 1.00."),
        ([1.0, 1.1], [], "Best of 2 runs is a in x: FCD 1.05 ± 0.07."),
        ([], [], "2 runs; no sampler was measured in any."),
    ],
)
def test_the_best_of_several_runs_is_told_where_it_is_no_chance(one, other, headline):
    told, sentences = conclude_runs([report({"a": one}), report({"a": other})], ["x", "y"])
    assert told == headline
    assert ("nothing tells how much" in " ".join(sentences)) == (len(one) == 1)


def test_runs_with_floors_of_their_own_are_compared_over_these():
    runs = [
        report({"Resample": [floor] * 2, "a": a})
        for floor, a in ((1.0, [2.0, 2.1]), (2.0, [2.9, 3.0]))
    ]
    told, sentences = conclude_runs(runs, ["x", "y"])
    assert told == "Best of 2 runs is a in y: 1.48 times its floor (FCD 2.95 ± 0.07)."
    assert "floors differ (x 1.00, y 2.00)" in sentences[0]
    plain, over = compare(runs, ["x", "y"]).tables
    assert [cell.text for cell in plain.lines[1].cells] == ["2.05", "2.95"]
    assert [cell.text for cell in over.lines[1].cells] == ["2.05", "1.48"]


def test_what_has_no_number_is_left_out_of_the_table():
    rows = (
        Row("Real", {"c2st": [0.5]}, True),
        Row("Resample", {}, True),
        Row("a", {"c2st": [0.6]}),
    )
    table = measures_table(Report("t", "n", rows, primary="c2st", floor="Real"), rows)
    assert [line.name for line in table.lines] == ["Real", "a"]


def test_small_numbers_keep_their_digits():
    kid = MEASURES["kid"]
    assert value_text(kid, [-0.00024]) == "-0.00024"
    assert value_text(kid, [-0.00024, 0.0]) == "-0.00012 ± 0.00017"
    assert value_text(kid, [-0.0001, 0.005]) == "0.002 ± 0.004"
    assert value_text(kid, [1.2e-9]) == "1.2e-09"
    assert value_text(kid, [-0.004, 0.0036]) == "0.000 ± 0.005"


def test_an_auc_is_drawn_from_chance_on():
    rows = (
        Row("Real", {"c2st": [0.44]}, True),
        Row("a", {"c2st": [0.6]}),
        Row("b", {"c2st": [0.7]}),
    )
    drawn = bars(Report("t", "n", rows, primary="c2st", floor="Real"))
    assert drawn.linear_ticks[0] == ("0.5", 0.0)
    assert [bar.linear for bar in drawn.bars] == sorted(bar.linear for bar in drawn.bars)
    assert drawn.bars[0].linear == 0.0


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
    assert told.headline == "a: its C2ST AUC is 0.60, where 0.50 is perfect."
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


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"quick": "junk"}, "Expected quick as a flag"),
        ({"models": "<b>junk</b>"}, "Expected models as a dict"),
        ({"classifier": None}, "TypeError"),
    ],
)
def test_members_of_another_kind_are_told(changed, told):
    with pytest.raises(FileFormatError, match=told):
        report_of(results(**changed))


def test_a_member_that_is_missing_is_named():
    given = results()
    del given["classifier"]
    with pytest.raises(FileFormatError, match="'classifier' is missing; run the benchmark again"):
        report_of(given)


def test_only_png_images_are_taken():
    kept = exhibits_to(exhibits())
    kept["pictures"][0]["png"] = base64.b64encode(b"<svg onload=alert(1)>").decode()
    with pytest.raises(FileFormatError, match="expected images as PNG"):
        exhibits_from(kept, "gallery.json")
    assert report_of(results(), Exhibits()).exhibits == Exhibits()
