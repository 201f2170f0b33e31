"""What a server allows its clients."""

from __future__ import annotations

from typing import Any

import msgspec

from policies import Limits


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one server. Everything that a client can make it keep is bounded by one of them."""

    model: str
    """The name that clients ask for."""
    keys: tuple[str, ...] = ()
    """Whoever calls has one of them; without any, everybody may."""
    most_requests: int = 512
    """That are answered at a time."""
    most_waiting: int = 512
    """That wait to be answered; what comes beyond them is refused."""
    most_per_client: int = 512
    """Of both, by one key, or by one address where there are no keys."""
    most_choices: int = 128
    """Prompts times `n` of one request."""
    largest_body: int = 2**20
    """Bytes of a request."""
    body_seconds: float = 30.0
    """For a request's body to come."""
    send_seconds: float = 30.0
    """For a client to take what is sent; one that does not is taken for gone."""
    most_viewers: int = 32
    """Who may watch at a time."""
    highest_priority: int = 10
    limits: Limits = Limits(tokens=65536, threads=4096)
    """Of every tree; what clients ask for counts below them."""


def within(asked: Limits, allowed: Limits) -> Limits:
    """What holds where both do, field by field."""
    bounds: dict[str, Any] = {}
    for name in Limits.__struct_fields__:
        given = [value for limits in (asked, allowed) if (value := getattr(limits, name)) is not None]
        bounds[name] = min(given, default=None)
    return Limits(**bounds)
