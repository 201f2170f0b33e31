"""What crosses between event loop and device thread: commands one way, reports the other, and the events of traces.

The contract of whoever implements a device, watches tokens, or reads what happened. Names are loaded when they are
first used, because commands carry policies and weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from runtime.link.blocks import Block as Block
    from runtime.link.blocks import TickClock as TickClock
    from runtime.link.blocks import events_of as events_of
    from runtime.link.commands import Answered as Answered
    from runtime.link.commands import CloseThread as CloseThread
    from runtime.link.commands import Command as Command
    from runtime.link.commands import Deliver as Deliver
    from runtime.link.commands import Device as Device
    from runtime.link.commands import DeviceFailed as DeviceFailed
    from runtime.link.commands import Emitted as Emitted
    from runtime.link.commands import Extend as Extend
    from runtime.link.commands import Failed as Failed
    from runtime.link.commands import Finished as Finished
    from runtime.link.commands import FinishReason as FinishReason
    from runtime.link.commands import FlushRecording as FlushRecording
    from runtime.link.commands import ForeseeingWatcher as ForeseeingWatcher
    from runtime.link.commands import Foresight as Foresight
    from runtime.link.commands import Generate as Generate
    from runtime.link.commands import Interrupt as Interrupt
    from runtime.link.commands import LoadWeights as LoadWeights
    from runtime.link.commands import Merge as Merge
    from runtime.link.commands import OnTraceError as OnTraceError
    from runtime.link.commands import OpenThread as OpenThread
    from runtime.link.commands import Record as Record
    from runtime.link.commands import Report as Report
    from runtime.link.commands import Request as Request
    from runtime.link.commands import Signal as Signal
    from runtime.link.commands import Signalled as Signalled
    from runtime.link.commands import StartRecording as StartRecording
    from runtime.link.commands import Statistics as Statistics
    from runtime.link.commands import StopRecording as StopRecording
    from runtime.link.commands import ToolAnswered as ToolAnswered
    from runtime.link.commands import Watcher as Watcher
    from runtime.link.constraints import Constraint as Constraint
    from runtime.link.constraints import Matcher as Matcher
    from runtime.link.constraints import TokenMask as TokenMask
    from runtime.link.event_values import check_plain as check_plain
    from runtime.link.event_values import check_recordable as check_recordable
    from runtime.link.events import FORMAT as FORMAT
    from runtime.link.events import LARGEST_RECORD as LARGEST_RECORD
    from runtime.link.events import AnyEvent as AnyEvent
    from runtime.link.events import Computed as Computed
    from runtime.link.events import Event as Event
    from runtime.link.events import Evicted as Evicted
    from runtime.link.events import GenerateFinished as GenerateFinished
    from runtime.link.events import GenerateStarted as GenerateStarted
    from runtime.link.events import Header as Header
    from runtime.link.events import Joined as Joined
    from runtime.link.events import Merged as Merged
    from runtime.link.events import MessageSent as MessageSent
    from runtime.link.events import MessagesReceived as MessagesReceived
    from runtime.link.events import Posted as Posted
    from runtime.link.events import Received as Received
    from runtime.link.events import RunStarted as RunStarted
    from runtime.link.events import Sampled as Sampled
    from runtime.link.events import Scored as Scored
    from runtime.link.events import Spawned as Spawned
    from runtime.link.events import ThreadClosed as ThreadClosed
    from runtime.link.events import ThreadEnded as ThreadEnded
    from runtime.link.events import ThreadFailed as ThreadFailed
    from runtime.link.events import ThreadOpened as ThreadOpened
    from runtime.link.events import ThreadPath as ThreadPath
    from runtime.link.events import TickDone as TickDone
    from runtime.link.events import ToolCalled as ToolCalled
    from runtime.link.events import Trace as Trace
    from runtime.link.events import encodable as encodable
    from runtime.link.latents import latents_path as latents_path
    from runtime.link.notes import Notes as Notes
    from runtime.link.retold import Retold as Retold
    from runtime.link.work import Work as Work

__getattr__, __dir__ = lazy_exports(__name__)
