"""Playing a trace back gives a program what it got, and tells a program that differs what differs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from queue import SimpleQueue
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Fixed
from runtime.errors import PolicyError, TraceError
from runtime.link.commands import (
    Answered,
    CloseThread,
    Command,
    DeviceFailed,
    Extend,
    Failed,
    Finished,
    Generate,
    Interrupt,
    OpenThread,
    Record,
    Report,
    Signal,
)
from runtime.link.events import ThreadFailed
from runtime.link.sampling import Sampling
from tests.traces.strategies import operations
from tests.traces.toy_device import DEPTH, Log, ToyCore, again, header, run_program, through_builtins
from traces import Playback, Trace, totals_of
from traces.order import RecordedOrder

ROOT = (0,)
GREEDY = Sampling()


def recorded(core: ToyCore) -> Trace:
    return Trace(header=header(), events=through_builtins(core.events), lost=None)


def as_text(reports: Sequence[Command | Report]) -> list[str]:
    """Comparable, NaN and errors included."""
    return [repr(report) for report in reports]


def play(order: RecordedOrder, now: float = 0.0) -> list[Report]:
    """All reports due."""
    reports: list[Report] = []
    while order.play(reports, now) <= 0:
        pass
    return reports


def fails(path: tuple[int, ...], position: int) -> bool:
    return (sum(path) * 7 + position) % 17 == 16


@given(operations)
@settings(max_examples=300)
def test_the_same_commands_get_the_same_reports(drawn: list[tuple[int, int]]) -> None:
    core = ToyCore(fails=fails)
    log = run_program(core, drawn)
    order = RecordedOrder(recorded(core), patience=1.0)
    expected = [entry for entry in log if not isinstance(entry, Command)]
    got: list[Report] = []
    due = 0
    for entry in log:
        if isinstance(entry, Command):
            order.handle(again(entry), got, now=0.0)
            got += play(order)
        else:
            # Nothing is held back that the program saw before its next command.
            due += 1
            assert len(got) >= due
    assert as_text(got) == as_text(expected)
    usage = totals_of(core.events)
    load = order.statistics
    assert (load.generated, load.computed, load.iterations) == (usage.generated, usage.computed, usage.iterations)
    assert load.ticks == usage.ticks


def may_be_sent(log: Log) -> list[list[int]]:
    """For each entry of a log, the entries a program has to see or send before it sends this one.

    Those are the thread's own, and where it forks its parent's and its child's; except that nobody waits for the end
    of a generate after interrupting it.
    """
    before: list[list[int]] = []
    own: dict[tuple[int, ...], list[int]] = {}
    for at, entry in enumerate(log):
        assert not isinstance(entry, Record | Answered | DeviceFailed)
        path = entry.thread
        if isinstance(entry, OpenThread) and entry.inherits is not None:
            own[path] = list(own[entry.inherits])
            own[entry.inherits].append(at)
        before.append(list(own.setdefault(path, [])))
        if not (isinstance(entry, Finished) and entry.reason == "interrupted"):
            own[path].append(at)
    return before


@given(operations, st.randoms(use_true_random=False))
def test_reports_wait_for_commands_that_come_late(drawn: list[tuple[int, int]], random: Random) -> None:
    """Threads send in any order, and as early as they can: the order of the reports stays."""
    core = ToyCore()
    log = run_program(core, drawn)
    before = may_be_sent(log)
    order = RecordedOrder(recorded(core), patience=math.inf)
    commands = {at: entry for at, entry in enumerate(log) if isinstance(entry, Command)}
    expected = [at for at in range(len(log)) if at not in commands]
    got: list[Report] = []
    done: set[int] = set()
    while True:
        done |= set(expected[: len(got)])
        ready = [at for at, needed in enumerate(before) if at not in done and at in commands and done >= {*needed}]
        if not ready:
            break
        at = random.choice(ready)
        order.handle(again(commands[at]), got, now=0.0)
        got += play(order)
        done.add(at)
    assert as_text(got) == as_text([log[at] for at in expected])


@given(operations)
@settings(max_examples=10)
def test_a_device_thread_delivers_them(drawn: list[tuple[int, int]]) -> None:
    core = ToyCore(fails=fails)
    log = run_program(core, drawn)
    device = Playback(recorded(core))
    delivered: SimpleQueue[list[Report]] = SimpleQueue()
    device.start(lambda reports: delivered.put(reports))
    waiting: list[Report] = []
    for entry in log:
        if isinstance(entry, Command):
            device.send(again(entry))
            continue
        if not waiting:
            waiting = delivered.get(timeout=20)
        assert repr(waiting.pop(0)) == repr(entry)
    device.stop()
    assert device.statistics.generated == totals_of(core.events).generated
    assert delivered.empty()
    device.send(CloseThread(ROOT))


# ---- programs that differ -------------------------------------------------------------------------------------------


def simple_log(core: ToyCore, *commands: Command, ticks: int = 100) -> Log:
    log: Log = []
    for command in commands:
        log.append(command)
        core.handle(command)
        log.extend(core.reports)
        core.reports = []
    while core.has_work and ticks:
        ticks -= 1
        core.tick()
    return [*log, *core.reports]


def opening(path: tuple[int, ...] = ROOT, tokens: tuple[int, ...] = (1, 2, 3)) -> list[Command]:
    return [OpenThread(thread=path, seed=7, depth=DEPTH), Extend(path, tokens)]


def generating(path: tuple[int, ...] = ROOT, max_tokens: int = 6) -> Generate:
    return Generate(thread=path, max_tokens=max_tokens, sampling=GREEDY)


def replay(trace: Trace, *commands: Command, now: float = 0.0) -> list[Report]:
    order = RecordedOrder(trace, patience=1.0)
    reports: list[Report] = []
    for command in commands:
        order.handle(command, reports, now)
        reports += play(order, now)
    return reports


class StopsAt:
    def __init__(self, count: int) -> None:
        self.left = count

    def feed(self, token: int) -> tuple[Signal, ...]:
        self.left -= 1
        return () if self.left else (Signal(kind="end", stops=True),)


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ([*opening((4,))], "Thread 4 differs from the recording: it is not among the 1 threads there"),
        ([OpenThread(thread=ROOT, seed=8, depth=DEPTH)], "seed is 8, and was 7"),
        ([OpenThread(thread=ROOT, seed=7, depth=Fixed(9))], "depth policy is .*9.*, and was .*4"),
        ([OpenThread(thread=ROOT, seed=7, depth=DEPTH, inherits=(9,))], r"inherits from thread is \(9,\)"),
        ([*opening(), OpenThread(thread=ROOT, seed=7, depth=DEPTH)], "the program opens it once more"),
        ([*opening(tokens=(1, 9))], "appends token 9 at position 1 where the recording has 2"),
        ([*opening(tokens=(1, 2, 3, 4))], "appends 4 tokens at position 0 and the recording has only 3"),
        ([*opening(tokens=(1, 2)), generating()], "the recording has 1 more received tokens before generate 1"),
        ([*opening(), generating(max_tokens=7)], "asks for at most 7 tokens; recorded were 6 of at most 6"),
        ([*opening(), generating(max_tokens=5)], "asks for at most 5 tokens; recorded were 6 of at most 6"),
        ([*opening(), generating(), generating()], "starts generate 2, and only 1 were recorded"),
        (
            [*opening(), msgspec.structs.replace(generating(), sampling=Sampling(temperature=1.0))],
            "sampling is .*1.0.*, and was",
        ),
        (
            [*opening(), msgspec.structs.replace(generating(), depth=Fixed(9))],
            "depth policy is .*9.*, and was",
        ),
        (
            [*opening(), msgspec.structs.replace(generating(), watcher=StopsAt(2))],
            "generate 1 stops after 2 tokens; the recorded one has 6 and ended with 'length'",
        ),
        (
            [*opening(), msgspec.structs.replace(generating(), watcher=StopsAt(6))],
            "generate 1 stops after 6 tokens; the recorded one has 6 and ended with 'length'",
        ),
        ([generating()], "the program uses it without opening it"),
    ],
)
def test_a_command_that_was_not_recorded_fails_its_thread(commands: list[Command], message: str) -> None:
    core = ToyCore()
    simple_log(core, *opening(), generating())
    # Whoever generates on it later is told again, and the recording is not played any further for it.
    begins, *_ = commands
    assert not isinstance(begins, Record)
    reports = replay(recorded(core), *commands, generating(begins.thread))
    first, second = [report for report in reports if isinstance(report, Failed)]
    assert second.error is first.error
    with pytest.raises(TraceError, match=message):
        raise first.error


def test_a_recorded_stop_that_the_program_does_not_have() -> None:
    core = ToyCore()
    simple_log(core, *opening(), msgspec.structs.replace(generating(), watcher=StopsAt(3)))
    (report,) = replay(recorded(core), *opening(), generating())
    assert isinstance(report, Failed)
    assert "generate 1 stopped after 3 tokens; the program's goes on" in str(report.error)


def test_more_log_probabilities_are_no_difference() -> None:
    core = ToyCore()
    log = simple_log(core, *opening(), generating())
    more = msgspec.structs.replace(generating(), sampling=Sampling(logprobs=5))
    assert as_text(replay(recorded(core), *opening(), more)) == as_text(log[-1:])


def test_a_recorded_failure_comes_back_as_its_class() -> None:
    core = ToyCore(fails=lambda path, position: position == 5)
    simple_log(core, *opening(), generating())
    (report,) = replay(recorded(core), *opening(), generating())
    assert isinstance(report, Failed)
    assert isinstance(report.error, PolicyError)
    assert str(report.error) == "toy failure at 5."


def test_a_recorded_failure_between_generates() -> None:
    """As when a message does not fit the context: it was refused and not recorded as received."""
    core = ToyCore()
    simple_log(core, *opening(), generating())
    core.record(ThreadFailed, thread=ROOT, error="PromptError: too long")
    reports = replay(recorded(core), *opening(), generating())
    assert isinstance(reports[-1], Finished)
    reports = replay(recorded(core), *opening(), generating(), Extend(ROOT, (5,) * 100))
    finished, failed = reports
    assert isinstance(finished, Finished)
    assert isinstance(failed, Failed)
    assert "too long" in str(failed.error)


def test_a_generate_without_recorded_end_says_why_it_ends() -> None:
    core = ToyCore()
    simple_log(core, *opening(), generating(), ticks=4)
    trace = Trace(header=header(), events=through_builtins(core.events), lost="truncated at byte 99")
    (report,) = replay(trace, *opening(), generating())
    assert isinstance(report, Failed)
    assert "ends within generate 1, after 4 tokens (truncated at byte 99)" in str(report.error)


# ---- interrupts and order -------------------------------------------------------------------------------------------


def interrupted_trace() -> tuple[Trace, Log]:
    core = ToyCore()
    for command in (*opening(), generating(max_tokens=50)):
        core.handle(command)
    for _ in range(5):
        core.tick()
    core.handle(Interrupt(ROOT, keep=2))
    return recorded(core), [*core.reports]


def test_an_interrupted_generate_stays_open_until_the_interrupt() -> None:
    trace, log = interrupted_trace()
    commands = [*opening(), generating(max_tokens=50)]
    assert replay(trace, *commands) == []
    assert as_text(replay(trace, *commands, Interrupt(ROOT, keep=2))) == as_text(log)
    (other,) = replay(trace, *commands, Interrupt(ROOT, keep=4))
    assert isinstance(other, Finished)
    assert (len(other.tokens), other.work.generated, other.reason) == (4, 5, "interrupted")
    (closed,) = replay(trace, *commands, CloseThread(ROOT))
    assert isinstance(closed, Finished)
    assert (len(closed.tokens), closed.reason) == (5, "interrupted")


def test_an_interrupt_that_never_comes_ends_after_the_recorded_time_and_patience() -> None:
    trace, _ = interrupted_trace()
    order = RecordedOrder(trace, patience=1.0)
    reports: list[Report] = []
    for command in (*opening(), generating(max_tokens=50)):
        order.handle(command, reports, now=0.0)
    end = trace.events[-1].time
    assert 0 < order.play(reports, 0.5) <= 1.0 + end
    assert reports == []
    while order.play(reports, 1.01 + end) <= 0:
        pass
    (report,) = reports
    assert isinstance(report, Failed)
    assert "was interrupted after 5 tokens; the program did not interrupt it" in str(report.error)


def test_others_overtake_a_missing_thread_only_when_patience_ends() -> None:
    core = ToyCore()
    missing, present = (0,), (1,)
    log = simple_log(
        core,
        *opening(missing),
        *opening(present, (4, 5)),
        generating(missing, max_tokens=3),
        generating(present, max_tokens=6),
    )
    first, second = log[-2:]
    order = RecordedOrder(recorded(core), patience=1.0)
    reports: list[Report] = []
    for command in (*opening(missing), *opening(present, (4, 5)), generating(present, max_tokens=6)):
        order.handle(command, reports, now=0.0)
    wait = order.play(reports, 0.0)
    assert wait > 0
    assert reports == []
    while order.play(reports, wait) <= 0:
        pass
    assert as_text(reports) == as_text([second])
    order.handle(generating(missing, max_tokens=3), reports, now=5.0)
    while order.play(reports, 5.0) <= 0:
        pass
    assert as_text(reports) == as_text([second, first])


def test_a_program_that_leaves_waits_for_nobody() -> None:
    core = ToyCore()
    simple_log(core, *opening((0,)), *opening((1,), (4,)), generating((0,), 3), generating((1,), 6))
    commands = [*opening((0,)), *opening((1,), (4,)), generating((1,), 6), CloseThread((1,))]
    assert replay(recorded(core), *commands) == []
    (report,) = replay(recorded(core), *commands, CloseThread((0,)))
    assert isinstance(report, Finished)
    assert report.thread == (1,)


def test_a_cut_after_the_end_and_a_fork_of_what_is_left() -> None:
    core = ToyCore()
    child = (0, 0)
    commands: list[Command] = [
        *opening(),
        generating(),
        Interrupt(ROOT, keep=2),
        OpenThread(thread=child, seed=7, depth=DEPTH, inherits=ROOT),
        generating(child),
        Extend(ROOT, (9,)),
    ]
    log: Log = []
    for command in commands:
        while core.has_work:
            core.tick()
        core.handle(command)
    while core.has_work:
        core.tick()
    log = [*core.reports]
    assert as_text(replay(recorded(core), *commands)) == as_text(log)
    uncut = [command for command in commands if not isinstance(command, Interrupt)]
    failures = [report for report in replay(recorded(core), *uncut) if isinstance(report, Failed)]
    assert [report.thread for report in failures] == [child, child, ROOT]
    assert "number of inherited tokens is 9, and was 5" in str(failures[0].error)
    assert "context length before the message is 9, and was 5" in str(failures[2].error)
