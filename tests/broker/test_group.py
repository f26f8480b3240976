"""The group state machine alone, on a clock that the test moves."""

import asyncio
import itertools
from collections.abc import Callable, Mapping

import pytest

from gokamsg.broker.codes import Code
from gokamsg.broker.group import PENDING_GRACE_S, Group, State
from gokamsg.broker.group_record import encode, restore
from gokamsg.broker.member import Joined, Joining, Synced
from tests.broker.fake_clock import FakeClock, on_loop

SESSION_S, REBALANCE_S = 10.0, 30.0


class Scene:
    """A group, its clock, and a disk that is as fast as the test wants."""

    def __init__(self, *, first_join_delay_s: float = 0.0) -> None:
        self.clock = FakeClock()
        self.saved: list[bytes] = []
        self.disk_is_slow = False
        self.unsaved: list[Callable[[], None]] = []
        self._ids = itertools.count(1)
        self.first_join_delay_s = first_join_delay_s
        self.group = self.new_group()

    def new_group(self) -> Group:
        return Group(
            "g",
            clock=self.clock,
            save=self._save,
            new_member_id=lambda prefix: f"{prefix}-{next(self._ids)}",
            first_join_delay_s=self.first_join_delay_s,
        )

    def _save(self, group: Group, then: Callable[[], None]) -> None:
        self.saved.append(encode(group))
        if self.disk_is_slow:
            self.unsaved.append(then)
        else:
            then()

    def restart(self) -> None:
        """As after kill -9: what was saved last, in a new group."""
        self.group.close()
        self.group = self.new_group()
        restore(self.group, self.saved[-1])

    def join(
        self,
        member_id: str = "",
        *,
        instance_id: str | None = None,
        protocols: Mapping[str, bytes] | None = None,
        protocol_type: str = "consumer",
        session_s: float = SESSION_S,
        rebalance_s: float = REBALANCE_S,
        needs_known_id: bool = False,
        can_skip_assignment: bool = True,
    ) -> "asyncio.Future[Joined]":
        return self.group.join(
            Joining(
                member_id=member_id,
                instance_id=instance_id,
                client_id="c",
                client_host="127.0.0.1",
                protocol_type=protocol_type,
                protocols=list((protocols or {"range": b"topics"}).items()),
                session_timeout_ms=int(session_s * 1000),
                rebalance_timeout_ms=int(rebalance_s * 1000),
                needs_known_id=needs_known_id,
                can_skip_assignment=can_skip_assignment,
            )
        )

    def sync(self, joined: Joined, assignments: Mapping[str, bytes] | None = None) -> "asyncio.Future[Synced]":
        return self.group.sync(joined.generation, joined.member_id, None, assignments=(assignments or {}).items())

    def beat(self, joined: Joined) -> Code:
        return self.group.heartbeat(joined.generation, joined.member_id, None)

    def pass_time(self, seconds: float, *alive: Joined) -> None:
        """Time passes while these members send their heartbeats."""
        for _ in range(int(seconds)):
            self.clock.advance(1)
            for joined in alive:
                self.beat(joined)

    async def stable(self, count: int, *, static: bool = False) -> list[Joined]:
        """A Stable group of so many members, each assigned its number; the first one leads."""
        instances = [f"i{number}" if static else None for number in range(count)]
        first = await self.join(instance_id=instances[0])
        joins = [self.join(instance_id=instance) for instance in instances[1:]]
        joined = (
            [await self.join(first.member_id, instance_id=instances[0], protocols={"range": b"again"})]
            if joins
            else [first]
        )
        joined += [await join for join in joins]
        assignments = {one.member_id: str(number).encode() for number, one in enumerate(joined)}
        syncs = [self.sync(one) for one in joined[1:]]
        await self.sync(joined[0], assignments)
        for sync in syncs:
            await sync
        assert self.group.state is State.STABLE
        return joined


@on_loop
async def test_a_single_member_leads_and_gets_its_own_assignment() -> None:
    scene = Scene()
    joined = await scene.join()
    assert (joined.code, joined.generation, joined.leader) == (Code.NONE, 1, joined.member_id)
    assert joined.members == [(joined.member_id, None, b"topics")]
    assert scene.group.state is State.COMPLETING
    synced = await scene.sync(joined, {joined.member_id: b"all"})
    assert synced == Synced(Code.NONE, "consumer", "range", b"all")
    assert scene.group.state is State.STABLE
    assert scene.beat(joined) is Code.NONE


@on_loop
async def test_a_new_dynamic_member_is_given_its_id_first() -> None:
    scene = Scene()
    asked = await scene.join(needs_known_id=True)
    assert asked.code is Code.MEMBER_ID_REQUIRED
    assert asked.member_id.startswith("c-")
    assert scene.group.state is State.EMPTY
    joined = await scene.join(asked.member_id, needs_known_id=True)
    assert (joined.code, joined.member_id, joined.generation) == (Code.NONE, asked.member_id, 1)


@on_loop
async def test_an_id_that_was_given_out_expires_with_the_session() -> None:
    scene = Scene()
    asked = await scene.join(needs_known_id=True)
    scene.clock.advance(SESSION_S)
    assert (await scene.join(asked.member_id, needs_known_id=True)).code is Code.UNKNOWN_MEMBER_ID


@on_loop
async def test_members_that_start_together_share_the_first_generation() -> None:
    scene = Scene()
    first, second = [await scene.join(needs_known_id=True) for _ in range(2)]
    joining = scene.join(first.member_id)
    assert not joining.done()
    other = scene.join(second.member_id)
    assert {(await joining).generation, (await other).generation} == {1}


@on_loop
async def test_the_first_generation_waits_only_a_moment_for_a_member_that_never_joins() -> None:
    scene = Scene()
    first, _ = [await scene.join(needs_known_id=True) for _ in range(2)]
    joining = scene.join(first.member_id)
    assert not joining.done()
    scene.clock.advance(PENDING_GRACE_S)
    assert joining.result().generation == 1


@on_loop
async def test_the_first_join_delay_gathers_members_and_is_extended_while_they_come() -> None:
    scene = Scene(first_join_delay_s=3.0)
    joins = [scene.join()]
    scene.clock.advance(2)
    joins.append(scene.join())
    scene.clock.advance(1)
    assert not any(join.done() for join in joins)
    scene.clock.advance(3)
    assert {join.result().generation for join in joins} == {1}
    assert len(scene.group.members) == 2


@on_loop
async def test_a_second_member_makes_the_first_rejoin() -> None:
    scene = Scene()
    (first,) = await scene.stable(1)
    second = scene.join()
    assert scene.beat(first) is Code.REBALANCE_IN_PROGRESS
    assert scene.group.state is State.PREPARING
    again = await scene.join(first.member_id, protocols={"range": b"new"})
    assert (again.generation, (await second).generation) == (2, 2)
    assert (await second).members == []
    assert [metadata for _, _, metadata in again.members] == [b"new", b"topics"]


@on_loop
async def test_a_rebalance_waits_for_the_longest_rebalance_timeout_and_then_drops_who_is_missing() -> None:
    scene = Scene()
    slow = await scene.join(rebalance_s=50, session_s=60)
    await scene.sync(slow)
    quick = scene.join(rebalance_s=20)
    scene.clock.advance(49)
    assert not quick.done()
    scene.clock.advance(1)
    assert list(scene.group.members) == [quick.result().member_id]
    assert quick.result().leader == quick.result().member_id
    assert scene.beat(slow) is Code.UNKNOWN_MEMBER_ID


@on_loop
async def test_a_member_that_waits_in_join_does_not_expire() -> None:
    scene = Scene()
    slow = await scene.join(session_s=300, rebalance_s=200)
    await scene.sync(slow)
    waiting = scene.join(session_s=SESSION_S)
    scene.clock.advance(SESSION_S * 5)
    assert not waiting.done()
    await scene.join(slow.member_id, protocols={"range": b"new"})
    assert waiting.result().code is Code.NONE


@on_loop
async def test_a_member_that_waits_in_sync_does_not_expire_but_a_leader_that_never_syncs_is_dropped() -> None:
    scene = Scene()
    leader, follower = await scene.stable(2)
    joins = [scene.join(one.member_id, protocols={"range": b"x"}) for one in (leader, follower)]
    leader, follower = [await join for join in joins]
    sync = scene.sync(follower)
    scene.pass_time(REBALANCE_S - 1, leader)
    assert not sync.done()
    assert scene.beat(leader) is Code.NONE
    scene.pass_time(1)
    assert sync.result().code is Code.REBALANCE_IN_PROGRESS
    assert scene.beat(leader) is Code.UNKNOWN_MEMBER_ID
    assert (await scene.join(follower.member_id)).leader == follower.member_id


@on_loop
async def test_a_silent_member_expires_and_the_others_rebalance() -> None:
    scene = Scene()
    first, second = await scene.stable(2)
    scene.pass_time(SESSION_S, first)
    assert list(scene.group.members) == [first.member_id]
    assert scene.beat(second) is Code.UNKNOWN_MEMBER_ID
    assert scene.beat(first) is Code.REBALANCE_IN_PROGRESS
    assert (await scene.join(first.member_id)).generation == 3


@on_loop
async def test_the_group_is_empty_when_the_last_member_is_gone_and_generations_go_on() -> None:
    scene = Scene()
    (member,) = await scene.stable(1)
    assert scene.group.leave([(member.member_id, None)]) == [Code.NONE]
    assert (scene.group.state, scene.group.generation) == (State.EMPTY, 2)
    assert (await scene.join()).generation == 3


@on_loop
async def test_several_members_leave_at_once_with_one_rebalance() -> None:
    scene = Scene()
    first, second, third = await scene.stable(3)
    codes = scene.group.leave([(second.member_id, None), ("stranger", None), (third.member_id, None)])
    assert codes == [Code.NONE, Code.UNKNOWN_MEMBER_ID, Code.NONE]
    assert scene.beat(first) is Code.REBALANCE_IN_PROGRESS
    assert list(scene.group.members) == [first.member_id]


@on_loop
async def test_leaving_while_others_wait_completes_their_rebalance() -> None:
    scene = Scene()
    first, second = await scene.stable(2)
    joining = scene.join(first.member_id, protocols={"range": b"x"})
    assert not joining.done()
    scene.group.leave([(second.member_id, None)])
    assert joining.result().generation == 3


@on_loop
async def test_the_protocol_with_most_votes_among_those_that_all_speak_is_chosen() -> None:
    scene = Scene()
    first = await scene.join(protocols={"sticky": b"", "range": b"", "robin": b""})
    joins = [scene.join(protocols={"robin": b"", "range": b""}), scene.join(protocols={"robin": b"2", "range": b""})]
    joined = await scene.join(first.member_id, protocols={"sticky": b"", "range": b"", "robin": b"1"})
    assert joined.protocol_name == "robin"
    assert [metadata for _, _, metadata in joined.members] == [b"1", b"", b"2"]
    assert {(await join).protocol_name for join in joins} == {"robin"}


@pytest.mark.parametrize(
    ("protocol_type", "protocols"), [("connect", {"range": b""}), ("consumer", {"other": b""}), ("", {"range": b""})]
)
@on_loop
async def test_a_member_that_shares_no_protocol_is_refused(protocol_type: str, protocols: dict[str, bytes]) -> None:
    scene = Scene()
    await scene.stable(1)
    refused = await scene.join(protocol_type=protocol_type, protocols=protocols)
    assert refused.code is Code.INCONSISTENT_GROUP_PROTOCOL
    assert scene.group.state is State.STABLE


@on_loop
async def test_a_repeated_join_with_the_same_metadata_is_answered_without_a_rebalance() -> None:
    scene = Scene()
    leader, follower = await scene.stable(2)
    again = await scene.join(follower.member_id)
    assert (again.generation, again.members) == (2, [])
    assert scene.group.state is State.STABLE
    rejoin = scene.join(leader.member_id, protocols={"range": b"again"})
    assert scene.group.state is State.PREPARING  # a leader that joins again asks for a rebalance
    assert not rejoin.done()


@on_loop
async def test_wrong_generations_and_strangers_are_refused_everywhere() -> None:
    scene = Scene()
    (member,) = await scene.stable(1)
    group, generation, name = scene.group, member.generation, member.member_id
    assert group.heartbeat(generation + 1, name, None) is Code.ILLEGAL_GENERATION
    assert group.heartbeat(generation, "stranger", None) is Code.UNKNOWN_MEMBER_ID
    assert (await group.sync(generation - 1, name, None)).code is Code.ILLEGAL_GENERATION
    assert (await group.sync(generation, "stranger", None)).code is Code.UNKNOWN_MEMBER_ID
    assert (await group.sync(generation, name, None, protocol=("consumer", "sticky"))).code is (
        Code.INCONSISTENT_GROUP_PROTOCOL
    )
    assert (await scene.join("stranger")).code is Code.UNKNOWN_MEMBER_ID


@on_loop
async def test_a_sync_that_is_repeated_gets_the_same_assignment() -> None:
    scene = Scene()
    leader, follower = await scene.stable(2)
    assert (await scene.sync(follower)).assignment == b"1"
    assert (await scene.sync(leader, {leader.member_id: b"ignored"})).assignment == b"0"


@on_loop
async def test_who_the_leader_left_out_gets_an_empty_assignment() -> None:
    scene = Scene()
    leader = await scene.join()
    assert await scene.sync(leader, {}) == Synced(Code.NONE, "consumer", "range", b"")


@on_loop
async def test_a_sync_waits_for_the_disk_and_fails_if_a_rebalance_was_faster() -> None:
    scene = Scene()
    member = await scene.join()
    scene.disk_is_slow = True
    sync = scene.sync(member, {member.member_id: b"all"})
    assert not sync.done()
    scene.join()
    assert sync.result().code is Code.REBALANCE_IN_PROGRESS
    for then in scene.unsaved:
        then()
    assert scene.group.state is State.PREPARING


@on_loop
async def test_offset_commits_need_the_current_generation_or_an_empty_group() -> None:
    scene = Scene()
    check = scene.group.check_commit
    assert check(-1, "", None, transactional=False) is Code.NONE
    (member,) = await scene.stable(1)
    assert check(-1, "", None, transactional=False) is Code.UNKNOWN_MEMBER_ID
    assert check(-1, "", None, transactional=True) is Code.NONE
    assert check(1, member.member_id, None, transactional=False) is Code.NONE
    assert check(0, member.member_id, None, transactional=True) is Code.ILLEGAL_GENERATION
    assert check(1, "stranger", None, transactional=True) is Code.UNKNOWN_MEMBER_ID
    scene.join()
    assert check(1, member.member_id, None, transactional=False) is Code.NONE  # the old owner's last commit
    await scene.join(member.member_id, protocols={"range": b"new"})
    assert check(2, member.member_id, None, transactional=False) is Code.REBALANCE_IN_PROGRESS


@on_loop
async def test_a_commit_counts_as_a_heartbeat() -> None:
    scene = Scene()
    (member,) = await scene.stable(1)
    for _ in range(5):
        scene.clock.advance(SESSION_S - 1)
        assert scene.group.check_commit(1, member.member_id, None, transactional=False) is Code.NONE


# ---- static members


@on_loop
async def test_a_static_member_returns_to_its_assignment_although_its_metadata_changed() -> None:
    """Comparing the bytes would rebalance: they hold the owned partitions and the generation."""
    scene = Scene()
    _, follower = await scene.stable(2, static=True)
    back = await scene.join(instance_id="i1", protocols={"range": b"owned: none, generation: -1"})
    assert (back.code, back.generation, back.members) == (Code.NONE, 2, [])
    assert back.member_id != follower.member_id
    assert scene.group.state is State.STABLE
    assert (await scene.sync(back)).assignment == b"1"


@on_loop
async def test_the_former_member_id_of_a_static_member_is_fenced() -> None:
    scene = Scene()
    _, old = await scene.stable(2, static=True)
    await scene.join(instance_id="i1")
    group = scene.group
    assert group.heartbeat(2, old.member_id, "i1") is Code.FENCED_INSTANCE_ID
    assert (await group.sync(2, old.member_id, "i1")).code is Code.FENCED_INSTANCE_ID
    assert (await scene.join(old.member_id, instance_id="i1")).code is Code.FENCED_INSTANCE_ID
    assert group.check_commit(2, old.member_id, "i1", transactional=True) is Code.FENCED_INSTANCE_ID
    assert group.leave([(old.member_id, "i1")]) == [Code.FENCED_INSTANCE_ID]
    assert group.heartbeat(2, "whoever", "i9") is Code.UNKNOWN_MEMBER_ID


@on_loop
async def test_a_join_that_waits_is_fenced_when_its_instance_joins_again() -> None:
    scene = Scene()
    await scene.stable(2, static=True)
    waiting = scene.join(instance_id="i2")
    again = scene.join(instance_id="i2")
    assert (await waiting).code is Code.FENCED_INSTANCE_ID
    assert not again.done()


@on_loop
async def test_a_returning_static_leader_skips_the_assignment() -> None:
    scene = Scene()
    await scene.stable(2, static=True)
    back = await scene.join(instance_id="i0")
    assert (back.leader, back.skip_assignment, len(back.members)) == (back.member_id, True, 2)
    assert (await scene.sync(back)).assignment == b"0"


@on_loop
async def test_a_returning_static_leader_of_an_old_client_is_told_another_leader() -> None:
    scene = Scene()
    leader, _ = await scene.stable(2, static=True)
    back = await scene.join(instance_id="i0", can_skip_assignment=False)
    assert (back.leader, back.skip_assignment, back.members) == (leader.member_id, False, [])
    assert (await scene.sync(back)).assignment == b"0"


@on_loop
async def test_a_static_member_that_brings_another_protocol_makes_a_rebalance() -> None:
    scene = Scene()
    both = {"range": b"", "sticky": b""}
    first = await scene.join(instance_id="i0", protocols=both)
    await scene.sync(first)
    back = await scene.join(instance_id="i0", protocols={"sticky": b"", "range": b""})
    assert (back.generation, back.protocol_name) == (2, "sticky")


@on_loop
async def test_a_static_member_that_is_away_stays_in_the_next_generation_until_its_session_ends() -> None:
    scene = Scene()
    away = await scene.join(instance_id="away", session_s=100)
    await scene.sync(away)
    joining = scene.join(session_s=50)
    scene.clock.advance(REBALANCE_S)
    joined = joining.result()
    assert (joined.generation, joined.leader) == (2, joined.member_id)
    assert [(name, instance) for name, instance, _ in joined.members] == [
        (away.member_id, "away"),
        (joined.member_id, None),
    ]
    await scene.sync(joined, {away.member_id: b"kept for it"})
    back = await scene.join(instance_id="away", session_s=100)
    assert (await scene.sync(back)).assignment == b"kept for it"
    scene.pass_time(100, joined)
    assert list(scene.group.members) == [joined.member_id]
    assert scene.beat(joined) is Code.REBALANCE_IN_PROGRESS


@on_loop
async def test_an_administrator_removes_a_static_member_by_its_instance_id() -> None:
    scene = Scene()
    first, _ = await scene.stable(2, static=True)
    assert scene.group.leave([("", "i1"), ("", "nobody")]) == [Code.NONE, Code.UNKNOWN_MEMBER_ID]
    assert scene.beat(first) is Code.REBALANCE_IN_PROGRESS
    assert list(scene.group.members) == [first.member_id]


# ---- restarts


@on_loop
async def test_after_a_restart_members_go_on_in_their_generation() -> None:
    scene = Scene()
    leader, follower = await scene.stable(2)
    scene.restart()
    assert scene.group.state is State.STABLE
    assert scene.beat(leader) is Code.NONE
    assert (await scene.sync(follower)).assignment == b"1"
    scene.pass_time(SESSION_S, leader)
    assert list(scene.group.members) == [leader.member_id]
    assert (await scene.join(leader.member_id)).generation == 3


@on_loop
async def test_after_a_restart_a_static_member_gets_its_assignment_back() -> None:
    scene = Scene()
    _, old = await scene.stable(2, static=True)
    scene.restart()
    back = await scene.join(instance_id="i1")
    assert (back.code, back.generation) == (Code.NONE, 2)
    assert (await scene.sync(back)).assignment == b"1"
    assert scene.group.heartbeat(2, old.member_id, "i1") is Code.FENCED_INSTANCE_ID
    scene.restart()
    assert scene.group.heartbeat(2, back.member_id, "i1") is Code.NONE


@on_loop
async def test_a_restart_in_the_middle_of_a_rebalance_makes_members_join_again() -> None:
    scene = Scene()
    (first,) = await scene.stable(1)
    second = scene.join()
    again = await scene.join(first.member_id, protocols={"range": b"new"})
    scene.restart()  # generation 2 has begun, but nobody has its assignment
    assert scene.beat(again) is Code.ILLEGAL_GENERATION
    assert scene.beat(await second) is Code.UNKNOWN_MEMBER_ID
    assert (await scene.join(first.member_id, protocols={"range": b"newer"})).generation == 2


@on_loop
async def test_an_empty_group_keeps_its_generation_over_a_restart() -> None:
    scene = Scene()
    (member,) = await scene.stable(1)
    scene.group.leave([(member.member_id, None)])
    scene.restart()
    assert (scene.group.state, scene.group.generation) == (State.EMPTY, 2)
    assert scene.group.protocol_type == "consumer"
