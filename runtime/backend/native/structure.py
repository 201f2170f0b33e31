"""How native code numbers what a specification leaves to choose."""

from __future__ import annotations

from runtime.model.specification import Activation, Injection, QueryKeyNorm

SILU, GELU, GELU_TANH = range(3)
"""What a gate is put through."""
NO_NORM, BY_HEAD, WHOLE = range(3)
"""How queries and keys are normed."""
ADAPTED, EMBEDDED, STATE = range(3)
"""What an iteration starts from."""

ACTIVATIONS: dict[Activation, int] = {"silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH}
QUERY_KEY_NORMS: dict[QueryKeyNorm, int] = {"none": NO_NORM, "heads": BY_HEAD, "whole": WHOLE}
INJECTIONS: dict[Injection, int] = {"adapter": ADAPTED, "embedded": EMBEDDED, "state": STATE}
