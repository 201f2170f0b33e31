"""From a loaded model and settings to a device core: sizes are worked out here, once."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from policies.depth.base import DepthPolicy
from runtime.backend.attention import PagedAttention
from runtime.backend.interface import CacheShape, TickResult
from runtime.backend.numba_attention import numba_attention
from runtime.backend.torch_attention import TorchAttention
from runtime.backend.torch_backend import TorchBackend
from runtime.device.core import DeviceCore
from runtime.device.ledger import Recorder
from runtime.device.scheduler import ModelLimits, Scheduler
from runtime.errors import CapacityError
from runtime.model.architecture import Model
from runtime.settings import EngineSettings


def most_iterations(model: Model, settings: EngineSettings, policy: DepthPolicy) -> int:
    """The deepest any token may go: as set, else what the model and the default policy ask for."""
    if settings.most_iterations is not None:
        return settings.most_iterations
    return max(model.config.mean_recurrence, policy.deepest(model.config.mean_recurrence))


def cache_shape(model: Model, settings: EngineSettings, most: int) -> CacheShape:
    """Sizes of paged memory. Raises `CapacityError` where not one page fits into `settings.memory`."""
    config = model.config
    slots = most if settings.slots is None else min(settings.slots, most)
    shape = CacheShape(
        pages=0,
        page_size=settings.page_size,
        slots=slots,
        rows=settings.lanes,
        pages_per_row=math.ceil(config.block_size / settings.page_size),
        lanes=settings.lanes,
    )
    numbers = 2 * shape.columns(config) * settings.page_size * config.n_kv_heads * config.head_dim
    bytes_per_page = numbers * model.lm_head.weight.element_size()
    pages = settings.memory // bytes_per_page if settings.pages is None else settings.pages
    if pages < 1:
        raise CapacityError(
            f"one page of {settings.page_size} tokens takes {bytes_per_page} bytes; EngineSettings.memory is "
            f"{settings.memory}. Raise it, or lower page_size or slots."
        )
    return msgspec.structs.replace(shape, pages=pages)


def build_core(
    model: Model,
    settings: EngineSettings,
    policy: DepthPolicy,
    recorder: Recorder | None = None,
    observe: Callable[[Scheduler, TickResult], None] | None = None,
) -> DeviceCore:
    """A core over the PyTorch backend, on the model's device. `policy` is the engine's default depth policy."""
    most = most_iterations(model, settings, policy)
    state_std = 0.0 if settings.initial_state == "zero" else model.config.state_std
    backend = TorchBackend(
        model,
        cache_shape(model, settings, most),
        choose_attention(settings, model.lm_head.weight.device.type),
        state_std=state_std,
        carry_normed=settings.carry == "normed",
        deterministic=settings.deterministic,
    )
    limits = ModelLimits(
        context=model.config.block_size,
        vocab=model.config.vocab_size,
        mean_recurrence=model.config.mean_recurrence,
        most_iterations=most,
        shares_prefixes=settings.reuse_prefixes and state_std == 0.0 and settings.carry == "none",
    )
    return DeviceCore(backend, settings, limits, recorder, observe)


def choose_attention(settings: EngineSettings, device_type: str) -> PagedAttention:
    """Numba in place on CPUs, gathering PyTorch elsewhere, or as the settings say."""
    kernel = numba_attention() if settings.attention != "torch" and device_type == "cpu" else None
    if kernel is None and settings.attention == "numba":
        raise ValueError("EngineSettings.attention is 'numba': that needs the numba package and a CPU device.")
    return kernel or TorchAttention(fixed_shape=settings.deterministic)
