"""From a trace to a device that plays it back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from policies import Policy, from_builtins
from runtime.device.settings import EngineSettings
from runtime.link.events import Trace
from runtime.loading.files import files_of, opened_of
from runtime.loading.tracing import tracing
from runtime.threads.opened import Opened
from runtime.threads.recorded_mail import RecordedMail
from runtime.threads.recorded_spawns import RecordedSpawns


def open_playback(trace: Trace, checkpoint: str | Path | None) -> Opened:
    """A device that plays a trace back, with the tokenizer and protocol of the checkpoint it was recorded with.

    `checkpoint` says where that is now, if not where the trace says. Its weights are not read.
    """
    files = checkpoint
    if files is None:
        files = trace.header.checkpoint
        if isinstance(remote := trace.header.engine.get("remote"), dict):
            files = remote.get("tokenizer")
    described, protocol, _ = files_of(files)
    settings = msgspec.convert(trace.header.engine, EngineSettings)
    policy = from_builtins(trace.header.policy, Policy)
    played = opened_of(described, settings, tracing().play(trace), protocol, policy)
    return replace(
        played,
        answers_tools=True,
        recorded_mail=RecordedMail(trace.events),
        recorded_spawns=RecordedSpawns(trace.events),
    )
