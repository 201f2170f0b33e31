"""What tokens are constrained to: what is asked for, and how a device is told which tokens may follow.

call -> Constraint (data, recorded) -> Matcher (made on a worker thread, then the device thread's own)
token sampled -> Matcher.feed -> the next mask is computed on another thread while the token itself is computed
its lane leaves -> TokenMask.wait -> logits of all other tokens are minus infinity -> drawn -> Matcher.feed -> ...
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
"""A bit a token, the first token's lowest; at least as many as the model has tokens."""


Kind = Literal["json_schema", "regex", "choices", "grammar"]


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """What must stand between tags, wherever a thread opens them."""

    opens: int
    """The token of the tag before it."""
    closes: tuple[int, ...]
    """Those that end it, allowed where the text may end."""
    kind: Kind
    form: str
    """As in `Constraint`."""


class Constraint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a text must be. Traces have it as it is."""

    kind: Kind | Literal["blocks"]
    """"blocks" leaves all free but what stands in `blocks`."""
    form: str
    """The schema or the list of choices as JSON, the regular expression, or the grammar; empty for blocks."""
    blocks: tuple[Block, ...] = ()
    thought: tuple[int, int] | None = None
    """The tokens that open and close a thought, in which all is free; the text may begin with one."""
    is_thinking: bool = False
    """Whether the context ends inside of one."""
    begun: int = 0
    """How many tokens at the end of the context are its beginning already."""

    def as_given(self) -> dict[str, Any]:
        """The arguments of a `generate` that asks for it."""
        if self.kind == "blocks":
            raise ValueError("blocks are declared by a protocol")
        is_json = self.kind in ("json_schema", "choices")
        return {self.kind: msgspec.json.decode(self.form) if is_json else self.form}


class TokenMask(Protocol):
    """Which tokens may be sampled, as soon as that is computed."""

    def is_ready(self) -> bool:
        """Whether `wait` returns at once."""
        ...

    def wait(self) -> Words:
        """The mask, with at least one token; raises nothing."""
        ...


class Matcher(Protocol):
    """How far one generate has come in what it is constrained to; owned by the device thread until that ends."""

    def mask(self) -> TokenMask | None:
        """Which tokens may come next, the same until `feed`; None for all."""
        ...

    def halts(self) -> frozenset[int] | None:
        """Where all tokens may come next: those at which that changes. None where not all may."""
        ...

    def feed(self, token: int) -> bool:
        """Takes the token that was sampled; whether nothing may follow it.

        Raises `BraidError` where no token could be allowed, or what computes masks has failed; the thread ends with
        that.
        """
        ...
