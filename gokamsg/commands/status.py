"""status: the roles' groups: members, partitions, lag and rate, as the brokers know them; and what the workers of this
machine restore, as they note it in the state directory.
"""

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gokamsg import console
from gokamsg.config import Settings
from gokamsg.errors import BrokerUnavailableError

from .kafka import client_config
from .quarantine import used_topics
from .registration import command
from .restoring import Restoring, read_notes

if TYPE_CHECKING:
    from gokamsg.engine import Admin, ClientConfig, QuarantineClient

RATE_WINDOW_S = 0.4  # of a command that answers within a second, on a slow machine too
WATCH_EVERY_S = 1.0
STATES = {"Stable": "running", "Empty": "stopped", "Dead": "never ran"}

Offsets = Mapping[tuple[str, int], int]


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """One group at one moment; `handled` is the sum of its committed offsets."""

    group: str
    members: int
    partitions: int
    lag: int
    parked_keys: int
    parked_records: int
    state: str
    handled: int
    at_s: float


@command("status", "Show the groups: members, partitions, lag and rates.")
def status(settings: Settings) -> None:
    from gokamsg.engine import Admin
    from gokamsg.messaging.roles import ROLES, RoleOptions

    graphs = {role.group: role.build(RoleOptions()) for role in ROLES.values()}
    inputs = {group: tuple(graph.consumed_topics()) for group, graph in graphs.items()}
    config = client_config(settings)
    with Admin(config) as admin, ExitStack() as stack:
        quarantines = Quarantines(config, graphs, stack)
        before, window_s = observe(admin, inputs, {}), RATE_WINDOW_S
        while True:
            began = time.monotonic()
            try:
                parked = quarantines.parked(admin)
                time.sleep(max(0.0, began + window_s - time.monotonic()))
                now = observe(admin, inputs, parked)
            except BrokerUnavailableError as error:
                if not settings.watch:
                    raise
                console.note(f"{error}; trying again")
                time.sleep(WATCH_EVERY_S)
            else:
                show(before, now, read_notes(settings.state_path), as_json=settings.json, redraw=settings.watch)
                before, window_s = now, WATCH_EVERY_S
            if not settings.watch:
                return


class Quarantines:
    """What lies in the groups' quarantines; one that anything was ever put into is followed from then on."""

    def __init__(self, config: "ClientConfig", groups: Iterable[str], stack: ExitStack) -> None:
        self._config = config
        self._groups = tuple(groups)
        self._stack = stack
        self._open: dict[str, QuarantineClient] = {}

    def parked(self, admin: "Admin") -> dict[str, tuple[int, int]]:
        """Keys and records, by group; without those that never had any."""
        from gokamsg.engine import QuarantineClient, quarantine_of

        used = used_topics(admin, [quarantine_of(group) for group in self._groups if group not in self._open])
        for group in self._groups:
            if quarantine_of(group) in used:
                self._open[group] = self._stack.enter_context(QuarantineClient(self._config, group))
        found = {group: quarantine.records() for group, quarantine in self._open.items()}
        return {group: (len({record.key for record in records}), len(records)) for group, records in found.items()}


def observe(
    admin: "Admin", inputs: Mapping[str, tuple[str, ...]], parked: Mapping[str, tuple[int, int]]
) -> dict[str, GroupStatus]:
    """Every group now."""
    topics = admin.describe_topics(sorted({topic for names in inputs.values() for topic in names}))
    places = [(topic.name, partition) for topic in topics.values() for partition in range(topic.partitions)]
    ends, starts = admin.high_watermarks(places), admin.log_starts(places)
    known = admin.groups()
    there = [group for group in inputs if group in known]
    described, offsets = admin.describe_groups(there), admin.group_offsets(there)
    found = {}
    for group, names in inputs.items():
        members = described[group].members if group in described else ()
        committed = offsets.get(group, {})
        own = [place for place in places if place[0] in names]
        found[group] = GroupStatus(
            group=group,
            members=len(members),
            partitions=len({number for member in members for _, number in member.partitions}),
            lag=sum(max(0, ends[place] - max(committed.get(place, 0), starts[place])) for place in own),
            parked_keys=parked.get(group, (0, 0))[0],
            parked_records=parked.get(group, (0, 0))[1],
            state=STATES.get(known.get(group, "Dead"), "rebalancing"),
            handled=sum(committed.get(place, 0) for place in own),
            at_s=time.monotonic(),
        )
    return found


def show(
    before: Mapping[str, GroupStatus],
    now: Mapping[str, GroupStatus],
    restoring: Mapping[str, Restoring],
    *,
    as_json: bool,
    redraw: bool,
) -> None:
    """One row for each group; on a terminal that is watched, over the rows before."""
    rows = []
    for group, present in now.items():
        earlier, restore = before[group], restoring.get(group)
        rate = max(0.0, (present.handled - earlier.handled) / max(present.at_s - earlier.at_s, 1e-3))
        if as_json:
            shown = {"members": present.members, "partitions": present.partitions, "lag": present.lag}
            rows_left = None if restore is None else {"rows_done": restore.rows_done, "rows": restore.rows}
            parked = {"parked_keys": present.parked_keys, "parked_records": present.parked_records}
            state = {"records_per_s": round(rate, 1), "state": present.state, "restoring": rows_left}
            console.data({"group": group, **shown, **parked, **state})
            continue
        state_text = present.state
        if restore is not None:
            rows_done, total = console.count_text(restore.rows_done), console.count_text(restore.rows)
            state_text = f"restoring, {rows_done} of {total} rows"
        numbers = (str(present.members), str(present.partitions), console.count_text(present.lag))
        rows.append((group, *numbers, console.count_text(rate), state_text, parked_text(present)))
    if not as_json:
        columns = ("group", "members", "partitions", "lag", "records/s", "state", "parked")
        console.table(columns, rows, right=("members", "partitions", "lag", "records/s"), redraw=redraw)
        if any(present.parked_keys for present in now.values()):
            console.note("'gokamsg quarantine list' shows what is parked.")


def parked_text(present: GroupStatus) -> str:
    """'0', '2 keys'."""
    if not present.parked_keys:
        return "0"
    return f"{present.parked_keys} key{'s' if present.parked_keys > 1 else ''}"
