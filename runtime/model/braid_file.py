"""`braid.json`: what a checkpoint carries beside the published format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from policies import Policy, from_builtins, to_builtins
from runtime.errors import CheckpointError
from runtime.model.published import parse_object


class BraidFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The file's content. Protocol and policy are as the file has them; a policy that a program defines may be known
    only later."""

    protocol: dict[str, Any] | None = None
    """A `TagProtocol` as builtins."""
    policy: dict[str, Any] | None = None
    """The default policy, as `policies.to_builtins` writes it."""
    tokenizer: str | None = None
    """Name of the shipped checkpoint whose tokenizer.json counts for a directory that has none."""

    def default_policy(self) -> Policy | None:
        """Raises `ValueError` for what is no policy, or one that is not known."""
        return None if self.policy is None else from_builtins(self.policy, Policy)

    def with_policy(self, policy: Policy) -> BraidFile:
        return msgspec.structs.replace(self, policy=to_builtins(policy))

    def to_json(self) -> bytes:
        """What the file is to hold; `parse_braid` reads it."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def parse_braid(path: Path, content: bytes | None) -> BraidFile:
    """The content of the file at `path`; None is that of no file.

    Raises `CheckpointError`, naming the file, for what is no JSON object of these keys.
    """
    if content is None:
        return BraidFile()
    try:
        return msgspec.convert(parse_object(path, content), BraidFile)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}.") from error
