"""A virtual device decides what a real one decides, call by call, where it says what that said and takes as long."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from policies import ByLoad, Cosine, DepthPolicy, Fixed, LatentDiff, Speculative
from runtime import CallWork, EngineSettings, HostWork, ModelSizes, Said, VirtualDevice
from runtime.device.build import build_loop
from runtime.device.loop import DeviceLoop
from runtime.link import (
    CloseThread,
    Command,
    Extend,
    Failed,
    Finished,
    Generate,
    Interrupt,
    OpenThread,
    Statistics,
    ThreadPath,
)
from runtime.link.sampling import Sampling
from runtime.model import shipped_directory
from runtime.model.checkpoint import load_checkpoint

PULSE = 2.0**-13
"""Seconds of every call, exact in sums."""
PROMPTS = [tuple(7 + (number * 13 + at * at) % 190 for at in range(3 + 11 * (number % 4))) for number in range(12)]
SAID = (5, 40, 17, 1, 64, 23)


class Clock:
    """Goes on by so much whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += PULSE
        return self.now


class Pulse:
    """Costs of a device whose calls all take the same, and whose own work nothing."""

    def call_seconds(self, work: CallWork) -> float:
        return PULSE

    def host_seconds(self, work: HostWork) -> float:
        return 0.0


class Moment(NamedTuple):
    """Where a device stood after a call."""

    ticks: int
    iterations: int
    in_flight: int
    waiting: int
    pages: int
    finished: tuple[ThreadPath, ...]

    @classmethod
    def of(cls, found: Statistics, finished: list[ThreadPath]) -> Moment:
        return cls(found.ticks, found.iterations, found.in_flight, found.waiting, found.pages_used, tuple(finished))


def commands_for(number: int, depth: DepthPolicy) -> list[Command]:
    path = (number,)
    return [
        OpenThread(thread=path, seed=3, depth=depth, priority=number % 2),
        Extend(path, PROMPTS[number]),
        Generate(thread=path, max_tokens=SAID[number % len(SAID)], sampling=Sampling()),
    ]


def real_moments(loop: DeviceLoop, depth: DepthPolicy) -> tuple[list[Moment], dict[ThreadPath, Said]]:
    """A few threads more after every call, each closed when it has ended; and what all said."""
    moments, said = [], {}
    number = 0
    while number < len(PROMPTS) or loop.has_work:
        for each in range(number, min(number + 3, len(PROMPTS))):
            for command in commands_for(each, depth):
                loop.handle(command)
        number += 3
        loop.step()
        ended = []
        for report in loop.journal.take_reports():
            assert isinstance(report, Finished), report
            ended.append(report.thread)
            depths = loop.threads[report.thread].depths
            received = tuple((at + 1, deep) for at, deep in enumerate(depths[: len(PROMPTS[report.thread[0]])]))
            tokens, deep = np.array(report.tokens, np.int32), np.array(report.depths, np.int32)
            said[report.thread] = Said(tokens, deep, received)
            loop.handle(CloseThread(report.thread))
        moments.append(Moment.of(loop.statistics(), ended))
    return moments, said


def virtual_moments(device: VirtualDevice, depth: DepthPolicy, said: dict[ThreadPath, Said]) -> list[Moment]:
    moments = []
    number = 0
    while number < len(PROMPTS) or device.has_work:
        for each in range(number, min(number + 3, len(PROMPTS))):
            for command in commands_for(each, depth):
                device.handle(command, said[each,] if isinstance(command, Generate) else None)
        number += 3
        device.step()
        ended = []
        for report in device.take_reports():
            assert isinstance(report, Finished), report
            assert report.tokens == tuple(said[report.thread].tokens.tolist())
            assert report.depths == tuple(said[report.thread].depths.tolist())
            ended.append(report.thread)
            device.handle(CloseThread(report.thread))
        moments.append(Moment.of(device.statistics, ended))
    return moments


@pytest.mark.parametrize(
    ("depth", "changes"),
    [
        (LatentDiff(0.1), {}),
        (LatentDiff(0.1), {"num_pages": 14, "page_size": 8}),
        (LatentDiff(0.2), {"max_in_flight": 5, "prefill_chunk": 4}),
        (Cosine(0.01), {"iteration_slots": 2, "num_pages": 20}),
        (Fixed(3), {"reuse_prefixes": False}),
        (Fixed(4), {"num_pages": 13, "page_size": 8, "max_in_flight": 24, "prefill_chunk": 24}),
        (ByLoad(criterion=Fixed(6), least=2, calm=0.2, busy=0.9), {"max_in_flight": 12, "prefill_chunk": 12}),
    ],
)
def test_it_decides_what_a_real_one_decides(depth: DepthPolicy, changes: dict[str, int]) -> None:
    plain = EngineSettings(max_in_flight=32, prefill_chunk=16, num_pages=200)
    settings = msgspec.structs.replace(plain, **changes)
    model = load_checkpoint(shipped_directory() / "countdown").model
    loop = build_loop(model, settings, depth)
    loop._clock = Clock()
    moments, said = real_moments(loop, depth)
    evictions, preemptions = loop.journal.evictions, loop.journal.preemptions
    loop.close()
    device = VirtualDevice(ModelSizes.of("countdown"), settings, depth, Pulse())
    assert virtual_moments(device, depth, said) == moments
    assert (device.evictions, device.preemptions) == (evictions, preemptions)
    assert device.now == PULSE * len(moments)
    if changes.get("num_pages", 200) < 16:
        assert evictions


def test_time_passes_by_its_costs_alone() -> None:
    class Costs(Pulse):
        def host_seconds(self, work: HostWork) -> float:
            return 0.25 * work.commands

    device = VirtualDevice(ModelSizes.of("countdown"), EngineSettings(num_pages=8), Fixed(2), Costs())
    device.wait_until(2.0)
    device.wait_until(1.0)
    assert device.now == 2.0
    for command in commands_for(0, Fixed(2)):
        device.handle(command, Said(np.array([9, 8, 7, 6, 5], np.int32), np.full(5, 2, np.int32)))
    device.step()
    assert device.now == 2.0 + PULSE + 0.75


def test_a_generate_that_is_interrupted_keeps_what_it_said() -> None:
    said = Said(np.arange(10, 30, dtype=np.int32), np.full(20, 2, np.int32))
    device = VirtualDevice(ModelSizes.of("countdown"), EngineSettings(num_pages=8), Fixed(2), Pulse())
    device.handle(OpenThread(thread=(0,), seed=0, depth=Fixed(2)))
    device.handle(Extend((0,), (1, 2, 3)))
    ask = Generate(thread=(0,), max_tokens=20, sampling=Sampling())
    device.handle(ask, said)
    for _ in range(2):
        device.step()
    device.handle(Interrupt((0,), 1))
    (report,) = device.take_reports()
    assert isinstance(report, Finished)
    assert report.tokens == (10,)
    device.handle(ask, said)
    while device.has_work:
        device.step()
    (report,) = device.take_reports()
    assert isinstance(report, Finished)
    assert report.tokens == tuple(range(10, 30))
    device.handle(CloseThread((0,)))
    assert device.pages_used == 0


def test_drafts_are_refused() -> None:
    policy = Speculative(2)
    device = VirtualDevice(ModelSizes.of("countdown"), EngineSettings(num_pages=8), policy, Pulse())
    device.handle(OpenThread(thread=(0,), seed=0, depth=policy))
    device.handle(Extend((0,), (1, 2, 3)))
    device.handle(
        Generate(thread=(0,), max_tokens=1, sampling=Sampling()), Said(np.ones(1, np.int32), np.ones(1, np.int32))
    )
    (report,) = device.take_reports()
    assert isinstance(report, Failed)
    assert "cannot be simulated" in str(report.error)
