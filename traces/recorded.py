"""One recorded thread, compared with what a program asks of it while it is played back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import msgspec

import runtime
from runtime import BraidError, TraceError
from runtime.link import (
    AnyEvent,
    Finished,
    FinishReason,
    Generate,
    GenerateStarted,
    Merged,
    OpenThread,
    Received,
    Sampled,
    Scored,
    ThreadClosed,
    ThreadOpened,
    ThreadPath,
    ToolAnswered,
    ToolCalled,
    Work,
)
from traces.generate_record import GenerateRecord
from traces.tree import Receipt, ThreadRecord, path_name

ADVICE = "Play a trace back with the program, the policy and the settings that made it."


class PendingCall:
    """A generate that the program waits for, and the recorded call that answers it."""

    def __init__(self, number: int, request: Generate, recorded: GenerateRecord) -> None:
        self.number = number
        self.request = request
        self.recorded = recorded
        self.delivered = 0
        """Samples that the program's watcher has been fed."""
        self.stops = False
        """Whether the program's generate stops with the last delivered token: by its stop tokens or its watcher."""
        self.keep: int | None = None
        """What the program's interrupt keeps, once it has come."""


class RecordedThread:
    """Follows one thread of a recording. Methods raise `TraceError` where the program leaves it.

    Received tokens are compared by content, not by how many commands brought them. A generate fits if it samples in
    the same way and its bound allows what was recorded; what else it asks for decides nothing that a recording has.
    """

    def __init__(self, record: ThreadRecord, lost: str | None) -> None:
        self.record = record
        self.lost = lost
        self.name = path_name(record.path)
        self.is_open = False
        self.is_closed = False
        self.error: BraidError | None = None
        self.length = 0
        """Tokens in the program's context."""
        self.calls = 0
        """Generates that the program has asked for."""
        self.tried_to_fail = False
        """Whether the program has sent the command that made it fail between its generates."""
        self.pending: PendingCall | None = None
        self.is_called = False
        """Of a tool, whether the program has called it."""
        self.is_answered = False
        """Of a tool, whether its result was given, so that its call is about to end."""
        self._consumed = 0
        """Tokens received since the last generate was asked for."""
        self._received = 0
        """Tokens received in all."""
        self._merges = 0
        """Merged joins since the last generate was asked for."""
        self._last_start = 0
        self._receipts = _received_before_calls(record)
        ends = accumulate(len(receipt.tokens) for receipt in record.receipts)
        self._received_by = {receipt.index: end for receipt, end in zip(record.receipts, ends, strict=True)}
        self._call_numbers = {call.index: number for number, call in enumerate(record.calls)}

    def call_tool(self, called: ToolCalled) -> None:
        """The program calls a tool."""
        recorded = self.record.tool
        if recorded is None:
            raise self._differs(f"the program calls the tool {called.name}, and the recording has a thread there")
        self._expect("name of the tool", recorded.name, called.name)
        self._expect("arguments", recorded.arguments, called.arguments)
        self.is_called = True

    def answered(self) -> ToolAnswered:
        """What a tool gave."""
        record = self.record
        self.is_answered = True
        error: BraidError | None = None
        if record.outcome is None:
            why = self.lost or "its run was not finished"
            error = TraceError(f"Thread {self.name}: the recording ends while the tool is running ({why}).")
        elif record.outcome == "cancelled":
            error = self._differs("the tool was cancelled while it ran; the program did not cancel it in as much time")
        elif record.outcome == "failed":
            error = self.recorded_error(record.error)
        return ToolAnswered(record.path, record.text, error)

    def open(self, command: OpenThread, inherited: RecordedThread | None) -> None:
        record = self.record
        if record.tool is not None:
            raise self._differs(f"the program opens it, and the recording calls the tool {record.tool.name} there")
        if self.is_open or record.opened is None:
            raise self._differs("the program opens it once more" if self.is_open else "it was never opened")
        self._expect("inherits from thread", record.inherits, command.inherits)
        self._expect("seed", record.seed, command.seed)
        self._expect("depth policy", builtins(record.depth), builtins(command.depth))
        if inherited is not None:
            self.length = inherited.length
            if record.segments:
                self._expect("number of inherited tokens", record.segments[0].position, self.length)
        self.is_open = True

    def extend(self, tokens: tuple[int, ...]) -> None:
        if not self.is_open:
            raise self._differs("the program uses it without opening it")
        expected = self._receipts[self.calls]
        if not tokens:
            return
        if self._consumed == 0 and expected:
            self._expect("context length before the message", expected[0].position, self.length)
        recorded = [token for receipt in expected for token in receipt.tokens][self._consumed :]
        for offset, token in enumerate(tokens):
            if offset == len(recorded):
                raise self._differs(
                    f"the program appends {len(tokens)} tokens at position {self.length} and the recording has only "
                    f"{len(recorded)} there"
                )
            if recorded[offset] != token:
                raise self._differs(
                    f"the program appends token {token} at position {self.length + offset} where the recording has "
                    f"{recorded[offset]}"
                )
        self._consumed += len(tokens)
        self._received += len(tokens)
        self.length += len(tokens)

    def merge(self, children: tuple[ThreadPath, ...]) -> None:
        """The program's thread takes children over."""
        if not self.is_open:
            raise self._differs("the program uses it without opening it")
        merges = [receipt for receipt in self._receipts[self.calls] if receipt.merged is not None]
        if self._merges == len(merges):
            raise self._differs("the program merges children where the recording does not")
        receipt = merges[self._merges]
        self._expect("merged children", receipt.merged, children)
        self._expect("context length before a merged join", receipt.position, self.length)
        self._merges += 1
        count = len(receipt.tokens)
        self._consumed += count
        self._received += count
        self.length += count
        if count:
            self._last_start = self.length

    def generate(self, request: Generate) -> None:
        if not self.is_open:
            raise self._differs("the program uses it without opening it")
        if self.pending is not None:
            raise self._differs("the program starts a generate while another is open")
        if self.calls == len(self.record.calls):
            raise self._differs(f"the program starts generate {self.calls + 1}, and only {self.calls} were recorded")
        call = self.record.calls[self.calls]
        missing = sum(len(receipt.tokens) for receipt in self._receipts[self.calls]) - self._consumed
        if missing:
            raise self._differs(f"the recording has {missing} more received tokens before generate {self.calls + 1}")
        self._expect("context length", call.position, self.length)
        self._expect("tokens to score", call.scores, request.scores)
        self._expect("whether it only fills the context", call.fills, request.fills)
        self._expect("what the tokens are constrained to", call.constraint, request.constraint)
        self._expect("sampling", _choice(call.sampling), _choice(request.sampling))
        if request.depth is not None:
            self._expect("depth policy", builtins(call.depth), builtins(request.depth))
        if not call.scores and (
            request.max_tokens < len(call.samples) or (call.reason == "length" and request.max_tokens > call.max_tokens)
        ):
            raise self._differs(
                f"generate {self.calls + 1} asks for at most {request.max_tokens} tokens; recorded were "
                f"{len(call.samples)} of at most {call.max_tokens}"
            )
        self.pending = PendingCall(self.calls, request, call)
        self._last_start = self.length
        self.calls += 1
        self._consumed = self._merges = 0

    def interrupt(self, keep: int) -> None:
        if self.pending is not None:
            self.pending.keep = keep
        else:
            self.length = min(self.length, self._last_start + keep)

    def finish(self) -> Finished:
        """Ends the pending call as it ended in the recording, or as the program's interrupt says."""
        pending = self.pending
        assert pending is not None
        call = pending.recorded
        interrupted = call.reason in ("interrupted", None)
        # A constraint, which is the recorded one, ends a text by itself.
        if call.reason == "stop" and not pending.stops and call.constraint is None:
            raise self._differs(
                f"generate {pending.number + 1} stopped after {pending.delivered} tokens; the program's goes on"
            )
        kept: Sequence[Sampled | Scored] = call.samples[: pending.keep] if interrupted else call.kept
        self.pending = None
        self.length = call.position + len(kept)
        if pending.keep is not None:
            self.length = min(self.length, call.position + pending.keep)
        if call.scores and not interrupted:
            # They are told, and were no part of the context.
            kept = call.scored
        return Finished(
            thread=self.record.path,
            tokens=tuple(sample.token for sample in kept),
            logprobs=tuple(sample.logprob for sample in kept),
            top_logprobs=tuple(sample.top_logprobs or {} for sample in kept),
            depths=tuple(sample.depth for sample in kept),
            reason="interrupted" if interrupted else cast(FinishReason, call.reason),
            work=Work(generated=len(call.samples)) if call.work is None else call.work,
        )

    def has_come(self, index: int, event: AnyEvent) -> bool:
        """Whether the program has sent the command that an event of this thread records, if it records one."""
        match event:
            case ThreadOpened():
                return self.is_open
            case Received() | Merged():
                return self._received >= self._received_by[index]
            case GenerateStarted():
                return self.calls > self._call_numbers[index]
            case ThreadClosed():
                return self.is_closed
            case ToolCalled():
                return self.is_called
            case _:
                return True

    @property
    def is_over(self) -> bool:
        """Whether nothing recorded of it is delivered any more."""
        return self.error is not None or (self.is_closed and self.pending is None)

    @property
    def fails_next(self) -> bool:
        """Whether the recorded thread failed between its generates, at this point."""
        failed = self.record.failure_index
        calls = self.record.calls
        return (
            failed is not None
            and self.calls == len(calls)
            and self.pending is None
            and all(failed != call.end_index for call in calls)
        )

    def recorded_error(self, text: str) -> BraidError:
        """A recorded error, as the class that it names where it is one of the runtime's."""
        name, _, message = text.partition(": ")
        kind = getattr(runtime, name, None)
        if message and isinstance(kind, type) and issubclass(kind, BraidError):
            return kind(message)
        return BraidError(text)

    def ends_early(self) -> TraceError:
        """Why a generate whose end is not recorded cannot go on."""
        pending = self.pending
        assert pending is not None
        return TraceError(
            f"Thread {self.name}: the recording ends within generate {pending.number + 1}, after {pending.delivered} "
            f"tokens ({self.lost or 'its run was not finished'})."
        )

    def never_interrupted(self) -> TraceError:
        """Why a generate that the recorded program interrupted cannot go on."""
        pending = self.pending
        assert pending is not None
        return self._differs(
            f"generate {pending.number + 1} was interrupted after {pending.delivered} tokens; the program did not "
            "interrupt it in as much time"
        )

    def stops_early(self) -> TraceError:
        """Why a generate that the program stops has no recorded end."""
        pending = self.pending
        assert pending is not None
        call = pending.recorded
        return self._differs(
            f"the program's generate {pending.number + 1} stops after {pending.delivered} tokens; the recorded one has "
            f"{len(call.samples)} and ended with {call.reason or 'an error'!r}"
        )

    def _expect(self, what: str, recorded: object, found: object) -> None:
        if recorded != found:
            raise self._differs(f"{what} is {found!r}, and was {recorded!r}")

    def _differs(self, how: str) -> TraceError:
        return TraceError(f"Thread {self.name} differs from the recording: {how}. {ADVICE}")


def builtins(data: object) -> Any:
    """As a file holds it: a round trip through msgpack makes structs into objects and tuples into lists."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(data))


def _choice(sampling: object) -> dict[str, Any]:
    """What of a sampling decides which tokens come; how many log-probabilities are reported does not."""
    return {key: value for key, value in builtins(sampling).items() if key != "logprobs"}


def _received_before_calls(record: ThreadRecord) -> list[list[Receipt]]:
    """For each call, and for what follows the last, the receipts since the call before it began."""
    groups: list[list[Receipt]] = [[] for _ in range(len(record.calls) + 1)]
    starts = [call.index for call in record.calls]
    for receipt in record.receipts:
        groups[bisect_left(starts, receipt.index)].append(receipt)
    return groups
