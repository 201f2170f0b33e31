"""From a job to an answer on its way: all choices at once, told as they come or as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import anyio

from runtime.engine import Engine
from runtime.link.events import Event, Joined, RunStarted, Spawned, ThreadEnded, ToolCalled
from runtime.serve.connections import Reply
from runtime.serve.generating import Listener, say
from runtime.serve.metrics import Clock
from runtime.serve.openai_format import Ended, Form, Json, Piece
from runtime.serve.requests import Job


class Events:
    """What one request's trees do, in order, until it is told."""

    def __init__(self) -> None:
        self.found: list[Json] = []
        self.fresh = anyio.Event()

    def add(self, event: Json) -> None:
        self.found.append(event)
        self.fresh.set()


listening: ContextVar[Events | None] = ContextVar("listening", default=None)
"""Whose tree the running task works for: tasks of threads have what the one that asked had."""


def told(event: Event, engine: Engine) -> Json | None:
    """An event of a tree as clients read it; None for others."""
    match event:
        case RunStarted():
            return {"type": "started", "thread": list(event.thread), "text": event.prompt}
        case Spawned():
            return {
                "type": "spawned" if event.child is not None else "refused",
                "thread": list(event.thread),
                "child": None if event.child is None else list(event.child),
                "fork": event.fork,
                "text": engine.decode(event.tokens),
                "reason": event.reason,
            }
        case ToolCalled():
            called = {"name": event.name, "arguments": event.arguments}
            return {"type": "tool", "thread": list(event.thread), **called}
        case Joined():
            paths = {name: [list(path) for path in getattr(event, name)] for name in ("children", "delivered")}
            return {"type": "joined", "thread": list(event.thread), **paths}
        case ThreadEnded():
            return {
                "type": "ended",
                "thread": list(event.thread),
                "outcome": event.outcome,
                "text": event.text,
                "error": event.error,
            }
    return None


async def answer_job(engine: Engine, job: Job, form: Form, answer: Reply, clock: Clock) -> None:
    """Raises what the engine refuses, before the answer has begun or after; cancelled, nothing of it goes on."""
    events = Events()
    listening.set(events if job.tells_tree else None)
    if not job.stream:
        whole = _Whole(job.choices, clock)
        await _say_all(engine, job, whole)
        await answer.json(200, form.whole(whole.choices(), events.found))
        return
    streamed = _Streamed(form, answer, clock, events)
    async with anyio.create_task_group() as telling:
        if job.tells_tree:
            telling.start_soon(streamed.tell_events)
        await _say_all(engine, job, streamed)
        telling.cancel_scope.cancel()
    if job.tells_usage:
        await answer.event(form.usage_chunk([streamed.ends[index] for index in range(job.choices)]))
    await answer.body(b"data: [DONE]\n\n")


async def _say_all(engine: Engine, job: Job, listener: Listener) -> None:
    async with anyio.create_task_group() as choices:
        for index in range(job.choices):
            choices.start_soon(say, engine, job, index, listener)


class _Streamed:
    """Tells what choices say, and what happens in their trees, as it comes."""

    def __init__(self, form: Form, answer: Reply, clock: Clock, events: Events) -> None:
        self._form = form
        self._answer = answer
        self._clock = clock
        self._events = events
        self._prompts: dict[int, Sequence[int]] = {}
        self.ends: dict[int, Ended] = {}

    async def began(self, index: int, prompt: Sequence[int]) -> None:
        self._prompts[index] = prompt

    async def grew(self, index: int, piece: Piece) -> None:
        self._clock.told(len(piece.tokens))
        await self._tell(index, piece)

    async def ended(self, index: int, ended: Ended) -> None:
        self.ends[index] = ended
        await self._tell(index, Piece(), ended)

    async def _tell(self, index: int, piece: Piece, ended: Ended | None = None) -> None:
        await self._tell_fresh()
        await self._answer.event(self._form.chunk(index, piece, first=self._prompts.pop(index, None), ended=ended))

    async def tell_events(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._events.fresh.wait()
            await self._tell_fresh()

    async def _tell_fresh(self) -> None:
        events = self._events
        found, events.found, events.fresh = events.found, [], anyio.Event()
        # What is taken is told; how long that may take is bounded.
        with anyio.CancelScope(shield=True):
            for event in found:
                await self._answer.event(self._form.event(event))


class _Whole:
    """Keeps what choices say."""

    def __init__(self, count: int, clock: Clock) -> None:
        self._clock = clock
        self._prompts: list[Sequence[int]] = [()] * count
        self._pieces: list[list[Piece]] = [[] for _ in range(count)]
        self._ends: list[Ended | None] = [None] * count

    async def began(self, index: int, prompt: Sequence[int]) -> None:
        self._prompts[index] = prompt

    async def grew(self, index: int, piece: Piece) -> None:
        self._clock.told(len(piece.tokens))
        self._pieces[index].append(piece)

    async def ended(self, index: int, ended: Ended) -> None:
        self._ends[index] = ended

    def choices(self) -> list[tuple[Piece, Sequence[int], Ended]]:
        made = []
        for pieces, prompt, ended in zip(self._pieces, self._prompts, self._ends, strict=True):
            assert ended is not None
            made.append((_joined(pieces), prompt, ended))
        return made


def _joined(pieces: Sequence[Piece]) -> Piece:
    def column(name: str) -> list[Any]:
        return [item for piece in pieces for item in getattr(piece, name)]

    return Piece(
        text="".join(piece.text for piece in pieces),
        tokens=column("tokens"),
        logprobs=column("logprobs"),
        top_logprobs=column("top_logprobs"),
        depths=column("depths"),
    )
