"""The load generator: what it says, at which rate, over few connections, each message once; and what it counts."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from gokamsg.engine import Promise, RecordPosition, ViewState
from gokamsg.errors import GokamsgError, UsageError
from gokamsg.messaging import loadgen
from gokamsg.messaging.loadgen import PEOPLE, SAYINGS, Latencies, LoadGenerator, read_messages, talk
from gokamsg.messaging.messages import Message
from gokamsg.messaging.server import HttpServer, listen
from gokamsg.messaging.service import create_app
from tests.helpers import free_port, run_gokamsg


class Service:
    """The real HTTP service, keeping what it is sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.delay_s = 0.0
        self.recovered = True
        listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = HttpServer(create_app(self, self), listener)

    def emit(self, key: str, value: Message) -> Promise:
        self.messages.append(value)
        promise = Promise()
        settle = threading.Timer(self.delay_s, promise.settle, (RecordPosition("message_sent", 0, 0),))
        (settle.start if self.delay_s else settle.run)()
        return promise

    def get(self, key: str) -> list[Message] | None:
        return None

    def progress(self) -> tuple[int, int]:
        return 0, 0

    def subscribe(self, callback: Callable[[str], None]) -> None:
        """It never changes."""

    def observe_state_changes(self, observer: Callable[[ViewState], None]) -> None:
        """It never changes."""


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    thread = threading.Thread(target=service.server.run)
    thread.start()
    yield service
    service.server.stop()
    thread.join(10)


def test_the_same_seed_says_the_same() -> None:
    assert list(islice(talk(random.Random(7)), 50)) == list(islice(talk(random.Random(7)), 50))
    assert list(islice(talk(random.Random(7)), 50)) != list(islice(talk(random.Random(8)), 50))


@pytest.mark.goka("example: traffic of the load generator")
def test_the_traffic_is_gokas(seed: int) -> None:
    messages = list(islice(talk(random.Random(seed), spam=0.3), 20_000))
    assert all(message.sender != message.recipient for message in messages)
    assert {message.recipient for message in messages} == set(PEOPLE)
    spam = [message for message in messages if message.content == "spam!"]
    assert {message.sender for message in spam} == {"Bob"}
    assert 0.28 < len(spam) / len(messages) < 0.32
    said = Counter(message.content for message in messages if message.content != "spam!")
    assert set(said) == set(SAYINGS)
    assert "spam!" not in {message.content for message in islice(talk(random.Random(seed), spam=0), 1000)}
    assert {message.content for message in islice(talk(random.Random(seed), spam=1), 1000)} == {"spam!"}


def test_every_message_is_sent_once(service: Service, seed: int) -> None:
    messages = list(islice(talk(random.Random(seed)), 300))
    *_, progress = LoadGenerator(service.url, iter(messages), rate=1000, count=300).run()
    assert (progress.accepted, progress.refused, progress.unanswered) == (300, 0, 0)
    assert Counter(map(repr, service.messages)) == Counter(map(repr, messages))
    assert 0 < progress.latencies.quantile_ms(0.5) <= progress.latencies.quantile_ms(0.99)


def test_the_rate_is_kept_though_answers_are_slow(service: Service) -> None:
    """One connection could do 10 a second."""
    service.delay_s = 0.1
    started = time.monotonic()
    *_, progress = LoadGenerator(service.url, talk(random.Random(1)), rate=100, count=100).run()
    assert progress.accepted == 100
    assert 0.9 < time.monotonic() - started < 5


def test_a_replay_keeps_each_senders_order_and_leaves_nothing_behind(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One person's messages went out of order; then, in order, those that waited at the end were given up."""
    monkeypatch.setattr(loadgen, "ANSWER_TIMEOUT_S", 1.0)
    service.delay_s = 0.02
    messages = [Message("Bob" if number % 10 else "Eve", "Alice", str(number)) for number in range(120)]
    *_, progress = LoadGenerator(service.url, iter(messages), rate=10_000, in_order=True).run()
    assert (progress.accepted, progress.refused, progress.unanswered) == (120, 0, 0)
    for sender in ("Bob", "Eve"):
        sent = [message.content for message in service.messages if message.sender == sender]
        assert sent == [message.content for message in messages if message.sender == sender]


def test_it_ends_when_told_to(service: Service) -> None:
    generator = LoadGenerator(service.url, talk(random.Random(1)), rate=100)
    for progress in generator.run():
        if progress.done >= 5:
            generator.stop()
    assert 5 <= len(service.messages) == progress.done < 50


def test_refusals_are_counted_and_the_first_is_kept(service: Service) -> None:
    messages = [Message("Bob", "Alice", "x"), Message("-z", "Alice", "x"), Message("Bob", "", "x")]
    *_, progress = LoadGenerator(service.url, iter(messages), rate=100).run()
    assert (progress.accepted, progress.refused, progress.unanswered) == (1, 2, 0)
    assert progress.first_failure is not None
    assert progress.first_failure.startswith("400, the ")


def test_the_command_tells_the_first_refusal_at_once_and_counts_them_at_the_end(
    service: Service, tmp_path: Path
) -> None:
    """A load that runs for hours told it at its end only."""
    lines = [{"From": "-z", "To": "Alice", "Content": "x"}, *({"From": "Bob", "To": "", "Content": "x"},) * 2]
    path = tmp_path / "messages"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run_gokamsg("loadgen", "--url", service.url, "--file", str(path), "--rate", "5")
    why = "400, the user name '-z' begins with '-'; such names are reserved"
    assert done.stderr.splitlines()[1:] == [
        f"a message was not accepted ({why}); going on",
        f"Error: 3 of 3 messages were not accepted; the first: {why}.",
    ]


def test_nobody_there_is_one_sentence() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(GokamsgError, match=r"no service answers at .* \(connection refused\)"):
        list(LoadGenerator(address, talk(random.Random(1)), rate=1).run())


@pytest.mark.parametrize("url", ["", "no address", "ftp://host", "http://", "http://host:x", "localhost:8080"])
def test_addresses_are_checked_first(url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        LoadGenerator(url, talk(random.Random(1)), rate=1)


def test_a_file_of_messages_is_read_as_the_topics_are() -> None:
    lines = [b'{"From":"a","To":"b","Content":"c"}\n', b"\n", b'{"to":"d"}']
    assert list(read_messages(lines, "x")) == [Message("a", "b", "c"), Message("", "d", "")]
    with pytest.raises(UsageError, match="x, line 3 is not a message"):
        list(read_messages([b"\n", b"{}\n", b"oops\n"], "x"))


def test_quantiles_are_true_to_a_percent() -> None:
    latencies = Latencies()
    assert latencies.quantile_ms(0.5) == 0
    for milliseconds in range(1, 1001):
        latencies.add(milliseconds / 1000)
    assert latencies.quantile_ms(0.5) == pytest.approx(500, rel=0.011)
    assert latencies.quantile_ms(0.99) == pytest.approx(990, rel=0.011)
