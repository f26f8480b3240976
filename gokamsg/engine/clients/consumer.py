"""The input consumer of a worker: member of a group, read-committed, with its offsets decided by the worker.

1. New partitions are paused and stand at a placeholder position: nothing is fetched before the worker has sought them
   and resumed them.
2. What a rebalance did is noted, not acted upon: events() tells it, in order. Rebalances happen inside poll() only.
3. membership() is what was true at the last assignment; transactions and commits carry it, so that a broker refuses
   them after the group has moved on.
4. A member whose identity is taken joins anew: it may be nobody's. A broker that comes back from a crash knows members
   as of the last rebalance that it stored, and one that was stopped for a while may read a join that was given up after
   the one that followed it. Another process takes the identity again, as often as we do: then poll() raises
   IdentityError, and fatal() holds it.

Owned by one thread. kafka-python's own thread sends heartbeats.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from kafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_errors
from kafka.protocol.consumer import LeaveGroupRequest
from kafka.structs import MemberState
from msgspec import Struct

from gokamsg.engine.clients.assignor import CopartitionAssignor
from gokamsg.engine.clients.config import ClientConfig, connecting
from gokamsg.engine.clients.connection import know
from gokamsg.engine.clients.patience import SPARED_BY_LEAVE_S, Patience
from gokamsg.engine.clients.reader import Batches, BatchReader, TopicPart
from gokamsg.errors import (
    BrokerUnavailableError,
    GokamsgError,
    IdentityError,
    OffsetsPendingError,
    TopicError,
    TransactionAbortedError,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_COORDINATOR_WAIT_S = 1.0
_JOIN_S = 0.5  # its end ends the poll
_JOINED_S = 0.02
_LOOK_UP_S = 1.0  # a poll that waits for data sees to everything else so often
_FENCES, _FENCES_WITHIN_S = 3, 30.0  # so many in that time are another process's doing


class Membership(Struct, frozen=True):
    """Who we are in the group, as the broker checks it."""

    group: str
    generation_id: int
    member_id: str
    instance_id: str | None


class Assigned(Struct, frozen=True):
    """A rebalance ended: these are all our partitions now, each paused and without a position."""

    partitions: frozenset[TopicPart]
    membership: Membership


class Revoked(Struct, frozen=True):
    """A rebalance begins: nothing more may be committed for these unless it is assigned again."""

    partitions: frozenset[TopicPart]


class Lost(Struct, frozen=True):
    """We were put out of the group: others may own these already."""

    partitions: frozenset[TopicPart]


Event = Assigned | Revoked | Lost


class GroupConsumer(BatchReader):
    """See the module."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        group: str,
        topics: Sequence[str],
        max_poll_interval_ms: int = 60_000,
        patience: Patience | None = None,
    ) -> None:
        self._group = group
        self._instance_id: str | None = None
        self._events: list[Event] = []
        self._fenced_at: deque[float] = deque(maxlen=_FENCES)
        self._fatal: IdentityError | None = None
        self._offsets_pending = False  # by the last answer
        self._finished_join: tuple[Any, Any, float] | None = None
        self._membership = Membership(group, -1, "", None)
        super().__init__(
            config,
            patience=patience,
            group_id=group,
            partition_assignment_strategy=[CopartitionAssignor()],
            max_poll_interval_ms=max_poll_interval_ms,
            session_timeout_ms=config.session_timeout_ms,
            heartbeat_interval_ms=config.heartbeat_interval_ms,
        )
        self._coordinator = self._consumer._coordinator
        self._watch_heartbeats()
        self._leave_heartbeats_alone()
        self._keep_known_coordinator()
        self._note_pending_offsets()
        self._keep_finished_joins()
        self._finish_begun_joins()
        self._consumer.subscribe(topics=list(topics), listener=_Listener(self))
        try:
            for topic in topics:  # joining before the partitions are known would rebalance twice
                self.partitions(topic)
            know(self._consumer._manager, topics)
            # One that is not found by then is looked for by the first poll, which tells why it is not found.
            with suppress(BrokerUnavailableError), connecting(self._config):
                self._coordinator.ensure_coordinator_ready(timeout_ms=_COORDINATOR_WAIT_S * 1000)
        except GokamsgError:
            self.close()
            raise

    def join_as(self, instance_id: str) -> None:
        """Who this member is in its group; before the first poll. Who is not told joins as somebody new."""
        self._instance_id = instance_id
        self._membership = Membership(self._group, -1, "", instance_id)
        self._consumer.config["group_instance_id"] = self._coordinator.config["group_instance_id"] = instance_id

    def join_until(self, done: Callable[[float], bool]) -> None:
        """Joins the group and takes part in it until something else is done; `done` waits for that, as long as it is
        told, and its end calls wake(). What becomes of the group the next polls tell, troubles too. IdentityError: see
        the module."""
        with suppress(BrokerUnavailableError):
            while not done(_JOINED_S if self._events else 0.0):
                self._poll(0.0 if self._events else _JOIN_S)

    def poll(self, timeout_s: float) -> Batches:
        """As BatchReader.poll; joins the group and takes part in its rebalances. IdentityError: see the module.

        TopicError when a topic was deleted and created again: the group's offsets were those of the old one.
        """
        return self._poll(0.0 if self._events else timeout_s)  # what is to be told already is not waited with

    def _poll(self, timeout_s: float) -> Batches:
        return self._as_member(partial(super().poll, timeout_s)) or {}

    def attend(self) -> None:
        """A poll's part in the group, for an owner who is busy with what the last one brought: who never polls is put
        out of the group, and holds up a rebalance until then."""
        self._as_member(partial(self._coordinator.poll, timeout_ms=0))

    def _made_anew(self, parts: Collection[TopicPart]) -> GokamsgError:
        topic, _ = min(parts)
        return TopicError(
            f"topic {topic!r} was deleted and created again while group {self._group!r} reads it;"
            " start again, and the new one is read from its beginning"
        )

    def _as_member(self, call: Callable[[], T]) -> T | None:
        if self._fatal is not None:
            raise self._fatal
        try:
            with connecting(self._config):
                return call()
        except BrokerUnavailableError as error:
            if isinstance(error.__cause__, kafka_errors.FencedInstanceIdError):
                self._note_fence()
                if self._fatal is not None:
                    raise self._fatal from error
                return None
            if isinstance(error.__cause__, kafka_errors.InconsistentGroupProtocolError):
                raise BrokerUnavailableError(
                    f"group {self._group!r} has members that assign partitions in another way than 'copartition'; "
                    "stop them, or use another group name"
                ) from error
            raise

    def events(self) -> list[Event]:
        """What happened in the group since the last call, in order."""
        events, self._events = self._events, []
        return events

    def will_rejoin(self) -> bool:
        """The next poll would take part in a rebalance: commit first."""
        return bool(self._coordinator.need_rejoin())

    def membership(self) -> Membership:
        return self._membership

    def fatal(self) -> IdentityError | None:
        return self._fatal

    def committed(self, partitions: Collection[TopicPart], timeout_s: float = 30.0) -> dict[TopicPart, int | None]:
        """The group's committed offsets, None where there is none.

        Waits while a transaction of them is being decided: OffsetsPendingError when that takes longer than the time,
        BrokerUnavailableError when no answer comes.
        """
        wanted = [TopicPartition(topic, partition) for topic, partition in partitions]
        self._offsets_pending = False
        try:
            with connecting(self._config):
                found = self._coordinator.fetch_committed_offsets(wanted, timeout_ms=timeout_s * 1000)
        except BrokerUnavailableError as error:
            if self._offsets_pending:
                raise OffsetsPendingError(
                    f"offsets of group {self._group!r} are part of a transaction that is still open"
                ) from error
            raise
        return {(tp.topic, tp.partition): found[tp].offset if tp in found else None for tp in wanted}

    def commit(self, offsets: Mapping[TopicPart, int], membership: Membership, timeout_s: float = 10.0) -> None:
        """Commits outside a transaction (at-least-once); TransactionAbortedError when the group has moved on."""
        current = self._coordinator.group_metadata()
        now = Membership(self._group, current.generation_id, current.member_id, self._instance_id)
        if now != membership or current.state != MemberState.STABLE:
            raise TransactionAbortedError(f"group {self._group!r} has rebalanced since the records were read")
        wanted = {TopicPartition(*part): OffsetAndMetadata(offset, "", -1) for part, offset in offsets.items()}
        try:
            with connecting(self._config):
                self._coordinator.commit_offsets_sync(wanted, timeout_ms=timeout_s * 1000)
        except BrokerUnavailableError as error:
            if isinstance(error.__cause__, kafka_errors.FencedInstanceIdError):
                self._note_fence()
                raise TransactionAbortedError(f"group {self._group!r} knows another member by our identity") from error
            if isinstance(error.__cause__, kafka_errors.CommitFailedError | kafka_errors.RebalanceInProgressError):
                raise TransactionAbortedError(f"group {self._group!r} refuses the offsets: it rebalances") from error
            raise

    def leave(self, timeout_s: float = 3.0) -> None:
        """Takes this member out of the group, so that others get its partitions at once, and closes.

        A static member does not leave by closing. The request names the member, so it never puts out a successor.
        """
        current = self._coordinator.group_metadata()
        node = self._coordinator.coordinator()
        if self._instance_id is not None and current.member_id and node is not None:
            member = LeaveGroupRequest.MemberIdentity(
                member_id=current.member_id, group_instance_id=self._instance_id, reason="shutting down"
            )
            request = LeaveGroupRequest(group_id=self._group, members=[member], min_version=3)
            self._spared_s = SPARED_BY_LEAVE_S
            with suppress(kafka_errors.KafkaError, BrokerUnavailableError):
                # Not answered: the broker puts us out when the session times out.
                self._run(self._ask, request, node, timeout_s * 1000)
        self.close()

    async def _ask(self, request: Any, node: int, timeout_ms: float) -> Any:
        manager = self._consumer._manager
        return await manager.wait_for(manager.send(request, node_id=node), timeout_ms)

    def _watch_heartbeats(self) -> None:
        # kafka-python logs a fenced instance id and stops its heartbeats; nobody would be told. In a rebalance it takes
        # part when the poll that waits for data looks up next.
        handle = self._coordinator._handle_heartbeat_response

        def watch(response: Any, send_time: float) -> Any:
            try:
                return handle(response, send_time)
            except kafka_errors.KafkaError as error:
                if isinstance(error, kafka_errors.FencedInstanceIdError):
                    self._note_fence()
                self.wake()
                raise

        self._coordinator._handle_heartbeat_response = watch

    def _leave_heartbeats_alone(self) -> None:
        # kafka-python's own thread sends them, and _watch_heartbeats() wakes a poll that has to hear of one. Its polls
        # look up whenever one is due nevertheless: an unanswered one is due all the time.
        self._coordinator.time_to_next_poll = lambda: _LOOK_UP_S

    def _keep_known_coordinator(self) -> None:
        # kafka-python asks its I/O thread at every poll whether the coordinator is known.
        coordinator = self._coordinator
        ensure = coordinator.ensure_coordinator_ready

        def known_or_found(timeout_ms: float | None = None) -> bool:
            node = coordinator.coordinator_id
            if node is not None and coordinator._client.connected(node):
                return True
            return bool(ensure(timeout_ms=timeout_ms))

        coordinator.ensure_coordinator_ready = known_or_found

    def _note_pending_offsets(self) -> None:
        # kafka-python asks again until the time is over, and then says only that.
        handle = self._coordinator._handle_offset_fetch_response

        def note(response: Any) -> Any:
            self._offsets_pending = False
            try:
                return handle(response)
            except kafka_errors.UnstableOffsetCommitError:
                self._offsets_pending = True
                raise

        self._coordinator._handle_offset_fetch_response = note

    def _keep_finished_joins(self) -> None:
        # kafka-python forgets a join that finishes between two polls and joins once more, which rebalances everybody.
        coordinator = self._coordinator
        join = coordinator._do_join_and_sync_async

        async def join_or_take() -> Any:
            finished, self._finished_join = self._finished_join, None
            if finished is not None:
                assignment, generation, at = finished
                recent = (time.monotonic() - at) * 1000 < self._config.session_timeout_ms / 2
                if recent and generation is coordinator._generation and coordinator.rebalance_in_progress():
                    return assignment
            assignment = await join()
            self._finished_join = (assignment, coordinator._generation, time.monotonic())
            return assignment

        coordinator._do_join_and_sync_async = join_or_take

    def _finish_begun_joins(self) -> None:
        # The member that assigns joins anew when a topic's partitions change. kafka-python forgets that reason as it
        # begins, so a join that outlasts one poll was never taken up again: without heartbeats, and without a word.
        coordinator = self._coordinator
        prepare = coordinator._on_join_prepare_async

        async def prepare_to_the_end(*args: Any, **options: Any) -> None:
            coordinator.request_rejoin()
            await prepare(*args, **options)

        coordinator._on_join_prepare_async = prepare_to_the_end

    def _note_fence(self) -> None:
        now = time.monotonic()
        self._fenced_at.append(now)
        if len(self._fenced_at) == _FENCES and now - self._fenced_at[0] < _FENCES_WITHIN_S:
            self._fatal = IdentityError(
                f"another process uses this worker's identity {self._instance_id!r} in group {self._group!r}; "
                "is the state directory copied or shared?"
            )
            return
        log.warning("group %r knows another member as %r; joining anew", self._group, self._instance_id)
        self._coordinator.reset_generation()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Runs on kafka-python's I/O thread while the owner waits in poll()."""

    def __init__(self, consumer: GroupConsumer) -> None:
        self._consumer = consumer

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        consumer = self._consumer
        consumer._finished_join = None
        for tp in assigned:
            consumer._subscription.pause(tp)
            consumer._subscription.assignment[tp].seek(0)
        current = consumer._coordinator.group_metadata()
        consumer._membership = Membership(
            consumer._group, current.generation_id, current.member_id, consumer._instance_id
        )
        consumer._events.append(Assigned(_parts(assigned), consumer._membership))
        consumer.wake()  # nothing is fetched before the owner has heard of it

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        if revoked:
            self._consumer._events.append(Revoked(_parts(revoked)))

    def on_partitions_lost(self, lost: Collection[TopicPartition]) -> None:
        if lost:
            self._consumer._events.append(Lost(_parts(lost)))


def _parts(partitions: Collection[TopicPartition]) -> frozenset[TopicPart]:
    return frozenset((tp.topic, tp.partition) for tp in partitions)
