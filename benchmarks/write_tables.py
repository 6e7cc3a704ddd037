"""Write the tables of README.md and of pages in docs/ from the published results.

    python benchmarks/write_tables.py

Each stands between two marks with its name: the lines <!-- results --> and <!-- end of results -->, say.
"""

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import method_tables
import profiles
from latentfit_bench.report import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# The spline steps are held against one step of nflows' six layers, the others against the same model's.
DEFAULT_SPLINE, SIX_LAYERS = "spline of 4 layers, nflows", "spline of 6 layers, nflows"


def between_marks(document: str, table: str, name: str = "results") -> str:
    """Return the document with the table between the two marks of this name.

    Raises:
        ValueError: The marks aren't there.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    head, _, rest = document.partition(start)
    _, closed, tail = rest.partition(end)
    if not closed:
        raise ValueError(f"Expected the document to hold {start!r} and, later, {end!r}.")
    return f"{head}{start}\n{table}\n{end}{tail}"


def benchmark() -> str:
    """The README's: what `latentfit bench mnist` found."""
    results = _results("mnist")
    floor = results["systems"]["Resample"]["fcd"]["mean"]
    over = {name: row["fcd"]["mean"] / floor for name, row in results["systems"].items()}
    summary = (
        f"The default flow (FlowAE-default) comes to {over['FlowAE-default']:.2f} times the distance of a "
        f"perfect sampler, the paper's to {over['FlowAE']:.1f}, its AdvAE to {over['AdvAE']:.1f}, and a VAE "
        f"that is sampled from its prior to {over['VAE']:.0f}."
    )
    table = markdown_table(results, brief=True).partition("\n\n")[2]  # without its title
    return f"{summary}\n\n" + re.sub(
        r"(\d) ± (\d)", "\\1\u00a0±\u00a0\\2", table
    )  # no line breaks there


def bars() -> str:
    """What the project promises beside what was measured."""
    peers, steps, mnist = (_results(name) for name in ("peers", "steps", "mnist"))
    found, rows = peers["bars"], steps["rows"]
    over = found["fcd_over_floor"]
    flows = {name: over[name] for name in ("realnvp", "spline", "gmm", "flow-matching")}
    best = found["best_adversarial_over_best_flow"]
    step = {name: statistics.median(row["step_ratio"]) for name, row in rows.items()}
    draw = {name: statistics.median(row["draw_ratio"]) for name, row in rows.items()}
    same = {name: ratio for name, ratio in step.items() if name != SIX_LAYERS}
    spline = statistics.median(rows[DEFAULT_SPLINE]["ours"]) / statistics.median(
        rows[SIX_LAYERS]["raw"]
    )
    minutes = mnist["seconds"] / len(mnist["seeds"]) / 60
    lines = [
        *(_line(f"FCD of `{name}` over Resample's", 1.25, value) for name, value in flows.items()),
        _line("the best of these four", 1.10, min(flows.values())),
        _line("FCD of `wgan-gp` over Resample's", 1.4, over["wgan-gp"]),
        _line("FCD of `r3gan` over Resample's", 1.15, over["r3gan"]),
        _line(
            f"FCD of the best adversarial method over the best flow's: {best['of'][0]} over {best['of'][1]}",
            1.10,
            best["fcd"],
        ),
        _line("its fit time over that flow's", 5, best["fit_seconds"]),
        _line(
            "density, the best method's over Resample's", 0.97, found["best_density_over_floor"], -1
        ),
        _line("coverage, likewise", 0.97, found["best_coverage_over_floor"], -1),
        _line(
            "time of `realnvp` to beat the final FCD and NLL of Pythae's MAF, over that one's fit time",
            0.2,
            found["default_to_beat_over_peers_fit"],
        ),
        _line("a training step over the raw library's, the worst method", 1.05, max(same.values())),
        _line("drawing 10,000 over the raw library, the worst method", 1.05, max(draw.values())),
        _line("a step of `spline` over nflows' of six layers", 0.5, spline),
        _line("a step of `spline(layers=6)` over the same", 0.5, step[SIX_LAYERS]),
        _line("`latentfit bench mnist`, minutes", 8, minutes),
    ]
    return "| what | bar | measured | |\n| --- | ---: | ---: | --- |\n" + "".join(lines)


def reliability() -> str:
    """What came of files that were damaged, of processes that were killed and of code that was broken."""
    damage, kills = _results("reliability", "damage"), _results("reliability", "kills")
    saves, fits, stores = kills["saves"], kills["checkpoints"], kills["stores"]
    forged = [found for kind, found in damage["outcomes"].items() if "forged" in kind]
    n, n_forged = damage["files"], sum(sum(found.values()) for found in forged)
    taken = sum(found.get("a sampler", 0) for found in forged)
    failures, ran = len(damage["failures"]), int(damage["code_that_ran"])
    lines = {
        f"{n - n_forged:,} damaged or hostile files": (
            f"{n - n_forged - damage['damaged_files_taken']:,} refused by an error of latentfit's"
        ),
        f"{n_forged:,} forged files with the right digest": (
            f"{taken:,} are samplers that draw, as the change was harmless; {n_forged - taken - failures:,} "
            "end in an error of latentfit's"
        ),
        "all of these": (
            f"{failures} other errors; {ran} times that code ran; {damage['longest_seconds']:.2f} s for the "
            f"slowest; {damage['memory_growth_mb']:.0f} MB of memory"
        ),
        f"{saves['kills']} kills of a process that saves, {saves['kills_within_a_write']} of them while a "
        "file was half written": f"{saves['files_whole']} times the old file or the new one, whole",
        f"{fits['kills']} kills of fits with a checkpoint, {fits['kills_within_a_write']} of them while it "
        "was written": (
            f"{fits['fits_that_ended']} fits came to their end, {fits['equal_bit_for_bit']} bit for bit "
            "as if nobody had killed them"
        ),
        f"{stores['kills']} kills of the filling of a store, which ended {stores['fillings_that_ended']} "
        "times": (
            f"{stores['incomplete_and_says_so']} times a store that says it is not complete, "
            f"{stores['complete']} times a complete one, {stores['right']} of them right"
        ),
    }
    covered = _results("reliability", "coverage")
    lines["the tests, under coverage"] = (
        f"{covered['percent_statements_covered']:.1f} % of the lines of latentfit/, "
        f"{covered['percent_branches_covered']:.1f} % of its branches"
    )
    for module, found in _results("reliability", "mutants").items():
        lines[
            f"{found['tried']:,} of the {found['mutants']:,} mutants of {module}, drawn at random"
        ] = (
            f"{found['killed']} fail a test, {found['timed_out']} end at the limit of time, "
            f"{found['survived']} go unnoticed: {100 * found['share']:.0f} % are caught"
        )
    rows = "".join(f"| {what} | {came} |\n" for what, came in lines.items())
    return f"| what was done | what came of it |\n| --- | --- |\n{rows}"


def profile() -> str:
    """Where the time of a training goes."""
    return "\n".join(profiles.shares(_results("profiles"))) + "\n"


def _results(folder: str, name: str = "results") -> dict[str, Any]:
    results: dict[str, Any] = json.loads((RESULTS / folder / f"{name}.json").read_text())
    return results


def _line(what: str, bar: float, value: float | None, sign: int = 1) -> str:
    """A row of the table; sign -1 where more is better."""
    limit = f"{'≤' if sign > 0 else '≥'} {bar:g}"
    if value is None:
        return f"| {what} | {limit} | not reached | missed |\n"
    met = sign * value <= sign * bar
    return f"| {what} | {limit} | {value:.3g} | {'met' if met else 'missed'} |\n"


# By document and by the name of the marks.
TABLES: dict[tuple[Path, str], Callable[[], str]] = {
    (ROOT / "README.md", "results"): benchmark,
    (ROOT / "README.md", "peers"): method_tables.peers,
    (ROOT / "docs" / "choose-a-method.md", "decisions"): method_tables.decisions,
    (ROOT / "docs" / "choose-a-method.md", "measured"): method_tables.measured,
    (ROOT / "docs" / "growth.md", "profiles"): profile,
    (ROOT / "docs" / "reliability.md", "results"): reliability,
    (ROOT / "docs" / "studies" / "peers.md", "results"): bars,
}


if __name__ == "__main__":
    for (path, name), table in TABLES.items():
        path.write_text(between_marks(path.read_text(), table(), name))
