import copy

import pytest

from latentfit_bench import report
from latentfit_bench.measure import summary
from latentfit_bench.systems import SYSTEMS

NOTHING = summary([])


def results(n=3, scale=1.0):
    values = [scale * (10 + seed) for seed in range(n)]
    return {
        "benchmark": "mnist",
        "created": "2026-01-01T00:00:00+00:00",
        "device": "cpu",
        "seeds": list(range(n)),
        "seconds": 12.0,
        "quick": False,
        "versions": {"torch": "2.13.0"},
        "machine": {"torch_threads": 2},
        "classifier": {"sha256": "ab" * 32, "test_accuracy": 0.9941},
        "data": {"train": 60000, "binarize": "threshold"},
        "settings": {"samples": 10000},
        "systems": {
            name: {
                "paper_fcd": system.paper_fcd,
                "fcd": summary(values),
                "fcd_penultimate": summary(values),
                "fit_seconds": summary(values) if system.kind == "sampler" else NOTHING,
                "sample_seconds": summary(values) if system.kind == "sampler" else NOTHING,
                "nll": summary(values) if system.kind == "sampler" else NOTHING,
                "parameters": summary([9_999_499] * n) if system.kind == "sampler" else NOTHING,
                "errors": [],
            }
            for name, system in SYSTEMS.items()
        },
    }


def test_summary_is_mean_and_sample_deviation():
    assert summary([1.0, 2.0, 4.5]) == {
        "mean": 2.5,
        "std": pytest.approx(1.8027756377319946),
        "values": [1.0, 2.0, 4.5],
    }
    assert summary([3.0])["std"] == 0
    assert summary([]) == {"mean": None, "std": None, "values": []}


def with_methods(n, scale=1.0):
    """All systems, and "auto", whose choices make the longest label."""
    made = results(n, scale)
    sampler = made["systems"]["FlowAE"]
    chosen = ["flow-matching"] * n
    made["systems"]["auto"] = {**sampler, "paper_fcd": None, "chosen": chosen, "ranking": [[]] * n}
    made["conditional"] = {
        "Resample": {**made["systems"]["Resample"], "accuracy": summary([0.952] * n)},
        "auto": {**made["systems"]["auto"], "accuracy": summary([0.9305, 0.9105, 0.9205][:n])},
    }
    return made


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("n", [1, 3])
def test_the_screens_table_fits_and_has_all_rows(n, scale):
    lines = report.screen_table(with_methods(n, scale)).splitlines()
    assert max(map(len, lines)) <= 80
    first, second = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert [line.split()[0] for line in first[2:]] == [*SYSTEMS, "auto"]
    assert [line.split()[0] for line in second[2:]] == ["Resample", "auto"]
    assert first[-1].startswith("auto (flow-matching)")
    assert ("±" in first[2]) == (n > 1)


def test_accuracies_are_told_in_percent():
    assert "| 92.0 ± 1.0 |" in report.markdown_table(with_methods(3))
    assert "| 93.0 |" in report.markdown_table(with_methods(1))


@pytest.mark.parametrize(
    "count, text",
    [(7, "7"), (999, "999"), (1000, "1k"), (12_345, "12.3k"), (999_499, "999k"), (999_501, "1M")],
)
def test_counts_have_three_digits(count, text):
    made = results(1)
    made["systems"]["FlowAE"]["parameters"] = summary([count])
    (row,) = (line for line in report.screen_table(made).splitlines() if "FlowAE " in line)
    assert row.split()[-1] == text


def test_a_row_that_failed_says_so_and_why():
    made = results(2)
    made["systems"]["FlowAE"] |= {
        **dict.fromkeys(("fcd", "fcd_penultimate", "fit_seconds", "nll", "parameters"), NOTHING),
        "errors": [{"seed": s, "error": "DivergenceError: it blew up"} for s in (0, 1)],
    }
    text = report.markdown_table(made)
    assert "| FlowAE | 4.65 | failed |" in text
    assert "- Failed: FlowAE, seed 1: DivergenceError: it blew up\n" in text
    assert len(report.failures(made)) == 2
    assert report.failures(results(2)) == []


def test_a_brief_table_leaves_out_two_columns():
    rows = {
        brief: report.markdown_table(results(), brief=brief).splitlines()[2].split(" | ")
        for brief in (False, True)
    }
    assert rows[False][: len(rows[True])] == [*rows[True][:-1], "Fit, s"]
    assert [cell.strip(" |") for cell in rows[False][-2:]] == ["Draw, s", "Parameters"]


def test_the_markdown_table_is_well_formed():
    text = report.markdown_table(results())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(SYSTEMS)
    assert len({row.count("|") for row in rows}) == 1
    (flow,) = (row for row in rows if row.startswith("| FlowAE |"))
    assert "| 4.65 | 11.00 ± 1.00 | 1.00 |" in flow


def test_a_quick_run_says_so():
    quick = {**results(), "quick": True}
    assert "quick" in report.markdown_table(quick)
    assert "quick" not in report.markdown_table(results())


def test_without_the_floor_there_are_no_ratios():
    chosen = copy.deepcopy(results())
    del chosen["systems"]["Resample"]
    assert "/floor" not in report.screen_table(chosen)
    assert "/floor" in report.screen_table(results())


HOSTILE = [
    "a | b",
    "<script>alert(1)</script>",
    "[a](javascript:alert(1)) [b](http://127.0.0.1/)",
    "![a](http://127.0.0.1/a.png)",
    "`a` **b** _c_ ~~d~~ $e$",
    "a\n\n# b\n\n---\n| c |",
    "&lt;b&gt; \\| <!-- c -->",
    "<http://127.0.0.1>",
    "\x1b[31mred\x07",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_and_errors_are_text_in_markdown_and_on_a_screen(render, hostile):
    plain, made = results(2), results(2)
    for each in (plain, made):
        each["conditional"] = {"Resample": {**each["systems"]["Resample"], "accuracy": NOTHING}}
    row = {**plain["systems"]["FlowAE"], "errors": [{"seed": 0, "error": "e"}], "chosen": ["m"]}
    error = {"seed": 0, "error": hostile}
    for rows in ("systems", "conditional"):
        plain[rows]["p"] = {**row, "accuracy": NOTHING}
        made[rows][hostile] = {**row, "accuracy": NOTHING, "errors": [error], "chosen": [hostile]}
    made["versions"][hostile] = hostile
    expected, got = render(report.markdown_table(plain)), render(report.markdown_table(made))
    assert got.kinds == expected.kinds
    name = " ".join(hostile.split())
    assert [
        [f"{name} ({name})", *cells[1:]] if cells[0] == "p (m)" else cells
        for cells in expected.rows
    ] == got.rows

    lines = report.screen_table(made).splitlines()
    assert len(lines) == len(report.screen_table(plain).splitlines())
    assert all(line.isprintable() for line in lines)
