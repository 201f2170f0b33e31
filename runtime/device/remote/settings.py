"""How a server is spoken to: places, patience, and what it is known to offer."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from policies.conversion import Exact, convert_fields, converted, shown
from runtime.device.settings import EngineSettings
from runtime.errors import RemoteError


class RemoteSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of an engine whose model a server runs. Raises `ValueError`, naming the field, for one that does not fit."""

    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that has the key; no key is sent where it is not set. Traces have its name alone."""
    max_requests: Exact = 64
    """Most requests at a time; further generates wait, by priority and then depth-first by path."""
    attempts: Exact = 6
    """How often a request is tried in a row without a token more, before its generate fails."""
    first_pause: float = 0.25
    """Seconds before the second attempt, half of them by chance; doubled for each further one. What a server says by
    `Retry-After` counts where it is longer."""
    longest_pause: float = 20.0
    """Seconds that are waited at most; a server that asks for more is not asked again."""
    connect_seconds: float = 10.0
    """How long a connection may take."""
    silence_seconds: float = 120.0
    """How long a server may say nothing before its stream counts as broken."""
    token_ids: bool | None = None
    """Whether token ids are sent and asked for; None tries it once, when the engine opens."""

    def __post_init__(self) -> None:
        convert_fields(self, "RemoteSettings.")
        for name in ("max_requests", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"RemoteSettings.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("first_pause", "longest_pause", "connect_seconds", "silence_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"RemoteSettings.{name} is {value}; it must be a number of seconds above 0.")

    @property
    def headers(self) -> dict[str, str]:
        """What says who asks."""
        key = os.environ.get(self.key_variable, "").strip()
        if not key.isascii() or not key.isprintable():
            raise RemoteError(f"The key in {self.key_variable} has characters that no header can have. Set it anew.")
        return {"Authorization": f"Bearer {key}"} if key else {}


class Served(NamedTuple):
    """A server's model, as an engine is asked to use it."""

    address: str
    model: str | None
    """None: the only one it has."""
    tokenizer: str | Path | None
    """The checkpoint whose tokenizer, protocol, chat template and ways of sampling the model has; None: bytes."""
    settings: RemoteSettings

    @classmethod
    def of(
        cls,
        address: str,
        model: str | None,
        tokenizer: str | Path | None,
        settings: RemoteSettings | None,
        own: EngineSettings,
    ) -> Served:
        """Raises `ValueError`, naming the argument, for what is none, and for settings of an engine that runs a model
        itself."""
        strange = [
            name
            for name in EngineSettings.__struct_fields__
            if name not in ("max_context", "queue_size") and getattr(own, name) != getattr(EngineSettings(), name)
        ]
        if strange:
            raise ValueError(f"{strange[0]} is for engines that run a model themselves; the server has its own.")
        settings = converted(settings, RemoteSettings | None, "remote") or RemoteSettings()
        if settings.token_ids and tokenizer is None:
            raise ValueError("RemoteSettings.token_ids needs a tokenizer=, the directory of the model's checkpoint.")
        model = converted(model, str | None, "model")
        return cls(address_of(address), model, converted(tokenizer, str | Path | None, "tokenizer"), settings)

    def described(self, offer: msgspec.Struct) -> dict[str, Any]:
        """What traces say of it."""
        tokenizer = None if self.tokenizer is None else str(self.tokenizer)
        settings = msgspec.to_builtins(self.settings)
        return {"tokenizer": tokenizer, "offer": msgspec.to_builtins(offer), "settings": settings}


def is_address(checkpoint: object) -> bool:
    """Whether something names a server rather than a checkpoint."""
    return isinstance(checkpoint, str) and checkpoint.lower().startswith(("http://", "https://"))


def address_of(text: str) -> str:
    """The address below which the API is. Raises `ValueError` for one that cannot be asked."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{shown(text)} is no address of a server: {error}.") from None
    if not parts.hostname or port == 0:
        raise ValueError(f"{shown(text)} is no address of a server; give one such as 'http://host:8000/v1'.")
    if parts.username is not None or parts.password is not None:
        raise ValueError("The address has a user or a password in it; set RemoteSettings.key_variable instead.")
    if parts.query or parts.fragment:
        raise ValueError(f"{shown(text)} goes on after the path; end it there, such as 'http://host:8000/v1'.")
    return text.rstrip("/")
