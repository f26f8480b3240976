"""The load generator's 2,000 messages, and what the detector makes of them.

Invariants: Bob is blocked by the detector; unblocked, he is heard again, and blocked again; what arrived of him is a
first part of what he sent until his unblocking; everybody else's messages all arrived; counters are a fold of
message_sent, feeds one of message_received.
"""

import pytest

from tests.helpers import eventually
from tests.system import fold
from tests.system.messaging import Messaging

COUNT = 2_000


def _load(messaging: Messaging, count: int, seed: int) -> None:
    url = f"http://127.0.0.1:{messaging.port}"
    arguments = ("loadgen", "--url", url, "--rate", "500", "--count", str(count), "--seed", str(seed))
    done = messaging.done(*arguments, timeout_s=120)
    assert f"{count:,} accepted" in done.stdout + done.stderr, str(done)


@pytest.mark.any_broker
def test_bob_is_blocked_unblocked_and_blocked_again(messaging: Messaging, seed: int) -> None:
    everything = messaging.role("all")
    messaging.running(everything, "collector", "blocker", "filter", "translator", "detector", timeout_s=60)
    messaging.serve()

    _load(messaging, COUNT, seed)
    eventually("Bob is blocked", lambda: messaging.table("blocker-table").get("Bob") == {"Blocked": True})
    messaging.drained()
    sent = messaging.read("message_sent")
    assert len(sent) == COUNT
    _everybody_was_counted_and_heard(messaging)
    heard = fold.by_sender(messaging.read("message_received"))

    messaging.done("unblock", "Bob")
    eventually("Bob is unblocked", lambda: messaging.table("blocker-table").get("Bob") == {"Blocked": False})
    eventually("the filter hears Bob again", lambda: _is_heard(messaging, "Bob"), timeout_s=20, interval_s=0.2)
    assert len(fold.by_sender(messaging.read("message_received"))["Bob"]) > len(heard["Bob"])
    _load(messaging, 200, seed + 1)
    eventually("Bob is blocked again", lambda: messaging.table("blocker-table").get("Bob") == {"Blocked": True})
    messaging.drained()
    _everybody_was_counted_and_heard(messaging)


def _is_heard(messaging: Messaging, user: str) -> bool:
    """Sends one message; the detector blocks the user again for it, so he is unblocked first."""
    before = sum(record.json["From"] == user for record in messaging.read("message_received"))
    messaging.done("unblock", user)
    messaging.post(user, "Alice", "do you hear me?")
    messaging.drained("message_filter")
    return bool(sum(record.json["From"] == user for record in messaging.read("message_received")) > before)


def _everybody_was_counted_and_heard(messaging: Messaging) -> None:
    sent, received = messaging.read("message_sent"), messaging.read("message_received")
    assert fold.difference(fold.counters(sent), messaging.table("detector-table")) == []
    assert fold.difference(fold.feeds(received), messaging.table("collector-table")) == []
    blocked = {record.key for record in messaging.read("block_user") if not record.json["Unblock"]}
    heard = fold.conversations(received)
    due = {pair: contents for pair, contents in fold.filtered(sent).items() if pair[0] not in blocked}
    assert fold.difference(due, {pair: contents for pair, contents in heard.items() if pair[0] not in blocked}) == []
    assert fold.misplaced([*sent, *received]) == []
