"""The whole service under load while everything breaks, by a schedule drawn from the seed.

Invariants, whatever the seed:

1. Every acknowledged message that was not filtered reaches its recipient exactly once; one without an answer at most
   once; each sender's in the order of his partition of message_sent.
2. The detector's counters are the counts, and the spammer's block events exactly those that his messages cause.
3. Every table is the fold of its input; the service's feeds show the collector's table.
4. Local files are what their changelogs say (`gokamsg verify`), on every host, whatever was killed there.
5. Every lag is 0 again in bounded time after the last fault, and the service takes messages into every partition.
6. No command ends by itself, but for a broker that is not there when it starts, or a full disk; none shows a traceback.

Each message has an id of its own, and whoever sends it never does so again. `--chaos MINUTES` makes the runs longer,
with the three brokers too, by a new schedule each time; `--seed` repeats a run's. The short runs have schedules that
stay, so that a change that fails here is to blame for it. On the embedded broker, which is back at once, it is a dense
one, chosen for how many kinds of fault it has in less than half a minute.
"""

import contextlib
import logging
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.helpers import Processes, say
from tests.system.chaos import brokers
from tests.system.chaos.brokers import Brokers
from tests.system.chaos.run import Run
from tests.system.chaos.schedule import KINDS, Parts, draw
from tests.system.chaos.service import COMMANDS

SHORT_S = {"embedded": 28.0, "apache": 40.0}
SHORT_SEEDS = {"embedded": 4804, "apache": 1}
DISK = "24m"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What kafka-python logs of the test's own connections would bury a failure's report under thousands of lines."""
    caplog.set_level(logging.CRITICAL, logger="kafka")


def _seed_and_seconds(request: pytest.FixtureRequest, kind: str) -> tuple[int, float]:
    minutes = request.config.getoption("--chaos")
    seconds = SHORT_S[kind] if minutes is None else float(minutes) * 60
    if minutes is None and request.config.getoption("--seed") is None:
        return SHORT_SEEDS[kind], seconds
    return int(request.getfixturevalue("seed")), seconds


@contextlib.contextmanager
def _small_disk(directory: Path) -> Iterator[dict[str, Path]]:
    """Host b's state on a disk that can be filled, where this user may mount one."""
    directory.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        say(f"no disk is filled: a small one cannot be mounted here ({done.stderr.strip()})")
        yield {}
        return
    try:
        yield {"b": directory}
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def _chaos(cluster: AbstractContextManager[Brokers], run: Processes, tmp_path: Path, seed: int, seconds: float) -> None:
    with _small_disk(tmp_path / "host-b") as disks, cluster as started:
        try:
            report = Run(seed, seconds, started, run, tmp_path, disks).go()
        finally:
            run.close()
    assert not report.broken, f"seed {seed}: {len(report.broken)} broken:\n" + "\n".join(report.broken)


def test_nothing_is_lost_or_doubled_or_stuck(
    broker_kind: str, request: pytest.FixtureRequest, run: Processes, tmp_path: Path
) -> None:
    if broker_kind == "embedded":
        cluster = brokers.embedded(tmp_path / "broker")
    else:
        cluster = brokers.apache(tmp_path / "broker", request.getfixturevalue("compose_libs"))
    _chaos(cluster, run, tmp_path, *_seed_and_seconds(request, broker_kind))


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_or_stuck_on_three_brokers(
    libs: Path, request: pytest.FixtureRequest, run: Processes, tmp_path: Path
) -> None:
    _chaos(brokers.three(tmp_path / "brokers", libs), run, tmp_path, *_seed_and_seconds(request, "apache"))


def test_a_seed_draws_one_schedule_with_every_kind_of_fault(seed: int) -> None:
    parts = Parts(("filter on a", "all on b"), 3, 3, ("disk b",))
    schedule = draw(seed, 600, parts)
    assert schedule == draw(seed, 600, parts)
    assert schedule != draw(seed + 1, 600, parts)
    assert {fault.kind for fault in schedule} == set(KINDS)
    assert all(fault.at_s + fault.lasts_s <= 600 for fault in schedule)


def test_what_has_the_system_for_itself_has_it_until_it_should_be_well_again(seed: int) -> None:
    schedule = draw(seed, 3600, Parts(("filter on a", "all on b"), 3))
    followed = [(fault, later) for fault, later in pairwise(schedule) if fault.alone]
    assert {fault.kind for fault, _ in followed} >= {"worker added, killed", "workers killed"}
    for fault, later in followed:
        assert round(later.at_s - fault.at_s - fault.lasts_s, 6) >= KINDS[fault.kind].settles_s


@pytest.mark.parametrize(("kind", "kinds"), [("embedded", 17), ("apache", 16)])
def test_a_short_schedule_has_most_of_the_20_kinds_that_one_broker_knows(kind: str, kinds: int) -> None:
    schedule = draw(SHORT_SEEDS[kind], SHORT_S[kind], Parts(COMMANDS, 1, disks=("disk b",)), alone=0.0)
    assert len({fault.kind for fault in schedule}) == kinds
