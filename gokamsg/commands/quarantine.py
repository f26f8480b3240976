"""quarantine list, show, edit, retry, drop: records that the roles could not process.

The roles' workers own their quarantines; what changes them is sent to the workers, and done when they say so.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

from gokamsg import console
from gokamsg.config import Settings
from gokamsg.errors import GokamsgError, UsageError

from .kafka import client_config
from .registration import argument, command

if TYPE_CHECKING:
    from gokamsg.engine import Admin, ParkedRecord, QuarantineClient

DONE_WITHIN_S = 10.0
SHOWN = 60  # characters of a value or an error in a list

Record = Annotated[str, argument("RECORD", "The record, as 'quarantine list' names it: topic/partition/offset.")]


@command("quarantine list", "Show the records in quarantine.")
def list_records(settings: Settings) -> None:
    rows = []
    with ExitStack() as stack:
        for role, quarantine in quarantines(settings, stack):
            for record in quarantine.records(settings.key):
                if settings.json:
                    console.data(told(role, record))
                else:
                    reason = record.error or "stands behind the one before"
                    tries = console.count_text(record.tries) if record.tries else ""
                    rows.append((role, record.name, console.visible(record.key_text), tries, shortened(reason)))
    if settings.json:
        return
    if not rows:
        console.note("Nothing is in quarantine.")
        return
    console.table(("role", "record", "key", "tries", "why"), rows, right=("tries",))
    console.note("'gokamsg quarantine show RECORD' shows one of them; 'retry' processes them again.")


@command("quarantine show", "Show one record in quarantine, with its value, its error and the traceback.")
def show(settings: Settings, record: Record) -> None:
    with ExitStack() as stack:
        role, _, found = the_record(settings, record, stack)
    if settings.json:
        console.data(told(role, found))
        return
    lines = [
        ("role", role),
        ("record", found.name),
        ("key", found.key_text),
        ("value", "null" if found.value is None else text_of(found.value) + (" (edited)" if found.is_edited else "")),
        *((f"header {name}", "null" if value is None else text_of(value)) for name, value in found.headers),
        ("parked", f"{found.parked_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("tries", console.count_text(found.tries)),
        ("error", found.error or "none: it stands behind another record of its key"),
    ]
    for name, text in lines:
        console.out(f"{name + ':':<12}{console.visible(text)}")
    if found.traceback:
        console.out("")
        for line in found.traceback.splitlines():
            console.out(f"  {console.visible(line)}")


@command("quarantine edit", "Replace the value of a record in quarantine.")
def edit(settings: Settings, record: Record) -> None:
    if settings.value is None:
        raise UsageError("there is no new value; give it with --value TEXT, or --value - to read standard input.")
    value = sys.stdin.buffer.read() if settings.value == "-" else settings.value.encode()
    with ExitStack() as stack:
        role, quarantine, found = the_record(settings, record, stack)
        within_s = patience_s(settings, role)
        expect(quarantine.edit(found, value, within_s), role, within_s)
        say(settings, {"edited": found.name, "role": role}, f"{found.name} is edited; retry its key to process it.")


@command("quarantine drop", "Remove a record from quarantine for good.")
def drop(settings: Settings, record: Record) -> None:
    with ExitStack() as stack:
        role, quarantine, found = the_record(settings, record, stack)
        within_s = patience_s(settings, role)
        expect(quarantine.drop(found, within_s), role, within_s)
        left = len(quarantine.records(found.key_text))
        behind = f"; {left} of its key are left" if left else ""
        say(settings, {"dropped": found.name, "role": role, "left": left}, f"{found.name} is dropped{behind}.")


@command("quarantine retry", "Process the records in quarantine again: those of all keys, or of one.")
def retry(settings: Settings) -> None:
    failed = found = 0
    with ExitStack() as stack:
        for role, quarantine in quarantines(settings, stack):
            keys = {(record.partition, record.key): record for record in quarantine.records(settings.key)}
            within_s = patience_s(settings, role) if keys else 0.0
            for first in keys.values():
                found += 1
                failed += not retry_key(settings, role, quarantine, first, within_s)
    if not found and not settings.json:
        console.note("Nothing is in quarantine." if settings.key is None else f"No record of {settings.key!r} is.")
    if failed:
        raise GokamsgError(
            f"{failed} {'key' if failed == 1 else 'keys'} failed again; look with 'gokamsg quarantine show', then edit"
            " or drop what is wrong"
        )


def retry_key(
    settings: Settings, role: str, quarantine: "QuarantineClient", first: "ParkedRecord", within_s: float
) -> bool:
    """Retries the records of one key and says what came of it; whether all of them were processed."""
    key = first.key_text
    before = len(quarantine.records(key))
    expect(quarantine.retry(first, within_s), role, within_s)
    left = quarantine.records(key)
    done = before - len(left)
    outcome: dict[str, Any] = {"role": role, "key": key, "processed": done, "left": len(left)}
    if left:
        say(
            settings,
            {**outcome, "error": left[0].error},
            f"{role}: {key}: {done} processed, {len(left)} left; {left[0].name} failed: {shortened(left[0].error)}",
        )
    else:
        say(settings, outcome, f"{role}: {key}: {done} processed; the key is free.")
    return not left


def quarantines(settings: Settings, stack: ExitStack) -> Iterator[tuple[str, "QuarantineClient"]]:
    """The quarantines of the roles that are meant; without those that never held anything."""
    from gokamsg.engine import Admin, QuarantineClient, quarantine_of
    from gokamsg.messaging.roles import ROLES

    config = client_config(settings)
    with Admin(config) as admin:
        used = used_topics(admin, [quarantine_of(ROLES[role].group) for role in settings.roles])
    for role in settings.roles:
        if quarantine_of(ROLES[role].group) in used:
            yield role, stack.enter_context(QuarantineClient(config, ROLES[role].group))


def used_topics(admin: "Admin", names: list[str]) -> set[str]:
    """Those that exist and that something was written to."""
    places = [(topic.name, n) for topic in admin.describe_topics(names).values() for n in range(topic.partitions)]
    return {topic for (topic, _), end in admin.high_watermarks(places).items() if end} if places else set()


def the_record(settings: Settings, name: str, stack: ExitStack) -> tuple[str, "QuarantineClient", "ParkedRecord"]:
    """The record of that name. Raises UsageError when there is none, or several roles have it."""
    if not re.fullmatch(r"[^/]+/\d+/\d+", name):
        raise UsageError(f"{name!r} does not name a record; 'gokamsg quarantine list' does: topic/partition/offset.")
    found = [
        (role, quarantine, record)
        for role, quarantine in quarantines(settings, stack)
        if (record := quarantine.record(name)) is not None
    ]
    if not found:
        raise UsageError(f"{name!r} is not in quarantine; 'gokamsg quarantine list' shows what is.")
    if len(found) > 1:
        roles = ", ".join(role for role, _, _ in found)
        raise UsageError(f"{name!r} is in quarantine of several roles: {roles}; say which with --role.")
    return found[0]


def patience_s(settings: Settings, role: str) -> float:
    """How long to wait for the role's workers; not at all where there are none."""
    from gokamsg.engine import Admin
    from gokamsg.messaging.roles import ROLES

    group = ROLES[role].group
    with Admin(client_config(settings)) as admin:
        return DONE_WITHIN_S if admin.describe_groups([group])[group].members else 0.0


def expect(done: bool, role: str, within_s: float) -> None:
    if done:
        return
    start = f"gokamsg process --role {role}"
    if within_s:
        raise GokamsgError(f"the {role} has not done it within {within_s:g} s; it will when it runs: {start}")
    raise GokamsgError(f"no {role} is running; it is done as soon as one is: {start}")


def say(settings: Settings, told: dict[str, Any], text: str) -> None:
    if settings.json:
        console.data(told)
    else:
        console.out(console.visible(text))


def told(role: str, record: "ParkedRecord") -> dict[str, Any]:
    """A record as JSON."""
    return {
        "role": role,
        "record": record.name,
        "key": record.key_text,
        "value": None if record.value is None else text_of(record.value),
        "headers": {name: None if value is None else text_of(value) for name, value in record.headers},
        "error": record.error or None,
        "traceback": record.traceback or None,
        "tries": record.tries,
        "edited": record.is_edited,
        "parked_at": record.parked_at.isoformat(),
    }


def text_of(data: bytes) -> str:
    """Bytes as text; those that are not UTF-8 as escapes."""
    return data.decode("utf-8", "backslashreplace")


def shortened(text: str) -> str:
    text = console.visible(text)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
