"""Processors of Goka and of ours as members of one group, joining, leaving and killed on both sides under load.

Invariants, for a filter and a collector, each a group of both kinds:

1. Whoever is in the group shares all partitions; none is with two members at rest.
2. Every message sent arrives at least once, each pair's messages in their order.
3. Every message that arrived is in its recipient's feed at some time, and the feed ends with the latest ones.

Our members run at-least-once: Goka restores a table only up to the record below its end, and would wait for ever where
a transaction's marker stands there. Nobody is blocked here: Goka
may commit the offset of a dropped message before an earlier one is acknowledged, and loses that one if it is killed
just then.
"""

import itertools
import threading
from collections.abc import Iterable, Iterator

import pytest

from tests.helpers import Process, eventually, say
from tests.kafka_server import KafkaCluster
from tests.plain_clients import plain_producer
from tests.system import chain, fold
from tests.system.fold import Record, partition_of
from tests.system.goka import Goka, held
from tests.system.messaging import Messaging
from tests.system.tail import Tail
from tests.system.traffic import PEOPLE

GROUP_ROLES = ("filter", "collector")
GROUPS = ("message_filter", "collector")
RATE = 40
# Each of so many gets a message every ten seconds: a feed is written before five more have come.
RECIPIENTS = tuple(f"reader {number}" for number in range(400))


class Writer:
    """Sends messages to message_sent at a steady rate, each unlike all others, until it is stopped."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self.sent: list[tuple[str, str, str]] = []
        self._producer = plain_producer(cluster.address, acks="all", linger_ms=0)
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Returns when everything is acknowledged; raises what was not."""
        self._stop.set()
        self._thread.join(timeout=30)
        self._producer.close()
        assert not self._failed, self._failed[:3]

    def _run(self) -> None:
        for number, (sender, recipient) in enumerate(zip(itertools.cycle(PEOPLE), itertools.cycle(RECIPIENTS))):
            if self._stop.wait(1 / RATE):
                break
            content = f"message {number}"
            value = chain.message(sender, recipient, content).encode()
            future = self._producer.send("message_sent", value, sender.encode(), partition=partition_of(sender, 8))
            future.add_errback(self._failed.append)
            self.sent.append((sender, recipient, content))
        self._producer.flush(30)


class Crew:
    """The members of both groups, by name: a name's two processes, one for each role, come and go together."""

    def __init__(self, messaging: Messaging, goka: Goka) -> None:
        self.members: dict[str, dict[str, Process]] = {}
        self._messaging = messaging
        self._goka = goka
        self._numbers = itertools.count(1)

    def join(self, *names: str) -> None:
        """Names that begin with "goka" are Goka's; each keeps its state, as one host would."""
        for name in names:
            self.members[name] = {role: self._start(name, role) for role in GROUP_ROLES}

    def _start(self, name: str, role: str) -> Process:
        if name.startswith("goka"):
            label = f"{next(self._numbers):02}-{name}-{role}"
            return self._goka.role(self._messaging, role, state=name, name=label)
        return self._messaging.role(role, options=["--guarantee", "at-least-once"], state=name)

    def kill(self, name: str) -> None:
        for process in self.members.pop(name).values():
            process.kill9()

    def leave(self, name: str) -> None:
        processes = self.members.pop(name).values()
        for process in processes:
            process.signal(15)
        for process in processes:
            assert process.wait(30) == 0, process.tail()

    def settle(self, what: str) -> None:
        """Returns when the members share all partitions, and says who has which."""

        def shared() -> bool:
            for role in GROUP_ROLES:
                shares = {name: held(processes[role], role) for name, processes in self.members.items()}
                everything = sorted(itertools.chain(*shares.values()))
                assert everything == list(range(8)), f"{role}: {shares}"
                assert all(shares.values()), f"{role}: {shares}"
            return True

        try:
            eventually(f"all partitions are shared after: {what}", shared, timeout_s=90, interval_s=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n\n{self._messaging.started.tails()}") from None
        for role in GROUP_ROLES:
            shares = {name: sorted(held(processes[role], role)) for name, processes in self.members.items()}
            say(f"{what}: {role} {shares}")


@pytest.mark.any_broker("apache")  # where those are who move from Goka to us
@pytest.mark.parametrize("rounds", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_members_of_both_kinds_come_and_go_under_load(messaging: Messaging, goka: Goka, rounds: int) -> None:
    chain.make_topics(messaging.cluster)
    crew = Crew(messaging, goka)
    topics = ("message_sent", "message_received", "collector-table")
    with Tail(messaging.cluster, topics) as tail, Writer(messaging.cluster) as writer:
        crew.join("goka-1", "ours-1")
        crew.settle("both joined")
        # A member that dies before its first commit leaves rows without an offset, which ours refuse to guess at.
        for group in GROUPS:
            eventually(
                f"all partitions of {group} have offsets",
                lambda group=group: len(tail.committed(group)) == 8,
                timeout_s=30,
            )
        for _ in range(rounds):
            _come_and_go(crew)
        writer.stop()
        tail.drained(*GROUPS, timeout_s=90)
        tail.catch_up()
    say(f"{len(writer.sent)} messages, {len(tail.records['message_received'])} received")
    _nothing_is_lost(writer.sent, tail)


def _come_and_go(crew: Crew) -> None:
    crew.kill("goka-1")
    crew.join("ours-2")
    crew.settle("goka-1 was killed and ours-2 joined")
    crew.join("goka-1", "goka-2")
    crew.kill("ours-1")
    crew.settle("goka-1 and goka-2 joined and ours-1 was killed")
    crew.leave("goka-2")
    crew.leave("ours-2")
    crew.join("ours-1")
    crew.settle("goka-2 and ours-2 left and ours-1 is back")


def _nothing_is_lost(sent: Iterable[tuple[str, str, str]], tail: Tail) -> None:
    expected: dict[tuple[str, str], list[str]] = {}
    for sender, recipient, content in sent:
        expected.setdefault((sender, recipient), []).append(content)
    received = fold.conversations(tail.records["message_received"])
    first = {pair: list(dict.fromkeys(contents)) for pair, contents in received.items()}
    assert fold.difference(expected, first) == []
    assert fold.misplaced([*tail.records["message_received"], *tail.records["collector-table"]]) == []
    rows = tail.records["collector-table"]
    shown = {(row.key, message["Content"]) for row in rows for message in row.json}
    missing = [pair for pair in _received(tail.records["message_received"]) if pair not in shown]
    assert missing == [], f"{len(missing)} messages were in no feed, for example {missing[:3]}"
    arrived: dict[str, list[str]] = {}
    for recipient, content in _received(tail.records["message_received"]):
        arrived.setdefault(recipient, []).append(content)
    for recipient, feed in {row.key: [message["Content"] for message in row.json] for row in rows}.items():
        latest, distinct = _last_of_each(arrived[recipient]), _last_of_each(feed)
        assert len(feed) <= fold.FEED_LENGTH
        assert latest[-len(distinct) :] == distinct, f"{recipient}: {feed} of {arrived[recipient]}"


def _received(records: Iterable[Record]) -> Iterator[tuple[str, str]]:
    for record in records:
        yield record.key, record.json["Content"]


def _last_of_each(contents: list[str]) -> list[str]:
    """Without repetitions, in the order in which each was said last."""
    return list(reversed(dict.fromkeys(reversed(contents))))
