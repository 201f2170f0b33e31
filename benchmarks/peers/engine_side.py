"""The engine's side: opened as a user would, one thread a prompt, all asked at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

import anyio
import anyio.from_thread
import torch

from benchmarks.peers.answering import Answered, Job, Loaded, serve
from policies import LatentDiff, Policy
from runtime import Engine


@contextmanager
def load(job: Job) -> Iterator[Loaded]:
    torch.set_num_threads(job.threads)
    engine = Engine.open(
        job.checkpoint,
        policy=None
        if job.exits is None
        else Policy(depth=LatentDiff(job.exits.threshold, max_iterations=job.exits.most)),
        dtype="bfloat16" if job.dtype == "bfloat16" else "float32",
        device="cpu",
        cpu_threads=job.threads,
        kv_cache_bytes=job.kv_cache_bytes,
        reuse_prefixes=False,
    )
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(engine):
        yield Loaded(
            answer=lambda prompts: portal.call(_answer_all, engine, prompts, job.tokens),
            versions={"braid-runtime": version("braid-runtime"), "torch": str(torch.__version__)},
        )


async def _answer_all(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int) -> Answered:
    answered = Answered([[] for _ in prompts], [[] for _ in prompts])

    async def answer(number: int, prompt: Sequence[int]) -> None:
        async with engine.thread(prompt) as thread:
            generation = await thread.generate(tokens)
            answered.tokens[number][:] = generation.tokens
            answered.depths[number][:] = generation.depths

    async with anyio.create_task_group() as group:
        for number, prompt in enumerate(prompts):
            group.start_soon(answer, number, prompt)
    return answered


if __name__ == "__main__":
    serve(load)
