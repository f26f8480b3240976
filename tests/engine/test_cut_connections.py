"""A connection that is cut at a request of the transaction protocol, before the broker handles it or before it answers.

Invariants: the worker is back at work within 15 s, also of a broker that went away with the connection and came back;
every record is counted and passed on once, in order.
"""

from contextlib import ExitStack

import pytest

from gokamsg.broker.control import Drop, DropAfter
from tests.engine.broken_broker import AT_START, KINDS, OF_READERS, Story
from tests.helpers import say


def cut(story: Story, kind: str, reaction: Drop | DropAfter, rounds: int, *, down_s: float | None = None) -> None:
    """The same fault again and again, on one connection or on the first three that are tried."""
    took = []
    for number in range(rounds):
        with ExitStack() as stack:

            def begin(stack: ExitStack = stack) -> None:
                story.more()
                if kind in AT_START or kind in OF_READERS:
                    stack.enter_context(story.scene.running(story.graph))

            times = 1 + number % 3
            took.append(story.after(kind, lambda *_: reaction, begin=begin, times=times, down_s=down_s))
    say(f"{kind}, {type(reaction).__name__}: back after {max(took):.2f} s at most, in {rounds} rounds")


REACTIONS = [pytest.param(Drop(), id="unhandled"), pytest.param(DropAfter(), id="unanswered")]


@pytest.mark.parametrize("reaction", REACTIONS)
def test_a_worker_goes_on_after_any_request_was_cut_off(story: Story, reaction: Drop | DropAfter) -> None:
    with story.at_work():
        for kind in KINDS.keys() - set(AT_START):
            cut(story, kind, reaction, 2)
    for kind in AT_START:
        cut(story, kind, reaction, 1)
    story.counted()


@pytest.mark.parametrize("kind", ["DescribeConfigs", "FindCoordinator"])
def test_a_start_outlasts_a_broker_that_goes_and_comes_back(embedded_story: Story, kind: str) -> None:
    cut(embedded_story, kind, Drop(), 1, down_s=1.5)
    embedded_story.counted()


@pytest.mark.slow
@pytest.mark.parametrize("down_s", [None, 1.5], ids=["", "broker gone"])
@pytest.mark.parametrize("reaction", REACTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_goes_on_every_time(story: Story, kind: str, reaction: Drop | DropAfter, down_s: float | None) -> None:
    with story.at_work() if kind not in AT_START else ExitStack():
        cut(story, kind, reaction, 20 if down_s is None else 5, down_s=down_s)
    story.counted()


@pytest.mark.slow
@pytest.mark.parametrize("reaction", REACTIONS)
@pytest.mark.parametrize("kind", OF_READERS)
def test_a_worker_starts_although_its_reading_was_cut_off(story: Story, kind: str, reaction: Drop | DropAfter) -> None:
    cut(story, kind, reaction, 6)
    story.counted()
