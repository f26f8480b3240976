"""The tutorial's four steps with the installed command.

Invariants: what the commands and the HTTP service show is what Kafka holds, and that has Goka's bytes; a step never
takes back what an earlier one showed.
"""

import json

import pytest

from tests.helpers import eventually, say, slowness
from tests.system import fold
from tests.system.messaging import Messaging


def test_step_1_a_message_is_collected_and_shown(messaging: Messaging) -> None:
    collector = messaging.role("collector")
    messaging.running(collector, "collector")
    messaging.serve("--direct")

    body = '{"to": "Alice", "content": "Hey, how are you doing?"}'
    text = messaging.request("POST", "/Bob/send", body, {"Content-Type": "application/x-www-form-urlencoded"})
    assert text == (200, "Sent message:\n {Bob Alice Hey, how are you doing?}\n")

    eventually("the feed has it", lambda: messaging.feed("Alice") == ["Hey, how are you doing?"])
    shown = "Latest messages for Alice\n0        Bob: Hey, how are you doing?\n"
    assert messaging.get("/Alice/feed", Accept="*/*") == (200, shown)
    assert messaging.done("feed", "Alice").stdout == shown
    assert messaging.get("/Nobody/feed", Accept="*/*") == (404, "Nobody not found!")

    (record,) = messaging.read("message_received")
    assert (record.key, record.partition) == ("Alice", 7)
    assert record.value == b'{"From":"Bob","To":"Alice","Content":"Hey, how are you doing?"}'
    (row,) = messaging.read("collector-table")
    assert (row.key, row.partition) == ("Alice", 7)
    assert row.value == b'[{"From":"Bob","To":"Alice","Content":"Hey, how are you doing?"}]'


@pytest.mark.goka("commands: block, unblock and translate", "example: filter", "example: detect")
def test_steps_2_to_4_blocking_translating_detecting(messaging: Messaging) -> None:
    """One `process` command runs all roles. Blocked: nothing arrives; unblocked: it does; words; the detector."""
    everything = messaging.role("all", options=("--detect-messages", "20"))
    messaging.running(everything, *("collector", "blocker", "filter", "translator", "detector"))
    messaging.serve()
    messaging.arrives("Bob", "Alice", "first")

    # 2: blocked and unblocked from the terminal
    blocked = messaging.done("block", "Bob").stdout
    assert "Bob is blocked" in blocked
    assert "block_user/4" in blocked
    eventually("Bob is blocked", lambda: messaging.table("blocker-table") == {"Bob": {"Blocked": True}})
    eventually("what Bob says no longer arrives", lambda: _is_dropped(messaging, "Bob", "Alice"), interval_s=0.5)
    messaging.arrives("Charlie", "Alice", "still here")
    messaging.done("unblock", "Bob")
    eventually("Bob is unblocked", lambda: messaging.table("blocker-table") == {"Bob": {"Blocked": False}})
    eventually("what Bob says arrives", lambda: not _is_dropped(messaging, "Bob", "Alice"), interval_s=0.5)

    # 3: a word
    assert "translate-word/1" in messaging.done("translate", "lunch", "1[_]n<)-(").stdout
    eventually(
        "lunch is translated",
        lambda: _says(messaging, "Charlie", "Dave", "let's have lunch together") == "let's have 1[_]n<)-( together",
        interval_s=0.3,
    )
    values = [record.value for record in messaging.read("translator-table")]
    assert values == [b"1[_]n<)-("]
    assert rb"1[_]n\u003c)-(" in (messaging.read("message_received")[-1].value or b"") + b"".join(
        record.value or b"" for record in messaging.read("message_received")
    )

    # 4: the detector counts, and blocks who mostly sends
    for number in range(30):
        messaging.post("Mallory", "Eve", f"spam {number}")
    eventually("Mallory is blocked", lambda: messaging.table("blocker-table").get("Mallory") == {"Blocked": True})
    messaging.drained()
    assert messaging.table("detector-table") == fold.counters(messaging.read("message_sent"))
    counted = [r.value for r in messaging.read("detector-table") if r.key == "Mallory"][-1]
    assert counted == b'{"Sent":30,"Received":0}'
    assert messaging.table("collector-table") == fold.feeds(messaging.read("message_received"))


def _says(messaging: Messaging, sender: str, recipient: str, content: str) -> str:
    """Sends a message and returns what arrived in its place."""
    before = len([record for record in messaging.read("message_received") if record.key == recipient])
    messaging.post(sender, recipient, content)

    def arrived() -> list[fold.Record]:
        return [record for record in messaging.read("message_received") if record.key == recipient][before:]

    return str(eventually("the message arrived", arrived, interval_s=0.1)[-1].json["Content"])


def _is_dropped(messaging: Messaging, sender: str, recipient: str) -> bool:
    """Whether the filter drops a message of the sender; the next group commit shows that it was handled."""
    before = len(messaging.read("message_received"))
    messaging.post(sender, recipient, "is this seen?")
    messaging.drained("message_filter")
    return len(messaging.read("message_received")) == before


def test_commands_answer_within_a_second(messaging: Messaging) -> None:
    """Each of them within three runs, since the machine may be busy with something else."""
    everything = messaging.role("all")
    messaging.running(everything, "collector", "blocker")
    messaging.serve()
    messaging.arrives("Bob", "Alice", "hello")

    def in_time(arguments: tuple[str, ...]) -> bool:
        seconds = messaging.done(*arguments).seconds
        say(f"{arguments}: {seconds:.2f} s")
        return seconds < 1.0 or seconds < 1.0 * slowness()

    for arguments in (("feed", "Alice"), ("block", "Bob"), ("unblock", "Bob"), ("send", "Bob", "Alice", "hi")):
        assert any(in_time(arguments) for _ in range(3)), f"{arguments}: more than a second three times"


def test_json_output_is_one_object_per_line(messaging: Messaging) -> None:
    collector = messaging.role("collector", "filter", "blocker")
    messaging.running(collector, "collector", "filter")
    sent = json.loads(messaging.done("send", "Bob", "Alice", "hi", "--json").stdout)
    assert (sent["topic"], sent["partition"]) == ("message_sent", 4)

    def feed() -> list[dict[str, str]]:
        done = messaging.run("feed", "Alice", "--json")
        return [json.loads(line) for line in done.stdout.splitlines()] if done.returncode == 0 else []

    eventually("the feed shows it", lambda: "hi" in json.dumps(feed()), interval_s=0.2)
