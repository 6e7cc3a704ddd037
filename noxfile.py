"""Few verbs for what contributors do: `nox -s tests`, `lint`, `docs`, `bench`; `nox -l` lists them.

Each installs what it needs into an environment of its own, which is kept; `--no-venv` takes the active
one. Words after `--` go on to the command: `nox -s tests -- tests/test_fit.py -x`.
"""

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
