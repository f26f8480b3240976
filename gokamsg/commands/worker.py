"""A worker process: one role, run by `gokamsg process`, never by hand (`python -m gokamsg.commands.worker`).

Its standard input holds its instructions as one JSON line, and ends when its supervisor does; then it stops, as on
SIGTERM. Its standard output carries its status as JSON lines, twice a second; or, before it fails, {"error": …}. The
status comes from the worker's loop alone, so that its supervisor notices a loop that hangs.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gokamsg import console
from gokamsg.config import secrets_of
from gokamsg.errors import BrokerUnavailableError, GokamsgError, IdentityError, OffsetsLostError, TopicError, UsageError
from gokamsg.supervisor import show_stacks_when_asked

from .restoring import Note, Restoring

if TYPE_CHECKING:
    from gokamsg.engine import Processor, ProcessorStatus

STATUS_EVERY_S = 0.5
WAITS = (BrokerUnavailableError,)
SWITCH_S = 0.0005
"""How long a thread that handles records keeps those waiting that receive and send them; Python's default is ten times
as long, which is a pause for each piece of a fetch."""
FINAL = (UsageError, IdentityError, OffsetsLostError, TopicError)


def main() -> None:
    """Runs until SIGTERM or the end of standard input; exit code 1 with an error line on failure."""
    show_stacks_when_asked()
    sys.setswitchinterval(SWITCH_S)
    instructions = json.loads(sys.stdin.buffer.readline() or b"{}")
    console.prepare_streams()
    console.set_up_logging(debug=bool(instructions.get("debug")))
    console.hide(secrets_of(instructions.get("properties", {})))
    try:
        run(instructions)
    except Exception as failure:
        known = isinstance(failure, GokamsgError)
        text = str(failure) if known else f"unexpected {type(failure).__name__}: {failure}"
        if instructions.get("debug") or not known:
            import logging

            logging.getLogger("gokamsg.worker").error("%s", text, exc_info=failure)
        say({"error": text, "final": isinstance(failure, FINAL), "waits": isinstance(failure, WAITS)})
        sys.exit(1)


def run(instructions: dict[str, Any]) -> None:
    """Runs the role's processor."""
    from gokamsg.engine import ClientConfig, Processor, ProcessorOptions
    from gokamsg.messaging.roles import ROLES, RoleOptions

    config = ClientConfig(instructions["brokers"], properties=instructions["properties"])
    role = ROLES[instructions["role"]]
    options = ProcessorOptions(
        state_dir=Path(instructions["state_dir"]),
        guarantee=instructions["guarantee"],
        on_error=instructions["on_error"],
        start=instructions["start"],
        hot_standby=instructions["hot_standby"],
        recover_ahead=instructions["recover_ahead"],
        transaction_timeout_ms=instructions["transaction_timeout_ms"],
        commit_interval_s=role.commit_interval_s,
    )
    graph = role.build(RoleOptions(**instructions["role_options"]))
    note = Note(options.state_dir, graph.group)
    processor = Processor(config, graph, options, on_status=Reporter(note))
    stop_when_told(processor)
    try:
        processor.run()
    finally:
        note.update(None)


def stop_when_told(processor: "Processor") -> None:
    """Stops the processor on SIGTERM, and when the supervisor is gone."""
    signal.signal(signal.SIGTERM, lambda number, frame: processor.stop())
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait_for_end() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            continue
        processor.stop()

    threading.Thread(target=wait_for_end, name="supervisor-watch", daemon=True).start()


def say(message: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The supervisor is gone; the end of standard input stops us.
        sys.stdout = sys.stderr


class Reporter:
    """Turns the processor's status into lines: at every change of state, else twice a second."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self._said_at = 0.0
        self._shape: tuple[Any, ...] = ()

    def __call__(self, status: "ProcessorStatus") -> None:
        shape = (status.state, status.partitions, status.restoring is None, status.notice)
        now = time.monotonic()
        if shape == self._shape and now - self._said_at < STATUS_EVERY_S:
            return
        self._shape, self._said_at = shape, now
        restoring = status.restoring
        self._note.update(None if restoring is None else Restoring(restoring.rows_done, restoring.rows))
        say(
            {
                "state": status.state.name.lower(),
                "guarantee": status.guarantee,
                "partitions": list(status.partitions),
                "standby": list(status.standby),
                "restoring": restoring
                and {
                    "partitions_done": restoring.partitions_done,
                    "partitions": restoring.partitions,
                    "rows_done": restoring.rows_done,
                    "rows": restoring.rows,
                    "rows_per_s": restoring.rows_per_s,
                    "remaining_s": restoring.remaining_s,
                },
                "records": status.records,
                "records_per_s": round(status.records_per_s, 1),
                "emitted": status.emitted,
                "table_writes": status.table_writes,
                "bad_records": status.bad_records,
                "parked_records": status.parked_records,
                "parked_keys": status.parked_keys,
                "commits": status.commits,
                "aborts": status.aborts,
                "commit_ms": round(status.commit_ms, 2),
                "lag": status.total_lag,
                "table_reads": status.table_reads,
                "table_lag": status.table_lag,
                "notice": status.notice,
            }
        )


if __name__ == "__main__":
    main()
