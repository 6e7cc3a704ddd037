"""Files that nobody vouches for: whatever is in one, only our errors come out, and nothing is run."""

import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from forging import Canary, places
from latentfit import LatentSampler, fit_latent_sampler, load_sampler
from latentfit.errors import LatentfitError
from latentfit.persistence import read_tensors, write_tensors

METHODS = ("realnvp", "gmm", "kde", "flow-matching", "spline", "wgan-gp")
many = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
numbers = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([2**31, 2**63, 2**64, 10**30, -(2**63)]),
    st.floats(allow_nan=False, allow_infinity=False),
)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module", params=METHODS)
def saved(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)).cumsum(1)
    few = {} if request.param in ("gmm", "kde") else {"steps": 2}
    sampler = fit_latent_sampler(
        None, x, method=request.param, condition=torch.arange(300) % 2, **few
    )
    path: Path = tmp_path_factory.mktemp("saved") / "s.safetensors"
    sampler.save(path)
    return path


def outcome(path: Path) -> LatentSampler | None:
    """Load a file and use what comes; None for one of our errors. Anything else is the test's failure."""
    try:
        sampler = load_sampler(path)
    except LatentfitError:
        return None
    repr(sampler)
    assert sampler.sample(2, seed=0, condition=0).shape == (2, *sampler.shape)
    return sampler


@many
@given(data=st.data())
def test_bytes_that_are_changed_are_noticed(data: st.DataObject, saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "swap"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[place:]
    elif kind == "insert":
        content[place:place] = data.draw(st.binary(min_size=1, max_size=20))
    else:
        other = data.draw(st.integers(0, len(content) - 1))
        content[place], content[other] = content[other], content[place]
    if bytes(content) == saved.read_bytes():
        return
    path = saved.with_name("changed")
    path.write_bytes(content)
    assert outcome(path) is None


@many
@given(data=st.data())
def test_a_forged_header_is_a_sampler_or_an_error(data: st.DataObject, saved: Path) -> None:
    # The digest is right: whoever forges a file computes it anew.
    tensors, header = read_tensors(saved)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(list(places(header))))
        tree = header
        try:
            for step in at[:-1]:
                tree = tree[step]
            if data.draw(st.booleans()):
                tree[at[-1]] = data.draw(plain)
            else:
                del tree[at[-1]]
        except (KeyError, IndexError, TypeError):  # an earlier change took it away
            continue
    path = saved.with_name("forged")
    write_tensors(path, tensors, header)
    outcome(path)


@many
@given(data=st.data())
def test_forged_tensors_are_a_sampler_or_an_error(data: st.DataObject, saved: Path) -> None:
    tensors, header = read_tensors(saved)
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors.pop(name)
    change = data.draw(st.sampled_from(["drop", "rename", "shape", "dtype", "values", "empty"]))
    if change == "rename":
        tensors[data.draw(st.text(max_size=12))] = tensor
    elif change == "shape":
        shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
        tensors[name] = torch.zeros(shape, dtype=tensor.dtype)
    elif change == "dtype":
        kinds = [torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8]
        tensors[name] = tensor.to(data.draw(st.sampled_from(kinds)))
    elif change == "values":
        value = data.draw(st.sampled_from([float("nan"), float("inf"), -1.0, 0.0, 1e38]))
        tensors[name] = torch.full_like(tensor.float(), value).to(tensor.dtype)
    elif change == "empty":
        tensors[name] = tensor[:0] if tensor.ndim else tensor.new_empty(0)
    path = saved.with_name("forged")
    write_tensors(path, tensors, header)
    try:
        sampler = load_sampler(path)
    except LatentfitError:
        return
    found = tensors[name]  # as large, and of the kind, that it has to be
    assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
    repr(sampler)


@many
@given(content=st.binary(max_size=400))
@example(content=b"")
def test_any_bytes_are_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any"
    path.write_bytes(content)
    assert outcome(path) is None
    if len(content) > 10:  # a length that fits, so that the parser is reached
        path.write_bytes((len(content) - 8).to_bytes(8, "little") + content[8:])
        assert outcome(path) is None


BOMBS = {
    "a wide network": lambda h, t: h["info"]["options"].update(hidden=[10**6, 10**6]),
    "a deep network": lambda h, t: h["info"]["options"].update(hidden=[1] * 100_000),
    "many layers": lambda h, t: h["info"]["options"].update(layers=1000, hidden=[4096] * 3),
    "many components": lambda h, t: h["info"]["options"].update(components=10**9),
    "many rows": lambda h, t: h["info"].update(n=10**12),
    "rows beyond integers": lambda h, t: h["info"].update(n=10**30),
    "a long shape": lambda h, t: h["info"].update(shape=[1] * 10**6),
    "a wide rotation": lambda h, t: (
        h["info"].update(transform="whiten"),
        t.update(
            {
                "transform.rotation": torch.zeros(3, 50_000, dtype=torch.float64),
                "transform.scale": torch.ones(50_000, dtype=torch.float64),
                "transform.slack": torch.zeros(2, dtype=torch.float64),
            }
        ),
    ),
}
LOADED = """
    import resource, sys
    from latentfit import load_sampler
    from latentfit.errors import LatentfitError

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

    load_sampler(sys.argv[1])
    before = peak()
    for path in sys.argv[2:]:
        try:
            load_sampler(path)
        except LatentfitError:
            pass
        assert peak() - before < 200, (path, peak() - before)
"""


@pytest.mark.parametrize("method", ["realnvp", "spline", "flow-matching", "wgan-gp", "kde", "gmm"])
def test_a_small_file_takes_little_memory(method: str, tmp_path: Path) -> None:
    few = {} if method in ("gmm", "kde") else {"steps": 1}
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    fit_latent_sampler(None, x, method=method, **few).save(tmp_path / "s")
    paths = [tmp_path / "s"]
    for name, bomb in BOMBS.items():
        tensors, header = read_tensors(tmp_path / "s")
        bomb(header, tensors)
        paths.append(tmp_path / name)
        write_tensors(paths[-1], tensors, header)
    script = textwrap.dedent(LOADED)
    subprocess.run([sys.executable, "-c", script, *map(str, paths)], check=True, timeout=120)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_in_disguise_is_not_opened(protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    harmful = pickle.dumps(Canary(canary), protocol)
    path = tmp_path / "sampler.safetensors"
    for content in (harmful, (len(harmful)).to_bytes(8, "little") + harmful):
        path.write_bytes(content)
        assert outcome(path) is None
    torch.save({"sampler": Canary(canary)}, path)
    assert outcome(path) is None
    text = json.dumps({"__metadata__": {"latentfit": harmful.decode("latin-1")}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert outcome(path) is None
    assert not canary.exists()
    pickle.loads(harmful)
    assert canary.exists()  # the canary sings
