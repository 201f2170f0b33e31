"""What the device thread has to know of the model."""

from __future__ import annotations

from msgspec import Struct


class ModelLimits(Struct, frozen=True, kw_only=True):
    """Numbers of a model that has been loaded, under the engine's settings."""

    max_context: int
    """Most tokens of one thread."""
    vocab: int
    """Token ids are below it."""
    mean_recurrence: int
    most_iterations: int
    short_context: int | None = None
    """Longer contexts turn all their positions otherwise, so that all their keys are others; None where none does."""
    window: int | None = None
    """How many positions a token sees at most; None for all before it."""
    shares_prefixes: bool
    """Whether equal prompts give equal states in every thread: not so where they start from noise."""
