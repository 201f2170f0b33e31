"""A trace of what happens inside a block, in a file of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.lowlevel

from runtime.errors import TraceError
from runtime.link.commands import OnTraceError, StartRecording, StopRecording
from runtime.link.latents import Latents
from runtime.threads.session import Session


@asynccontextmanager
async def recording(
    session: Session, path: Path, overwrite: bool, on_trace_error: OnTraceError, latents: Latents | None
) -> AsyncIterator[None]:
    """See `Engine.recording`. The device thread opens the file, writes and closes it, in order with its commands."""
    await anyio.lowlevel.checkpoint()
    if latents is not None:
        latents.check_width(session.opened.latent_width)
    if session.is_in_recording:
        raise TraceError("The engine records already, and what happens goes into one trace. Let that end first.")
    # The device refuses while the engine's own trace is written, and knows whether that had to end.
    before = session.records
    # At once, so that trees which begin before the device has answered are recorded from their beginning.
    session.is_in_recording = session.records = True
    try:
        await session.request(lambda number: StartRecording(number, path, overwrite, on_trace_error, latents))
    except Exception:
        session.is_in_recording, session.records = False, before
        raise
    except BaseException:
        # A cancellation of asyncio's own, which goes through shields: nobody waits for the answer to this one.
        session.is_in_recording, session.records = False, before
        session.send(StopRecording(number=0))
        raise
    try:
        yield
    except BaseException as error:
        try:
            await _stop(session)
        except Exception as other:
            error.add_note(f"The trace {path} is not whole: {other}")
        raise
    await _stop(session)


async def _stop(session: Session) -> None:
    session.is_in_recording = session.records = False
    await session.request(StopRecording)
