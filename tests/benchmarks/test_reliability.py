"""docs/reliability.md names tests that are there, and the scripts that count for it work."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import damage
import kills


def test_the_tests_that_are_named_are_there(root: Path) -> None:
    named = re.findall(
        r"`((?:tests|benchmarks)/[\w/]+\.py)(?:::(\w+))?`",
        (root / "docs/reliability.md").read_text(),
    )
    assert len(named) > 20
    for file, test in named:
        tree = ast.parse((root / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not test or test in functions, test


@pytest.mark.filterwarnings("ignore")  # of libraries that are built with a file's numbers
def test_damage_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = damage.measure(120, seed=9)
    header = (
        1
        + 8
        + int.from_bytes(sorted(damage.GOLDEN.glob("*.safetensors"))[0].read_bytes()[:8], "little")
    )
    assert found["files"] == 120 + header
    assert found["failures"] == []
    assert found["damaged_files_taken"] == 0
    assert not found["code_that_ran"]


def test_what_is_none_of_our_errors_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = damage.outcome

    def outcome(path: Path) -> str:
        if path.read_bytes() == b"x":
            raise RuntimeError("none of ours")
        return whole(path)

    def cases(good: Any, n: int, seed: int, path: Path) -> Iterator[str]:
        path.write_bytes(b"x")
        yield "flip"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(damage, "outcome", outcome)
    monkeypatch.setattr(damage, "cases", cases)
    (failure,) = damage.measure(1, seed=0)["failures"]
    assert "none of ours" in failure["error"]
    assert (tmp_path / failure["file"]).read_bytes() == b"x"


@pytest.mark.parametrize("part, good", [("saves", "files_whole"), ("stores", "complete")])
def test_kills_are_counted(part: str, good: str, tmp_path: Path) -> None:
    done = subprocess.run(  # a fork needs a process without threads
        [sys.executable, str(Path(kills.__file__)), part, "--kills", "3", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "kills.json").read_text())[part]
    assert found["kills"] == 3
    assert found[good] == found.get("right", 3)
