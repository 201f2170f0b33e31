"""Recording a run, playing it back without a model, and verifying it with one.

python -m examples.record_replay [FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import anyio

from runtime import Engine
from runtime.console import Printer, output_file, status_of
from traces import read, show

PROMPT = "22 26 31 53 -> 27"


async def main(path: Path) -> None:
    async with Engine.open("countdown", trace=path) as engine:
        recorded = await engine.run(PROMPT)
    trace = read(path)
    show(trace, Printer())
    async with Engine.playback(trace) as engine:
        replayed = await engine.run(PROMPT)
    print(f"recorded: {recorded.text}\nreplayed: {replayed.text}\nequal: {recorded.tokens == replayed.tokens}")
    print(f"now try: python -m traces replay {path} --verify")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=output_file, help="of the trace (default: in a new directory)")
    file = parser.parse_args().file or Path(tempfile.mkdtemp(prefix="braid-")) / "run.trace"
    sys.exit(status_of(partial(anyio.run, main, file)))
