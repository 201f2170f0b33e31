"""Making a checkpoint directory that `Engine.open` needs nothing else for."""

from __future__ import annotations

from pathlib import Path

import msgspec

from policies import Policy
from policies.training.finite import first_not_finite
from runtime import BoundProtocol, TagProtocol
from runtime.model import BraidFile, Tokenizer, Transformer, save_checkpoint


def export_checkpoint(
    directory: Path, model: Transformer, tokenizer: Tokenizer, protocol: TagProtocol, policy: Policy | None = None
) -> None:
    """Writes config, weights, tokenizer and braid.json: the protocol, and the policy that is used by default.

    The protocol's end tags that are single tokens are written as the stop tokens of generation_config.json too. Raises
    `ProtocolError` if the tokenizer cannot write the protocol's tags, and `ValueError` for weights that are not finite.
    """
    name = first_not_finite(model.named_parameters())
    if name is not None:
        raise ValueError(f"The weights {name} are not finite; no checkpoint is made of them.")
    BoundProtocol(protocol, tokenizer)
    ends = [token for tag in protocol.end if (token := tokenizer.token_to_id(tag)) is not None]
    braid = BraidFile(protocol=msgspec.to_builtins(protocol))
    if policy is not None:
        braid = braid.with_policy(policy)
    save_checkpoint(directory, model, tokenizer=tokenizer, eos=ends, braid=braid.to_json())
