"""Building the site runs the examples of the documentation, all of their code; an error there ends it."""

import re
from pathlib import Path

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
