"""Traces that are written beside an engine: their headers and what writes them."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from policies import Policy, to_builtins
from runtime.device.settings import EngineSettings
from runtime.link.commands import Device
from runtime.link.events import FORMAT, Header, Trace, encodable

if TYPE_CHECKING:
    from runtime.device.journal import Recorder
    from runtime.device.latents import LatentRecorder


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


def write_trace(path: Path, header: Header, *, overwrite: bool) -> Recorder:
    """A trace that is begun at a path. Raises `TraceError` where it cannot be."""
    return tracing().write(path, header, overwrite=overwrite)


def abandon(*recorders: Recorder | LatentRecorder | None) -> None:
    for recorder in recorders:
        if recorder is not None:
            recorder.abandon()


class _Tracing(NamedTuple):
    """What records runs, and what plays them back."""

    write: Callable[..., Recorder]
    """From a path, a header and `overwrite`."""
    play: Callable[[Trace], Device]


def tracing() -> _Tracing:
    # The runtime's only reach upwards: traces are built on its events, and loaded where one is asked for.
    from traces import Playback, TraceRecorder

    return _Tracing(write=TraceRecorder, play=Playback)
