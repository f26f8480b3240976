"""Each role does what Goka's does: same topics, keys, bytes and rules."""

from collections.abc import Iterator
from typing import Any

import pytest

from gokamsg.config import ROLE_NAMES
from gokamsg.engine import GroupGraph, QueueTracker, Tester
from gokamsg.messaging import blocker, collector, detector, translator
from gokamsg.messaging import filter as message_filter
from gokamsg.messaging.messages import MESSAGE, Message
from gokamsg.messaging.roles import ROLES, RoleOptions


def test_the_settings_name_every_role() -> None:
    assert tuple(sorted(ROLES)) == ROLE_NAMES


@pytest.mark.goka("names: groups and topics of the example")
def test_groups_and_topics_are_gokas() -> None:
    graphs = {name: role.build(RoleOptions()) for name, role in ROLES.items()}
    assert {name: graph.group for name, graph in graphs.items()} == {
        "blocker": "blocker",
        "collector": "collector",
        "detector": "detector",
        "filter": "message_filter",
        "translator": "translator",
    }
    assert {name: {edge.topic for edge in graph.all_edges()} for name, graph in graphs.items()} == {
        "blocker": {"block_user", "blocker-table"},
        "collector": {"message_received", "collector-table"},
        "detector": {"message_sent", "block_user", "detector-table", "detector-loop"},
        "filter": {"message_sent", "message_received", "blocker-table", "translator-table"},
        "translator": {"translate-word", "translator-table"},
    }
    assert all(ROLES[name].group == graph.group for name, graph in graphs.items())


@pytest.mark.goka("codec: JSON bytes as Go writes them")
def test_a_message_is_written_as_goka_writes_it() -> None:
    data = MESSAGE.encode(Message("Bob", "Alice", "Hey, how are you doing?"))
    assert data == b'{"From":"Bob","To":"Alice","Content":"Hey, how are you doing?"}'
    assert (
        MESSAGE.encode(Message("<b>", "zü", "a & b"))
        == '{"From":"\\u003cb\\u003e","To":"zü","Content":"a \\u0026 b"}'.encode()
    )


@pytest.mark.goka("codec: JSON read by Go's rules")
def test_a_message_is_read_whatever_the_case_of_its_names() -> None:
    assert MESSAGE.decode(b'{"to":"Alice","CONTENT":"x","more":[1]}') == Message("", "Alice", "x")


@pytest.fixture
def tester() -> Iterator[Tester]:
    with Tester() as made:
        yield made


class Role:
    """One role on a tester, and what it emits."""

    def __init__(self, tester: Tester, graph: GroupGraph) -> None:
        self._tester = tester
        self._graph = graph
        tester.processor(graph)
        self._outputs: dict[str, QueueTracker] = {
            edge.topic: tester.new_queue_tracker(edge.topic) for edge in graph.output_streams
        }

    def feed(self, topic: str, key: str, value: Any) -> list[tuple[str, str, Any]]:
        """What one record makes the role emit, as topic, key and value."""
        self._tester.consume(topic, key, value)
        return [(name, *record) for name, output in self._outputs.items() for record in output.rest()]

    def row(self, key: str) -> bytes | None:
        """The bytes of the last record of the key in the role's table."""
        changes = self._tester.new_queue_tracker(f"{self._graph.group}-table")
        changes.seek(0)
        return dict(iter(changes.next_raw, None)).get(key)


@pytest.mark.goka("example: collect")
def test_the_collector_keeps_the_latest_messages_oldest_first(tester: Tester) -> None:
    role = Role(tester, collector.graph(keep=3))
    for number in range(5):
        assert role.feed("message_received", "Alice", Message("Bob", "Alice", str(number))) == []
    kept = b",".join(b'{"From":"Bob","To":"Alice","Content":"%d"}' % number for number in (2, 3, 4))
    assert role.row("Alice") == b"[" + kept + b"]"


@pytest.mark.goka("example: collect")
def test_the_collector_keeps_five_unless_told_otherwise(tester: Tester) -> None:
    tester.processor(ROLES["collector"].build(RoleOptions()))
    for number in range(7):
        tester.consume("message_received", "Alice", Message("Bob", "Alice", str(number)))
    kept = tester.table_value("collector-table", "Alice")
    assert [message.content for message in kept] == list("23456")


def test_the_collector_reads_a_null_row_as_an_empty_feed(tester: Tester) -> None:
    processor = tester.processor(collector.graph())
    tester.catchup()
    processor.restart()
    tester.write("collector-table", b"Alice", b"null")  # an empty slice of Go's
    tester.consume("message_received", "Alice", Message("Bob", "Alice", "x"))
    assert tester.table_value("collector-table", "Alice") == [Message("Bob", "Alice", "x")]


@pytest.mark.goka("example: block")
def test_the_blocker_remembers_blocks_and_unblocks(tester: Tester) -> None:
    role = Role(tester, blocker.graph())
    role.feed("block_user", "Bob", blocker.BlockEvent())
    assert role.row("Bob") == b'{"Blocked":true}'
    role.feed("block_user", "Bob", blocker.BlockEvent(unblock=True))
    assert role.row("Bob") == b'{"Blocked":false}'


@pytest.mark.goka("example: translate")
def test_the_translator_stores_words_as_they_are(tester: Tester) -> None:
    role = Role(tester, translator.graph())
    role.feed("translate-word", "lunch", "1[_]n<)-(")
    assert role.row("lunch") == b"1[_]n<)-("


def test_the_filter_passes_messages_to_their_recipients(tester: Tester) -> None:
    message = Message("Bob", "Alice", "Hey")
    role = Role(tester, message_filter.graph())
    assert role.feed("message_sent", "Bob", message) == [("message_received", "Alice", message)]


@pytest.mark.goka("example: filter")
def test_the_filter_drops_what_blocked_users_send_until_they_are_unblocked(tester: Tester) -> None:
    role = Role(tester, message_filter.graph())
    message = Message("Bob", "Alice", "spam!")
    tester.set_table_value("blocker-table", "Bob", blocker.BlockValue(blocked=True))
    tester.catchup()
    assert role.feed("message_sent", "Bob", message) == []
    tester.set_table_value("blocker-table", "Bob", blocker.BlockValue(blocked=False))
    tester.catchup()
    assert role.feed("message_sent", "Bob", message) == [("message_received", "Alice", message)]


def test_the_filter_goes_by_the_key_and_not_by_what_the_message_says(tester: Tester) -> None:
    role = Role(tester, message_filter.graph())
    tester.set_table_value("blocker-table", "Eve", blocker.BlockValue(blocked=True))
    tester.catchup()
    assert role.feed("message_sent", "Bob", Message("Eve", "Alice", "x")) != []
    assert role.feed("message_sent", "Eve", Message("Bob", "Alice", "x")) == []


@pytest.mark.goka("example: filter")
def test_the_filter_translates_words_between_single_spaces(tester: Tester) -> None:
    role = Role(tester, message_filter.graph())
    for word, translation in (("lunch", "1[_]n<)-("), ("nothing", ""), ("", "EMPTY")):
        tester.set_table_value("translator-table", word, translation)
    tester.catchup()

    def translated(content: str) -> str:
        ((_, key, message),) = role.feed("message_sent", "Bob", Message("Bob", "Alice", content))
        assert (key, message.sender, message.recipient) == ("Alice", "Bob", "Alice")
        return str(message.content)

    assert translated("lunch at lunch") == "1[_]n<)-( at 1[_]n<)-("
    assert translated("Lunch lunch, lunchbox") == "Lunch lunch, lunchbox"
    assert translated("say nothing now") == "say  now"
    assert translated("a  b") == "a EMPTY b"
    assert translated("tab\tlunch") == "tab\tlunch"


@pytest.mark.goka("example: detect")
def test_the_detector_counts_what_is_sent_and_received(tester: Tester) -> None:
    role = Role(tester, detector.graph(messages=100))
    role.feed("message_sent", "Bob", Message("Bob", "Alice", "x"))
    role.feed("message_sent", "Alice", Message("Alice", "Bob", "x"))
    assert role.row("Bob") == b'{"Sent":1,"Received":1}'
    assert role.row("Alice") == b'{"Sent":1,"Received":1}'


@pytest.mark.goka("example: detect")
def test_the_detector_blocks_at_the_limit_and_at_every_further_message(tester: Tester) -> None:
    role = Role(tester, detector.graph(messages=4, share=0.5))
    blocked = ("block_user", "Bob", blocker.BlockEvent())
    assert [role.feed("message_sent", "Bob", Message("Bob", "Alice", "x")) for _ in range(6)] == [
        [],
        [],
        [],
        [blocked],
        [blocked],
        [blocked],
    ]


def test_the_detector_spares_who_receives_more_than_they_send(tester: Tester) -> None:
    role = Role(tester, detector.graph(messages=4, share=0.5))
    emitted = []
    for _ in range(10):
        for sender in ("Alice", "Charlie"):
            emitted += role.feed("message_sent", sender, Message(sender, "Bob", "x"))
        emitted += role.feed("message_sent", "Bob", Message("Bob", "Dave", "x"))
    assert {key for _, key, _ in emitted} == {"Alice", "Charlie"}


def test_the_five_roles_together_lose_and_double_nothing_through_crashes(seed: int) -> None:
    """Invariant: every message of users who are not blocked is in its recipient's feed once, translated, in order."""
    with Tester(seed=seed, crash_rate=0.005) as tester:
        for role in ROLES.values():
            tester.processor(role.build(RoleOptions(keep=100, detect_messages=1000)))
        feeds = tester.view(collector.TABLE, collector.MESSAGES)
        sent = tester.emitter("message_sent", MESSAGE)
        tester.consume("translate-word", "lunch", "1[_]n<)-(")
        tester.consume("block_user", "Mallory", blocker.BlockEvent())
        expected: dict[str, list[Message]] = {"Alice": [], "Dave": []}
        for number in range(60):
            recipient = ("Alice", "Dave")[number % 2]
            sent.emit("Eve", Message("Eve", recipient, f"lunch {number}"))
            sent.emit("Mallory", Message("Mallory", recipient, "spam!"))
            sent.emit(recipient, Message(recipient, "Eve", "thanks"))
            expected[recipient].append(Message("Eve", recipient, f"1[_]n<)-( {number}"))
        tester.catchup()
        assert {name: feeds.get(name) for name in expected} == expected
        assert tester.table_value("blocker-table", "Mallory") == blocker.BlockValue(blocked=True)
        assert tester.table_value("detector-table", "Eve") == detector.Counters(sent=60, received=60)
        assert tester.table_value("blocker-table", "Eve") is None
