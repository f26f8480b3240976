"""A part of `gokamsg up` as a child process: `python -m gokamsg.commands.part broker|serve|loadgen`, never by hand.

Its standard input holds its settings as one JSON line and ends when its supervisor does; then it stops, as on SIGTERM.
Its standard output carries JSON lines: {"ready": address}, and a sign of life every few seconds; or, before it fails,
{"error": text, "final": bool, "waits": bool}.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from urllib.parse import urlsplit

from gokamsg import console
from gokamsg.config import Settings
from gokamsg.errors import BrokerUnavailableError, GokamsgError
from gokamsg.supervisor import show_stacks_when_asked

SIGN_OF_LIFE_S = 5.0


def main() -> None:
    """Runs the part named by the first argument; exit code 1 with an error line on failure."""
    show_stacks_when_asked()
    values = json.loads(sys.stdin.buffer.readline() or b"{}")
    console.prepare_streams()
    console.set_up_logging(debug=bool(values.get("debug")))
    try:
        settings = Settings(**values)
        part = _part(sys.argv[1])
        threading.Thread(target=_watch_supervisor, name="supervisor-watch", daemon=True).start()
        threading.Thread(target=_live, name="sign-of-life", daemon=True).start()
        part(settings)
    except Exception as failure:
        known = isinstance(failure, GokamsgError)
        text = str(failure) if known else f"unexpected {type(failure).__name__}: {failure}"
        if settings_debug(values) or not known:
            import traceback

            console.note("".join(traceback.format_exception(failure)).rstrip())
        # Its own address taken, its data locked: another try would end the same way. Brokers come back.
        waits = isinstance(failure, BrokerUnavailableError)
        console.data({"error": text, "final": known and not waits, "waits": waits})
        os._exit(1)
    os._exit(0)


def settings_debug(values: dict[str, object]) -> bool:
    return bool(values.get("debug"))


def _part(name: str) -> Callable[[Settings], None]:
    if name == "broker":
        from .broker import broker

        return broker
    if name == "loadgen":
        from .load import loadgen

        def once_served(settings: Settings) -> None:
            _wait_for(settings.url)
            loadgen(settings)

        return once_served
    from .serve import serve

    return serve


def _wait_for(url: str) -> None:
    """Returns once the service accepts connections; its own supervisor says why if it never does."""
    where = urlsplit(url)
    pause = threading.Event()
    while not pause.wait(0.1):
        with contextlib.suppress(OSError), socket.create_connection((where.hostname or "", where.port or 80), 1.0):
            return


def _watch_supervisor() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        continue
    os.kill(os.getpid(), signal.SIGTERM)


def _live() -> None:
    pause = threading.Event()
    while not pause.wait(SIGN_OF_LIFE_S):
        console.data({"alive": True})


if __name__ == "__main__":
    main()
