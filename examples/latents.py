"""How the states of tokens move while a model iterates: recorded beside a trace, and drawn.

python -m examples.latents [FIGURE.svg]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import anyio
import numpy as np

from policies import LatentDiff, Policy
from runtime import Engine, Latents
from runtime.console import output_file, status_of
from runtime.link import latents_path
from runtime.model import resolve
from traces import latents_svg, load_decode, read, read_latents

PROMPT = "22 26 31 53 -> 27"


async def main(figure: Path) -> None:
    trace = Path(tempfile.mkdtemp(prefix="braid-")) / "run.trace"
    policy = Policy(depth=LatentDiff(0.01))
    async with Engine.open("countdown", policy=policy, trace=trace, record_latents=Latents(threads=("0",))) as engine:
        await engine.run(PROMPT)
    latents = read_latents(latents_path(trace))
    tokens = latents.of_thread("0")
    for iteration in range(1, max(token.depth for token in tokens)):
        steps = [token.states[iteration] - token.states[iteration - 1] for token in tokens if token.depth > iteration]
        mean = np.linalg.norm(steps, axis=1).mean()
        print(f"iteration {iteration + 1}: {len(steps)} tokens moved by {mean:.2f} on average")
    decode = load_decode(resolve("countdown"))
    figure.write_text(latents_svg(read(trace), latents, "0", count=45, decode=decode), encoding="utf-8")
    print(f"wrote {figure}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", nargs="?", type=output_file, help="an SVG (default: in a new directory)")
    file = parser.parse_args().figure or Path(tempfile.mkdtemp(prefix="braid-")) / "latents.svg"
    sys.exit(status_of(partial(anyio.run, main, file)))
