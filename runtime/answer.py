"""What reasoning threads give back: generations, streamed chunks and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from runtime.commands import FinishReason, ThreadPath
from runtime.usage import Usage

AnswerReason = Literal["returned", "nothing", "stop", "length", "context", "iterations", "limit", "cancelled"]
"""How a thread came to its end: it returned a message, it ended without one, its text stopped or ran into a bound, a
limit ended it, or it was cancelled."""


class Chunk(msgspec.Struct, frozen=True):
    """A piece of a stream. `text` is what became final with `tokens`: a character of several tokens comes whole, and
    nothing that may become a stop string comes before it is known not to be one."""

    text: str
    tokens: tuple[int, ...]


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What one `generate` appended to its thread's context."""

    text: str
    """What the context's text grew by, without what stopped it."""
    tokens: tuple[int, ...]
    """What the context gained, a stop included."""
    logprobs: tuple[float, ...]
    """Natural-log probability of each token under the distribution it was sampled from."""
    top_logprobs: tuple[Mapping[int, float], ...]
    """The likeliest tokens at each step, as many as `Sampling.logprobs` asks for."""
    depths: tuple[int, ...]
    """Iterations that made each token's logits."""
    reason: FinishReason
    limit: Literal["tokens", "iterations"] | None = None
    """The limit that cut it short; the next call raises `LimitExceeded`."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a thread returned to its parent, or a tree to its user."""

    text: str
    """Empty where nothing was returned."""
    tokens: tuple[int, ...]
    path: ThreadPath
    """The thread that answered."""
    usage: Usage
    """Of the thread and everything below it."""
    reason: AnswerReason


class Outcome(msgspec.Struct, frozen=True):
    """How a thread's work ended, before its usage is known."""

    tokens: tuple[int, ...]
    text: str
    reason: AnswerReason

    def answer(self, path: ThreadPath, usage: Usage) -> Answer:
        return Answer(text=self.text, tokens=self.tokens, path=path, usage=usage, reason=self.reason)
