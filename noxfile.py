"""Few verbs for what contributors do: `nox -s tests`, `lint`, `docs`, `bench` and more; `nox -l` lists them.

Each installs what it needs into an environment of its own, which is kept; `--no-venv` takes the active
one. Words after `--` go on to the command: `nox -s tests -- tests/test_fit.py -x`.
"""

from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session, extra: str) -> None:
    """Install latentfit from the checkout, with the versions that it is tested with."""
    if session.virtualenv.is_sandboxed:
        session.install("-c", "constraints.txt", "-e", f".[{extra}]" if extra else ".")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, or those that are named after `--`."""
    install(session, "dev")
    session.run("pytest", *(session.posargs or ("-n", "auto", "--dist", "loadfile")))


# Together they use each library that latentfit imports.
QUICK = (
    "tests/benchmarks/test_datasets.py",
    "tests/reporting/test_page.py",
    "tests/test_arrays.py",
    "tests/test_cli.py",
    "tests/test_diagnose_report.py",
    "tests/test_hub.py",
    "tests/test_parallel.py::test_two_processes_make_the_store_and_the_sampler_of_one",
    "tests/test_persistence.py",
)
# What the tests import, but for encoders, whose libraries need newer ones.
TOOLS = ("hypothesis", "markdown-it-py", "pot", "prdc", "pytest", "pytest-xdist", "torchmetrics")
TOOLS += ("build", "hatchling")


def lowest() -> list[str]:
    """Constraints: the lowest version of each library that latentfit imports, all others as tested.

    They come from pyproject.toml and constraints.txt. Torch is as tested too: an old one is gigabytes, so
    that pyproject.toml's bound holds is checked by no test.
    """
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["accelerate"], *extras["hub"]]
    bounds = dict(requirement.split(">=") for requirement in wanted)
    del bounds["torch"]
    bounds["pyparsing"] = "3.2"  # matplotlib 3.8 calls what later ones warn of
    pins = Path("constraints.txt").read_text("utf-8").splitlines()
    others = [pin for pin in pins if pin.split("==")[0].lower().replace("_", "-") not in bounds]
    return [*others, *(f"{name}=={bound}" for name, bound in bounds.items())]


@nox.session
def minimum(session: nox.Session) -> None:
    """Quick tests, or those named after `--`, with the lowest versions that pyproject.toml allows."""
    constraints = Path(session.create_tmp(), "constraints.txt")
    constraints.write_text("\n".join(lowest()), "utf-8")
    session.install("-c", str(constraints), "-e", ".[accelerate,hub]", *TOOLS)
    session.run("pytest", *(session.posargs or ("-m", "not slow", *QUICK)))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types and the walls between the parts."""
    install(session, "dev")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports", "--no-cache")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, its examples run, with warnings as errors: docs/_build/html/index.html."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", *session.posargs, "docs", "docs/_build/html")


@nox.session
def bench(session: nox.Session) -> None:
    """The comparison of all systems, on scikit-learn's digits or on what is named after `--`."""
    install(session, "")
    session.run("latentfit", "bench", *(session.posargs or ("digits",)))


# Vulnerabilities that are known and do no harm here: {"GHSA-...": "why"}.
ACCEPTED: dict[str, str] = {}


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of what constraints.txt pins, from PyPI; what PyPI doesn't know fails too."""
    session.install("pip-audit")
    accepted = [word for name in ACCEPTED for word in ("--ignore-vuln", name)]
    pins = ("--no-deps", "--disable-pip", "-r", "constraints.txt")  # as they are, nothing installed
    session.run("pip-audit", "--strict", *pins, *accepted, *session.posargs)
