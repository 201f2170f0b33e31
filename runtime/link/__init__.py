"""What crosses between event loop and device thread: commands one way, reports the other, and the events of traces.

The contract of whoever implements a device, watches tokens, or reads what happened. Names are loaded when they are
first used, because commands carry policies and weights.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.link.commands import (
        Answered,
        CloseThread,
        Command,
        Deliver,
        Device,
        DeviceFailed,
        Emitted,
        Extend,
        Failed,
        Finished,
        FinishReason,
        FlushRecording,
        ForeseeingWatcher,
        Foresight,
        Generate,
        Interrupt,
        LoadWeights,
        OnTraceError,
        OpenThread,
        Record,
        Report,
        Request,
        Signal,
        Signalled,
        StartRecording,
        Statistics,
        StopRecording,
        Watcher,
    )
    from runtime.link.event_values import check_plain, check_recordable
    from runtime.link.events import (
        FORMAT,
        LARGEST_RECORD,
        AnyEvent,
        Computed,
        Event,
        Evicted,
        GenerateFinished,
        GenerateStarted,
        Header,
        Joined,
        Received,
        RunStarted,
        Sampled,
        Spawned,
        ThreadClosed,
        ThreadEnded,
        ThreadFailed,
        ThreadOpened,
        ThreadPath,
        TickDone,
        Trace,
        encodable,
    )
    from runtime.link.work import Work

_HOMES = {
    "commands": (
        "Answered",
        "CloseThread",
        "Command",
        "Deliver",
        "Device",
        "DeviceFailed",
        "Emitted",
        "Extend",
        "Failed",
        "Finished",
        "FinishReason",
        "FlushRecording",
        "ForeseeingWatcher",
        "Foresight",
        "Generate",
        "Interrupt",
        "LoadWeights",
        "OnTraceError",
        "OpenThread",
        "Record",
        "Report",
        "Request",
        "Signal",
        "Signalled",
        "StartRecording",
        "Statistics",
        "StopRecording",
        "Watcher",
    ),
    "event_values": ("check_plain", "check_recordable"),
    "events": (
        "FORMAT",
        "LARGEST_RECORD",
        "AnyEvent",
        "Computed",
        "Event",
        "Evicted",
        "GenerateFinished",
        "GenerateStarted",
        "Header",
        "Joined",
        "Received",
        "RunStarted",
        "Sampled",
        "Spawned",
        "ThreadClosed",
        "ThreadEnded",
        "ThreadFailed",
        "ThreadOpened",
        "ThreadPath",
        "TickDone",
        "Trace",
        "encodable",
    ),
    "work": ("Work",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "FORMAT",
    "LARGEST_RECORD",
    "Answered",
    "AnyEvent",
    "CloseThread",
    "Command",
    "Computed",
    "Deliver",
    "Device",
    "DeviceFailed",
    "Emitted",
    "Event",
    "Evicted",
    "Extend",
    "Failed",
    "FinishReason",
    "Finished",
    "FlushRecording",
    "ForeseeingWatcher",
    "Foresight",
    "Generate",
    "GenerateFinished",
    "GenerateStarted",
    "Header",
    "Interrupt",
    "Joined",
    "LoadWeights",
    "OnTraceError",
    "OpenThread",
    "Received",
    "Record",
    "Report",
    "Request",
    "RunStarted",
    "Sampled",
    "Signal",
    "Signalled",
    "Spawned",
    "StartRecording",
    "Statistics",
    "StopRecording",
    "ThreadClosed",
    "ThreadEnded",
    "ThreadFailed",
    "ThreadOpened",
    "ThreadPath",
    "TickDone",
    "Trace",
    "Watcher",
    "Work",
    "check_plain",
    "check_recordable",
    "encodable",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'runtime.link' has no attribute {name!r}")
    value: object = getattr(import_module(f"runtime.link.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
