"""Whatever has become of the files of a state directory: the next start serves what the changelog says.

Invariants, for each way that a table's files can be found: the worker is at work again, and counts on as if nothing had
happened; a view on such files shows the same rows; what was done to the files is said where it had to be.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from kafka.admin import KafkaAdminClient

from gokamsg.engine import Int64, View
from gokamsg.engine.clients import ClientConfig
from tests.engine.broken_broker import KEYS, Story
from tests.engine.kafka_scene import PARTITIONS
from tests.helpers import eventually

Damage = Callable[[Path, Random], object]


def _meta(path: Path, key: str, value: object) -> None:
    connection = sqlite3.connect(path)
    connection.execute("REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))
    connection.commit()
    connection.close()


def _shorter(path: Path, _: Random) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _foreign(path: Path, _: Random) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()


def _power_failure(path: Path, _: Random) -> None:
    _meta(path, "boot", "an earlier one")
    path.with_name(path.name + ".clean").unlink()


def _noise_within(path: Path, chance: Random) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + chance.randbytes(len(whole) - 8192))


DAMAGES: dict[str, Damage] = {
    "lost": lambda path, _: path.unlink(),
    "empty": lambda path, _: path.write_bytes(b""),
    "half": _shorter,
    "noise": lambda path, chance: path.write_bytes(chance.randbytes(20_000)),
    "noise behind the first page": _noise_within,
    "foreign": _foreign,
    "of an earlier topic": lambda path, _: _meta(path, "topic", "00000000-0000-0000-0000-000000000001"),
    "of an older format": lambda path, _: _meta(path, "format", 0),
    "of a newer format": lambda path, _: _meta(path, "format", 2),
    "ahead of the changelog": lambda path, _: _meta(path, "position", 1_000_000),
    "before the changelog": lambda path, _: _meta(path, "position", -5),
    "without a position": lambda path, _: _meta(path, "position", "none"),
    "after a power failure": _power_failure,
    "without the mark of a clean end": lambda path, _: path.with_name(path.name + ".clean").unlink(),
    "beside a foreign log": lambda path, chance: (
        path.with_name(path.name + "-wal").write_bytes(chance.randbytes(9_000)) and None
    ),
}


def table_files(story: Story, pattern: str) -> list[Path]:
    found = [path for path in story.scene.state_dir.glob(f"*/{pattern}/0/{story.table}.*") if path.name[-1].isdigit()]
    assert found, pattern
    return found


def test_a_worker_counts_on_whatever_has_become_of_its_files(story: Story, seed: int) -> None:
    chance = Random(seed)
    with story.at_work():
        pass
    for name, damage in DAMAGES.items():
        for path in table_files(story, story.graph.group):
            damage(path, chance)
        with story.scene.running(story.graph):
            story.more()
            eventually(f"files {name}: all is through", story.through, timeout_s=30)
    story.counted()


def test_a_changelog_made_anew_is_believed_and_not_the_copy_of_the_old_one(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    with story.at_work():
        story.more()
        eventually("two of each are through", story.through, timeout_s=30)
    admin = KafkaAdminClient(bootstrap_servers=story.broker.address)
    admin.delete_topics([story.table])
    admin.create_topics({story.table: {"num_partitions": PARTITIONS, "configs": {"cleanup.policy": "compact"}}})
    admin.close()
    story.more()
    with story.scene.running(story.graph):
        eventually(
            "the table counts from the start again",
            lambda: story.scene.table(story.table) == dict.fromkeys(KEYS, b"1"),
            timeout_s=30,
        )
    assert any(message.endswith("it belongs to an earlier topic of that name") for message in caplog.messages)


def test_a_view_shows_the_table_whatever_has_become_of_its_files(story: Story, seed: int) -> None:
    chance = Random(seed)
    with story.at_work():
        pass
    story.counted()

    def shown() -> dict[str, int | None]:
        view = View(ClientConfig(story.broker.address), story.table, Int64(), storage_dir=story.scene.state_dir)
        view.start()
        try:
            assert view.wait_running(30)
            return {key: view.get(key) for key in KEYS}
        finally:
            view.stop()

    wanted = dict.fromkeys(KEYS, 1)
    assert shown() == wanted
    for name, damage in DAMAGES.items():
        for path in table_files(story, "view"):
            damage(path, chance)
        assert shown() == wanted, name
