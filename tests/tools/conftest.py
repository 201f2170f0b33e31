"""A scripted device, and an engine on it that has some tools."""

from __future__ import annotations

import anyio
import pytest

from runtime import Engine
from tests.runtime_loop.engines import engine_on
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import counting


async def add(one: int, other: int = 1) -> int:
    """The sum of two numbers."""
    return one + other


async def fail(text: str) -> str:
    """Raises its text."""
    raise RuntimeError(text)


async def never() -> str:
    """Waits for ever."""
    await anyio.sleep_forever()
    raise AssertionError


def with_tools(engine: Engine) -> Engine:
    engine.tools.add(add)
    engine.tools.add(fail)
    engine.tools.add(fail, name="raises", errors="raise")
    engine.tools.add(never)
    engine.tools.add(never, name="late", seconds=0.0)
    return engine


@pytest.fixture
def device() -> ScriptedDevice:
    return ScriptedDevice(counting)


@pytest.fixture
def engine(device: ScriptedDevice) -> Engine:
    return with_tools(engine_on(device, records=True))
