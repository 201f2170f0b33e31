"""Policies as one would write them: without the fields that have their default."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from policies.validation import field_defaults


def as_written(policy: msgspec.Struct, hidden: Collection[str] = ()) -> str:
    """The call that makes an equal policy. Unlike msgspec's own, equal policies always print the same."""
    defaults = field_defaults(type(policy))
    shown = [(name, getattr(policy, name)) for name in policy.__struct_fields__ if name not in hidden]
    given = [f"{name}={value!r}" for name, value in shown if name not in defaults or value != defaults[name]]
    return f"{type(policy).__name__}({', '.join(given)})"
