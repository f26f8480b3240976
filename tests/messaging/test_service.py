"""The HTTP service over a list and a dictionary: what is said in which format, what is refused, which names work."""

import http.client
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient

from gokamsg.engine import Promise, RecordPosition, ViewState
from gokamsg.errors import BrokerUnavailableError
from gokamsg.messaging.messages import NAME_BYTES, Message
from gokamsg.messaging.server import HttpServer, is_loopback, listen
from gokamsg.messaging.service import BODY_BYTES, create_app
from tests.helpers import eventually


@dataclass
class Emitted:
    """An emitter that keeps what it is given, and can fail; `held`: it acknowledges when it is told to."""

    records: list[tuple[str, Message]] = field(default_factory=list)
    failure: Exception | None = None
    refusal: Exception | None = None
    held: bool = False
    waiting: list[tuple[Promise, RecordPosition]] = field(default_factory=list)

    def emit(self, key: str, value: Message) -> Promise:
        if self.refusal is not None:
            raise self.refusal
        promise = Promise()
        if self.failure is not None:
            promise.settle(None, self.failure)
            return promise
        self.records.append((key, value))
        self.waiting.append((promise, RecordPosition("message_sent", 4, len(self.records) - 1)))
        if not self.held:
            self.acknowledge()
        return promise

    def acknowledge(self) -> None:
        waiting, self.waiting = self.waiting, []
        for promise, position in waiting:
            promise.settle(position)


@dataclass
class Feeds:
    """A view that is a dictionary."""

    rows: dict[str, list[Message]] = field(default_factory=dict)
    recovered: bool = True
    subscribers: list[Callable[[str], None]] = field(default_factory=list)
    observers: list[Callable[[ViewState], None]] = field(default_factory=list)

    def get(self, key: str) -> list[Message] | None:
        return self.rows.get(key)

    def put(self, key: str, *messages: Message) -> None:
        self.rows[key] = list(messages)
        for subscriber in self.subscribers:
            subscriber(key)

    def subscribe(self, callback: Callable[[str], None]) -> None:
        self.subscribers.append(callback)

    def observe_state_changes(self, observer: Callable[[ViewState], None]) -> None:
        self.observers.append(observer)

    def progress(self) -> tuple[int, int]:
        return (1200, 0) if self.recovered else (1200, 34)


@pytest.fixture
def emitter() -> Emitted:
    return Emitted()


@pytest.fixture
def view() -> Feeds:
    return Feeds({"Alice": [Message("Bob", "Alice", "Hey, how are you doing?"), Message("Charlie", "Alice", "<b>")]})


@pytest.fixture
def client(emitter: Emitted, view: Feeds) -> FlaskClient:
    return create_app(emitter, view).test_client()


def send(client: FlaskClient, user: str = "Bob", body: Any = None, **headers: str) -> Any:
    if body is None:
        body = {"to": "Alice", "content": "Hey"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"/{quote(user, safe='')}/send", data=content, headers=named)


@pytest.mark.goka("http: send")
def test_a_message_is_sent_and_answered_as_goka_does(client: FlaskClient, emitter: Emitted) -> None:
    answer = send(client, body={"to": "Alice", "content": "Hey, how are you doing?"})
    assert (answer.status_code, answer.text) == (200, "Sent message:\n {Bob Alice Hey, how are you doing?}\n")
    assert answer.content_type == "text/plain; charset=utf-8"
    assert emitter.records == [("Bob", Message("Bob", "Alice", "Hey, how are you doing?"))]


def test_curl_calls_json_a_form_and_is_understood(client: FlaskClient, emitter: Emitted) -> None:
    answer = send(client, Content_Type="application/x-www-form-urlencoded")
    assert answer.status_code == 200
    assert emitter.records == [("Bob", Message("Bob", "Alice", "Hey"))]


@pytest.mark.goka("http: send straight to message_received")
def test_direct_messages_are_keyed_by_their_recipient(emitter: Emitted, view: Feeds) -> None:
    send(create_app(emitter, view, direct=True).test_client())
    assert emitter.records == [("Alice", Message("Bob", "Alice", "Hey"))]


def test_json_says_where_the_message_went(client: FlaskClient) -> None:
    answer = send(client, Accept="application/json")
    assert answer.json == {
        "message": {"From": "Bob", "To": "Alice", "Content": "Hey"},
        "topic": "message_sent",
        "partition": 4,
        "offset": 0,
    }


@pytest.mark.goka("http: feed")
def test_a_feed_is_gokas_text(client: FlaskClient) -> None:
    answer = client.get("/Alice/feed", headers={"Accept": "*/*"})
    expected = "Latest messages for Alice\n0        Bob: Hey, how are you doing?\n1    Charlie: <b>\n"
    assert (answer.status_code, answer.text) == (200, expected)


def test_a_feed_is_json_for_who_asks(client: FlaskClient) -> None:
    answer = client.get("/Alice/feed", headers={"Accept": "application/json"})
    assert answer.json["user"] == "Alice"
    assert answer.json["messages"][1] == {"From": "Charlie", "To": "Alice", "Content": "<b>"}


def test_a_browser_gets_a_page_that_loads_nothing_and_escapes_everything(client: FlaskClient) -> None:
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    answer = client.get("/Alice/feed", headers={"Accept": browser})
    assert answer.content_type == "text/html; charset=utf-8"
    assert "&lt;b&gt;" in answer.text
    assert "<b>:" not in answer.text
    assert re.findall(r"(?:src|href|action)=\"([^\"]*)\"", answer.text) == [
        "data:,",
        "/Alice/send",
        "/Alice/feed",
        "/",
    ]
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.goka("http: unknown user")
def test_unknown_users_are_404_in_every_format(client: FlaskClient) -> None:
    text = client.get("/Zoe/feed")
    assert (text.status_code, text.text) == (404, "Zoe not found!")
    as_json = client.get("/Zoe/feed", headers={"Accept": "application/json"})
    assert (as_json.status_code, as_json.json) == (404, {"error": "Zoe not found!"})
    page = client.get("/Zoe/feed", headers={"Accept": "text/html"})
    assert page.status_code == 404
    assert 'action="/Zoe/send"' in page.text


def test_feeds_wait_for_the_restore_and_say_how_far_it_is(client: FlaskClient, view: Feeds) -> None:
    view.recovered = False
    for path in ("/Alice/feed", "/-/ready"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert "1,200 records read, 34 to go" in answer.text
    assert client.get("/-/health").status_code == 200
    assert send(client).status_code == 200
    view.recovered = True
    assert client.get("/-/ready").status_code == 200


ODD_NAMES = [
    "a/b",
    "100%",
    "%2F",
    "new\nline",
    "tab\t",
    "Zoë",
    "名前",
    "🐟",
    "a b",
    "a+b",
    "?q=1",
    "#x",
    "..",
    "<i>&\"'",
    "x" * 1024,
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_works_in_paths_and_bodies(name: str, client: FlaskClient, emitter: Emitted, view: Feeds) -> None:
    answer = send(client, user=name, body={"to": name, "content": "x"})
    assert answer.status_code == 200, answer.text
    assert emitter.records == [(name, Message(name, name, "x"))]
    view.rows[name] = [Message("Bob", name, "x")]
    assert client.get(f"/{quote(name, safe='')}/feed").text == f"Latest messages for {name}\n0        Bob: x\n"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("//feed", "user name is empty"),
        ("/-x/feed", "'-x' begins with '-'"),
        (f"/{'y' * (NAME_BYTES + 1)}/feed", f"{NAME_BYTES + 1:,} bytes"),
        (f"/{'y' * 10_240}/feed", f"the limit is {NAME_BYTES:,} bytes"),
        ("/%ff%fe/feed", "not valid UTF-8"),
    ],
)
def test_other_names_are_refused_by_name(path: str, why: str, client: FlaskClient) -> None:
    answer = client.get("/x/feed", environ_overrides={"REQUEST_URI": path})
    assert answer.status_code == 400
    assert why in answer.text


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not a message"),
        (b"hello", "not a message"),
        (b'{"to": "Alice"', "not a message"),
        (b"to=Alice", "not a message"),
        (b'{"to": 1, "content": "x"}', "not a message"),
        (b"[]", "not a message"),
        (b"null", "(to) is empty"),
        (b'{"content": "x"}', "(to) is empty"),
        (b'{"to": "", "content": "x"}', "(to) is empty"),
        (b'{"to": "-x", "content": "x"}', "begins with '-'"),
        (json.dumps({"to": "z" * 2000}).encode(), "2,000 bytes"),
    ],
)
def test_bodies_that_are_no_messages_are_refused(body: bytes, why: str, client: FlaskClient, emitter: Emitted) -> None:
    for accept in ("*/*", "application/json", "text/html"):
        answer = send(client, body=body, Accept=accept)
        assert answer.status_code == 400
        assert why in answer.text.replace("&#39;", "'")
    assert emitter.records == []


def test_field_names_are_read_as_go_reads_them(client: FlaskClient, emitter: Emitted) -> None:
    send(client, body=b'{"To":"Alice","CONTENT":"x","From":"Eve"}')
    assert emitter.records == [("Bob", Message("Bob", "Alice", "x"))]


def test_bodies_have_a_size_limit(client: FlaskClient, emitter: Emitted) -> None:
    fitting = {"to": "Alice", "content": "x" * (BODY_BYTES - 40)}
    assert send(client, body=fitting).status_code == 200
    answer = send(client, body={"to": "Alice", "content": "x" * BODY_BYTES})
    assert (answer.status_code, answer.text) == (413, "error: the body is larger than 64 KiB\n")
    assert len(emitter.records) == 1


def test_a_failed_send_is_503_with_the_reason(client: FlaskClient, emitter: Emitted) -> None:
    emitter.failure = BrokerUnavailableError("no acknowledgement within 10 s; the message may have been sent or not")
    answer = send(client, Accept="application/json")
    assert answer.status_code == 503
    assert answer.json == {"error": str(emitter.failure)}
    assert "Retry-After" in answer.headers


def test_a_bug_is_500_without_its_details(
    client: FlaskClient, emitter: Emitted, caplog: pytest.LogCaptureFixture
) -> None:
    emitter.refusal = RuntimeError("secret")
    answer = send(client)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    reference = answer.text.split()[-1]
    assert reference in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8080", "Origin": "http://evil.example:8080", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_requests_that_a_foreign_page_could_make_are_refused(
    headers: dict[str, str], client: FlaskClient, emitter: Emitted
) -> None:
    answer = client.post("/Bob/send", data=b'{"to":"Alice"}', headers=headers)
    assert answer.status_code == 403
    assert emitter.records == []


def test_a_foreign_name_that_resolves_to_us_reads_nothing(client: FlaskClient) -> None:
    assert client.get("/Alice/feed", headers={"Host": "evil.example"}).status_code == 403


def test_a_service_for_others_answers_under_any_name(emitter: Emitted, view: Feeds) -> None:
    client = create_app(emitter, view, loopback_only=False).test_client()
    assert client.get("/Alice/feed", headers={"Host": "messages.example"}).status_code == 200
    own = {"Host": "messages.example", "Origin": "https://messages.example", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/Bob/send", data=b'{"to":"Alice"}', headers=own).status_code == 200


def test_the_pages_own_form_sends_and_returns_to_the_page(client: FlaskClient, emitter: Emitted) -> None:
    answer = client.post(
        "/Bob/send",
        data={"to": "a&b", "content": "x=1 & y"},
        headers={"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin", "Accept": "text/html"},
    )
    assert (answer.status_code, answer.headers["Location"]) == (303, "/Bob/feed?sent=a%26b")
    assert emitter.records == [("Bob", Message("Bob", "a&b", "x=1 & y"))]
    page = client.get(answer.headers["Location"], headers={"Accept": "text/html"})
    assert "Your message to <bdi>a&amp;b</bdi> was accepted." in page.text


def test_other_paths_and_methods_are_explained(client: FlaskClient) -> None:
    assert client.get("/nowhere").status_code == 404
    assert client.get("/Alice/feed/").status_code == 404
    answer = client.get("/Bob/send")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "OPTIONS, POST"
    assert client.get("/?user=a%2Fb").headers["Location"] == "/a%2Fb/feed"
    assert "text/html" in client.get("/", headers={"Accept": "text/html"}).content_type


def test_metrics_count_requests_by_outcome(client: FlaskClient) -> None:
    client.get("/Alice/feed")
    client.get("/Zoe/feed")
    send(client)
    text = client.get("/-/metrics").text
    assert 'gokamsg_http_requests_total{endpoint="feed",status="200"} 1.0' in text
    assert 'gokamsg_http_requests_total{endpoint="feed",status="404"} 1.0' in text
    assert 'gokamsg_http_requests_total{endpoint="send",status="200"} 1.0' in text
    assert "gokamsg_view_ready 1.0" in text
    assert "gokamsg_view_records 1200.0" in text


@pytest.fixture
def address(emitter: Emitted, view: Feeds) -> Iterator[tuple[str, int]]:
    listener = listen("127.0.0.1", 0)
    assert is_loopback(listener)
    server = HttpServer(create_app(emitter, view), listener)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield listener.getsockname()
    server.stop()
    thread.join(10)
    assert not thread.is_alive()


def test_odd_paths_come_through_the_server_as_sent(address: tuple[str, int], view: Feeds) -> None:
    view.rows["a/b%"] = [Message("Bob", "a/b%", "x")]
    view.rows["Zoë"] = [Message("Bob", "Zoë", "y")]
    connection = http.client.HTTPConnection(*address, timeout=10)
    for path, status in (("/a%2Fb%25/feed", 200), ("/Zo%c3%AB/feed", 200), ("//feed", 400), ("/%2F/feed", 404)):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert (path, answer.status) == (path, status)
    connection.close()


def test_a_stopping_server_answers_what_it_has_received(emitter: Emitted, view: Feeds) -> None:
    """The messages are not acknowledged when the server is told to stop."""
    emitter.held = True
    listener = listen("127.0.0.1", 0)
    host, port = listener.getsockname()
    server = HttpServer(create_app(emitter, view), listener)
    running = threading.Thread(target=server.run)
    running.start()
    waiting = [http.client.HTTPConnection(host, port, timeout=10) for _ in range(6)]
    for connection in waiting:
        connection.request("POST", "/Bob/send", b'{"to":"Alice","content":"x"}')
    eventually("all are received", lambda: server.requests_under_way() == len(waiting))
    server.stop()
    eventually("the door is closed", lambda: refused(host, port))
    emitter.acknowledge()
    assert [connection.getresponse().status for connection in waiting] == [200] * len(waiting)
    for connection in waiting:
        connection.close()
    running.join(10)
    assert not running.is_alive()


def refused(host: str, port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) != 0


def test_a_stopping_server_does_not_wait_for_idle_connections(emitter: Emitted, view: Feeds) -> None:
    listener = listen("127.0.0.1", 0)
    server = HttpServer(create_app(emitter, view), listener)
    running = threading.Thread(target=server.run)
    running.start()
    idle = http.client.HTTPConnection(*listener.getsockname(), timeout=10)
    idle.request("GET", "/-/health")
    assert idle.getresponse().read() == b"ok\n"
    server.stop()
    running.join(5)
    assert not running.is_alive()
    idle.close()
