"""Each role does what Goka's does: same topics, keys, bytes and rules."""

from gokamsg.config import ROLE_NAMES
from gokamsg.messaging import blocker, collector, detector, translator
from gokamsg.messaging import filter as message_filter
from gokamsg.messaging.messages import MESSAGE, Message
from gokamsg.messaging.roles import ROLES, RoleOptions
from tests.messaging.scene import Scene


def test_the_settings_name_every_role() -> None:
    assert tuple(sorted(ROLES)) == ROLE_NAMES


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


def test_a_message_is_written_as_goka_writes_it() -> None:
    data = MESSAGE.encode(Message("Bob", "Alice", "Hey, how are you doing?"))
    assert data == b'{"From":"Bob","To":"Alice","Content":"Hey, how are you doing?"}'
    assert (
        MESSAGE.encode(Message("<b>", "zü", "a & b"))
        == '{"From":"\\u003cb\\u003e","To":"zü","Content":"a \\u0026 b"}'.encode()
    )


def test_a_message_is_read_whatever_the_case_of_its_names() -> None:
    assert MESSAGE.decode(b'{"to":"Alice","CONTENT":"x","more":[1]}') == Message("", "Alice", "x")


def test_the_collector_keeps_the_latest_messages_oldest_first() -> None:
    scene = Scene(collector.graph(keep=3))
    for number in range(5):
        assert scene.feed("message_received", "Alice", Message("Bob", "Alice", str(number))) == []
    kept = b",".join(b'{"From":"Bob","To":"Alice","Content":"%d"}' % number for number in (2, 3, 4))
    assert scene.row("Alice") == b"[" + kept + b"]"


def test_the_collector_keeps_five_unless_told_otherwise() -> None:
    scene = Scene(ROLES["collector"].build(RoleOptions()))
    for number in range(7):
        scene.feed("message_received", "Alice", Message("Bob", "Alice", str(number)))
    assert [message.content for message in collector.MESSAGES.decode(scene.row("Alice") or b"")] == list("23456")


def test_the_collector_reads_a_null_row_as_an_empty_feed() -> None:
    scene = Scene(collector.graph())
    scene.table.put(b"Alice", b"null")
    scene.feed("message_received", "Alice", Message("Bob", "Alice", "x"))
    assert scene.row("Alice") == b'[{"From":"Bob","To":"Alice","Content":"x"}]'


def test_the_blocker_remembers_blocks_and_unblocks() -> None:
    scene = Scene(blocker.graph())
    scene.feed("block_user", "Bob", blocker.BlockEvent())
    assert scene.row("Bob") == b'{"Blocked":true}'
    scene.feed("block_user", "Bob", blocker.BlockEvent(unblock=True))
    assert scene.row("Bob") == b'{"Blocked":false}'


def test_the_translator_stores_words_as_they_are() -> None:
    scene = Scene(translator.graph())
    scene.feed("translate-word", "lunch", "1[_]n<)-(")
    assert scene.row("lunch") == b"1[_]n<)-("


def test_the_filter_passes_messages_to_their_recipients() -> None:
    scene = Scene(message_filter.graph())
    message = Message("Bob", "Alice", "Hey")
    assert scene.feed("message_sent", "Bob", message) == [("message_received", "Alice", message)]


def test_the_filter_drops_what_blocked_users_send_until_they_are_unblocked() -> None:
    scene = Scene(message_filter.graph())
    message = Message("Bob", "Alice", "spam!")
    scene.set_row("blocker-table", "Bob", blocker.BlockValue(blocked=True))
    assert scene.feed("message_sent", "Bob", message) == []
    scene.set_row("blocker-table", "Bob", blocker.BlockValue(blocked=False))
    assert scene.feed("message_sent", "Bob", message) == [("message_received", "Alice", message)]


def test_the_filter_goes_by_the_key_and_not_by_what_the_message_says() -> None:
    scene = Scene(message_filter.graph())
    scene.set_row("blocker-table", "Eve", blocker.BlockValue(blocked=True))
    assert scene.feed("message_sent", "Bob", Message("Eve", "Alice", "x")) != []
    assert scene.feed("message_sent", "Eve", Message("Bob", "Alice", "x")) == []


def test_the_filter_translates_words_between_single_spaces() -> None:
    scene = Scene(message_filter.graph())
    scene.set_row("translator-table", "lunch", "1[_]n<)-(")
    scene.set_row("translator-table", "nothing", "")
    scene.set_row("translator-table", "", "EMPTY")

    def translated(content: str) -> str:
        ((_, key, message),) = scene.feed("message_sent", "Bob", Message("Bob", "Alice", content))
        assert (key, message.sender, message.recipient) == ("Alice", "Bob", "Alice")
        return str(message.content)

    assert translated("lunch at lunch") == "1[_]n<)-( at 1[_]n<)-("
    assert translated("Lunch lunch, lunchbox") == "Lunch lunch, lunchbox"
    assert translated("say nothing now") == "say  now"
    assert translated("a  b") == "a EMPTY b"
    assert translated("tab\tlunch") == "tab\tlunch"


def test_the_detector_counts_what_is_sent_and_received() -> None:
    scene = Scene(detector.graph(messages=100))
    scene.feed("message_sent", "Bob", Message("Bob", "Alice", "x"))
    scene.feed("message_sent", "Alice", Message("Alice", "Bob", "x"))
    assert scene.row("Bob") == b'{"Sent":1,"Received":1}'
    assert scene.row("Alice") == b'{"Sent":1,"Received":1}'


def test_the_detector_blocks_at_the_limit_and_at_every_further_message() -> None:
    scene = Scene(detector.graph(messages=4, share=0.5))
    blocked = ("block_user", "Bob", blocker.BlockEvent())
    assert [scene.feed("message_sent", "Bob", Message("Bob", "Alice", "x")) for _ in range(6)] == [
        [],
        [],
        [],
        [blocked],
        [blocked],
        [blocked],
    ]


def test_the_detector_spares_who_receives_more_than_they_send() -> None:
    scene = Scene(detector.graph(messages=4, share=0.5))
    emitted = []
    for _ in range(10):
        for sender in ("Alice", "Charlie"):
            emitted += scene.feed("message_sent", sender, Message(sender, "Bob", "x"))
        emitted += scene.feed("message_sent", "Bob", Message("Bob", "Dave", "x"))
    assert {key for _, key, _ in emitted} == {"Alice", "Charlie"}
