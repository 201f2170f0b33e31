"""Commands that make no sense, or that the device fails at, end their thread alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from runtime.device.build import build_loop
from runtime.device.loop import ModelDevice
from runtime.errors import BraidError, PromptError, ThreadStateError
from runtime.link.commands import (
    CloseThread,
    Command,
    Extend,
    Failed,
    Finished,
    Interrupt,
)
from runtime.link.notes import Notes
from runtime.model.transformer import Transformer
from tests.engine.commanding import POLICY, asking, beginning, bystander, ended, opening, prompt_for, said, settings
from tests.engine.solo import Solo


@pytest.mark.parametrize(
    ("commands", "failures", "error", "words"),
    [
        ([asking((0,))], 1, ThreadStateError, "not open"),
        ([Extend((0,), (1, 2))], 1, ThreadStateError, "not open"),
        ([opening((0,), inherits=(7,))], 1, ThreadStateError, "not open"),
        ([opening((0,), inherits=(9,))], 1, ThreadStateError, "generating"),
        ([*beginning((0,), (1, 2)), asking((0,))], 2, ThreadStateError, "cannot generate while it is generating. "),
        (
            [*beginning((0,), (1, 2)), Extend((0,), (3,))],
            1,
            ThreadStateError,
            "cannot append while it is generating. ",
        ),
        ([*beginning((0,), (1, 2)), opening((0,))], 1, ThreadStateError, "open already"),
        ([opening((0,)), asking((0,))], 1, ThreadStateError, "has an empty context. Append a prompt"),
        ([opening((0,)), Extend((0,), (1,) * 10**5)], 1, PromptError, "would have 100000 tokens; the model's context"),
        (
            [opening((0,)), Extend((0,), (1, 40))],
            1,
            PromptError,
            "received 40: not a token id, of which there are",
        ),
        ([opening((0,)), Extend((0,), (1, -1))], 1, PromptError, "-1"),
        ([opening((0,)), Extend((0,), (1, 2**31))], 1, PromptError, str(2**31)),
    ],
)
def test_a_bad_command_fails_its_thread_alone(
    model: Transformer, commands: list[Command], failures: int, error: type[Exception], words: str
) -> None:
    solo, expected = bystander(model)
    for command in commands:
        solo.send(command)
    reports = ended(solo)
    assert [type(report) for report in reports[0,]] == [Failed] * failures
    for report in reports[0,]:
        assert isinstance(report, Failed)
        assert isinstance(report.error, error)
        assert words in str(report.error)
    (other,) = reports[9,]
    assert isinstance(other, Finished)
    assert other.tokens == expected
    solo.send(CloseThread((0,)), CloseThread((9,)))
    assert solo.core.statistics().pages_used == 0


def test_commands_for_threads_that_are_gone_are_harmless(model: Transformer) -> None:
    solo, expected = bystander(model)
    solo.send(Interrupt((0,)), CloseThread((0,)))
    assert said(solo, (9,)).tokens == expected


def test_interrupting_a_fork_that_never_generated_leaves_its_context(model: Transformer) -> None:
    solo = Solo.over(model, settings(), POLICY)
    solo.send(*beginning((0,), prompt_for(0), 6))
    said(solo)
    solo.send(opening((0, 0), inherits=(0,)), Interrupt((0, 0)), asking((0, 0), 3))
    alone = Solo.over(model, settings(), POLICY)
    alone.send(*beginning((0,), prompt_for(0), 9))
    assert said(solo, (0, 0)).tokens == said(alone).tokens[6:]


@pytest.mark.parametrize("where", ["open", "extend", "generate", "interrupt", "close"])
def test_a_command_that_fails_unforeseen_ends_its_thread_alone(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    solo, expected = bystander(model)
    threads = solo.core.threads
    original: Any = getattr(threads, where)

    def fails(command: Any) -> None:
        if command.thread == (0,):
            raise LookupError("no such thing")
        original(command)

    monkeypatch.setattr(threads, where, fails)
    solo.send(*beginning((0,), prompt_for(0), 3), Interrupt((0,)), CloseThread((0,)))
    reports = ended(solo)
    failures = [report for report in reports[0,] if isinstance(report, Failed)]
    assert any("LookupError: no such thing." in str(failure.error) for failure in failures)
    assert all(isinstance(failure.error, BraidError) for failure in failures)
    (other,) = reports[9,]
    assert isinstance(other, Finished)
    assert other.tokens == expected


def test_what_happens_while_idle_is_recorded_and_seen(model: Transformer) -> None:
    """Threads close when there is nothing left to do: load and trace must not wait for the next tick."""

    class Lines:
        def __init__(self) -> None:
            self.kinds: list[str] = []

        def now(self) -> float:
            return 0.0

        def take(self, notes: Notes) -> None:
            self.kinds += [type(event).__name__ for event in notes.events]
            if self.kinds[-1] == "ThreadClosed":
                closed.set()

        def afterwards(self, action: Callable[[], None], *, is_urgent: bool) -> None:
            action()

        @property
        def failure(self) -> None:
            return None

        def close(self) -> None:
            self.kinds.append("end")

        def abandon(self) -> None:
            self.kinds.append("loss")

    closed, lines = threading.Event(), Lines()
    device = ModelDevice(lambda: build_loop(model, settings(), POLICY, lines))
    device.start(lambda reports: None)
    device.send(opening((0,)))
    device.send(CloseThread((0,)))
    try:
        assert closed.wait(20)
    finally:
        device.stop()
    assert lines.kinds == ["ThreadOpened", "ThreadClosed", "end"]
