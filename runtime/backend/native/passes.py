"""The passes of a batch through parts of the model, each a sequence of phases.

The rows of a batch are the lanes in `batch`; row i is computed in `x[i]`.
"""

from __future__ import annotations

from typing import Any

from runtime.backend.native.intrinsics import compiled
from runtime.backend.native.tasks import (
    ADAPT,
    ATTEND,
    CHOOSE,
    DOWN,
    EMBED,
    EXIT,
    FINAL,
    GATE,
    GATHER,
    HEAD,
    KEEP,
    NONE,
    NORMS,
    OUT,
    QKV,
    ROTATE,
    SAMPLE,
    SETTLE,
    STATE,
    TAKE,
    multiply,
    over_rows,
)

_ATTENDED = 256
"""Positions that attention is taken to see, for how much work it is."""


@compiled
def _layers(c: Any, n: Any, first: Any, count: Any, column: Any, slots: Any) -> None:
    """Layers `first`, `first` + 1, ... over n rows; each owns `slots` columns from `column` on."""
    for layer in range(first, first + count):
        norm, matrix = 4 * layer, 4 * layer
        if layer == first:
            over_rows(c, NORMS, n, NONE, norm, 0, c.width)
        multiply(c, QKV, n, matrix)
        over_rows(c, ROTATE, n, layer, column, slots, 4 * c.width)
        over_rows(c, ATTEND, n * c.kv_heads, layer, column, slots, _ATTENDED * c.width // c.kv_heads)
        multiply(c, OUT, n, matrix + 1)
        if c.sandwich:
            over_rows(c, NORMS, n, norm + 1, norm + 2, 0, 2 * c.width)
        else:
            over_rows(c, NORMS, n, NONE, norm + 1, 0, c.width)
        multiply(c, GATE, n, matrix + 2)
        multiply(c, DOWN, n, matrix + 3)
        within = norm + 3 if c.sandwich else NONE
        onward = norm + 4 if layer + 1 < first + count else NONE
        if within != NONE or onward != NONE:
            over_rows(c, NORMS, n, within, onward, 0, 2 * c.width)
        column += slots


@compiled
def prelude(c: Any, n: Any) -> None:
    """Embeds the tokens of the batch and keeps what every iteration is given."""
    over_rows(c, EMBED, n, 0, 0, 0, c.width)
    _layers(c, n, 0, c.prelude_layers, 0, 1)
    over_rows(c, KEEP, n, 0, 0, 0, c.width)


@compiled
def iterate(c: Any, n: Any) -> None:
    """One core iteration of the batch; ages do not count it yet."""
    if c.adapts:
        over_rows(c, GATHER, n, 0, 0, 0, 2 * c.width)
        multiply(c, ADAPT, n, 4 * c.layers)
    else:
        over_rows(c, TAKE, n, 0, 0, 0, c.width)
    _layers(c, n, c.prelude_layers, c.core_layers, c.prelude_layers, c.slots)
    over_rows(c, STATE, n, 0, 0, 0, c.width)


@compiled
def coda(c: Any, n: Any) -> None:
    """From latent states to what the head is given."""
    over_rows(c, FINAL, n, 0, 0, 0, c.width)
    before = c.prelude_layers + c.core_layers
    _layers(c, n, before, c.coda_layers, c.prelude_layers + c.core_layers * c.slots, 1)


@compiled
def head(c: Any, m: Any) -> None:
    """Logits of the m rows in `chosen`."""
    over_rows(c, CHOOSE, m, 0, 0, 0, c.width)
    multiply(c, HEAD, m, 4 * c.layers + 1)


@compiled
def sample(c: Any, m: Any) -> None:
    """Tokens from the m rows of `logits`."""
    over_rows(c, SAMPLE, m, 0, 0, 0, 8 * c.vocab)


@compiled
def measure(c: Any, n: Any) -> None:
    """Exit values of the batch."""
    over_rows(c, EXIT, n, 0, 0, 0, 4 * c.width)


@compiled
def settle(c: Any, n: Any) -> None:
    """Fills the iteration slots that the batch never came to."""
    if c.slots > 1:
        over_rows(c, SETTLE, n, 0, 0, 0, c.core_layers * c.slots * 2 * c.width)
