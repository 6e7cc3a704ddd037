"""Break the code in small ways, one at a time, and see whether the tests notice: mutation testing.

    pip install mutmut==3.8.1
    python benchmarks/mutants.py [persistence] [transforms] [registry] [metrics]
        [--sample N] [--seed 0] [--out FOLDER]

The mutants are those of mutmut's operators. They are run here, because mutmut passes over functions with a
decorator, properties and all that stands outside functions, and its mutants don't reach the processes that
tests start. Left alone are annotations, decorators and texts in triple quotes; a mutant that changes nothing
which anybody could see counts as one that survived.

Each is run in a fork that has torch and pytest already, with a copy of latentfit in which one file is
changed, against the tests of that file, until one of them fails. One that takes ten times as long as the
tests do without it, and half a minute, has timed out. Where ``--sample`` is less than there are, that
many are drawn. Writes mutants.json to the folder; modules that are not named keep what is there.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.metadata
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What tests and latentfit import; a fork has it there already. Nothing of latentfit's own.
HEAVY = ("torch", "numpy", "scipy.stats", "sklearn.cluster", "sklearn.neural_network", "pytest")
HEAVY += ("hypothesis", "safetensors.torch", "torchmetrics.image.kid", "ot", "prdc", "click")
AS_THEY_ARE = ("len", "isinstance")  # calls: without an argument they raise, as mutmut has it
KILLED, TIMED_OUT, SURVIVED = "killed", "timed_out", "survived"

# The files of each module, and the tests of each file: those that take seconds, the quickest first.
# FILE::WORD are the tests whose names have the word.
NAMES, WRONG = "tests/test_boundaries.py::every_name_in_all", "tests/test_wrong_arguments.py"
OURS, CUSTOM = ("tests/test_transforms.py", NAMES), ("tests/test_custom.py", NAMES)
FIXED = ("tests/test_metrics.py", f"{WRONG}::frechet", f"{WRONG}::gaussian_moments", NAMES)
NEIGHBOURS = (
    "tests/test_neighbours.py",
    *(f"{WRONG}::{name}" for name in ("precision", "density_coverage", "copying")),
    NAMES,
)
TWO_SAMPLE = (
    "tests/test_two_sample.py",
    *(f"{WRONG}::metrics.{name}" for name in ("c2st", "energy", "kernel", "sliced")),
    NAMES,
)
METRICS = tuple(dict.fromkeys(FIXED + NEIGHBOURS + TWO_SAMPLE))
MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "persistence": {
        "latentfit/persistence.py": (
            "tests/test_persistence.py",
            "tests/test_paths.py::a_sampler_that_is_not_there",
            "tests/test_paths.py::read_only",
            "tests/test_golden.py",
            NAMES,
        )
    },
    "transforms": {
        "latentfit/transforms.py": (*OURS, *CUSTOM),
        "latentfit/affine.py": OURS,
        "latentfit/principal.py": OURS,
        "latentfit/custom.py": CUSTOM,
    },
    "registry": {
        "latentfit/registry.py": ("tests/test_registry.py", f"{WRONG}::list_samplers", NAMES)
    },
    "metrics": {
        "latentfit/metrics/__init__.py": METRICS,
        "latentfit/metrics/_arrays.py": METRICS,
        "latentfit/metrics/_gaussian.py": FIXED,
        "latentfit/metrics/_neighbours.py": NEIGHBOURS,
        "latentfit/metrics/_two_sample.py": TWO_SAMPLE,
    },
}
# These start fresh interpreters, ten seconds and more each.
TOO_LONG = (
    "tests/test_persistence.py::test_another_process_gives_the_same_samples_and_scores_bit_for_bit",
    "tests/test_registry.py::test_a_saved_sampler_imports_the_plugin_of_its_name_and_no_other",
)


@dataclass(frozen=True)
class Mutant:
    """A file with one change.

    Attributes:
        file: Its path in the repository.
        source: The whole file.
        line: Where the change is.
        change: The lines that go, and those that come.
    """

    file: str
    source: str
    line: int
    change: str


def mutants_of(file: str, source: str) -> Iterator[Mutant]:
    """All mutants of a source, each once, in its order."""
    import libcst as cst
    from libcst.metadata import MetadataWrapper
    from mutmut.mutation.mutators import mutation_operators

    tree = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True).module
    seen = {source}
    for node in _nodes(tree):
        for kind, operator in mutation_operators:
            for changed in operator(node) if isinstance(node, kind) else ():
                mutated = tree.deep_replace(node, changed).code  # type: ignore[arg-type]
                if mutated not in seen and _compiles(mutated):
                    seen.add(mutated)
                    yield Mutant(file, mutated, *_difference(source, mutated))


def _nodes(node: Any) -> Iterator[Any]:
    import libcst as cst

    if isinstance(node, cst.Annotation | cst.Decorator):
        return
    if isinstance(node, cst.Call) and getattr(node.func, "value", None) in AS_THEY_ARE:
        return
    yield node
    for child in node.children:
        yield from _nodes(child)


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _difference(source: str, mutated: str) -> tuple[int, str]:
    old, new = source.splitlines(), mutated.splitlines()
    changes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    _, start, stop, *other = next(change for change in changes if change[0] != "equal")
    gone = [f"- {line.strip()}" for line in old[start:stop]]
    return start + 1, "\n".join(gone + [f"+ {line.strip()}" for line in new[slice(*other)]])


class Chosen:
    """For pytest: of the tests that were collected those that are meant, those that take seconds last.

    Args:
        tests: Files, or a file, :: and what the name of a test has.
    """

    def __init__(self, tests: tuple[str, ...]) -> None:
        self.words: dict[str, list[str]] = {}
        for file, _, word in (test.partition("::") for test in tests):
            self.words.setdefault(file, []).append(word)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Take out the others, and put those that start interpreters behind."""
        kept = []
        for item in items:
            file, _, name = item.nodeid.partition("::")
            if any(word in name for word in self.words[file]):
                kept.append(item)
        items[:] = sorted(kept, key=lambda item: "run_python" in item.fixturenames)


class Bench:
    """A copy of latentfit in which files are changed, and the tests that are run against it.

    Args:
        folder: Where the copy is made; an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(
            ROOT / "latentfit", folder / "latentfit", ignore=shutil.ignore_patterns("__pycache__")
        )
        self.changes = 0

    def write(self, file: str, source: str) -> None:
        """Put a file's source into the copy, so that no compiled one is taken for it."""
        path = self.folder / file
        path.write_text(source, "utf-8")
        self.changes += 1
        os.utime(path, (self.changes, self.changes))

    def run(self, tests: tuple[str, ...], limit: float) -> tuple[str, float]:
        """Run tests in a fork until one fails; tell what came of it, and the seconds."""
        began = time.monotonic()
        child = os.fork()
        if not child:
            self._test(tests)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            seconds = time.monotonic() - began
            if ended:
                with_success = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
                return SURVIVED if with_success else KILLED, seconds
            if seconds > limit:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return TIMED_OUT, seconds
            time.sleep(0.02)

    def seconds(self, tests: tuple[str, ...]) -> float:
        """Tell how long tests take without a mutant.

        Raises:
            RuntimeError: They fail.
        """
        outcome, seconds = self.run(tests, 600)
        if outcome != SURVIVED:
            output = (self.folder / "output").read_text()
            raise RuntimeError(f"{', '.join(tests)} fail without a mutant:\n{output}")
        return seconds

    def _test(self, tests: tuple[str, ...]) -> None:
        """Be the fork: never return."""
        code = 1
        try:
            os.setsid()  # what the tests start ends with it
            quiet = os.open(self.folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            paths = [
                str(self.folder),
                *(str(ROOT / part) for part in ("", "plugins", "benchmarks")),
            ]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # half a second; no test needs any
            sys.path[:0] = paths
            os.chdir(ROOT)
            import pytest

            skipped = (f"--deselect={test}" for test in TOO_LONG)
            options = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not slow")
            options += ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # what is there already
            where = f"--basetemp={self.folder / 'tmp'}"
            chosen = Chosen(tests)
            code = int(pytest.main([*options, where, *skipped, *chosen.words], [chosen]))
        except BaseException:  # a mutant that pytest itself can't stand
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def measure(module: str, sample: int | None, seed: int, bench: Bench) -> dict[str, Any]:
    """Run a module's mutants.

    Raises:
        RuntimeError: Its tests fail without any, before or after: then failures tell nothing.
    """
    files = MODULES[module]
    sources = {file: (ROOT / file).read_text("utf-8") for file in files}
    there = [mutant for file in files for mutant in mutants_of(file, sources[file])]
    tried = there
    if sample is not None and sample < len(there):
        chosen = sorted(random.Random(seed).sample(range(len(there)), sample))
        tried = [there[index] for index in chosen]
    limits = {tests: 10 * bench.seconds(tests) + 30 for tests in dict.fromkeys(files.values())}
    counts = dict.fromkeys((KILLED, TIMED_OUT, SURVIVED), 0)
    survivors = []
    for number, mutant in enumerate(tried, 1):
        bench.write(mutant.file, mutant.source)
        tests = files[mutant.file]
        outcome, _ = bench.run(tests, limits[tests])
        bench.write(mutant.file, sources[mutant.file])
        counts[outcome] += 1
        if outcome == SURVIVED:
            survivors.append({k: v for k, v in asdict(mutant).items() if k != "source"})
            print(f"{mutant.file}:{mutant.line}\n{mutant.change}", file=sys.stderr)
        print(f"{module} {number}/{len(tried)} {counts}", file=sys.stderr, flush=True)
    for tests in limits:
        bench.seconds(tests)
    caught = counts[KILLED] + counts[TIMED_OUT]
    return {
        "files": list(files),
        "mutants": len(there),
        "tried": len(tried),
        **counts,
        "share": caught / max(1, len(tried)),
        "seed": seed,
        "mutmut": importlib.metadata.version("mutmut"),
        "commit": _commit(),
        "survivors": survivors,
    }


def _commit() -> str:
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    """Break, count and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(MODULES), help=", ".join(MODULES))
    parser.add_argument("--sample", type=int, help="mutants of each module; all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for mutants.json")
    arguments = parser.parse_args()
    unknown = set(arguments.modules) - set(MODULES)
    if unknown:
        parser.error(f"expected modules among {', '.join(MODULES)}; got {', '.join(unknown)}")
    for name in HEAVY:
        importlib.import_module(name)
    path = arguments.out / "mutants.json" if arguments.out else None
    found = json.loads(path.read_text("utf-8")) if path and path.exists() else {}
    for module in arguments.modules:
        with tempfile.TemporaryDirectory() as folder:
            found[module] = measure(
                module, arguments.sample, arguments.seed, Bench(Path(folder).resolve())
            )
        print(json.dumps(found[module], indent=1))
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
