"""verify: compares the tables in the state directory with their changelogs, and mends those that differ."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from gokamsg import console
from gokamsg.config import Settings
from gokamsg.errors import StateError

from .kafka import client_config
from .registration import command
from .up import TABLES_DATA

if TYPE_CHECKING:
    from gokamsg.engine import LockedSlot, TableCheck

READING = "reading changelogs"


@command("verify", "Compare local tables with their changelogs, and mend those that differ.")
def verify(settings: Settings) -> None:
    from gokamsg.engine import VIEWS, TableCheck, verify_tables
    from gokamsg.messaging.roles import ROLES

    groups = [ROLES[role].group for role in settings.roles]
    if not settings.role or "all" in settings.role:
        groups.append(VIEWS)
    checks: list[TableCheck] = []
    locked: list[LockedSlot] = []
    bars = console.Bars()
    results = verify_tables(
        client_config(settings),
        settings.state_path,
        groups,
        on_progress=lambda done, total: bars.update(READING, done, total, "offsets"),
    )
    with closing(results), closing(bars):
        for found in results:
            if isinstance(found, TableCheck):
                checks.append(found)
                show_check(found, bars, as_json=settings.json)
            else:
                locked.append(found)
                show_locked(found, bars, as_json=settings.json)
    sums = {outcome: sum(check.outcome == outcome for check in checks) for outcome in ("agrees", "removed", "left")}
    if settings.json:
        console.data({"partitions": len(checks), **sums, "slots_in_use": len(locked)})
    else:
        show_tables(checks)
        console.out(summary(len(checks), sums) if checks or locked else nothing_there(settings))
    refuse_what_is_left(sums["left"], locked)


def show_check(check: "TableCheck", bars: console.Bars, *, as_json: bool) -> None:
    """One copy: as JSON, or a line if something is wrong with it."""
    from msgspec.structs import asdict

    if as_json:
        console.data(asdict(check))
    elif check.outcome != "agrees":
        mended = "; removed, the next start fills it again from Kafka" if check.outcome == "removed" else ""
        place = f"{check.group}/{check.slot} {check.topic}/{check.partition}"
        bars.note(console.visible(f"{place}: {check.finding}{mended}"))


def show_locked(slot: "LockedSlot", bars: console.Bars, *, as_json: bool) -> None:
    """A slot that could not be looked at."""
    from msgspec.structs import asdict

    if as_json:
        console.data({**asdict(slot), "outcome": "in use"})
    else:
        bars.note(f"{slot.group}/{slot.slot}: not compared, a running process uses it")


def show_tables(checks: Iterable["TableCheck"]) -> None:
    """One row for each table of each slot."""
    tables: dict[tuple[str, int, str], list[TableCheck]] = defaultdict(list)
    for check in checks:
        tables[check.group, check.slot, check.topic].append(check)
    rows = []
    for (group, slot, topic), copies in sorted(tables.items()):
        wrong = [str(check.partition) for check in sorted(copies, key=by_partition) if check.outcome != "agrees"]
        outcome = f"differs in {', '.join(wrong)}" if wrong else "agrees"
        count = console.count_text(sum(check.rows for check in copies))
        rows.append((f"{group}/{slot}", topic, str(len(copies)), count, outcome))
    if rows:
        console.table(("slot", "table", "partitions", "rows", "outcome"), rows, right=("partitions", "rows"))


def nothing_there(settings: Settings) -> str:
    """That there is nothing to compare, and where else it may be."""
    where = f"There are no tables of this cluster in {settings.state_path}"
    tables_of_up = settings.state_path / TABLES_DATA
    if tables_of_up.is_dir():
        return f"{where}; gokamsg up keeps its own in {tables_of_up}, which --state-dir can name."
    return f"{where}."


def by_partition(check: "TableCheck") -> int:
    return check.partition


def summary(count: int, sums: Mapping[str, int]) -> str:
    """'24 partitions compared: 23 agree, 1 mended'."""
    parts = [f"{sums['agrees']:,} agree"]
    parts += [f"{sums['removed']:,} mended"] if sums["removed"] else []
    parts += [f"{sums['left']:,} left as they are"] if sums["left"] else []
    return f"{count:,} {'partition' if count == 1 else 'partitions'} compared: {', '.join(parts)}"


def refuse_what_is_left(left: int, locked: Iterable["LockedSlot"]) -> None:
    """Raises StateError if not everything could be compared and mended."""
    if names := ", ".join(f"{slot.group}/{slot.slot}" for slot in locked):
        raise StateError(
            f"not compared, because running processes use them: {names};"
            " stop those (gokamsg up, process, serve) and run gokamsg verify again"
        )
    if left:
        raise StateError(f"{left:,} of the partitions could not be compared; see above")
