"""What a check is, and what comes of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CheckFailed", "CheckResult", "Skipped", "Violation", "expect"]


@dataclass(frozen=True)
class CheckResult:
    """What came of one check.

    Attributes:
        name: The check's name.
        status: "passed", "failed" or "skipped".
        seconds: How long it took, with the fits that it was the first to need.
        message: What was expected, what came and where to look; why it was skipped; empty if it passed.
    """

    name: str
    status: Literal["passed", "failed", "skipped"]
    seconds: float
    message: str = ""


class CheckFailed(AssertionError):
    """A sampler breaks the contract.

    Attributes:
        failures: The results of the checks that failed.
    """

    def __init__(self, sampler: str, failures: list[CheckResult]) -> None:
        self.failures = failures
        noun = "check" if len(failures) == 1 else "checks"
        lines = [f"{sampler} fails {len(failures)} {noun}:"]
        lines += [f"  {result.name}: {result.message}" for result in failures]
        super().__init__("\n".join(lines))


class Violation(AssertionError):
    """The law that a check is about does not hold; the message says what was expected and what came."""


class Skipped(BaseException):
    """The check does not apply; the message says why. No Exception, so that nothing takes it for an error."""


def expect(condition: bool, message: str) -> None:
    """Raise a Violation with the message unless the condition holds."""
    if not condition:
        raise Violation(message)
