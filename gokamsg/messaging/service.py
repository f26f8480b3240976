"""The HTTP service: POST /{user}/send, GET /{user}/feed, and /-/health, /-/ready, /-/metrics.

1. A message is accepted (200) only after the brokers acknowledged it. An answer of 503 says whether it was not sent or
   whether that is unknown; the service itself never sends a message twice.
2. Feeds are answered from the view alone, and not before it is restored. Whoever waits for news of one is answered as
   soon as the view has them.
3. Any name works that is not empty, not longer than the limit and does not begin with a hyphen: slashes, percent signs
   and new lines as %2F, %25 and %0A.
4. What a page of another origin could make a browser do is refused.

Handlers do not wait: an answer to a message, or to whoever waits for news (awaited.py), is pending (pending.py) until
it is known, and costs no thread meanwhile. Under a server that knows nothing of pending answers the service waits as
any WSGI application.
Threads: handlers may run in many at once; emitter and view must allow that.
"""

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, unquote_to_bytes, urlsplit

import msgspec
from flask import Flask, Request, Response, current_app, g, request
from msgspec.structs import replace

from gokamsg.engine import Json, Promise, RecordPosition, ViewState
from gokamsg.errors import CodecError, GokamsgError

from .answers import Answer, Answers, Format, not_modified, path_of, redirect, tag_of, text
from .awaited import NOTHING_NEW, Acknowledgement, Awaited, FeedChange, Watchers
from .messages import Message, objection_to_user
from .metrics import ServiceMetrics
from .pending import PENDING
from .requests import BODY_BYTES

log = logging.getLogger(__name__)

RETRY_AFTER_S = 2
ACKNOWLEDGED_WITHIN_S = 10.0
LONGEST_WAIT_S = 30
"""For news of a feed: shorter than the time after which proxies give up on an answer."""
HEADERS = (
    ("Cache-Control", "no-store"),
    ("Vary", "Accept"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
)
FORMATS: dict[str, Format] = {"text/plain": "text", "application/json": "json", "text/html": "html"}
_WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?(\d{1,9})\b", re.IGNORECASE)
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class MessageEmitter(Protocol):
    """Sends a message; the promise is kept when the brokers have acknowledged it. Raises GokamsgError, never waits."""

    def emit(self, key: str, value: Message) -> Promise: ...


class FeedView(Protocol):
    """The collector's table; progress() is records read and records to go."""

    @property
    def recovered(self) -> bool: ...
    def get(self, key: str) -> list[Message] | None: ...
    def progress(self) -> tuple[int, int]: ...
    def subscribe(self, callback: Callable[[str], None]) -> object: ...
    def observe_state_changes(self, observer: Callable[[ViewState], None]) -> object: ...


class SendRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a send request; the sender is the path's user."""

    to: str = ""
    content: str = ""


SEND_REQUEST = Json(SendRequest)


class Refusal(Exception):  # noqa: N818 - it is an answer, not a failure
    """A request that is answered with an error."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Later(Response):
    """An answer that is awaited: made when it is known, or the time is over."""

    def __init__(self, awaited: Awaited, failed: Callable[[Exception], Answer], observe: Callable[[int], None]) -> None:
        super().__init__()
        self.timeout_s = awaited.timeout_s
        self.gives_way = awaited.gives_way
        self.on_done = awaited.on_done
        self.drop = awaited.drop
        self._answer = awaited.answer
        self._failed = failed
        self._observe = observe
        self._environ: dict[str, Any] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self._environ = environ
        if pend := environ.get(PENDING):
            pend(self)
            return ()
        done = threading.Event()
        self.on_done(done.set)
        done.wait(self.timeout_s)
        return self.finish(start_response)

    def finish(self, start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            answer = self._answer()
        except Exception as error:
            answer = self._failed(error)
        self._observe(answer.status)
        return Ready(answer)(self._environ, start_response)


class Ready(Response):
    """An answer that is known: given as it is, without what Response does to complete one."""

    def __init__(self, answer: Answer) -> None:
        fields = [("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body)))]
        super().__init__(headers=[*fields, *HEADERS, *answer.headers.items()])
        self.status_code = answer.status
        if answer.status == 304:  # they would be those of what is not sent
            del self.headers["Content-Type"], self.headers["Content-Length"]
        self._body = answer.body

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(self.status, self.headers.to_wsgi_list())
        return () if environ["REQUEST_METHOD"] == "HEAD" else (self._body,)


class RawPath:
    """Routes on the path as it was sent, so that an encoded slash is part of a name and not a border.

    The application sees each segment percent-encoded in one way; an empty one as a lone percent sign.
    """

    def __init__(self, wsgi: Callable[..., Iterable[bytes]]) -> None:
        self._wsgi = wsgi

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raw = str(environ["REQUEST_URI"]).partition("?")[0]
        if not raw.startswith("/"):
            raw = "/" + raw.partition("://")[2].partition("/")[2]
        segments = raw[1:].split("/")
        if segments != [""]:
            segments = [quote(unquote_to_bytes(segment.encode("latin-1")), safe="") or "%" for segment in segments]
        environ["PATH_INFO"] = "/" + "/".join(segments)
        return self._wsgi(environ, start_response)


def create_app(
    emitter: MessageEmitter,
    view: FeedView,
    *,
    direct: bool = False,
    loopback_only: bool = True,
    acknowledged_within_s: float = ACKNOWLEDGED_WITHIN_S,
    clock: Callable[[], float] = time.monotonic,
) -> Flask:
    """The service as a WSGI application.

    `direct`: the emitter's topic is keyed by recipient (message_received), not by sender (message_sent).
    `loopback_only`: requests for another host name than this machine's are refused, since a page could have had its
    own name resolve to us. `acknowledged_within_s`: after that a message's fate is answered to be unknown.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = BODY_BYTES
    app.wsgi_app = RawPath(app.wsgi_app)  # type: ignore[method-assign]
    service = Service(emitter, view, direct=direct, acknowledged_within_s=acknowledged_within_s)
    metrics = ServiceMetrics(view, service.watchers)

    @app.before_request
    def begin() -> None:
        g.started = clock()
        if not request.path.startswith("/-/"):
            refuse_foreign(request, loopback_only)

    @app.after_request
    def finish(response: Response) -> Response:
        if not isinstance(response, Later):
            metrics.observe(request.endpoint or "none", response.status_code, clock() - g.get("started", clock()))
        return response

    def later(awaited: Awaited) -> Response:
        started, said, method, path = g.started, answers(), request.method, request.path
        # How long a reader wishes to wait is no duration of ours.
        endpoint = f"{request.endpoint}_wait" if awaited.gives_way else f"{request.endpoint}"
        return Later(
            awaited,
            lambda error: answer_to(error, said, method, path),
            lambda status: metrics.observe(endpoint, status, clock() - started),
        )

    def add(method: str, rule: str, handler: Callable[..., Answer | Awaited]) -> None:
        def view_function(**names: str) -> Response:
            answer = handler(**names)
            return Ready(answer) if isinstance(answer, Answer) else later(answer)

        app.add_url_rule(rule, handler.__name__, view_function, methods=[method])

    add("POST", "/<user>/send", service.send)
    add("GET", "/<user>/feed", service.feed)
    add("GET", "/", service.home)
    add("GET", "/-/health", service.health)
    add("GET", "/-/ready", service.ready)
    add("GET", "/-/metrics", metrics.answer)
    app.register_error_handler(
        Exception, lambda error: Ready(answer_to(error, answers(), request.method, request.path))
    )
    return app


class Service:
    """The endpoints; each returns an answer or raises."""

    def __init__(self, emitter: MessageEmitter, view: FeedView, *, direct: bool, acknowledged_within_s: float) -> None:
        self._emitter = emitter
        self._view = view
        self._direct = direct
        self._acknowledged_within_s = acknowledged_within_s
        self.watchers = Watchers()
        view.subscribe(self.watchers.changed)
        view.observe_state_changes(lambda state: self.watchers.may_have_changed())

    def send(self, user: str) -> Awaited:
        message, is_form = read_message(request, decoded(user))
        said = answers()

        def answer(at: RecordPosition) -> Answer:
            if is_form:
                return redirect(f"{path_of(message.sender, 'feed')}?sent={quote(message.recipient, safe='')}")
            return said.sent(message, at.topic, at.partition, at.offset)

        promise = self._emitter.emit(message.recipient if self._direct else message.sender, message)
        return Acknowledgement(promise, self._acknowledged_within_s, answer)

    def feed(self, user: str) -> Answer | Awaited:
        """The client may have the feed already (If-None-Match), and may wish to wait for news (Prefer: wait=SECONDS,
        RFC 7240, 4.3)."""
        name, said, sent_to = decoded(user), answers(), request.args.get("sent")
        wait_s, known = waits_s(request.headers.get("Prefer", "")), request.if_none_match
        waited = {"Preference-Applied": f"wait={wait_s}"} if wait_s else {}

        def read() -> Answer:
            self._refuse_until_ready()
            messages = self._view.get(name)
            if messages is None:
                found, headers = said.no_feed(name, sent_to), waited
            else:
                tag = tag_of(messages)
                found = not_modified() if known.contains_weak(tag) else said.feed(name, messages, sent_to)
                headers = {"ETag": f'W/"{tag}"', **waited}
            return replace(found, headers={**found.headers, **headers})

        answer = read()
        if wait_s and answer.status in NOTHING_NEW:
            return FeedChange(self.watchers, name, wait_s, read)
        return answer

    def home(self) -> Answer:
        user = request.args.get("user")
        return redirect(path_of(user, "feed")) if user else answers().home()

    def health(self) -> Answer:
        return text("ok\n")

    def ready(self) -> Answer:
        self._refuse_until_ready()
        return text("ready\n")

    def _refuse_until_ready(self) -> None:
        if not self._view.recovered:
            records, remaining = self._view.progress()
            raise Refusal(503, f"feeds are being restored ({records:,} records read, {remaining:,} to go); try again")


def waits_s(prefer: str) -> int:
    """For how many seconds a client with this Prefer header would wait; not more than we let it."""
    found = _WAIT.search(prefer)
    return min(int(found[1]), LONGEST_WAIT_S) if found else 0


def answers() -> Answers:
    """The answers in the format that the request asks for."""
    return Answers(format_for(request.headers.get("Accept", "")), current_app.jinja_env)


@lru_cache(256)
def format_for(accept: str) -> Format:
    """What an Accept header prefers; text if it prefers none that we have."""
    preferred = Request({"HTTP_ACCEPT": accept}).accept_mimetypes.best_match(FORMATS, default="text/plain")
    return FORMATS[preferred or "text/plain"]


def decoded(segment: str) -> str:
    """The name in a path segment. Raises Refusal if it cannot be one."""
    try:
        name = "" if segment == "%" else unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise Refusal(400, f"the user name {segment[:40]!r} is not valid UTF-8") from None
    objection = objection_to_user(name)
    if objection:
        raise Refusal(400, objection)
    return name


def read_message(request: Request, sender: str) -> tuple[Message, bool]:
    """The message in a request's body, and whether it came from a form. Raises Refusal.

    The body is JSON whatever its content type says (curl calls everything a form); only a body that begins like the
    page's own form, as JSON cannot, is read as one.
    """
    body = request.get_data(cache=False)
    is_form = body.startswith(b"to=") and request.mimetype == "application/x-www-form-urlencoded"
    if is_form:
        fields = parse_qs(body.decode(errors="replace"), keep_blank_values=True)
        wanted = SendRequest(fields["to"][0], fields.get("content", [""])[0])
    else:
        try:
            wanted = SEND_REQUEST.decode(body)
        except CodecError as error:
            example = '{"to": "Alice", "content": "Hey"}'
            raise Refusal(400, f"the body is not a message like {example}: {error}") from error
    objection = objection_to_user(wanted.to, "recipient's name (to)")
    if objection:
        raise Refusal(400, objection)
    return Message(sender, wanted.to, wanted.content), is_form


def refuse_foreign(request: Request, loopback_only: bool) -> None:
    """Refuses what only a page of another origin makes a browser send. Raises Refusal."""
    host = urlsplit(f"//{request.host}").hostname or ""
    if loopback_only and host not in LOOPBACK_NAMES and not host.startswith("127."):
        raise Refusal(403, f"this service answers requests to localhost, not to {host!r}; see --host")
    if request.method != "POST":
        return
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        raise Refusal(403, "the request comes from a page of another site (Sec-Fetch-Site); nothing was sent")
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
        raise Refusal(403, f"the request comes from a page of {origin[:100]!r} (Origin); nothing was sent")


def answer_to(error: Any, said: Answers, method: str, path: str) -> Answer:
    """One sentence for whatever went wrong."""
    if isinstance(error, Refusal):
        return unavailable(error, said) if error.status == 503 else said.error(error.status, str(error))
    if isinstance(error, GokamsgError):
        return unavailable(error, said)
    status = getattr(error, "code", None) or 500
    if status == 413:
        return said.error(413, f"the body is larger than {BODY_BYTES // 1024} KiB")
    if status == 405:
        allowed = ", ".join(sorted(error.valid_methods or ()))
        refused = said.error(405, f"{method} is not possible here; use {allowed}")
        return replace(refused, headers={**refused.headers, "Allow": allowed})
    if status == 404:
        return said.error(404, "there is nothing here; GET /{user}/feed reads and POST /{user}/send sends")
    if status < 500:
        return said.error(status, f"the request cannot be understood: {getattr(error, 'description', error)}")
    reference = secrets.token_hex(4)
    log.error("%s %s failed [%s]", method, path, reference, exc_info=error)
    return said.error(500, f"the service failed; its log says more under {reference}")


def unavailable(error: Exception, said: Answers) -> Answer:
    """It may work later."""
    refused = said.error(503, str(error))
    return replace(refused, headers={**refused.headers, "Retry-After": str(RETRY_AFTER_S)})
