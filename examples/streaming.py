"""Streaming: tokens as they are made, a deadline around them, and what is left when a stream is left early.

python -m examples.streaming
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import anyio

from runtime import Engine
from runtime.console import status_of


async def main() -> None:
    async with Engine.open("countdown") as engine, engine.thread("22 26 31 53 -> 27") as thread:
        with anyio.move_on_after(30) as deadline:
            async for chunk in thread.stream(max_tokens=40):
                print(chunk.text, end="", flush=True)
        print("\ndeadline passed" if deadline.cancelled_caught else f"\n{len(thread.tokens)} tokens in the context")

        # A stream that is left early keeps what it delivered and forgets the rest.
        before = len(thread.tokens)
        async for chunk in thread.stream(max_tokens=40):
            if "</spawn>" in chunk.text:
                break
        print(f"left after {len(thread.tokens) - before} more: ...{thread.text[-40:]}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.exit(status_of(partial(anyio.run, main)))
