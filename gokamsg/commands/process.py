"""process: runs roles, each worker a process of its own, and shows what they do."""

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from gokamsg import console
from gokamsg.config import Settings, load_client_properties
from gokamsg.nursery import Nursery
from gokamsg.supervisor import ChildSpec, Supervisor, SupervisorOptions

from .kafka import client_config, make_topics
from .registration import command
from .stopping import stop_on_signals

MODULES = ("gokamsg.messaging.roles", "gokamsg.commands.worker")
"""What every worker imports, besides the engine."""


@command("process", "Run one or several roles: collector, blocker, filter, translator, detector, or all of them.")
def process(settings: Settings) -> None:
    from gokamsg.messaging.topics import topics_of

    specs = worker_specs(settings)
    with closing(Nursery()) as nursery:
        nursery.prepare(partial(load, MODULES), blanks=len(specs))  # before any client has a thread
        make_topics(client_config(settings), [topic for role in settings.roles for topic in topics_of(role)])
        run_workers(settings, specs, nursery)


def load(modules: Iterable[str]) -> None:
    """What every worker would do for itself at its start, done before it is forked."""
    from gokamsg.engine import warm_up

    for module in modules:
        import_module(module)
    warm_up()


def run_workers(settings: Settings, specs: Sequence[ChildSpec], nursery: Nursery) -> None:
    """Keeps the workers running until a signal ends them."""
    display = Display(as_json=settings.json)
    supervisor = Supervisor(
        specs,
        on_message=display.status,
        on_event=display.event,
        on_log=display.log,
        # A worker gives a record up before its transaction times out; one that is silent for longer is stuck.
        options=SupervisorOptions(stall_s=max(60.0, 3 * settings.transaction_timeout_ms / 1000)),
        nursery=nursery,
    )
    stop_on_signals(supervisor)
    with served_metrics(settings, display.statuses):
        try:
            supervisor.run()
        finally:
            display.close()
    display.stopped()


def worker_specs(settings: Settings, *, stage: int = 0) -> list[ChildSpec]:
    """One child for each role and worker, in the order in which roles start; all of them in this stage."""
    from gokamsg.messaging.roles import ROLES

    common = {
        "brokers": settings.addresses,
        "properties": load_client_properties(settings.kafka_config),
        "state_dir": str(settings.state_path),
        "guarantee": settings.guarantee,
        "on_error": settings.on_error,
        "start": settings.start,
        "hot_standby": settings.hot_standby,
        "recover_ahead": settings.recover_ahead,
        "transaction_timeout_ms": settings.transaction_timeout_ms,
        "role_options": {
            "keep": settings.keep,
            "detect_messages": settings.detect_messages,
            "detect_share": settings.detect_share,
        },
        "debug": settings.debug,
    }
    specs = []
    for role in ROLES:
        for number in range(1, settings.workers + 1) if role in settings.roles else ():
            argv = [sys.executable, "-m", "gokamsg.commands.worker", role]
            name = role if settings.workers == 1 else f"{role}/{number}"
            greeting = json.dumps({**common, "role": role}).encode() + b"\n"
            specs.append(ChildSpec(name, argv, stage=stage, greeting=greeting))
    return specs


@contextmanager
def served_metrics(settings: Settings, statuses: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """While it lasts, Prometheus finds the workers' metrics on --metrics-host and --metrics-port."""
    if settings.metrics_port is None:
        yield
        return
    from gokamsg.messaging.metrics import WorkerMetrics
    from gokamsg.messaging.server import HttpServer, listen, url_of

    metrics = WorkerMetrics(statuses)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = metrics.answer()
        start_response("200 OK", [("Content-Type", answer.content_type)])
        return [answer.body]

    listener = listen(settings.metrics_host, settings.metrics_port, flags=("--metrics-host", "--metrics-port"))
    console.note(f"metrics: {url_of(listener)}/metrics")
    server = HttpServer(app, listener)
    thread = threading.Thread(target=server.run, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join()


class Display:
    """What is shown of the workers: a bar each while they restore, a line for each change; or JSON lines."""

    def __init__(self, *, as_json: bool) -> None:
        self.statuses: dict[str, dict[str, Any]] = {}
        self._as_json = as_json
        self._said: dict[str, str] = {}
        self._bars = console.Bars()

    def status(self, worker: str, status: dict[str, Any]) -> None:
        before = self.statuses.get(worker, {})
        self.statuses[worker] = status
        if self._as_json:
            # What an idle worker repeats is only that it is there.
            if {**status, "records_per_s": 0} != {**before, "records_per_s": 0}:
                console.data({"worker": worker, **status})
            return
        restoring = status["restoring"]
        if restoring:
            left = restoring["remaining_s"]
            time_left = "" if left is None else f"  {console.duration_text(left)}"
            partitions = f"{restoring['partitions_done']}/{restoring['partitions']} partitions"
            rate = f"{console.count_text(restoring['rows_per_s'])}/s"
            self._bars.update(
                f"{worker}: restoring", restoring["rows_done"], restoring["rows"], f"{partitions}  {rate}{time_left}"
            )
            return
        self._bars.remove(f"{worker}: restoring")
        self._say_state(worker, status)

    def _say_state(self, worker: str, status: dict[str, Any]) -> None:
        if status["notice"] or status["state"] != "running":
            return  # why a worker waits, it logs itself
        text = f"running, {partitions_text(status['partitions'])}, {status['guarantee']}"
        if self._said.get(worker) != text:
            self._said[worker] = text
            self._line(worker, text)

    def event(self, worker: str, text: str) -> None:
        self._bars.remove(f"{worker}: restoring")
        self._said.pop(worker, None)
        self.statuses.pop(worker, None)
        if self._as_json:
            console.data({"worker": worker, "event": text})
        else:
            self._line(worker, text)

    def log(self, worker: str, line: str) -> None:
        self._line(worker, line)

    def _line(self, worker: str, text: str) -> None:
        self._bars.note(console.visible(f"{worker}: {text}"))

    def close(self) -> None:
        self._bars.close()

    def stopped(self) -> None:
        if not self._as_json:
            handled = sum(int(status["records"]) for status in self.statuses.values())
            console.note(f"stopped; {console.count_text(handled)} records handled")


def partitions_text(partitions: list[int]) -> str:
    """'8 partitions (0-7)', '3 partitions (0-1, 5)', '1 partition (4)', 'no partitions'."""
    if not partitions:
        return "no partitions"
    runs: list[list[int]] = []
    for partition in sorted(partitions):
        if runs and partition == runs[-1][-1] + 1:
            runs[-1].append(partition)
        else:
            runs.append([partition])
    ranges = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{len(partitions)} partition{'s' if len(partitions) > 1 else ''} ({ranges})"
