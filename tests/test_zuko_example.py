"""The example of a third party's plugin: what holds of it without zuko, which latentfit does not depend on.

Its own tests run the conformance suite; CI installs it, with zuko, and runs them.
"""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "latentfit-zuko"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
OURS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MODULE = ast.parse((EXAMPLE / "latentfit_zuko.py").read_text("utf-8"))


def test_it_registers_classes_that_are_there_under_names_of_its_own():
    entries = PROJECT["entry-points"]["latentfit.samplers"]
    assert entries.keys() == {"zuko-nsf", "zuko-naf"}
    assert not entries.keys() & OURS["entry-points"]["latentfit.samplers"].keys()
    classes = {node.name for node in MODULE.body if isinstance(node, ast.ClassDef)}
    for value in entries.values():
        module, _, name = value.partition(":")
        assert (EXAMPLE / f"{module}.py").is_file()
        assert name in classes


def test_it_uses_the_plugin_api_only():
    froms = {node.module for node in ast.walk(MODULE) if isinstance(node, ast.ImportFrom)}
    names = {a.name for n in ast.walk(MODULE) if isinstance(n, ast.Import) for a in n.names}
    assert {name for name in froms | names if name.startswith("latentfit")} == {"latentfit.plugin"}
    declared = {requirement.partition(">")[0] for requirement in PROJECT["dependencies"]}
    assert {n.partition(".")[0] for n in froms | names} - {
        "__future__",
        "abc",
        "typing",
    } == declared


def test_latentfit_does_not_depend_on_it_and_ci_tests_it_with_a_pinned_zuko():
    groups = OURS["optional-dependencies"].items()
    extras = [r for name, group in groups for r in group if name != "peers"]  # of a benchmark alone
    assert not [r for r in OURS["dependencies"] + extras if "zuko" in r]
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert [line for line in pins if line.startswith("zuko==")]
    ci = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    installs = "pip install --quiet --no-deps -e docs/examples/latentfit-zuko"
    assert ci.index(installs) < ci.index("latentfit samplers --check")
    assert "pytest -p no:cacheprovider -n auto docs/examples/latentfit-zuko" in ci


def test_its_page_lists_its_methods():
    page = (EXAMPLE / "README.md").read_text("utf-8")
    for name in PROJECT["entry-points"]["latentfit.samplers"]:
        assert f"| `{name}` |" in page
