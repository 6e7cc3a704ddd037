"""The README's table is that of the published results."""

import importlib.util
from pathlib import Path


def test_the_readmes_table_is_not_stale(root: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "readme_results", root / "benchmarks" / "readme_results.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    readme = (root / "README.md").read_text()

    assert module.with_results(readme) == readme
