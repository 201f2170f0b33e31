"""Threads that an engine has run, token by token, as a trace tells them: what rollouts are replayed from, and what exit
rules are calibrated on."""

from __future__ import annotations

import msgspec

from policies import Role
from traces import ThreadContext, ThreadRecord, Trace, contexts_of, path_name, thread_tree, walk_threads

Prefix = tuple[bytes, tuple[int, ...]]
"""A depth policy, and the tokens of a context up to one of them."""


class ExitGroup(msgspec.Struct, frozen=True):
    """Tokens `start .. end` that entered the device together and leave it together; a sampled token is alone."""

    start: int
    end: int


class ThreadTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of a thread up to one that it sampled; all but that one were computed.

    A thread out of whose context something was cut makes several: one up to each cut, and one of what it had at its
    end. Each counts what the one before does not have.
    """

    path: tuple[int, ...]
    tokens: tuple[int, ...]
    is_sampled: tuple[bool, ...]
    """Which of `tokens` the thread sampled itself, rather than received."""
    counted_from: int
    """The first of `tokens` that is not counted with an earlier context of the thread."""
    logprobs: tuple[float, ...]
    """Nats, at which each token was sampled; 0 for received ones."""
    depths: tuple[int, ...]
    """Iterations of each token but the last, which was not computed any more; 0 where the trace does not say."""
    groups: tuple[ExitGroup, ...]
    """Of the computed tokens, in order, without gaps."""
    role: Role

    @property
    def tree_depth(self) -> int:
        """How many threads are above it."""
        return len(self.path) - 1


def threads_in(trace: Trace) -> list[ThreadTokens]:
    """Every thread of a trace that sampled anything, in order of path, its contexts in order of time.

    Threads that inherited a context (forks) are left out: another one computed their first tokens. A thread that
    spawned counts as a parent from its first token on. Raises `TraceError` for events that do not fit together.
    """
    chunk = int(trace.header.engine["prefill_chunk"])
    records = [record for record in walk_threads(thread_tree(trace.events)) if record.inherits is None]
    contexts = [contexts_of(record) for record in records]
    known: dict[Prefix, int] = {}
    for record, of_record in zip(records, contexts, strict=True):
        _note_depths(record, of_record[0], known)
    return [
        _thread(record, context, known, chunk)
        for record, of_record in zip(records, contexts, strict=True)
        for context in of_record
        if True in context.is_sampled[context.earlier :]
    ]


def check_replayable(trace: Trace, threads: list[ThreadTokens]) -> None:
    """Raises `ValueError` for a trace whose threads' log-probabilities cannot be computed again by dense passes.

    Those are of engines that shared iteration slots, of two models that spoke in turns, of forks, of constrained
    tokens, of threads that carried latent states, and of tokens that were computed before the recording began.
    """
    if trace.header.engine.get("iteration_slots") is not None:
        raise ValueError(
            "The trace was recorded with fewer slots than iterations; record rollouts with iteration_slots=None."
        )
    for record in walk_threads(thread_tree(trace.events)):
        name = path_name(record.path)
        if record.inherits is not None:
            raise ValueError(f"Thread {name} is a fork; only threads with a context of their own replay.")
        if any(sample.depth == 0 for call in record.calls for sample in call.samples):
            raise ValueError(f"Thread {name} has tokens of a second model; record rollouts without EntropySwitch.")
        if any(call.constraint is not None for call in record.calls):
            raise ValueError(
                f"Thread {name} has constrained tokens, whose log-probabilities no dense pass computes; record "
                "rollouts without constraints."
            )
        if isinstance(record.depth, dict) and record.depth.get("carry", "none") != "none":
            raise ValueError(f"Thread {name} carried latent states; record rollouts with carry='none'.")
    for thread in threads:
        if 0 in thread.depths:
            raise ValueError(
                f"Thread {path_name(thread.path)}: the trace does not say how deep token {thread.depths.index(0)} "
                "is. It was computed before the recording began; record rollouts with reuse_prefixes=False, or with "
                "engine.recording()."
            )


def _prompt_of(context: ThreadContext) -> tuple[int, ...]:
    """The leading received tokens, which other threads may have computed for it."""
    first = next((piece.start for piece in context.pieces if piece.is_sampled), len(context.tokens))
    return context.tokens[:first]


def _note_depths(record: ThreadRecord, context: ThreadContext, known: dict[Prefix, int]) -> None:
    policy, prompt = msgspec.msgpack.encode(record.depth), _prompt_of(context)
    for position, depth in enumerate(context.depths[: len(prompt)]):
        if depth > 0:
            known[policy, prompt[: position + 1]] = depth


def _thread(record: ThreadRecord, context: ThreadContext, known: dict[Prefix, int], chunk: int) -> ThreadTokens:
    is_sampled = context.is_sampled
    last = len(is_sampled) - 1 - is_sampled[::-1].index(True)
    policy, prompt = msgspec.msgpack.encode(record.depth), _prompt_of(context)
    depths = list(context.depths[:last])
    for position in range(min(len(prompt), last)):
        if depths[position] == 0:
            depths[position] = known.get((policy, prompt[: position + 1]), 0)
    return ThreadTokens(
        path=record.path,
        tokens=context.tokens[: last + 1],
        is_sampled=is_sampled[: last + 1],
        counted_from=context.earlier,
        logprobs=tuple(logprob or 0.0 for logprob in context.logprobs[: last + 1]),
        depths=tuple(depths),
        groups=tuple(group for group in _groups(context, chunk) if group.end <= last),
        role="root" if len(record.path) == 1 else "parent" if record.thread_spawns else "child",
    )


def _groups(context: ThreadContext, chunk: int) -> list[ExitGroup]:
    return [
        ExitGroup(first, min(first + size, piece.end))
        for piece in context.pieces
        for size in (1 if piece.is_sampled else chunk,)
        for first in range(piece.start, piece.end, size)
    ]
