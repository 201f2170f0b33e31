"""Model-driven threads: a coroutine that lets the model orchestrate its own children under a protocol.

generate -> spawn: ask the policy, start the child, go on decoding
         -> join:  wait for the children granted since the last one, append their messages, generate again
         -> send, receive: messages to other threads, and from them; generate again
         -> end:   return the message
"""

from __future__ import annotations

from typing import Literal

import anyio.to_thread
import msgspec

from runtime.errors import LimitExceeded, PromptError, ProtocolError
from runtime.link.commands import Signal, Signalled
from runtime.protocol import BoundForkProtocol, BoundProtocol, BoundToolProtocol, Resumed
from runtime.threads.allowance import Allowance
from runtime.threads.context import Context
from runtime.threads.deciding import decide
from runtime.threads.driven_mail import parked, prepare_mailbox, receive_as_declared, send_as_written
from runtime.threads.forking import ForkDriver
from runtime.threads.generate_options import GenerateOptions
from runtime.threads.joining import Asked
from runtime.threads.results import Generation, Outcome
from runtime.threads.running import RunningThread
from runtime.threads.tool_use import ToolUse


async def drive_child(thread: RunningThread) -> Outcome | None:
    """What runs a child that its model drives, from beginning to end; None where it was cancelled.

    Where a limit runs out it has returned nothing: a model cannot help running out, as a program can. Raises like
    `drive`.
    """
    try:
        return await thread.run(drive)
    except LimitExceeded:
        return Outcome((), "", "limit")


async def drive(thread: RunningThread) -> Outcome:
    """Runs a thread until its model ends it; without a protocol, until a stop token.

    Where the model runs out of tokens or context, nothing is returned and the reason says so; where a limit ran out,
    `LimitExceeded` is raised. Raises `ProtocolError` for malformed output and `PolicyError` for a policy that raised;
    what children failed of is raised at their join.
    """
    prepare_mailbox(thread.context)
    protocol = thread.context.session.opened.protocol
    if protocol is None or isinstance(protocol, BoundToolProtocol):
        return await _drive_plain(thread)
    if isinstance(protocol, BoundForkProtocol):
        return await ForkDriver(thread, protocol, drive_child).run()
    return await _Driver(thread, protocol).run()


async def _drive_plain(thread: RunningThread) -> Outcome:
    """A model that neither spawns nor forks, between its calls of tools."""
    context, tools = thread.context, ToolUse(thread)
    stop_tokens = context.session.opened.stop_tokens
    allowance, start = Allowance(context.settings.max_tokens), len(context.tokens)
    while True:
        options = GenerateOptions(max_tokens=allowance.left, watcher=tools.watcher(), stop_tokens=stop_tokens)
        generation = await context.generate(options, on_signal=tools.take_report if tools.is_possible else None)
        _raise_limit(context, generation)
        said = generation.tokens if tools.is_in_turns else tuple(context.tokens[start:])
        if not tools.is_waiting(generation):
            break
        if not await tools.deliver():
            return Outcome(said, "", "context")
        if not allowance.spend(len(generation.tokens)):
            return Outcome(said, "", "length")
    if generation.reason != "stop":
        return Outcome(said, "", _without_message(generation))
    if said and said[-1] in stop_tokens:
        said = said[:-1]
    return Outcome(said, context.session.decode(said), "stop")


def _without_message(generation: Generation) -> Literal["length", "context", "nothing"]:
    """Why a model that was not done went no further."""
    return generation.reason if generation.reason in ("length", "context") else "nothing"


class _Driver:
    """One model-driven thread between its spawns and joins."""

    def __init__(self, thread: RunningThread, protocol: BoundProtocol) -> None:
        self._thread = thread
        self._context = thread.context
        self._protocol = protocol
        self._tools = ToolUse(thread)
        self._asked: list[Asked] = []
        """Since the last join."""
        self._emitted: list[int] = []
        self._last: Signal | None = None

    async def run(self) -> Outcome:
        context = self._context
        allowance = Allowance(context.settings.max_tokens)
        watcher, seen = self._protocol.watcher(context.tokens), 0
        while True:
            self._last = None
            start = len(context.tokens)
            options = GenerateOptions(
                max_tokens=allowance.left,
                watcher=self._tools.watcher(Resumed(watcher, seen) if seen else watcher),
                stop_tokens=context.session.opened.stop_tokens,
                entropies=context.settings.spawn.reads == "entropy",
                constraint=self._protocol.constraint,
            )
            generation = await context.generate(options, on_signal=self._take)
            self._emitted += generation.tokens
            _raise_limit(context, generation)
            seen += len(generation.tokens)
            last = self._last
            if last is None and self._tools.is_waiting(generation):
                if not await self._tools.deliver():
                    return Outcome(tuple(self._emitted), "", "context")
                if not allowance.spend(len(generation.tokens)):
                    return Outcome(tuple(self._emitted), "", "length")
                continue
            if last is None and generation.reason == "stop":
                # A stop token of the checkpoint, which the protocol does not count as an end.
                return self._returned(await self._returned_by_text())
            if last is None:
                return Outcome(tuple(self._emitted), "", _without_message(generation))
            if last.kind == "end":
                return self._returned(last.tokens)
            mail = await self._mail(last)
            try:
                if mail is None:
                    await self._join(last, start)
                else:
                    context.extend(mail)
            except PromptError:
                # The messages do not fit into what is left of the context.
                return Outcome(tuple(self._emitted), "", "context")
            if mail is None and len(context.tokens) == start:
                # The same context draws the same tokens: the model would go round for ever.
                raise ProtocolError(
                    f"Thread {context.path}: a join cut its block away and delivered nothing, so that the context is "
                    f"what it was before. Declare a text for such joins, in delivered_nothing or joined."
                )
            if mail is None:
                watcher, seen = self._protocol.watcher(context.tokens), 0
            if not allowance.spend(len(generation.tokens)):
                return Outcome(tuple(self._emitted), "", "length")

    async def _mail(self, signal: Signal) -> tuple[int, ...] | None:
        """Sends or receives messages; what is to be appended then. None for other signals."""
        if signal.kind == "send":
            return await send_as_written(self._context, signal, self._protocol.protocol)
        if signal.kind == "receive":
            return await receive_as_declared(self._context, self._protocol.protocol)
        return None

    async def _returned_by_text(self) -> tuple[int, ...]:
        """What the thread returned by all that it emitted; a text is searched beside the event loop."""
        if self._protocol.on_ids:
            return self._protocol.returned(self._emitted)
        return await anyio.to_thread.run_sync(self._protocol.returned, tuple(self._emitted))

    def _take(self, report: Signalled) -> None:
        signal = report.signal
        if signal.kind == "malformed":
            raise ProtocolError(f"Thread {self._context.path}: {signal.reason}")
        if signal.kind == "spawn":
            self._spawn(signal, report.entropy)
        elif signal.kind in ("join", "end", "send", "receive"):
            self._last = signal
        else:
            self._tools.take(signal)

    def _spawn(self, signal: Signal, entropy: float) -> None:
        context = self._context
        granted = sum(child is not None for _, child in self._asked)
        decision = decide(context, signal, entropy, index=len(self._asked), granted=granted)
        context.account.count_request(decision.run)
        child = None
        if decision.run:
            settings = context.settings
            if decision.depth is not None:
                settings = msgspec.structs.replace(settings, depth=decision.depth)
            child = self._thread.start_child(
                signal.tokens,
                settings=settings,
                main=drive_child,
                limits=decision.limits,
                by_model=True,
                reason=decision.reason,
            )
        else:
            self._thread.record_spawn(None, signal.tokens, by_model=True, fork=False, reason=decision.reason)
        self._asked.append((signal.tokens, child))

    async def _join(self, join: Signal, start: int) -> None:
        context, children = self._context, self._thread.children
        if join.keep is not None:
            # Cut before waiting: a parked thread then holds no pages for what nobody will read.
            context.cut(start + join.keep, join.keep)
        asked, self._asked = self._asked, []
        granted = [child for _, child in asked if child is not None]
        with parked(context):
            await children.collect(granted)
        await children.take_over(granted, append=asked, before=join.tokens)

    def _returned(self, tokens: tuple[int, ...]) -> Outcome:
        if not tokens:
            return Outcome((), "", "nothing")
        return Outcome(tokens, self._context.session.decode(tokens), "returned")


def _raise_limit(context: Context, generation: Generation) -> None:
    if generation.limit is not None:
        raise LimitExceeded(
            f"Thread {context.path} was stopped by a limit on {generation.limit} before it ended. Raise "
            f"Limits.{generation.limit}."
        )
