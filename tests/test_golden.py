"""Files that earlier versions wrote are loaded for ever, and give what they gave."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentfit import list_samplers, load_sampler
from latentfit.persistence import FORMAT_VERSION

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.glob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_golden_file_gives_what_it_gave(path: Path) -> None:
    expected = load_file(FOLDER / f"{path.stem.split('-')[0]}.expected")
    condition = 1 if path.stem.endswith("-classes") else None
    sampler = load_sampler(path)
    drawn = sampler.sample(5, seed=0, condition=condition)
    torch.testing.assert_close(drawn, expected[f"{path.stem}/sample"], rtol=1e-4, atol=1e-4)
    scores = expected.get(f"{path.stem}/log_prob")
    assert (scores is None) == (not sampler.has_density)
    if scores is not None:
        found = sampler.log_prob(expected["x"], condition=condition)
        torch.testing.assert_close(found, scores, rtol=1e-4, atol=1e-4)


def test_each_method_has_one_of_each_version() -> None:
    methods = {info.name for info in list_samplers() if info.distribution == "latentfit"}
    for version in range(1, FORMAT_VERSION + 1):
        names = {path.stem.removesuffix("-classes") for path in FILES}
        assert names == {f"{version}-{method}" for method in methods}
