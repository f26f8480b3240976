"""The text of an error that is kept with a parked record: the same as Python's own, without underlines."""

import re
import traceback
from collections.abc import Callable

import pytest

from gokamsg.engine.quarantine.reason import traceback_of, words_of
from gokamsg.errors import CodecError


def fail(error: BaseException) -> None:
    raise error


def caused() -> None:
    try:
        fail(ValueError("first"))
    except ValueError as error:
        raise CodecError("second") from error


def meanwhile() -> None:
    try:
        fail(ValueError("first"))
    except ValueError:
        fail(KeyError("second"))


def concealed() -> None:
    try:
        fail(ValueError("first"))
    except ValueError:
        raise CodecError("second") from None


def raised_by(work: Callable[[], None]) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def noted() -> None:
    error = ValueError()
    error.add_note("look there")
    raise error


def own(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).splitlines(keepends=True)
    return "".join(line for line in lines if not re.fullmatch(r"\s+[~^]+\s*", line))


@pytest.mark.parametrize("work", [caused, meanwhile, concealed, noted, lambda: fail(RuntimeError("two\nlines"))])
def test_it_is_what_python_says(work: Callable[[], None]) -> None:
    error = raised_by(work)
    assert traceback_of(error) == own(error)


def test_a_syntax_error_shows_its_line() -> None:
    text = traceback_of(raised_by(lambda: compile("a = (", "there", "exec")))
    assert 'File "there", line 1\n    a = (\n' in text


def test_an_error_that_was_not_raised_and_one_that_causes_itself_are_told() -> None:
    error = ValueError("never raised")
    assert traceback_of(error) == "ValueError: never raised\n"
    error.__cause__ = error
    assert "ValueError: never raised" in traceback_of(error)
    assert words_of(error) == "ValueError: never raised"
