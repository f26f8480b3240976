"""HTTP/1.1 requests out of the bytes of one connection, within limits. Pure; the grammar is httptools' (llhttp).

1. take() answers the requests that the bytes complete, in order. A Refusal is the last thing that it ever answers.
2. What a request may hold in memory is bounded: HEAD_BYTES for its head, BODY_BYTES for its body. One with a larger
   body is complete without waiting for the rest: it has no body, and the length that was announced or seen.
3. At most PIPELINED requests come out of one connection ahead of their answers; after them the connection ends.
4. A request line with bytes beyond ASCII is one whose path was not percent-encoded (curl sends names as typed).
"""

import re
from functools import lru_cache
from typing import Any, Final

import httptools
from msgspec import Struct

HEAD_BYTES: Final = 64 * 1024
BODY_BYTES: Final = 64 * 1024
RECEIVED_BYTES: Final = 1024 * 1024  # after the head, with the frames of a chunked body
PIPELINED: Final = 100

_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")


class Request(Struct, frozen=True):
    """A request that was received."""

    method: str
    target: str
    version: str
    headers: dict[str, str]
    """By their names in a WSGI environment."""
    body: bytes
    body_bytes: int
    keep_alive: bool


class Refusal(Struct, frozen=True):
    """Bytes that are no request, or too many."""

    status: int
    sentence: str


class RequestReader:
    """See the module."""

    def __init__(self) -> None:
        self.wants_continue = False
        """Whether the client waits to be told that it may send the body."""
        self._parser: Any = httptools.HttpRequestParser(self)
        self._found: list[Request | Refusal] = []
        self._ended = False
        self._begun = False
        self._line = b""
        self._in_head = True
        self._received = 0
        self._clear()

    def _clear(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    @property
    def begun(self) -> bool:
        """Whether a request has been received in part."""
        return self._begun or bool(self._line)

    def take(self, data: bytes) -> list[Request | Refusal]:
        """What these bytes complete."""
        if not self._ended and not self._begun:
            data = self._whole_line(data)
        if not self._ended and data:
            self._feed(data)
        found, self._found = self._found, []
        return found

    def refuse(self, status: int, sentence: str) -> None:
        """The next and last answer of take()."""
        if not self._ended:
            self._found.append(Refusal(status, sentence))
            self._ended = True

    def close(self) -> None:
        """Lets the parser go, which holds this reader."""
        self._ended, self._parser = True, None

    def _whole_line(self, data: bytes) -> bytes:
        """The bytes once the request line is complete, in ASCII; empty until then."""
        data = self._line + data
        end = data.find(b"\n")
        if end < 0 and len(data) <= HEAD_BYTES:
            self._line = data
            return b""
        self._line = b""
        self._begun = True
        if data.isascii():
            return data
        line = _BEYOND_ASCII.sub(lambda found: b"%%%02X" % found[0][0], data[:end] if end >= 0 else data)
        return line + data[end:] if end >= 0 else line

    def _feed(self, data: bytes) -> None:
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # to another protocol, which we do not speak: the request is answered, and is the last
        except httptools.HttpParserCallbackError:
            self.refuse(400, "the request cannot be understood")
        except httptools.HttpParserError as error:
            self.refuse(400, f"the request cannot be understood: {' '.join(str(error).split())[:100]}")
        if self._begun and not self._ended and self._received > (HEAD_BYTES if self._in_head else RECEIVED_BYTES):
            if self._in_head:
                self.refuse(431, f"the request's head is larger than {HEAD_BYTES // 1024} KiB")
            else:
                self._complete(keep_alive=False, body_bytes=RECEIVED_BYTES)

    def _complete(self, *, keep_alive: bool, body_bytes: int) -> None:
        """The request is as complete as it will be."""
        fits = body_bytes <= BODY_BYTES
        keep_alive = keep_alive and len(self._found) + 1 < PIPELINED
        self._found.append(
            Request(
                self._parser.get_method().decode("latin-1"),
                self._target.decode("latin-1"),
                self._parser.get_http_version(),
                self._headers,
                bytes(self._body) if fits else b"",
                body_bytes,
                keep_alive,
            )
        )
        self._ended = not keep_alive
        self.wants_continue = False
        self._clear()

    # --- called by the parser -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._begun = True

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._ended or not self._in_head:
            return  # a trailer
        key = _environment_name(name)
        if not key:
            return
        text = value.decode("latin-1")
        if key in self._headers:
            text = f"{self._headers[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{text}"
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        if self._ended:
            return
        self._in_head = False
        self._received = 0
        announced = self._headers.pop("CONTENT_LENGTH", "0")
        if int(announced) > BODY_BYTES:
            self._complete(keep_alive=False, body_bytes=int(announced))
        else:
            self.wants_continue = self._headers.pop("HTTP_EXPECT", "").lower() == "100-continue"

    def on_body(self, body: bytes) -> None:
        if self._ended:
            return
        self._body += body
        if len(self._body) > BODY_BYTES:
            self._complete(keep_alive=False, body_bytes=len(self._body))

    def on_message_complete(self) -> None:
        self._received = 0
        self._begun, self._in_head = False, True
        if not self._ended:
            keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
            self._complete(keep_alive=keep_alive, body_bytes=len(self._body))


@lru_cache(1024)
def _environment_name(name: bytes) -> str:
    """A header's name in a WSGI environment; empty for one that is left out."""
    if b"_" in name:
        return ""  # would be taken for the one with a hyphen
    key = name.decode("latin-1").upper().replace("-", "_")
    if key in ("TRANSFER_ENCODING", "TRAILER"):
        return ""  # the application is given the body without its frames
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
