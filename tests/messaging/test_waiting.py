"""Clients that know a feed and want the next one: told at once when it changes, and never in anybody's way."""

import http.client
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from gokamsg.engine import ViewState
from gokamsg.messaging.answers import text
from gokamsg.messaging.awaited import FeedChange, Watchers
from gokamsg.messaging.messages import Message
from gokamsg.messaging.service import create_app
from tests.helpers import eventually
from tests.messaging.test_server import LIMITS, Scene, running
from tests.messaging.test_service import Emitted, Feeds

HEY, THERE = Message("Bob", "Alice", "Hey"), Message("Eve", "Alice", "there")
SOON_S = 0.5
Answer = http.client.HTTPResponse


@pytest.fixture
def scene() -> Iterator[Scene]:
    with running() as made:
        yield made


class Reader:
    """A client with one connection."""

    def __init__(self, scene: Scene, user: str = "Alice") -> None:
        self.connection = http.client.HTTPConnection(*scene.address, timeout=10)
        self._path = f"/{user}/feed"

    def close(self) -> None:
        self.connection.close()

    def ask(self, tag: str | None = None, wait: str | None = None, accept: str = "application/json") -> None:
        headers = {"If-None-Match": tag, "Prefer": wait, "Accept": accept}
        self.connection.request("GET", self._path, headers={name: value for name, value in headers.items() if value})

    def answer(self) -> tuple[Answer, str]:
        answer = self.connection.getresponse()
        return answer, answer.read().decode()

    def get(self, tag: str | None = None, wait: str | None = None, accept: str = "application/json") -> Answer:
        self.ask(tag, wait, accept)
        return self.answer()[0]


@contextmanager
def reading(scene: Scene, user: str = "Alice") -> Iterator[Reader]:
    with closing(Reader(scene, user)) as reader:
        yield reader


def waiting(scene: Scene) -> int:
    """How many wait, by the metrics."""
    with closing(http.client.HTTPConnection(*scene.address, timeout=10)) as connection:
        connection.request("GET", "/-/metrics")
        found = re.search(r"^gokamsg_http_waiting (\S+)$", connection.getresponse().read().decode(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def waits(scene: Scene) -> None:
    eventually("one waits", lambda: waiting(scene) == 1)


@pytest.mark.parametrize("accept", ["text/plain", "application/json", "text/html"])
def test_a_feed_that_the_client_knows_is_not_sent_again(scene: Scene, accept: str) -> None:
    with reading(scene) as reader:
        first = reader.get(accept=accept)
        tag = first.headers["ETag"]
        assert (first.status, tag[:3]) == (200, 'W/"')
        again = reader.get(tag, accept=accept)
        assert (again.status, again.headers["ETag"]) == (304, tag)
        assert (again.headers["Content-Type"], again.headers["Content-Length"]) == (None, None)
        assert again.headers["Vary"] == "Accept"
        assert reader.get(f'"another", {tag}', accept=accept).status == 304
        scene.view.put("Alice", HEY, THERE)
        changed = reader.get(tag, accept=accept)
        assert changed.status == 200
        assert changed.headers["ETag"] != tag


def test_news_come_at_once_to_who_waits_for_them(scene: Scene) -> None:
    with reading(scene) as reader:
        tag = reader.get().headers["ETag"]
        reader.ask(tag, "wait=30")
        waits(scene)
        scene.view.put("Dave", HEY)
        scene.serves()  # others are, meanwhile
        assert waiting(scene) == 1
        put_at = time.monotonic()
        scene.view.put("Alice", HEY, THERE)
        answer, body = reader.answer()
        assert time.monotonic() - put_at < SOON_S
        assert (answer.status, answer.headers["Preference-Applied"]) == (200, "wait=30")
        assert json.loads(body)["messages"][-1]["Content"] == "there"
        assert answer.headers["ETag"] != tag
        assert waiting(scene) == 0


def test_who_knows_nothing_is_answered_at_once_but_waits_for_a_feed_to_begin(scene: Scene) -> None:
    with reading(scene) as reader:
        assert reader.get(wait="wait=30").status == 200
    with reading(scene, "Zoe") as reader:
        reader.ask(wait="wait=30")
        waits(scene)
        scene.view.put("Zoe", HEY)
        assert reader.answer()[0].status == 200


@pytest.mark.parametrize(("user", "status"), [("Alice", 304), ("Zoe", 404)])
def test_a_wait_without_news_ends_in_time(scene: Scene, user: str, status: int) -> None:
    with reading(scene, user) as reader:
        tag = reader.get().headers["ETag"]
        started = time.monotonic()
        answer = reader.get(tag, "respond-async, wait=1")
        assert (answer.status, answer.headers["Preference-Applied"]) == (status, "wait=1")
        assert 1 <= time.monotonic() - started < 4
        assert waiting(scene) == 0


@pytest.mark.parametrize("prefer", ["", "wait", "wait=", "wait=-5", "wait=0", "wait=soon", "await=9", "x=wait=9"])
def test_what_is_no_wish_to_wait_is_none(scene: Scene, prefer: str) -> None:
    with reading(scene) as reader:
        tag = reader.get().headers["ETag"]
        answer = reader.get(tag, prefer)
        assert (answer.status, answer.headers["Preference-Applied"]) == (304, None)


def test_nobody_waits_longer_than_we_let_them(scene: Scene) -> None:
    with reading(scene) as reader:
        tag = reader.get().headers["ETag"]
        reader.ask(tag, 'WAIT = "999999999"')
        waits(scene)
        scene.view.put("Alice", THERE)
        assert reader.answer()[0].headers["Preference-Applied"] == "wait=30"


def test_a_stop_answers_those_who_wait() -> None:
    with running() as scene, reading(scene) as reader:
        tag = reader.get().headers["ETag"]
        reader.ask(tag, "wait=30")
        waits(scene)
        started = time.monotonic()
        scene.server.stop()
        answer, _ = reader.answer()
        assert (answer.status, answer.headers["Connection"]) == (304, "close")
        assert time.monotonic() - started < SOON_S


def test_those_who_wait_give_way_to_others(scene: Scene) -> None:
    """As many as there may be connections."""
    with reading(scene) as reader:
        tag = reader.get().headers["ETag"]
    with ExitStack() as held:
        readers = [held.enter_context(reading(scene)) for _ in range(LIMITS.connections)]
        for reader in readers:
            reader.ask(tag, "wait=30")
        eventually("all wait", lambda: scene.server.requests_under_way() == LIMITS.connections)
        scene.serves()
        eventually("one does not", lambda: scene.server.requests_under_way() == LIMITS.connections - 1)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            readers[0].answer()
        scene.view.put("Alice", THERE)
        assert [reader.answer()[0].status for reader in readers[1:]] == [200] * (LIMITS.connections - 1)
        scene.view.put("Alice", HEY)
    scene.serves()


def test_nothing_is_kept_for_clients_that_have_gone(scene: Scene) -> None:
    before = scene.held()
    with reading(scene) as reader:
        tag = reader.get().headers["ETag"]
    for number in range(40):
        with reading(scene) as reader:
            reader.ask(tag, "wait=30")
            if number % 2:  # it is reset, not ended
                reader.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually("nobody waits", lambda: waiting(scene) == 0)
    after = scene.held()
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)


def test_who_waits_is_told_when_there_are_no_feeds_any_more(scene: Scene) -> None:
    with reading(scene) as reader:
        tag = reader.get().headers["ETag"]
        reader.ask(tag, "wait=30")
        waits(scene)
        scene.view.recovered = False
        for observer in scene.view.observers:
            observer(ViewState.CATCH_UP)
        answer, body = reader.answer()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        assert "34 to go" in body


def test_a_server_that_knows_nothing_of_waiting_has_a_thread_wait() -> None:
    view = Feeds({"Alice": [HEY]})
    client = create_app(Emitted(), view).test_client()
    tag = client.get("/Alice/feed").headers["ETag"]
    later = threading.Timer(0.2, view.put, ("Alice", HEY, THERE))
    later.start()
    answer = client.get("/Alice/feed", headers={"If-None-Match": tag, "Prefer": "wait=20"})
    assert (answer.status_code, "there" in answer.text) == (200, True)
    later.join()


def test_waits_are_counted_apart_from_other_answers() -> None:
    view = Feeds({"Alice": [HEY]})
    client = create_app(Emitted(), view).test_client()
    tag = client.get("/Alice/feed").headers["ETag"]
    assert client.get("/Alice/feed", headers={"If-None-Match": tag, "Prefer": "wait=1"}).status_code == 304
    metrics = client.get("/-/metrics").text
    assert 'gokamsg_http_requests_total{endpoint="feed",status="200"} 1.0' in metrics
    assert 'gokamsg_http_requests_total{endpoint="feed_wait",status="304"} 1.0' in metrics


def test_news_between_the_answer_and_the_wait_are_not_missed() -> None:
    called: list[bool] = []
    change = FeedChange(Watchers(), "Alice", 30, lambda: text("news"))
    change.on_done(lambda: called.append(True))
    assert called
