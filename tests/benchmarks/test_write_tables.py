"""The tables of the documents are those of the published results."""

from pathlib import Path

import pytest

import write_tables


@pytest.mark.parametrize(
    "path, name", write_tables.TABLES, ids=lambda part: getattr(part, "name", part)
)
def test_a_documents_table_is_not_stale(path: Path, name: str) -> None:
    document = path.read_text()
    table = write_tables.TABLES[path, name]()
    assert write_tables.between_marks(document, table, name) == document


def test_each_table_has_marks_of_its_own() -> None:
    document = "<!-- a -->\n<!-- end of a -->\n<!-- b -->\nold\n<!-- end of b -->\n"
    written = write_tables.between_marks(document, "new", "b")
    assert written == "<!-- a -->\n<!-- end of a -->\n<!-- b -->\n\nnew\n<!-- end of b -->\n"


def test_marks_are_needed() -> None:
    with pytest.raises(ValueError, match="end of results"):
        write_tables.between_marks("no marks", "a table")


@pytest.mark.parametrize(
    "value, sign, ending",
    [
        (1.1, 1, "1.1 | met |"),
        (1.2, 1, "1.2 | missed |"),
        (1.0, -1, "1 | missed |"),
        (None, 1, "missed |"),
    ],
)
def test_a_bar_is_met_or_missed(value: float | None, sign: int, ending: str) -> None:
    assert write_tables._line("x", 1.1, value, sign).strip().endswith(ending)
