"""Recording a run, playing it back without a model, and verifying it with one.

python -m examples.record_replay [FILE]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import anyio
from rich.console import Console

from runtime import Engine
from traces import read
from traces.show import show

PROMPT = "22 26 31 53 -> 27"


async def main(path: Path) -> None:
    async with Engine.open("countdown", trace=path) as engine:
        recorded = await engine.run(PROMPT)
    trace = read(path)
    show(trace, Console())
    async with Engine.playback(trace) as engine:
        replayed = await engine.run(PROMPT)
    print(f"recorded: {recorded.text}\nreplayed: {replayed.text}\nequal: {recorded.tokens == replayed.tokens}")
    print(f"now try: python -m traces replay {path} --verify")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(main, Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "run.trace")
