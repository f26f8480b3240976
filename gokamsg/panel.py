"""What `gokamsg up` shows while it runs, as lines of text. Pure: state in, lines out.

One row per role, the rate of each topic, the newest messages and blocks, and the keys that work. Lines fit the width;
columns that do not are left out from the right.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# The topics, and the role whose rate is theirs.
TOPICS = {
    "message_sent": "filter",
    "message_received": "collector",
    "block_user": "blocker",
    "translate-word": "translator",
}

Status = Mapping[str, Any]

_COLUMNS = ("role", "state", "partitions", "records/s", "lag", "commit", "bad", "parked")
_NUMBERS = {"partitions", "records/s", "lag", "commit", "bad", "parked"}


def panel(statuses: Mapping[str, Status], news: Sequence[str], *, width: int, url: str, uptime_s: float) -> list[str]:
    """The whole panel."""
    rows = [_row(name, status) for name, status in statuses.items()]
    lines = _table(rows, width)
    lines += ["", _rates(statuses), ""]
    lines += [f"  {line}" for line in news] or ["  No message yet."]
    lines.append("")
    lines.append(f"{url}   up {_clock(uptime_s)}   q or Ctrl-C stops")
    return [fit(line, width) for line in lines]


def fit(line: str, width: int) -> str:
    """The line within `width` columns of a terminal."""
    if cells(line) <= width:
        return line
    kept, used = [], 0
    for character in line:
        size = _cells_of(character)
        if used + size > width - 1:
            break
        kept.append(character)
        used += size
    return "".join(kept) + "…"


def cells(text: str) -> int:
    """How many columns the text takes."""
    return sum(map(_cells_of, text))


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _row(name: str, status: Status) -> dict[str, str]:
    restoring = status.get("restoring")
    if status.get("notice"):
        state = "waiting for the broker"
    elif restoring:
        left = restoring.get("remaining_s")
        state = f"restoring {restoring['rows_done']:,} of {restoring['rows']:,}"
        state += f", {_clock(left)} left" if left is not None else ""
    else:
        state = str(status.get("state", "starting"))
    return {
        "role": name,
        "state": state,
        "partitions": str(len(status.get("partitions", ()))),
        "records/s": f"{status.get('records_per_s', 0.0):,.0f}",
        "lag": f"{status.get('lag', 0):,}",
        "commit": f"{commit_ms:,.1f} ms" if (commit_ms := status.get("commit_ms")) else "-",
        "bad": f"{status.get('bad_records', 0):,}",
        "parked": f"{status.get('parked_records', 0):,}",
    }


def _rates(statuses: Mapping[str, Status]) -> str:
    """How many records a second are read of each topic."""

    def rate(role: str) -> float:
        workers = (status for name, status in statuses.items() if name.partition("/")[0] == role)
        return sum(float(status.get("records_per_s", 0.0)) for status in workers)

    return "  ".join(f"{topic} {rate(role):,.0f}/s" for topic, role in TOPICS.items())


def _table(rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    widths = {name: max([len(name), *(cells(row[name]) for row in rows)]) for name in _COLUMNS}
    columns = list(_COLUMNS)
    while len(columns) > 2 and sum(widths[name] + 2 for name in columns) - 2 > width:
        columns.pop()
    header = {name: name for name in _COLUMNS}
    return ["  ".join(_cell(row[name], widths[name], name) for name in columns).rstrip() for row in (header, *rows)]


def _cell(text: str, width: int, column: str) -> str:
    space = " " * (width - cells(text))
    return space + text if column in _NUMBERS else text + space


def _clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
