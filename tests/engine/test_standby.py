"""Hot standby and recover-ahead: tables that are there before their partitions are.

Each of two members has a state directory of its own, as on two hosts, so that nothing but following can have filled it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gokamsg.engine.stats import ProcessorStatus
from tests.engine.kafka_scene import PARTITIONS, Running, Scene
from tests.engine.test_processor import counting, scene, topic  # noqa: F401 - fixtures
from tests.helpers import eventually

Fresh = Callable[[str], str]
KEYS = 5_000


def _fill(scene: Scene, source: str, group: str) -> None:  # noqa: F811
    """A table of KEYS rows, committed by a member that is gone."""
    scene.produce(source, [(f"k{number}", "x") for number in range(KEYS)])
    with scene.running(counting(group, source)) as running:
        running.caught_up(KEYS)


class Story:
    """What a member said of itself."""

    def __init__(self) -> None:
        self.statuses: list[ProcessorStatus] = []

    def __call__(self, status: ProcessorStatus) -> None:
        self.statuses.append(status)

    def has_followed(self) -> bool:
        """Nothing is left to follow, seen a second after the story was begun anew (lags are that old at most)."""
        return len(self.statuses) > 4 and not self.statuses[-1].table_lag


def _partitions(running: Running) -> int:
    return len(running.processor.status().partitions)


@pytest.mark.goka("option: hot standby")
@pytest.mark.any_broker
@pytest.mark.parametrize("hot", [True, False], ids=["hot", "cold"])
def test_a_standby_has_the_tables_of_the_others_when_they_go(
    scene: Scene,  # noqa: F811
    topic: Any,  # noqa: F811
    fresh_name: Fresh,
    tmp_path: Path,
    hot: bool,
) -> None:
    source, group = topic("in"), fresh_name("group")
    _fill(scene, source, group)
    story = Story()
    graph = counting(group, source)
    with scene.running(graph, state_dir=tmp_path / "other", on_status=story, hot_standby=hot) as second:
        second.wait_at_work()
        with scene.running(graph, state_dir=tmp_path / "first", hot_standby=hot) as first:
            eventually("each has its half", lambda: _partitions(first) == _partitions(second) == PARTITIONS // 2)
            # The first one writes all rows of its half again: the second one's files, from before, miss them.
            scene.produce(source, [(f"k{number}", "x") for number in range(KEYS)])
            eventually(
                "every record is counted",
                lambda: first.processor.status().table_writes + second.processor.status().table_writes >= KEYS,
                timeout_s=40,
            )
            story.statuses.clear()
            eventually("nothing is left to follow", story.has_followed, timeout_s=20)
            before = second.processor.status().table_reads
        eventually("the second has all partitions", lambda: _partitions(second) == PARTITIONS, timeout_s=40)
        taken_over = second.processor.status().table_reads - before
        scene.produce(source, [("k0", "x"), ("k1", "x"), ("k2", "x"), ("k3", "x")])
        eventually("goes on from what it followed", lambda: scene.table(f"{group}-table")["k3"] == b"3", timeout_s=20)
    if hot:
        assert taken_over == 0, f"{taken_over} rows were restored at the takeover"
    else:
        assert taken_over > KEYS / 4, "without a standby the rows have to be restored: this test shows nothing"
    assert set(scene.table(f"{group}-table").values()) == {b"2", b"3"}


@pytest.mark.goka("option: recover ahead")
@pytest.mark.any_broker
@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "not ahead"])
def test_a_member_that_recovers_ahead_leaves_the_others_at_work_meanwhile(
    scene: Scene,  # noqa: F811
    topic: Any,  # noqa: F811
    fresh_name: Fresh,
    tmp_path: Path,
    ahead: bool,
) -> None:
    source, group = topic("in"), fresh_name("group")
    _fill(scene, source, group)
    graph = counting(group, source)
    restored_when_it_joined: list[int] = []
    members: list[Running] = []

    def note(partitions: tuple[int, ...]) -> None:
        """The first member has stood still for a rebalance."""
        if members and len(partitions) < PARTITIONS:
            restored_when_it_joined.append(members[0].processor.status().table_reads)

    with scene.running(graph, state_dir=tmp_path / "first", rebalance_callback=note) as first:
        first.wait_at_work()
        with scene.running(graph, state_dir=tmp_path / "second", recover_ahead=ahead) as second:
            members.append(second)
            eventually("each has its half", lambda: _partitions(first) == _partitions(second) == PARTITIONS // 2)
    assert (restored_when_it_joined[0] == KEYS) is ahead
