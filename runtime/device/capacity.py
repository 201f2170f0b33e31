"""What an engine may ask of its machine: memory, a device, and the errors where they cannot be had."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

from runtime.backend.interface import CacheShape
from runtime.device.settings import EngineSettings
from runtime.errors import CapacityError, described
from runtime.model.served import ServedModel

_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""What a container may use, on Linux."""
_NUMBER = 4
"""Bytes of a float32 or an int32."""


def choose_device(settings: EngineSettings) -> torch.device:
    """The device that the settings ask for. Raises `ValueError` where torch has none of that name here."""
    name = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # A name alone says nothing: "meta" holds no numbers, and CUDA may lack a driver.
        torch.zeros(1, device=device).item()
    except Exception as error:
        first = described(error).splitlines()[0]
        raise ValueError(f"EngineSettings.device is {name!r}, which cannot be used ({first}). Use 'cpu'.") from error
    return device


def check_memory(model: ServedModel, settings: EngineSettings, cache: CacheShape, page_bytes: int) -> None:
    """Raises `CapacityError`, naming the settings, where the machine has not the memory for pages and lanes."""
    own = model.specification
    per_lane = _NUMBER * (cache.pages_per_row + own.vocab_size + 8 * own.width + 2 * own.mlp_width)
    pages, lanes = cache.pages * page_bytes, settings.max_in_flight * per_lane
    there = memory_of(model.device)
    if there is not None and pages + lanes > there:
        asked = (
            f"kv_cache_bytes of {settings.kv_cache_bytes}"
            if settings.num_pages is None
            else f"{settings.num_pages} pages"
        )
        raise CapacityError(
            f"EngineSettings asks for {asked} with page_size {settings.page_size} and {cache.slots} slots, which is "
            f"{pages} bytes, and for {settings.max_in_flight} lanes, about {lanes} bytes; the device has {there}. "
            f"Lower {'kv_cache_bytes' if settings.num_pages is None else 'num_pages'}, max_in_flight, page_size or "
            "iteration_slots."
        )


def memory_of(device: torch.device) -> int | None:
    """Bytes that there are in all, whoever uses them now; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    known = []
    with suppress(OSError, ValueError, AttributeError):
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):
        known.append(int(_GROUP_LIMIT.read_text()))
    return min(known, default=None)
