"""The example's traffic, and its way through the service's send endpoint.

1. talk() is pure: the same random source says the same. With probability `spam` Bob sends "spam!"; else one of five
   people says one of three things. Nobody writes to themselves.
2. LoadGenerator sends messages at a rate over kept connections, as many as the rate needs (64 at most). Every message
   is sent once: no answer is counted as such, and not tried again. `in_order` sends each person's messages one after
   the other, as a replayed file has them; else several of one person may be under way at a time.
3. What it holds in memory does not grow with the number of messages.

Threads: run() belongs to one thread and starts the senders; stop() may be called from any thread or signal handler.
"""

import http.client
import math
import queue
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Struct, field

from gokamsg.errors import CodecError, GokamsgError, UsageError

from .messages import MESSAGE, Message

PEOPLE = ("Alice", "Bob", "Charlie", "Dave", "Eve")
SAYINGS = ("Hi how are you doing", "Hello let's have lunch together", "Bye")
SPAMMER = "Bob"

CONNECTIONS = 64
IDLE_S = 20.0
ANSWER_TIMEOUT_S = 30.0
HELD_BACK = 10_000
"""Messages that may wait for an earlier one of the same person."""


def talk(source: random.Random, spam: float = 0.3) -> Iterator[Message]:
    """The example's traffic, without end."""
    while True:
        if source.random() < spam:
            sender, content = SPAMMER, "spam!"
        else:
            sender, content = source.choice(PEOPLE), source.choice(SAYINGS)
        recipient = source.choice([person for person in PEOPLE if person != sender])
        yield Message(sender, recipient, content)


def read_messages(lines: Iterable[bytes], name: str) -> Iterator[Message]:
    """The messages of JSON lines {"From", "To", "Content"}; empty lines are passed over. Raises UsageError."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield MESSAGE.decode(line.strip())
        except CodecError as error:
            raise UsageError(f"{name}, line {number} is not a message: {error}") from error


class Latencies:
    """A histogram of durations with buckets 1 % wide: quantiles to that precision, whatever their number."""

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._count = 0

    def add(self, seconds: float) -> None:
        bucket = round(math.log(max(seconds, 1e-6)) * 100)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self._count += 1

    def quantile_ms(self, share: float) -> float:
        """The duration that `share` of all did not exceed, in milliseconds; 0 if there were none."""
        passed = 0
        for bucket in sorted(self._buckets):
            passed += self._buckets[bucket]
            if passed >= share * self._count:
                return math.exp(bucket / 100) * 1000
        return 0.0


class Progress(Struct):
    """How far the load generator is. `refused` were answered with an error; `unanswered` may have been accepted."""

    accepted: int = 0
    refused: int = 0
    unanswered: int = 0
    elapsed_s: float = 0.0
    first_failure: str | None = None
    latencies: Latencies = field(default_factory=Latencies)

    @property
    def done(self) -> int:
        return self.accepted + self.refused + self.unanswered

    @property
    def rate(self) -> float:
        return self.done / self.elapsed_s if self.elapsed_s else 0.0


class LoadGenerator:
    """Sends messages to the service at `url` at `rate` a second."""

    def __init__(
        self,
        url: str,
        messages: Iterator[Message],
        *,
        rate: float,
        count: int | None = None,
        in_order: bool = False,
    ) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as error:
            raise UsageError(f"--url {url!r} has no valid port: {error}.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url {url!r} is not an address of the form http://HOST:PORT.")
        self._url = url
        self._secure = parts.scheme == "https"
        self._address = (parts.hostname, port or (443 if self._secure else 80))
        self._prefix = parts.path.rstrip("/")
        self._messages = messages
        self._rate = rate
        self._count = count
        self._in_order = in_order
        # Who has a message under way, and what waits behind it.
        self._behind: dict[str, deque[Message]] = {}
        self._held_back = 0
        self._due: queue.Queue[Message | None] = queue.Queue(maxsize=CONNECTIONS)
        self._senders: list[threading.Thread] = []
        self._idle = 0
        self._stopping = threading.Event()
        self._lock = threading.Condition()
        self._progress = Progress()

    def stop(self) -> None:
        """Nothing more is sent; run() ends when the messages under way are answered."""
        self._stopping.set()

    def run(self) -> Iterator[Progress]:
        """Sends everything, and says ten times a second how far it is. Raises GokamsgError if nobody listens there."""
        self._check_listening()
        started = time.monotonic()
        shown = started
        taken = 0
        while not self._stopping.is_set() and (self._count is None or taken < self._count):
            message = next(self._messages, None)
            if message is None:
                break
            due = started + taken / self._rate
            while (wait := due - time.monotonic()) > 0 and not self._stopping.wait(min(wait, 0.1)):
                self._progress.elapsed_s = time.monotonic() - started
                yield self._progress
            if self._stopping.is_set():
                break
            self._hand_out(message)
            taken += 1
            now = time.monotonic()
            if now - shown >= 0.1:
                shown = now
                self._progress.elapsed_s = now - started
                yield self._progress
        for _ in self._senders:
            self._due.put(None)
        done, moved_at = self._progress.done, time.monotonic()
        for sender in self._senders:
            # As long as answers come: behind one person's messages thousands may wait.
            while sender.is_alive() and time.monotonic() - moved_at < ANSWER_TIMEOUT_S:
                sender.join(0.1)
                if self._progress.done != done:
                    done, moved_at = self._progress.done, time.monotonic()
                self._progress.elapsed_s = time.monotonic() - started
                yield self._progress
        self._progress.elapsed_s = time.monotonic() - started
        yield self._progress

    def _check_listening(self) -> None:
        try:
            socket.create_connection(self._address, timeout=4).close()
        except OSError as error:
            reason = error.strerror or str(error) or "timed out"
            raise GokamsgError(
                f"no service answers at {self._url} ({reason.lower()}).\n"
                "Start it with 'gokamsg serve', or name one with --url."
            ) from error

    def _hand_out(self, message: Message) -> None:
        if self._in_order and not self._is_next(message):
            return
        with self._lock:
            needed = self._idle <= self._due.qsize() and len(self._senders) < CONNECTIONS
        if needed:
            sender = threading.Thread(target=self._send_all, name="loadgen-sender", daemon=True)
            self._senders.append(sender)
            sender.start()
        self._due.put(message)

    def _is_next(self, message: Message) -> bool:
        """Whether it can be sent now; else it goes out behind the earlier ones of the same person."""
        with self._lock:
            behind = self._behind.get(message.sender)
            if behind is None:
                self._behind[message.sender] = deque()
                return True
            behind.append(message)
            self._held_back += 1
            self._lock.wait_for(lambda: self._held_back < HELD_BACK or self._stopping.is_set(), ANSWER_TIMEOUT_S)
        return False

    def _following(self, message: Message) -> Message | None:
        """What waits behind a message that is answered."""
        if not self._in_order:
            return None
        with self._lock:
            behind = self._behind[message.sender]
            if not behind or self._stopping.is_set():
                del self._behind[message.sender]
                return None
            self._held_back -= 1
            self._lock.notify()
            return behind.popleft()

    def _send_all(self) -> None:
        connection = self._connect()
        last_used = time.monotonic()
        message: Message | None = None
        while True:
            if message is None:
                with self._lock:
                    self._idle += 1
                message = self._due.get()
                with self._lock:
                    self._idle -= 1
            if message is None:
                connection.close()
                return
            started = time.monotonic()
            if started - last_used > IDLE_S:
                # The service closes idle connections; writing to one would make the outcome unknown.
                connection.close()
            failure: str | None = None
            answered = False
            try:
                failure = self._send(connection, message)
                answered = True
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                failure = f"no answer ({str(error) or type(error).__name__})"
            last_used = time.monotonic()
            self._note(last_used - started, failure, answered)
            message = self._following(message)

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(*self._address, timeout=ANSWER_TIMEOUT_S)

    def _send(self, connection: http.client.HTTPConnection, message: Message) -> str | None:
        body = msgspec.json.encode({"to": message.recipient, "content": message.content})
        path = f"{self._prefix}/{quote(message.sender, safe='')}/send"
        connection.request("POST", path, body, {"Content-Type": "application/json", "Accept": "text/plain"})
        response = connection.getresponse()
        answer = response.read()
        if response.status < 300:
            return None
        return f"{response.status}, {answer.decode(errors='replace').strip().removeprefix('error: ')}"

    def _note(self, seconds: float, failure: str | None, answered: bool) -> None:
        progress = self._progress
        with self._lock:
            if answered:
                progress.latencies.add(seconds)
            if failure is None:
                progress.accepted += 1
            elif answered:
                progress.refused += 1
            else:
                progress.unanswered += 1
            if failure is not None and progress.first_failure is None:
                progress.first_failure = failure
