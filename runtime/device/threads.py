"""The threads that are open, and what commands make of them: opened, extended, generating, interrupted, closed.

Handled between ticks, on the device thread; a command that makes no sense ends the thread it names, or is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from policies import DepthPolicy, EntropySwitch
from policies.conversion import Count, converted
from runtime.backend.interface import Backend
from runtime.device.active_generate import ActiveGenerate
from runtime.device.bounds import policy_error
from runtime.device.generates import Generates
from runtime.device.journal import Journal
from runtime.device.kv_cache import KVCache
from runtime.device.merging import check_merge, merge
from runtime.device.model_limits import ModelLimits
from runtime.device.prefix_rule import PrefixRules
from runtime.device.queues import Queues
from runtime.device.sequence import Sequence
from runtime.device.speculation import Speculation
from runtime.errors import (
    BraidError,
    ConstraintError,
    PolicyError,
    PromptError,
    ThreadStateError,
    busy,
    context_full,
    device_error,
    empty_context,
    fresh_join,
    no_token,
)
from runtime.link import events
from runtime.link.commands import Answered, CloseThread, Extend, Generate, Interrupt, Merge, OpenThread, ThreadPath
from runtime.protocol.constraints import Matchers


class OpenThreads:
    """Every thread that was opened and not closed."""

    def __init__(
        self,
        model: ModelLimits,
        journal: Journal,
        queues: Queues,
        kv_cache: KVCache,
        speculation: Speculation,
        generates: Generates,
        backend: Backend,
        matchers: Matchers | None = None,
    ) -> None:
        """`matchers` makes those of generates that come without one, as where a trace is executed again."""
        self._model = model
        self._journal = journal
        self._queues = queues
        self._kv_cache = kv_cache
        self._speculation = speculation
        self._generates = generates
        self._backend = backend
        self._matchers = matchers
        self._prefix_rules = PrefixRules()
        self._by_path: dict[ThreadPath, Sequence] = {}

    def __len__(self) -> int:
        return len(self._by_path)

    def __getitem__(self, path: ThreadPath) -> Sequence:
        return self._by_path[path]

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._by_path.values())

    def open(self, command: OpenThread) -> None:
        """Makes a thread known; a fork begins with the tokens of its parent and shares their pages.

        Refused where it cannot inherit; where it is open already, what it does fails.
        """
        existing = self._by_path.get(command.thread)
        if existing is not None:
            error = ThreadStateError(f"Thread {command.thread} is open already; close it before it is opened again.")
            self._fail(existing, error)
            return
        parent = None if command.inherits is None else self._by_path.get(command.inherits)
        if command.inherits is not None and (parent is None or parent.generate is not None):
            state = "not open" if parent is None else "generating"
            error = ThreadStateError(
                f"Thread {command.thread} cannot inherit from {command.inherits}, which is {state}."
            )
            self._generates.refuse(command.thread, error)
            return
        sequence = Sequence(command.thread, command.seed, command.depth, command.priority, command.draws_as)
        self._by_path[command.thread] = sequence
        self._journal.record(
            events.ThreadOpened,
            thread=command.thread,
            inherits=command.inherits,
            seed=command.seed,
            depth=command.depth,
        )
        if parent is not None:
            sequence.inherit(parent)
            self._kv_cache.share(sequence.held)
            self._queues.park(sequence)

    def extend(self, command: Extend) -> None:
        """Appends received tokens, which are computed when the thread next generates.

        A thread fails that is generating, or for which they are no tokens or too many.
        """
        sequence = self._known(command.thread)
        if sequence is None or not command.tokens:
            return
        if sequence.generate is not None:
            self._fail(sequence, busy(command.thread, "append"))
            return
        if (error := self._refusal(sequence, command.tokens)) is not None:
            self._generates.fail(sequence, error)
            return
        self._journal.record(
            events.Received, thread=command.thread, position=len(sequence.tokens), tokens=command.tokens
        )
        sequence.receive(command.tokens)

    def merge(self, command: Merge) -> None:
        """Appends what children have beyond a thread's context, as it is, and answers."""
        error: Exception | None = None
        try:
            self._merge(command)
        except BraidError as refusal:
            error = refusal
        self._journal.reports.append(Answered(command.number, error))

    def _merge(self, command: Merge) -> None:
        closed = [path for path in (command.thread, *command.children) if path not in self._by_path]
        if closed:
            raise ThreadStateError(f"Thread {closed[0]} is not open.")
        parent, children = self._by_path[command.thread], [self._by_path[path] for path in command.children]
        if parent.generate is not None:
            raise busy(command.thread, "merge")
        start = len(parent.tokens)
        grown = [child for child in children if len(child.tokens) > start]
        if grown:
            check_merge(parent, grown)
            merge(parent, grown, self._kv_cache)
        self._journal.record(
            events.Merged,
            thread=command.thread,
            children=command.children,
            position=start,
            tokens=tuple(parent.tokens[start:]),
            next_position=parent.next_position,
        )
        self._queues.park(parent)

    def generate(self, request: Generate) -> None:
        """Begins a generate and queues the thread; one that has reached its bound already is finished at once.

        Refused for a context without tokens and for a policy that raises or does not fit the model. Where the thread
        generates already, both calls end.
        """
        sequence = self._known(request.thread)
        if sequence is None:
            return
        if sequence.generate is not None:
            # Both calls end: nobody could tell whose tokens they would be.
            self._fail(sequence, busy(request.thread, "generate"))
            self._generates.refuse(request.thread, busy(request.thread, "generate"))
            return
        # Also of one that is refused: interrupting it takes nothing away.
        sequence.generate_start = len(sequence.tokens)
        if not sequence.tokens:
            self._generates.fail(sequence, empty_context(request.thread))
            return
        if sequence.is_fresh_join and not request.fills:
            self._generates.fail(sequence, fresh_join(request.thread))
            return
        if request.scores and (error := self._refusal(sequence, request.scores)) is not None:
            self._generates.fail(sequence, error)
            return
        try:
            self._adopt_policy(sequence, sequence.depth if request.depth is None else request.depth)
            request = self._with_matcher(sequence, request)
        except (PolicyError, ConstraintError) as error:
            self._generates.fail(sequence, error)
            return
        sequence.generate = ActiveGenerate(request, len(sequence.tokens))
        self._journal.record(
            events.GenerateStarted,
            thread=request.thread,
            position=len(sequence.tokens),
            max_tokens=request.max_tokens,
            sampling=request.sampling,
            depth=sequence.depth,
            max_iterations=request.max_iterations,
            scores=request.scores,
            fills=request.fills,
            constraint=request.constraint,
        )
        if request.fills:
            if sequence.computed == len(sequence.tokens):
                self._generates.finish(sequence, "filled")
            else:
                self._queues.enqueue(sequence)
            return
        bound = sequence.generate.bound_reached(sequence.next_position, self._model.max_context)
        if bound is not None and not request.scores:
            self._generates.finish(sequence, bound)
            return
        if sequence.computed == len(sequence.tokens):
            # The last token's logits are gone: it is computed once more, at the depth it had.
            self._kv_cache.step_back(sequence, len(sequence.tokens) - 1)
        if request.scores:
            sequence.receive(request.scores)
        self._queues.enqueue(sequence)

    def _with_matcher(self, sequence: Sequence, request: Generate) -> Generate:
        """A request with the matcher of its constraint, if it has one. Raises `ConstraintError` where there is none."""
        constraint = request.constraint
        if constraint is None or request.matcher is not None:
            return request
        if self._matchers is None:
            raise ConstraintError(f"Thread {request.thread} came without what matches its constraint")
        begun = sequence.tokens[len(sequence.tokens) - constraint.begun :]
        return msgspec.structs.replace(request, matcher=self._matchers.make(constraint, begun))

    def interrupt(self, command: Interrupt) -> None:
        """Ends a thread's generate, if it has one, and cuts what it said to the tokens to keep. Nothing for one that is
        not open.
        """
        sequence = self._by_path.get(command.thread)
        if sequence is None:
            return
        self._generates.abort(sequence)
        length = min(len(sequence.tokens), sequence.generate_start + command.keep)
        self._kv_cache.truncate(sequence, length)
        if sequence.generate is not None:
            sequence.generate.keep(command.keep)
            self._generates.finish(sequence, "interrupted")
        if sequence.row is None and not sequence.pages:
            self._queues.leave(sequence)

    def close(self, command: CloseThread) -> None:
        """Forgets a thread and gives its pages back; its generate, if it has one, is interrupted first. Nothing for one
        that is not open.
        """
        sequence = self._by_path.pop(command.thread, None)
        if sequence is None:
            return
        if sequence.generate is not None:
            self._generates.abort(sequence)
        if sequence.generate is not None:
            self._generates.finish(sequence, "interrupted")
        self._queues.leave(sequence)
        self._kv_cache.clear(sequence)
        self._forget_policy(sequence)
        self._speculation.forget(command.thread)
        self._journal.record(events.ThreadClosed, thread=command.thread)

    def end(self) -> None:
        """Ends what computes masks; no tick follows."""
        if self._matchers is not None:
            self._matchers.close()

    def fail_unforeseen(self, path: ThreadPath, cause: BaseException) -> None:
        """Ends a thread, open or not, for what the device could not do for it."""
        sequence = self._by_path.get(path)
        if sequence is None:
            self._generates.refuse(path, device_error(path, cause))
        else:
            self._generates.fail_unforeseen(sequence, cause)

    def _refusal(self, sequence: Sequence, tokens: tuple[int, ...]) -> PromptError | None:
        """Why a thread cannot receive these tokens; None where it can."""
        wrong = [token for token in (min(tokens), max(tokens)) if not 0 <= token < self._model.vocab]
        if wrong:
            return no_token(f"Thread {sequence.path} received {wrong[0]}", self._model.vocab)
        length = sequence.next_position + len(tokens)
        return (
            None if length <= self._model.max_context else context_full(sequence.path, length, self._model.max_context)
        )

    def _known(self, path: ThreadPath) -> Sequence | None:
        """The thread of a command; if it is not open, a report says so."""
        sequence = self._by_path.get(path)
        if sequence is None:
            self._generates.refuse(path, ThreadStateError(f"Thread {path} is not open."))
        return sequence

    def _fail(self, sequence: Sequence, error: ThreadStateError) -> None:
        """Ends a thread's call because of a command that it cannot follow."""
        self._generates.abort(sequence)
        self._generates.fail(sequence, error)

    def _adopt_policy(self, sequence: Sequence, depth: DepthPolicy) -> None:
        """Puts a policy in charge of a thread's next tokens. Raises `PolicyError` if it cannot."""
        if sequence.policy is not None and depth is sequence.depth and sequence.layout is None:
            return
        self._forget_policy(sequence)
        sequence.depth = depth
        mean = self._model.mean_recurrence
        try:
            if sequence.layout is not None and isinstance(depth, EntropySwitch):
                raise ValueError("its second model cannot read what was merged into a context; join with merge=False")
            self._speculation.check(depth, depth.deepest(mean))
            sequence.constant_bound = converted(depth.constant_bound(mean), Count | None, "constant_bound()")
            sequence.rule = self._prefix_rules.rule_of(depth, sequence.constant_bound)
            sequence.policy = self._backend.register(depth)
        except BaseException as cause:
            raise policy_error(depth, cause) from cause

    def _forget_policy(self, sequence: Sequence) -> None:
        if sequence.policy is not None:
            self._backend.release(sequence.policy)
            sequence.policy = None
