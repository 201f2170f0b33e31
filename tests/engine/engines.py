"""Small engines on a checkpoint, and whether they serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime import Engine

SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 64, "max_in_flight": 16, "prefill_chunk": 16}


def opened(checkpoint: Path, **settings: Any) -> Engine:
    return Engine.open(checkpoint, **{**SIZES, **settings})


async def works(engine: Engine) -> bool:
    async with engine.thread([1, 2, 3]) as thread:
        said = await thread.generate(2, stop=[-1])
    return len(said.tokens) == 2
