"""From a checkpoint on disk to a device that runs it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio.to_thread
import msgspec

from policies import Fixed, GateExit, Policy, Speculative, from_builtins, to_builtins
from runtime.console.logs import logger
from runtime.device.settings import EngineSettings
from runtime.errors import CheckpointError, ProtocolError
from runtime.link.commands import Device, OnTraceError
from runtime.link.events import FORMAT, Header, Trace, encodable
from runtime.link.latents import Latents
from runtime.model.braid_file import parse_braid
from runtime.model.directories import BRAID, GENERATION_CONFIG
from runtime.protocol import (
    AnyProtocol,
    BoundForkProtocol,
    BoundProtocol,
    BoundToolProtocol,
    ForkProtocol,
    TagProtocol,
    ToolProtocol,
)
from runtime.protocol.constraints import Matchers
from runtime.threads.opened import Opened
from runtime.threads.recorded_mail import RecordedMail

if TYPE_CHECKING:
    from runtime.device.journal import Recorder
    from runtime.device.latents import LatentRecorder
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
    """Loads a checkpoint and builds the device that runs it; takes seconds, and belongs on a worker thread. At the
    first time on a machine, native code is compiled, for about half a minute.

    Raises `CheckpointError` for what cannot be loaded, `CapacityError` and `ValueError` for settings that the machine
    cannot meet, and `TraceError` for a trace that cannot be written, or `latents` beside it. With `recorder_of`, what
    is recorded goes to what that makes of a header."""
    # An engine over another device does without the model and its kernels.
    import torch

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
    drafting = None if smaller is None else smaller.model

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
            drafts=drafting,
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
        _opened(loaded, settings, running, protocol, own_policy),
        latent_width=loaded.model.specification.width,
        fingerprint=partial(fingerprint, loaded.model),
        ready=running.wait_until_open,
        close=partial(_abandon, writer, states),
    )


@contextmanager
def _giving_up_where_it_raises(writer: Recorder) -> Iterator[None]:
    """Gives a trace up where what is to be beside it cannot be had."""
    try:
        yield
    except BaseException:
        writer.abandon()
        raise


def _abandon(*recorders: Recorder | LatentRecorder | None) -> None:
    for recorder in recorders:
        if recorder is not None:
            recorder.abandon()


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


def drafted(policy: Policy) -> Policy:
    """A policy whose tokens another model guesses, where they all get the same depth."""
    if type(policy.depth) is not Fixed:
        return policy
    depth = Speculative(max_iterations=policy.depth.max_iterations, drafts="model")
    return msgspec.structs.replace(policy, depth=depth)


def describe_opened(
    checkpoint: str | Path, settings: EngineSettings, device: Device, drafts: str | Path | None = None
) -> Opened:
    """What a checkpoint brings to a device elsewhere. Its weights are not read. Raises `CheckpointError`."""
    from runtime.model.checkpoint import describe

    described = describe(checkpoint)
    protocol, own_policy = read_braid(described)
    if drafts is not None:
        own_policy = drafted(own_policy or Policy())
    return _opened(described, settings, device, protocol, own_policy)


def write_trace(path: Path, header: Header, *, overwrite: bool) -> Recorder:
    """A trace that is begun at a path. Raises `TraceError` where it cannot be."""
    return _tracing().write(path, header, overwrite=overwrite)


def _opened(
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


async def open_in_thread(make: Callable[[], Opened]) -> Opened:
    """Runs `make` on a worker thread. Cancelled meanwhile, what it opens is closed as soon as it is there."""
    loading: Future[Opened] = Future()

    def run() -> None:
        try:
            loading.set_result(make())
        except BaseException as error:
            loading.set_exception(error)

    try:
        await anyio.to_thread.run_sync(run)
    except BaseException:
        loading.add_done_callback(_close_opened)
        raise
    return loading.result()


def _close_opened(loading: Future[Opened]) -> None:
    if loading.exception() is None and (close := loading.result().close) is not None:
        close()


def open_playback(trace: Trace, checkpoint: str | Path | None) -> Opened:
    """A device that plays a trace back, with the tokenizer and protocol of the checkpoint it was recorded with.

    `checkpoint` says where that is now, if not where the trace says. Its weights are not read.
    """
    from runtime.model.checkpoint import describe

    described = describe(trace.header.checkpoint if checkpoint is None else checkpoint)
    protocol, _ = read_braid(described)
    settings = msgspec.convert(trace.header.engine, EngineSettings)
    policy = from_builtins(trace.header.policy, Policy)
    played = _opened(described, settings, _tracing().play(trace), protocol, policy)
    return replace(played, answers_tools=True, recorded_mail=RecordedMail(trace.events))


class _Tracing(NamedTuple):
    """What records runs, and what plays them back."""

    write: Callable[..., Recorder]
    """From a path, a header and `overwrite`."""
    play: Callable[[Trace], Device]


def _tracing() -> _Tracing:
    # The runtime's only reach upwards: traces are built on its events, and loaded where one is asked for.
    from traces import Playback, TraceRecorder

    return _Tracing(write=TraceRecorder, play=Playback)


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


def header_of(
    checkpoint: str | Path,
    model: str,
    settings: EngineSettings,
    policy: Policy,
    seed: int,
    drafts: str | Path | None,
) -> Header:
    """The header of a trace that begins now; `model` is the fingerprint of its weights."""
    libraries = ("torch", "numpy", "numba", "tokenizers", "msgspec", "anyio")
    return Header(
        format=FORMAT,
        started=time.time(),
        checkpoint=encodable(str(checkpoint)),
        fingerprint=model,
        policy=to_builtins(policy),
        seed=seed,
        engine=msgspec.to_builtins(settings),
        versions={"python": platform.python_version(), **_versions_of(libraries)},
        drafts=None if drafts is None else encodable(str(drafts)),
        compression="zstd",
    )


def _versions_of(libraries: Iterable[str]) -> dict[str, str]:
    """Of those that are installed: some backends do without some of them."""
    found: dict[str, str] = {}
    for library in libraries:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found
