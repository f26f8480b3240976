"""Why a record could not be handled, as text.

Python's own formatting of a traceback looks on the disk whether each source file has changed, and parses lines to
underline a part of them, for all that an error was caused by. Beside threads that receive records that took a
millisecond for each error.
"""

from __future__ import annotations

import linecache
import traceback
import types

_CAUSED = "\nThe above exception was the direct cause of the following exception:\n\n"
_MEANWHILE = "\nDuring handling of the above exception, another exception occurred:\n\n"


def words_of(error: BaseException) -> str:
    """In one line: its kind and what it says."""
    return f"{type(error).__name__}: {error}"


def traceback_of(error: BaseException) -> str:
    """As traceback.format_exception() has it, what caused it first; lines are not underlined."""
    parts: list[str] = []
    seen: set[int] = set()
    this: BaseException | None = error
    link = ""
    while this is not None and id(this) not in seen:
        seen.add(id(this))
        frames = "".join(map(_frame, traceback.walk_tb(this.__traceback__)))
        header = "Traceback (most recent call last):\n" if frames else ""
        parts.append(f"{header}{frames}{_last_line(this)}{link}")
        if this.__cause__ is not None:
            this, link = this.__cause__, _CAUSED
        else:
            this, link = None if this.__suppress_context__ else this.__context__, _MEANWHILE
    return "".join(reversed(parts))


def _last_line(error: BaseException) -> str:
    if isinstance(error, SyntaxError):  # it has lines of its own
        return "".join(traceback.format_exception_only(error))
    kind, said = type(error), str(error)
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    name = f"{module}{kind.__qualname__}"
    notes = "".join(f"{note}\n" for note in getattr(error, "__notes__", ()))
    return f"{name}: {said}\n{notes}" if said else f"{name}\n{notes}"


def _frame(place: tuple[types.FrameType, int]) -> str:
    frame, number = place
    code = frame.f_code
    line = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    return f'  File "{code.co_filename}", line {number}, in {code.co_name}\n' + (f"    {line}\n" if line else "")
