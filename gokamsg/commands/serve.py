"""serve: the HTTP service, until it is told to stop."""

import signal
import threading
import time
from typing import TYPE_CHECKING

from gokamsg import console
from gokamsg.config import Settings

from .kafka import client_config, make_topics
from .registration import command

if TYPE_CHECKING:
    from gokamsg.engine import View


@command("serve", "Run the HTTP service: POST /{user}/send and GET /{user}/feed.")
def serve(settings: Settings) -> None:
    from gokamsg.engine import Emitter, View
    from gokamsg.messaging.collector import MESSAGES, TABLE
    from gokamsg.messaging.messages import MESSAGE, RECEIVED, SENT
    from gokamsg.messaging.server import HttpServer, is_loopback, listen
    from gokamsg.messaging.service import create_app

    config = client_config(settings)
    listener = listen(settings.host, settings.port)
    topic = RECEIVED if settings.direct else SENT
    make_topics(config, [topic, RECEIVED, TABLE])
    view = View(config, TABLE, MESSAGES, storage_dir=settings.state_path)
    emitter = Emitter(config, topic, MESSAGE)
    view.start()
    try:
        app = create_app(emitter, view, direct=settings.direct, loopback_only=is_loopback(listener))
        server = HttpServer(app, listener)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: server.stop())
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        threading.Thread(target=say_ready, args=(view, url, topic, settings.json), daemon=True).start()
        server.run()
    finally:
        emitter.finish()
        view.stop()
    console.note("stopped")


def say_ready(view: "View", url: str, topic: str, as_json: bool) -> None:
    """Shows the restore of the feeds, and says when they can be read."""
    console.note(f"serving on {url}, sending to {topic}")
    bars = console.Bars()
    started = time.monotonic()
    while not view.wait_running(timeout_s=0.25):
        records, remaining = view.progress()
        rate = records / (time.monotonic() - started)
        left = f"  {console.duration_text(remaining / rate)}" if rate else ""
        bars.update("restoring feeds", records, records + remaining, f"{console.count_text(rate)}/s{left}")
    bars.close()
    if as_json:
        console.data({"ready": url, "topic": topic})
    else:
        console.note(f"feeds are ready ({time.monotonic() - started:.1f} s)")
