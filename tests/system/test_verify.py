"""`gokamsg verify` as a user runs it: after a table was altered by hand, and beside running processes."""

import json
import sqlite3
from pathlib import Path

import pytest

from tests.helpers import eventually
from tests.system.messaging import Messaging

USERS = [f"user{number}" for number in range(24)]


def _alter_a_feed(directory: Path, group: str) -> str:
    """Empties one row, removes another and adds a third in one file of the group; the partition's number."""
    for path in sorted(directory.glob(f"state/*/{group}/0/collector-table.?")):
        connection = sqlite3.connect(path)
        try:
            keys = [key for (key,) in connection.execute("SELECT key FROM rows ORDER BY key")]
            if len(keys) < 2:
                continue
            connection.execute("UPDATE rows SET value = ? WHERE key = ?", (b"[]", keys[0]))
            connection.execute("DELETE FROM rows WHERE key = ?", (keys[1],))
            connection.execute("INSERT INTO rows VALUES (?, ?)", (b"Mallory", b"[]"))
            connection.commit()
            return path.name.rpartition(".")[2]
        finally:
            connection.close()
    raise AssertionError("no partition has two feeds")


@pytest.mark.any_broker
def test_an_altered_table_is_named_and_mended_and_its_slot_is_left_alone_while_in_use(messaging: Messaging) -> None:
    collector = messaging.role("collector")
    service = messaging.serve("--direct")
    for user in USERS:
        messaging.post("Bob", user, f"to {user}")
    for user in USERS:
        eventually(f"{user} has the message", lambda user=user: messaging.feed(user) == [f"to {user}"])  # type: ignore[misc]

    refused = messaging.run("verify")
    assert refused.returncode == 1, refused
    assert "collector/0: not compared, a running process uses it" in refused.stderr
    assert refused.stderr.splitlines()[-1] == (
        "Error: not compared, because running processes use them: collector/0, view/0;"
        " stop those (gokamsg up, process, serve) and run gokamsg verify again."
    )
    service.terminate()
    collector.terminate()

    done = messaging.done("verify")
    assert "16 partitions compared: 16 agree" in done.stdout
    own, viewed = (_alter_a_feed(messaging.directory, group) for group in ("collector", "view"))
    done = messaging.done("verify", "--role", "collector")
    differs = "rows that differ from its changelog: 1 missing, 1 extra, 1 different"
    assert done.stderr == (
        f"collector/0 collector-table/{own}: {differs}; removed, the next start fills it again from Kafka\n"
    )
    assert done.stdout.splitlines()[-2:] == [
        f"collector/0  collector-table           8    24  differs in {own}",
        "8 partitions compared: 7 agree, 1 mended",
    ]
    done = messaging.done("verify", "--json")
    *checks, summary = [json.loads(line) for line in done.stdout.splitlines()]
    [wrong] = [check for check in checks if check["outcome"] != "agrees"]
    assert (wrong["group"], wrong["topic"], wrong["partition"]) == ("view", "collector-table", int(viewed))
    assert (wrong["missing"], wrong["extra"], wrong["different"], wrong["finding"]) == (1, 1, 1, differs)
    assert summary == {"partitions": 15, "agrees": 14, "removed": 1, "left": 0, "slots_in_use": 0}

    messaging.role("collector")
    messaging.serve("--direct")
    for user in USERS:
        messaging.post("Bob", user, "again")
    for user in USERS:
        eventually(
            f"{user} has both messages",
            lambda user=user: messaging.feed(user) == [f"to {user}", "again"],  # type: ignore[misc]
        )
    assert messaging.feed("Mallory") == []


@pytest.mark.any_broker
def test_a_state_directory_without_tables_is_said_to_be_one(messaging: Messaging) -> None:
    done = messaging.done("verify")
    assert done.stdout == f"There are no tables of this cluster in {messaging.directory / 'state'}.\n"
    assert not (messaging.directory / "state").exists()
