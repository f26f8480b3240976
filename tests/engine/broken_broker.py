"""What tests of a broker that misbehaves share: one group at work on it, and its account.

A Meddling reacts to requests of the workers, through a control hook, and leaves the test's own alone. The embedded
broker has one; before Apache Kafka stands a proxy that has.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from gokamsg.broker.control import Control
from gokamsg.broker.runner import RunningBroker
from gokamsg.broker.settings import BrokerSettings
from gokamsg.engine import Context, GroupGraph, Input, Int64, Output, Persist, String, define_group
from tests.engine.cutting_proxy import CuttingProxy
from tests.engine.kafka_scene import PARTITIONS, Running, Scene
from tests.helpers import eventually, free_port
from tests.kafka_server import AdvertisedKafka
from tests.plain_clients import plain_consumer

BACK_WITHIN_S = 15.0
KEYS = [f"k{number}" for number in range(2 * PARTITIONS)]
KINDS = {
    "FindCoordinator": 10,
    "InitProducerId": 22,
    "Produce": 0,
    "AddPartitionsToTxn": 24,
    "AddOffsetsToTxn": 25,
    "EndTxn": 26,
    "TxnOffsetCommit": 28,
}
AT_START = ("FindCoordinator", "InitProducerId")
"""Sent when a producer is made; the others belong to each transaction."""
OF_READERS = {
    "Metadata": 3,
    "ApiVersions": 18,
    "JoinGroup": 11,
    "SyncGroup": 14,
    "OffsetFetch": 9,
    "ListOffsets": 2,
    "Fetch": 1,
    "Heartbeat": 12,
    "DescribeConfigs": 32,
}
"""Sent by consumers, most of them when they start; the last by the start itself, when it looks at its topics."""
OTHERS = {"OffsetCommit": 8, "LeaveGroup": 13}
"""Sent at least once, and when a worker stops."""
Fresh = Callable[[str], str]
Reaction = Callable[[Any, Any], Any]
"""What the broker does with a request, given its context: a reaction of the control hook."""


class Broken(Protocol):
    """A broker that can be made to misbehave."""

    @property
    def address(self) -> str: ...
    @property
    def control(self) -> Control: ...

    def restart(self, down_s: float) -> None:
        """Stop it, and start it again after so long."""


class Restarting:
    """A broker in this process that can be stopped and started again, on its port and its data."""

    def __init__(self, directory: Path) -> None:
        self._settings = BrokerSettings(data_dir=directory, port=free_port(), fsync=False)
        self.broker = self._started()

    @property
    def address(self) -> str:
        return self.broker.address

    @property
    def control(self) -> Control:
        return self.broker.control

    def restart(self, down_s: float) -> None:
        self.broker.stop()
        threading.Event().wait(down_s)
        self.broker = self._started()

    def _started(self) -> RunningBroker:
        broker = RunningBroker(self._settings)
        broker.start()
        return broker


class Proxied:
    """An Apache Kafka behind a proxy that can cut its connections."""

    def __init__(self, directory: Path, libs: Path) -> None:
        self._proxy = CuttingProxy(self._target)
        self._kafka = AdvertisedKafka(directory, libs, advertised=self._proxy.port)
        self.address, self.control = self._proxy.address, self._proxy.control

    def start(self) -> None:
        self._kafka.start()

    def restart(self, down_s: float) -> None:
        self._kafka.stop()
        threading.Event().wait(down_s)
        self._kafka.start()

    def close(self) -> None:
        self._kafka.close()
        self._proxy.close()

    def _target(self) -> tuple[str, int]:
        host, _, port = self._kafka.address.partition(":")
        return host, int(port)


class Meddling:
    """Meets the next `times` requests of a kind that workers send."""

    def __init__(self, control: Control, kind: str, reaction: Reaction, times: float) -> None:
        self.first_at = 0.0
        self.met = threading.Event()
        self._left = times
        self._reaction = reaction
        key = (KINDS | OF_READERS | OTHERS)[kind]
        self._interception = control.on(key, self._meet, times=None)

    def _meet(self, request: Any, context: Any) -> Any:
        if context.client_id != "gokamsg" or self._left <= 0:
            return None
        self._left -= 1
        self.first_at = self.first_at or time.monotonic()
        self.met.set()
        return self._reaction(request, context)

    def cancel(self) -> None:
        self._interception.cancel()


def counting(group: str, source: str, sink: str) -> GroupGraph:
    def count(context: Context, value: str) -> None:
        total = (context.value() or 0) + 1
        context.set_value(total)
        context.emit(sink, context.key(), f"{value}:{total}")

    return define_group(group, Input(source, String(), count), Persist(Int64()), Output(sink, String()))


class Story:
    """One group, whatever happens to it: what went in, and what has come out so far."""

    def __init__(self, broker: Broken, directory: Path, fresh_name: Fresh) -> None:
        self.broker = broker
        self.scene = Scene(broker.address, directory)
        self.source, self.sink, group = fresh_name("in"), fresh_name("out"), fresh_name("group")
        self.graph = counting(group, self.source, self.sink)
        self.table = f"{group}-table"
        self.passed: dict[str, list[bytes]] = {key: [] for key in KEYS}
        self._sent = 0
        admin = KafkaAdminClient(bootstrap_servers=broker.address)
        hour = {"message.timestamp.after.max.ms": "3600000"}  # Kafka 4's default
        admin.create_topics(
            {name: {"num_partitions": PARTITIONS, "configs": hour} for name in (self.source, self.sink)}
        )
        admin.close()
        self._reader = plain_consumer(
            broker.address,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            fetch_max_wait_ms=50,
        )
        self._reader.assign([TopicPartition(self.sink, partition) for partition in range(PARTITIONS)])

    def close(self) -> None:
        self._reader.close()

    def more(self) -> None:
        """One more record of each key."""
        self._sent += 1
        self.scene.produce(self.source, [(key, str(self._sent)) for key in KEYS])

    def through(self) -> bool:
        """Whether everything so far has been passed on; never out of order, never twice."""
        for records in self._reader.poll(timeout_ms=20).values():
            for record in records:
                self.passed[record.key.decode()].append(record.value)
        wanted = [b"%d:%d" % (number, number) for number in range(1, self._sent + 1)]
        for key, values in self.passed.items():
            if values != wanted[: len(values)]:
                pytest.fail(f"{key}: {values}")
        return all(values == wanted for values in self.passed.values())

    def after(
        self,
        kind: str,
        reaction: Reaction,
        *,
        begin: Callable[[], object],
        times: float = 1,
        down_s: float | None = None,
    ) -> float:
        """From `begin` on, `reaction` for the next requests of the kind; with `down_s`, the broker then goes and comes
        back after so long. How long after the first of it (or after the broker's return) everything was through."""
        meddling = Meddling(self.broker.control, kind, reaction, times if down_s is None else float("inf"))
        try:
            begin()
            assert meddling.met.wait(BACK_WITHIN_S), f"no {kind} was sent"
            since = meddling.first_at
            if down_s is not None:
                self.broker.restart(down_s)
                meddling.cancel()  # a broker's own hook went with it, a proxy's did not
                since = time.monotonic()
            eventually(f"all is through after a fault at {kind}", self.through, timeout_s=BACK_WITHIN_S)
            return time.monotonic() - since
        finally:
            meddling.cancel()

    @contextmanager
    def at_work(self, **options: object) -> Iterator[Running]:
        """A worker that has handled its first records."""
        with self.scene.running(self.graph, **options) as running:
            self.more()
            eventually("the first records are through", self.through, timeout_s=30)
            yield running

    def counted(self) -> None:
        """Nothing follows what is through, and the table says the same."""
        assert self.through()
        assert self.scene.table(self.table) == dict.fromkeys(KEYS, b"%d" % self._sent)
        assert len(self.scene.read(self.sink)) == self._sent * len(KEYS)
