"""What the event loop asks of the device thread, and what the device thread reports back.

    coroutine -> command -> device thread: schedule, tick, ... -> reports of one tick, in one hop -> coroutine

Commands are handled between ticks, in the order in which they were sent. A thread is named by its path:
(tree number, child number, grandchild number, ...); sorting paths sorts trees depth-first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from policies import DepthPolicy, TickCosts
from runtime.link.constraints import Constraint, Matcher
from runtime.link.events import Event
from runtime.link.events import ThreadPath as ThreadPath
from runtime.link.latents import Latents
from runtime.link.sampling import Sampling
from runtime.link.work import Work

if TYPE_CHECKING:
    from torch import Tensor

OnTraceError = Literal["drop", "stop"]
"""What ends where a trace cannot be written on: the recording alone, or the engine."""

FinishReason = Literal["stop", "length", "context", "iterations", "scored", "filled", "interrupted"]
"""Why a generate ended: a signal or stop token, its token bound, the model's context, the iteration limit, because all
its tokens are scored, because the whole context is computed, or the caller, who no longer waits."""


class Signal(msgspec.Struct, frozen=True):
    """Something a watcher recognised in the tokens a thread emits."""

    kind: Literal["spawn", "join", "end", "stop", "malformed", "tool", "results", "send", "receive"]
    tokens: tuple[int, ...] = ()
    """The child's whole prompt for a spawn; the returned message of an end (empty for nothing); what matched for a
    stop; for a join that cuts, what goes back into the context before the delivery."""
    start: int = 0
    """How many tokens the watcher had seen before the first token of what it recognised."""
    stops: bool = False
    """Whether the thread stops generating here; the token just fed is its last."""
    keep: int | None = None
    """For a join that cuts its block out of the context: how many of the tokens the watcher has seen remain."""
    reason: str = ""
    """For "malformed": what is wrong; the thread ends with a `ProtocolError` that says it."""
    text: str = ""
    """For "tool": the call, as it stands between its tags. At "results", the thread waits for those it has made. For
    "send": the message."""
    address: str = ""
    """For "send": to whom, as the thread has written it."""


class Watcher(Protocol):
    """Reads a thread's tokens as they are emitted, on the device thread; owned by it until the generate ends."""

    def feed(self, token: int) -> tuple[Signal, ...]:
        """Takes the next emitted token and gives what it completes, in order; only the last signal may stop.

        What it raises ends its thread with a `ProtocolError`.
        """
        ...


class Foresight(NamedTuple):
    """What a watcher knows of the tokens to come."""

    tokens: frozenset[int]
    """Tokens at which something may happen."""
    quiet: int
    """How many other tokens are fed, at least, before anything happens at one of those."""


@runtime_checkable
class ForeseeingWatcher(Watcher, Protocol):
    """A watcher that need not see every token at once, so that threads go on faster: it is fed them later, in order."""

    def foresee(self) -> Foresight | None:
        """What it knows before the next token; None for nothing."""
        ...


class OpenThread(msgspec.Struct, frozen=True, kw_only=True):
    """Makes a thread known. With `inherits`, it begins with that thread's context, sharing its pages.

    The inherited thread must be open and not generating.
    """

    thread: ThreadPath
    seed: int
    depth: DepthPolicy
    priority: int = 0
    """Higher is served first; ties are served depth-first by path."""
    inherits: ThreadPath | None = None
    draws_as: ThreadPath | None = None
    """The path by which its tokens are drawn, where it stands in for a thread that has said them elsewhere."""


class Extend(msgspec.Struct, frozen=True):
    """Appends received tokens (a prompt or a message) to a thread's context; they are computed when first needed."""

    thread: ThreadPath
    tokens: tuple[int, ...]


class Generate(msgspec.Struct, frozen=True, kw_only=True):
    """Samples tokens until a stop. One at a time a thread; its context must not be empty.

    Stop tokens are kept as the last token. A fed token may match `stop_tokens`, end the watcher, or hit a bound;
    the first of these in that order names the reason.
    """

    thread: ThreadPath
    max_tokens: int
    sampling: Sampling
    depth: DepthPolicy | None = None
    """Replaces the thread's depth policy from here on."""
    stop_tokens: frozenset[int] = frozenset()
    watcher: Watcher | None = None
    max_iterations: int | None = None
    """Token-iterations this call may spend, received tokens still to be computed included."""
    stream: bool = False
    """Whether an `Emitted` report is sent for every tick that emits."""
    entropies: bool = False
    """Whether the entropy of every distribution sampled from is kept."""
    scores: tuple[int, ...] = ()
    """Tokens that follow the context and are scored, instead of any that are sampled: computed as received ones are,
    with their log-probabilities under the model's own distribution. The context is as before when they are. They must
    fit into it; stop tokens, watcher and `max_tokens` are of no meaning then."""
    fills: bool = False
    """Whether the context is only computed to its last token, and nothing sampled: others are to see all of it."""
    constraint: Constraint | None = None
    """What the tokens are constrained to, for the trace."""
    matcher: Matcher | None = None
    """Which tokens that allows; with it, nothing is drafted, no other model speaks, and lanes stop at every token. A
    device that runs a model makes one for a constraint that comes without."""


class Merge(msgspec.Struct, frozen=True):
    """Appends what children have beyond a thread's context, with its keys and values as they are.

    The children were forked from the context as it is now, and have been filled; none of them generates. Each is seen
    by the thread from now on and sees no other. The thread goes on at the largest of their next positions, with tokens
    that it receives. Children that have nothing beyond it are passed over. `Answered` under its number, with an error
    where it was refused and has changed nothing.
    """

    thread: ThreadPath
    children: tuple[ThreadPath, ...]
    number: int = 0


class Interrupt(msgspec.Struct, frozen=True):
    """Ends a thread's generate; the context keeps the first `keep` tokens it emitted and forgets the others.

    A `Finished` with reason "interrupted" follows unless one was already sent; then only the context is cut.
    """

    thread: ThreadPath
    keep: int = 0


class CloseThread(msgspec.Struct, frozen=True):
    """Forgets a thread and drops its references to pages. An unfinished generate is interrupted first."""

    thread: ThreadPath


class Record(msgspec.Struct, frozen=True):
    """Writes an event of the loop's into the trace, in order with the device's own."""

    event: Event


Command = OpenThread | Extend | Merge | Generate | Interrupt | CloseThread | Record


class LoadWeights(msgspec.Struct, frozen=True):
    """Replaces the model's weights. No thread may be open, and nothing be recorded."""

    number: int
    weights: Mapping[str, Tensor]
    """By published name; the device's to read until it has answered."""


class StartRecording(msgspec.Struct, frozen=True):
    """Begins a trace of what follows, in a file of its own. No thread may be open, and nothing else be recorded."""

    number: int
    path: Path
    overwrite: bool = False
    on_error: OnTraceError = "drop"
    latents: Latents | None = None
    """Which latent states are recorded beside it."""


class StopRecording(msgspec.Struct, frozen=True):
    """Closes the trace that a `StartRecording` began. Refused afterwards if threads are still open."""

    number: int


class FlushRecording(msgspec.Struct, frozen=True):
    """Is answered when the trace, if there is one, has every event that was sent before."""

    number: int


Request = LoadWeights | StartRecording | StopRecording | FlushRecording
"""What concerns the device as a whole. Each is `Answered` once, under its number."""


class Emitted(msgspec.Struct, frozen=True):
    """Tokens a streaming thread sampled in one tick."""

    thread: ThreadPath
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """As in `Finished`."""
    top_logprobs: tuple[Mapping[int, float], ...] = ()
    """As in `Finished`; none where the sampling asks for none."""
    depths: tuple[int, ...] = ()
    """As in `Finished`."""


class Signalled(msgspec.Struct, frozen=True):
    """A watcher recognised something; sent in the tick that emitted its last token."""

    thread: ThreadPath
    signal: Signal
    entropy: float
    """Entropy in nats of the distribution that the first token of the signal was sampled from; NaN if not kept."""


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A generate ended. Its work is that of this generate alone."""

    thread: ThreadPath
    tokens: tuple[int, ...]
    """Every token emitted and kept, a stop token included; or those that were scored."""
    logprobs: tuple[float, ...]
    """Natural-log probability of each token under the distribution it was sampled from."""
    top_logprobs: tuple[Mapping[int, float], ...]
    """The likeliest tokens at each step, as many as `Sampling.logprobs` asks for."""
    depths: tuple[int, ...]
    """Iterations that made each token's logits; 0 where another model said it."""
    reason: FinishReason
    work: Work
    """What it cost; also what was rolled back."""
    entropies: tuple[float, ...] = ()
    """Nats, of the distribution that each token came from, where that was of interest."""


class Failed(msgspec.Struct, frozen=True):
    """A thread cannot go on, and its generate, if it has one, is over.

    The error is a `BraidError`; its work is as in `Finished`.
    """

    thread: ThreadPath
    error: Exception
    work: Work = msgspec.field(default_factory=Work)


class Answered(msgspec.Struct, frozen=True):
    """A request was executed, or refused with an error."""

    number: int
    error: Exception | None = None


class ToolAnswered(msgspec.Struct, frozen=True):
    """The recorded result of a tool's call, from a device that plays a trace back; in answer to its `ToolCalled`."""

    thread: ThreadPath
    """The call's own path."""
    text: str = ""
    error: Exception | None = None
    """What it failed of, if it did."""


class DeviceFailed(msgspec.Struct, frozen=True):
    """The device is gone; no further report follows."""

    error: BaseException


Report = Emitted | Signalled | Finished | Failed | Answered | ToolAnswered | DeviceFailed


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the device thread is doing, and has done since it began: a snapshot, safe to read from any thread.

    When the device has ended nothing is open, in flight or waiting; counts of work stay.
    """

    ticks: int = 0
    """Calls of the device, each one iteration of everything in flight."""
    in_flight: int = 0
    """Tokens in flight between two ticks; where one has left and its thread goes on, its successor: 0 when idle."""
    open_threads: int = 0
    """Reasoning threads that were opened and not closed."""
    waiting: int = 0
    """Threads that have something to generate and no row of the page table."""
    pages_used: int = 0
    """Pages of keys and values that threads refer to; stored prompts that nobody uses now are not among them."""
    num_pages: int = 0
    """Pages in the pool."""
    generated: int = 0
    """Tokens sampled, kept or not."""
    computed: int = 0
    """Tokens computed: received ones, and sampled ones fed back, recomputation after eviction included."""
    iterations: int = 0
    """Token-iterations of the core block."""
    recomputed: int = 0
    """Of `computed`, tokens computed again after eviction."""
    prompt_tokens: int = 0
    """Received tokens that were needed: computed, again included, or taken from the cache."""
    cached_tokens: int = 0
    """Of `prompt_tokens`, those whose pages were shared instead of computed."""
    tick_costs: TickCosts | None = None
    """What a tick takes now; None before some were measured, and where nobody measures."""


class Device(Protocol):
    """Executes commands on a thread of its own. The engine knows nothing else of it: a real one runs a model, a
    playback one reads a trace."""

    def start(self, deliver: Deliver) -> None:
        """Starts; `deliver` is called on the device thread with the reports of each tick that has any."""
        ...

    def send(self, command: Command | Request) -> None:
        """Queues a command; returns at once. Callable from any thread. After `stop` it does nothing."""
        ...

    def stop(self) -> None:
        """Asks the device thread to end after its present tick, and waits for it."""
        ...

    @property
    def first_tree(self) -> int:
        """The number of the first tree: 0, but for a recording that did not begin with its engine."""
        ...

    @property
    def statistics(self) -> Statistics:
        """What the device is doing; may be asked for on any thread at any time."""
        ...


class Deliver(Protocol):
    """Takes the reports of one tick, in order, on the device thread; it does not block."""

    def __call__(self, reports: list[Report]) -> None: ...
