"""Who says what to whom in system tests: seeded, and such that the outcome can be computed.

Everybody but the spammer writes a few messages to everybody else; the spammer writes many and never gets one, so no
loop message counts for him and his share is 1 from the first message to the last.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tests.system.messaging import Message

SPAMMER = "Bob"
PEOPLE = (
    *("Alice", "Charlie", "Dave", "Eve", "zü", "名前", "a/b", "100%", "new\nline"),
    *(f"user {number}" for number in range(31)),
)
# With these flags of the detector the spammer is blocked from his 300th message on, and nobody else ever is as long as
# nobody else writes 300: alone the share of 0.999 needs 999 messages sent for each one received.
DETECTION = ("--detect-messages", "300", "--detect-share", "0.999")
DETECTED_FROM = 300
NO_DETECTION = ("--detect-messages", "1000000000")

WORDS = ("lunch", "dinner", "together", "tomorrow", "please", "<b>", "&", "🙂", "naïve", "日本", "\u2028", '"quoted"')


def chatter(seed: int, *, spam: float = 0.0) -> Iterator[Message]:
    """Messages without end, each of them unlike all others."""
    rng = random.Random(seed)
    number = 0
    while True:
        number += 1
        spams = rng.random() < spam
        sender = SPAMMER if spams else rng.choice(PEOPLE)
        recipient = rng.choice([person for person in PEOPLE if person != sender])
        text = "spam!" if spams else " ".join(rng.choices(WORDS, k=rng.randint(1, 8)))
        yield sender, recipient, f"{text} {number}"


def write_file(path: Path, messages: list[Message]) -> None:
    """The messages as the JSON lines that `loadgen --file` reads."""
    with path.open("w", encoding="utf-8") as file:
        for sender, recipient, content in messages:
            file.write(json.dumps({"From": sender, "To": recipient, "Content": content}, ensure_ascii=False) + "\n")
