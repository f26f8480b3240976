"""A member that joins and leaves again and again: records come through while it lasts, each once and in order."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.broken_broker import BACK_WITHIN_S, Story
from tests.helpers import eventually, say


@contextmanager
def coming_and_going(story: Story, state_dir: Path) -> Iterator[list[float]]:
    """A second worker that has its share for a moment, leaves and comes again, about every second; when it had come."""
    came: list[float] = []
    stop = threading.Event()

    def member() -> None:
        while not stop.is_set():
            with story.scene.running(story.graph, state_dir=state_dir) as running:
                running.wait_at_work()
                came.append(time.monotonic())
                stop.wait(0.3)
            stop.wait(0.3)

    thread = threading.Thread(target=member)
    thread.start()
    try:
        yield came
    finally:
        stop.set()
        thread.join(60)


@pytest.mark.parametrize("seconds", [4.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_workers_go_on_through_a_storm_of_rebalances(story: Story, tmp_path: Path, seconds: float) -> None:
    longest = 0.0
    with story.at_work():
        with coming_and_going(story, tmp_path / "other") as came:
            end = time.monotonic() + seconds
            while time.monotonic() < end or len(came) < 3:
                began = time.monotonic()
                story.more()
                eventually("the records are through", story.through, timeout_s=BACK_WITHIN_S)
                longest = max(longest, time.monotonic() - began)
        say(f"it came {len(came)} times in {seconds:g} s; no record took longer than {longest:.2f} s")
        story.more()
        eventually("the last records are through", story.through, timeout_s=BACK_WITHIN_S)
    story.counted()
