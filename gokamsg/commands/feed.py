"""feed: a user's latest messages, from a view of the one partition that they live in, in memory."""

import time
from typing import TYPE_CHECKING, Annotated

from gokamsg import console
from gokamsg.config import Settings
from gokamsg.errors import BrokerUnavailableError, GokamsgError, UsageError

from .kafka import client_config, make_topics
from .registration import argument, command

if TYPE_CHECKING:
    from gokamsg.engine import ClientConfig, View
    from gokamsg.messaging.messages import Message

RESTORE_TIMEOUT_S = 60.0


@command("feed", "Show the latest messages of a user.")
def feed(settings: Settings, user: Annotated[str, argument("USER", "Whose messages.")]) -> None:
    import queue

    from gokamsg.messaging.messages import objection_to_user

    if objection := objection_to_user(user):
        raise UsageError(objection)
    config = client_config(settings)
    changes: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    view = open_view(config, user)
    view.subscribe(changes.put)
    view.observe_state_changes(lambda state: changes.put(None))
    view.start()
    try:
        wait_until_read(view)
        messages = view.get(user)
        if messages is None and not settings.follow:
            raise GokamsgError(f"{user} not found! Nobody has written to them yet.")
        printer = Printer(user, as_json=settings.json)
        printer.show(messages or [])
        while settings.follow:
            match changes.get():
                case None:
                    view.wait_running(timeout_s=0)  # raises what has ended the view
                case key if key == user:
                    printer.show(view.get(user) or [])
    finally:
        # Nothing is stored, so there is nothing to wait for.
        view.stop(timeout_s=0)


def open_view(config: "ClientConfig", user: str) -> "View[list[Message]]":
    """A view of the user's partition of the collector's table, not started."""
    from gokamsg.engine import Partitioner, TopicManager, View
    from gokamsg.messaging.collector import MESSAGES, TABLE

    make_topics(config, [TABLE])
    with TopicManager(config) as manager:
        count = manager.partitions(TABLE)
    return View(config, TABLE, MESSAGES, storage_dir=None, partitions=[Partitioner(count)(user.encode())])


def wait_until_read(view: "View[list[Message]]") -> None:
    """Waits until the view is restored, with progress when that takes long. Raises BrokerUnavailableError."""
    bars = console.Bars()
    started = time.monotonic()
    try:
        while not view.wait_running(timeout_s=0.25):
            records, remaining = view.progress()
            elapsed = time.monotonic() - started
            bars.update("reading", records, records + remaining, f"{console.count_text(records / elapsed)}/s")
            if elapsed > RESTORE_TIMEOUT_S and records == 0:
                raise BrokerUnavailableError(f"the feed could not be read within {RESTORE_TIMEOUT_S:.0f} s")
    finally:
        bars.close()


class Printer:
    """Prints a feed, then what is new in it."""

    def __init__(self, user: str, *, as_json: bool) -> None:
        self._user = user
        self._as_json = as_json
        self._shown: list[Message] | None = None
        self._count = 0

    def show(self, messages: "list[Message]") -> None:
        from gokamsg.messaging.answers import feed_line

        if self._shown is None:
            fresh = messages
            if not self._as_json:
                console.out(console.visible(f"Latest messages for {self._user}"))
        else:
            fresh = news(self._shown, messages)
        self._shown = messages
        for message in fresh:
            if self._as_json:
                console.data({"From": message.sender, "To": message.recipient, "Content": message.content})
            else:
                console.out(console.visible(feed_line(self._count, message)))
            self._count += 1


def news(before: "list[Message]", after: "list[Message]") -> "list[Message]":
    """What was appended to a feed that changed: at least its last message, however much alike they are."""
    for kept in range(min(len(before), len(after) - 1), 0, -1):
        if before[-kept:] == after[:kept]:
            return after[kept:]
    return after
