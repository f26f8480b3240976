"""Every row of what Goka's users rely on has a test that names it, or is different on purpose; the README says so.

The markers are read from the tests' source, so that this holds whichever tests are run.
"""

import ast
import re
from functools import cache
from pathlib import Path

from tests.goka_rows import DIFFERENT, ROWS, render_differences, render_rows

TESTS = Path(__file__).parent
README = TESTS.parent / "README.md"


@cache
def naming_tests() -> dict[str, set[str]]:
    """Row -> the tests that name it."""
    found: dict[str, set[str]] = {}
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.goka":
                        for argument in mark.args:
                            assert isinstance(argument, ast.Constant), f"{path}: {node.name}: name rows literally"
                            name = f"{path.relative_to(TESTS)}::{node.name}"
                            found.setdefault(str(argument.value), set()).add(name)
    return found


def test_every_row_has_a_test() -> None:
    assert [row for rows in ROWS.values() for row in rows if row not in naming_tests()] == []


def test_every_named_row_exists() -> None:
    known = {row for rows in ROWS.values() for row in rows}
    assert {row: sorted(tests) for row, tests in naming_tests().items() if row not in known} == {}


def test_a_row_is_kept_or_different_and_listed_once() -> None:
    every = [*(row for rows in ROWS.values() for row in rows), *DIFFERENT]
    assert len(every) == len(set(every))


def test_what_names_a_row_is_run_as_a_test() -> None:
    named = {name.rsplit("::", 1)[1] for names in naming_tests().values() for name in names}
    assert [name for name in sorted(named) if not name.startswith("test_")] == []


def test_the_readme_has_both_lists_as_they_are() -> None:
    text = README.read_text(encoding="utf-8")
    for name, rendered in (("goka", render_rows(naming_tests())), ("goka-differs", render_differences())):
        block = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, flags=re.DOTALL)
        assert block is not None, f"README.md has no block {name!r}"
        assert block[1].strip() == rendered, f"the block {name!r} of README.md should be:\n{rendered}"
