"""What the native functions share: sizes, weights, the paged cache, lanes and work space.

`TickBuffers` are made once and live as long as their backend. The native functions are given a record of the sizes and
of the arrays' addresses: a tuple of arrays would be counted and copied at every call of one by another. In the record,
the fields of all parts lie side by side. "Acts" are the inputs of matrix products: float32, or bfloat16 in uint16 where
the weights are. N is the number of lanes, also the most rows of any batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
Bool = NDArray[np.bool_]
Stored = NDArray[np.float32] | NDArray[np.uint16]
"""What is of the weights' type: float32, or bfloat16 in uint16."""


class Sizes(NamedTuple):
    lanes: int
    """N."""
    pages_per_row: int
    layers: int
    width: int
    stride: int
    """Of the rows of `x`: the width, rounded up to whole panels."""
    heads: int
    kv_heads: int
    head_dim: int
    head_room: int
    """The head width rounded up to 16: what a position takes in `values`."""
    qkv_stride: int
    gate_stride: int
    logits_stride: int
    scores_stride: int
    hidden_stride: int
    attended_stride: int
    longest_run: int
    vocab: int
    mask_words: int
    """Words of 32 tokens that the vocabulary fills."""
    prelude_layers: int
    core_layers: int
    coda_layers: int
    slots: int
    pages: int
    page_size: int
    blocks_per_page: int
    """Blocks of 16 positions in a page."""
    norms_before: bool
    norms_branch: bool
    norms_total: bool
    """Where the halves of a layer are normed: see `NormPlaces`."""
    apart: bool
    """Whether what a half makes is in `made`, because something is done to it before it is added to `x`; otherwise the
    half's last product adds to `x` itself."""
    has_exit_gate: bool
    norms_iterations: bool
    norms_coda: bool
    norms_head: bool
    has_projection_bias: bool
    query_key_norm: int
    """See `runtime.backend.native.structure`."""
    activation: int
    """See `runtime.backend.native.structure`."""
    is_plain_gate: bool
    """Whether the gate is SiLU without biases, for which there is a tile of its own."""
    injection: int
    """See `runtime.backend.native.structure`."""
    eps: float
    embedding_scale: float
    residual_scale: float
    attention_scale: float
    attention_softcap: float
    """0 for none."""
    logits_scale: float
    logits_softcap: float
    """0 for none."""
    short_context: int
    """Most tokens of a context that LongRoPE turns by its short factors; 0 where none is turned otherwise."""
    workers: int


class PackedWeights(NamedTuple):
    weights: Stored
    """Packed matrices, one after the other."""
    matrices: Int64
    """[4 layers + 2, 3]: start in `weights`, inner size, panels. Of layer j: 4 j + (query-key-value, attention output,
    gate and up, down); then the adapter and the head."""
    table: Stored
    """[vocab, width] embeddings."""
    norms: Float32
    """[6 layers + 1, width]. Of half h of a layer, counted through all layers: 3 h + (before, branch, total); then the
    final norm."""
    query_key_norms: Float32
    """[layers, (heads + kv_heads) head_dim]; each head's own weights, also where all heads have the same."""
    projection_bias: Float32
    """[layers, (heads + 2 kv_heads) head_dim]."""
    half_bias: Float32
    """[2 layers, width] of the last product of each half of a layer."""
    gate_bias: Float32
    """[layers, 2 gate_stride], ordered as the columns of the product."""
    adapter_bias: Float32
    """[width]."""
    exit_gate: Float32
    """[width + 1] weights and bias; zeros without one."""
    rotation: Float32
    """Cosines and sines [positions, head_dim / 2, 2] of each rotary embedding, for LongRoPE first those of short
    contexts and then those of long ones; then [head_dim / 2, 2] of none at all.
    Dimensions that are not rotated have cosine 1."""
    layer_table: Int64
    """[layers, 3]: where in `rotation` the layer's begins, how far apart two positions are there, and the window of
    attention, which is longer than any context where there is none."""


class StoredKeyValues(NamedTuple):
    keys: Stored
    """[columns, pages, kv_heads, blocks_per_page, head_dim, 16]."""
    values: Stored
    """[columns, pages, kv_heads, blocks_per_page, 16, head_room]."""
    page_table: Int32
    """[rows, pages_per_row]."""
    page_parts: Int32
    """[rows, pages_per_row, 3]: see `Backend`."""
    has_holes: Bool
    """[rows]."""


class SharedLanes(NamedTuple):
    """The arrays [N] of `runtime.backend.lanes.Lanes` that native functions read and write."""

    row: Int32
    position: Int32
    place: Int32
    age: Int32
    bound: Int32
    until: Int32
    group: Int32
    tests: Bool
    is_long: Bool
    occupied: Bool
    cell: Int64
    sampling_key: Int64


class NativeLanes(NamedTuple):
    """What only native code keeps of each lane; arrays [N] where nothing else is said."""

    token: Int64
    """The token that a lane computes."""
    wanted: Bool
    """Whether its logits are sampled from."""
    temperature: Float32
    criterion: Int32
    """How its exit is tested natively: see `runtime.backend.native.criteria`."""
    threshold: Float32
    min_iterations: Int32
    check_every: Int32
    run: Int32
    """Tokens the lane may still go on with by itself."""
    halts: Int32
    """Row of `halting` that says at which tokens it stops."""
    run_count: Int32
    """Tokens sampled since the lane was entered."""
    run_token: Int32
    """[N, longest run]."""
    run_logprob: Float32
    """[N, longest run]."""
    run_depth: Int32
    """[N, longest run]."""
    run_tick: Int64
    """[N, longest run] in which tick each of them was sampled, as the caller numbers ticks."""
    state: Float32
    """[N, width] latent states."""
    embedded: Float32
    """[N, width] what every iteration is given."""
    starts_embedded: Bool
    """Whether the latent state starts as the embedded token."""
    remembered: Float32
    """[N, width] the state at the last exit test."""
    exit_value: Float32
    exit_mean: Float32
    """By a group's last lane: the mean of its exit values."""
    gate: Float32
    """What the exit gate says of the latent state."""
    exit_probability: Float32
    """See `runtime.backend.gate_sums`."""
    going_on: Float32
    """See `runtime.backend.gate_sums`."""
    exit_count: Int64
    """By a group's last lane: how many of its lanes were tested in the last tick."""
    halting: Bool
    """[kinds, vocab]."""
    is_masked: Bool
    """Whether only the tokens in its row of `allowed` may be drawn."""
    allowed: Int32
    """[N, words of 32 tokens], a bit a token; no rows before any lane was masked."""


class WorkSpace(NamedTuple):
    flight: Int64
    """[N + 1] lanes in flight, in order of row and position; the last number says how many."""
    batch: Int64
    """[N] lanes by row of `x`."""
    fresh: Int64
    """[N] lanes that go on with another token."""
    stopped: Int64
    """[N] lanes that stopped."""
    stopped_at: Int64
    """[N] at which tick of the call each of them did, from 1."""
    tick_end: Int64
    """[most ticks] nanoseconds from the beginning of the call to the end of each of its ticks; 0 without a clock."""
    tick_entered: Int64
    """[most ticks] tokens that entered."""
    tick_in_flight: Int64
    """[most ticks] tokens that took part in the iteration."""
    tick_left: Int64
    """[most ticks] tokens that left, whether their lanes went on or not."""
    tested: Int64
    """[N] last lanes of groups that were tested in the last tick."""
    chosen: Int64
    """[N] rows of `x` whose logits are wanted."""
    drawn_token: Int32
    drawn_logprob: Float32
    x: Float32
    """[N, stride]."""
    hidden: Stored
    """[N, hidden_stride] acts: normed rows, or state and embedding side by side."""
    made: Float32
    """[N, stride] what half a layer makes of `x`; no rows where it is never apart."""
    qkv: Float32
    """[N, qkv_stride]."""
    attended: Stored
    """[N, attended_stride] acts: heads head_dim, rounded up to pairs."""
    gated: Stored
    """[N, gate_stride] acts."""
    logits: Float32
    """[N, logits_stride]."""
    scores: Float32
    """[workers, longest context in blocks of 16]."""
    sums: Float32
    """[workers, head_room]."""
    tile: Float32
    """[workers, rows of a tile, panel]."""
    shared: Int64
    """The crew's; see `runtime.backend.native.crew`."""
    semaphore: NDArray[np.uint8]


class TickBuffers(NamedTuple):
    sizes: Sizes
    weights: PackedWeights
    paged: StoredKeyValues
    shared_lanes: SharedLanes
    lanes: NativeLanes
    work: WorkSpace


def record_type(narrow: bool) -> np.dtype[np.void]:
    """Of the record of tick buffers: numbers as they are, arrays as addresses; `do_task` is the address of the function
    that does one task, and `kind` is of the type of weights and cache, bfloat16 if `narrow`."""
    types = {float: "f8", int: "i8", bool: "i8"}
    parts = get_type_hints(TickBuffers).values()
    annotations = [field for part in parts for field in get_type_hints(part).items()]
    fields: list[Any] = [(name, types.get(annotation, "u8")) for name, annotation in annotations]
    return np.dtype([*fields, ("do_task", "u8"), ("kind", "u2" if narrow else "f4")])


def as_record(buffers: TickBuffers, do_task: int) -> NDArray[np.void]:
    """[1] of `record_type`; good as long as the buffers are kept."""
    fields = [field for part in buffers for field in part]
    values = [field.ctypes.data if isinstance(field, np.ndarray) else field for field in fields]
    return np.array([(*values, do_task, 0)], dtype=record_type(buffers.weights.weights.dtype == np.uint16))
