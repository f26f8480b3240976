"""A worker as `gokamsg process` runs it, with a role of its own: its callback hangs once, and a note says where it is.

`python -m tests.system.hanging INPUT NOTE`. The value "hang" hangs while the file NOTE is not there yet.
"""

import sys
import threading
from pathlib import Path

from gokamsg.commands import worker
from gokamsg.engine import Context, Input, Int64, Persist, String, define_group
from gokamsg.messaging.roles import ROLES, Role


def main(topic: str, note: Path) -> None:
    def hang_for_ever() -> None:
        note.touch()
        threading.Event().wait()

    def count(context: Context, value: str) -> None:
        if value == "hang" and not note.exists():
            hang_for_ever()
        context.set_value((context.value() or 0) + 1)

    group = f"{topic}-hanging"
    graph = define_group(group, Input(topic, String(), count), Persist(Int64()))
    ROLES["hanging"] = Role("hanging", group, "hangs", lambda options: graph)
    worker.main()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
