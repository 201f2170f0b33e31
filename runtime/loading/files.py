"""What a checkpoint's files bring to a device, whichever it is, beside weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from policies import Fixed, Policy, Speculative
from runtime.console.logs import logger
from runtime.device.remote.vocabulary import byte_tokenizer
from runtime.device.settings import EngineSettings
from runtime.link.commands import Device
from runtime.model.directories import GENERATION_CONFIG
from runtime.protocol import AnyProtocol
from runtime.protocol.declared import read_braid
from runtime.threads.opened import Opened

if TYPE_CHECKING:
    from runtime.model.checkpoint import Description


_log = logger("runtime.loading")


def describe_opened(
    checkpoint: str | Path, settings: EngineSettings, device: Device, drafts: str | Path | None = None
) -> Opened:
    """What a checkpoint brings to a device elsewhere. Its weights are not read. Raises `CheckpointError`."""
    from runtime.model.checkpoint import describe

    described = describe(checkpoint)
    protocol, own_policy = read_braid(described)
    if drafts is not None:
        own_policy = drafted(own_policy or Policy())
    return opened_with(described, settings, device, protocol, own_policy)


def files_of(checkpoint: str | Path | None) -> tuple[Description | None, AnyProtocol | None, Policy | None]:
    """What a checkpoint's files say beside its weights, its protocol and its policy; nothing of None."""
    if checkpoint is None:
        return None, None, None
    from runtime.model.checkpoint import describe

    described = describe(checkpoint)
    return described, *read_braid(described)


def opened_of(
    described: Description | None,
    settings: EngineSettings,
    device: Device,
    protocol: AnyProtocol | None,
    policy: Policy | None,
) -> Opened:
    """What a checkpoint's files bring to a device; without any, tokens are bytes."""
    if described is not None:
        return opened_with(described, settings, device, protocol, policy)
    tokenizer = byte_tokenizer()
    return Opened(
        device=device,
        tokenizer=tokenizer,
        policy=policy,
        max_context=settings.max_context,
        vocab_size=tokenizer.vocab_size,
    )


def opened_with(
    checkpoint: Description,
    settings: EngineSettings,
    device: Device,
    protocol: AnyProtocol | None,
    policy: Policy | None,
) -> Opened:
    """What a checkpoint brings to a device that runs it, or plays back what it did."""
    own = checkpoint.config.specification
    generation = checkpoint.generation
    if generation.ignored:
        _log.warning(
            "ways of sampling that the engine has not",
            file=str(checkpoint.path if checkpoint.path.is_file() else checkpoint.path / GENERATION_CONFIG),
            ignored=generation.ignored,
        )
    return Opened(
        device=device,
        tokenizer=checkpoint.tokenizer,
        chat_templates=checkpoint.chat_templates,
        protocol=protocol,
        policy=policy,
        sampling=generation.sampling,
        max_tokens=generation.max_tokens,
        stop_tokens=frozenset(checkpoint.stop_tokens),
        max_context=settings.context_of(own.max_context),
        vocab_size=own.vocab_size,
    )


def drafted(policy: Policy) -> Policy:
    """A policy whose tokens another model guesses, where they all get the same depth."""
    if type(policy.depth) is not Fixed:
        return policy
    depth = Speculative(max_iterations=policy.depth.max_iterations, drafts="model")
    return msgspec.structs.replace(policy, depth=depth)
