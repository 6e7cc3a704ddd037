"""A benchmark that was ended goes on, row by row and seed by seed, and comes to the same results."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from latentfit.cli import cli
from latentfit_bench import runner
from latentfit_bench.unfinished import Unfinished

ARGUMENTS = [
    "bench",
    "digits",
    "--quick",
    "--seeds",
    "2",
    "--systems",
    "Real,Resample,AAE,gaussian",
]


def bench(out: Path, *more: str) -> Result:
    return CliRunner().invoke(
        cli, [*ARGUMENTS, "--conditional", "gaussian", "--out", str(out), *more]
    )


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the clock."""
    kept = {
        name: value
        for name, value in results.items()
        if name not in ("created", "seconds", "gallery")
    }
    for part in ("systems", "conditional"):
        kept[part] = {
            name: {k: v for k, v in row.items() if not k.endswith("seconds")}
            for name, row in results[part].items()
        }
    kept["models"] = {name: row["test_reconstruction"] for name, row in results["models"].items()}
    return kept


def read(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("whole")
    done = bench(out)
    assert done.exit_code == 0, done.output
    assert not (out / "unfinished").exists()
    return {**read(out), "gallery": json.loads((out / "gallery.json").read_text())}


@pytest.mark.parametrize("parts", [1, 5, 14])
def test_it_goes_on_and_comes_to_the_same_results(
    parts: int, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, count = Unfinished.keep, [0]

    def ending(self: Unfinished, *arguments: Any) -> None:
        keep(self, *arguments)
        count[0] += 1
        if count[0] == parts:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "keep", ending)
        assert bench(tmp_path).exit_code != 0
    assert not (tmp_path / "results.json").exists()
    assert len(list((tmp_path / "unfinished").iterdir())) == parts
    monkeypatch.setattr(Unfinished, "keep", lambda *_: count.append(0))
    random_state = torch.get_rng_state()
    done = bench(tmp_path)
    assert done.exit_code == 0, done.output
    assert done.stderr.count(": done before") == parts
    assert without_times(read(tmp_path)) == without_times(whole)
    assert read(tmp_path)["seconds"] > 0
    assert not (tmp_path / "unfinished").exists()
    assert (tmp_path / "samples.png").exists()
    kept = json.loads((tmp_path / "gallery.json").read_text())
    assert kept["maps"] == whole["gallery"]["maps"]
    assert kept["pictures"] == whole["gallery"]["pictures"]
    assert torch.equal(torch.get_rng_state(), random_state)


def test_parts_of_another_run_are_not_taken(tmp_path: Path) -> None:
    one = Unfinished(tmp_path / "unfinished", {"settings": 1})
    one.keep("row", 2.0, {"fcd": 1.0}, {"images": torch.ones(2)})
    assert one.take("other row") is None
    assert Unfinished(tmp_path / "unfinished", {"settings": 2}).take("row") is None
    again = Unfinished(tmp_path / "unfinished", {"settings": 1})
    taken = again.take("row")
    assert taken is not None
    assert taken[0] == {"fcd": 1.0}
    assert torch.equal(taken[1]["images"], torch.ones(2))
    assert (again.taken, again.seconds) == (1, 2.0)


def test_damaged_parts_are_measured_again(tmp_path: Path) -> None:
    kept = Unfinished(tmp_path, {})
    kept.keep("row", 2.0, {}, {"images": torch.ones(2)})
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        assert kept.take("row") is None


def test_what_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = runner.fit_and_draw
    fails = [True]

    def failing(*arguments: Any, **options: Any) -> Any:
        if fails[0]:
            raise ValueError("not today")
        return fit(*arguments, **options)

    monkeypatch.setattr(runner, "fit_and_draw", failing)
    with monkeypatch.context() as patch:  # it ends before the results are written
        patch.setattr("latentfit_bench.commands._write", lambda *_: 1 / 0)
        assert bench(tmp_path).exit_code != 0
    fails[0] = False
    assert bench(tmp_path).exit_code == 0
    assert not read(tmp_path)["systems"]["gaussian"]["errors"]
