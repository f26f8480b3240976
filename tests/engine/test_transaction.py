"""How long input gathers between two transactions: seconds of a clock that the test moves, then a worker at work."""

import statistics
import time
from collections.abc import Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gokamsg.broker.control import Delay
from gokamsg.engine.assignment import Assignment
from gokamsg.engine.clients import Membership, Patience
from gokamsg.engine.context import Deferral
from gokamsg.engine.guarantee import Delivery
from gokamsg.engine.options import ProcessorOptions
from gokamsg.engine.output import Outputs
from gokamsg.engine.partition_processor import Pace
from gokamsg.engine.stats import Counters
from gokamsg.engine.transaction import Transaction
from tests.engine.broken_broker import KEYS, Story
from tests.helpers import eventually
from tests.plain_clients import plain_producer

END_TXN = 26
MEMBERSHIP = cast(Membership, object())
NOTHING_ASSIGNED = cast(Assignment, SimpleNamespace(running={}, positions={}))


class Bench(Deferral):
    """A transaction whose commits, and what was deferred before them, take as long as the test says."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__()
        self.now = 100.0
        self.commit_s = self.deferred_s = 0.0
        delivery = cast(Delivery, SimpleNamespace(begin=lambda: None, commit=self._commit))
        self.transaction = Transaction(
            delivery,
            Outputs(send=lambda batches: None),
            changelog=None,
            quarantine=None,
            pace=Pace(now=lambda: self.now),
            deferral=self,
            options=ProcessorOptions(directory, **options),
            counters=Counters(),
            patience=Patience(),
        )

    def rest_after(self, *, handling_s: float, commit_s: float) -> float:
        """Seconds from the end of a commit to the next begin."""
        self.commit_s = commit_s
        self.transaction.begin(MEMBERSHIP)
        self.now += handling_s
        self.transaction.commit(NOTHING_ASSIGNED)
        return self.transaction.rest_s

    def wait(self, timeout_s: float) -> bool:
        self.now += self.deferred_s
        return True

    def _commit(self, offsets: Mapping[tuple[str, int], int], membership: Membership) -> dict[tuple[str, int], int]:
        self.now += self.commit_s
        return {}


@pytest.mark.parametrize(
    ("handling_s", "commit_s", "rest_s"),
    [
        pytest.param(0.001, 0.008, 0.0, id="a quick commit"),
        pytest.param(0.001, 0.020, 0.018, id="a slow one"),
        pytest.param(0.001, 0.040, 0.050, id="a slower one"),
        pytest.param(0.001, 0.200, 0.200, id="a very slow one"),
        pytest.param(0.001, 3.000, 0.500, id="one that hardly ends"),
        pytest.param(0.300, 0.100, 0.0, id="work that waits"),
    ],
)
def test_input_gathers_after_commits_that_are_slow(
    tmp_path: Path, handling_s: float, commit_s: float, rest_s: float
) -> None:
    assert Bench(tmp_path).rest_after(handling_s=handling_s, commit_s=commit_s) == pytest.approx(rest_s)


def test_the_commit_interval_is_kept_from_begin_to_begin(tmp_path: Path) -> None:
    bench = Bench(tmp_path, commit_interval_s=0.1)
    assert bench.rest_after(handling_s=0.001, commit_s=0.008) == pytest.approx(0.091)
    assert bench.rest_after(handling_s=0.001, commit_s=0.200) == pytest.approx(0.200)


def test_what_a_callback_deferred_is_no_slow_commit(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.deferred_s = 0.4
    assert bench.rest_after(handling_s=0.001, commit_s=0.008) == 0.0


def test_an_open_transaction_goes_on_without_a_rest(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.rest_after(handling_s=0.0, commit_s=0.4) > 0
    bench.transaction.begin(MEMBERSHIP)
    assert bench.transaction.rest_s == 0.0


def test_messages_gather_while_commits_are_slow(embedded_story: Story) -> None:
    """Each commit takes 100 ms at the broker, and a message comes every few ms: a worker in a hurry would ask for the
    next commit as soon as the last one is through; this one lets messages gather for as long first."""
    story = embedded_story
    asked: list[float] = []

    def slowly(request: Any, context: Any) -> Delay:
        asked.append(time.monotonic())
        return Delay(0.1)

    with story.at_work(), closing(plain_producer(story.broker.address)) as producer:
        slow = story.broker.control.on(END_TXN, slowly, times=None)
        try:

            def enough() -> bool:
                producer.send(story.source, b"1", KEYS[0].encode(), partition=0)
                return len(asked) > 20

            eventually("some commits are through", enough, timeout_s=30, interval_s=0.005)
        finally:
            slow.cancel()
    apart = statistics.median(later - earlier for earlier, later in pairwise(asked))
    assert apart >= 0.1 + 0.1
