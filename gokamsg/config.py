"""Every setting of every command: one table, from which flags, environment, help, README and validation come.

A setting is a field of Settings. Its flag is its name (`detect_share` -> `--detect-share`), its environment variable
is `GOKAMSG_` and its name in capitals; the flag wins. A Settings is frozen and was checked as a whole before anything
was opened. Engine and broker never see it: the commands hand them plain values.

Pure, except load_client_properties(), which reads the file it is given.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from .errors import UsageError

ROLE_NAMES = ("blocker", "collector", "detector", "filter", "translator")

QUARANTINE = ("quarantine list", "quarantine show", "quarantine edit", "quarantine retry", "quarantine drop")
ON_KAFKA = (
    *("serve", "process", "send", "feed", "block", "unblock", "translate"),
    *("topics create", "topics describe", "status", "verify"),
    *QUARANTINE,
)
PRINTING = (*ON_KAFKA, "loadgen", "broker", "up")
CLIENTS = (*ON_KAFKA, "up")
DEFAULT_BROKERS = "localhost:9092"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table."""

    name: str
    kind: Any
    default: Any
    help: str
    commands: tuple[str, ...]
    metavar: str | None
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    default_text: str
    short: str | None
    variants: Mapping[str, tuple[str, str]]

    def help_of(self, command: str) -> tuple[str, str]:
        """What it is, and its default in words, as `command` has it."""
        return self.variants.get(command, (self.help, self.default_text))

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def flag_of(self, command: str) -> str:
        """The flag as `command` has it: `--broker-port` of `up` is the `--port` of `broker`."""
        return "--" + self.name.removeprefix(f"{command}_").replace("_", "-")

    @property
    def environment(self) -> str:
        return "GOKAMSG_" + self.name.upper()


def setting(
    default: Any,
    text: str,
    *,
    commands: tuple[str, ...],
    metavar: str | None = None,
    choices: tuple[str, ...] = (),
    limits: tuple[float | None, float | None] = (None, None),
    default_text: str | None = None,
    short: str | None = None,
    variants: Mapping[str, tuple[str, str]] | None = None,
) -> Any:
    """A field of Settings with its row of the table as metadata.

    `variants`: a command whose help and default differ -> both.
    """
    row = {
        "help": text,
        "commands": commands,
        "metavar": metavar,
        "choices": choices,
        "minimum": limits[0],
        "maximum": limits[1],
        "default_text": default_text,
        "short": short,
        "variants": variants or {},
    }
    return dataclasses.field(default=default, metadata=row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a person set, checked. Raises UsageError when built from values that make no sense."""

    brokers: str | None = setting(
        None,
        "Kafka bootstrap addresses, separated by commas.",
        commands=CLIENTS,
        metavar="HOST:PORT",
        default_text=DEFAULT_BROKERS,
        variants={"up": ("Kafka bootstrap addresses, in place of a broker of its own.", "a broker of its own")},
    )
    kafka_config: str | None = setting(
        None, "Client properties file (security.protocol, sasl.*, ssl.*).", commands=CLIENTS, metavar="FILE"
    )
    state_dir: str | None = setting(
        None,
        "Where workers and the service keep their copies of tables.",
        commands=ON_KAFKA,
        metavar="DIR",
        default_text="the user's state directory",
    )
    json: bool = setting(False, "Print one JSON object per line.", commands=PRINTING)
    debug: bool = setting(False, "Show logs of every level, and the traceback of an error.", commands=PRINTING)

    host: str = setting(
        "127.0.0.1", "Address that the HTTP service listens on.", commands=("serve",), metavar="ADDRESS"
    )
    port: int = setting(
        8080, "Port of the HTTP service; 0 takes a free one.", commands=("serve", "up"), limits=(0, 65535)
    )
    direct: bool = setting(
        False, "Send straight to message_received, past the filter (step 1).", commands=("serve", "send")
    )

    role: tuple[str, ...] = setting(
        (),
        "Role to run, repeatable: " + ", ".join(ROLE_NAMES) + ", or all.",
        commands=("process", *QUARANTINE, "verify"),
        metavar="ROLE",
        default_text="all",
        variants={
            **dict.fromkeys(QUARANTINE, ("Role whose records are meant, repeatable.", "all")),
            "verify": ("Role whose tables are compared, repeatable.", "all, and the service"),
        },
    )
    key: str | None = setting(
        None,
        "Only the records of this key.",
        commands=("quarantine list", "quarantine retry"),
        metavar="KEY",
        default_text="all keys",
    )
    value: str | None = setting(
        None,
        "The record's new value; - reads it from standard input.",
        commands=("quarantine edit",),
        metavar="TEXT",
        default_text="none: it has to be given",
    )
    workers: int = setting(1, "Worker processes for each role.", commands=("process", "up"), limits=(1, 64))
    guarantee: str = setting(
        "exactly-once",
        "What holds when a worker dies: exactly-once or at-least-once.",
        commands=("process",),
        choices=("exactly-once", "at-least-once"),
    )
    on_error: str = setting(
        "quarantine",
        "What to do with a record that cannot be processed: put it and the later ones of its key aside, skip it, stop.",
        commands=("process", "up"),
        choices=("quarantine", "skip", "stop"),
    )
    hot_standby: bool = setting(
        False,
        "Follow the tables of other instances' partitions too, so that one that dies is replaced at once.",
        commands=("process",),
    )
    recover_ahead: bool = setting(
        False,
        "Restore all tables before joining the group, so that the others work on meanwhile.",
        commands=("process",),
    )
    start: str | None = setting(
        None,
        "Where to go on if the committed offsets are lost: earliest or latest.",
        commands=("process",),
        choices=("earliest", "latest"),
        default_text="refuse and say what is lost",
    )
    transaction_timeout: str = setting(
        "10s", "How long one transaction, and so one record, may take.", commands=("process",), metavar="DURATION"
    )
    metrics_port: int | None = setting(
        None,
        "Serve Prometheus metrics of the workers on this port.",
        commands=("process",),
        limits=(0, 65535),
        default_text="off",
    )
    metrics_host: str = setting(
        "127.0.0.1",
        "Address that the metrics are served on; 0.0.0.0 lets other machines read them.",
        commands=("process",),
        metavar="ADDRESS",
    )
    keep: int = setting(5, "collector: how many messages a feed keeps.", commands=("process", "up"), limits=(1, 1000))
    detect_messages: int = setting(
        200,
        "detector: messages sent and received before a user is judged.",
        commands=("process", "up"),
        limits=(1, None),
    )
    detect_share: float = setting(
        0.5, "detector: share of sent messages from which a user is blocked.", commands=("process", "up"), limits=(0, 1)
    )

    url: str = setting("http://127.0.0.1:8080", "Address of the HTTP service.", commands=("loadgen",), metavar="URL")
    rate: float = setting(5.0, "Messages per second.", commands=("loadgen",), limits=(0.01, 100_000))
    count: int | None = setting(
        None, "Stop after this many messages.", commands=("loadgen",), limits=(1, None), default_text="until Ctrl-C"
    )
    seed: int | None = setting(
        None, "Seed of the traffic; the same seed says the same.", commands=("loadgen",), default_text="random"
    )
    spam: float = setting(0.3, "Share of Bob's spam in the traffic.", commands=("loadgen",), limits=(0, 1))
    file: str | None = setting(
        None,
        'Send the messages of this file instead: JSON lines {"From","To","Content"}; - reads stdin.',
        commands=("loadgen",),
        metavar="FILE",
    )

    follow: bool = setting(False, "Go on, and print messages as they arrive.", commands=("feed",), short="-f")
    partitions: int = setting(8, "Partitions of each topic.", commands=("topics create",), limits=(1, 10_000))
    replication: int | None = setting(
        None,
        "Replicas of each partition.",
        commands=("topics create",),
        limits=(1, 100),
        default_text="3, or as many as there are brokers",
    )
    retention: str = setting(
        "7d",
        "How long streams keep their records; tables keep the last one of each key.",
        commands=("topics create", "broker"),
        metavar="DURATION",
    )
    watch: bool = setting(False, "Go on, and show the state every second.", commands=("status",), short="-w")

    broker_host: str = setting(
        "127.0.0.1",
        "Address that the broker listens on. It has no authentication.",
        commands=("broker",),
        metavar="ADDRESS",
    )
    broker_port: int = setting(
        9092, "Port of the embedded broker; 0 takes a free one.", commands=("broker", "up"), limits=(0, 65535)
    )
    data_dir: str | None = setting(
        None,
        "Where the embedded broker keeps its data.",
        commands=("broker", "up"),
        metavar="DIR",
        default_text="the user's state directory",
        variants={"up": ("Where its broker keeps its data, and the roles their tables.", "the user's state directory")},
    )
    no_fsync: bool = setting(
        False,
        "Do not wait for the disk: faster, but a power failure may take the last acknowledged records.",
        commands=("broker", "up"),
    )
    retention_bytes: int = setting(
        -1,
        "Bytes that each partition of a stream keeps; -1 for no limit.",
        commands=("broker",),
        metavar="N",
        limits=(-1, None),
    )
    demo: bool = setting(False, "Send the example's traffic too.", commands=("up",))
    reset: bool = setting(False, "Delete all messages and tables of earlier runs first; asks.", commands=("up",))
    yes: bool = setting(False, "Do not ask.", commands=("up",))

    def __post_init__(self) -> None:
        for row in SETTINGS:
            check(row, getattr(self, row.name), row.flag)
        parse_duration_ms(self.transaction_timeout, "--transaction-timeout", minimum_ms=3_000, maximum_ms=900_000)
        parse_duration_ms(self.retention, "--retention", minimum_ms=60_000)
        unknown = [role for role in self.role if role not in (*ROLE_NAMES, "all")]
        if unknown:
            raise UsageError(f"there is no role {unknown[0]!r}. Roles: {', '.join(ROLE_NAMES)}, all.")

    @classmethod
    def of(cls, command: str, values: Mapping[str, Any]) -> Settings:
        """What a command was given; a refusal names the flag as that command has it."""
        for row in settings_of(command):
            check(row, values[row.name], row.flag_of(command))
        return cls(**values)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles to run, each once; all of them unless some were named."""
        if not self.role or "all" in self.role:
            return ROLE_NAMES
        return tuple(dict.fromkeys(self.role))

    @property
    def addresses(self) -> str:
        """The brokers to connect to."""
        return self.brokers or DEFAULT_BROKERS

    @property
    def data_path(self) -> Path:
        """Where `up` and the embedded broker keep everything."""
        return Path(self.data_dir).expanduser() if self.data_dir else self.state_path

    @property
    def transaction_timeout_ms(self) -> int:
        return parse_duration_ms(self.transaction_timeout, "--transaction-timeout")

    @property
    def retention_ms(self) -> int:
        return parse_duration_ms(self.retention, "--retention")

    @property
    def state_path(self) -> Path:
        """The state directory; the platform's own place for a user's state unless set."""
        if self.state_dir:
            return Path(self.state_dir).expanduser()
        import platformdirs

        return Path(platformdirs.user_state_dir("gokamsg", appauthor=False))


def check(row: Setting, value: Any, flag: str) -> None:
    """Refuses a value outside the row's choices or limits."""
    if value is None:
        return
    if row.choices and value not in row.choices:
        raise UsageError(f"{flag} is {value!r}; it can be {' or '.join(row.choices)}.")
    if row.minimum is not None and not value >= row.minimum:
        raise UsageError(f"{flag} is {value}; it must be at least {row.minimum:,g}.")
    if row.maximum is not None and not value <= row.maximum:
        raise UsageError(f"{flag} is {value}; it must be at most {row.maximum:,g}.")


DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.ASCII)
UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_duration_ms(text: str, flag: str, *, minimum_ms: int = 0, maximum_ms: int | None = None) -> int:
    """Milliseconds of '500ms', '10s', '5m', '1h', '7d'; a bare number is seconds. Raises UsageError."""
    match = DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{flag} is {text!r}; write a number and a unit: 500ms, 10s, 5m, 1h or 7d.")
    milliseconds = int(float(match[1]) * UNIT_MS[match[2] or "s"])
    if milliseconds < minimum_ms:
        raise UsageError(f"{flag} is {text!r}; it must be at least {minimum_ms / 1000:g}s.")
    if maximum_ms is not None and milliseconds > maximum_ms:
        raise UsageError(f"{flag} is {text!r}; it must be at most {maximum_ms / 1000:g}s.")
    return milliseconds


def load_client_properties(path: str | None) -> dict[str, str]:
    """The entries of a Kafka client properties file, as Java reads it.

    name=value, name: value or name value; # and ! begin comments; a backslash at a line's end joins the next one,
    elsewhere it takes the next character as it is (or is \\n, \\r, \\t, \\uXXXX).
    Raises UsageError if the file cannot be read or a line is not an entry. No value is ever part of the message.
    """
    if path is None:
        return {}
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"--kafka-config {path!r} cannot be read: {reason}.") from error
    properties: dict[str, str] = {}
    for number, line in _logical_lines(text):
        match = _PROPERTY.fullmatch(line)
        if match is None:
            raise UsageError(f"--kafka-config {path!r}, line {number} is not of the form name=value.")
        properties[_unescaped(match["name"])] = _unescaped(match["value"])
    return properties


_PROPERTY = re.compile(r"(?P<name>(?:\\.|[^\\=:\s])+)(?:\s*[=:]\s*|\s+)(?P<value>.*)")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """The entries of a properties file with the numbers of their first lines."""
    pending, first = "", 0
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not pending:
            if not line or line[0] in "#!":
                continue
            first = number
        line = pending + line
        if (len(line) - len(line.rstrip("\\"))) % 2:
            pending = line[:-1]
        else:
            pending = ""
            yield first, line
    if pending:
        yield first, pending


def _unescaped(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        code = found[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else _ESCAPED.get(code, code)

    return _ESCAPE.sub(character, text)


def secrets_of(properties: Mapping[str, str]) -> tuple[str, ...]:
    """The values of client properties that nobody may see: passwords, and what holds one."""
    secret = [
        value for name, value in properties.items() if name.endswith((".password", ".jaas.config", ".key")) and value
    ]
    jaas = [next(filter(None, found)) for value in secret for found in _QUOTED_PASSWORD.findall(value) if any(found)]
    return tuple(dict.fromkeys([*secret, *jaas, *(re.sub(r"\\(.)", r"\1", value) for value in jaas)]))


_QUOTED_PASSWORD = re.compile(r"""\bpassword\s*=\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([^\s;]+))""")


def _rows() -> tuple[Setting, ...]:
    hints = get_type_hints(Settings)
    rows = []
    for field in dataclasses.fields(Settings):
        meta = dict(field.metadata)
        text = meta.pop("default_text")
        if text is None:
            text = "" if field.default is None or field.default is False else str(field.default)
        rows.append(Setting(name=field.name, kind=hints[field.name], default=field.default, default_text=text, **meta))
    return tuple(rows)


SETTINGS = _rows()


def settings_of(command: str) -> tuple[Setting, ...]:
    """The settings that a command takes, its own first, in the order of the table."""
    taken = [row for row in SETTINGS if command in row.commands]
    return tuple(sorted(taken, key=lambda row: row.commands in (ON_KAFKA, CLIENTS, PRINTING)))


def render_settings() -> str:
    """The table of all settings in Markdown, as the README shows it."""
    lines = ["| flag | environment | default | what it is | commands |", "|---|---|---|---|---|"]
    for row in SETTINGS:
        groups = {ON_KAFKA: "all on Kafka", CLIENTS: "all on Kafka, up", PRINTING: "all"}
        commands = groups.get(row.commands, ", ".join(row.commands))
        text = row.help.replace("|", "\\|")
        defaults = [row.default_text] + [
            f"{command}: {default}" for command, (_, default) in row.variants.items() if default != row.default_text
        ]
        first = row.flag_of(row.commands[0])
        flags = [f"`{first}`"] + [
            f"{command}: `{flag}`" for command in row.commands if (flag := row.flag_of(command)) != first
        ]
        lines.append(f"| {'; '.join(flags)} | `{row.environment}` | {'; '.join(defaults)} | {text} | {commands} |")
    return "\n".join(lines) + "\n"
