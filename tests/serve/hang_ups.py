"""Many streams at once against a server in a process of its own, of which a third hang up and some read slowly.

python -m tests.serve.hang_ups --streams 500

What is answered has to be what is answered alone, and at the end nothing may be left: no request, thread or page.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx2
import openai
from anyio.streams.text import TextReceiveStream

from runtime.console import status_of, whole

PROMPTS = ("22 26 31 53 -> 27", "5 42 67 71 -> 62", "3 7 25 50 -> 78", "10 20 30 40 -> 25")
TOKENS = 48
IDLE = (
    "braid_threads_open",
    "braid_pages_used",
    "braid_requests_running",
    "braid_requests_waiting",
    "braid_tokens_in_flight",
)


@dataclass(frozen=True)
class Load:
    streams: int
    seed: int = 0
    rounds: int = 1


@dataclass
class Found:
    """What came of it."""

    answered: int = 0
    hung_up: int = 0
    seconds: float = 0.0
    megabytes: list[float] = field(default_factory=list)
    """Of the server's memory, before and after each round."""
    idle_after: float = 0.0
    """Seconds from the end of the last client until nothing was left."""
    faults: list[str] = field(default_factory=list)


async def measured(load: Load) -> Found:
    """Runs the load against a server of its own."""
    found = Found()
    dice = random.Random(load.seed)
    async with _server() as (process, url), httpx2.AsyncClient(timeout=120) as plain:
        limits = httpx2.Limits(max_connections=load.streams, max_keepalive_connections=0)
        http = openai.DefaultAsyncHttpxClient(limits=limits, timeout=120)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, http_client=http) as client:
            alone = [await _text(client, prompt) for prompt in PROMPTS]
            found.megabytes.append(_resident(process.pid))
            started = time.perf_counter()
            for _ in range(load.rounds):
                async with anyio.create_task_group() as group:
                    for number in range(load.streams):
                        hangs_up = dice.randrange(1, TOKENS) if number % 3 == 0 else None
                        is_slow = dice.random() < 0.05
                        group.start_soon(_one, client, number % len(PROMPTS), alone, hangs_up, is_slow, found)
                found.idle_after = await _until_idle(plain, url, found)
                found.megabytes.append(_resident(process.pid))
            found.seconds = time.perf_counter() - started
    return found


def _resident(pid: int) -> float:
    """Megabytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


async def _one(
    client: openai.AsyncOpenAI, prompt: int, alone: list[str], hangs_up: int | None, is_slow: bool, found: Found
) -> None:
    text = ""
    try:
        stream = await client.completions.create(
            model="countdown", prompt=PROMPTS[prompt], max_tokens=TOKENS, temperature=0, stream=True
        )
        async with stream:
            chunks = 0
            async for chunk in stream:
                text += chunk.choices[0].text
                chunks += 1
                if hangs_up is not None and (chunks >= hangs_up or len(text) >= 2 * hangs_up):
                    found.hung_up += 1
                    return
                if is_slow:
                    await anyio.sleep(0.05)
    except (openai.OpenAIError, httpx2.HTTPError) as error:
        found.faults.append(repr(error))
        return
    if hangs_up is not None:
        # It was answered before it came to that.
        found.hung_up += 1
    else:
        found.answered += 1
    if text != alone[prompt]:
        found.faults.append(f"{PROMPTS[prompt]} was answered by {text!r}, and alone by {alone[prompt]!r}")


async def _text(client: openai.AsyncOpenAI, prompt: str) -> str:
    answer = await client.completions.create(model="countdown", prompt=prompt, max_tokens=TOKENS, temperature=0)
    return answer.choices[0].text


async def _until_idle(plain: httpx2.AsyncClient, url: str, found: Found) -> float:
    """Seconds until nothing is left."""
    began = time.perf_counter()
    while True:
        text = (await plain.get(f"{url}/metrics")).text
        values = dict(re.findall(r"^(braid\S+) (\S+)$", text, re.MULTILINE))
        left = {name: values[name] for name in IDLE if float(values[name])}
        took = time.perf_counter() - began
        if not left:
            return took
        if took > 10:
            found.faults.append(f"left over: {left}")
            return took
        await anyio.sleep(0.01)


@asynccontextmanager
async def _server() -> AsyncIterator[tuple[anyio.abc.Process, str]]:
    command = [sys.executable, "-m", "runtime.serve", "countdown", "--port", "0", "--drain", "5"]
    async with await anyio.open_process(command, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        told = ""
        async for part in TextReceiveStream(process.stdout):
            told += part
            if match := re.search(r"served at (http://\S+)\n", told):
                break
        else:
            raise RuntimeError("the server ended before it listened")
        yield process, match[1]
        process.terminate()
        if await process.wait():
            raise RuntimeError(f"the server ended with status {process.returncode}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.serve.hang_ups", description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=whole(1), default=500)
    parser.add_argument("--rounds", type=whole(1), default=1)
    parser.add_argument("--seed", type=whole(0), default=0)
    options = parser.parse_args()
    found = anyio.run(measured, Load(streams=options.streams, seed=options.seed, rounds=options.rounds))
    memory = " -> ".join(f"{each:.0f}" for each in found.megabytes)
    print("| streams | answered | hung up | at fault | memory of the server, MiB | idle after | took | command |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {options.streams * options.rounds} | {found.answered} | {found.hung_up} | {len(found.faults)} | {memory} | "
        f"{found.idle_after * 1000:.0f} ms | {found.seconds:.1f} s | `--streams {options.streams} --rounds "
        f"{options.rounds} --seed {options.seed}` |"
    )
    print("\n".join(found.faults[:20]))
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(status_of(main))
