"""The conformance suite for samplers: what a plugin's author runs, as scikit-learn's check_estimator.

A class need not be registered::

    from latentfit.testing import check_sampler

    check_sampler(MySampler, steps=300)

Under pytest each check is a test of its own::

    from latentfit.testing import parametrize_with_checks

    @parametrize_with_checks([(MySampler, {"steps": 300})])
    def test_sampler(check):
        check()
"""

from latentfit.testing._check import CheckFailed, CheckResult
from latentfit.testing._runner import (
    check_sampler,
    list_checks,
    parametrize_with_checks,
    run_checks,
)

__all__ = [
    "CheckFailed",
    "CheckResult",
    "check_sampler",
    "list_checks",
    "parametrize_with_checks",
    "run_checks",
]
