"""A thread's context as the event loop keeps it, in step with the device's by the commands it sends."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec

from policies import DepthPolicy
from policies.conversion import shown
from runtime.chat import Conversation
from runtime.errors import (
    LimitExceeded,
    PolicyError,
    PromptError,
    ThreadStateError,
    busy,
    context_full,
    described,
    empty_context,
    fresh_join,
)
from runtime.link.commands import (
    Extend,
    Failed,
    Finished,
    FinishReason,
    Generate,
    Interrupt,
    Signalled,
    ThreadPath,
)
from runtime.link.event_values import check_recordable
from runtime.link.metering import MeteredWatcher
from runtime.protocol import StopStrings
from runtime.protocol.stop_strings import text_before
from runtime.threads.accounts import Account
from runtime.threads.constraining import Unfinished, begun_at, placed, unfinished_by
from runtime.threads.generate_options import GenerateOptions
from runtime.threads.inbox import PendingGenerate
from runtime.threads.mailbox import Mailbox
from runtime.threads.post_office import PostOffice
from runtime.threads.results import Generation, Score
from runtime.threads.session import Session, ThreadSettings

UNBOUNDED = 2**31 - 1
"""Tokens to sample where only the model's context is a bound."""


class Borrower(Protocol):
    """Has a context to itself from call to call; a stream is one."""

    def give_way(self, wish: str) -> None:
        """Gives the context back, unless somebody waits for it right now."""
        ...


def _nobody() -> Borrower | None:
    return None


class Context:
    """Tokens of one thread, and the one generate at a time that adds to them."""

    __slots__ = (
        "_depth",
        "_has_place",
        "_metered",
        "account",
        "conversation",
        "forked_at",
        "has_children",
        "is_busy",
        "joined_at",
        "lent_to",
        "mailbox",
        "office",
        "path",
        "session",
        "settings",
        "skipped",
        "state",
        "tokens",
        "unfinished",
    )

    def __init__(
        self, path: ThreadPath, session: Session, account: Account, settings: ThreadSettings, above: Context | None
    ) -> None:
        """`above` is the parent's; None for a root."""
        self.path = path
        self.office: PostOffice = PostOffice() if above is None else above.office
        self.mailbox = Mailbox(session.inbox.new_wakeup)
        self.session = session
        self.account = account
        self.settings = settings
        self.tokens = array("i")
        self.conversation: Conversation | None = None
        """The messages that the context began with; None where it has none."""
        self.state: Literal["new", "open", "ended", "closed"] = "new"
        """A fork that has ended keeps its tokens and pages until it is joined, or its parent ends."""
        self.is_busy = False
        """Whether a generate or a stream is queued or running."""
        self.lent_to: Callable[[], Borrower | None] = _nobody
        """The open stream, as long as something refers to it; one that is dropped is left."""
        self.has_children = False
        self.forked_at: tuple[ThreadPath, int] | None = None
        """Of a fork, from whom, and how many tokens it began with."""
        self.skipped = 0
        """How many tokens it has more than positions, as siblings that were merged into it begin at one."""
        self.joined_at: int | None = None
        """How long it was after its last merged join."""
        self.unfinished: Unfinished | None = None
        self._has_place = False
        self._depth = settings.depth
        self._metered: MeteredWatcher | None = None
        """Of the call that is running, where limits are shared."""

    def open(self, inherits: Context | None = None) -> None:
        """Makes the thread known to the device; a fork begins with what it inherits."""
        self._depth = self._policy_now(self.settings.depth)
        self.session.open_thread(
            self.path,
            msgspec.structs.replace(self.settings, depth=self._depth),
            None if inherits is None else inherits.path,
        )
        self.state = "open"
        self.account.open_thread()
        self.office.open(self.path, self.mailbox)
        if inherits is not None:
            self.mailbox.posts_seen = inherits.mailbox.posts_seen
            self.tokens = inherits.tokens[:]
            self.forked_at = inherits.path, len(self.tokens)
            self.skipped, self.joined_at = inherits.skipped, inherits.joined_at
            self.conversation, self.unfinished = inherits.conversation, inherits.unfinished
            self.account.see_length(len(self.tokens))

    def close(self, *, keeps: bool = False) -> None:
        """Ends the thread, and lets the device forget it; a fork that `keeps` what it has leaves that to who joins it,
        who closes it again. More often does nothing."""
        if self.state == "open":
            self._reclaim("end")
            self.account.end_thread()
            self.office.close(self.path)
        if self.state == "open" or (self.state == "ended" and not keeps):
            self.state = "ended" if keeps and self.forked_at is not None else "closed"
            if self.state == "closed":
                self.session.close_thread(self.path)
        elif self.state == "new":
            self.state = "closed"

    def check_open(self) -> None:
        """Raises `ThreadStateError` outside the thread's `async with`, and what `Session.check` raises."""
        self.session.check()
        if self.state == "new":
            raise ThreadStateError(f"Thread {self.path} is not open yet. Use it inside `async with`.")
        if self.state != "open":
            raise ThreadStateError(f"Thread {self.path} has ended. Use it inside its `async with` block.")

    def check_idle(self, wish: str) -> None:
        """Raises `ThreadStateError` unless the thread is open and generates nothing."""
        self.check_open()
        self._reclaim(wish)
        if self.is_busy:
            raise busy(self.path, wish)

    def _reclaim(self, wish: str) -> None:
        borrower = self.lent_to()
        if borrower is not None:
            borrower.give_way(wish)

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends received tokens. Raises `PromptError` where the model's context has no room for them."""
        self.check_idle("append")
        if not tokens:
            return
        self._check_room(len(tokens))
        self.tokens.extend(tokens)
        self.account.see_length(len(self.tokens))
        self.session.send(Extend(self.path, tuple(tokens)))

    def _check_room(self, count: int) -> None:
        """Raises `PromptError` where the model's context has no room for so many tokens more."""
        length, most = len(self.tokens) - self.skipped + count, self.session.opened.max_context
        if most is not None and length > most:
            raise context_full(self.path, length, most)

    @property
    def has_own(self) -> bool:
        """Whether a fork has tokens beyond those that it began with."""
        return self.forked_at is not None and len(self.tokens) > self.forked_at[1]

    def cut(self, length: int, keep: int) -> None:
        """Forgets tokens from `length` on; `keep` of the last generate's tokens remain."""
        del self.tokens[length:]
        self.session.send(Interrupt(self.path, keep=keep))

    async def enter(self, nowait: bool) -> None:
        """Takes the thread and a place in the queue; `leave` gives both back. Cancelled while waiting, has neither."""
        self.check_idle("generate")
        self.is_busy = True
        try:
            await self.session.acquire(nowait)
        except BaseException:
            self.is_busy = False
            raise
        self._has_place = True

    def leave(self) -> None:
        self.is_busy = False
        self.lent_to = _nobody
        if self._metered is not None:
            self._metered.release()
            self._metered = None
        self.give_up_place()

    def give_up_place(self) -> None:
        """Gives the place in the queue back, once, before the end of the call or at it."""
        if self._has_place:
            self._has_place = False
            self.session.release()

    async def generate(
        self, options: GenerateOptions, on_signal: Callable[[Signalled], None] | None = None
    ) -> Generation:
        """One generate, from the queue to its end. `on_signal` gets every signal of a watcher, as soon as it arrives.

        Cancelled, or where `on_signal` raises, the context is as it was before.
        """
        await self.enter(options.nowait)
        try:
            options = await self.with_matcher(options)
            call, report = await self._called(options, on_signal)
            self.add_sampled(report.tokens)
            return self.generation(call, report, options)
        finally:
            self.leave()

    async def with_matcher(self, options: GenerateOptions) -> GenerateOptions:
        """Options with a matcher, where they have a constraint. Raises `ConstraintError` where there can be none."""
        asked = options.constraint
        if asked is None:
            return options
        start = len(self.tokens)
        if options.resumes:
            start = begun_at(self.path, asked, self.unfinished, start, self.joined_at)
        constraint = placed(asked, self.tokens, start)
        matcher = await self.session.make_matcher(constraint, self.tokens[start:])
        return msgspec.structs.replace(options, constraint=constraint, matcher=matcher)

    async def score(self, options: GenerateOptions) -> Score:
        """Scores tokens as if they followed; the context is as before. Raises `LimitExceeded` where that took more
        iterations than were left, and `PromptError` where the context has no room for them."""
        self.check_idle("score")
        self._check_room(len(options.scores))
        await self.enter(options.nowait)
        try:
            _, report = await self._called(options, None)
        finally:
            self.leave()
        if report.reason != "scored":
            raise LimitExceeded(
                f"Thread {self.path} had iterations left for {len(report.tokens)} of {len(options.scores)} tokens to "
                f"score. Raise Limits.iterations, or score fewer."
            )
        return Score(
            tokens=report.tokens, logprobs=report.logprobs, top_logprobs=report.top_logprobs, depths=report.depths
        )

    async def _called(
        self, options: GenerateOptions, on_signal: Callable[[Signalled], None] | None
    ) -> tuple[PendingGenerate, Finished]:
        """One call of the device, in a place that was entered; undone where it is cancelled or fails."""
        call = self.begin(options, wants_reports=on_signal is not None)
        try:
            while not isinstance(report := await call.next(), Finished | Failed):
                if on_signal is not None and isinstance(report, Signalled):
                    on_signal(report)
            if isinstance(report, Failed):
                raise report.error
        except BaseException:
            self.session.send(Interrupt(self.path, keep=0))
            raise
        return call, report

    def begin(self, options: GenerateOptions, wants_reports: bool) -> PendingGenerate:
        """Sends a generate, bounded by what the limits leave. Raises `LimitExceeded` where that is nothing."""
        self.check_open()
        if not self.tokens:
            raise empty_context(self.path)
        if self.joined_at == len(self.tokens):
            raise fresh_join(self.path)
        return self.ask(options, wants_reports)

    def ask(self, options: GenerateOptions, wants_reports: bool) -> PendingGenerate:
        """Sends what `begin` has looked at. Raises what `Session.check` raises: what is not sent is never answered."""
        self.session.check()
        stranded = self.session.inbox.stranded_error(self.path)
        if stranded is not None:
            raise stranded
        samples = not (options.scores or options.fills)
        left = self.account.tokens_left() if samples else None
        wanted = (options.max_tokens or self.settings.max_tokens or UNBOUNDED) if not options.fills else 0
        max_iterations = self.account.iterations_left()
        watcher = options.watcher
        if watcher is None and options.stop_strings:
            if self.session.opened.tokenizer is None:
                raise PromptError("Stop strings need a tokenizer.json, which the checkpoint lacks. Stop at token ids.")
            watcher = StopStrings(self.session.opened.tokenizer, options.stop_strings, self.tokens)
        meters = self.account.meters() if samples else ()
        self._metered = metered = MeteredWatcher(watcher, meters) if meters else None
        depth = self._policy_now(options.depth or self.settings.depth)
        call = PendingGenerate(
            self.path,
            self.account,
            self.session.inbox.new_wakeup,
            wants_reports=wants_reports,
            bounded_by_limit=left is not None and left < wanted,
            metered=metered,
        )
        command = Generate(
            thread=self.path,
            max_tokens=wanted if left is None else min(left, wanted),
            sampling=options.sampling or self.settings.sampling,
            depth=None if depth == self._depth else depth,
            stop_tokens=options.stop_tokens,
            watcher=metered or watcher,
            max_iterations=max_iterations,
            stream=options.stream,
            entropies=options.entropies,
            scores=options.scores,
            fills=options.fills,
            constraint=options.constraint,
            matcher=options.matcher,
        )
        if samples:
            self.unfinished = unfinished_by(options.constraint, len(self.tokens))
        # What is expected is sent: leaving the engine waits for its answer.
        self.session.inbox.expect(call)
        self.session.send(command)
        self._depth = depth
        return call

    def add_sampled(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)
        self.account.see_length(len(self.tokens))

    def generation(self, call: PendingGenerate, report: Finished, options: GenerateOptions) -> Generation:
        """What the caller gets for a finished call, whose tokens the context has taken in."""
        reason, limit = _reason_and_limit(call, report)
        if reason == "stop":
            self.unfinished = None
        tokens = report.tokens
        shown = tokens[:-1] if tokens and tokens[-1] in options.stop_tokens else tokens
        return Generation(
            text=text_before(
                self.session.text_after(self.tokens[: len(self.tokens) - len(tokens)], shown), options.stop_strings
            ),
            tokens=tokens,
            logprobs=report.logprobs,
            top_logprobs=report.top_logprobs,
            depths=report.depths,
            is_constrained=options.constraint is not None,
            reason=reason,
            limit=limit,
        )

    def _policy_now(self, depth: DepthPolicy) -> DepthPolicy:
        role: Literal["root", "parent", "child"] = (
            "root" if len(self.path) == 1 else "parent" if self.has_children else "child"
        )
        name = type(depth).__name__
        try:
            chosen = depth.for_thread(role, len(self.path) - 1)
        except Exception as error:
            raise PolicyError(f"{name}.for_thread raised for thread {self.path}: {described(error)}.") from error
        if not isinstance(chosen, DepthPolicy):
            raise PolicyError(f"{name}.for_thread answered {shown(chosen)}; it must be a DepthPolicy.")
        if self.session.records:
            check_recordable(chosen)
        return chosen


def _reason_and_limit(
    call: PendingGenerate, report: Finished
) -> tuple[FinishReason, Literal["tokens", "iterations"] | None]:
    if report.reason == "iterations" or (report.reason == "interrupted" and call.cut):
        return "iterations", "iterations"
    if report.reason == "stop" and call.metered is not None and call.metered.exhausted:
        return "length", "tokens"
    if report.reason == "length" and call.bounded_by_limit:
        return "length", "tokens"
    return report.reason, None
