"""The passes of a batch through parts of the model, each a sequence of phases.

The rows of a batch are the lanes in `batch`; row i is computed in `x[i]`.
"""

from __future__ import annotations

from typing import Any

from runtime.backend.native.intrinsics import jit
from runtime.backend.native.rows import (
    CAP,
    CHOOSE,
    EMBED,
    EXIT,
    FINAL,
    GATHER,
    JUDGE,
    KEEP,
    NONE,
    NORMS,
    ROTATE,
    SETTLE,
    STORE,
    TAKE,
)
from runtime.backend.native.structure import ADAPTED
from runtime.backend.native.tasks import ADAPT, ATTEND, DOWN, GATE, HEAD, OUT, QKV, SAMPLE, multiply, over_rows

_ATTENDED = 256
"""Positions that attention is taken to see, for how much work it is."""


@jit
def _layers(buffers: Any, n: Any, first: Any, count: Any, column: Any, slots: Any) -> None:
    """Layers `first`, `first` + 1, ... over n rows; each owns `slots` columns from `column` on.

    hidden           = norm, or copy, of x          for the first layer; for the others a part of NORMS below
    qkv              = hidden @ matrix              QKV
    query, key       + bias, normed, rotated        ROTATE; keys and values go to the cache
    attended         = attention                    ATTEND
    x or made        += or = attended @ matrix      OUT
    x += made, x = norm of x, hidden = norm of x    NORMS, as far as there is something to do
    gated            = activation of hidden @ gate, times hidden @ up, biased    GATE
    x or made        += or = gated @ matrix         DOWN, and NORMS again
    """
    for layer in range(first, first + count):
        half, matrix = 2 * layer, 4 * layer
        if layer == first:
            over_rows(buffers, NORMS, n, NONE, half, 0, buffers.width)
        multiply(buffers, QKV, n, matrix)
        over_rows(buffers, ROTATE, n, layer, column, slots, 4 * buffers.width)
        over_rows(
            buffers, ATTEND, n * buffers.kv_heads, layer, column, slots, _ATTENDED * buffers.width // buffers.kv_heads
        )
        multiply(buffers, OUT, n, matrix + 1)
        over_rows(buffers, NORMS, n, half, half + 1, 0, 2 * buffers.width)
        multiply(buffers, GATE, n, matrix + 2)
        multiply(buffers, DOWN, n, matrix + 3)
        onward = half + 2 if layer + 1 < first + count else NONE
        if onward != NONE or buffers.apart != 0 or buffers.norms_total != 0:
            over_rows(buffers, NORMS, n, half + 1, onward, 0, 2 * buffers.width)
        column += slots


@jit
def prelude(buffers: Any, n: Any) -> None:
    """Embeds the tokens of the batch and keeps what every iteration is given."""
    over_rows(buffers, EMBED, n, 0, 0, 0, buffers.width)
    _layers(buffers, n, 0, buffers.prelude_layers, 0, 1)
    over_rows(buffers, KEEP, n, 0, 0, 0, buffers.width)


@jit
def iterate(buffers: Any, n: Any) -> None:
    """One core iteration of the batch; ages do not count it yet."""
    if buffers.injection == ADAPTED:
        over_rows(buffers, GATHER, n, 0, 0, 0, 2 * buffers.width)
        multiply(buffers, ADAPT, n, 4 * buffers.layers)
    else:
        over_rows(buffers, TAKE, n, 0, 0, 0, buffers.width)
    _layers(buffers, n, buffers.prelude_layers, buffers.core_layers, buffers.prelude_layers, buffers.slots)
    over_rows(buffers, STORE, n, 0, 0, 0, buffers.width)


@jit
def coda(buffers: Any, n: Any) -> None:
    """From latent states to what the head is given."""
    over_rows(buffers, FINAL, n, 0, 0, 0, buffers.width)
    before = buffers.prelude_layers + buffers.core_layers
    _layers(buffers, n, before, buffers.coda_layers, buffers.prelude_layers + buffers.core_layers * buffers.slots, 1)


@jit
def head(buffers: Any, m: Any) -> None:
    """Logits of the m rows in `chosen`."""
    over_rows(buffers, CHOOSE, m, 0, 0, 0, buffers.width)
    multiply(buffers, HEAD, m, 4 * buffers.layers + 1)
    if buffers.logits_scale != 1.0 or buffers.logits_softcap != 0.0:
        over_rows(buffers, CAP, m, 0, 0, 0, 4 * buffers.vocab)


@jit
def sample(buffers: Any, m: Any) -> None:
    """Tokens from the m rows of `logits`."""
    over_rows(buffers, SAMPLE, m, 0, 0, 0, 8 * buffers.vocab)


@jit
def measure(buffers: Any, n: Any) -> None:
    """Exit values of the batch."""
    over_rows(buffers, EXIT, n, 0, 0, 0, 4 * buffers.width)


@jit
def judge(buffers: Any, n: Any, adds: Any) -> None:
    """What the exit gate says of the batch's latent states; `adds` (0 or 1) whether that counts for their exits."""
    over_rows(buffers, JUDGE, n, adds, 0, 0, buffers.width)


@jit
def settle(buffers: Any, n: Any) -> None:
    """Fills the iteration slots that the batch never came to."""
    if buffers.slots > 1:
        over_rows(buffers, SETTLE, n, 0, 0, 0, buffers.core_layers * buffers.slots * 2 * buffers.width)
