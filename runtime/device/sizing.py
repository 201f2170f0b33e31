"""From what is declared of a model, and settings, to the sizes of an engine: without weights, or a machine."""

from __future__ import annotations

import math

import msgspec

from policies import DepthPolicy
from policies.conversion import Count, converted
from runtime.backend.interface import CacheShape
from runtime.device.model_limits import ModelLimits
from runtime.device.settings import DEEPEST, EngineSettings
from runtime.errors import CapacityError, PolicyError, described
from runtime.model.served import Served

MOST_PAGES = 2**31 - 1
"""Pages are numbered in 32 bits."""

ROOM_FOR_HOLES = 4
"""How many times the pages of a model's longest context a row has room for where there may be holes in it."""


def most_iterations(own: Served, settings: EngineSettings, policy: DepthPolicy) -> int:
    """The deepest any token may go: as set, else what the model and the default policy ask for.

    Raises `PolicyError` where the policy cannot say, or goes deeper than any token can.
    """
    if settings.most_iterations is not None:
        return settings.most_iterations
    mean = own.mean_recurrence
    name = type(policy).__name__
    try:
        deepest: int = converted(policy.deepest(mean), Count, "deepest")
    except Exception as error:
        raise PolicyError(f"{name} cannot say how deep it goes: {described(error)}.") from error
    if deepest > DEEPEST:
        raise PolicyError(f"{name} goes {deepest} iterations deep; a token gets at most {DEEPEST}.")
    return max(mean, deepest)


class SizedCache(msgspec.Struct, frozen=True):
    """A paged cache, and the bytes that one of its pages takes."""

    shape: CacheShape
    page_bytes: int


def sized_cache(own: Served, settings: EngineSettings, most: int, *, has_room_for_holes: bool) -> SizedCache:
    """Sizes of the paged cache. Raises `CapacityError` where not one page fits into `settings.kv_cache_bytes`.

    A row has as many pages as a context takes, and more where it has room for holes, and siblings side by side.
    """
    pages_per_row = math.ceil(settings.context_of(own.max_context) / settings.page_size)
    shape = CacheShape(
        pages=0,
        page_size=settings.page_size,
        slots=most if settings.iteration_slots is None else min(settings.iteration_slots, most),
        rows=settings.max_in_flight,
        pages_per_row=pages_per_row * (ROOM_FOR_HOLES if has_room_for_holes else 1),
        lanes=settings.max_in_flight,
    )
    numbers = 2 * shape.columns(own) * settings.page_size * own.kv_heads * own.head_dim
    page_bytes = numbers * (4 if settings.dtype == "float32" else 2)
    pages = settings.kv_cache_bytes // page_bytes if settings.num_pages is None else settings.num_pages
    if pages < 1:
        raise CapacityError(
            f"One page of {settings.page_size} tokens takes {page_bytes} bytes; EngineSettings.kv_cache_bytes is "
            f"{settings.kv_cache_bytes}. Raise it, or lower page_size or slots."
        )
    return SizedCache(msgspec.structs.replace(shape, pages=min(pages, MOST_PAGES)), page_bytes)


def limits_of(own: Served, settings: EngineSettings, most: int) -> ModelLimits:
    """What the device thread has to know of a model whose tokens get at most `most` iterations."""
    return ModelLimits(
        max_context=settings.context_of(own.max_context),
        vocab=own.vocab_size,
        mean_recurrence=own.mean_recurrence,
        most_iterations=most,
        short_context=own.short_context,
        window=_longest_window(own),
        shares_prefixes=settings.reuse_prefixes and state_std_of(own, settings) == 0.0,
    )


def state_std_of(own: Served, settings: EngineSettings) -> float:
    """Standard deviation of the latent state that a token starts from."""
    return 0.0 if settings.initial_state == "zero" else own.state_std


def _longest_window(own: Served) -> int | None:
    """How many positions a token sees at most, in any layer; None where a layer sees all before it."""
    windows = [own.attention(layer).window for layer in range(len(own.layers))]
    return None if None in windows else max(window for window in windows if window is not None)
