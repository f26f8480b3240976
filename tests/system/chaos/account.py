"""What must be true after a run, whatever broke: every invariant is checked, and all that are broken are named.

Expectations are folded from message_sent (tests/system/fold.py) and compared with what the speakers were told.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.helpers import eventually
from tests.system import fold
from tests.system.chaos.load import TRANSLATED
from tests.system.messaging import Ledger, Messaging
from tests.system.traffic import DETECTED_FROM, PEOPLE, SPAMMER

_TRACEBACK = re.compile(r"Traceback \(most recent call last\)")


class Account:
    """The final account of one run; `lost`, `doubled` count messages, `broken` lists what does not hold."""

    def __init__(self, messaging: Messaging, ledger: Ledger) -> None:
        self.broken: list[str] = []
        self.lost = self.doubled = self.delivered = self.spam = 0
        self._messaging = messaging
        self._ledger = ledger

    def check(self) -> None:
        """Everything that Kafka holds; returns when all is compared."""
        self._try(self._decided_and_drained)
        self._try(self._messages)
        self._try(lambda: self._messaging.account(self._ledger, words=TRANSLATED, silenced=[SPAMMER]))
        self._try(self._block_events)
        self._try(self._translations)
        self._try(self._feeds)

    def check_files(self, states: Sequence[Path]) -> None:
        """Local tables are what their changelogs say; nothing may be running."""
        with ThreadPoolExecutor(len(states)) as pool:
            list(pool.map(lambda state: self._try(lambda: self._files(state)), filter(Path.exists, states)))

    def check_logs(self, logs: Path) -> None:
        """No command showed a stack trace."""
        for path in sorted(logs.glob("*.err")):
            text = path.read_text(errors="replace")
            if found := _TRACEBACK.search(text):
                self.broken.append(f"{path.name} shows a traceback:\n{text[found.start() : found.start() + 3000]}")

    def _try(self, check: Callable[[], None]) -> None:
        try:
            check()
        except AssertionError as error:
            self.broken.append(str(error))

    def _decided_and_drained(self) -> None:
        self._messaging.decided()
        self._messaging.drained()

    def _messages(self) -> None:
        """Counts for the report; the account names what is wrong."""
        sent = self._messaging.read("message_sent")
        found = Counter((*pair, content) for pair, contents in fold.conversations(sent).items() for content in contents)
        arrived: Counter[tuple[str, str, str]] = Counter()
        for (sender, recipient), contents in fold.conversations(self._messaging.read("message_received")).items():
            for content in contents:
                arrived[sender, recipient, content.rpartition("#")[2]] += 1
        acknowledged = Counter((*message[:2], message[2].rpartition("#")[2]) for message in self._ledger.acknowledged)
        here = [message for message in acknowledged if message[0] != SPAMMER]
        self.delivered = sum(arrived[message] > 0 for message in here)
        self.lost = len(here) - self.delivered
        self.doubled = sum(count - 1 for count in arrived.values()) + sum(count - 1 for count in found.values())
        self.spam = sum(message[0] == SPAMMER for message in acknowledged)

    def _block_events(self) -> None:
        """The spammer is blocked by each message from the one on that is too many, once."""
        sent = sum(record.key == SPAMMER for record in self._messaging.read("message_sent"))
        events = sum(record.key == SPAMMER for record in self._messaging.read("block_user"))
        expected = max(0, sent - DETECTED_FROM + 1)
        assert events == expected, f"{sent} messages of {SPAMMER} made {events} block events, not {expected}"

    def _translations(self) -> None:
        expected = {r.key: (r.value or b"").decode() for r in self._messaging.read("translate-word")}
        rows = {r.key: (r.value or b"").decode() for r in self._messaging.read("translator-table")}
        differences = fold.difference(expected, rows)
        assert not differences, f"translator-table and the fold of translate-word differ: {'; '.join(differences)}"

    def _feeds(self) -> None:
        """The service shows what the collector's table holds."""
        table = {
            person: [message["Content"] for message in row]
            for person, row in self._messaging.table("collector-table").items()
        }

        def shown() -> bool:
            feeds = {person: feed for person in PEOPLE if (feed := self._messaging.feed(person))}
            differences = fold.difference(table, feeds)
            assert not differences, "; ".join(differences)
            return True

        eventually("the service's feeds are the collector's table", shown, timeout_s=30, interval_s=0.5)

    def _files(self, state: Path) -> None:
        done = self._messaging.run("verify", "--state-dir", str(state), "--json", timeout_s=120)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        wrong = [line for line in lines if line.get("outcome") not in (None, "agrees")]
        assert done.returncode == 0, f"{state.name}: verify failed: {done.stderr[-500:]}"
        assert not wrong, f"{state.name}: local tables differ from their changelogs: {wrong[:3]}"
        assert any("partitions" in line for line in lines), done
