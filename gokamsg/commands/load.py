"""loadgen: the example's traffic, or a file of messages, through the service."""

import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gokamsg import console
from gokamsg.config import Settings
from gokamsg.errors import GokamsgError, UsageError

from .registration import command

if TYPE_CHECKING:
    from gokamsg.messaging.loadgen import Progress
    from gokamsg.messaging.messages import Message


@command("loadgen", "Send the example's traffic through the service: five people, and Bob's spam.")
def loadgen(settings: Settings) -> None:
    from gokamsg.messaging.loadgen import LoadGenerator

    messages, count, source = traffic(settings)
    replay = settings.file is not None
    generator = LoadGenerator(settings.url, messages, rate=settings.rate, count=settings.count, in_order=replay)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: generator.stop())
    bars = console.Bars()
    label = f"sending {source} to {settings.url}"
    if not settings.json:
        console.note(label)
    progress, is_told = None, False
    try:
        for progress in generator.run():
            if progress.first_failure and not is_told:
                bars.note(f"a message was not accepted ({console.visible(progress.first_failure)}); going on")
                is_told = True
            rate = min(settings.rate, progress.rate or settings.rate)
            left = "" if count is None else f"  {console.duration_text((count - progress.done) / rate)}"
            if settings.json:
                continue  # whoever reads that waits for the result
            bars.update("sending", progress.done, count, f"{console.count_text(progress.rate)}/s{left}")
    finally:
        bars.close()
    assert progress is not None
    summarise(settings, progress, complete=count is None or progress.done >= count)


def traffic(settings: Settings) -> tuple[Iterator["Message"], int | None, str]:
    """The messages to send, how many there will be if that is known, and where they come from."""
    from gokamsg.messaging.loadgen import read_messages, talk

    if settings.file is None:
        seed = settings.seed if settings.seed is not None else random.SystemRandom().randrange(2**32)
        return talk(random.Random(seed), settings.spam), settings.count, f"traffic (seed {seed})"
    if settings.file == "-":
        return read_messages(sys.stdin.buffer, "standard input"), settings.count, "standard input"
    count = sum(1 for line in open_file(settings.file) if line.strip())
    count = min(count, settings.count) if settings.count else count
    return read_messages(open_file(settings.file), settings.file), count, settings.file


def open_file(name: str) -> BinaryIO:
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise UsageError(f"--file {name!r} cannot be read: {(error.strerror or str(error)).lower()}") from error


def summarise(settings: Settings, progress: "Progress", *, complete: bool) -> None:
    """What became of the messages. Raises GokamsgError if any was not accepted."""
    p50, p99 = progress.latencies.quantile_ms(0.5), progress.latencies.quantile_ms(0.99)
    if settings.json:
        console.data(
            {
                "accepted": progress.accepted,
                "refused": progress.refused,
                "unanswered": progress.unanswered,
                "rate": round(progress.rate, 1),
                "p50_ms": round(p50, 2),
                "p99_ms": round(p99, 2),
            }
        )
    else:
        unanswered = f", {console.count_text(progress.unanswered)} unanswered" if progress.unanswered else ""
        console.out(
            f"{console.count_text(progress.accepted)} accepted, {console.count_text(progress.refused)} refused"
            f"{unanswered}; p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        )
    if progress.rate < 0.9 * settings.rate and complete and progress.elapsed_s > 2:
        console.note(f"the service took {console.count_text(progress.rate)}/s of the {settings.rate:g}/s asked for")
    if progress.first_failure is not None:
        lost = progress.refused + progress.unanswered
        raise GokamsgError(
            f"{console.count_text(lost)} of {console.count_text(progress.done)} messages were not accepted; "
            f"the first: {progress.first_failure}"
        )
