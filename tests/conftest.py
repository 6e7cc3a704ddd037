"""What all tests share; the rest stands beside the tests that need it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Batches are tiny here: more threads gain nothing, and on a busy machine they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).parents[1]


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
    markdown_it = pytest.importorskip("markdown_it")

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
