"""Upkeep in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gokamsg.broker.state import Broker


class Cleaner:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def run(self, *, also: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(30)
            also()
