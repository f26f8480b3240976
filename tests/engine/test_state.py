"""Lifecycle states: waited for and observed from other threads."""

import threading

import pytest

from gokamsg.engine.state import ProcessorState, Signal


@pytest.mark.goka("processor.states")
def test_a_waiter_is_woken_by_the_state_it_waits_for() -> None:
    signal = Signal(ProcessorState.IDLE)
    woken = threading.Event()
    waiter = threading.Thread(target=lambda: signal.wait_for(ProcessorState.RUNNING, 10) and woken.set())
    waiter.start()
    signal.set(ProcessorState.STARTING)
    assert not signal.wait_for(ProcessorState.RUNNING, 0.01)
    signal.set(ProcessorState.RUNNING)
    waiter.join(10)
    assert woken.is_set()


def test_waiting_for_at_least_a_state_is_satisfied_by_a_later_one() -> None:
    signal = Signal(ProcessorState.STOPPED)
    assert signal.wait_for_min(ProcessorState.RUNNING, 0)
    assert not signal.wait_for(ProcessorState.RUNNING, 0)


@pytest.mark.goka("processor.states")
def test_an_observer_sees_the_present_state_and_every_change_until_it_ends() -> None:
    signal = Signal(ProcessorState.IDLE)
    seen: list[ProcessorState] = []
    stop = signal.observe(seen.append)
    signal.set(ProcessorState.STARTING)
    signal.set(ProcessorState.STARTING)
    signal.set(ProcessorState.SETUP)
    stop()
    stop()
    signal.set(ProcessorState.RUNNING)
    assert seen == [ProcessorState.IDLE, ProcessorState.STARTING, ProcessorState.SETUP]
