"""From a loaded model and settings to a device core: sizes are worked out here, once."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeGuard

import msgspec
import torch

from policies import DepthPolicy, Fixed
from runtime.backend.attention import PagedAttention
from runtime.backend.exits import check_readable
from runtime.backend.interface import Backend, CacheShape, TickResult
from runtime.backend.torch.attention import TorchAttention
from runtime.backend.torch.backend import TorchBackend
from runtime.backend.torch.cuda_graphs import CudaCapture, GraphedBackend, batch_buckets
from runtime.backend.torch.triton_attention import has_kernel, triton_attention
from runtime.console.logs import logger
from runtime.device.capacity import check_memory
from runtime.device.draft_model import DraftModel
from runtime.device.drafter import Drafter
from runtime.device.generates import Generates
from runtime.device.grouping import Grouping
from runtime.device.in_flight import InFlight
from runtime.device.journal import Journal, Recorder
from runtime.device.kv_cache import KVCache
from runtime.device.latents import LatentRecorder
from runtime.device.loop import DeviceLoop
from runtime.device.model_limits import ModelLimits
from runtime.device.queues import Queues
from runtime.device.recordings import OpenTrace, Recordings
from runtime.device.requests import Requests
from runtime.device.scheduler import Scheduler
from runtime.device.settings import EngineSettings
from runtime.device.sizing import limits_of, most_iterations, sized_cache, state_std_of
from runtime.device.speculation import Speculation
from runtime.device.switching import Switching
from runtime.device.threads import OpenThreads
from runtime.errors import CapacityError, PolicyError, described
from runtime.link.commands import OnTraceError
from runtime.model.served import ServedModel
from runtime.model.transformer import Transformer
from runtime.protocol.constraints import Matchers

PARAMETERS_PER_THREAD = 100_000
"""Below, threads wait for each other longer than they work."""

_log = logger("runtime.device")


def cache_shape(model: ServedModel, settings: EngineSettings, most: int) -> CacheShape:
    """Sizes of the paged cache. Raises `CapacityError` where not one page fits into `settings.kv_cache_bytes`, and
    where pages or lanes do not fit into the machine."""
    # Where what is computed depends on a row's width, it is as wide as ever.
    is_fixed = settings.deterministic and not is_native(model, settings)
    sized = sized_cache(model.specification, settings, most, has_room_for_holes=not is_fixed)
    check_memory(model, settings, sized.shape, sized.page_bytes)
    return sized.shape


def build_loop(
    model: ServedModel,
    settings: EngineSettings,
    policy: DepthPolicy,
    recorder: Recorder | None = None,
    observe: Callable[[Scheduler, TickResult], None] | None = None,
    open_trace: OpenTrace | None = None,
    on_trace_error: OnTraceError = "drop",
    scheduler: type[Scheduler] = Scheduler,
    drafts: ServedModel | None = None,
    latents: LatentRecorder | None = None,
    matchers: Matchers | None = None,
) -> DeviceLoop:
    """A device loop on the model's device. `policy` is the engine's default depth policy.

    `drafts` is a model of the same vocabulary that guesses for threads under `Speculative(drafts="model")`, and
    speaks in turns with the first under `EntropySwitch`.

    `recorder` gets trace events from the beginning and is closed with the loop; `on_trace_error` says what ends
    with it if it fails, and `latents` takes states beside it. `open_trace` opens the traces that are asked for
    later. `observe` sees every tick's result before it is committed. `matchers` makes those of generates that come
    without one, and is closed with the loop.
    """
    try:
        check_readable(policy, model.specification)
    except ValueError as error:
        raise PolicyError(str(error)) from error
    most = most_iterations(model.specification, settings, policy)
    state_std = state_std_of(model.specification, settings)
    cache = cache_shape(model, settings, most)
    try:
        backend = build_backend(model, settings, cache, state_std)
    except (MemoryError, RuntimeError) as error:
        raise CapacityError(
            f"{cache.pages} pages, {cache.lanes} lanes and threads for them cannot be had ({described(error)}). Lower "
            "EngineSettings.kv_cache_bytes or num_pages, max_in_flight or cpu_threads."
        ) from error
    limits = limits_of(model.specification, settings, most)
    drafter = None if drafts is None else build_drafter(drafts, settings)
    chunk = settings.prefill_chunk
    return wire(
        backend,
        limits,
        chunk,
        recorder,
        observe,
        open_trace,
        on_trace_error,
        scheduler,
        drafter,
        latents,
        matchers=matchers,
    )


def build_drafter(model: ServedModel, settings: EngineSettings) -> Drafter:
    """What guesses with a model, under the settings of the engine that it guesses for."""
    own = msgspec.structs.replace(
        settings, max_context=None, most_iterations=None, iteration_slots=None, cuda_graphs=False
    )
    return DraftModel(build_loop(model, own, Fixed()), model.specification.max_context)


def wire(
    backend: Backend,
    model: ModelLimits,
    chunk: int,
    recorder: Recorder | None = None,
    observe: Callable[[Scheduler, TickResult], None] | None = None,
    open_trace: OpenTrace | None = None,
    on_trace_error: OnTraceError = "drop",
    scheduler: type[Scheduler] = Scheduler,
    drafter: Drafter | None = None,
    latents: LatentRecorder | None = None,
    clock: Callable[[], float] = time.perf_counter,
    matchers: Matchers | None = None,
) -> DeviceLoop:
    """A device loop over a backend: makes the scheduler's parts, each once. The arguments are `build_loop`'s, and
    `DeviceLoop`'s."""
    cache = backend.cache
    grouping = Grouping(chunk, matters=cache.slots < model.most_iterations)
    journal, queues, in_flight = Journal(recorder, latents), Queues(), InFlight(cache.lanes)
    kv_cache = KVCache(
        cache,
        backend.page_table,
        grouping,
        short_context=model.short_context,
        window=model.window,
        reuse=model.shares_prefixes,
        holes=backend.row_holes,
    )
    speculation = Speculation(
        journal, kv_cache, in_flight, max_context=model.max_context, slots=cache.slots, drafter=drafter
    )
    generates = Generates(journal, queues, kv_cache, in_flight, speculation, backend.run_of, model.max_context)
    threads = OpenThreads(model, journal, queues, kv_cache, speculation, generates, backend, matchers)
    recordings = Recordings(journal, open_trace, on_trace_error)
    requests = Requests(backend, threads, kv_cache, journal, recordings)
    planner = scheduler(
        model,
        journal,
        queues,
        kv_cache,
        in_flight,
        grouping,
        speculation,
        Switching(queues, generates, drafter),
        generates,
        stepwise=observe is not None,
    )
    return DeviceLoop(backend, journal, planner, threads, requests, recordings, observe, clock)


def build_backend(model: ServedModel, settings: EngineSettings, cache: CacheShape, state_std: float) -> Backend:
    """The backend that the settings ask for, or that suits the model's device.

    Raises `ValueError` where the one asked for does not run.
    """
    if settings.cuda_graphs:
        return GraphedBackend(
            model,
            cache,
            choose_attention(model, settings),
            CudaCapture(model.device),
            batch_buckets(cache.lanes),
            state_std=state_std,
        )
    if not is_native(model, settings):
        if settings.backend == "auto" and model.device.type == "cpu" and isinstance(model, Transformer):
            _log.warning("no_native_backend", reason=why_not_native(model))
        return TorchBackend(
            model,
            cache,
            choose_attention(model, settings),
            state_std=state_std,
            deterministic=settings.deterministic,
        )
    from runtime.backend.native.backend import NativeBackend

    threads = settings.cpu_threads or worthwhile_threads(model)
    return NativeBackend(model, cache, state_std=state_std, cpu_threads=threads)


def load_native_code(model: ServedModel, settings: EngineSettings) -> None:
    """Loads what the backend will call, if that is native; where it is not on disk yet, it is compiled.

    Raises `ValueError` where native code is asked for and does not run.
    """
    if is_native(model, settings):
        from runtime.backend.native.compiled import load_native_functions

        load_native_functions(model.dtype is torch.bfloat16)


def torch_threads(model: ServedModel, settings: EngineSettings) -> int | None:
    """Threads that PyTorch may use on the device thread: one beside native code, which has threads of its own."""
    if model.device.type != "cpu":
        return None
    return 1 if is_native(model, settings) else settings.cpu_threads


def is_native(model: ServedModel, settings: EngineSettings) -> TypeGuard[Transformer]:
    """Whether ticks will be native code. Raises `ValueError` where the settings ask for what the model cannot do."""
    if settings.cuda_graphs and not isinstance(model, Transformer):
        raise ValueError(
            "EngineSettings.cuda_graphs is True, but transformers' own code runs this model, and is not captured. Set "
            "it to False."
        )
    if settings.backend == "torch" or settings.cuda_graphs:
        return False
    reason = why_not_native(model)
    if reason is not None and settings.backend == "native":
        raise ValueError(f"EngineSettings.backend is 'native', but {reason}. Use 'auto' or 'torch'.")
    return reason is None


def why_not_native(model: ServedModel) -> str | None:
    """Why ticks of a model cannot be computed natively where it is; None if they can."""
    if not isinstance(model, Transformer):
        return "transformers' own code runs this model"
    if model.device.type != "cpu":
        return "the device is not a CPU"
    if importlib.util.find_spec("numba") is None:
        return "the numba package is not installed"
    try:
        numba: Any = importlib.import_module("numba")
    except Exception as error:
        return f"the numba package cannot be imported ({error})"
    if numba.config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set, so that nothing is compiled"
    if sys.byteorder != "little" or sys.maxsize < 2**32:
        return "the processor is not a 64-bit one of little-endian order"
    return None


def worthwhile_threads(model: ServedModel) -> int:
    """As many as there are cores for this process, but one for each so many parameters."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, parameters // PARAMETERS_PER_THREAD))


def choose_attention(model: ServedModel, settings: EngineSettings) -> PagedAttention:
    """Attention of the PyTorch backend: the Triton kernel on CUDA where it is installed, else plain PyTorch."""
    if model.device.type == "cuda" and settings.attention == "auto" and not settings.deterministic:
        return (triton_attention() if has_kernel(model.specification) else None) or TorchAttention()
    return TorchAttention(fixed_shape=settings.deterministic)
