"""kafka-python's package without its clients, for a process that needs kafka.protocol alone.

Python runs kafka/__init__.py before any module below it, and that imports the consumer, the producer and the admin
client: a fifth of the time that the broker needs to start. defer_clients() puts the package in place without running
that file. It runs when somebody asks for one of the package's own names, so `from kafka import KafkaConsumer` works
as ever.

Threads: the main thread, before anything of kafka-python is imported.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any

_NAME = "kafka"


def defer_clients() -> None:
    """Leave the clients unimported until they are asked for; nothing to do when the package is there already."""
    if _NAME in sys.modules:
        return
    spec = PathFinder.find_spec(_NAME)
    if spec is None or spec.loader is None:
        return  # not where packages usually are: imported in the usual way, clients included
    package, loader = module_from_spec(spec), spec.loader

    def complete(name: str) -> Any:
        """The package's __getattr__, until the first name that it does not have."""
        if package.__dict__.pop("__getattr__", None) is not None:
            loader.exec_module(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = complete
    sys.modules[_NAME] = package
