"""Text for terminals: what could move a cursor, change colours or reorder letters is spelled out."""

from __future__ import annotations

import re

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for tabulator and line feed, marks of direction, line separators, and lone surrogates."""


def visible(text: str) -> str:
    r"""The text with every unsafe character as `\x1b` or `\u202e`."""
    return UNSAFE.sub(_escaped, text)


def escaped_json(data: bytes) -> bytes:
    """The same JSON with every unsafe character as JSON escapes it; what is read from it does not change."""
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", data.decode()).encode()


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
