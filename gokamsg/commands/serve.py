"""serve: the HTTP service, until it is told to stop."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gokamsg import console
from gokamsg.config import Settings
from gokamsg.errors import BrokerUnavailableError, GokamsgError

from .kafka import client_config, make_topics
from .registration import command

if TYPE_CHECKING:
    from gokamsg.engine import View, ViewState
    from gokamsg.messaging.messages import Message


@command("serve", "Run the HTTP service: POST /{user}/send and GET /{user}/feed.")
def serve(settings: Settings) -> None:
    from gokamsg.engine import Emitter, View
    from gokamsg.messaging.collector import MESSAGES, TABLE
    from gokamsg.messaging.messages import MESSAGE, RECEIVED, SENT
    from gokamsg.messaging.server import HttpServer, is_loopback, listen, url_of
    from gokamsg.messaging.service import create_app

    config = client_config(settings)
    listener = listen(settings.host, settings.port)
    topic = RECEIVED if settings.direct else SENT
    make_topics(config, [topic, RECEIVED, TABLE])
    view = View(config, TABLE, MESSAGES, storage_dir=settings.state_path, auto_reconnect=True)
    emitter = Emitter(config, topic, MESSAGE, room_timeout_s=0)
    app = create_app(emitter, view, direct=settings.direct, loopback_only=is_loopback(listener))
    server = HttpServer(app, listener)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: server.stop())
    url = url_of(listener)
    view.start()
    watch = Watch(view, on_end=server.stop)
    try:
        if not settings.json:
            console.note(f"serving on {url}, sending to {topic}")
        threading.Thread(target=watch.show_restore, args=(url, settings.json), name="watch", daemon=True).start()
        server.run()
    finally:
        view.stop(timeout_s=1.0)
        # Whoever waited for an acknowledgement has had an answer: nothing is hidden by going on without it.
        with contextlib.suppress(BrokerUnavailableError):
            emitter.finish(timeout_s=0.2)
    # Raises what ended the view, if that is why the server stopped.
    view.wait_running(timeout_s=0)
    if not settings.json:
        console.note("stopped")


class Watch:
    """Looks after the view: shows its restore, and ends the service when it fails."""

    def __init__(self, view: "View[list[Message]]", *, on_end: Callable[[], None]) -> None:
        self._view = view
        self._on_end = on_end
        view.observe_state_changes(self._changed)

    def _changed(self, _state: "ViewState") -> None:
        if self._view.ended:
            self._on_end()

    def show_restore(self, url: str, as_json: bool) -> None:
        """Shows the restore of the feeds, and says when they can be read."""
        bars = console.Bars()
        started = time.monotonic()
        try:
            while not self._view.wait_running(timeout_s=0.25):
                records, remaining = self._view.progress()
                rate = records / (time.monotonic() - started)
                left = f"  {console.duration_text(remaining / rate)}" if rate else ""
                bars.update("restoring feeds", records, records + remaining, f"{console.count_text(rate)}/s{left}")
        except GokamsgError:
            return  # the service ends with it
        finally:
            bars.close()
        if as_json:
            console.data({"ready": url})
        else:
            console.note(f"feeds are ready ({time.monotonic() - started:.1f} s)")
