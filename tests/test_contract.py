"""Every installed first-party method keeps the contract of latentfit.testing."""

from collections.abc import Callable
from typing import Any

from latentfit import list_samplers
from latentfit.testing import parametrize_with_checks

# As small and short as the quality that a check asks for allows; what is not named stands at its default.
OPTIONS: dict[str, dict[str, Any]] = {
    "flow-matching": {"hidden": 64, "blocks": 2, "steps": 400},
    "gan": {"hidden": (128, 128), "steps": 200},
    "gaussian": {},
    "gmm": {},
    "kde": {},
    "maf": {"layers": 3, "hidden": 32, "steps": 200},
    "planar": {"layers": 8, "steps": 200},
    "r3gan": {"hidden": (64, 64), "learning_rate": 1e-3, "steps": 150},
    "radial": {"layers": 8, "steps": 200},
    "realnvp": {"hidden": (64,), "steps": 200},
    "spline": {"layers": 2, "hidden": 32, "steps": 200},
    "spline-ar": {"layers": 2, "hidden": 32, "steps": 200},
    "wgan-gp": {"hidden": (64, 64), "learning_rate": 1e-3, "steps": 150},
}
INSTALLED = [info for info in list_samplers() if info.distribution == "latentfit"]
METHODS = [info.name for info in INSTALLED if info.error is None]


def test_every_first_party_method_is_checked() -> None:
    assert {info.name: info.error for info in INSTALLED} == dict.fromkeys(OPTIONS)


@parametrize_with_checks([(name, OPTIONS[name]) for name in METHODS])
def test_method(check: Callable[[], None]) -> None:
    check()
