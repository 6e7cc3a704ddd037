"""benchmarks/growth.py: what is projected from a part of a fit, and what is made of results."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
growth = importlib.import_module("growth")
sys.path.pop(0)


def test_a_fit_is_projected_from_its_first_steps_and_one_evaluation() -> None:
    """Two seconds before the first of 12 steps of 1 s, one in three with an evaluation of 3 s."""
    row = growth.projected(10.0, [12.0, 13.0, 14.0], 18.0, 12)
    assert row["setup_seconds"] == 2
    assert row["step_seconds"] == 1
    assert row["evaluation_seconds"] == 3
    assert row["fit_seconds"] == 2 + 12 + 4 * 3


@pytest.mark.parametrize("method, steps", [("realnvp", 3000), ("gan", 8000), ("gmm", None)])
def test_a_method_is_measured(method: str, steps: int | None) -> None:
    row = growth.measure(method, 400, 2)
    assert row.get("steps") == steps
    assert row["fit_seconds"] > 0
    assert row["draw_seconds"] > 0
    assert row["fit_mb"] >= 0
    if steps:
        between = {3000: 75, 8000: 80}[steps]
        assert row["steps_between"] == between
        assert row["fit_seconds"] > steps * row["step_seconds"]


def test_what_fails_is_told_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = growth.in_a_process("no-such-method", 400, 2)
    assert "no-such-method" in row["error"]
    monkeypatch.setattr(growth, "LIMIT", 0.05)
    assert growth.in_a_process("gmm", 400, 2) == {"error": "more than 0.05 s"}


def test_results_become_a_table_and_a_figure(tmp_path: Path) -> None:
    def row(seconds: float) -> dict[str, Any]:
        return {"fit_seconds": seconds, "fit_mb": 10.0, "draw_seconds": 0.5}

    rows: dict[str, Any] = {f"realnvp, {n}, {growth.DIM}": row(n / 1000) for n in growth.NUMBERS}
    rows |= {f"realnvp, {growth.NUMBER}, {d}": row(1 + d**2) for d in growth.DIMS}
    rows[f"realnvp, {growth.NUMBERS[0]}, {growth.DIM}"] = {"error": "more than 300 s"}
    results = {
        "rows": rows,
        "created": "2026-01-01",
        "machine": {"torch_threads": 1, "cpus": 2},
        "versions": {"torch": "2"},
    }
    lines = [line for line in growth.table(results).splitlines() if line.startswith("| realnvp")]
    assert lines[0] == "| realnvp | more than 300 s | 10.0 | 100.0 | 1,000.0 | 1.0 |"
    assert lines[3].endswith("| 16,385.0 | 262,145.0 | 2.0 |")
    growth.figure(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
