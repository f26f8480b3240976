"""Goka in Python: emitters, processors and views on Kafka, exactly-once.

A general library: it knows Kafka, tables and callbacks, nothing of messages, HTTP or the command line. These names are
its public interface; everything else may change.

    def count(context: Context, line: str) -> None:
        context.set_value((context.value() or 0) + len(line.split()))

    graph = define_group("words", Input("lines", String(), count), Persist(Int64()))
    Processor(ClientConfig("localhost:9092"), graph, ProcessorOptions(state_dir=Path("state"))).run()
"""

from typing import TYPE_CHECKING, Any

from gokamsg.engine.clients import Admin, ClientConfig, ClusterInfo, check_broker, warm_up
from gokamsg.engine.codec import Bytes, Codec, Int64, Json, String
from gokamsg.engine.context import Context
from gokamsg.engine.emitter import Emitter, Promise, RecordPosition
from gokamsg.engine.graph import (
    GroupGraph,
    Input,
    Inputs,
    Join,
    Lookup,
    Loop,
    Output,
    Persist,
    Visitor,
    define_group,
)
from gokamsg.engine.hashing import Hasher, Partitioner, fnv1a32
from gokamsg.engine.memory_storage import MemoryStorage
from gokamsg.engine.names import Group, Stream, Table, loop_of, quarantine_of, table_of
from gokamsg.engine.options import GUARANTEES, NIL_HANDLING, ON_ERROR, STARTS, ProcessorOptions
from gokamsg.engine.processor import Processor
from gokamsg.engine.quarantine.client import QuarantineClient
from gokamsg.engine.quarantine.record import ParkedRecord
from gokamsg.engine.sqlite import SQLiteStorage
from gokamsg.engine.state import ProcessorState, ViewState
from gokamsg.engine.stats import ProcessorStats, ProcessorStatus
from gokamsg.engine.storage import Storage
from gokamsg.engine.table_reader import RestoreProgress
from gokamsg.engine.tail import Tail, TailRecord
from gokamsg.engine.topics import TopicManager
from gokamsg.engine.updates import Rows, UpdateCallback, UpdateContext, default_update
from gokamsg.engine.verifying import LockedSlot, TableCheck, verify_tables
from gokamsg.engine.view import VIEWS, View

if TYPE_CHECKING:
    from gokamsg.engine.tester import QueueTracker, TestedProcessor, Tester

__all__ = [
    "GUARANTEES",
    "NIL_HANDLING",
    "ON_ERROR",
    "STARTS",
    "VIEWS",
    "Admin",
    "Bytes",
    "ClientConfig",
    "ClusterInfo",
    "Codec",
    "Context",
    "Emitter",
    "Group",
    "GroupGraph",
    "Hasher",
    "Input",
    "Inputs",
    "Int64",
    "Join",
    "Json",
    "LockedSlot",
    "Lookup",
    "Loop",
    "MemoryStorage",
    "Output",
    "ParkedRecord",
    "Partitioner",
    "Persist",
    "Processor",
    "ProcessorOptions",
    "ProcessorState",
    "ProcessorStats",
    "ProcessorStatus",
    "Promise",
    "QuarantineClient",
    "QueueTracker",
    "RecordPosition",
    "RestoreProgress",
    "Rows",
    "SQLiteStorage",
    "Storage",
    "Stream",
    "String",
    "Table",
    "TableCheck",
    "Tail",
    "TailRecord",
    "TestedProcessor",
    "Tester",
    "TopicManager",
    "UpdateCallback",
    "UpdateContext",
    "View",
    "ViewState",
    "Visitor",
    "check_broker",
    "default_update",
    "define_group",
    "fnv1a32",
    "loop_of",
    "quarantine_of",
    "table_of",
    "verify_tables",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    """The tester's names: imported by who asks for them, as workers and commands have no use for them."""
    if name in ("QueueTracker", "TestedProcessor", "Tester"):
        from gokamsg.engine import tester

        return getattr(tester, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
