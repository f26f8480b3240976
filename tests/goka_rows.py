"""What Goka's users rely on, row by row, in our own words; and what is different on purpose.

A test names the rows that it shows to be kept with `@pytest.mark.goka("row", ...)`. tests/test_goka_rows.py checks that
every row has a test or a reason in DIFFERENT, and that the README's lists are the ones made here.
"""

ROWS: dict[str, tuple[str, ...]] = {
    "Keys and names": (
        "partitions: Goka's vectors",
        "partitions: the hash without a negative",
        "partitions: sign rule for any hasher",
        "names: table and loop topics",
        "names: groups and topics of the example",
    ),
    "Codecs": (
        "codec: bytes",
        "codec: string",
        "codec: int64",
        "codec: JSON bytes as Go writes them",
        "codec: JSON read by Go's rules",
        "null values are tombstones",
    ),
    "Edges": (
        "edge: input",
        "edge: inputs",
        "edge: output",
        "edge: loop",
        "edge: persist",
        "edge: join",
        "edge: lookup",
        "edge: visitor",
        "graph: edges by kind, codec and callback of a topic",
        "validate: one loop",
        "validate: one table",
        "validate: an input",
        "validate: own topics elsewhere",
        "validate: visitor without a table",
        "validate: empty topic",
        "validate: the same input twice",
        "co-partitioned inputs and joins",
    ),
    "Context": (
        "context.topic",
        "context.key",
        "context.partition",
        "context.offset",
        "context.group",
        "context.value",
        "context.headers",
        "context.headers: the last of one name counts",
        "context.set_value",
        "context.delete",
        "context.timestamp",
        "context.join",
        "context.lookup",
        "context.emit",
        "context.loopback",
        "context.fail",
        "context.context",
        "context.defer_commit",
        "headers of emit, loopback, set_value and delete",
        "a callback sees a visitor's name, offset 0 and its meta",
    ),
    "Context, what fails": (
        "context.value: no table",
        "context.value: not decodable",
        "context.set_value: no table",
        "context.set_value: None",
        "context.set_value: not encodable",
        "context.delete: no table",
        "context.join: not joined",
        "context.join: not decodable",
        "context.lookup: no lookup",
        "context.lookup: not decodable",
        "context.emit: no output",
        "context.emit: empty topic",
        "context.emit: the table",
        "context.emit: the loop",
        "context.emit: not encodable",
        "context.loopback: no loop",
        "context.loopback: not encodable",
        "context.loopback: None goes to the codec",
        "context.defer_commit: an error stops",
        "context.defer_commit: once",
    ),
    "Emitter": (
        "emitter: emit",
        "emitter: promise",
        "emitter: promise with message",
        "emitter: emit_sync",
        "emitter: headers and default headers",
        "emitter: encoding error",
        "emitter: finish",
        "emitter: finish twice",
        "emitter: emit after finish",
        "emitter: hasher",
    ),
    "Processor": (
        "processor.run",
        "processor.run: once",
        "processor.stop",
        "processor.error",
        "processor.recovered",
        "processor.wait_for_ready",
        "processor.states",
        "processor.get",
        "processor.get: no table",
        "processor.get: of another instance",
        "processor.visit_all",
        "processor.visit_all: stats",
        "processor.visit_all: no such visitor",
        "processor.visit_all: broken off",
        "processor.stats",
        "nil handling: ignore",
        "nil handling: process",
        "nil handling: decode",
        "option: context wrapper",
        "option: rebalance callback",
        "option: update callback",
        "option: default headers",
        "option: hasher",
        "option: hot standby",
        "option: recover ahead",
        "option: storage builder",
    ),
    "Group": (
        "group: Goka's plan",
        "group: members ordered by bytes",
        "group: topics of unequal partitions are refused",
        "group: protocol named copartition, user data none of Goka's",
        "group: partitions move and nothing is lost or doubled",
    ),
    "Tables": (
        "table: restored before anything is processed",
        "table: goes on from the stored position",
        "table: rebuilt when it is lost, damaged or ahead",
        "table: compacted or emptied changelog",
        "storage: half-open ranges in byte order",
        "storage: prefix",
        "storage: value and position together",
    ),
    "View": (
        "view: get, has, recovered, wait_running",
        "view: iterator in byte order over partitions",
        "view: iterator with range, prefix",
        "view: evict",
        "view: missing table",
        "view: get before it is open",
        "view: states",
        "view: update callback",
        "view: hasher",
        "view: auto-reconnect",
        "view.stats",
    ),
    "Topics": (
        "topic manager: ensure stream, table and topic",
        "topic manager: partitions, get_offset",
        "topic manager: mismatch ignore",
        "topic manager: mismatch warn",
        "topic manager: mismatch fail",
        "topic manager: no create",
        "topics: loop and table with the inputs' partitions",
    ),
    "Tester": (
        "tester: consume",
        "tester: with time, with headers",
        "tester: table_value",
        "tester: set_table_value",
        "tester: get_table_keys",
        "tester: clear_values",
        "tester: next, next_raw, with headers",
        "tester: seek, hwm, next_offset",
        "tester: catchup",
        "tester: processors, views and emitters together",
        "tester: several partitions",
        "tester: a clock",
    ),
    "The example": (
        "example: collect",
        "example: block",
        "example: filter",
        "example: translate",
        "example: detect",
        "example: traffic of the load generator",
        "http: send",
        "http: send straight to message_received",
        "http: feed",
        "http: unknown user",
        "commands: block, unblock and translate",
    ),
}

# Row -> why it is not as Goka has it. These have no test of their own.
DIFFERENT: dict[str, str] = {
    "web: monitor, query, actions and index pages": "not built; metrics are Prometheus', `gokamsg status` and the"
    " service's pages show the rest",
    "storage: Redis, Null and File": "not built; memory and SQLite are, and `storage_builder` takes any other",
    "replication and retention": "replication is 3, or the number of brokers, where Goka's 2 fails on one broker;"
    " streams keep 7 days, where Goka's hour loses what waits longer",
    "start of a new group": "at the oldest record, where Goka's newest skips what was sent before the first start",
    "state directory": "in the user's state directory, where Goka's lies in the temporary one and is lost",
    "rebalances": "sticky among gokamsg's members and without Goka's pause of 5 s",
    "commits": "everything of a record in one transaction; offsets never pass a record that is not done",
    "local table ahead of its changelog": "is rebuilt, where Goka logs an error and goes on",
    "key `__offset` in a table": "is a key like any other: the position is kept beside the rows",
    "errors over HTTP": "answered with 4xx and 5xx and a sentence, where the example answers 200",
    "hash 0x80000000": "views find it where producers put it, where Goka's crash",
    "errors in callbacks": "exceptions; any exception of a callback counts, and `on_error` decides between quarantine,"
    " stopping and skipping the record",
    "timestamp of a record without one": "1970, which is Python's way of saying zero",
    "outputs in the stats": "are counted per processor, not per partition, with the records' keys and headers",
    "emitting after finish()": "raises, where Goka breaks the promise",
    "iterators of views": "are Python's: they need no Release, a range begins where Seek would go, and rows that are"
    " written meanwhile are seen or not",
    "suffixes of tables and loops": "`-table` and `-loop` always: changed in one process only, they would part a group",
    "channel sizes, backoff, client builders, loggers": "no options: clients retry by themselves, batches bound memory,"
    " logs go to Python's logging, and the tester replaces clients",
    "sarama's configuration": "`ClientConfig` takes a standard client properties file; acknowledgements are always"
    " those of all in-sync replicas, producers are idempotent, and send what they have at once and uncompressed",
}


def render_rows(tests_of: dict[str, set[str]]) -> str:
    """The README's table of what is kept: an area, its rows, and the number of tests that name them."""
    lines = ["| area | what is as in Goka | tests |", "|---|---|---|"]
    for area, rows in ROWS.items():
        named = {test for row in rows for test in tests_of.get(row, ())}
        lines.append(f"| {area} | {_in_short(rows)} | {len(named)} |")
    return "\n".join(lines)


def render_differences() -> str:
    """The README's list of what differs on purpose."""
    return "\n".join(f"- {row[0].upper()}{row[1:]}: {why}." for row, why in DIFFERENT.items())


def _in_short(rows: tuple[str, ...]) -> str:
    """Rows of one thing together: "value; value: no table" is "value (no table)"."""
    details: dict[str, list[str]] = {}
    for row in rows:
        thing, _, detail = row.partition(": ")
        known = details.setdefault(thing.removeprefix("context.").removeprefix("processor.").removeprefix("view."), [])
        known.extend([detail] if detail else [])
    return "; ".join(f"{thing} ({', '.join(found)})" if found else thing for thing, found in details.items())
