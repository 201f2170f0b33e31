"""Which events of a trace give a program reports."""

from __future__ import annotations

from typing import NamedTuple

from runtime.link import Sampled, ThreadPath
from traces.tree import ThreadRecord


class Step(NamedTuple):
    """A recorded event that may give a report."""

    thread: ThreadPath
    call: int
    """Which generate of the thread; NO_CALL for a failure between generates, TOOL for the result of a tool."""
    sample: Sampled | None
    """The token; None for the end of the generate, the failure, or the result."""


NO_CALL = -1
TOOL = -2


def steps_of(records: list[ThreadRecord], events: int) -> dict[int, Step]:
    """What may give a report, by index of its event; generates and tools without a recorded end follow all events."""
    steps: dict[int, Step] = {}
    endless: list[tuple[int, Step]] = []
    for record in records:
        for number, call in enumerate(record.calls):
            # What a lane had sampled beyond a limit was told to nobody.
            told = call.samples if call.reason in ("interrupted", None) else call.kept
            for index, sample in zip(call.sample_indices, told, strict=False):
                steps[index] = Step(record.path, number, sample)
            if call.end_index is None:
                endless.append((call.index, Step(record.path, number, None)))
            else:
                steps[call.end_index] = Step(record.path, number, None)
        if record.tool is not None and record.outcome != "cancelled":
            # One that was cancelled told nobody anything.
            step = Step(record.path, TOOL, None)
            if record.end_index is None:
                endless.append((events, step))
            else:
                steps[record.end_index] = step
        if record.failure_index is not None:
            steps.setdefault(record.failure_index, Step(record.path, NO_CALL, None))
    steps.update({events + number: step for number, (_, step) in enumerate(sorted(endless))})
    return steps
