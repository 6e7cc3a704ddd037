"""The tables that compare methods with each other and with other libraries, from the published results."""

import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
FLOOR = "Resample"
METHODS = (
    *("realnvp", "spline", "spline-ar", "maf", "flow-matching", "gmm"),
    *("wgan-gp", "r3gan", "gan", "kde", "gaussian", "planar", "radial"),
)
PEERS = {  # as a reader knows them, in the order of the table
    "latentfit `realnvp`": "realnvp",
    "latentfit `gmm`": "gmm",
    "latentfit `flow-matching`": "flow-matching",
    "latentfit `wgan-gp`": "wgan-gp",
    "Pythae, mixture of 10": "Pythae GMM",
    "Pythae, MAF": "Pythae MAF",
    "Pythae, MAF at ten times its learning rate": "Pythae MAF, learning rate 1e-3",
    "scikit-learn, mixture of 10": "scikit-learn GMM 10",
    "scikit-learn, mixture of 200": "scikit-learn GMM 200",
    "a loop over normflows, RealNVP": "normflows RealNVP",
    "a loop over nflows, spline": "nflows spline",
    "a loop over zuko, spline": "zuko NSF",
}


class Measured:
    """What the runs found of each method with its defaults."""

    def __init__(self) -> None:
        names = ("peers", "methods", "growth", "conditional")
        self._peers, self._methods, self._growth, conditional = (
            json.loads((RESULTS / name / "results.json").read_text()) for name in names
        )
        self.by_digit: dict[str, Any] = conditional["conditional"]
        spatial = json.loads((RESULTS / "convolutional" / "results.json").read_text())
        self._convolutional: dict[str, Any] = spatial["autoencoders"]

    def peer(self, name: str) -> dict[str, float | None]:
        """Medians over the repeats beside other libraries, with "over_floor"."""
        rows = self._peers["rows"]
        found: dict[str, float | None] = {}
        for key in ("fcd", "nll", "fit_seconds", "sample_seconds"):
            values = [row[key] for row in rows[name] if row[key] is not None]
            found[key] = statistics.median(values) if values else None
        floor = statistics.median(row["fcd"] for row in rows[FLOOR])
        assert found["fcd"] is not None
        return found | {"over_floor": found["fcd"] / floor}

    def ten(self, method: str) -> dict[str, float | None]:
        """The same of ten latents, for a method of any run."""
        if method in self._peers["rows"]:
            return self.peer(method)
        systems = self._methods["systems"]
        found: dict[str, float | None] = {
            key: systems[method][key]["mean"]
            for key in ("fcd", "nll", "fit_seconds", "sample_seconds")
        }
        assert found["fcd"] is not None
        return found | {"over_floor": found["fcd"] / systems[FLOOR]["fcd"]["mean"]}

    def is_of_one_seed(self, method: str) -> bool:
        """Whether a method was measured once only."""
        return method not in self._peers["rows"]

    def convolutional(self, method: str, kind: str) -> float:
        """The FCD over the floor's of 64 latents of a convolutional autoencoder, "spatial" or "flat"."""
        rows = self._convolutional[kind]["rows"]
        ratio: float = rows[f"{method}, auto"]["fcd"] / rows[FLOOR]["fcd"]
        return ratio

    def wide(self, method: str) -> float | None:
        """Seconds of a fit to 20,000 latents of 512 dimensions."""
        row = self._growth["rows"].get(f"{method}, 20000, 512", {})
        found: float | None = row.get("fit_seconds")
        return found


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 0.01:
        return "< 0.01"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else f"{value:.2f}"


def _minutes(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.1" if value < 6 else f"{value / 60:.1f}" if value < 600 else f"{value / 60:.0f}"


def peers() -> str:
    """The README's: latentfit beside other libraries on one autoencoder."""
    found = Measured()
    lines = ["| | FCD / floor | fit, s | draw 10,000, s | NLL, nats |", "| --- |" + " ---: |" * 4]
    for label, name in PEERS.items():
        row = found.peer(name)
        cells = [_ratio(row["over_floor"]), _seconds(row["fit_seconds"])]
        cells += [_seconds(row["sample_seconds"]), _nats(row["nll"])]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measured() -> str:
    """All methods with their defaults: ten latents, sixty-four, and five hundred."""
    found = Measured()
    lines = [
        "| method | FCD / floor, 10 latents | NLL, nats | fit, s | draw 10,000, s | FCD / floor, 4x4x4 | "
        "FCD / floor, 64 | fit of 512, min |",
        "| --- |" + " ---: |" * 7,
    ]
    for method in METHODS:
        row = found.ten(method)
        mark = " (1)" if found.is_of_one_seed(method) else ""
        cells = [_ratio(row["over_floor"]) + mark, _nats(row["nll"])]
        cells += [_seconds(row["fit_seconds"]), _seconds(row["sample_seconds"])]
        cells += [_ratio(found.convolutional(method, kind)) for kind in ("spatial", "flat")]
        cells.append(_minutes(found.wide(method)))
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def decisions() -> str:
    """What to take for what, each with the numbers that say so."""
    found = Measured()

    def floors(method: str) -> str:
        return f"{_ratio(found.ten(method)['over_floor'])} floors"

    def fit(method: str) -> str:
        return f"{_seconds(found.ten(method)['fit_seconds'])} s"

    def nats(method: str) -> str:
        return f"{_nats(found.ten(method)['nll'])} nats"

    def both(method: str) -> str:
        kinds = (found.convolutional(method, kind) for kind in ("spatial", "flat"))
        return " and ".join(map(_ratio, kinds)) + " floors"

    accuracy, best = (found.by_digit[name]["accuracy"]["mean"] for name in ("realnvp", FLOOR))
    draws = _seconds(found.ten("wgan-gp")["sample_seconds"])
    lines = [
        (
            "a density and good samples, in a few to some tens of dimensions",
            "`realnvp`, the default",
            f"{floors('realnvp')} after {fit('realnvp')}",
        ),
        (
            "no training loop and nothing to tune, in few dimensions",
            "`gmm`",
            f"{floors('gmm')} after {fit('gmm')}",
        ),
        (
            "the likelihood itself, as for anomaly scores",
            "`spline-ar`",
            f"{nats('spline-ar')}, where `realnvp` has {nats('realnvp')} and `gaussian` {nats('gaussian')}",
        ),
        (
            "latents of a convolutional encoder, tens of dimensions and more",
            "`flow-matching`, with ten minutes",
            f"{both('flow-matching')} on two encoders of 64 latents, where `gmm` has {both('gmm')}",
        ),
        (
            "an adversarial generator, as the paper's AdvAE",
            "`wgan-gp`",
            f"{floors('wgan-gp')} after {fit('wgan-gp')}, 10,000 draws in {draws} s; no density",
        ),
        (
            "samples by class",
            '`condition="labels"` with any but `planar` and `radial`',
            f"a classifier sees the digit asked for in {100 * accuracy:.1f} % of `realnvp`'s samples; "
            f"the autoencoder allows {100 * best:.1f} %",
        ),
        (
            "a baseline that anything has to beat",
            "`gaussian`, `kde`",
            f"{floors('gaussian')} and {floors('kde')}, in no time",
        ),
        (
            "not to choose",
            '`method="auto"`',
            f"{both('auto')} on the two convolutional encoders, in ten minutes",
        ),
    ]
    rows = "".join(f"| {want} | {take} | {numbers} |\n" for want, take, numbers in lines)
    return f"| what you want | what to take | what was measured |\n| --- | --- | --- |\n{rows}"
