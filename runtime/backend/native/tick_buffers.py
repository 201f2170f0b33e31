"""What the native functions of the fused backend share: sizes, weights, memory, lanes and work space.

A `Context` is made once and lives as long as its backend. The native functions are given a record of its sizes and
of its arrays' addresses: a tuple of arrays would be counted and copied at every call of one by another. "Acts" are the
inputs of matrix products: float32, or bfloat16 in uint16 where the weights are.
"""

from __future__ import annotations

from typing import NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
Bool = NDArray[np.bool_]
Numbers = NDArray[np.float32] | NDArray[np.uint16]


class Context(NamedTuple):
    """See the module. N is the number of lanes, also the most rows of any batch."""

    # sizes
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
    longest_run: int
    vocab: int
    prelude_layers: int
    core_layers: int
    coda_layers: int
    slots: int
    pages: int
    page_size: int
    strips: int
    """Strips of 16 positions in a page."""
    sandwich: bool
    """Four norms a block, as in Raven; otherwise two, before its halves, as in Llama."""
    adapts: bool
    """Whether an iteration starts from adapter(state, embedded); otherwise from `embedded` alone."""
    eps: float
    embedding_scale: float
    workers: int
    # weights
    weights: Numbers
    """Packed matrices, one after the other."""
    matrices: Int64
    """[4 layers + 2, 3]: start in `weights`, inner size, panels. Of layer j: 4 j + (query-key-value, attention output,
    gate and up, down); then the adapter and the head."""
    table: Numbers
    """[vocab, width] embeddings."""
    norms: Float32
    """[4 layers + 1, width]; the last is the final norm."""
    query_key_bias: Float32
    """[layers, (heads + kv_heads) head_dim]."""
    adapter_bias: Float32
    """[width]."""
    rotation: Float32
    """[context, head_dim / 2, 2] cosines and sines."""
    # memory
    keys: Numbers
    """[columns, pages, kv_heads, strips, head_dim, 16]."""
    values: Numbers
    """[columns, pages, kv_heads, strips, 16, head_room]."""
    page_table: Int32
    """[rows, pages_per_row]."""
    # lanes, [N]
    row: Int32
    position: Int32
    age: Int32
    bound: Int32
    until: Int32
    group: Int32
    tests: Bool
    occupied: Bool
    cell: Int64
    sampling_key: Int64
    token: Int64
    """The token that a lane computes."""
    wanted: Bool
    """Whether its logits are sampled from."""
    temperature: Float32
    criterion: Int32
    """How its exit is tested here: `Criterion`."""
    threshold: Float32
    minimum: Int32
    every: Int32
    run: Int32
    """Tokens the lane may still go on with by itself."""
    halts: Int32
    """Row of `halting` that says at which tokens it stops."""
    run_count: Int32
    """Tokens sampled since the lane was entered."""
    run_token: Int32
    """[N, longest run]."""
    run_logprob: Float32
    run_depth: Int32
    state: Float32
    """[N, width] latent states."""
    embedded: Float32
    """[N, width] what every iteration is given."""
    remembered: Float32
    """[N, width] the state at the last exit test."""
    exit_value: Float32
    exit_sum: Float32
    """By a group's last lane: sum, then mean, of its exit values."""
    exit_count: Int64
    halting: Bool
    """[kinds, vocab]."""
    # work space
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
    tested: Int64
    """[N] last lanes of groups that were tested in the last tick."""
    chosen: Int64
    """[N] rows of `x` whose logits are wanted."""
    drawn_token: Int32
    drawn_logprob: Float32
    x: Float32
    """[N, stride]."""
    hidden: Numbers
    """[N, inner] acts: normed rows, or state and embedding side by side."""
    hidden_stride: int
    qkv: Float32
    """[N, qkv_stride]."""
    attended: Numbers
    """[N, heads head_dim] acts, rounded up to pairs."""
    attended_stride: int
    gated: Numbers
    """[N, gate_stride] acts."""
    logits: Float32
    """[N, logits_stride]."""
    scores: Float32
    """[workers, longest context in strips of 16]."""
    sums: Float32
    """[workers, head_room]."""
    shared: Int64
    semaphore: NDArray[np.uint8]


def record_type(narrow: bool) -> np.dtype[np.void]:
    """Of the record of a context: numbers as they are, arrays as addresses; `do_task` is the address of the function
    that does one task, and `kind` is of the type of weights and memory, bfloat16 if `narrow`."""
    types = {float: "f8", int: "i8", bool: "i8"}
    fields = [(name, types.get(annotation, "u8")) for name, annotation in get_type_hints(Context).items()]
    return np.dtype([*fields, ("do_task", "u8"), ("kind", "u2" if narrow else "f4")])


def as_record(context: Context, do_task: int) -> NDArray[np.void]:
    """[1] of `record_type`; good as long as the context is kept."""
    values = [value.ctypes.data if isinstance(value, np.ndarray) else value for value in context]
    return np.array([(*values, do_task, 0)], dtype=record_type(context.weights.dtype == np.uint16))
