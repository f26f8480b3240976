"""What the two consumers have in common: polling whole batches, positions, and the ends of the log.

Owned by one thread. Every call that asks a broker has a deadline and ends in BrokerUnavailableError when it passes, or
when its owner's patience ends.
"""

import copy
import math
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from enum import Enum
from typing import Any
from uuid import UUID

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.future import Future
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from gokamsg.engine.clients.config import ClientConfig, connect, connecting
from gokamsg.engine.clients.fetching import MAX_BATCHES, install
from gokamsg.engine.clients.patience import SPARED_BY_COMMIT_S, Alarm, Patience
from gokamsg.engine.records import RecordBatch
from gokamsg.errors import BrokerUnavailableError, GokamsgError, PositionLostError, TopicError

TopicPart = tuple[str, int]
Batches = dict[TopicPart, list[RecordBatch]]

FETCH_BYTES = 8 << 20  # of one broker's answer, so of one poll
PARTITION_FETCH_BYTES = 1 << 20
_TOPIC_WAIT_S = 1.0
_LAST_S = 0.05  # for what takes no more than a turn of the I/O thread
_LEADER_PAUSE_S = 0.05  # a partition whose leader is being elected is asked for so often
_PATIENCE_MS = 20  # a fetch that has data comes back sooner


class Place(Enum):
    """A place in a partition's log: its first offset, its high watermark, its last stable offset."""

    START = "start"
    END = "end"
    STABLE_END = "stable end"


_ISOLATION = {
    Place.START: IsolationLevel.READ_UNCOMMITTED,
    Place.END: IsolationLevel.READ_UNCOMMITTED,
    Place.STABLE_END: IsolationLevel.READ_COMMITTED,
}


class _WokenError(Exception):
    """A wait for data is not worth while any more."""


class BatchReader:
    """A read-committed KafkaConsumer that hands out record batches and never decides about offsets by itself."""

    def __init__(self, config: ClientConfig, *, patience: Patience | None = None, **settings: Any) -> None:
        self._config = config
        self._patience = patience or Patience()
        self._spared_s = SPARED_BY_COMMIT_S
        self._consumer: KafkaConsumer = connect(
            config,
            KafkaConsumer,
            auto_offset_reset="none",
            enable_auto_commit=False,
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
            fetch_max_wait_ms=config.fetch_max_wait_ms,
            retry_backoff_ms=50,
            metrics_enabled=False,
            metadata_max_age_ms=60_000,
            **settings,
        )
        install(self._consumer)
        self._subscription = self._consumer._subscription
        self._fetcher = self._consumer._fetcher
        self._topic_ids: dict[TopicPart, UUID | None] = {}  # what each position is a position in
        self._checked: object = None
        self._alarm: Alarm | None = None
        self._woken = False
        self._wakeable = False
        self._hurry_when_told(self._consumer._net)
        self._fetcher.fetch_records = self._fetch_records

    def poll(self, timeout_s: float) -> Batches:
        """The batches that arrive within the time, in order per partition; {} when none do, on wake(), or when the
        owner is to stop.

        PositionLostError names partitions whose position is not in the log (the start moved, the log was cut, or the
        topic was deleted and created again): they stand still, and the error comes again at every poll, until the
        caller seeks.
        """
        deadline = time.monotonic() + timeout_s
        if others := self._of_another_topic():
            raise self._made_anew(others)
        try:
            polled = {}
            if timeout_s > 0 and self._misdirected():
                polled = self._consumer.poll(timeout_ms=_PATIENCE_MS, max_records=MAX_BATCHES)
                if not polled:
                    self._redirect()
            if not polled:
                left_ms = max(0, int((deadline - time.monotonic()) * 1000))
                self._wakeable = True
                polled = self._consumer.poll(timeout_ms=left_ms, max_records=MAX_BATCHES)
        except _WokenError:
            return {}
        except kafka_errors.OffsetOutOfRangeError as error:
            positions = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
            raise self._lost(positions) from error
        except kafka_errors.LogTruncationError as error:
            raise self._lost({tp: self._where(tp) for tp in error.divergent_offsets}) from error
        finally:
            self._wakeable = self._woken = False
        others = self._of_another_topic()  # the poll may have learnt of it: what it brought may be of either topic
        found = {part: batches for tp, batches in polled.items() if (part := (tp.topic, tp.partition)) not in others}
        if others and not found:
            raise self._made_anew(others)
        return found

    def wake(self) -> None:
        """Ends the wait of the poll that is under way, or of the next one. For any thread."""
        self._woken = True
        alarm = self._alarm
        if alarm is not None:
            alarm.set()

    def arrived(self) -> bool:
        """Whether a poll would find something without waiting."""
        fetcher = self._fetcher
        return bool(
            fetcher._completed_fetches or fetcher._next_partition_records or fetcher._next_in_line_exception_metadata
        )

    def position(self, topic: str, partition: int) -> int:
        """The next offset after the batches handed out; it passes over markers and aborted data."""
        return self._where(TopicPartition(topic, partition))

    def seek(self, topic: str, partition: int, offset: int) -> None:
        self._consumer.seek(TopicPartition(topic, partition), offset)
        self._topic_ids[topic, partition] = self._known_id(topic)
        self._checked = None

    def assignment(self) -> set[TopicPart]:
        return {(tp.topic, tp.partition) for tp in self._subscription.assigned_partitions()}

    def pause(self, partitions: Collection[TopicPart]) -> None:
        self._consumer.pause(*_kafka(partitions))

    def resume(self, partitions: Collection[TopicPart]) -> None:
        self._consumer.resume(*_kafka(partitions))

    def paused(self) -> set[TopicPart]:
        return {(tp.topic, tp.partition) for tp in self._subscription.paused_partitions()}

    def offsets(
        self, places: Mapping[Place, Collection[TopicPart]], timeout_s: float = 10.0
    ) -> dict[Place, dict[TopicPart, int]]:
        """Where these places of each log are; all are asked for at the same time."""
        asked = {place: parts for place, parts in places.items() if parts}
        self._know({part for parts in asked.values() for part in parts})
        self._unpark()
        with connecting(self._config):
            return {**{place: {} for place in places}, **self._run(self._ask_places, asked, timeout_s * 1000)}

    def beginning_offsets(self, partitions: Collection[TopicPart], timeout_s: float = 10.0) -> dict[TopicPart, int]:
        """Where each log starts."""
        return self.offsets({Place.START: partitions}, timeout_s)[Place.START]

    def end_offsets(
        self, partitions: Collection[TopicPart], *, read_committed: bool = False, timeout_s: float = 10.0
    ) -> dict[TopicPart, int]:
        """The high watermark of each partition, or (read_committed) its last stable offset."""
        if not partitions:
            return {}
        place = Place.STABLE_END if read_committed else Place.END
        return self.offsets({place: partitions}, timeout_s)[place]

    def partitions(self, topic: str, timeout_s: float = 10.0) -> int:
        """How many partitions the topic has; TopicError when it does not exist."""
        cluster, started = self._consumer._cluster, time.monotonic()
        while not (found := cluster.partitions_for_topic(topic)):
            left_s = timeout_s - (time.monotonic() - started)
            self._unpark()
            with connecting(self._config), suppress(kafka_errors.UnknownTopicOrPartitionError):
                cluster.add_topic(topic)
                self._run(self._consumer._manager.wait_for, cluster.request_update(), max(0.0, left_s) * 1000)
            if not cluster.partitions_for_topic(topic):
                if time.monotonic() - started > _TOPIC_WAIT_S:
                    raise TopicError(f"topic {topic!r} does not exist; create it with: gokamsg topics create")
                time.sleep(0.05)  # it may have been created a moment ago
        return len(found)

    def lags(self) -> dict[TopicPart, int | None]:
        """Records between position and high watermark; None for partitions that were not fetched yet."""
        lags: dict[TopicPart, int | None] = {}
        for tp in self._subscription.assigned_partitions():
            state = self._subscription.assignment.get(tp)
            known = state is not None and state.position is not None and state.highwater is not None
            lags[tp.topic, tp.partition] = max(0, state.highwater - state.position.offset) if known else None
        return lags

    def connected(self) -> bool:
        """Whether any connection to a broker stands right now."""
        return any(conn.connected for conn in list(self._consumer._manager._conns.values()))

    def leaderless(self) -> set[TopicPart]:
        """Partitions that no broker is known to lead."""
        leader = self._consumer._cluster.leader_for_partition
        return {(tp.topic, tp.partition) for tp in self._subscription.assigned_partitions() if leader(tp) in (None, -1)}

    def close(self) -> None:
        """Ends the threads and connections; a static member stays in its group."""
        self._spared_s = 0.0
        with suppress(BrokerUnavailableError):
            self._consumer.close(autocommit=False, timeout_ms=self._patience.left_s(2.0) * 1000)

    def _hurry_when_told(self, net: Any) -> None:
        # As NetworkSelector.run, which waits for ever: most of kafka-python's calls end by a timeout of theirs only.
        run = net.run

        def run_patiently(coroutine: Any, *args: Any) -> Any:
            if net._io_thread in (None, threading.current_thread()) or net._exception is not None:
                return run(coroutine, *args)
            answer: dict[str, Any] = {"value": None, "exception": None}
            done: list[bool] = []

            async def answered() -> None:
                try:
                    answer["value"] = await net._invoke(coroutine, *args)
                except BaseException as error:  # the waiting thread raises it
                    answer["exception"] = answer["exception"] or error
                finally:
                    done.append(True)
                    alarm.set()

            waits_for_data = coroutine == self._await_fetch
            with self._patience.alarm() as alarm:
                self._alarm = alarm
                with net._pending_waiters_lock:
                    net._pending_waiters[alarm] = answer  # set, with an exception, when the I/O thread ends
                try:
                    net.call_soon_threadsafe(answered)
                    while not (done or answer["exception"]):
                        if waits_for_data and self._patience.hurried:
                            raise _WokenError
                        if waits_for_data and self._wakeable and self._woken:
                            raise kafka_errors.KafkaTimeoutError
                        left_s = self._patience.left_s(math.inf, spared_s=self._spared_s)
                        if not alarm.wait(left_s or _LAST_S) and not left_s:
                            raise BrokerUnavailableError("not answered before the stop")
                finally:
                    self._alarm = None
                    with net._pending_waiters_lock:
                        net._pending_waiters.pop(alarm, None)
            if answer["exception"] is not None:
                raise answer["exception"]
            return answer["value"]

        net.run = run_patiently

    def _fetch_records(self, max_records: int, update_offsets: bool = True, timeout_ms: float = 0.0) -> Any:
        """In place of kafka-python's, which waits for its I/O thread once for the next fetch and once for its data.

        Waiting for data is the one part of a poll that can be left at any moment; a rebalance is not. What has been
        drained counts as read from then on, so nothing behind it may end the poll without the records: the position
        would have passed what nobody was given.
        """
        fetcher, manager = self._fetcher, self._consumer._manager
        records, partial = fetcher.fetched_records(max_records, update_offsets=update_offsets)
        idle, waits = False, not records and timeout_ms > 0
        if waits:
            with suppress(kafka_errors.KafkaTimeoutError):
                idle = not self._run(self._await_fetch, timeout_ms)
            records, partial = fetcher.fetched_records(max_records, update_offsets=update_offsets)
        if not partial and (records or not waits):
            # What comes while the owner is busy with these has arrived when it polls again.
            with suppress(Exception):  # what lasts is told by the next poll
                manager.call_soon(fetcher._send_fetches_async)
        if not records and self._wakeable and self._woken:
            raise _WokenError
        return records, idle and not records

    async def _await_fetch(self, timeout_ms: float) -> bool:
        """Sends the fetches that are due and waits until one ends; whether there was any to wait for."""
        fetcher, manager = self._fetcher, self._consumer._manager
        await fetcher._send_fetches_async()
        if self.arrived():
            return True  # after the owner looked; what ends here, ends on this thread
        ended = Future()

        def end(_: object) -> None:
            if not ended.is_done:
                ended.success(None)

        waited_for = [*fetcher._fetch_futures, *filter(None, [fetcher._reset_task])]
        waited_for = [future for future in waited_for if not future.is_done]
        for future in waited_for:
            future.add_both(end)
        if waited_for:
            await manager.wait_for(ended, min(timeout_ms, _LEADER_PAUSE_S * 1000) if self._unserved() else timeout_ms)
        return bool(waited_for)

    def _unserved(self) -> bool:
        """Whether a partition that wants data is part of no fetch: its leader is being elected or connected to, or
        asked whether the log still is what was read of it."""
        fetcher, state = self._fetcher, self._subscription
        if any(not (state.is_paused(tp) or state.is_fetchable(tp)) for tp in state.assigned_partitions()):
            return True
        leaders = {self._consumer._cluster.leader_for_partition(tp) for tp in fetcher._fetchable_partitions()}
        return not leaders.issubset(fetcher._nodes_with_pending_fetch_requests)

    async def _ask_places(
        self, places: Mapping[Place, Collection[TopicPart]], timeout_ms: float
    ) -> dict[Place, dict[TopicPart, int]]:
        manager = self._consumer._manager
        asked = {}
        for place, parts in places.items():
            spec = OffsetSpec.EARLIEST if place is Place.START else OffsetSpec.LATEST
            ask = self._asking(_ISOLATION[place])._fetch_offsets_by_times_async
            asked[place] = manager.call_soon(ask, dict.fromkeys(_kafka(parts), spec), timeout_ms)
        found = {}
        for place, answer in asked.items():
            told = await manager.wait_for(answer, timeout_ms)
            found[place] = {(tp.topic, tp.partition): int(at.offset) for tp, at in told.items()}
        return found

    def _asking(self, isolation_level: IsolationLevel) -> Any:
        """A fetcher for questions about the log; it shares the consumer's connections."""
        fetcher = copy.copy(self._fetcher)
        fetcher._isolation_level = isolation_level
        ask, net = fetcher._send_list_offsets_requests, self._consumer._net

        async def ask_the_leader(timestamps: Any) -> Any:
            # kafka-python asks whoever does not lead a partition any more again and again, without a pause, until its
            # metadata is renewed for another reason: up to a minute.
            found, moved = await ask(timestamps)
            if moved:
                await net.sleep(_LEADER_PAUSE_S)
                raise kafka_errors.StaleMetadata
            return found, moved

        fetcher._send_list_offsets_requests = ask_the_leader
        return fetcher

    def _know(self, partitions: Collection[TopicPart]) -> None:
        # kafka-python leaves partitions of a topic that it does not know yet out of its answer.
        for topic in sorted({topic for topic, _ in partitions}):
            self.partitions(topic)

    def _misdirected(self) -> set[int]:
        """Brokers whose parked fetch leaves out a partition that wants data, or asks for it at another position."""
        fetcher, nodes = self._fetcher, set()
        waiting = set(fetcher._nodes_with_pending_fetch_requests)
        for tp in fetcher._fetchable_partitions() if waiting else ():
            node = self._consumer._cluster.leader_for_partition(tp)
            session, state = fetcher._session_handlers.get(node), self._subscription.assignment.get(tp)
            if node not in waiting or session is None or state is None or state.position is None:
                continue
            asked = session.session_partitions.get(tp)
            if asked is None or asked.fetch_offset != state.position.offset:
                nodes.add(node)
        return nodes

    def _redirect(self) -> None:
        # kafka-python has one fetch at a broker at a time. One that is parked there for fetch_max_wait_ms would hold up
        # partitions that were resumed, added or sought meanwhile; closing its connection ends it.
        for node in self._misdirected():
            self._run(self._consumer._manager.close, node)

    def _unpark(self) -> None:
        # A broker answers the requests of a connection in order: behind a parked fetch, others wait as long as it does.
        for node in set(self._fetcher._nodes_with_pending_fetch_requests):
            self._run(self._consumer._manager.close, node)

    def _run(self, coroutine: Any, *args: Any) -> Any:
        return self._consumer._net.run(coroutine, *args)

    def _where(self, tp: TopicPartition) -> int:
        return int(self._subscription.assignment[tp].position.offset)

    def _known_id(self, topic: str) -> UUID | None:
        """The topic's id; None while it is not known, or there is no such topic."""
        found: UUID | None = self._consumer._cluster.topic_id(topic)
        return found if found is not None and found.int else None

    def _of_another_topic(self) -> set[TopicPart]:
        """Partitions whose position is one in a topic that was deleted, while another one has its name by now.

        kafka-python goes on there in the new one, past what that has at lower offsets. It learns ids with its metadata,
        all at once, and before it fetches from a new topic.
        """
        learnt = self._consumer._cluster._topic_ids
        if learnt is self._checked:
            return set()
        others: set[TopicPart] = set()
        for topic, partition in self.assignment():
            now, then = self._known_id(topic), self._topic_ids.get((topic, partition))
            if then is None:
                self._topic_ids[topic, partition] = now
            elif now not in (None, then):
                others.add((topic, partition))
        self._checked = None if others else learnt
        return others

    def _made_anew(self, parts: Collection[TopicPart]) -> GokamsgError:
        return self._lost({tp: self._where(tp) for tp in _kafka(parts)})

    def _lost(self, positions: Mapping[Any, int]) -> PositionLostError:
        lost = {(tp.topic, tp.partition): offset for tp, offset in positions.items()}
        what = ", ".join(f"{topic}/{partition} at {offset}" for (topic, partition), offset in sorted(lost.items()))
        return PositionLostError(f"positions are not in the log any more: {what}", lost)


def _kafka(partitions: Collection[TopicPart]) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for topic, partition in partitions]
