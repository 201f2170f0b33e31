"""A reasoning thread as the device thread sees it: tokens, what of them is computed, and the generate it works on."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from policies import Carry, DepthPolicy, EntropySwitch
from runtime.backend.randomness import thread_key
from runtime.device.active_generate import ActiveGenerate
from runtime.device.layout import PLAIN, Layout, View
from runtime.device.prefix_rule import PrefixRule
from runtime.link.commands import ThreadPath

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


class Status(Enum):
    """What a thread waits for, on the device thread. `Queues` alone changes it."""

    IDLE = auto()
    """No generate, and holds neither pages nor a row."""
    PARKED = auto()
    """No generate, but holds pages or a row, which may be taken from it."""
    WAITING = auto()
    """For a row of the page table."""
    READY = auto()
    """Has a row, and tokens that may enter."""
    ASIDE = auto()
    """Another model is to say its next token."""
    FOLLOWING = auto()
    """Has a row, and waits for another thread that has the same tokens in flight."""
    IN_FLIGHT = auto()
    """Has a row, and tokens in lanes."""


@dataclass(slots=True)
class Flight:
    """The tokens `start .. end` of a sequence that enter together and leave together, each in a lane of its own."""

    sequence: Sequence
    start: int
    end: int
    known: bool
    """Whether their depths are known from an earlier computation: they are forced to them."""
    lanes: list[int]
    guessed: tuple[int, ...] = ()
    """For a drafted token: what was drafted after the sequence's last token, up to this one."""
    bounds: list[int] = field(default_factory=list)
    """Most iterations of each token. This and what follows are set when it takes off."""
    entered_tick: int = 0
    run: int = 0
    """Sampled tokens that its lane may go on with by itself."""
    halts: frozenset[int] = frozenset()
    """Tokens at which the lane then stops."""
    draft: int = 0
    """Iterations after which its token drafts its successor; 0 for never."""

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def last_lane(self) -> int:
        """The lane that names it."""
        return self.lanes[-1]

    @property
    def generate(self) -> ActiveGenerate:
        """What its tokens are computed for."""
        generate = self.sequence.generate
        assert generate is not None, f"{self.sequence.path} has tokens in flight for nothing"
        return generate

    @property
    def samples(self) -> bool:
        """Whether its last token's logits are sampled from."""
        return self.end >= len(self.sequence.tokens) and not self.generate.request.fills

    @property
    def recomputed(self) -> int:
        """How many of its tokens had been computed before."""
        return len(self) if self.known else 0

    def iterations(self, tick: int) -> int:
        """Token-iterations done before `tick`."""
        age = tick - self.entered_tick
        if len(self.bounds) == 1 and not self.guessed:
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

    Invariants: tokens 0 .. computed - 1 are in `pages`, but for those that no window reaches; at most one flight, which
    starts at `computed`, and a chain only behind a flight; `depths` knows the depth of every token that was ever
    computed in this context, also after its pages were evicted.
    """

    __slots__ = (
        "acceptance",
        "chain",
        "computed",
        "constant_bound",
        "depth",
        "depths",
        "flight",
        "freed",
        "generate",
        "generate_start",
        "is_long",
        "key",
        "layout",
        "order",
        "page_keys",
        "page_rule",
        "pages",
        "path",
        "policy",
        "row",
        "row_shift",
        "row_view",
        "rule",
        "seed",
        "shareable",
        "spans",
        "state_at",
        "status",
        "tokens",
    )

    def __init__(
        self, path: ThreadPath, seed: int, depth: DepthPolicy, priority: int, draws_as: ThreadPath | None = None
    ) -> None:
        """`draws_as` is the path of the thread that it stands in for, if it does."""
        self.path = path
        self.seed = seed
        self.key = thread_key(seed, draws_as or path)
        self.depth = depth
        self.policy: int | None = None
        """Index of `depth` in the backend; None before the first generate under it."""
        self.constant_bound: int | None = None
        """The bound that `depth` gives every token on this model; None where it looks at each."""
        self.rule: PrefixRule | None = None
        """How pages computed under `depth` are shared."""
        self.status = Status.IDLE
        self.order: Order = (-priority, path)
        self.tokens = array("i")
        self.spans: list[Span] = []
        self.depths = array("H")
        self.computed = 0
        self.layout: Layout | None = None
        """Where its tokens are, once keys and values were merged into it; None while places and positions are indices
        of tokens."""
        self.row_view: tuple[int, View] | None = None
        """Which segment's view its row shows, and that view, where it has a layout."""
        self.row_shift = 0
        """How many places tokens of that segment are further on in the row than in its pages."""
        self.pages: list[int] = []
        """By number of the page; the first `freed` are no longer its own."""
        self.freed = 0
        """Leading pages that were given back, because no window of what is still to compute reaches them."""
        self.is_long = False
        """Whether its pages, if it has any, hold keys of a context that is longer than the model's `short_context`."""
        self.page_keys: list[bytes] = []
        """Content keys of the leading pages under `page_rule`, as far as they are known."""
        self.page_rule: PrefixRule | None = None
        self.shareable = 0
        """Leading tokens of the prompt whose depths are what `page_rule` gives them in any thread."""
        self.row: int | None = None
        """Its row of the page table; None while it has none, and then nothing of it can be in flight."""
        self.state_at: int | None = None
        """Position of the last token that left; if the next one carries, its latent state is kept in the row."""
        self.generate: ActiveGenerate | None = None
        self.flight: Flight | None = None
        self.chain: Chain | None = None
        self.acceptance = 1.0
        """Share of this thread's last drafts that were right; of all of them, until there is one."""
        self.generate_start = 0
        """Length of the context when the last generate began."""

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

    def append_said(self, token: int, start: int) -> None:
        """Appends a token that another model said, in a generate that began at `start`: this one is yet to read it."""
        position = len(self.tokens)
        self.tokens.append(token)
        last = self.spans[-1] if self.spans else None
        if last is not None and not last.sampled and last.start >= start:
            last.end = position + 1
        else:
            self.spans.append(Span(position, position + 1, False, self.key))

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
        self.layout = parent.layout
        self.pages = parent.pages[:]
        self.freed = parent.freed
        self.is_long = parent.is_long
        self.page_keys = parent.page_keys[:]
        self.page_rule = parent.page_rule
        self.shareable = parent.shareable
        self.acceptance = parent.acceptance
        self.generate_start = len(self.tokens)

    def place(self, index: int) -> int:
        """Where a token is in its pages, or the one that would follow those there are."""
        return index if self.layout is None else self.layout.place(index)

    def place_in_row(self, index: int) -> int:
        """Where a token is in its row, which shows the segment that it is in."""
        return self.place(index) + self.row_shift

    def place_after(self, end: int) -> int:
        """Behind the place of the last token before `end`."""
        return end if self.layout is None or not end else self.layout.place(end - 1) + 1

    def position(self, index: int) -> int:
        """At which position a token is, or the one that would follow those there are."""
        return index if self.layout is None else self.layout.position(index)

    @property
    def next_position(self) -> int:
        """Of the next token that it receives or samples."""
        return self.position(len(self.tokens))

    @property
    def is_fresh_join(self) -> bool:
        """Whether nothing follows yet what was merged into it last, so that there are no logits to sample from."""
        return self.layout is not None and self.layout.last.start == len(self.tokens)

    @property
    def layout_or_plain(self) -> Layout:
        return self.layout or PLAIN

    @property
    def held(self) -> list[int]:
        """The pages that it refers to."""
        return self.pages[self.freed :]

    def received_in(self, start: int, end: int) -> int:
        """How many of the tokens `start .. end` were received rather than sampled."""
        last = self.spans[-1]
        if last.sampled and last.start <= start:
            return 0
        return sum(max(0, min(span.end, end) - max(span.start, start)) for span in self.spans if not span.sampled)

    @property
    def keeps_entropies(self) -> bool:
        """Whether the entropies of what its generate samples are of interest."""
        return self.generate is not None and (self.generate.request.entropies or isinstance(self.depth, EntropySwitch))

    @property
    def needed(self) -> int:
        """Leading tokens that its generate has to have computed: of tokens that are scored, all but the last."""
        return len(self.tokens) - (self.generate is not None and bool(self.generate.request.scores))

    @property
    def first_wanted(self) -> int:
        """The first position whose logits are of interest: of tokens that are scored, the one before them; none of a
        context that is only filled."""
        generate = self.generate
        if generate is not None and generate.request.fills:
            return len(self.tokens)
        return (len(self.tokens) if generate is None or not generate.request.scores else generate.start) - 1

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
        kept = None if self.state_at is None else self.state_at + 1
        return start < len(self.tokens) and start != kept and self.carries_at(start)

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

    def truncate(self, length: int) -> None:
        """Forgets tokens from `length` on; its pages are still to be cut."""
        del self.tokens[length:]
        del self.depths[length:]
        while self.spans and self.spans[-1].end > length:
            last = self.spans.pop()
            if last.start < length:
                self.spans.append(replace(last, end=length))
        self.computed = min(self.computed, length)
        self.shareable = min(self.shareable, length)

    def cut_pages(self, page_size: int) -> list[int]:
        """Drops, and returns, pages beyond what is computed."""
        keep = math.ceil(self.place_after(self.computed) / page_size)
        dropped = self.pages[max(keep, self.freed) :]
        del self.pages[keep:]
        del self.page_keys[self.computed // page_size :]
        return dropped
