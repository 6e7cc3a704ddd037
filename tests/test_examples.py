"""The examples of the documentation run from top to end, as the site runs them, in well under a minute."""

import re
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
PAGES = sorted(EXAMPLES.glob("*.md"))
CELL = re.compile(
    r"^```\{code-cell\} python\n((?::\w+:[^\n]*\n)*)(.*?)^```$", re.MULTILINE | re.DOTALL
)


def test_there_are_three_and_the_site_runs_all_their_code():
    assert [page.stem for page in PAGES] == ["anomalies", "autoencoder-kl", "autoencoder"]
    for page in PAGES:
        text = page.read_text("utf-8")
        assert text.startswith("---\nfile_format: mystnb\n")
        assert text.count("```") == 2 * len(CELL.findall(text))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_example_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    import matplotlib.pyplot as plt

    namespace = {"__name__": page.stem}
    text, began = page.read_text("utf-8"), time.process_time()
    try:
        for cell in CELL.finditer(text):
            source = "\n" * text.count("\n", 0, cell.start(2)) + cell[2]
            exec(compile(source, str(page), "exec"), namespace)
    finally:
        plt.close("all")
    assert time.process_time() - began < 60
