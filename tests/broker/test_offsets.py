"""Committed offsets and the group coordinator around them, on a real store and a clock that the test moves."""

from pathlib import Path

from gokamsg.broker.codes import Code
from gokamsg.broker.group import State
from gokamsg.broker.member import Joining
from tests.broker.fake_clock import START_MS, on_loop
from tests.broker.scene import TOPIC, Scene, at, scene

DAY_S = 24 * 3600.0
P0, P1 = (TOPIC, 0), (TOPIC, 1)


async def join(it: Scene, group: str) -> str:
    """A Stable group with one member; the answer is its id."""
    joining = Joining(
        member_id="",
        protocol_type="consumer",
        protocols=[("range", b"")],
        session_timeout_ms=10_000,
        rebalance_timeout_ms=10_000,
        needs_known_id=False,
    )
    joined = await it.broker.groups.join(group, joining)
    synced = await it.broker.groups.sync(group, joined.generation, joined.member_id, None)
    assert synced.code is Code.NONE
    return joined.member_id


@on_loop
async def test_a_commit_is_visible_when_durable_and_survives_a_restart(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        offset = at(5, leader_epoch=3, metadata="näher", commit_ms=START_MS)
        done = it.broker.offsets.commit("g", {P0: offset})
        assert it.broker.offsets.fetch("g", P0) is None
        await done
        for _ in range(2):
            assert it.broker.offsets.fetch("g", P0) == offset
            assert it.broker.offsets.fetch("g", P1) is None
            assert it.broker.offsets.fetch("other", P0) is None
            assert it.broker.offsets.partitions("g") == [P0]
            await it.restart()
        assert it.broker.groups.get("g") is not None


@on_loop
async def test_the_later_commit_counts(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        first = it.broker.offsets.commit("g", {P0: at(5)})
        await it.broker.offsets.commit("g", {P0: at(4)})
        await first
        assert it.broker.offsets.fetch("g", P0) == at(4)
        await it.restart()
        assert it.broker.offsets.fetch("g", P0) == at(4)


@on_loop
async def test_a_deleted_topic_takes_its_offsets_along(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        other = await it.broker.topics.create("other", 1, {})
        await it.broker.offsets.commit("g", {P0: at(1), ("other", 0): at(2)})
        await it.broker.topics.delete(other)
        for _ in range(2):
            assert it.broker.offsets.partitions("g") == [P0]
            await it.restart()


@on_loop
async def test_offsets_of_a_group_without_members_expire_after_seven_days_and_the_group_with_them(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as it:
        await it.broker.offsets.commit("simple", {P0: at(1, commit_ms=it.clock.wall_ms())})
        assert it.broker.groups.check_commit("simple", -1, "", None, transactional=False) is Code.NONE
        it.clock.advance(3 * DAY_S)
        await it.broker.offsets.commit("simple", {P1: at(2, commit_ms=it.clock.wall_ms())})
        it.clock.advance(4 * DAY_S + 601)
        await it.settled()
        assert it.broker.offsets.partitions("simple") == [P1]
        it.clock.advance(3 * DAY_S)
        await it.settled()
        assert it.broker.offsets.partitions("simple") == []
        it.clock.advance(601)
        assert it.broker.groups.get("simple") is None
        await it.settled()
        await it.restart()
        assert it.broker.groups.get("simple") is None


@on_loop
async def test_the_seven_days_begin_when_the_last_member_is_gone(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        member = await join(it, "g")
        await it.broker.offsets.commit("g", {P0: at(1, commit_ms=it.clock.wall_ms())})
        for _ in range(8 * 24 * 600):  # eight days of heartbeats
            it.clock.advance(6)
            assert it.broker.groups.heartbeat("g", 1, member, None) is Code.NONE
        await it.settled()
        assert it.broker.offsets.partitions("g") == [P0]
        assert it.broker.groups.leave("g", [(member, None)]) == [Code.NONE]
        await it.settled()
        await it.restart()
        it.clock.advance(6.9 * DAY_S)
        await it.settled()
        assert it.broker.offsets.partitions("g") == [P0]
        it.clock.advance(0.2 * DAY_S)
        await it.settled()
        assert it.broker.offsets.partitions("g") == []


@on_loop
async def test_an_offset_that_a_transaction_holds_does_not_expire(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        await it.broker.offsets.commit("g", {P0: at(1), P1: at(1)})
        unit = it.broker.store.unit()
        it.broker.offsets.stage_pending(unit, "g", 7, {P0: at(2)})
        it.broker.offsets.stage_expired(unit, "g", None)
        await it.broker.store.commit(unit)
        assert it.broker.offsets.fetch("g", P0) == at(1)
        assert it.broker.offsets.fetch("g", P1) is None


@on_loop
async def test_only_groups_without_members_are_deleted_and_offsets_go_with_them(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        groups = it.broker.groups
        member = await join(it, "g")
        await it.broker.offsets.commit("g", {P0: at(1)})
        assert await groups.delete("g") is Code.NON_EMPTY_GROUP
        assert await groups.delete("nobody") is Code.GROUP_ID_NOT_FOUND
        groups.leave("g", [(member, None)])
        assert await groups.delete("g") is Code.NONE
        for _ in range(2):
            assert it.broker.groups.get("g") is None
            assert it.broker.offsets.partitions("g") == []
            await it.restart()


@on_loop
async def test_groups_come_back_with_members_after_a_restart(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        member = await join(it, "g")
        await it.restart()
        group = it.broker.groups.get("g")
        assert group is not None
        assert (group.state, group.generation, list(group.members)) == (State.STABLE, 1, [member])
        assert it.broker.groups.heartbeat("g", 1, member, None) is Code.NONE
        it.clock.advance(10)
        assert group.state is State.EMPTY


@on_loop
async def test_names_with_odd_characters_are_kept_apart(tmp_path: Path) -> None:
    async with scene(tmp_path) as it:
        await it.broker.offsets.commit("a\0b", {P0: at(1)})
        await it.broker.offsets.commit("ü/ \n", {P0: at(2)})
        await it.restart()
        assert it.broker.offsets.fetch("a\0b", P0) == at(1)
        assert it.broker.offsets.fetch("ü/ \n", P0) == at(2)
