"""What a random program is: data, so that one that fails can be printed and run again."""

from __future__ import annotations

from typing import Literal

import msgspec

from policies import Limits

Tokens = tuple[int, ...]
FaultPlace = Literal["tick", "after tick", "prelude", "core", "coda", "allocate"]
FaultKind = Literal["out of memory", "runtime error", "memory error"]

KINDS: dict[FaultPlace, tuple[FaultKind, ...]] = {
    "tick": ("out of memory", "runtime error"),
    # Memory may be wanting before anything has changed, not after.
    "after tick": ("runtime error",),
    "prelude": ("out of memory", "runtime error"),
    "core": ("out of memory", "memory error"),
    "coda": ("out of memory", "runtime error"),
    "allocate": ("out of memory", "memory error"),
}
"""What can go wrong where."""


class Action(msgspec.Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Something that a thread's body does."""


class Append(Action, frozen=True):
    tokens: Tokens


class Generate(Action, frozen=True):
    tokens: int
    sampling: str = "greedy"
    """A name in `subjects.SAMPLINGS`."""
    depth: str | None = None
    """A name in `subjects.DEPTHS`."""
    stop: Tokens = ()
    nowait: bool = False
    form: str | None = None
    """A name in `subjects.FORMS`: a regular expression that the text must match, where the model has a tokenizer."""


class Stream(Action, frozen=True):
    tokens: int
    sampling: str = "greedy"
    depth: str | None = None
    take: int | None = None
    """Chunks until it is left; None for all of them."""
    leave: Literal["close", "break", "raise"] = "close"


class Spawn(Action, frozen=True):
    message: Tokens
    body: tuple[AnyAction, ...] | None
    """None lets the model drive the child."""
    fork: bool = False
    depth: str | None = None
    limits: Limits | None = None
    priority: int | None = None


class Branch(Action, frozen=True):
    """Forks that are joined by a merged join, and what is appended behind it."""

    children: tuple[Spawn, ...]
    conclusion: Tokens


class Join(Action, frozen=True):
    how: Literal["all", "first", "as completed", "merge"] = "all"
    append: bool = True
    most: int | None = None
    """Of the children that nobody has joined, the first so many; None for all of them."""


class Call(Action, frozen=True):
    """A tool is called; its result is joined, or cancelled, as other children are."""

    tool: Literal["quick", "slow", "hurried", "lasting", "fails", "raises"]
    milliseconds: float = 0.0


class Send(Action, frozen=True):
    """A message to the parent, or to one of the children, by its number."""

    to: int | None
    tokens: Tokens


class Post(Action, frozen=True):
    text: str


class Receive(Action, frozen=True):
    """What was sent is taken: out of the mailbox, after waiting for some milliseconds, or into the context, with what
    was posted."""

    how: Literal["mailbox", "wait", "context"]


class Cancel(Action, frozen=True):
    child: int


class Within(Action, frozen=True):
    """A deadline over some actions."""

    milliseconds: float
    body: tuple[AnyAction, ...]


class Pause(Action, frozen=True):
    milliseconds: float


class Fail(Action, frozen=True):
    """The body raises an error of its own."""


class Return(Action, frozen=True):
    tokens: Tokens


AnyAction = (
    Append
    | Branch
    | Call
    | Generate
    | Stream
    | Spawn
    | Join
    | Send
    | Post
    | Receive
    | Cancel
    | Within
    | Pause
    | Fail
    | Return
)


class Root(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tree: orchestrated by `body`, or by the model where there is none."""

    prompt: Tokens
    body: tuple[AnyAction, ...] | None
    depth: str
    limits: Limits | None = None
    priority: int = 0
    max_tokens: int | None = None
    starts_after: float = 0.0
    """Milliseconds."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """The `at`-th time (from 1) that something is done, it fails."""

    place: FaultPlace
    at: int
    kind: FaultKind


class Setup(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The engine that a program runs on, and how its life ends."""

    loop: Literal["asyncio", "trio"] = "asyncio"
    model: str = "raven"
    """A name in `subjects.MODELS`."""
    backend: Literal["torch", "native"] = "native"
    trace: Literal["none", "engine", "recording"] = "none"
    observer: Literal["none", "counts", "raises"] = "none"
    pages: int = 64
    page_size: int = 4
    lanes: int = 16
    chunk: int = 8
    slots: int | None = None
    threads: int = 1
    deterministic: bool = True
    reuse_prefixes: bool = True
    queue_size: int = 4096
    seed: int = 0
    limits: Limits | None = None
    """Of every tree that has none of its own."""
    leaves_after: float | None = None
    """Milliseconds after which the engine's block is left while threads may be at work."""
    cancelled_after: float | None = None
    """Milliseconds after which all of it is cancelled from outside."""
    fault: Fault | None = None


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """Trees that run at the same time on one engine."""

    setup: Setup
    roots: tuple[Root, ...]


def to_json(program: Program) -> str:
    return msgspec.json.encode(program).decode()


def from_json(text: str) -> Program:
    return msgspec.json.decode(text, type=Program)
