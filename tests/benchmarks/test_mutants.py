"""Mutants: each is another program, in one place, and none is of what says nothing to Python."""

from types import SimpleNamespace

import pytest

SOURCE = '''
"""A module."""
SIZE: int = 3

@property
def first(self, rows: list[int | None]) -> int | None:
    """Give the first one."""
    return rows[0] if len(rows) > 2 else None
'''


def test_a_mutant_is_one_change_that_compiles() -> None:
    pytest.importorskip("mutmut")
    import mutants

    found = list(mutants.mutants_of("a.py", SOURCE))
    changes = [mutant.change for mutant in found]
    assert len(set(changes)) == len(found) == len({mutant.source for mutant in found})
    # Constants and decorated functions, which mutmut itself passes over.
    assert "- SIZE: int = 3\n+ SIZE: int = 4" in changes
    assert any(mutant.line == 8 and "len(rows) >= 2" in mutant.change for mutant in found)
    for mutant in found:
        compile(mutant.source, "a.py", "exec")
        kept = mutant.source.splitlines()
        differ = [i for i, line in enumerate(SOURCE.splitlines()) if line != kept[i]]
        assert differ == [mutant.line - 1]
        assert mutant.line in (3, 8)


def test_the_tests_of_a_word_are_chosen_and_interpreters_come_last() -> None:
    import mutants

    names = ["a.py::test_one", "a.py::test_two[x]", "b.py::test_one[x-y]", "b.py::test_three"]
    items = [
        SimpleNamespace(nodeid=name, fixturenames=["run_python"][i:])
        for i, name in enumerate(names)
    ]
    mutants.Chosen(("a.py", "b.py::x-")).pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == [names[1], names[2], names[0]]


def test_all_files_and_tests_that_are_meant_are_there() -> None:
    import mutants

    for files in mutants.MODULES.values():
        for file, tests in files.items():
            assert (mutants.ROOT / file).is_file()
            for test in tests:
                path, _, word = test.partition("::")
                assert word in (mutants.ROOT / path).read_text()
