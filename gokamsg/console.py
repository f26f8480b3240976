"""What a person sees: lines, tables, progress, errors, logs. The only module that knows rich.

1. stdout carries data; stderr carries progress, notes, logs and errors.
2. On a terminal it may be rich; in a pipe it is plain, stable, one line for each thing. NO_COLOR is respected.
3. Text from elsewhere (names, messages, errors) is printed with control characters made visible, so that it can
   neither break a line nor steer the terminal.
4. No traceback is shown without --debug.
5. What hide() was told never reaches stderr, and neither does what the Kafka client logs of a login.

rich is imported when something rich is printed, never before: most commands end sooner than that import takes.
Threads: one thread prints; log records may come from any.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import termios
import threading
import time
import traceback
import tty
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import GokamsgError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0))}
_CONTROL.update({ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"})
# Direction overrides and line separators can make a line read as another.
_CONTROL.update({code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))})


def visible(text: object) -> str:
    """The text on one line, with control characters as escapes."""
    return str(text).translate(_CONTROL)


def prepare_streams() -> None:
    """Prints what the terminal's encoding cannot show as escapes, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def out(line: str) -> None:
    """One line of data."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def sentence(text: str) -> None:
    """One line of data that is prose: on a terminal it is broken between words."""
    if is_rich(sys.stdout):
        from rich.text import Text

        rich_console(sys.stdout).print(Text(text), soft_wrap=False)
    else:
        out(text)


def data(value: Any) -> None:
    """One JSON object on a line of its own."""
    out(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")).replace("\u2028", "\\u2028"))


_hidden: list[str] = []


def hide(secrets: Iterable[str]) -> None:
    """From now on these texts are printed as *** on stderr, also in the forms that logs give them."""
    for secret in secrets:
        forms = (secret, repr(secret)[1:-1], repr(secret.encode())[2:-1], json.dumps(secret)[1:-1], visible(secret))
        _hidden.extend(form for form in forms if form and form not in _hidden)
    _hidden.sort(key=len, reverse=True)  # one may be part of another


def discreet(text: str) -> str:
    """The text without what is hidden."""
    for secret in _hidden:
        text = text.replace(secret, "***")
    return text


def note(line: str) -> None:
    """One line of progress or explanation."""
    sys.stderr.write(discreet(line) + "\n")
    sys.stderr.flush()


def is_rich(stream: IO[str]) -> bool:
    """Whether the stream is a terminal that redraws."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def rich_console(stream: IO[str]) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)


def error(message: str) -> None:
    """'Error: …' on stderr; further lines of the message are remedies."""
    lines = [visible(line) for line in discreet(message).splitlines()] or ["failed"]
    if not lines[0].endswith((".", "?", "!", ":")):
        lines[0] += "."
    if is_rich(sys.stderr):
        from rich.text import Text

        terminal = rich_console(sys.stderr)
        terminal.print(Text.assemble(("Error: ", "bold red"), lines[0]), soft_wrap=False)
        for line in lines[1:]:
            terminal.print(Text(line), soft_wrap=False)
        return
    note("Error: " + lines[0])
    for line in lines[1:]:
        note(line)


def report(failure: BaseException, *, debug: bool) -> int:
    """Prints what failed and returns the exit code. A bug is named as such; tracebacks are for --debug only."""
    if debug:
        note("".join(traceback.format_exception(failure)).rstrip())
    if isinstance(failure, GokamsgError):
        error(str(failure))
        return failure.exit_code
    kind, detail = type(failure).__name__, str(failure)
    hint = "" if debug else " --debug shows where."
    error(f"unexpected {kind}{': ' + visible(detail) if detail else ''}.{hint}")
    return 1


class _OneLine(logging.Formatter):
    """A log record as one line; its traceback only with --debug."""

    def __init__(self, *, debug: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
        self._debug = debug

    def format(self, record: logging.LogRecord) -> str:
        if self._debug:
            return discreet(super().format(record))
        text = f"{self.formatTime(record, self.datefmt)} {record.levelname.lower()}: {record.getMessage()}"
        if record.exc_info and record.exc_info[1]:
            text += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        return visible(discreet(text))


def _no_login(record: logging.LogRecord) -> bool:
    """False for what the Kafka client logs of passwords: its configuration, and the messages of a login."""
    text = record.getMessage()
    return not record.name.startswith("kafka.") or not ("with configuration" in text or "Sasl" in text)


def set_up_logging(*, debug: bool) -> None:
    """Logs go to stderr: warnings of our own and errors of libraries, everything with --debug."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(debug=debug))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.WARNING)
    if debug:
        handler.addFilter(_no_login)
        # Every byte that is sent, logins included; what the bytes mean is logged elsewhere.
        logging.getLogger("kafka.protocol.parser").setLevel(logging.INFO)
    else:
        # The client logs every reconnection as a warning or error; what matters of it, and of a failed view,
        # comes as our own errors.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
        logging.getLogger("gokamsg.engine.view").setLevel(logging.CRITICAL)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), redraw: bool = False
) -> None:
    """A table on stdout: aligned columns, no lines. `right`: columns of numbers.

    On a terminal its header is bold, and what does not fit into a line is left out; with `redraw` it takes the place of
    what is there.
    """
    from rich.cells import cell_len, set_cell_size

    shown = [[visible(cell) for cell in row] for row in rows]
    widths = [max(cell_len(cell) for cell in column) for column in zip(columns, *shown, strict=True)]

    def line(cells: Sequence[str]) -> str:
        parts = []
        for name, cell, width in zip(columns, cells, widths, strict=True):
            parts.append(" " * (width - cell_len(cell)) + cell if name in right else set_cell_size(cell, width))
        return "  ".join(parts).rstrip()

    if is_rich(sys.stdout):
        console = rich_console(sys.stdout)
        if redraw:
            console.clear()
        console.print(fitted(line(columns), console.width), style="bold")
        for row in shown:
            out(fitted(line(row), console.width))
        return
    out(line(columns))
    for row in shown:
        out(line(row))


def fitted(text: str, width: int) -> str:
    """The text within `width` columns of a terminal; an ellipsis stands for what does not fit."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def count_text(number: float) -> str:
    """A number with separators: 1,204."""
    return f"{number:,.0f}"


def size_text(size: float) -> str:
    """A size in bytes: 320 kB, 1.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def duration_text(seconds: float) -> str:
    """A duration as a clock shows it: 0:00:01, 2:14:03."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Bars:
    """Long work on stderr: a bar for each on a terminal, a line for each every few seconds elsewhere."""

    def __init__(self, *, interval_s: float = 5.0) -> None:
        self._interval_s = interval_s
        self._shown_at: dict[str, float] = {}
        self._rich = is_rich(sys.stderr)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def update(self, label: str, done: float, total: float | None, detail: str) -> None:
        """Shows how far `label` is; a total of None is not known."""
        share = f"{count_text(done)} of {count_text(total)}" if total else count_text(done)
        if self._rich:
            self._draw(label, done, total, f"{share}  {detail}")
            return
        now = time.monotonic()
        if now - self._shown_at.setdefault(label, now) >= self._interval_s:
            self._shown_at[label] = now
            note(f"{label}: {share}  {detail}")

    def _draw(self, label: str, done: float, total: float | None, detail: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        if self._bars is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[detail]}", markup=False),
            )
            self._bars = Progress(*columns, console=rich_console(sys.stderr), transient=True)
            self._bars.start()
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total, detail=detail)
        self._bars.update(self._tasks[label], completed=done, total=total, detail=detail)

    def remove(self, label: str) -> None:
        """`label` is done."""
        self._shown_at.pop(label, None)
        task = self._tasks.pop(label, None)
        if self._bars is not None and task is not None:
            self._bars.remove_task(task)
            if not self._tasks:
                self.close()

    def note(self, line: str) -> None:
        """One line, above the bars."""
        if self._bars is None:
            note(line)
        else:
            self._bars.console.print(line)

    def close(self) -> None:
        """Takes all bars away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        self._tasks.clear()


def home_text(path: Path) -> str:
    """The path as a person writes it: below ~ where it is."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)


class Live:
    """Lines at the bottom of stderr that are redrawn in place. Only where is_rich(sys.stderr)."""

    def __init__(self) -> None:
        from rich.live import Live as RichLive

        self._console = rich_console(sys.stderr)
        self._live = RichLive(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    @property
    def width(self) -> int:
        """Columns of the terminal as it is now."""
        return self._console.width

    def draw(self, lines: Sequence[str]) -> None:
        """These lines take the place of the last ones; the first is a header."""
        from rich.text import Text

        text = Text(no_wrap=True, overflow="crop")
        for number, line in enumerate(lines):
            text.append(line + "\n", style="bold" if number == 0 else "")
        self._live.update(text, refresh=True)

    def note(self, line: str) -> None:
        """One line above them, which stays."""
        self._console.print(line)

    def close(self) -> None:
        """Takes them away."""
        self._live.stop()


class Keys:
    """Single keys of the terminal, each with what it does, until close(). Without a terminal there are none."""

    def __init__(self, actions: Mapping[str, Callable[[], None]]) -> None:
        self._actions = actions
        self._before: list[Any] | None = None
        self._closed = threading.Event()
        if sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
            threading.Thread(target=self._read, name="keys", daemon=True).start()

    def close(self) -> None:
        """The terminal is as it was."""
        self._closed.set()
        if self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def _read(self) -> None:
        while not self._closed.is_set():
            if select.select([sys.stdin], [], [], 0.25)[0]:
                key = os.read(sys.stdin.fileno(), 1).decode(errors="replace")
                if not key:
                    return
                action = self._actions.get(key.lower())
                if action is not None and not self._closed.is_set():
                    action()
