"""Processors, views and emitters in memory, in one thread, without a broker: for tests of what callbacks do.

tester.py is what a test holds, programs.py what it gets from it, queue.py reads what was emitted. Below them the
cluster: session.py (one life of a program), clients.py, broker.py, log.py. Everything between the clients and the
callbacks is the engine's own.
"""

from gokamsg.engine.tester.programs import TestedProcessor
from gokamsg.engine.tester.queue import QueueTracker
from gokamsg.engine.tester.tester import Tester

__all__ = ["QueueTracker", "TestedProcessor", "Tester"]
