"""How a running command is told to stop: the first SIGINT or SIGTERM stops it in good order, the second one at once."""

import signal
from typing import Protocol


class Stoppable(Protocol):
    """What can be stopped gracefully, or at once."""

    def stop(self) -> None: ...
    def kill(self) -> None: ...


def stop_on_signals(what: Stoppable) -> None:
    """From now on."""
    seen = False

    def stop(number: int, frame: object) -> None:
        nonlocal seen
        if seen:
            what.kill()
        seen = True
        what.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
