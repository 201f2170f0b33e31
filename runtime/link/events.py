"""Everything a trace can hold. One file is a header and then events in the order in which they happened.

Events of the device (`Computed`, `Sampled`, `TickDone`, ...) come from the device thread, events of the tree
(`Spawned`, `Joined`, ...) from the coroutines; both pass through the device thread, which owns the writer, so that
their order is total. `thread` is a thread's path: (tree, child, grandchild, ...).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runtime.link.constraints import Constraint
from runtime.link.work import Work

Count = Annotated[int, Meta(ge=0, lt=2**53)]
"""What readers accept: exact in every format that a trace is turned into."""

Token = Annotated[int, Meta(ge=0, lt=2**31)]

Seconds = Annotated[float, Meta(ge=0, le=1e9)]

ThreadPath = Annotated[tuple[Count, ...], Meta(min_length=1)]

FORMAT = 3
"""The format this vocabulary belongs to, as in `Header.format`. A field added at the end of an event, with a default,
keeps it: older readers skip the field and newer readers fill it in."""

LARGEST_RECORD = 2**24
"""Bytes of a record: some millions of tokens."""

DEEPEST_VALUE = 64
"""Lists and objects within each other, in the values that have no type here: settings and policies."""


class Event(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """Base of all events. `time` is seconds since the header's `started`, from a monotonic clock."""

    time: Seconds


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first record of a trace."""

    format: int
    started: float
    """Unix time."""
    checkpoint: str
    """Name or path the engine was opened with."""
    fingerprint: str
    """Hex digest of the model's configuration and weights."""
    policy: Any
    """The default policy, as msgspec builtins."""
    seed: int
    engine: dict[str, Any]
    """Engine settings (slots, lanes, pages, dtype, ...), as builtins."""
    versions: dict[str, str]
    """Versions of Python and of the libraries that matter."""
    drafts: str | None = None
    """Name or path of the second model that the engine was opened with."""
    compression: Literal["none", "zstd"] = "none"
    """Of the records that follow."""


class ThreadOpened(Event, frozen=True, kw_only=True):
    """The device was told of a thread."""

    thread: ThreadPath
    inherits: ThreadPath | None
    """The thread whose context it began with (a fork), or None."""
    seed: int
    depth: Any
    """Its depth policy, as builtins."""


class Received(Event, frozen=True, kw_only=True):
    """A prompt or message was appended to a thread's context; `position` is where it begins."""

    thread: ThreadPath
    position: Count
    tokens: tuple[Token, ...]


class GenerateStarted(Event, frozen=True, kw_only=True):
    """A thread was asked to generate at most `max_tokens`; the first of them will stand at `position`."""

    thread: ThreadPath
    position: Count
    max_tokens: Count
    sampling: Any
    """As builtins."""
    depth: Any
    """The depth policy of this call, as builtins."""
    max_iterations: int | None = None
    """As the command had it; a policy that spends a budget needs it to decide the same again."""
    scores: tuple[Token, ...] = ()
    """Tokens that it scores, in place of any that it samples; the first of them would stand at `position`."""
    fills: bool = False
    """Whether it only computes the context to its last token."""
    constraint: Constraint | None = None
    """What its tokens are constrained to; their log-probabilities are then those of the constrained distribution."""


class Merged(Event, frozen=True, kw_only=True):
    """What children had beyond a thread's context was appended to it, with its keys and values as they are; `position`
    is where it begins, counted in tokens. It goes on at `next_position`, as the model counts positions."""

    thread: ThreadPath
    children: tuple[ThreadPath, ...]
    position: Count
    tokens: tuple[Token, ...]
    next_position: Count


class Computed(Event, frozen=True, kw_only=True):
    """Tokens `position .. position + count` of a thread left the device, all at the same depth.

    Received tokens, and sampled tokens that were fed back; in order of position within a thread.
    """

    tick: Count
    thread: ThreadPath
    position: Count
    count: Count
    depth: Count
    recomputed: bool
    """Whether they had been computed before and were evicted."""
    received: Count = 0
    """How many of them were received rather than sampled."""


class Sampled(Event, frozen=True, kw_only=True):
    """A thread sampled the token at `position`; its logits came from the token before, at `depth` iterations."""

    tick: Count
    thread: ThreadPath
    position: Count
    token: Token
    depth: Count
    logprob: float
    entropy: float | None = None
    """Nats, of the distribution it was sampled from, where the call keeps entropies: playback hands it to policies."""
    top_logprobs: dict[int, float] | None = None
    """The likeliest tokens, where the sampling asks for them."""


class Scored(Event, frozen=True, kw_only=True):
    """A thread's token that would stand at `position` was scored; its logits came from the token before."""

    tick: Count
    thread: ThreadPath
    position: Count
    token: Token
    depth: Count
    logprob: float
    """Under the model's own distribution."""
    top_logprobs: dict[int, float] | None = None
    """The likeliest tokens, where they are asked for."""


class GenerateFinished(Event, frozen=True, kw_only=True):
    """A generate ended; tokens from `position` on, if any were sampled, are no longer in the context."""

    thread: ThreadPath
    position: Count
    reason: str
    work: Work
    """What it cost."""
    drafted: Count = 0
    """Tokens that entered before it was sure that they would be said; their iterations count."""
    accepted: Count = 0
    """Those of them that were said."""


def encodable(text: str) -> str:
    """A text that UTF-8 can hold: lone surrogates, as in file names of other encodings, are escaped."""
    return text.encode(errors="backslashreplace").decode()


class Worded(Event, frozen=True, kw_only=True):
    """Base of events with texts that come from outside; every one of them is made encodable."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            text = getattr(self, name)
            if isinstance(text, str) and not text.isascii():
                msgspec.structs.force_setattr(self, name, encodable(text))


class ThreadFailed(Worded, frozen=True, kw_only=True):
    """The device could not go on with a thread; `error` is what its program was told."""

    thread: ThreadPath
    error: str


class Evicted(Event, frozen=True, kw_only=True):
    """A thread lost its pages under pressure; its tokens are recomputed when it goes on."""

    thread: ThreadPath
    pages: Count


class ThreadClosed(Event, frozen=True, kw_only=True):
    """The device has forgotten a thread, and given back its pages."""

    thread: ThreadPath


class TickDone(Event, frozen=True, kw_only=True):
    """One call of the device."""

    tick: Count
    seconds: Seconds
    """Wall time of the call."""
    entered: Count
    in_flight: Count
    """Tokens in the core iteration: this tick's token-iterations."""
    left: Count
    waiting: Count
    pages_used: Count


class RunStarted(Worded, frozen=True, kw_only=True):
    """`Engine.run` or `Engine.thread` opened a tree."""

    thread: ThreadPath
    prompt: str


class Spawned(Worded, frozen=True, kw_only=True):
    """A child was asked for. `child` is None where the policy refused."""

    thread: ThreadPath
    child: ThreadPath | None
    by_model: bool
    fork: bool
    tokens: tuple[Token, ...]
    reason: str


class Joined(Event, frozen=True, kw_only=True):
    """A parent went on: messages of `delivered` were appended to its context, `cancelled` were stopped."""

    thread: ThreadPath
    children: tuple[ThreadPath, ...]
    delivered: tuple[ThreadPath, ...]
    cancelled: tuple[ThreadPath, ...]
    merged: bool = False
    """Whether their keys and values were merged into its context, and `delivered` are those that had any."""


class ToolCalled(Worded, frozen=True, kw_only=True):
    """A child that was asked for is a call of a tool: `thread` is its own path, and it is never opened. Its result is
    the text of its `ThreadEnded`."""

    thread: ThreadPath
    name: str
    arguments: str
    """As JSON, or whatever a model wrote in place of that."""


class MessageSent(Worded, frozen=True, kw_only=True):
    """A thread has sent a message to another one of its tree, whose mailbox has it from then on."""

    thread: ThreadPath
    to: ThreadPath
    text: str
    tokens: tuple[Token, ...] = ()
    """Token ids, where these were sent."""
    error: str = ""
    """Why it was not sent; empty where it was."""


class Posted(Worded, frozen=True, kw_only=True):
    """A thread has posted a text on the board of its tree. Posts of a tree stand on it in the order of the trace."""

    thread: ThreadPath
    text: str


class MessagesReceived(Event, frozen=True, kw_only=True):
    """A thread has looked for messages: what came of it. Its messages of one sender are taken in the order in which
    they were sent."""

    thread: ThreadPath
    senders: tuple[ThreadPath, ...]
    """Of the messages that it took, in this order; none where there were none."""
    posts: Count
    """How many posts of the board it has passed by then, its own among them."""
    ending: Literal["", "alone", "cancelled"] = ""
    """Why it waits no longer, where it took nothing after waiting: no other thread was open, or it was cancelled."""


class ThreadEnded(Worded, frozen=True, kw_only=True):
    """A thread's coroutine is over: `outcome` is "returned", "nothing", "cancelled" or "failed"."""

    thread: ThreadPath
    outcome: str
    message: tuple[Token, ...]
    """The token ids of what it returned to its parent, or to the user."""
    text: str
    error: str
    work: Work | None = None
    """What its own generates had cost by then; of one that was interrupted then, the device has yet to tell."""
    reasons: tuple[str, ...] = ()
    """Why each of them had ended, in order."""


AnyEvent = (
    ThreadOpened
    | Received
    | Merged
    | GenerateStarted
    | Computed
    | Sampled
    | Scored
    | GenerateFinished
    | ThreadFailed
    | Evicted
    | ThreadClosed
    | TickDone
    | RunStarted
    | Spawned
    | Joined
    | ToolCalled
    | MessageSent
    | Posted
    | MessagesReceived
    | ThreadEnded
)


@dataclass(frozen=True)
class Trace:
    """A trace in memory: what `traces.read` makes of a file, and an engine plays back."""

    header: Header
    events: list[AnyEvent] = field(default_factory=list)
    lost: str | None = None
    """What is missing at the end and why; None for a trace that its writer closed."""
