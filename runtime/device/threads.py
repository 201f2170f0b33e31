"""The threads that are open, and what commands make of them: opened, extended, generating, interrupted, closed.

Handled between ticks, on the device thread; a command that makes no sense ends the thread it names, or is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from policies.depth.base import DepthPolicy
from runtime.backend.interface import Backend
from runtime.commands import CloseThread, Extend, Generate, Interrupt, OpenThread, ThreadPath
from runtime.device.admission import Admission
from runtime.device.bounds import policy_error
from runtime.device.calls import Calls
from runtime.device.ledger import Ledger
from runtime.device.memory import ThreadMemory
from runtime.device.prefixes import PrefixRules
from runtime.device.sequence import Call, Sequence
from runtime.device.speculation import Speculation
from runtime.errors import PolicyError, PromptError, ThreadStateError, device_error
from traces import events


class OpenThreads:
    """Every thread that was opened and not closed."""

    def __init__(
        self,
        ledger: Ledger,
        memory: ThreadMemory,
        admission: Admission,
        calls: Calls,
        speculation: Speculation,
        backend: Backend,
        *,
        context: int,
        vocab: int,
        mean_recurrence: int,
    ) -> None:
        """`context` is the most tokens of one thread, token ids are below `vocab`."""
        self._ledger = ledger
        self._memory = memory
        self._admission = admission
        self._calls = calls
        self._speculation = speculation
        self._backend = backend
        self._context = context
        self._vocab = vocab
        self._prefix_rules = PrefixRules(mean_recurrence)
        self._by_path: dict[ThreadPath, Sequence] = {}

    def __len__(self) -> int:
        return len(self._by_path)

    def __getitem__(self, path: ThreadPath) -> Sequence:
        return self._by_path[path]

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._by_path.values())

    def open(self, command: OpenThread) -> None:
        existing = self._by_path.get(command.thread)
        if existing is not None:
            self._fail(existing, f"thread {command.thread} is open already; close it before it is opened again.")
            return
        parent = None if command.inherits is None else self._by_path.get(command.inherits)
        if command.inherits is not None and (parent is None or parent.call is not None):
            state = "not open" if parent is None else "generating"
            error = ThreadStateError(
                f"thread {command.thread} cannot inherit from {command.inherits}, which is {state}."
            )
            self._calls.refuse(command.thread, error)
            return
        sequence = Sequence(command.thread, command.seed, command.depth, command.priority)
        self._by_path[command.thread] = sequence
        self._ledger.record(
            events.ThreadOpened,
            thread=command.thread,
            inherits=command.inherits,
            seed=command.seed,
            depth=command.depth,
        )
        if parent is not None:
            sequence.inherit(parent)
            self._memory.share(sequence.pages)
            self._admission.park(sequence)

    def extend(self, command: Extend) -> None:
        sequence = self._known(command.thread)
        if sequence is None or not command.tokens:
            return
        if sequence.call is not None:
            self._fail(sequence, f"thread {command.thread} received tokens while it was generating.")
            return
        wrong = [token for token in (min(command.tokens), max(command.tokens)) if not 0 <= token < self._vocab]
        if wrong:
            error = PromptError(
                f"thread {command.thread} received token {wrong[0]}; ids are from 0 to {self._vocab - 1}."
            )
            self._calls.fail(sequence, error)
            return
        if len(sequence.tokens) + len(command.tokens) > self._context:
            error = PromptError(
                f"thread {command.thread} has {len(sequence.tokens)} tokens and received {len(command.tokens)} more; "
                f"the model's context holds {self._context}."
            )
            self._calls.fail(sequence, error)
            return
        self._ledger.record(
            events.Received, thread=command.thread, position=len(sequence.tokens), tokens=command.tokens
        )
        sequence.receive(command.tokens)

    def generate(self, request: Generate) -> None:
        sequence = self._known(request.thread)
        if sequence is None:
            return
        if sequence.call is not None:
            # Both calls end: nobody could tell whose tokens they would be.
            message = f"thread {request.thread} was asked to generate while it was generating already."
            self._fail(sequence, message)
            self._calls.refuse(request.thread, ThreadStateError(message))
            return
        if not sequence.tokens:
            self._calls.fail(
                sequence, PromptError(f"thread {request.thread} has an empty context; append a prompt first.")
            )
            return
        try:
            self._follow(sequence, sequence.depth if request.depth is None else request.depth)
        except PolicyError as error:
            self._calls.fail(sequence, error)
            return
        sequence.call = Call(request, len(sequence.tokens))
        sequence.call_start = len(sequence.tokens)
        self._ledger.record(
            events.GenerateStarted,
            thread=request.thread,
            position=len(sequence.tokens),
            max_tokens=request.max_tokens,
            sampling=request.sampling,
            depth=sequence.depth,
            max_iterations=request.max_iterations,
        )
        if request.max_tokens < 1 or len(sequence.tokens) >= self._context:
            self._calls.finish(sequence, "length" if request.max_tokens < 1 else "context")
            return
        if sequence.computed == len(sequence.tokens):
            # The last token's logits are gone: it is computed once more, at the depth it had.
            self._admission.step_back(sequence, len(sequence.tokens) - 1)
        self._admission.enqueue(sequence)

    def interrupt(self, command: Interrupt) -> None:
        sequence = self._by_path.get(command.thread)
        if sequence is None:
            return
        self._calls.land(sequence)
        length = min(len(sequence.tokens), sequence.call_start + command.keep)
        self._memory.release(sequence.truncate(length, self._memory.page_size))
        if sequence.call is not None:
            sequence.call.keep(command.keep)
            self._calls.finish(sequence, "interrupted")
        if sequence.row < 0 and not sequence.pages:
            self._admission.leave_queues(sequence)

    def close(self, command: CloseThread) -> None:
        sequence = self._by_path.pop(command.thread, None)
        if sequence is None:
            return
        if sequence.call is not None:
            self._calls.land(sequence)
        if sequence.call is not None:
            self._calls.finish(sequence, "interrupted")
        self._admission.leave_queues(sequence)
        self._memory.clear(sequence)
        self._unfollow(sequence)
        self._ledger.record(events.ThreadClosed, thread=command.thread)

    def blame(self, path: ThreadPath, cause: Exception) -> None:
        """Ends a thread, open or not, for what the device could not do for it."""
        sequence = self._by_path.get(path)
        if sequence is None:
            self._calls.refuse(path, device_error(path, cause))
        else:
            self._calls.blame(sequence, cause)

    def _known(self, path: ThreadPath) -> Sequence | None:
        """The thread of a command; if it is not open, a report says so."""
        sequence = self._by_path.get(path)
        if sequence is None:
            self._calls.refuse(path, ThreadStateError(f"thread {path} is not open."))
        return sequence

    def _fail(self, sequence: Sequence, message: str) -> None:
        """Ends a thread's call because of a command that it cannot follow."""
        self._calls.land(sequence)
        self._calls.fail(sequence, ThreadStateError(message))

    def _follow(self, sequence: Sequence, depth: DepthPolicy) -> None:
        """Makes a policy the one that decides about a thread's next tokens. Raises `PolicyError` if it cannot."""
        if sequence.policy >= 0 and depth is sequence.depth:
            return
        self._unfollow(sequence)
        sequence.depth = depth
        try:
            self._speculation.check(depth)
            sequence.rule = self._prefix_rules.rule_of(depth)
            sequence.policy = self._backend.register(depth)
        except Exception as cause:
            raise policy_error(depth, cause) from cause

    def _unfollow(self, sequence: Sequence) -> None:
        if sequence.policy >= 0:
            self._backend.release(sequence.policy)
            sequence.policy = -1
