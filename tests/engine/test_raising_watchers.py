"""Watchers that raise, misplace their signals or cannot foresee end their thread alone."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.device.build import build_loop
from runtime.errors import BraidError, ProtocolError
from runtime.link.commands import (
    Failed,
    Finished,
    Foresight,
    Signal,
)
from runtime.model.transformer import Transformer
from tests.engine.commanding import POLICY, beginning, bystander, ended, prompt_for, settings


class Raises:
    """A watcher that raises at its second token."""

    def __init__(self) -> None:
        self.fed = 0

    def feed(self, token: int) -> tuple[Signal, ...]:
        self.fed += 1
        if self.fed == 2:
            raise LookupError("no such word")
        return ()


class Leaves:
    """A watcher that raises what would end the program on its main thread."""

    def feed(self, token: int) -> tuple[Signal, ...]:
        raise SystemExit(3)


class Misplaces:
    """A watcher whose signal begins after the last token."""

    def feed(self, token: int) -> tuple[Signal, ...]:
        return (Signal("spawn", start=5),)


@pytest.mark.parametrize("watcher", [Raises, Leaves, Misplaces])
def test_a_watcher_that_raises_ends_its_thread_alone(model: Transformer, watcher: type[Any]) -> None:
    solo, expected = bystander(model)
    solo.send(*beginning((0,), prompt_for(0), 9, watcher=watcher(), entropies=True))
    reports = ended(solo)
    (failure,) = reports[0,]
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, ProtocolError)
    assert watcher.__name__ in str(failure.error)
    assert failure.error.__cause__ is not None
    assert failure.work.generated == (2 if watcher is Raises else 1)
    (other,) = reports[9,]
    assert isinstance(other, Finished)
    assert other.tokens == expected


class Unforeseen:
    """A watcher that raises where it is asked how far its thread may go by itself."""

    def foresee(self) -> Foresight | None:
        raise LookupError("no such future")

    def feed(self, token: int) -> tuple[Signal, ...]:
        return ()


def test_a_watcher_that_cannot_foresee_ends_its_thread_alone(model: Transformer) -> None:
    core = build_loop(model, settings(), POLICY)
    for command in (*beginning((0,), prompt_for(0), 9, watcher=Unforeseen()), *beginning((9,), prompt_for(9), 6)):
        core.handle(command)
    while core.has_work:
        core.step()
        core.check_integrity()
    failure, other = core.journal.take_reports()
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, BraidError)
    assert "LookupError: no such future." in str(failure.error)
    assert isinstance(other, Finished)
    assert other.tokens == bystander(model)[1]
    core.close()
