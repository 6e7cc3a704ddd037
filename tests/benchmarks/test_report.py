import copy

import pytest

from latentfit_bench import report
from latentfit_bench.runner import summary
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
                "nll": summary(values) if system.kind == "sampler" else NOTHING,
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


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("n", [1, 3])
def test_the_screens_table_fits_80_columns_and_has_all_systems(n, scale):
    lines = report.screen_table(results(n, scale)).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[2:]] == list(SYSTEMS)
    assert ("±" in lines[2]) == (n > 1)


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
