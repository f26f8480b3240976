"""A file of 6,000 messages replayed with `loadgen --file`.

Invariants: message_sent holds exactly the file's messages, each sender's in the file's order; every recipient's feed
is the last five of what was sent to them, computed from the file alone where one person wrote to them, and from
message_received where the order of several senders is Kafka's to choose.
"""

import itertools
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.system import fold
from tests.system.messaging import Ledger, Message, Messaging
from tests.system.traffic import NO_DETECTION, chatter, write_file

COUNT = 6_000


def _messages(seed: int) -> list[Message]:
    """Two thirds of the messages have readers with one writer each; the feeds of those follow from the file."""
    crowd = chatter(seed)
    letters = ((f"author {n % 4}", f"committer {n % 40}", f"subject {n}") for n in itertools.count())
    mixed = zip(
        letters, crowd, ((f"pen {n % 30}", f"pal {n % 30}", f"letter {n}") for n in itertools.count()), strict=False
    )
    return list(itertools.islice(itertools.chain.from_iterable(mixed), COUNT))


@pytest.mark.any_broker
def test_feeds_equal_an_independent_computation(messaging: Messaging, seed: int, tmp_path: Path) -> None:
    messages = _messages(seed)
    path = tmp_path / "messages.jsonl"
    write_file(path, messages)
    everything = messaging.role("all", options=NO_DETECTION)
    messaging.running(everything, "collector", "filter", timeout_s=60)
    messaging.serve()

    url = f"http://127.0.0.1:{messaging.port}"
    done = messaging.done("loadgen", "--url", url, "--rate", "2000", "--file", str(path), timeout_s=180)
    assert f"{COUNT:,} accepted" in done.stdout + done.stderr, str(done)

    messaging.account(Ledger(acknowledged=Counter(messages)))
    in_order: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for sender, recipient, content in messages:
        in_order[sender].append((recipient, content))
    assert fold.difference(in_order, fold.by_sender(messaging.read("message_sent"))) == []
    for reader, contents in _feeds_of_one_writer(messages).items():
        assert messaging.feed(reader) == contents, reader


def _feeds_of_one_writer(messages: list[Message]) -> dict[str, list[str]]:
    writers: dict[str, set[str]] = defaultdict(set)
    feeds: dict[str, list[str]] = defaultdict(list)
    for sender, recipient, content in messages:
        writers[recipient].add(sender)
        feeds[recipient] = [*feeds[recipient], content][-fold.FEED_LENGTH :]
    return {reader: contents for reader, contents in feeds.items() if len(writers[reader]) == 1}
