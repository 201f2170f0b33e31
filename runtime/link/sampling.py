"""How the next token is chosen from logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from policies.conversion import Exact, convert_fields

FilterRule = Literal["transformers", "huginn"]
"""Whose top-k, top-p and min-p: see `Sampling.filters`."""


_UNSAID: Any = msgspec.UNSET
_IF_UNSAID: Mapping[str, Any] = {
    "temperature": 0.0,
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "repetition_penalty": 1.0,
    "filters": "model",
    "logprobs": 0,
}


class Sampling(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """How tokens are sampled; greedily, without filters, where nothing is said. What is said counts field by field
    before what a checkpoint's generation_config.json says.

    Temperature 0 is greedy. In this order: repetition penalty on logits, temperature, top-k, top-p, min-p, then
    renormalisation over the tokens that are left. A penalty or a temperature beyond what float32 holds counts as the
    nearest that it does hold.

    Raises `ValueError` for a value of another type or outside its range (`msgspec.ValidationError` when decoded).
    """

    temperature: float = _UNSAID
    top_k: Exact | None = _UNSAID
    top_p: float | None = _UNSAID
    min_p: float | None = _UNSAID
    repetition_penalty: float = _UNSAID
    filters: Literal["model", "transformers", "huginn"] = _UNSAID
    """Which rules top-k, top-p and min-p follow. "transformers", as in vLLM too: each filter renormalises what the ones
    before it left, and top-p keeps the smallest set of likeliest tokens that reaches `top_p`. "huginn", as in that
    model's reference: nothing is renormalised in between, and top-p drops the token at which the sum exceeds `top_p`.
    "model" is "huginn" for depth-recurrent checkpoints and "transformers" for all others."""
    logprobs: Exact = _UNSAID
    """How many of the likeliest tokens are reported at each step; which token is drawn does not depend on it."""

    def __post_init__(self) -> None:
        said = frozenset(name for name in _IF_UNSAID if getattr(self, name) is not msgspec.UNSET)
        for name in _IF_UNSAID.keys() - said:
            msgspec.structs.force_setattr(self, name, _IF_UNSAID[name])
        # No field, because two that sample alike are equal.
        self.__dict__["_said"] = said
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

    @classmethod
    def plain(cls, temperature: float) -> Sampling:
        """The model's own distribution at a temperature, whatever a checkpoint says."""
        return cls(temperature=temperature, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0)

    @property
    def said(self) -> frozenset[str]:
        """Names of the fields that were given; all of one that was copied with changes."""
        said: frozenset[str] = self.__dict__.get("_said", frozenset(_IF_UNSAID))
        return said

    def over(self, defaults: Sampling) -> Sampling:
        """What is said here, and for the rest what `defaults` has; but for its filters, where greedy is said here."""
        said = {name: getattr(self, name) for name in self.said}
        if said.get("temperature") == 0:
            said = {"top_k": None, "top_p": None, "min_p": None, **said}
        return msgspec.structs.replace(defaults, **said)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, without chance."""
        return self.temperature == 0
