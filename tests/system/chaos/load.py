"""What is said while everything breaks: several speakers, each message once and with an id of its own.

A speaker waits for the answer to a message before the next one, and never sends one again, whatever the answer was.
The spammer's messages come from the first speaker. Nobody but a speaker writes for his people, so that the order of a
sender's acknowledged messages is known.
"""

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

from kafka.errors import KafkaError

from tests.kafka_server import KafkaCluster
from tests.plain_clients import plain_producer
from tests.system.fold import partition_of
from tests.system.messaging import Ledger, Message
from tests.system.traffic import PEOPLE, SPAMMER, WORDS

TRANSLATED = {"lunch": "1[_]n<)-(", "naïve": "wise"}
"""Known to the translator before the first message."""

ANSWER_WITHIN_S = 20.0


def talk(seed: int, speaker: int, speakers: int) -> Iterator[Message]:
    """A speaker's messages, without end."""
    rng = random.Random(f"talk {seed} {speaker}")
    people = PEOPLE[speaker::speakers]
    number = 0
    while True:
        number += 1
        spams = speaker == 0 and rng.random() < 0.5
        sender = SPAMMER if spams else rng.choice(people)
        recipient = rng.choice([person for person in PEOPLE if person != sender])
        text = "spam!" if spams else " ".join(rng.choices(WORDS, k=rng.randint(1, 5)))
        yield sender, recipient, f"{text} #{speaker}.{number}"


class Speaker:
    """Posts at a steady rate from a thread of its own; messages that fall behind are not made up for."""

    def __init__(self, port: Callable[[], int], messages: Iterator[Message], *, rate: float) -> None:
        self.ledger = Ledger()
        self.acknowledged_at: dict[Message, float] = {}
        self.answers: dict[str, int] = {}
        self._port = port
        self._messages = messages
        self._rate = rate
        self._stop = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(target=self._run, name="speaker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self) -> None:
        self._thread.join(timeout=2 * ANSWER_WITHIN_S)
        assert not self._thread.is_alive(), "a request to the service has no answer"

    def _run(self) -> None:
        due = time.monotonic()
        for message in self._messages:
            due = max(due + 1 / self._rate, time.monotonic())
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            answer = self._answer(message)
            self.answers[answer] = self.answers.get(answer, 0) + 1
            if answer == "200":
                self.ledger.acknowledged[message] += 1
                self.acknowledged_at[message] = time.monotonic()
            else:
                self.ledger.unknown[message] += 1
                self._stop.wait(0.1)

    def _answer(self, message: Message) -> str:
        sender, recipient, content = message
        body = json.dumps({"to": recipient, "content": content}).encode()
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=ANSWER_WITHIN_S)
        try:
            self._connection.request("POST", f"/{quote(sender, safe='')}/send", body)
            answer = self._connection.getresponse()
            answer.read()
            return str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._connection = None
            return type(error).__name__


class Drizzle:
    """Blocks and unblocks people who never write, and translates words that nobody says, a few times a second, so that
    blocker and translator have work. What it writes is not counted on: their tables are compared with what arrived."""

    def __init__(self, cluster: KafkaCluster, seed: int, *, rate: float = 20.0) -> None:
        self._producer = plain_producer(cluster.address, acks="all", linger_ms=0, max_block_ms=2_000)
        self._rng = random.Random(f"drizzle {seed}")
        self._rate = rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drizzle", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=30)
        self._producer.close(timeout=10)

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(1 / self._rate):
            number += 1
            name = f"quiet {self._rng.randrange(200)}"
            unblocks = "true" if self._rng.random() < 0.5 else "false"
            topic, value = (
                ("translate-word", f"word {number}") if number % 2 else ("block_user", f'{{"Unblock":{unblocks}}}')
            )
            try:
                self._producer.send(topic, value.encode(), name.encode(), partition=partition_of(name, 8))
            except KafkaError:
                continue  # nobody is told that it was written
