"""A proxy between an engine and its server that cuts, garbles and stalls what the server says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Literal

Fault = Literal["none", "cut", "garble", "stall"]
GARBLED = b"\xff"
"""No byte of UTF-8. What a damaged digit turned into another one would say, nobody could know to be wrong."""


class Proxy:
    """Each connection has a fault of its own, drawn by `faults` and some way into what the server says."""

    def __init__(self, port: int, faults: tuple[Fault, ...], seed: int) -> None:
        self.port = port
        self._faults = faults
        self._draw = Random(seed)
        self.done: Counter[Fault] = Counter()
        """Faults that have happened."""
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """The address below which the server is reached."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there, to_server = await asyncio.open_connection("127.0.0.1", self.port)
            asking = asyncio.create_task(self._pass_on(reader, to_server))
            try:
                await self._answer(there, writer)
            finally:
                asking.cancel()
                to_server.close()
        except OSError:
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

    async def _answer(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault, left = self._draw.choice(self._faults), self._draw.randrange(0, 6000)
        while data := await there.read(65536):
            if fault == "none" or left >= len(data):
                left -= len(data)
                writer.write(data)
            else:
                self.done[fault] += 1
                if fault == "cut":
                    writer.write(data[:left])
                    return
                if fault == "stall":
                    writer.write(data[:left])
                    # Nothing more comes, until who asks has enough of it.
                    await asyncio.Event().wait()
                writer.write(data[:left] + GARBLED + data[left + 1 :])
                fault = "none"
            await writer.drain()
