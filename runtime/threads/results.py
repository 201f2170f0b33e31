"""What reasoning threads give back: generations, streamed chunks and answers, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

from runtime.link.commands import FinishReason, ThreadPath
from runtime.link.work import Work

AnswerReason = Literal["returned", "nothing", "stop", "length", "context", "iterations", "limit", "cancelled"]
"""How a thread came to its end: it returned a message, it ended without one, its text stopped or ran into a bound, a
limit ended it, or it was cancelled."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Work the device reported; cancelled work counts once its report has arrived, at the latest a tick later."""

    generated: int = 0
    """Tokens sampled, kept or not."""
    computed: int = 0
    """Tokens computed: received ones, and sampled ones fed back."""
    iterations: int = 0
    """Token-iterations of the core block: the compute."""
    recomputed: int = 0
    """Of `computed`, tokens computed again after eviction."""
    prompt_tokens: int = 0
    """Received tokens that were needed: computed, again after eviction included, or taken from the cache. What a fork
    inherits is not counted."""
    cached_tokens: int = 0
    """Of `prompt_tokens`, those whose pages were shared with threads that had computed the same before, in any tree."""
    threads: int = 0
    max_context: int = 0
    """Tokens in the longest context among these threads."""
    spawns_requested: int = 0
    """Children that models asked for; those a program spawned are not among them."""
    spawns_granted: int = 0
    """Of `spawns_requested`, those that ran."""
    tool_calls: int = 0
    """Calls of tools that were begun, by models and by programs; they are among neither threads nor spawns."""
    seconds: float = 0.0
    """Wall time from the start to the end, or to now."""

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that came from the cache, 0 to 1; 0 where there was none."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class Tally(Work, kw_only=True):
    """Running sums of one thread or of one subtree, which a `Usage` is a snapshot of."""

    threads: int = 0
    max_context: int = 0
    spawns_requested: int = 0
    spawns_granted: int = 0
    tool_calls: int = 0

    def usage(self, seconds: float) -> Usage:
        return Usage(**msgspec.structs.asdict(self), seconds=seconds)


def add(*usages: Usage) -> Usage:
    """The usage of several runs at the same time: counts are summed, `max_context` and `seconds` are the largest."""
    largest = ("max_context", "seconds")
    names = Usage.__struct_fields__
    columns = {name: [getattr(usage, name) for usage in usages] for name in names}
    return Usage(**{name: max(columns[name], default=0) if name in largest else sum(columns[name]) for name in names})


class Chunk(msgspec.Struct, frozen=True):
    """A piece of a stream. `text` is what became final with `tokens`: a character of several tokens comes whole, and
    nothing that may become a stop string comes before it is known not to be one."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    """As in `Generation`, of each token."""
    top_logprobs: tuple[Mapping[int, float], ...] = ()
    """As in `Generation`; none where the sampling asks for none."""
    depths: tuple[int, ...] = ()
    """As in `Generation`, of each token."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What one `generate` appended to its thread's context."""

    text: str
    """What the context's text grew by, without what stopped it."""
    tokens: tuple[int, ...]
    """What the context gained, a stop included."""
    logprobs: tuple[float, ...]
    """Natural-log probability of each token under the distribution it was sampled from; that is the constrained one
    where `is_constrained`."""
    top_logprobs: tuple[Mapping[int, float], ...]
    """The likeliest tokens at each step, as many as `Sampling.logprobs` asks for."""
    depths: tuple[int, ...]
    """Iterations that made each token's logits; 0 where a second model said it (`EntropySwitch`)."""
    reason: FinishReason
    is_constrained: bool = False
    """Whether the call was given what its text must be; it is that if the reason is "stop"."""
    limit: Literal["tokens", "iterations"] | None = None
    """The limit that cut it short; the next call raises `LimitExceeded`."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What given tokens are worth to the model after a thread's context."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural-log probability of each token after all before it, under the model's own distribution: at temperature 1,
    without filters."""
    top_logprobs: tuple[Mapping[int, float], ...]
    """The likeliest tokens in the place of each, likeliest first, as many as were asked for."""
    depths: tuple[int, ...]
    """Iterations that made each token's logits."""

    @property
    def logprob(self) -> float:
        """Of all tokens together."""
        return math.fsum(self.logprobs)


class Outcome(msgspec.Struct, frozen=True):
    """How a thread's work ended."""

    tokens: tuple[int, ...]
    """What it returned; where a bound ended it before that, what it had generated."""
    text: str
    """What it returned; empty where that is nothing."""
    reason: AnswerReason

    @property
    def message(self) -> tuple[int, ...]:
        """Token ids of what it returned to its parent or user; empty where that is nothing."""
        return self.tokens if self.reason in ("returned", "stop") else ()


class Answer(Outcome, frozen=True, kw_only=True):
    """What a thread returned to its parent, or a tree to its user."""

    path: ThreadPath
    """The thread that answered."""
    usage: Usage
    """Of the thread and everything below it."""


def has_returned(answer: Answer) -> bool:
    """Whether there is a message; a tool's may be a text that has no tokens."""
    return bool(answer.message or answer.text)


def answered(outcome: Outcome, path: ThreadPath, usage: Usage) -> Answer:
    """What others get for a thread's outcome, once its usage is known."""
    return Answer(**msgspec.structs.asdict(outcome), path=path, usage=usage)
