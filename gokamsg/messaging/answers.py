"""What the service says, in the format asked for: text as Goka's, JSON or an HTML page. Pure.

Text is what curl and any client without a preference gets; its bytes for feeds and sent messages are Goka's. Pages are
made from `templates`, which need no request for it.
"""

import secrets
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal, Protocol
from urllib.parse import quote

import msgspec
from msgspec import Struct, field

from .messages import NAME_BYTES, Message

Format = Literal["text", "json", "html"]


class Template(Protocol):
    def render(self, **values: Any) -> str: ...


class Templates(Protocol):
    """Jinja's, or others."""

    def get_template(self, name: str) -> Template: ...


class Answer(Struct, frozen=True):
    """A response, whatever sends it."""

    body: bytes
    status: int
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


def text(body: str, status: int = 200) -> Answer:
    # Lone surrogates cannot come out of the codecs; if they ever do, the answer must still be one.
    return Answer(body.encode(errors="replace"), status, "text/plain; charset=utf-8")


def json(body: Any, status: int = 200) -> Answer:
    return Answer(msgspec.json.encode(body) + b"\n", status, "application/json")


def not_modified() -> Answer:
    """The client has it already."""
    return Answer(b"", 304, "")


def tag_of(messages: Sequence[Message]) -> str:
    """An entity tag (RFC 9110, 8.8.3) of a feed in whichever format; a weak one, since pages have a random part."""
    return blake2b(msgspec.json.encode(messages), digest_size=9).hexdigest()


def redirect(address: str) -> Answer:
    """To a page, to be read with GET."""
    return Answer(b"", 303, "text/plain; charset=utf-8", {"Location": address})


def path_of(user: str, what: str) -> str:
    """The path of a user's feed or send endpoint, for any name."""
    return f"/{quote(user, safe='')}/{what}"


def feed_line(index: int, message: Message) -> str:
    """One message of a feed, as Goka prints it."""
    return f"{index} {message.sender:>10}: {message.content}"


class Answers:
    """The answers in one format."""

    def __init__(self, kind: Format, templates: Templates) -> None:
        self._kind = kind
        self._templates = templates

    def sent(self, message: Message, topic: str, partition: int, offset: int) -> Answer:
        """A message was acknowledged."""
        if self._kind == "json":
            return json({"message": message, "topic": topic, "partition": partition, "offset": offset})
        return text(f"Sent message:\n {{{message.sender} {message.recipient} {message.content}}}\n")

    def feed(self, user: str, messages: Sequence[Message], sent_to: str | None = None) -> Answer:
        """A user's latest messages."""
        if self._kind == "json":
            return json({"user": user, "messages": messages})
        if self._kind == "html":
            return self.page("feed.html", user=user, messages=messages, sent_to=sent_to)
        lines = [f"Latest messages for {user}", *(feed_line(index, message) for index, message in enumerate(messages))]
        return text("\n".join(lines) + "\n")

    def no_feed(self, user: str, sent_to: str | None = None) -> Answer:
        """Nobody ever wrote to the user."""
        sentence = f"{user} not found!"
        if self._kind == "json":
            return json({"error": sentence}, 404)
        if self._kind == "html":
            return self.page("feed.html", 404, user=user, messages=None, sent_to=sent_to)
        return text(sentence, 404)

    def home(self) -> Answer:
        """What there is."""
        if self._kind == "html":
            return self.page("home.html")
        return text('POST /{user}/send with {"to": …, "content": …} sends; GET /{user}/feed reads.\n')

    def error(self, status: int, sentence: str) -> Answer:
        """Something was refused or failed."""
        if self._kind == "json":
            return json({"error": sentence}, status)
        if self._kind == "html":
            return self.page("error.html", status, status_code=status, sentence=sentence)
        return text(f"error: {sentence}\n", status)

    def page(self, template: str, status: int = 200, **values: Any) -> Answer:
        """An HTML page that may load nothing, run its own script only, and send forms to this service only."""
        nonce = secrets.token_urlsafe(16)
        body = self._templates.get_template(template).render(
            nonce=nonce, path_of=path_of, name_bytes=NAME_BYTES, **values
        )
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        content = body.encode(errors="replace")
        return Answer(content, status, "text/html; charset=utf-8", {"Content-Security-Policy": policy})
