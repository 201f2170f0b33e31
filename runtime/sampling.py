"""How the next token is chosen from logits."""

from __future__ import annotations

import math

import msgspec

from policies.conversion import Exact, convert_fields


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Temperature 0 is greedy. Filters apply in the reference's order: repetition penalty on logits, temperature,
    then top-k, top-p and min-p on probabilities, then renormalisation.

    Raises `ValueError` for a value of another type or outside its range (`msgspec.ValidationError` when decoded).
    """

    temperature: float = 0.0
    top_k: Exact | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    logprobs: Exact = 0
    """How many of the likeliest tokens are reported at each step."""

    def __post_init__(self) -> None:
        convert_fields(self)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it must be finite and at least 0 (0 is greedy).")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or None to keep every token.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1, or None to keep every token.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must be from 0 to 1, or None to keep every token.")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1 is no penalty).")
        if self.logprobs < 0:
            raise ValueError(f"logprobs is {self.logprobs}; it must be at least 0.")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0
