"""What all tests share; the rest stands beside the tests that need it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Batches are tiny here: more threads gain nothing, and on a busy machine they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from latentfit.options import describe_options
from latentfit.registry import load_sampler_class

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Let files start in their order: pytest-xdist would keep those of few but long tests to the end."""
    config.option.loadscopereorder = False


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's root."""
    return ROOT


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a fresh interpreter outside the checkout, with warnings as errors, and expect success."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


class Rendered(NamedTuple):
    """What a Markdown document is to a reader: the rows of its tables, and the kinds of markup in it."""

    rows: list[list[str]]
    kinds: set[str]


@pytest.fixture
def render() -> Callable[[str], Rendered]:
    """Read Markdown by a parser that is not ours, with tables and HTML, as a hub shows it."""
    import markdown_it

    def render(text: str) -> Rendered:
        parser = markdown_it.MarkdownIt("commonmark", {"html": True})
        rows: list[list[str]] = []
        kinds = set()
        cell = False
        for token in parser.enable(["table", "strikethrough"]).parse(text):
            kinds.add(token.type)
            if token.type == "tr_open":
                rows.append([])
            cell = token.type in ("th_open", "td_open") or (cell and token.type == "inline")
            for child in token.children or ():
                kinds.add(child.type)
            if cell and token.type == "inline":
                rows[-1].append("".join(child.content for child in token.children))
        return Rendered(rows, kinds)

    return render


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], dict[str, Any]]:
    """Options that make any method, "auto" too, as small and short as can be."""
    small = {"steps": 4, "layers": 2, "blocks": 1, "solver_steps": 2}

    def options(method: str) -> dict[str, Any]:
        if method == "auto":
            return {"methods": ("gaussian", "kde")}
        known = describe_options(load_sampler_class(method))
        hidden = (16,) if isinstance(getattr(known.get("hidden"), "default", None), tuple) else 16
        return {name: v for name, v in {**small, "hidden": hidden}.items() if name in known}

    return options
