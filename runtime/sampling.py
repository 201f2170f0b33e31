"""How the next token is chosen from logits."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from policies.conversion import Exact, convert_fields

FilterRule = Literal["transformers", "huginn"]
"""Whose top-k, top-p and min-p: see `Sampling.filters`."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Temperature 0 is greedy. In this order: repetition penalty on logits, temperature, top-k, top-p, min-p, then
    renormalisation over the tokens that are left. A penalty or a temperature beyond what float32 holds counts as the
    nearest that it does hold.

    Raises `ValueError` for a value of another type or outside its range (`msgspec.ValidationError` when decoded).
    """

    temperature: float = 0.0
    top_k: Exact | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    filters: Literal["model", "transformers", "huginn"] = "model"
    """Which rules top-k, top-p and min-p follow. "transformers", as in vLLM too: each filter renormalises what the ones
    before it left, and top-p keeps the smallest set of likeliest tokens that reaches `top_p`. "huginn", as in that
    model's reference: nothing is renormalised in between, and top-p drops the token at which the sum exceeds `top_p`.
    "model" is "huginn" for depth-recurrent checkpoints and "transformers" for all others."""
    logprobs: Exact = 0
    """How many of the likeliest tokens are reported at each step; which token is drawn does not depend on it."""

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
        """Whether the likeliest token is taken, without chance."""
        return self.temperature == 0
