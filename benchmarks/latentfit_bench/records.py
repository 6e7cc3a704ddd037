"""What a run has learnt of each row so far, and its entry in results.json."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from latentfit import LatentSampler
from latentfit_bench.measure import plain, summary
from latentfit_bench.systems import System

STATISTICS = (
    "fcd",
    "fcd_penultimate",
    "kid",
    "density",
    "coverage",
    "c2st",
    "copying",
    "fit_seconds",
    "sample_seconds",
    "nll",
    "parameters",
)


@dataclass
class Part:
    """One row with one seed.

    Attributes:
        record: What was measured.
        images: The first of its images, binary, (n, pixels); None if it failed.
        latents: Some of the latents that it drew (m, k); None if it drew none.
        history: Its sampler's training curves.
    """

    record: "Record"
    images: Tensor | None = None
    latents: Tensor | None = None
    history: dict[str, list[float]] | None = None


@dataclass
class Record:
    """One row over the seeds.

    Attributes:
        system: The row.
        values: One value for each seed that it was measured with, by statistic.
        errors: What failed: seed and error.
        details: What the sampler of the last seed tells of itself.
        chosen: The method that "auto" chose, for each seed.
        ranking: What it chose it by, for each seed.
    """

    system: System
    values: dict[str, list[float]] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)
    ranking: list[list[dict[str, Any]]] = field(default_factory=list)

    def add(self, measured: dict[str, float]) -> None:
        """Append one seed's values."""
        for key, value in measured.items():
            self.values.setdefault(key, []).append(value)

    def describe(self, sampler: LatentSampler) -> None:
        """Take over what a fitted sampler tells of itself."""
        info = sampler.info
        self.details = {
            "options": {"method": self.system.method, **info["options"]},
            "plugin": info["versions"]["plugin"],
            "fit": info["fit"],
        }
        if "ranking" in info:
            self.chosen.append(sampler.method)
            self.ranking.append(info["ranking"])

    def fail(self, seed: int, error: Exception) -> str:
        """Note an error, and return it as one line."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        self.errors.append({"seed": seed, "error": text})
        return text

    def merge(self, other: "Record") -> None:
        """Append what another record of the same row has."""
        for key, values in other.values.items():
            self.values.setdefault(key, []).extend(values)
        self.errors += other.errors
        self.details = other.details or self.details
        self.chosen += other.chosen
        self.ranking += other.ranking

    def state(self) -> dict[str, Any]:
        """What :meth:`restored` needs, as JSON values."""
        rest = {name: getattr(self, name) for name in ("errors", "details", "chosen", "ranking")}
        state: dict[str, Any] = plain(rest)
        return state | {"values": {k: [float(x) for x in v] for k, v in self.values.items()}}

    @classmethod
    def restored(cls, system: System, state: dict[str, Any]) -> "Record":
        """Make a record from its state."""
        return cls(system, **state)

    def result(self, statistics: Sequence[str] = STATISTICS) -> dict[str, Any]:
        """Return the row's entry in the results, ready for JSON."""
        entry: dict[str, Any] = {"description": self.system.description}
        entry |= {"options": {}, **self.details, "errors": self.errors}
        if self.ranking:
            entry |= {"chosen": self.chosen, "ranking": self.ranking}
        entry |= {key: summary(self.values.get(key, [])) for key in statistics}
        result: dict[str, Any] = plain(entry)
        return result
