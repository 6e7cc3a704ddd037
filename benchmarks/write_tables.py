"""Write the table of README.md from the published results: python benchmarks/readme_results.py."""

import json
from pathlib import Path

from latentfit_bench.report import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mnist" / "results.json"
START, END = "<!-- results -->\n", "<!-- end of results -->\n"


def with_results(readme: str) -> str:
    """Return the README's text with the table of the published results between its two marks."""
    head, _, rest = readme.partition(START)
    _, _, tail = rest.partition(END)
    if not tail:
        raise ValueError(f"Expected README.md to hold {START!r} and, later, {END!r}.")
    document = markdown_table(json.loads(RESULTS.read_text()), brief=True)
    _, _, table = document.partition("\n\n")  # without its title
    return f"{head}{START}\n{table}\n{END}{tail}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_results(path.read_text()))
