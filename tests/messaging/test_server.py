"""The HTTP server under clients that mean no good, over real sockets: others are served in good time meanwhile, nothing
of the inside is told, and connections, threads and descriptors come to an end.
"""

import http.client
import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from urllib.parse import quote

import pytest

from gokamsg.messaging.connection import Limits
from gokamsg.messaging.messages import Message
from gokamsg.messaging.requests import PIPELINED
from gokamsg.messaging.server import HttpServer, listen
from gokamsg.messaging.service import create_app
from tests.helpers import eventually
from tests.messaging.test_service import Emitted, Feeds

FEED = b"Latest messages for Alice\n0        Bob: Hey\n"
LIMITS = Limits(connections=60, idle_s=1.0, request_s=1.0, send_s=1.0, linger_s=0.5)
GOOD_TIME_S = 2.0
INSIDE = re.compile(
    rb'Traceback|File "|\.py\b|gokamsg[/.]|site-packages|/home/|werkzeug|httptools|flask', re.IGNORECASE
)

Address = tuple[str, int]


class Scene:
    """A running server, and clients of it."""

    def __init__(self, address: Address, server: HttpServer, emitter: Emitted, view: Feeds) -> None:
        self.address, self.server, self.emitter, self.view = address, server, emitter, view

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def said(self, *pieces: bytes) -> bytes:
        """Everything that a client is answered which sends these bytes and no more."""
        with self.connect() as client:
            with suppress(OSError):  # it was refused before it had finished
                for piece in pieces:
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
            return rest(client)

    def held(self) -> tuple[int, int]:
        """Threads and descriptors that this process has while nobody is connected."""
        self.serves()
        eventually("all connections have ended", lambda: self.server.connections == 0)
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    def serves(self) -> None:
        """A normal client is served in good time."""
        started = time.monotonic()
        with closing(http.client.HTTPConnection(*self.address, timeout=10)) as connection:
            connection.request("POST", "/Bob/send", b'{"to": "Alice", "content": "x"}')
            assert connection.getresponse().read().startswith(b"Sent message")
            connection.request("GET", "/Alice/feed")
            assert connection.getresponse().read() == FEED
        assert time.monotonic() - started < GOOD_TIME_S


@contextmanager
def running(limits: Limits = LIMITS, **options: float) -> Iterator[Scene]:
    emitter, view = Emitted(), Feeds({"Alice": [Message("Bob", "Alice", "Hey")]})
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(emitter, view, **options), listener, limits=limits)
    thread = threading.Thread(target=server.run)
    address = listener.getsockname()
    thread.start()
    try:
        yield Scene(address, server, emitter, view)
    finally:
        started = time.monotonic()
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
        assert time.monotonic() - started < 3


@pytest.fixture
def scene() -> Iterator[Scene]:
    with running() as made:
        yield made


def rest(client: socket.socket) -> bytes:
    """What is received until the end of the connection."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def statuses(answers: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def post(body: bytes, **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in {"Host": "localhost", **headers}.items()]
    return f"POST /Bob/send HTTP/1.1\r\n{''.join(lines)}Content-Length: {len(body)}\r\n\r\n".encode() + body


GET = b"GET /Alice/feed HTTP/1.1\r\nHost: localhost\r\n\r\n"


def garbage(dice: random.Random) -> bytes:
    """Nonsense, or a good request with something wrong."""
    if dice.random() < 0.3:
        return dice.randbytes(dice.randint(1, 3000))
    data = bytearray(dice.choice((GET, post(b'{"to":"Alice","content":"x"}'), post(b"to=x"))))
    for _ in range(dice.randint(1, 5)):
        at = dice.randrange(len(data))
        data[at : at + dice.randint(0, 5)] = dice.choice(
            (b"\r\n", b"\x00", b"\xff\xfe", b"%2F%00", b"/", b":", b"9" * 20)
        )
    return bytes(data)[: dice.randint(1, len(data))] if dice.random() < 0.3 else bytes(data)


def test_garbage_harms_nobody_and_learns_nothing(scene: Scene, seed: int) -> None:
    dice = random.Random(seed)
    before = scene.held()
    for number in range(400):
        data = garbage(dice)
        answers = scene.said(data)
        assert not INSIDE.search(answers), (data, answers)
        assert all(status < 500 for status in statuses(answers)), (data, answers)
        if number % 100 == 0:
            scene.serves()
    scene.serves()
    after = scene.held()
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)


def test_half_requests_that_are_held_open_block_nobody(scene: Scene, seed: int) -> None:
    """Three times as many as there may be connections, each with a part of a request, and a byte more now and then."""
    dice = random.Random(seed)
    parts = (b"", b"G", b"GET /Alice/feed HTTP/1.1\r\nHost: loc", post(b"x" * 50)[:-10])
    with ExitStack() as held:
        clients = [held.enter_context(scene.connect()) for _ in range(3 * LIMITS.connections)]
        for number, client in enumerate(clients):
            client.settimeout(0)
            with suppress(OSError):  # it gave way already
                client.send(parts[number % len(parts)])
        ended = time.monotonic() + 2 * LIMITS.request_s
        while time.monotonic() < ended:
            scene.serves()
            with suppress(OSError):
                dice.choice(clients).send(b"a")
        eventually("every one of them has ended", lambda: all(map(over, clients)))
    scene.serves()


def over(client: socket.socket) -> bool:
    try:
        while client.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_a_request_that_does_not_come_to_its_end_is_told_so(scene: Scene) -> None:
    with scene.connect() as client:
        client.sendall(GET[:-2])
        assert statuses(rest(client)) == [408]
    with scene.connect() as client:
        assert rest(client) == b""  # idle: no question, no answer


@pytest.mark.parametrize(
    "data", [b"GET /" + b"a" * 60, post(b"x" * 200)[:-190], b"\r\n" * 60], ids=["line", "body", "empty lines"]
)
def test_bytes_that_drip_in_buy_no_time(scene: Scene, data: bytes) -> None:
    with scene.connect() as client, suppress(OSError):
        started = time.monotonic()
        client.settimeout(0.05)
        for at in range(len(data)):
            client.send(data[at : at + 1])
            try:
                answer = client.recv(1000)
            except TimeoutError:
                continue
            assert statuses(answer) == [408]
            break
        assert time.monotonic() - started < LIMITS.request_s + 2


def test_a_client_that_takes_no_answers_is_dropped(scene: Scene) -> None:
    scene.view.rows["Long"] = [Message("Bob", "Long", "x" * 60_000)] * 5
    with ExitStack() as held:
        for _ in range(5):
            client = held.enter_context(scene.connect())
            client.sendall(GET.replace(b"Alice", b"Long") * 50)
        eventually("their answers are stuck", lambda: scene.server.requests_under_way() == 5)
        scene.serves()
        eventually("they are dropped", lambda: scene.server.requests_under_way() == 0)
    scene.serves()


def test_requests_in_a_row_are_answered_in_their_order(scene: Scene) -> None:
    names = [f"user-{number}" for number in range(30)]
    requests = [GET.replace(b"Alice", name.encode()) for name in names]
    answers = scene.said(b"".join(requests) + GET)
    assert re.findall(rb"(user-\d+) not found!", answers) == [name.encode() for name in names]
    assert statuses(answers) == [404] * 30 + [200]
    assert statuses(scene.said(GET * (PIPELINED + 100))) == [200] * PIPELINED


def test_bodies_beyond_the_limit_are_refused_while_they_come(scene: Scene) -> None:
    announced = post(b"").replace(b"Content-Length: 0", b"Content-Length: 100000000")
    with scene.connect() as client:
        client.sendall(announced)  # and no body
        assert b"413" in client.recv(65536)
    start = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    answers = scene.said(start, *[piece] * 50)
    assert statuses(answers) == [413]
    assert b"the body is larger than 64 KiB" in answers
    assert scene.emitter.records == []
    scene.serves()


def test_a_client_may_ask_before_it_sends_the_body(scene: Scene) -> None:
    whole = post(b'{"to":"Alice","content":"x"}', Expect="100-continue")
    head, body = whole.split(b"\r\n\r\n")
    with scene.connect() as client:
        client.sendall(head + b"\r\n\r\n")
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")


def test_huge_heads_are_refused(scene: Scene) -> None:
    assert statuses(scene.said(GET[:-2] + b"X: " + b"x" * 300_000 + b"\r\n\r\n")) == [431]
    assert statuses(scene.said(GET[:-2] + b"X: y\r\n" * 50_000 + b"\r\n")) == [431]
    assert statuses(scene.said(GET.replace(b"Alice", b"A" * 300_000))) == [431]


@pytest.mark.parametrize(
    "data",
    [
        post(b'{"to":"Alice"}', Origin="http://evil.example"),
        post(b'{"to":"Alice"}', Origin="http://localhost:1"),
        post(b'{"to":"Alice"}', Origin="null"),
        post(b'{"to":"Alice"}', Sec_Fetch_Site="cross-site"),
        post(b'{"to":"Alice"}', Host="evil.example"),
        post(b'{"to":"Alice"}', Host="evil.example, localhost"),
        post(b'{"to":"Alice"}').replace(b"Host: localhost", b"Host: localhost\r\nHost: evil.example"),
        post(b'{"to":"Alice"}', Origin="http://evil.example").replace(b"Origin", b"ORIGIN"),
    ],
)
def test_forged_requests_send_nothing(scene: Scene, data: bytes) -> None:
    [status] = statuses(scene.said(data))
    assert status in (400, 403)
    assert scene.emitter.records == []


@pytest.mark.parametrize(
    "name", ["../../x", "..", "'; drop table x; --", "$(id)`id`", "a\x00b", "\x1b[2J", "%00", "\r\nX: y"]
)
def test_hostile_names_are_names(scene: Scene, name: str) -> None:
    body = json.dumps({"to": name, "content": name}).encode()
    sent = scene.said(post(body).replace(b"/Bob/", f"/{quote(name, safe='')}/".encode()))
    assert statuses(sent) == [200]
    assert scene.emitter.records == [(name, Message(name, name, name))]
    answers = scene.said(GET.replace(b"Alice", quote(name, safe="").encode()))
    assert statuses(answers) == [404]
    assert answers.split(b"\r\n\r\n")[1] == f"{name} not found!".encode() or "\r\n\r\n" in name
    assert not INSIDE.search(answers)


def test_one_time_clients_are_served(scene: Scene) -> None:
    old = scene.said(b"GET /Alice/feed HTTP/1.0\r\n\r\n")
    assert old.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close\r\n" in old
    head = scene.said(GET.replace(b"GET", b"HEAD"))
    assert (statuses(head), head.endswith(b"\r\n\r\n"), f"Content-Length: {len(FEED)}".encode() in head) == (
        [200],
        True,
        True,
    )
    assert statuses(scene.said("GET /Zoë/feed HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())) == [404]
    assert statuses(scene.said(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n")) == [200]


def test_an_answer_that_does_not_come_is_unknown_and_comes_once() -> None:
    with running(acknowledged_within_s=0.5) as scene, scene.connect() as client:
        scene.emitter.held = True
        client.sendall(post(b'{"to":"Alice","content":"x"}'))
        answer = client.recv(65536)
        assert statuses(answer) == [503]
        assert b"it may be sent or not" in answer
        scene.emitter.acknowledge()
        scene.emitter.held = False
        client.sendall(post(b'{"to":"Alice","content":"y"}'))
        assert statuses(client.recv(65536)) == [200]
        assert len(scene.emitter.records) == 2


def test_a_refusal_comes_after_the_answers_that_are_owed(scene: Scene) -> None:
    scene.emitter.held = True
    with scene.connect() as client:
        client.sendall(post(b'{"to":"Alice","content":"x"}') + b"nonsense\r\n\r\n")
        eventually("it is sent", lambda: len(scene.emitter.waiting) == 1)
        scene.emitter.acknowledge()
        assert statuses(rest(client)) == [200, 400]


def test_what_a_client_has_under_way_is_bounded(scene: Scene) -> None:
    """It sends for as long as it can, and the first of its messages is not acknowledged."""
    scene.emitter.held = True
    with scene.connect() as client:
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.sendall(post(b'{"to":"Alice","content":"x"}') * 1_000_000)  # more than the sockets' buffers hold
        assert len(scene.emitter.records) == 1
    scene.emitter.acknowledge()
    scene.emitter.held = False
    scene.serves()


def test_an_acknowledgement_that_comes_late_is_not_that_of_the_next_message() -> None:
    with running(acknowledged_within_s=1.0) as scene, scene.connect() as client:
        scene.emitter.held = True
        client.sendall(post(b'{"to":"Alice","content":"x"}'))
        assert statuses(client.recv(65536)) == [503]
        client.sendall(post(b'{"to":"Alice","content":"y"}'))
        eventually("both are sent", lambda: len(scene.emitter.records) == 2)
        (first, first_at), (second, second_at) = scene.emitter.waiting
        first.settle(first_at)
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(65536)
        second.settle(second_at)
        client.settimeout(10)
        assert statuses(client.recv(65536)) == [200]


def test_clients_that_leave_before_their_answer_leave_nothing(scene: Scene) -> None:
    before = scene.held()
    scene.emitter.held = True
    for _ in range(40):
        with scene.connect() as client:
            client.sendall(post(b'{"to":"Alice","content":"x"}'))
    eventually("all are sent", lambda: len(scene.emitter.waiting) == 40)
    scene.emitter.acknowledge()
    scene.emitter.held = False
    scene.serves()
    after = scene.held()
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)


def test_where_all_wait_for_answers_another_one_is_told(scene: Scene) -> None:
    scene.emitter.held = True
    with ExitStack() as held:
        clients = [held.enter_context(scene.connect()) for _ in range(LIMITS.connections)]
        for client in clients:
            client.sendall(post(b'{"to":"Alice","content":"x"}'))
        eventually("all wait", lambda: scene.server.requests_under_way() == LIMITS.connections)
        with scene.connect() as another:
            assert statuses(rest(another)) == [503]
        scene.emitter.acknowledge()
        assert all(statuses(client.recv(65536)) == [200] for client in clients)
    scene.emitter.held = False
    scene.serves()


def test_a_bug_of_the_application_is_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
        raise RuntimeError("secret")

    listener = listen("127.0.0.1", 0)
    server = HttpServer(app, listener)
    scene = Scene(listener.getsockname(), server, Emitted(), Feeds())
    thread = threading.Thread(target=server.run)
    thread.start()
    answer = scene.said(GET)
    server.stop()
    thread.join(10)
    assert statuses(answer) == [500]
    assert b"secret" not in answer
    assert "secret" in caplog.text
