"""The messaging service as a user runs it, for system tests: processes, HTTP requests, and the final account.

`Messaging.account` compares everything Kafka holds at the end with the folds of tests/system/fold.py. It first waits
until every group has committed all of its input; outputs and offsets are committed together, so nothing can follow.
"""

import contextlib
import http.client
import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from gokamsg.supervisor import STACKS_SIGNAL
from tests.helpers import Completed, Process, Processes, eventually, free_port, run_gokamsg
from tests.kafka_server import MESSAGING_TOPICS, KafkaCluster
from tests.system import fold

ROLES = ("blocker", "translator", "collector", "filter", "detector")
GROUPS = {role: role for role in ROLES} | {"filter": "message_filter"}
# What each group consumes, upstream first: when one is through, the next one's input is complete.
INPUTS = {
    "translator": ("translate-word",),
    "message_filter": ("message_sent",),
    "detector": ("message_sent", "detector-loop"),
    "blocker": ("block_user",),
    "collector": ("message_received",),
}

Message = tuple[str, str, str]
"""Sender, recipient, content."""


class Messaging:
    """One cluster, one state directory, any number of processes."""

    def __init__(self, cluster: KafkaCluster, started: Processes, directory: Path) -> None:
        self.cluster = cluster
        self.started = started
        self.directory = directory
        self.port = 0
        self._numbers = itertools.count(1)
        self.env = {"GOKAMSG_BROKERS": cluster.address, "GOKAMSG_STATE_DIR": str(directory / "state")}

    def start(self, *arguments: str, name: str | None = None, env: Mapping[str, str] | None = None) -> Process:
        name = name or f"{next(self._numbers):02}-{arguments[0]}"
        return self.started.gokamsg(*arguments, name=name, env=self.env | dict(env or {}))

    def role(self, *roles: str, options: Iterable[str] = (), state: str | None = None) -> Process:
        """A `process` command; `state` names another state directory, as another host would have."""
        flags = [flag for role in roles for flag in ("--role", role)]
        env = {"GOKAMSG_STATE_DIR": str(self.directory / state)} if state else {}
        return self.start("process", *flags, *options, name=f"{next(self._numbers):02}-{'-'.join(roles)}", env=env)

    def running(self, process: Process, *roles: str, timeout_s: float = 30.0) -> None:
        """Returns when each role says that it is at work."""
        for role in roles:
            try:
                process.wait_line(rf"{role}.*running", timeout_s=timeout_s)
            except AssertionError as error:
                raise AssertionError(f"{error}\n\n{_stacks(process)}") from None

    def serve(self, *options: str) -> Process:
        self.port = free_port()
        process = self.start("serve", "--port", str(self.port), *options)

        def ready() -> bool:
            assert process.running, process.tail()
            return self.get("/-/ready")[0] == 200

        eventually("the service is ready", ready, timeout_s=60)
        return process

    def run(self, *arguments: str, timeout_s: float = 30.0) -> Completed:
        return run_gokamsg(*arguments, env=self.env, timeout_s=timeout_s)

    def done(self, *arguments: str, timeout_s: float = 30.0) -> Completed:
        """A command that must succeed."""
        completed = self.run(*arguments, timeout_s=timeout_s)
        assert completed.returncode == 0, str(completed)
        return completed

    # HTTP

    def request(
        self, method: str, path: str, body: str | bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            data = body.encode() if isinstance(body, str) else body
            connection.request(method, path, data, dict(headers or {"Accept": "application/json"}))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        return self.request("GET", path, headers=headers or None)

    def post(self, sender: str, recipient: str, content: str) -> None:
        body = json.dumps({"to": recipient, "content": content})
        status, text = self.request("POST", f"/{quote(sender, safe='')}/send", body)
        assert status == 200, f"{status}: {text}"

    def feed(self, user: str) -> list[str]:
        """The contents of a user's feed; empty for a user without messages."""
        status, text = self.get(f"/{quote(user, safe='')}/feed")
        if status == 404:
            return []
        assert status == 200, f"{status}: {text}"
        return [_content(message) for message in json.loads(text)["messages"]]

    def arrives(self, sender: str, recipient: str, content: str, *, timeout_s: float = 20.0) -> None:
        """Sends a message and waits until the recipient's feed shows it."""
        self.post(sender, recipient, content)
        eventually(
            f"{content!r} is in the feed of {recipient}", lambda: content in self.feed(recipient), timeout_s=timeout_s
        )

    # The account

    def committed(self, group: str, admin: KafkaAdminClient) -> dict[tuple[str, int], int]:
        offsets = admin.list_group_offsets({group: None})[group]
        return {(partition.topic, partition.partition): at.offset for partition, at in offsets.items()}

    def commits_again(self, role: str, *, every_partition: bool, timeout_s: float) -> float:
        """Seconds until the role's group has committed more than now, in some or in every partition of its input."""
        topic, started = INPUTS[GROUPS[role]][0], time.monotonic()
        with self.cluster.admin() as admin:

            def offsets() -> dict[int, int]:
                return {at[1]: n for at, n in self.committed(GROUPS[role], admin).items() if at[0] == topic}

            before = offsets()

            def moved() -> bool:
                now = offsets()
                moves = [now.get(number, 0) > before.get(number, 0) for number in range(8)]
                assert all(moves) if every_partition else any(moves), f"moved: {moves}"
                return True

            try:
                eventually(f"{role} commits again", moved, timeout_s=timeout_s)
            except AssertionError as error:
                raise AssertionError(f"{error}\n\n{self.started.tails()}") from None
        return time.monotonic() - started

    def drained(self, *groups: str, timeout_s: float = 60.0) -> None:
        """Returns when each group has committed everything of its input."""
        with self.cluster.admin() as admin:
            for group, topics in INPUTS.items():
                if groups and group not in groups:
                    continue
                for topic in topics:
                    self._drained(group, topic, admin, timeout_s)

    def _drained(self, group: str, topic: str, admin: KafkaAdminClient, timeout_s: float) -> None:
        def behind() -> dict[int, int]:
            ends: dict[int, int] = {}
            for record in fold.read(self.cluster.address, topic):
                ends[record.partition] = record.offset + 1
            committed = self.committed(group, admin)
            return {
                n: end - committed.get((topic, n), 0) for n, end in ends.items() if committed.get((topic, n), 0) < end
            }

        def through() -> bool:
            left = behind()
            assert not left, f"left by partition: {left}"
            return True

        try:
            eventually(f"group {group} has committed all of {topic}", through, timeout_s=timeout_s, interval_s=0.3)
        except AssertionError as error:
            raise AssertionError(f"{error}\n\n{self.started.tails()}") from None

    def decided(self, timeout_s: float = 60.0) -> None:
        """Returns when no transaction is open: what a killed worker left open hides what comes after it, until the
        brokers abort it."""

        def none_open() -> bool:
            left = fold.undecided(self.cluster.address, MESSAGING_TOPICS)
            assert not left, f"open: {left}"
            return True

        try:
            eventually("every transaction is decided", none_open, timeout_s=timeout_s, interval_s=0.5)
        except AssertionError as error:
            try:
                known = self._transactions()
            except KafkaError as refused:  # what was waited for in vain is what to tell
                known = f"its transactions are not told: {refused!r}"
            raise AssertionError(f"{error}\n{known}") from None

    def _transactions(self) -> str:
        """What partitions' leaders and coordinators know of transactions that are under way."""
        with self.cluster.admin() as admin:
            parts = fold.undecided(self.cluster.address, MESSAGING_TOPICS)
            lines = [
                f"{part.topic}/{part.partition}: {producer}"
                for part, state in admin.describe_producers(list(parts)).items()
                for producer in state.active_producers
                if producer.current_transaction_start_offset >= 0
            ]
            listed = [each.transactional_id for found in admin.list_transactions().values() for each in found]
            described = admin.describe_transactions(listed) if listed else {}
            return "\n".join([*lines, *(f"{name}: {state}" for name, state in described.items())])

    def read(self, topic: str, *, committed: bool = True) -> list[fold.Record]:
        return fold.read(self.cluster.address, topic, committed=committed)

    def table(self, topic: str) -> dict[str, Any]:
        return fold.table(self.cluster.address, topic)

    def account(self, sent: "Ledger", *, words: Mapping[str, str] | None = None, silenced: Iterable[str] = ()) -> None:
        """Every message accounted for, as numbered below. Of `silenced` senders a first part may have arrived."""
        self.decided()
        self.drained()
        in_kafka = self.read("message_sent")
        # 1. message_sent holds every acknowledged message once, and nothing that was not sent.
        found = Counter(
            (*pair, content) for pair, contents in fold.conversations(in_kafka).items() for content in contents
        )
        assert not (sent.acknowledged - found), f"acknowledged and lost: {_some(sent.acknowledged - found)}"
        extra = found - sent.acknowledged - sent.unknown
        assert not extra, f"never sent, or sent twice: {_some(extra)}"
        # 2. message_received holds what the filter makes of it, each sender's messages in order, nothing twice.
        received = self.read("message_received")
        silent = set(silenced)
        expected = fold.filtered(in_kafka, words=words)
        arrived = fold.conversations(received)
        _equal(
            "message_received and the fold of message_sent",
            {pair: contents for pair, contents in expected.items() if pair[0] not in silent},
            {pair: contents for pair, contents in arrived.items() if pair[0] not in silent},
        )
        for pair in arrived:
            if pair[0] in silent:
                assert fold.is_prefix(arrived[pair], expected.get(pair, [])), (
                    f"{pair}: not a first part of what was sent"
                )
        # 3. The feeds are the last five of what was received; detector and blocker counted every record once.
        _equal("collector-table and the fold of message_received", fold.feeds(received), self.table("collector-table"))
        _equal("detector-table and the fold of message_sent", fold.counters(in_kafka), self.table("detector-table"))
        events = self.read("block_user")
        _equal("blocker-table and the fold of block_user", fold.blocked_users(events), self.table("blocker-table"))
        # 4. Everything lies in the partition of its key.
        loops = self.read("detector-loop")
        assert fold.misplaced([*in_kafka, *received, *events, *loops]) == []


def _stacks(process: Process) -> str:
    """What the workers of a command are doing, thread by thread."""
    said = len(process.stderr())
    for worker in process.children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, STACKS_SIGNAL)
    with contextlib.suppress(AssertionError):  # a worker that has no more to say is told as well
        eventually("the workers show their stacks", lambda: "most recent call first" in process.stderr()[said:])
        pause(seconds=1.0)
    return process.stderr()[said:]


def _equal(what: str, expected: Mapping[Any, Any], found: Mapping[Any, Any]) -> None:
    differences = fold.difference(expected, found)
    assert not differences, f"{what} differ: " + "; ".join(differences)


def _some(messages: "Counter[Message]") -> str:
    return f"{messages.total()}, for example {[message for message, _ in messages.most_common(3)]}"


def _content(message: Mapping[str, str]) -> str:
    return next(value for name, value in message.items() if name.lower() == "content")


@dataclass
class Ledger:
    """What was sent: acknowledged by the service, or unknown because no answer said so."""

    acknowledged: "Counter[Message]" = field(default_factory=Counter)
    unknown: "Counter[Message]" = field(default_factory=Counter)


class Load:
    """Posts messages at a steady rate from a thread of its own until it is stopped.

    Each sender's messages go one after the other, so message_sent holds them in the order of the generator. What is not
    accepted ends the load; or, if `unsure` is allowed, an answer of 503 is noted, and the next message is sent.
    """

    def __init__(self, messaging: Messaging, messages: Iterator[Message], *, rate: float, unsure: bool = False) -> None:
        self.ledger = Ledger()
        self._messaging = messaging
        self._messages = messages
        self._rate = rate
        self._unsure = unsure
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def count(self) -> int:
        return self.ledger.acknowledged.total()

    def stop(self) -> None:
        """Returns when the last answer is there; raises what went wrong."""
        self._stop.set()
        self._thread.join(timeout=60)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._messaging.port, timeout=30)
        started, number = time.monotonic(), 0
        try:
            for number, message in enumerate(self._messages):
                if self._stop.wait(max(0.0, started + number / self._rate - time.monotonic())):
                    return
                self._send(connection, message)
        except BaseException as failure:
            self._failure = failure
        finally:
            connection.close()

    def _send(self, connection: http.client.HTTPConnection, message: Message) -> None:
        sender, recipient, content = message
        body = json.dumps({"to": recipient, "content": content}).encode()
        try:
            connection.request("POST", f"/{quote(sender, safe='')}/send", body)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            self.ledger.unknown[message] += 1
            connection.close()
            raise
        if answer.status == 200:
            self.ledger.acknowledged[message] += 1
        else:
            self.ledger.unknown[message] += 1
            if self._unsure and answer.status == 503:
                return
            raise AssertionError(f"{message}: {answer.status} {text.decode(errors='replace')}")


def pause(stop: Callable[[], bool] | None = None, *, seconds: float) -> None:
    """Lets `seconds` pass, as a random moment to do something at; `stop` ends it early."""
    deadline = time.monotonic() + seconds
    eventually("time passes", lambda: time.monotonic() >= deadline or bool(stop and stop()), timeout_s=seconds + 5)
