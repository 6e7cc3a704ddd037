"""The walls between latentfit, its plugins and its benchmarks, in imports that are lazy too."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = {path.stem for path in (ROOT / "plugins").glob("*.py")}
KERNELS = {"latentfit_rational_quadratic"}  # a plugin's own second module
LIBRARIES = {"matplotlib", "nflows", "normflows", "pooch"}
PUBLIC = {
    f"latentfit{name}"
    for name in ("", ".errors", ".metrics", ".plugin", ".reporting", ".testing", ".transforms")
}


def imported(source: str) -> Iterator[str]:
    """The modules that a source imports, at its top and inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            if (
                module == "latentfit"
            ):  # `from latentfit import training` is an import of a module too
                for alias in node.names:
                    if (ROOT / "latentfit" / f"{alias.name}.py").exists():
                        yield f"latentfit.{alias.name}"


def breaches_everywhere(source: str) -> set[str]:
    """Names that exist in a checkout and an editable install only, never in a wheel."""
    return {name for name in imported(source) if name.split(".")[0] in {"plugins", "benchmarks"}}


# The one module that draws; it is imported where a figure is asked for.
DRAWS = "latentfit/diagnosis/_figure.py"


def breaches_of_latentfit(source: str) -> set[str]:
    banned = PLUGINS | LIBRARIES | {"latentfit_bench"}
    return {name for name in imported(source) if name.split(".")[0] in banned}


def breaches_of_plugin(source: str) -> set[str]:
    names = {name for name in imported(source) if name.split(".")[0].startswith("latentfit")}
    return names - {"latentfit.plugin"} - KERNELS


def breaches_of_bench(source: str) -> set[str]:
    names = {name for name in imported(source) if name.split(".")[0].startswith("latentfit")}
    return {n for n in names - PUBLIC if n.split(".")[0] != "latentfit_bench"}


WALLS = [
    ("latentfit", breaches_everywhere),
    ("plugins", breaches_everywhere),
    ("benchmarks", breaches_everywhere),
    ("tests", breaches_everywhere),
    ("latentfit", breaches_of_latentfit),
    ("plugins", breaches_of_plugin),
    ("benchmarks/latentfit_bench", breaches_of_bench),
]


@pytest.mark.parametrize("folder, breaches", WALLS)
def test_wall_holds(folder, breaches):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {str(path.relative_to(ROOT)): breaches(path.read_text("utf-8")) for path in files}
    if breaches is breaches_of_latentfit:
        assert found.pop(DRAWS) == {"matplotlib.axes", "matplotlib.figure"}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "breaches, source",
    [
        (breaches_everywhere, "import plugins.latentfit_gan"),
        (breaches_everywhere, "def f():\n    from benchmarks.latentfit_bench import idx"),
        (breaches_of_latentfit, "def f():\n    import latentfit_gan"),
        (breaches_of_latentfit, "from normflows.flows import Planar"),
        (breaches_of_latentfit, "import latentfit_bench.mnist"),
        (breaches_of_plugin, "from latentfit.training import train"),
        (breaches_of_plugin, "from latentfit import training"),
        (breaches_of_plugin, "import latentfit_nflows"),
        (breaches_of_bench, "from latentfit.sampler import LatentSampler"),
        (breaches_of_bench, "from latentfit import sampler"),
        (breaches_of_bench, "import latentfit_gan"),
    ],
)
def test_wall_would_be_seen_to_fall(breaches, source):
    assert breaches(source)


@pytest.mark.parametrize(
    "library, expected",
    [
        ("click", {"cli", "registry.py"}),
        ("sklearn", {"metrics", "reporting"}),
        ("jinja2", {"reporting"}),
        ("pytest", {"testing"}),
    ],
)
def test_who_uses_a_library(library, expected):
    users = {
        path.relative_to(ROOT / "latentfit").parts[0]
        for path in (ROOT / "latentfit").rglob("*.py")
        if library in {name.split(".")[0] for name in imported(path.read_text("utf-8"))}
    }
    assert users == expected


def test_every_name_in_all_is_there():
    """A star import, and whoever reads the list, gets what it says."""
    looked_at = 0
    for path in (ROOT / "latentfit").rglob("*.py"):
        if "template" in path.parts:
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if "__all__" not in path.read_text("utf-8"):
            continue
        module = importlib.import_module(name)
        missing = [name for name in module.__all__ if not hasattr(module, name)]
        assert not missing, name
        looked_at += 1
    assert looked_at > 40
