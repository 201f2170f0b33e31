"""What a checkpoint's `braid.json` declares, over its tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from policies import GateExit, Policy
from runtime.errors import CheckpointError, ProtocolError
from runtime.model.braid_file import parse_braid
from runtime.model.directories import BRAID
from runtime.protocol import (
    AnyProtocol,
    BoundForkProtocol,
    BoundProtocol,
    BoundToolProtocol,
    ForkProtocol,
    TagProtocol,
    ToolProtocol,
)

if TYPE_CHECKING:
    from runtime.model.checkpoint import Description


def read_braid(
    checkpoint: Description,
) -> tuple[AnyProtocol | None, Policy | None]:
    """The protocol and the policy that a checkpoint's `braid.json` declares.

    Raises `CheckpointError`, naming the file, for what is no declaration of either, or for a protocol that the
    checkpoint's tokenizer cannot write.
    """
    where = checkpoint.path / BRAID
    braid = parse_braid(where, checkpoint.braid)
    try:
        policy = braid.default_policy()
        if braid.protocol is None:
            return None, policy or _published_policy(checkpoint)
        tokenizer = checkpoint.tokenizer
        if tokenizer is None:
            raise ProtocolError("the protocol needs a tokenizer.json beside it, or the name of a shipped one.")
        bound: AnyProtocol
        if "tools" in braid.protocol and braid.protocol.keys() <= set(ToolProtocol.__struct_fields__):
            bound = BoundToolProtocol(msgspec.convert(braid.protocol, ToolProtocol), tokenizer)
        elif "fork" in braid.protocol:
            bound = BoundForkProtocol(msgspec.convert(braid.protocol, ForkProtocol), tokenizer)
        else:
            bound = BoundProtocol(msgspec.convert(braid.protocol, TagProtocol), tokenizer)
        return bound, policy or _published_policy(checkpoint)
    except (msgspec.MsgspecError, ValueError, ProtocolError) as error:
        raise CheckpointError(f"{where}: {str(error).removesuffix('.')}.") from error


def _published_policy(checkpoint: Description) -> Policy | None:
    """What a checkpoint does of itself, where no `braid.json` says otherwise."""
    own = checkpoint.config.specification
    return Policy(depth=GateExit(own.exit_threshold)) if own.exit_gate else None
