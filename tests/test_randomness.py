"""Random numbers: seeded inside, untouched outside."""

import random
from contextlib import suppress

import numpy as np
import pytest
import torch

from latentfit.errors import OptionError
from latentfit.randomness import check_seed, isolated_rng, plugin_defaults

CPU = torch.device("cpu")


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002


def states() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return (random.getstate(), kind, keys.tolist(), *rest, torch.get_rng_state().tolist())


@pytest.mark.parametrize("seed", [0, 1, 2**32 + 1, 2**63 - 1])
def test_a_block_is_reproducible(seed: int) -> None:
    drawn = []
    for _ in range(2):
        draw()
        with isolated_rng(seed, CPU) as generator:
            drawn.append((*draw(), float(torch.rand((), generator=generator))))
    assert drawn[0] == drawn[1]
    with isolated_rng(seed // 2 + 7, CPU):
        assert draw() != drawn[0][:3]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_callers_state_comes_back(error: type[BaseException] | None) -> None:
    draw()
    before = states()
    with suppress(RuntimeError, KeyboardInterrupt), isolated_rng(3, CPU):
        draw()
        if error is not None:
            raise error
    assert states() == before


def test_blocks_nest() -> None:
    with isolated_rng(1, CPU):
        first = draw()
        with isolated_rng(2, CPU):
            draw()
        second = draw()
    with isolated_rng(1, CPU):
        assert (draw(), draw()) == (first, second)


@pytest.mark.parametrize("error", [None, ValueError])
def test_plugins_run_under_float32_on_a_real_device(error: type[Exception] | None) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with suppress(ValueError), plugin_defaults(CPU):
            inside = torch.zeros(1)
            if error:
                raise error
        outside = torch.zeros(1)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert (inside.dtype, inside.device.type) == (torch.float32, "cpu")
    assert (outside.dtype, outside.device.type) == (torch.float64, "meta")


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, np.int64(5), np.uint8(5)])
def test_whole_numbers_are_seeds(seed: int) -> None:
    assert check_seed(seed) == int(seed)
    assert type(check_seed(seed)) is int


def test_none_is_a_new_seed_each_time() -> None:
    assert len({check_seed(None) for _ in range(20)}) == 20
    assert 0 <= check_seed(None) < 2**63


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", True, [1], np.float64(1)])
def test_anything_else_is_refused(seed: object) -> None:
    with pytest.raises(OptionError, match="Expected seed as a whole number"):
        check_seed(seed)


def test_the_generator_and_the_global_state_draw_different_numbers() -> None:
    for seed in (0, 1, 2**62):
        with isolated_rng(seed, torch.device("cpu")) as generator:
            own, shared = torch.randn(1000, generator=generator), torch.randn(1000)
        assert abs(float((own * shared).mean())) < 0.15


def test_seeds_give_different_global_numbers() -> None:
    drawn = []
    for seed in range(50):
        with isolated_rng(seed, torch.device("cpu")):
            drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))  # noqa: NPY002
    assert all(len(set(column)) == 50 for column in zip(*drawn, strict=True))
