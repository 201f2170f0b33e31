"""Model-driven threads that fork while they decode, under a `ForkProtocol`.

generate -> fork: ask the policy for each branch, start those granted with the whole context
         -> wait for them, take over what they said, or their keys and values, generate again
         -> end, or a branch's end
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import anyio.to_thread
import msgspec

from policies import SpawnDecision
from runtime.errors import LimitExceeded, PromptError
from runtime.link.commands import Signal, Signalled
from runtime.protocol import BoundForkProtocol, StopStrings
from runtime.threads.allowance import Allowance
from runtime.threads.child import ChildTask
from runtime.threads.deciding import decide
from runtime.threads.generate_options import GenerateOptions
from runtime.threads.results import Generation, Outcome
from runtime.threads.running import RunningThread
from runtime.threads.tool_use import ToolUse


class ForkDriver:
    """One model-driven thread between its forks; a branch where it was forked itself."""

    def __init__(
        self,
        thread: RunningThread,
        protocol: BoundForkProtocol,
        main: Callable[[RunningThread], Awaitable[Outcome | None]],
    ) -> None:
        """`main` runs a branch from beginning to end."""
        self._thread = thread
        self._main = main
        self._context = thread.context
        self._protocol = protocol
        self._tools = ToolUse(thread)
        self._is_branch = thread.context.forked_at is not None
        self._entropy = math.nan
        """At the tag that the model stopped at last; NaN where nobody asks for it."""

    async def run(self) -> Outcome:
        """Until the model ends, or its branch; raises like `drive`."""
        context, session = self._context, self._context.session
        allowance, emitted, before = Allowance(context.settings.max_tokens), list[int](), ""
        tags = self._protocol.tags(in_branch=self._is_branch, depth=len(context.path) - 1)
        assert session.opened.tokenizer is not None
        while True:
            start = len(context.tokens)
            watcher = StopStrings(session.opened.tokenizer, tags, context.tokens) if tags else None
            options = GenerateOptions(
                max_tokens=allowance.left,
                watcher=self._tools.watcher(watcher),
                stop_tokens=session.opened.stop_tokens,
                entropies=context.settings.spawn.reads == "entropy",
            )
            generation = await context.generate(options, on_signal=self._take)
            emitted += generation.tokens
            if generation.limit is not None:
                self._close_branch(None)
                raise LimitExceeded(
                    f"Thread {context.path} was stopped by a limit on {generation.limit} before it ended. Raise "
                    f"Limits.{generation.limit}."
                )
            text = before + session.text_after(context.tokens[:start], generation.tokens)
            if self._tools.is_waiting(generation):
                # Outlines may stand before a call, and the tag that forks behind it.
                before = text
                if not await self._tools.deliver():
                    return Outcome(tuple(emitted), "", "context")
                if not allowance.spend(len(generation.tokens)):
                    return Outcome(tuple(emitted), "", "length")
                continue
            before = ""
            found = self._protocol.found(text, tags) if generation.reason == "stop" else None
            if found != self._protocol.protocol.fork:
                self._close_branch(found)
                return self._outcome(generation, tuple(emitted))
            may_go_on = allowance.spend(len(generation.tokens))
            try:
                await self._fork(text)
            except PromptError:
                return Outcome(tuple(emitted), "", "context")
            if not may_go_on:
                return Outcome(tuple(emitted), "", "length")

    def _take(self, report: Signalled) -> None:
        self._entropy = report.entropy
        self._tools.take(report.signal)

    def _outcome(self, generation: Generation, emitted: tuple[int, ...]) -> Outcome:
        context = self._context
        if generation.reason != "stop":
            reason = generation.reason
            return Outcome(emitted, "", reason if reason in ("length", "context") else "nothing")
        tokens = emitted
        if tokens and tokens[-1] in context.session.opened.stop_tokens:
            tokens = tokens[:-1]
        return Outcome(tokens, context.session.decode(tokens), "returned" if tokens else "nothing")

    def _close_branch(self, found: str | None) -> None:
        """Writes what follows a branch, and its end where the model has not; as far as there is room."""
        own = self._protocol.protocol
        if not self._is_branch:
            return
        end = "" if found == own.branch_end else own.branch_end
        try:
            self._context.extend(self._protocol.encode(end + own.after_branch))
        except PromptError:
            return

    async def _fork(self, text: str) -> None:
        context, children, own = self._context, self._thread.children, self._protocol.protocol
        names = await anyio.to_thread.run_sync(self._protocol.names, text)
        if not names:
            # A fork of nothing is taken for plain text.
            return
        context.extend(self._protocol.encode(own.after_fork))
        granted: list[ChildTask] = []
        for index, name in enumerate(names):
            seed = self._protocol.branch(name)
            # What the call has sampled is counted by now.
            decision = decide(context, Signal("spawn", seed), self._entropy, index=index, granted=len(granted))
            context.account.count_request(decision.run)
            child = self._start(seed, decision)
            granted += [] if child is None else [child]
        length = len(context.tokens)
        if own.gives == "keys and values":
            await children.merge_all(granted)
        else:
            await children.collect(granted)
            said = [token for child in granted for token in child.context.tokens[length:]]
            await children.take_over(granted, append=None, before=said)
        context.extend(self._protocol.encode(own.joined))

    def _start(self, seed: tuple[int, ...], decision: SpawnDecision) -> ChildTask | None:
        if not decision.run:
            self._thread.record_spawn(None, seed, by_model=True, fork=True, reason=decision.reason)
            return None
        settings = self._context.settings
        if decision.depth is not None:
            settings = msgspec.structs.replace(settings, depth=decision.depth)
        return self._thread.start_child(
            seed,
            settings=settings,
            main=self._main,
            limits=decision.limits,
            fork=True,
            by_model=True,
            reason=decision.reason,
        )
