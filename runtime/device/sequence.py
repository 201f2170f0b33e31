"""A reasoning thread as the device thread sees it: tokens, what of them is computed, and the call it works on."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from policies.depth.base import Carry, DepthPolicy
from runtime.commands import Generate, ThreadPath
from runtime.randomness import thread_key

if TYPE_CHECKING:
    from runtime.device.prefixes import PrefixRule

Order = tuple[int, ThreadPath]
"""Sorts sequences by who is served first: higher priority, then depth-first over trees."""


@dataclass(slots=True)
class Span:
    """Neighbouring tokens of one origin: `start .. end` received together, or sampled one after the other."""

    start: int
    end: int
    sampled: bool
    key: int
    """Random key of the thread that received or sampled them; a fork keeps its parent's for inherited tokens."""
    carry: Carry = "none"
    """How sampled ones start from the last latent states of their predecessors."""


@dataclass(slots=True)
class Call:
    """One generate in progress, and what it has cost so far."""

    request: Generate
    start: int
    """Length of the context when it began."""
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    sampled: int = 0
    computed: int = 0
    iterations: int = 0
    recomputed: int = 0
    reused: int = 0
    received: int = 0
    drafted: int = 0
    """Tokens that entered before it was sure that they are said."""
    accepted: int = 0
    """Those of them that were said."""

    def keep(self, count: int) -> None:
        """Forgets what is known of sampled tokens after the first `count`; what they cost still counts."""
        for kept in (self.logprobs, self.entropies, self.top_logprobs, self.depths):
            del kept[count:]

    @property
    def iterations_left(self) -> int | None:
        most = self.request.max_iterations
        return None if most is None else most - self.iterations


@dataclass(slots=True)
class Flight:
    """The tokens `start .. end` of a sequence that are in flight: they entered together and leave together."""

    start: int
    end: int
    lanes: list[int]
    bounds: list[int]
    entered_tick: int
    recomputed: int
    """How many of them had been computed before."""

    def iterations(self, tick: int) -> int:
        """Token-iterations done before `tick`."""
        age = tick - self.entered_tick
        if len(self.bounds) == 1:
            # A token alone never rests, and the next follows at once where its lane goes on by itself.
            return age
        return sum([min(age, bound) for bound in self.bounds])


@dataclass(slots=True)
class Chain:
    """Drafted tokens that follow a thread's last one; each is a guess as long as the one before it is in flight."""

    tokens: list[int]
    """In order of position; the last may not have entered yet."""
    flights: list[Flight]
    """Of those that have entered."""


class Sequence:
    """State of one thread. The scheduler owns it; nothing here touches a tensor.

    Invariants: tokens 0 .. computed - 1 are in `pages`; at most one flight, which starts at `computed`, and a
    chain only behind a flight; `depths` knows the depth of every token that was ever computed in this context, also
    after its pages were evicted.
    """

    __slots__ = (
        "acceptance",
        "call",
        "call_start",
        "chain",
        "computed",
        "depth",
        "depths",
        "flight",
        "key",
        "order",
        "page_keys",
        "page_rule",
        "pages",
        "path",
        "policy",
        "row",
        "rule",
        "seed",
        "shareable",
        "spans",
        "state_at",
        "tokens",
    )

    def __init__(self, path: ThreadPath, seed: int, depth: DepthPolicy, priority: int) -> None:
        self.path = path
        self.seed = seed
        self.key = thread_key(seed, path)
        self.depth = depth
        self.policy = -1
        """Index of `depth` in the backend; -1 before the first generate that follows it."""
        self.rule: PrefixRule | None = None
        """How pages computed under `depth` are shared."""
        self.order: Order = (-priority, path)
        self.tokens = array("i")
        self.spans: list[Span] = []
        self.depths = array("H")
        self.computed = 0
        self.pages: list[int] = []
        self.page_keys: list[bytes] = []
        """Content keys of the leading pages under `page_rule`, as far as they are known."""
        self.page_rule: PrefixRule | None = None
        self.shareable = 0
        """Leading tokens of the prompt whose depths are what `page_rule` gives them in any thread."""
        self.row = -1
        self.state_at = -1
        """Position of the last token that left; if the next one carries, its latent state is kept in the row. -1 for
        none."""
        self.call: Call | None = None
        self.flight: Flight | None = None
        self.chain: Chain | None = None
        self.acceptance = 1.0
        """Share of this thread's last drafts that were right; of all of them, until there is one."""
        self.call_start = 0
        """Length of the context when the last call began."""

    def receive(self, tokens: tuple[int, ...]) -> None:
        start = len(self.tokens)
        self.tokens.extend(tokens)
        self.spans.append(Span(start, len(self.tokens), False, self.key))

    def append_sampled(self, token: int) -> None:
        position = len(self.tokens)
        self.tokens.append(token)
        last = self.spans[-1] if self.spans else None
        carry = self.depth.carry
        if last is not None and last.sampled and last.key == self.key and last.carry == carry:
            last.end = position + 1
        else:
            self.spans.append(Span(position, position + 1, True, self.key, carry))

    def append_run(self, tokens: list[int]) -> None:
        """Appends sampled tokens, at least one."""
        self.append_sampled(tokens[0])
        self.tokens.extend(tokens[1:])
        self.spans[-1].end = len(self.tokens)

    def inherit(self, parent: Sequence) -> None:
        """Takes over a parent's context; sharing its pages is up to the caller."""
        self.tokens = parent.tokens[:]
        self.spans = [replace(span) for span in parent.spans]
        self.depths = parent.depths[:]
        self.computed = parent.computed
        self.pages = parent.pages[:]
        self.page_keys = parent.page_keys[:]
        self.page_rule = parent.page_rule
        self.shareable = parent.shareable
        self.acceptance = parent.acceptance
        self.call_start = len(self.tokens)

    def received_in(self, start: int, end: int) -> int:
        """How many of the tokens `start .. end` were received rather than sampled."""
        last = self.spans[-1]
        if last.sampled and last.start <= start:
            return 0
        return sum(max(0, min(span.end, end) - max(span.start, start)) for span in self.spans if not span.sampled)

    def span_at(self, position: int) -> Span:
        """The span that holds a position; searched from the end, where the work is."""
        for span in reversed(self.spans):
            if span.start <= position:
                return span
        raise IndexError(f"position {position} of an empty context")

    def carries_at(self, position: int) -> bool:
        """Whether the token at a position, the one to be sampled next included, starts from its predecessor's state."""
        carry = self.depth.carry if position == len(self.tokens) else self.span_at(position).carry
        return carry != "none"

    @property
    def lacks_state(self) -> bool:
        """Whether the next token to compute starts from a state that is not kept."""
        start = self.computed
        return start < len(self.tokens) and start != self.state_at + 1 and self.carries_at(start)

    def carrying_from(self, position: int) -> int:
        """Where the unbroken row of carrying tokens up to a position, itself one of them, begins."""
        for span in reversed(self.spans):
            if span.start <= position:
                if span.carry == "none":
                    break
                position = span.start - 1
        return position + 1

    def carrying_after(self, start: int, end: int) -> int:
        """The end of the tokens `start .. end` that can enter together: one that carries enters alone."""
        first = next((span for span in self.spans if span.end > start and span.carry != "none"), None)
        return end if first is None else min(end, max(start + 1, first.start))

    def truncate(self, length: int, page_size: int) -> list[int]:
        """Forgets tokens from `length` on; returns the pages it no longer needs."""
        del self.tokens[length:]
        del self.depths[length:]
        while self.spans and self.spans[-1].end > length:
            last = self.spans.pop()
            if last.start < length:
                self.spans.append(replace(last, end=length))
        self.computed = min(self.computed, length)
        self.shareable = min(self.shareable, length)
        return self.cut_pages(page_size)

    def cut_pages(self, page_size: int) -> list[int]:
        """Drops, and returns, pages beyond what is computed."""
        keep = math.ceil(self.computed / page_size)
        dropped = self.pages[keep:]
        del self.pages[keep:]
        del self.page_keys[self.computed // page_size :]
        return dropped
