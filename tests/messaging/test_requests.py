"""Bytes to requests: whatever the pieces they come in, within limits, and never an exception."""

import json
import random

import pytest

from gokamsg.messaging.requests import (
    BODY_BYTES,
    HEAD_BYTES,
    PIPELINED,
    RECEIVED_BYTES,
    Refusal,
    Request,
    RequestReader,
)

POST = b'POST /Bob/send HTTP/1.1\r\nHost: localhost\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 14\r\n\r\n{"to":"Alice"}'
CHUNKED = (
    b"POST /Bob/send HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5\r\n{"to"\r\n9;x=y\r\n:"Alice"}\r\n0\r\nTrailer: dropped\r\n\r\n'
)
GET = b"GET /a%2Fb/feed?x=1 HTTP/1.1\r\nHost: localhost\r\nContent_Length: 99\r\n\r\n"


def read(data: bytes, sizes: random.Random | None = None, most: int = 32 * 1024) -> list[Request | Refusal]:
    """What a reader finds in the bytes, in pieces of random sizes or of the server's."""
    reader, found, at = RequestReader(), [], 0
    while at < len(data):
        size = most if sizes is None else sizes.choice((1, 2, 3, 7, 20, 100))
        found += reader.take(data[at : at + size])
        at += size
    reader.close()
    return found


def test_requests_are_read_as_they_were_sent() -> None:
    post, chunked, get = read(POST + CHUNKED + GET)
    assert isinstance(post, Request)
    assert isinstance(chunked, Request)
    assert isinstance(get, Request)
    assert (post.method, post.target, post.body, post.keep_alive) == ("POST", "/Bob/send", b'{"to":"Alice"}', True)
    assert post.headers == {"HTTP_HOST": "localhost", "HTTP_X_A": "1,2"}
    assert (chunked.body, chunked.headers) == (post.body, {"HTTP_HOST": "localhost"})
    assert (get.target, get.body, get.headers) == ("/a%2Fb/feed?x=1", b"", {"HTTP_HOST": "localhost"})


def test_the_pieces_make_no_difference(seed: int) -> None:
    pieces = random.Random(seed)
    for _ in range(200):
        parts = pieces.choices((POST, CHUNKED, GET, b"GET / HTTP/1.0\r\n\r\n", b"nonsense\r\n\r\n"), k=3)
        assert read(b"".join(parts), pieces) == read(b"".join(parts)), parts


@pytest.mark.parametrize("sizes", [None, 1])
def test_a_path_that_was_typed_is_encoded(sizes: int | None, seed: int) -> None:
    [found] = read("GET /Zoë/feed HTTP/1.1\r\nX: é\r\n\r\n".encode(), sizes and random.Random(seed))
    assert isinstance(found, Request)
    assert (found.target, found.headers["HTTP_X"].encode("latin-1").decode()) == ("/Zo%C3%AB/feed", "é")


@pytest.mark.parametrize(
    ("data", "status", "why"),
    [
        (b"hello\r\n\r\n", 400, "cannot be understood"),
        (b"\x16\x03\x01\x02\x00\n", 400, "Invalid method"),
        (b"GET /a b HTTP/1.1\r\n\r\n", 400, "Expected HTTP/"),
        (b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n", 400, "header value"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "Content-Length"),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "Transfer-Encoding"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "Content-Length"),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400, "Content-Length"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "chunk size"),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * (HEAD_BYTES + 40_000), 431, "64 KiB"),
        (b"GET /" + b"x" * (HEAD_BYTES + 40_000), 431, "64 KiB"),
        (b"\r\n" * HEAD_BYTES, 431, "64 KiB"),
    ],
)
def test_what_is_no_request_is_refused_and_ends_it(data: bytes, status: int, why: str) -> None:
    reader = RequestReader()
    found = [one for at in range(0, len(data), 1000) for one in reader.take(data[at : at + 1000])]
    [refusal] = found
    assert isinstance(refusal, Refusal)
    assert (refusal.status, why in refusal.sentence) == (status, True), refusal
    assert reader.take(GET) == []


def test_a_large_body_is_not_kept_and_not_waited_for() -> None:
    [announced] = read(b"POST / HTTP/1.1\r\nContent-Length: 10000000\r\n\r\n")
    assert isinstance(announced, Request)
    assert (announced.body, announced.body_bytes, announced.keep_alive) == (b"", 10_000_000, False)
    piece = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
    [chunked] = read(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + piece * 40)
    assert isinstance(chunked, Request)
    assert chunked.body == b""
    assert BODY_BYTES < chunked.body_bytes <= BODY_BYTES + 0x8000
    assert not chunked.keep_alive


def test_frames_that_carry_nothing_have_a_limit() -> None:
    start = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    [found] = read(start + (b"1;" + b"x" * 1000 + b"\r\nx\r\n") * (RECEIVED_BYTES // 1000 + 100))
    assert isinstance(found, Request)
    assert found.body_bytes > BODY_BYTES


def test_another_protocol_is_not_spoken() -> None:
    [found] = read(b"GET /x/feed HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n" + GET)
    assert isinstance(found, Request)
    assert not found.keep_alive


def test_requests_ahead_of_their_answers_have_a_limit() -> None:
    found = RequestReader().take(b"GET / HTTP/1.1\r\n\r\n" * (PIPELINED + 50))
    assert len(found) == PIPELINED
    assert [one.keep_alive for one in found if isinstance(one, Request)] == [True] * (PIPELINED - 1) + [False]


def test_no_bytes_raise(seed: int) -> None:
    """Requests with bytes changed, removed, doubled and put in at random."""
    dice = random.Random(seed)
    for _ in range(3000):
        data = bytearray(dice.choice((POST, CHUNKED, GET)) * 2)
        for _ in range(dice.randint(1, 6)):
            at = dice.randrange(len(data))
            what = dice.choice((b"\r\n", b"\x00", b"\xff", b"%", b":", b"9" * 30, json.dumps("\u0000").encode(), b""))
            data[at : at + dice.randint(0, 4)] = what
        for found in read(bytes(data), dice):
            assert isinstance(found, Request) or (found.status in (400, 431) and found.sentence.isprintable()), data
