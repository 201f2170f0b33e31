"""A scripted device, and an engine on it that notes its events."""

from __future__ import annotations

import pytest

from runtime import Engine
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import counting

from .engines import engine_on


@pytest.fixture
def device() -> ScriptedDevice:
    return ScriptedDevice(counting)


@pytest.fixture
def engine(device: ScriptedDevice) -> Engine:
    return engine_on(device, records=True)
