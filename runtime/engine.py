"""The engine: a device, and the reasoning threads whose tokens it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec

from policies import Limits, Policy, SelectPolicy
from policies.conversion import converted, shown
from runtime.chat import Message
from runtime.console.logs import logger
from runtime.device.remote.settings import RemoteSettings
from runtime.device.settings import SettingsOptions, read_settings
from runtime.errors import EngineClosed
from runtime.link.commands import LoadWeights, OnTraceError, Statistics
from runtime.link.events import Event, Trace
from runtime.link.latents import Latents
from runtime.link.sampling import Sampling
from runtime.loading.in_thread import open_in_thread
from runtime.loading.played import open_playback
from runtime.loading.remote import opening_by
from runtime.threads.accounts import Account
from runtime.threads.arguments import (
    EngineArguments,
    EngineOptions,
    ThreadArguments,
    checkpoint_of,
    latents_of,
    path_of,
    weights_of,
)
from runtime.threads.context import Context
from runtime.threads.defaults import Defaults
from runtime.threads.opened import Opened
from runtime.threads.opening import Opening, opening_of, to_be_answered
from runtime.threads.recording import recording
from runtime.threads.results import Answer, Usage
from runtime.threads.running import RunningThread
from runtime.threads.selection import answer_of, best_answer
from runtime.threads.session import Session, ThreadSettings
from runtime.threads.thread import ReasoningThread
from runtime.threads.tools import Tools

if TYPE_CHECKING:
    from torch import Tensor

_log = logger("runtime.engine")


class Engine:
    """Use it inside `async with`; leaving ends every thread that is still open and waits for the device to stop.

    Belongs to the event loop it was entered on, asyncio's or trio's.
    """

    def __init__(self, make_device: Callable[[], Opened], **options: Unpack[EngineOptions]) -> None:
        """`make_device` runs in a worker thread at entry. Raises `ValueError`, naming what does not fit."""
        self._make_device = make_device
        self._arguments = EngineArguments(**options)
        self._tools = Tools()
        self._was_entered = False
        self._session: Session | None = None

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        *,
        policy: Policy | None = None,
        trace: str | Path | None = None,
        overwrite: bool = False,
        on_trace_error: OnTraceError = "drop",
        drafts: str | Path | None = None,
        seed: int = 0,
        limits: Limits | None = None,
        sampling: Sampling | None = None,
        observer: Callable[[Event], None] | None = None,
        record_latents: Latents | None = None,
        model: str | None = None,
        tokenizer: str | Path | None = None,
        remote: RemoteSettings | None = None,
        **settings: Unpack[SettingsOptions],
    ) -> Engine:
        """An engine on a checkpoint: the name of one that comes with the package, a directory, or the address of a
        server, such as "http://host:8000/v1", which has the `model` (docs/remote.md).

        `policy` is the checkpoint's own where it is not given; `limits` hold for every tree on its own. `trace` names
        the file that records everything; one that has something in it is refused without `overwrite`. Where it cannot
        be written on, `on_trace_error` says what ends: "drop" the recording, with a warning, "stop" the engine, once
        running generates are done; answers are delivered either way. `observer`, a plain function, gets the events of
        trees (`RunStarted`, `Spawned`, `MessageSent`, ...) on the event loop as they happen, with `time` 0; what
        it raises is logged. `record_latents` says which latent states are recorded beside the trace. `drafts` is a
        checkpoint of the same vocabulary, usually a much smaller one, that guesses what threads say next, under
        `Speculative(drafts="model")`, which then is the policy where the model's own would give every token the same
        depth; what is said is the same, token by token. Under `EntropySwitch` it speaks in turns with the checkpoint's
        model. `settings` are fields of `EngineSettings`: dtype, device, max_in_flight, ...

        Raises `ValueError`, naming the argument, for one that does not fit. Entering raises `CheckpointError`,
        `RemoteError`, `CapacityError` that names the setting, and `TraceError` where the trace cannot be opened.
        """
        read = read_settings(settings)
        options = EngineOptions(
            policy=policy,
            limits=limits,
            sampling=sampling,
            seed=seed,
            queue_size=read.queue_size,
            records=trace is not None,
            observer=observer,
        )
        given = EngineArguments(**options)
        opening = opening_by(
            checkpoint_of(checkpoint),
            read,
            remotely=(model, tokenizer, remote),
            policy=given.policy,
            trace=None if trace is None else path_of(trace, "trace"),
            seed=given.seed,
            overwrite=converted(overwrite, bool, "overwrite"),
            on_trace_error=converted(on_trace_error, OnTraceError, "on_trace_error"),
            drafts=None if drafts is None else checkpoint_of(drafts, "drafts"),
            latents=latents_of(record_latents, "record_latents"),
        )
        return cls(opening, **options)

    @classmethod
    def playback(
        cls,
        trace: Trace,
        *,
        checkpoint: str | Path | None = None,
        limits: Limits | None = None,
        sampling: Sampling | None = None,
        observer: Callable[[Event], None] | None = None,
    ) -> Engine:
        """An engine that plays a trace back: the program that was recorded gets the same again, without a model.

        Policy and seed are those of the recording. Tokenizer and protocol come from the checkpoint that it names, or
        from `checkpoint`. A program that asks for something else gets a `TraceError` that says where it differs.
        """
        if not isinstance(trace, Trace):
            raise ValueError(f"trace is {shown(trace)}; give a Trace, as traces.read makes one of a file.")
        return cls(
            partial(open_playback, trace, None if checkpoint is None else checkpoint_of(checkpoint)),
            limits=limits,
            sampling=sampling,
            seed=trace.header.seed,
            observer=observer,
        )

    @classmethod
    def from_device(cls, opened: Opened, **options: Unpack[EngineOptions]) -> Engine:
        """An engine on any device, such as one that plays a trace back, with what comes with it.

        `records` sends the device the events of trees; the other options are as in `Engine.open`. Raises `ValueError`,
        naming the argument, for one that does not fit.
        """
        if not isinstance(opened, Opened):
            raise ValueError(f"opened is {shown(opened)}; give an Opened, which has the device.")
        return cls(lambda: opened, **options)

    async def __aenter__(self) -> Self:
        if self._was_entered:
            raise EngineClosed("An engine is entered once. Open another one.")
        self._was_entered = True
        opened = await open_in_thread(self._make_device)
        given = self._arguments
        self._session = Session(
            opened, seed=given.seed, queue_size=given.queue_size, records=given.records, observer=given.observer
        )
        opened.device.start(self._session.inbox.deliver)
        if opened.ready is not None:
            try:
                await anyio.to_thread.run_sync(opened.ready)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await opened.stop()
                raise
        _log.info("engine opened", device=type(opened.device).__name__, seed=self._arguments.seed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        session = self._running()
        with anyio.CancelScope(shield=True):
            session.close()
            await session.chat.aclose()
            # What was interrupted is still to be counted, which takes the device until the end of its tick.
            await session.account.settled()
            session.account.end()
            await session.opened.stop()
            session.end()
        _log.info("engine closed", usage=self.usage)

    @property
    def statistics(self) -> Statistics:
        """What the device is doing right now."""
        return self._running().statistics

    @property
    def sampling(self) -> Sampling:
        """How calls sample that say nothing else: what the engine was given, over what the checkpoint says."""
        return self._defaults.sampling

    @property
    def policy(self) -> Policy:
        """What holds for trees that are given none: what the engine was given, or else the checkpoint's own."""
        return self._defaults.policy(None)

    @property
    def max_context(self) -> int | None:
        """Most tokens of a thread's context; None where nobody knows."""
        return self._running().opened.max_context

    @property
    def tools(self) -> Tools:
        """What threads may call; tools may be added at any time."""
        return self._tools

    @property
    def usage(self) -> Usage:
        """Of everything the engine has done."""
        return self._running().account.usage()

    def check(self) -> None:
        """Raises `EngineFailed` or `EngineClosed` if no thread can be opened any more."""
        self._running().check()

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens included; empty without a tokenizer."""
        return self._running().decode(tokens)

    async def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replaces the model's weights in place, between ticks; what is asked for from here on is said by the new ones.

        `weights` has a floating-point tensor for every parameter, under its published name and of its shape, of any
        dtype and on any device; it must not change before this returns. One name of tied parameters is enough, and
        buffers of checkpoints may be there too. Nothing that was computed with the old weights is used again.

        Raises `ValueError`, naming the tensor, for one that is missing, unknown, of another shape or not finite in the
        engine's dtype; `ThreadStateError` while threads are open, `TraceError` while a trace is recorded and from
        engines that play one back. Then the old weights are in force as before. Cancelled before the device has been
        asked, nothing has changed; from then on it is not interrupted, so that weights are the old or the new ones.
        """
        session = self._running()
        tensors = weights_of(weights)
        await anyio.lowlevel.checkpoint()
        await session.request(lambda number: LoadWeights(number, tensors))

    def recording(
        self,
        path: str | Path,
        overwrite: bool = False,
        on_trace_error: OnTraceError = "drop",
        latents: Latents | None = None,
    ) -> AbstractAsyncContextManager[None]:
        """Records all trees from the beginning of `async with engine.recording("run.trace"):` to its end.

        The trace is like one of `Engine.open(trace=...)`: its header has the fingerprint of the weights in force, and
        times count from its `started`. Prompts that were stored before are forgotten, so that it can be executed again
        from its beginning. `latents` says which latent states are recorded beside it.

        Entering raises `TraceError` where the engine records already or plays a trace back, where the file cannot be
        written, and where it has something in it, without `overwrite`; `ThreadStateError` while threads are open.
        When the block has been left, for whatever reason, the file is complete. Where threads are still open then, it
        has their beginning only, and `ThreadStateError` says so, unless the body has raised already. Where it could not
        be written on, `on_trace_error` is as in `Engine.open`: with "drop" the block goes on and `lost` of the trace
        says what is missing; with "stop" leaving raises `TraceError`, and the engine ends.
        """
        return recording(
            self._running(),
            path_of(path, "path"),
            overwrite=converted(overwrite, bool, "overwrite"),
            on_trace_error=converted(on_trace_error, OnTraceError, "on_trace_error"),
            latents=latents_of(latents, "latents"),
        )

    def thread(
        self,
        prompt: str | Sequence[int] = (),
        *,
        messages: Sequence[Message] | None = None,
        limits: Limits | None = None,
        policy: Policy | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        priority: int = 0,
        parse_special_tokens: bool | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        tools: Tools | Sequence[str] | None = None,
    ) -> ReasoningThread:
        """A root thread for a program to orchestrate: `async with engine.thread("...") as root:`.

        It begins with a prompt or, written by the checkpoint's chat template when it is entered, with messages; after
        a user's comes what the assistant begins with. `chat_template_kwargs` are what the template finds beside
        messages, here and in its children: `enable_thinking`, ... `tools` are those that may be called here and in its
        children, all of `engine.tools` where it is not said; messages come with them, where the template has a format
        of calls that is known and `chat_template_kwargs` has no `tools` of its own. Special tokens that a prompt spells
        out are parsed, those in messages are not, unless `parse_special_tokens` says otherwise. `max_tokens` bounds
        each generate that is given no bound, in this thread and in its children.

        Raises `PromptError` for a prompt that cannot be encoded or does not fit into the model's context; for messages,
        entering it does.
        """
        given = ThreadArguments(
            limits=limits,
            policy=policy,
            sampling=sampling,
            max_tokens=max_tokens,
            priority=priority,
            parse_special_tokens=parse_special_tokens,
            chat_template_kwargs=chat_template_kwargs,
            tools=tools,
        )
        begins = opening_of(self._running(), prompt, messages, given.parse_special_tokens)
        settings = self._defaults.settings(given, has_messages=messages is not None)
        return ReasoningThread(self._root(begins, self._defaults.limits(given.limits), settings))

    async def run(
        self,
        prompt: str | Sequence[int] = (),
        *,
        messages: Sequence[Message] | None = None,
        limits: Limits | None = None,
        policy: Policy | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        priority: int = 0,
        parse_special_tokens: bool | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        tools: Tools | Sequence[str] | None = None,
    ) -> Answer:
        """Answers a prompt, or the last of some messages: the model orchestrates its own tree under the checkpoint's
        protocol.

        `messages`, of which the last is not the assistant's, and what belongs to them are as in `thread`.
        `max_tokens` bounds what each thread of the tree samples; a root that ends at it, or at the end of its
        context, gives an answer with that reason and no text, whose `tokens` are what it had generated. A limit
        that runs out raises `LimitExceeded`, whose `answer` has the tree's path and usage. Under a select policy
        several independent roots answer, and one answer is chosen; the limits hold for all of them together.
        Cancelled, everything below is gone when it returns.
        """
        given = ThreadArguments(
            limits=limits,
            policy=policy,
            sampling=sampling,
            max_tokens=max_tokens,
            priority=priority,
            parse_special_tokens=parse_special_tokens,
            chat_template_kwargs=chat_template_kwargs,
            tools=tools,
        )
        session = self._running()
        settings = self._defaults.settings(given, has_messages=messages is not None, is_driven=True)
        opening = opening_of(session, prompt, messages, given.parse_special_tokens)
        tokens = await to_be_answered(session, opening, settings)
        chosen = self._defaults.limits(given.limits)
        select = self._defaults.policy(given.policy).select
        if select is None:
            return await answer_of(self._root(tokens, chosen, settings))
        text = prompt if messages is None and isinstance(prompt, str) else session.decode(tokens)
        return await self._run_samples(select, text, tokens, chosen, settings)

    async def _run_samples(
        self, select: SelectPolicy, prompt: str, tokens: tuple[int, ...], limits: Limits, settings: ThreadSettings
    ) -> Answer:
        # One account above all samples makes them share the limits.
        session = self._running()
        shared = Account((), msgspec.structs.replace(limits, tree_depth=None, seconds=None), session.account)
        own = Limits(tree_depth=limits.tree_depth, seconds=limits.seconds)
        roots = [self._root(tokens, own, settings, above=shared) for _ in range(select.samples)]
        return await best_answer(roots, select, prompt)

    def _root(
        self, prompt: tuple[int, ...] | Opening, limits: Limits, settings: ThreadSettings, above: Account | None = None
    ) -> RunningThread:
        session = self._running()
        session.check()
        path = session.new_tree()
        account = Account(path, limits, above or session.account)
        return RunningThread(Context(path, session, account, settings, above=None), prompt)

    @property
    def _defaults(self) -> Defaults:
        return Defaults(self._arguments, self._running(), self._tools)

    def _running(self) -> Session:
        if self._session is None:
            raise EngineClosed("The engine is not open yet. Use it inside `async with`.")
        return self._session
