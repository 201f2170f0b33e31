"""Faults of the device: what it does fails once, at the n-th time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from runtime.backend.interface import Backend
from runtime.device import build, kv_cache
from runtime.device.pages import PagePool
from tests.fuzz.program import Fault


class Injected(BaseException):
    """Mixed into every error that is planted, by which it is known again."""


class InjectedOutOfMemory(torch.OutOfMemoryError, Injected):
    pass


class InjectedRuntimeError(RuntimeError, Injected):
    pass


class InjectedMemoryError(MemoryError, Injected):
    pass


ERRORS = {
    "out of memory": InjectedOutOfMemory,
    "runtime error": InjectedRuntimeError,
    "memory error": InjectedMemoryError,
}
_STEPS = {"prelude": "_prelude", "core": "_iterate", "coda": "_logits"}
"""Steps of a tick that is led from Python. Native ticks are one step: "tick" and "after tick" are before and after."""


class Planted:
    """Counts what is done at the fault's place."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._done = 0

    @property
    def has_fired(self) -> bool:
        return self._done >= self._fault.at

    def pass_by(self) -> None:
        """Once each time; raises at the one that is to fail."""
        self._done += 1
        if self._done == self._fault.at:
            raise ERRORS[self._fault.kind](f"planted at {self._fault.place} {self._fault.at}")

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any) -> Any:
            self.pass_by()
            return function(*arguments)

        return failing

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any) -> Any:
            result = function(*arguments)
            self.pass_by()
            return result

        return failing


@contextmanager
def planted(fault: Fault | None) -> Iterator[Planted | None]:
    """Engines that are opened inside have the fault."""
    if fault is None:
        yield None
        return
    plant, place = Planted(fault), fault.place
    build_backend = build.build_backend

    def build_faulty(*arguments: Any) -> Backend:
        backend: Any = build_backend(*arguments)
        if place == "tick":
            backend.tick = plant.before(backend.tick)
        elif place == "after tick":
            backend.tick = plant.after(backend.tick)
        elif place in _STEPS:
            name = _STEPS[place]
            setattr(backend, name, plant.before(getattr(backend, name)))
        return backend

    class FaultyPool(PagePool):
        def allocate(self) -> int:
            if place == "allocate":
                plant.pass_by()
            return super().allocate()

    with mock.patch.object(build, "build_backend", build_faulty), mock.patch.object(kv_cache, "PagePool", FaultyPool):
        yield plant
