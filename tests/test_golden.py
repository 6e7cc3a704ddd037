"""Files that earlier versions wrote are loaded for ever, and give what they gave."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentfit import list_samplers, load_sampler
from latentfit.persistence import FORMAT_VERSION

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.glob("*.safetensors"))
CONDITIONS: dict[str, Any] = {"classes": 1, "vector": [0.5, -1.0]}
VARIANTS = (*CONDITIONS, "spatial")


def _variant(path: Path) -> str:
    """What the file's name ends with, where it is no plain one."""
    return next((v for v in VARIANTS if path.stem.endswith(f"-{v}")), "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_file_gives_what_it_gave(path: Path) -> None:
    expected = load_file(FOLDER / f"{path.stem.split('-')[0]}.expected")
    condition = CONDITIONS.get(_variant(path))
    sampler = load_sampler(path)
    drawn = sampler.sample(5, seed=0, condition=condition)
    torch.testing.assert_close(drawn, expected[f"{path.stem}/sample"], rtol=1e-4, atol=1e-4)
    scores = expected.get(f"{path.stem}/log_prob")
    assert (scores is None) == (not sampler.has_density)
    if scores is not None:
        rows = expected["images" if _variant(path) == "spatial" else "x"]
        found = sampler.log_prob(rows, condition=condition)
        torch.testing.assert_close(found, scores, rtol=1e-4, atol=1e-4)


def test_each_method_has_one_of_each_version() -> None:
    methods = {info.name for info in list_samplers() if info.distribution == "latentfit"}
    for version in range(1, FORMAT_VERSION + 1):
        names = {path.stem for path in FILES if not _variant(path)}
        assert names == {f"{version}-{method}" for method in methods}


@pytest.mark.parametrize("variant", VARIANTS)
def test_conditions_and_shapes_have_files_of_each_version(variant: str) -> None:
    versions = {int(path.stem.split("-")[0]) for path in FILES if _variant(path) == variant}
    assert versions == set(range(1, FORMAT_VERSION + 1))
