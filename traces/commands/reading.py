"""What commands share: a trace, with a word on stderr of what it lacks, its text, and the device it was made with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from policies import Policy, from_builtins
from runtime import TraceError
from runtime.console import visible
from runtime.link import Device, Header, Trace
from runtime.model import shipped_checkpoints, shipped_directory, tokenizer_file
from traces.printing import Decode, load_decode
from traces.reader import read

OpenDevice = Callable[[Header], Device]


def read_with_warning(file: Path) -> Trace:
    trace = read(file)
    if trace.lost is not None:
        warn_lost(file, trace.lost)
    return trace


def warn_lost(file: Path, lost: str) -> None:
    print(visible(f"{file}: {lost}"), file=sys.stderr)


def decode_of(tokenizer: Path | None, header: Header) -> Decode | None:
    """What makes tokens text: of `tokenizer`, else of the trace's checkpoint, if it is shipped or a directory that has
    one."""
    if tokenizer is not None:
        return load_decode(tokenizer)
    if header.checkpoint in shipped_checkpoints():
        return load_decode(shipped_directory() / header.checkpoint)
    # A trace may name what cannot be a path; `Path` would raise.
    file = tokenizer_file(Path(header.checkpoint)) if os.path.isdir(header.checkpoint) else None
    return None if file is None else load_decode(file)


def open_recorded(header: Header) -> Device:
    """The device that the trace was made with, on this machine."""
    from runtime import (
        EngineSettings,
        open_device,  # only here, since loading a model takes seconds
    )

    try:
        settings = msgspec.convert(header.engine, EngineSettings)
        policy = None if header.policy is None else from_builtins(header.policy, Policy)
    except (msgspec.ValidationError, ValueError) as error:
        raise TraceError(f"The trace's settings or policy cannot be used: {error}") from error
    drafts = header.drafts
    if drafts is not None and os.path.dirname(drafts) and not os.path.exists(drafts):
        # Where it only guessed, nothing depends on it.
        print(f"{visible(drafts)} is gone: what the second model said there cannot be said again.", file=sys.stderr)
        drafts = None
    opened = open_device(header.checkpoint, settings, policy=policy, trace=None, seed=header.seed, drafts=drafts)
    if opened.fingerprint is not None and opened.fingerprint() != header.fingerprint:
        print(
            f"{visible(header.checkpoint)} has other weights than the trace was recorded with: expect it to go another "
            "way, or name the directory of those with --checkpoint.",
            file=sys.stderr,
        )
    return opened.device
