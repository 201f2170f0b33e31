"""From a checkpoint on disk to a device that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from policies import Policy
from runtime.console.logs import logger
from runtime.device.settings import EngineSettings
from runtime.errors import CheckpointError
from runtime.link.commands import OnTraceError
from runtime.link.events import Header
from runtime.link.latents import Latents
from runtime.loading.files import drafted, opened_with
from runtime.loading.tracing import abandon, header_of, write_trace
from runtime.protocol.constraints import Matchers
from runtime.protocol.declared import read_braid
from runtime.threads.opened import Opened

if TYPE_CHECKING:
    from runtime.device.journal import Recorder
    from runtime.device.loop import DeviceLoop
    from runtime.model.checkpoint import Description


_log = logger("runtime.loading")


def open_device(
    checkpoint: str | Path,
    settings: EngineSettings,
    *,
    policy: Policy | None,
    trace: str | Path | None,
    seed: int,
    overwrite: bool = False,
    on_trace_error: OnTraceError = "drop",
    drafts: str | Path | None = None,
    latents: Latents | None = None,
    recorder_of: Callable[[Header], Recorder] | None = None,
) -> Opened:
    """Loads a checkpoint and builds the device that runs it, on a worker thread: takes seconds, and half a minute more
    where native code is compiled, the first time on a machine.

    Raises `CheckpointError` for what cannot be loaded, `CapacityError` and `ValueError` for settings that the machine
    cannot meet, and `TraceError` for a trace that cannot be written, or `latents` beside it. What is recorded goes to
    what `recorder_of` makes of a header."""
    import torch

    # An engine over another device does without all this.
    from runtime.device.build import build_loop, cache_shape, load_native_code, torch_threads
    from runtime.device.capacity import choose_device
    from runtime.device.latent_file import LatentFile
    from runtime.device.latents import LatentRecorder
    from runtime.device.loop import ModelDevice
    from runtime.device.sizing import most_iterations
    from runtime.model.checkpoint import Checkpoint, fingerprint, load_served

    device = choose_device(settings)
    dtype = torch.float32 if settings.dtype == "float32" else torch.bfloat16
    loaded = load_served(checkpoint, dtype=dtype, device=device)
    if not isinstance(loaded, Checkpoint):
        _log.warning("run by transformers' own code, the slow and wide way", model_type=loaded.config.family)
    protocol, own_policy = read_braid(loaded)
    smaller = None
    if drafts is not None:
        smaller = load_served(drafts, dtype=dtype, device=device)
        check_same_vocabulary(loaded, smaller)
        own_policy = drafted(own_policy or Policy())
    default = policy or own_policy or Policy()
    # What cannot be had is known before native code is compiled and a trace is begun.
    cache_shape(loaded.model, settings, most_iterations(loaded.model.specification, settings, default.depth))
    load_native_code(loaded.model, settings)

    def open_trace(path: Path, overwrite: bool) -> Recorder:
        header = header_of(checkpoint, fingerprint(loaded.model), settings, default, seed, drafts)
        return recorder_of(header) if recorder_of else write_trace(path, header, overwrite=overwrite)

    def open_loop() -> DeviceLoop:
        return build_loop(
            loaded.model,
            settings,
            default.depth,
            writer,
            open_trace=open_trace,
            on_trace_error=on_trace_error,
            drafts=None if smaller is None else smaller.model,
            latents=states,
            matchers=Matchers(loaded.tokenizer, loaded.config.specification.vocab_size, frozenset(loaded.stop_tokens)),
        )

    running = ModelDevice(open_loop, torch_threads(loaded.model, settings))
    if latents is not None:
        latents.check_width(loaded.model.specification.width)
    # Last of what may raise: files that are open are given to who closes them.
    writer = None if trace is None else open_trace(Path(trace), overwrite)
    states = None
    if trace is not None and writer is not None and latents is not None:
        with _giving_up_where_it_raises(writer):
            states = LatentRecorder(latents, LatentFile(Path(trace), overwrite=overwrite))
    return replace(
        opened_with(loaded, settings, running, protocol, own_policy),
        latent_width=loaded.model.specification.width,
        lanes=settings.max_in_flight,
        fingerprint=partial(fingerprint, loaded.model),
        ready=running.wait_until_open,
        close=partial(abandon, writer, states),
    )


@contextmanager
def _giving_up_where_it_raises(writer: Recorder) -> Iterator[None]:
    """Gives a trace up where what is to be beside it cannot be had."""
    try:
        yield
    except BaseException:
        writer.abandon()
        raise


def check_same_vocabulary(checkpoint: Description, drafts: Description) -> None:
    """Raises `CheckpointError`, naming both, where a draft model's tokens are not those of the model it guesses for."""
    ours, theirs = (each.config.specification.vocab_size for each in (checkpoint, drafts))
    if ours != theirs:
        raise CheckpointError(
            f"{drafts.path}: has {theirs} tokens, and {checkpoint.path} has {ours}; a draft model needs the same "
            "vocabulary."
        )
    if checkpoint.tokenizer is None or drafts.tokenizer is None:
        return
    count = max(checkpoint.tokenizer.vocab_size, drafts.tokenizer.vocab_size)
    for token in range(count):
        own, other = checkpoint.tokenizer.id_to_token(token), drafts.tokenizer.id_to_token(token)
        if own != other:
            raise CheckpointError(
                f"{drafts.path}: token {token} is {other!r}, and in {checkpoint.path} it is {own!r}; a draft model "
                "needs the same vocabulary."
            )
