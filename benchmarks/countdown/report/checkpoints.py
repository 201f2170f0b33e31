"""The checkpoints that a report compares."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.countdown.report.cells import Cell, ModelName
from policies import DepthPolicy, Fixed, Policy, from_builtins
from runtime.model import RavenConfig, fingerprint, load_checkpoint


class CheckpointFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a report needs to know of a checkpoint, its weights aside."""

    path: str
    """Name or directory, as the engine opens it."""
    fingerprint: str
    """Of configuration and weights."""
    parameters: int
    megabytes: float
    """Of its weights on disk."""
    mean_recurrence: int
    width: int
    """Values in a key, and in a value, of one token in one layer."""
    outer_layers: int
    """Layers outside the recurrent core, which keep one entry a token."""
    core_layers: int
    """Layers of the recurrent core, which keep one entry an iteration slot."""
    depth: DepthPolicy
    """Its default."""
    protocol: str
    """As JSON."""

    def kv_bytes(self, slots: int) -> int:
        """Bytes of keys and values that a token keeps, in float32."""
        return (self.outer_layers + self.core_layers * slots) * self.width * 2 * 4


class _BraidFile(msgspec.Struct):
    protocol: msgspec.Raw = msgspec.Raw(b"null")
    policy: dict[str, object] | None = None


def read_facts(checkpoint: str | Path) -> CheckpointFacts:
    """Loads a checkpoint to describe it. Raises `CheckpointError` where it cannot be loaded, and
    `ValueError` where it is no depth-recurrent model."""
    loaded = load_checkpoint(checkpoint)
    config = loaded.model.config
    braid = msgspec.json.decode(loaded.braid or b"{}", type=_BraidFile)
    policy = Policy() if braid.policy is None else from_builtins(braid.policy, Policy)
    if not isinstance(config, RavenConfig):
        raise ValueError(f"{checkpoint} is a {type(config).__name__} checkpoint; the report compares recurrent models.")
    return CheckpointFacts(
        path=str(checkpoint),
        fingerprint=fingerprint(loaded.model),
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        megabytes=sum(file.stat().st_size for file in loaded.path.glob("*.safetensors")) / 2**20,
        mean_recurrence=config.mean_recurrence,
        width=config.n_embd,
        outer_layers=config.n_layers_in_prelude + config.n_layers_in_coda,
        core_layers=config.n_layers_in_recurrent_block,
        depth=policy.depth,
        protocol=bytes(braid.protocol).decode(),
    )


def resolved(cell: Cell, facts: CheckpointFacts) -> Cell:
    """The cell with the checkpoint's defaults written out, so that cells that do the same are equal."""
    depth = facts.depth if cell.depth is None else cell.depth
    if isinstance(depth, Fixed) and depth.max_iterations is None:
        depth = msgspec.structs.replace(depth, max_iterations=facts.mean_recurrence)
    slots = cell.slots
    if slots is not None and slots >= depth.deepest(facts.mean_recurrence):
        slots = None
    return msgspec.structs.replace(cell, depth=depth, slots=slots)


Checkpoints = dict[ModelName, CheckpointFacts]
"""Those that are there."""
