"""up: a broker, the five roles and the service with one command; shows what they do until it is told to stop."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gokamsg import __version__, console
from gokamsg.config import Settings
from gokamsg.errors import GokamsgError, UsageError
from gokamsg.supervisor import ChildSpec, SupervisorOptions
from gokamsg.up import Listener, Up

from .broker import BROKER_DATA
from .process import load, partitions_text, worker_specs
from .registration import command
from .stopping import stop_on_signals

if TYPE_CHECKING:
    from gokamsg.engine import Tail, TailRecord

TABLES_DATA = "tables"
PANEL_EVERY_S = 0.5
MOST_SAID = 1000
MODULES = (
    "gokamsg.messaging.roles",
    "gokamsg.messaging.service",
    "gokamsg.messaging.server",
    "gokamsg.messaging.topics",
    "gokamsg.commands.part",
    "gokamsg.commands.worker",
)


@command("up", "Start everything: a broker, the five roles and the service.")
def up(settings: Settings) -> None:
    started = time.monotonic()
    if settings.reset and not reset(settings):
        return
    settings = with_ports(settings)
    show = Display(settings, started)

    def parts(address: str | None) -> list[ChildSpec]:
        show.obey_keys(everything.stop)
        return prepare(settings, address, show)

    everything = Up(
        None if settings.brokers else broker_spec(settings),
        Listener(show.message, show.event, show.log),
        prepare=parts,
        load=partial(load, MODULES),
        children=5 * settings.workers + (2 if settings.demo else 1),
        options=SupervisorOptions(grace_s=4.0),
    )
    stop_on_signals(everything)
    show.begin()
    try:
        everything.run()
    except BaseException:
        show.end("")  # what failed is said next
        raise
    show.end("stopped")


def broker_spec(settings: Settings) -> ChildSpec:
    """The embedded broker as a child."""
    return part("broker", replace(settings, json=True, broker_host="127.0.0.1"))


def prepare(settings: Settings, address: str | None, show: Display) -> list[ChildSpec]:
    """Makes the topics; the roles and the service, to be started on the brokers at `address`."""
    from gokamsg.engine import TopicManager
    from gokamsg.messaging.topics import all_topics, ensure

    from .kafka import client_config

    here = replace(settings, brokers=address or settings.addresses, state_dir=str(settings.data_path / TABLES_DATA))
    with TopicManager(client_config(here)) as manager:
        created = list(ensure(manager, all_topics()))
        partitions = {topic.partitions for topic in manager.existing(all_topics()).values()}
    show.topics(len(all_topics()), sorted(partitions), len(created))
    show.brokers = here
    specs = worker_specs(here, stage=1)
    specs.append(part("serve", replace(here, json=True), stage=2))
    if settings.demo:
        url = f"http://127.0.0.1:{settings.port}"
        specs.append(part("loadgen", replace(here, json=True, url=url), stage=3))
    return specs


def part(name: str, settings: Settings, stage: int = 0) -> ChildSpec:
    """A child that runs one of our commands with these settings."""
    values = {field.name: value for field, value in zip(fields(settings), asdict(settings).values(), strict=True)}
    argv = [sys.executable, "-m", "gokamsg.commands.part", name]
    return ChildSpec(name, argv, greeting=json.dumps(values).encode() + b"\n", stage=stage)


def with_ports(settings: Settings) -> Settings:
    """Free ports in place of 0, so that all parts know them, and one that is started again is found where it was.

    Refuses a taken HTTP port before anything is started; of its own port the broker tells by itself.
    """
    from gokamsg.messaging.server import listen

    with listen("127.0.0.1", settings.port) as http, listen("127.0.0.1", 0) as spare:
        broker_port = settings.broker_port or spare.getsockname()[1]
        return replace(settings, port=http.getsockname()[1], broker_port=broker_port)


def reset(settings: Settings) -> bool:
    """Deletes the data of earlier runs, after asking; whether to go on."""
    if settings.brokers:
        raise UsageError("--reset deletes the embedded broker's data; there is none with --brokers.")
    folders = [settings.data_path / name for name in (BROKER_DATA, TABLES_DATA)]
    present = [folder for folder in folders if folder.exists()]
    if not present:
        return True
    if not settings.yes:
        if not sys.stdin.isatty():
            raise UsageError("--reset asks before it deletes, and nobody can answer here; add --yes.")
        sys.stderr.write(f"Delete all messages and tables in {settings.data_path}? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            console.note("Nothing was deleted.")
            return False
    if in_use(settings.data_path / BROKER_DATA):
        raise GokamsgError(f"the data in {str(settings.data_path)!r} is in use by a running broker; stop that first")
    for folder in present:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise GokamsgError(f"{str(folder)!r} cannot be deleted: {error.strerror or error}") from error
    console.note(f"deleted all messages and tables in {settings.data_path}")
    return True


def in_use(folder: Path) -> bool:
    """Whether a running broker holds the folder's lock."""
    from gokamsg.broker.server import LOCK_FILE

    try:
        with (folder / LOCK_FILE).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # there is no lock, or no right to it: deleting says what is wrong
    return False


class Display:
    """What is shown: how the start goes, then a panel on a terminal, or a line for each event."""

    def __init__(self, settings: Settings, started: float) -> None:
        self.brokers: Settings | None = None
        self._settings = settings
        self._started = started
        self._statuses: dict[str, dict[str, Any]] = {}
        self._said: dict[str, str] = {}
        self._url: str | None = None
        self._ready = False
        self._news: list[str] = []
        self._blocks: list[str] = []
        self._lock = threading.Lock()
        self._drawing = threading.Lock()  # apart, as a terminal can be stopped (Ctrl-S)
        self._ended = threading.Event()
        self._live: console.Live | None = None
        self._keys: console.Keys | None = None

    def begin(self) -> None:
        """The first line."""
        if not self._settings.json:
            console.note(f"gokamsg {__version__}, data in {console.home_text(self._settings.data_path)}")

    def obey_keys(self, stop: Callable[[], None]) -> None:
        """From now on `q` stops on a terminal. Its thread must not be there before the parts' blanks are forked."""
        if console.is_rich(sys.stderr) and not self._settings.json:
            self._keys = console.Keys({"q": stop})

    def end(self, said: str) -> None:
        """Takes the panel away and says how everything ended. Does not wait for who watches: a look at a broker that is
        gone by now takes seconds."""
        with self._drawing:
            self._ended.set()
            if self._live is not None:
                self._live.close()
        if self._keys is not None:
            self._keys.close()
        if said and not self._settings.json:
            console.note(said)

    # --- what the parts say -------------------------------------------------------------------------------------

    def message(self, name: str, message: dict[str, Any]) -> None:
        if self._settings.json and "alive" not in message:
            console.data({"part": name, **message})
        with self._lock:
            if name == "broker" and "ready" in message:
                self._step("broker", str(message["ready"]), f"{self._elapsed():.1f} s")
            elif name == "serve" and "ready" in message:
                self._url = str(message["ready"])
            elif "state" in message:
                self._statuses[name] = message
                if self._ready and self._live is None and not self._settings.json and message["state"] == "running":
                    self._say_change(name, message)
            if not self._ready:
                self._look_if_ready()

    def event(self, name: str, text: str) -> None:
        if self._settings.json:
            console.data({"part": name, "event": text})
            return
        with self._lock:
            self._statuses.pop(name, None)
            self._said.pop(name, None)
        self._line(f"{name}: {text}")

    def log(self, name: str, line: str) -> None:
        self._line(f"{name}: {line}")

    def topics(self, count: int, partitions: Sequence[int], created: int) -> None:
        if self._settings.json:
            console.data({"topics": count, "created": created})
            return
        what = "created" if created == count else f"{created} created" if created else "there already"
        self._step("topics", f"{count} topics, {'/'.join(map(str, partitions))} partitions", what)

    # --- what is shown of it ------------------------------------------------------------------------------------

    def _look_if_ready(self) -> None:
        roles = len({name.partition("/")[0] for name in self._statuses})
        at_work = all(status.get("state") == "running" for status in self._statuses.values())
        if self._url is None or roles < 5 or not at_work:
            return
        self._ready = True
        if self._settings.json:
            console.data({"ready": self._url, "seconds": round(self._elapsed(), 2)})
            return
        self._step("processors", " ".join(sorted({name.partition("/")[0] for name in self._statuses})), "")
        self._step("service", self._url, f"ready in {self._elapsed():.1f} s")
        for line in hints(self._url, self.brokers):
            console.note(line)
        for name, status in self._statuses.items():
            self._said[name] = _state_text(status)
        threading.Thread(target=self._watch, name="panel", daemon=True).start()

    def _watch(self) -> None:
        """Looks at the newest messages and blocks, and draws; ends with everything else."""
        if not console.is_rich(sys.stderr):
            self._tell_blocks()
            return
        from gokamsg.messaging.blocker import BLOCK_EVENT, BLOCK_USER
        from gokamsg.messaging.messages import MESSAGE, RECEIVED
        from gokamsg.panel import panel

        with self._drawing:
            if self._ended.is_set():
                return
            self._live = console.Live()
        for records in self._looks({RECEIVED: MESSAGE, BLOCK_USER: BLOCK_EVENT}, PANEL_EVERY_S):
            self._note_news(records)
            with self._lock:
                lines = panel(
                    dict(sorted(self._statuses.items())),
                    [*self._news, *self._blocks],
                    width=self._live.width,
                    url=self._url or "",
                    uptime_s=self._elapsed(),
                )
            with self._drawing:
                if self._ended.is_set():
                    return
                self._live.draw(lines)

    def _tell_blocks(self) -> None:
        """A line for each user who is blocked or heard again: of a spammer's many blocks the first one."""
        from gokamsg.messaging.blocker import BLOCK_EVENT, BLOCK_USER

        said: dict[str, bool] = {}
        for records in self._looks({BLOCK_USER: BLOCK_EVENT}, 1.0, timeout_s=2.0):
            if self._ended.is_set():
                return
            for record in records:
                if record.value is not None and said.get(record.key) is not record.value.unblock:
                    said[record.key] = record.value.unblock
                    self._line(f"{record.key} is {'no longer ' if record.value.unblock else ''}blocked")
            if len(said) > MOST_SAID:
                said.clear()

    def _looks(
        self, codecs: Mapping[str, Any], every_s: float, *, timeout_s: float = 0.2
    ) -> Iterator[Sequence[TailRecord]]:
        """What is new in these topics, again and again until everything ends; nothing while the broker is away, which
        the roles say."""
        from gokamsg.engine import Tail

        from .kafka import client_config

        assert self.brokers is not None
        with contextlib.ExitStack() as opened:
            tail: Tail | None = None
            while True:
                with contextlib.suppress(GokamsgError):
                    tail = tail or opened.enter_context(Tail(client_config(self.brokers), codecs))
                if self._ended.wait(every_s):
                    return
                records: Sequence[TailRecord] = ()
                if tail is not None:
                    with contextlib.suppress(GokamsgError):
                        records = tail.newest(timeout_s)
                yield records

    def _note_news(self, records: Sequence[Any]) -> None:
        from gokamsg.messaging.blocker import BLOCK_USER

        for record in records:
            if record.value is None:
                continue
            if record.topic == BLOCK_USER:
                outcome = "unblocked" if record.value.unblock else "blocked"
                self._blocks = [console.visible(f"{record.key} is {outcome}")]
            else:
                message = record.value
                self._news.append(console.visible(f"{message.sender} to {message.recipient}: {message.content}"))
        del self._news[:-5]

    def _say_change(self, name: str, status: dict[str, Any]) -> None:
        text = _state_text(status)
        if text and self._said.get(name) != text:
            self._said[name] = text
            self._line(f"{name}: {text}")

    def _step(self, what: str, value: str, outcome: str) -> None:
        if not self._settings.json:
            console.note(f"  {what:<11} {value:<26} {outcome}".rstrip())

    def _line(self, text: str) -> None:
        if self._live is not None:
            self._live.note(console.visible(text))
        else:
            console.note(console.visible(text))

    def _elapsed(self) -> float:
        return time.monotonic() - self._started


def _state_text(status: dict[str, Any]) -> str:
    if status.get("notice"):
        return str(status["notice"])
    if status.get("state") == "running":
        return f"running, {partitions_text(status['partitions'])}, {status['guarantee']}"
    return str(status.get("state", ""))


def hints(url: str, here: Settings | None) -> list[str]:
    """The three lines to try next, with the addresses as they are."""
    brokers = "" if here is None or here.addresses in DEFAULT_ADDRESSES else f" --brokers {here.addresses}"
    if here is not None and here.kafka_config:
        brokers += f" --kafka-config {shlex.quote(here.kafka_config)}"
    address = url.removeprefix("http://").replace("127.0.0.1", "localhost")
    return [
        "",
        "Try, in another terminal:",
        f"""  curl -d '{{"to": "Alice", "content": "Hello!"}}' {address}/Bob/send""",
        f"  gokamsg feed Alice --follow{brokers}",
        f"  gokamsg block Bob{brokers}",
        "",
    ]


DEFAULT_ADDRESSES = ("localhost:9092", "127.0.0.1:9092")
