"""Lines of a log that may come by the thousand: a few each second are said, and how many more there were.

Nobody reads a thousand lines, and each of them takes the interpreter from the threads that receive records.
"""

from collections.abc import Callable

LINES = 5
WITHIN_S = 1.0


class Flood:
    """See the module. `rest` follows a number: what more there was. Owned by one thread."""

    def __init__(self, say: Callable[[str], None], now: Callable[[], float], rest: str) -> None:
        self._say = say
        self._now = now
        self._rest = rest
        self._since = now()
        self._said = self._held = 0

    def add(self, line: object) -> None:
        """One more; its text is made where it is said."""
        self.look()
        if self._said < LINES:
            self._said += 1
            self._say(str(line))
        else:
            self._held += 1

    def look(self) -> None:
        """Say how many were held back, once their second is over."""
        if self._said and self._now() - self._since >= WITHIN_S:
            self.end()
        elif not self._said:
            self._since = self._now()

    def end(self) -> None:
        """Say it now."""
        if self._held:
            self._say(f"{self._held:,} {self._rest}")
        self._since, self._said, self._held = self._now(), 0, 0
