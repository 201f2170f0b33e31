"""The line between scheduling and arithmetic: a backend executes ticks over arrays and knows nothing of threads.

A token in flight sits in a **lane**; the backend keeps its latent state there from tick to tick. A thread that
computes has a **row** in the page table. One tick does, in this order: copy pages; drop cancelled lanes; put the
entering tokens into their lanes and run their prelude; one core iteration over all lanes in flight; the policies'
exit tests; coda, head and sampling for the tokens that leave, and then for those that draft.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from policies import Carry, DepthPolicy
from runtime.link.constraints import TokenMask
from runtime.link.sampling import Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from runtime.model.served import Served

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

MOST_TICKS = 64
"""Most ticks of a call."""

CARRY_KINDS: dict[Carry, int] = {"none": 0, "raw": 1, "normed": 2}
"""How `Entering.carries` says what a token starts from."""


class CacheShape(msgspec.Struct, frozen=True, kw_only=True):
    """Paged cache of keys and values, as the scheduler sees it.

    Keys and values are each one array [columns, pages, page_size, heads, head_dim]. A layer outside the core block
    owns one column; core layer j owns `slots` columns, one for each iteration slot:

        prelude layer i: i        core layer j, slot s: prelude + j * slots + s        coda layer k: after those

    A query at iteration r (from 1) writes slot (r - 1) mod slots of its own token, and reads of a token that has
    done D iterations so far slot min((r - 1) mod slots, D - 1). With slots = the most iterations this is lookup
    "latest", and "full" where every token gets the same depth; with fewer it is "compress-s" (KV sharing).
    """

    pages: int
    page_size: int
    slots: int
    rows: int
    """Threads that can compute at once."""
    pages_per_row: int
    lanes: int

    def columns(self, specification: Served) -> int:
        """Columns that a model's layers own together."""
        core = specification.core_layers * self.slots
        return specification.prelude_layers + core + specification.coda_layers


class Entering(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that enter in one tick; arrays of one row a token. Tokens of one thread are in order of position.

    A thread has at most one group in flight besides its drafts, and every earlier token of its context has left.
    """

    lane: Int32
    row: Int32
    position: Int32
    """By which it is turned, and its random numbers are drawn."""
    token: Int32
    bound: Int32
    """Most iterations, at least 1. A token that reaches it rests in its lane until its group leaves."""
    until: Int32
    """Iterations after which its group leaves at the latest: the largest bound in the group."""
    tests: Bool
    """Whether the policy's exit test applies; otherwise the token runs to its bound (its depth is known, say)."""
    policy: Int32
    """Index into the backend's registered depth policies."""
    group: Int32
    """The lane of the last token of those that enter together and leave together; its own lane if it is alone."""
    noise_key: Int64
    """With the position it determines the token's initial latent noise: the key of the thread that first had it."""
    sampling_key: Int64
    """With the position it determines what is drawn from the token's logits: the key of the thread that samples."""
    carries: Int32
    """How its latent state starts from the one kept in its row (continuous thought); see `CARRY_KINDS`."""
    keeps: Bool
    """Whether its last latent state is kept in its row, because the thread's next token starts from it. Only of the
    last token of a group."""
    sample: Int32
    """Index into `samplings` of the token's sampling, or -1: the logits of this token are not needed."""
    entropy: Bool
    """Whether the entropy of the token's distribution is wanted."""
    draft: Int32
    """Iterations after which the token's successor is drafted from its state, less than its bound, while it goes on; 0
    for no draft. Only for tokens that are sampled from, alone in their group. A drafted token may enter, as a token of
    the same thread, before those that it depends on have left, as long as every iteration has a slot of its own: each
    of its iterations reads what theirs have written before."""
    run: Int32
    """Sampled tokens that the lane may go on with by itself, each in the tick after the one before it has left, with
    this token's bound, policy and sampling. Their pages are in the page table. Only for sampled tokens, alone in their
    group, that draft nothing; a backend may do with fewer, or without."""
    halts: Int32
    """Index into `halting` of the tokens at which it must stop; of no meaning without a run."""
    target: Int32 | None = None
    """The token whose log-probability under the model's own distribution is wanted, instead of one that is sampled; -1
    for none, and None for none anywhere. Such a token has a sampling, which says how many likeliest ones are reported,
    and neither drafts nor runs; of a group any number may have one."""
    place: Int32 | None = None
    """Where each token is in its row, page_size places a page; None where all places are positions, as in rows without
    holes."""
    is_long: Bool | None = None
    """Whether its context has more than the model's `short_context`; None where no context of the tick has. It holds
    for what its lane goes on with by itself, too."""


class Run(NamedTuple):
    """Tokens that one lane sampled since it was entered, in order; arrays [n]."""

    token: Int32
    depth: Int32
    logprob: Float32
    tick: Int64
    """In which tick each was sampled, as `Tick.number` counts."""


class TickTimes(NamedTuple):
    """What each tick of a call did; arrays [ticks]."""

    end: Float64
    """Seconds from the call's beginning to the tick's end; 0 where the backend has no clock."""
    entered: Int64
    in_flight: Int64
    """Tokens that took part in the core iteration."""
    left: Int64
    """Tokens that left, whether their lanes went on by themselves or not."""


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one call of the backend needs."""

    copies: Int32
    """[n, 2] pages (source, destination) to copy whole, before anything else."""
    dropped: Int32
    """Lanes whose tokens are forgotten."""
    entering: Entering
    samplings: tuple[Sampling, ...]
    """The distinct samplings that entering tokens refer to."""
    contexts: dict[int, Int32]
    """For lanes whose sampling has a repetition penalty: the thread's token ids so far."""
    masks: Mapping[int, TokenMask] = {}
    """For lanes that enter and whose successors are constrained: which tokens may be sampled. A backend asks for it as
    late as it can; such lanes have no run, and draft nothing."""
    halting: tuple[frozenset[int], ...] = ()
    """The distinct sets of tokens that entering lanes stop at."""
    most_ticks: int = 1
    """A backend may go on, up to so many ticks in all, while few lanes have stopped."""
    number: int = 0
    """Of the call's first tick, for `Run.tick`."""


_NONE: Int32 = np.empty(0, np.int32)


class TickResult(msgspec.Struct, frozen=True, kw_only=True):
    """What left in a call. Rows of `lane` and `depth` are all tokens that left and whose lanes do not go on, in an
    order of no meaning."""

    lane: Int32
    depth: Int32
    token: Int32
    """The sampled token, or the target; -1 where neither was wanted."""
    logprob: Float32
    """Natural log-probability of the token under the distribution it was drawn from, of a target under the model's own;
    NaN where none."""
    entropy: Float32
    """Entropy in nats of the model's distribution; NaN where not asked for."""
    top: tuple[dict[int, float], ...]
    """Per row, the likeliest tokens with their log-probabilities; empty if no sampling asked for any."""
    tested: Int32
    """Lanes whose exit was tested in this tick, one a group (its last lane)."""
    exit_value: Float32
    """Their exit values, after reduction over the group."""
    failures: dict[int, BaseException]
    """Lanes (a group's last) whose policy raised; those tokens were dropped, the others are unharmed."""
    in_flight: int
    """Tokens that took part in the last core iteration."""
    iterations: int
    """Token-iterations of all ticks."""
    runs: dict[int, Run] = {}
    """By lane, what it sampled since it was entered, this tick's token last; for lanes that sampled more than one."""
    ticks: int = 1
    times: TickTimes | None = None
    """None of a call of one tick, whose times are the call's."""
    left_at: list[int] = []
    """By row, in which tick of the call, from 1; empty where the call did one tick."""
    drafting: Int32 = _NONE
    """Lanes whose successors were drafted in the last tick."""
    drafted: Int32 = _NONE
    """The tokens: drawn as those of lanes that leave, with the same random numbers."""


class RowHoles(NamedTuple):
    """What of the pages in a row counts; written and read like the page table."""

    page_parts: Int32
    """[rows, pages_per_row, 3] of rows with holes, of each page: its first offset that counts, the one after its last,
    and the position that a token at offset 0 has or would have."""
    has_holes: Bool
    """[rows]: whether a row's `page_parts` count; in others pages are full, and places are positions."""

    @classmethod
    def none_in(cls, cache: CacheShape) -> RowHoles:
        """Of rows without holes."""
        return cls(np.zeros((cache.rows, cache.pages_per_row, 3), np.int32), np.zeros(cache.rows, np.bool_))


class Backend(Protocol):
    """Runs on the device thread alone. Owns the weights, the paged cache and the lanes."""

    @property
    def cache(self) -> CacheShape: ...

    @property
    def page_table(self) -> Int32:
        """[rows, pages_per_row] page numbers; the scheduler writes it between ticks, the backend reads it."""
        ...

    @property
    def row_holes(self) -> RowHoles:
        """Written and read like the page table."""
        ...

    def register(self, policy: DepthPolicy) -> int:
        """Index of a depth policy for `Entering.policy`; equal policies share one. Raises what the policy raises."""
        ...

    def release(self, index: int) -> None:
        """Undoes one `register`. The index may become another policy's once it was released as often."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replaces the model's weights, and what was made of them, in place; see `runtime.model.replacement`.

        No token may be in flight that takes part in another tick. What pages hold is of the old weights. Raises
        `ValueError` and `torch.OutOfMemoryError` before anything has changed, and anything else if the device is
        beyond use.
        """
        ...

    def close(self) -> None:
        """Ends what the backend runs beside the device thread. No tick may follow."""
        ...

    def run_of(self, lane: int) -> Run | None:
        """What a lane in flight has sampled since it was entered; None for nothing."""
        ...

    def latents(self, lanes: list[int]) -> Tensor:
        """Copies of the latent states [n, width] of lanes that were in flight in the last tick, which was one; no other
        token may have entered them since."""
        ...

    def tick(self, tick: Tick) -> TickResult:
        """One call of the device.

        Raises `torch.OutOfMemoryError` before any lane has changed if the device has not enough memory (the caller
        may retry with fewer entering tokens), and anything else if the device is beyond use.
        """
        ...
