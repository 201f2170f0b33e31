"""From the address of a server to a device that asks it for tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from policies import Fixed, Policy
from runtime.device.remote.settings import RemoteSettings, Served, is_address
from runtime.device.remote.vocabulary import Vocabulary, byte_tokenizer
from runtime.device.settings import EngineSettings
from runtime.errors import CheckpointError, RemoteError
from runtime.link.commands import OnTraceError
from runtime.link.latents import Latents
from runtime.loading.files import files_of, opened_of
from runtime.loading.local import open_device
from runtime.loading.tracing import abandon, header_of, write_trace
from runtime.threads.opened import Opened

if TYPE_CHECKING:
    from runtime.device.journal import Recorder


def opening_by(
    checkpoint: str | Path,
    settings: EngineSettings,
    *,
    remotely: tuple[str | None, str | Path | None, RemoteSettings | None],
    trace: str | Path | None,
    drafts: str | Path | None,
    latents: Latents | None,
    **options: Any,
) -> Callable[[], Opened]:
    """What opens a checkpoint, or a server by its address; `remotely` are model, tokenizer and settings for that.

    Raises `ValueError` for what does not go together.
    """
    if latents is not None and trace is None:
        raise ValueError("record_latents are recorded beside a trace; give trace= too, or engine.recording() both.")
    if not is_address(checkpoint):
        if any(each is not None for each in remotely):
            raise ValueError("model, tokenizer and remote are for servers; give an address, as 'http://host:8000/v1'.")
        return partial(open_device, checkpoint, settings, trace=trace, drafts=drafts, latents=latents, **options)
    if drafts is not None or latents is not None:
        name = "drafts" if drafts is not None else "record_latents"
        raise ValueError(f"{name} is for engines that run a model themselves; leave it out.")
    return partial(open_remote, Served.of(str(checkpoint), *remotely, settings), settings, trace=trace, **options)


def open_remote(
    served: Served,
    settings: EngineSettings,
    *,
    policy: Policy | None,
    trace: str | Path | None,
    seed: int,
    overwrite: bool = False,
    on_trace_error: OnTraceError = "drop",
) -> Opened:
    """Asks a server what it offers and makes the device that asks it for tokens. Blocks; belongs on a worker thread.

    Raises `RemoteError` for a server that cannot be reached or does not speak completions, `PolicyError` for a depth
    policy that it does not take, and what `open_device` raises of the checkpoint's files and the trace.
    """
    try:
        from runtime.device.remote.device import RemoteDevice
        from runtime.device.remote.offer import look
    except ModuleNotFoundError as error:
        if error.name != "httpx2":
            raise
        raise RemoteError("An engine on a server needs httpx2: pip install 'braid-runtime[remote]'.") from error
    described, protocol, own_policy = files_of(served.tokenizer)
    tokenizer = byte_tokenizer() if described is None else described.tokenizer
    if tokenizer is None:
        raise CheckpointError(f"{served.tokenizer}: has no tokenizer.json, which is what it is given for.")
    offer = look(served, () if described is None else tokenizer.leading or (0,))
    default = policy or own_policy or Policy()
    if policy is None and not offer.is_braid:
        # What the files say of depth is for those who can follow it.
        default = msgspec.structs.replace(default, depth=Fixed())
    offer.check_depth(default.depth)
    own = None if described is None else described.config.specification
    bounds = (None if own is None else own.max_context, offer.max_context, settings.max_context)
    settings = msgspec.structs.replace(settings, max_context=min(filter(None, bounds), default=None))

    def open_trace(path: Path, overwrite: bool) -> Recorder:
        header = header_of(served.address, "", settings, default, seed, None)
        engine = {**header.engine, "remote": served.described(offer)}
        return write_trace(path, msgspec.structs.replace(header, engine=engine), overwrite=overwrite)

    recorder = None if trace is None else open_trace(Path(trace), overwrite)
    device = RemoteDevice(
        offer,
        served.settings,
        Vocabulary(tokenizer),
        max_context=settings.max_context,
        vocab_size=tokenizer.vocab_size if own is None else own.vocab_size,
        recorder=recorder,
        open_trace=open_trace,
        on_trace_error=on_trace_error,
    )
    opened = opened_of(described, settings, device, protocol, default)
    return replace(opened, close=partial(abandon, recorder))
