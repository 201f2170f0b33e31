"""Threads on a device core, without an event loop: opened, asked, stepped to the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from policies import DepthPolicy
from runtime import Sampling
from runtime.device.loop import DeviceLoop
from runtime.link import CloseThread, Extend, Failed, Finished, Generate, OpenThread, ThreadPath


def prompts(vocab: int, count: int, length: int) -> list[tuple[int, ...]]:
    """Random prompts, `count` of `length` tokens below `vocab`."""
    drawn = np.random.default_rng(0).integers(0, vocab, (count, length))
    return [tuple(row) for row in drawn.tolist()]


def ask(core: DeviceLoop, path: ThreadPath, max_tokens: int, sampling: Sampling) -> None:
    core.handle(Generate(thread=path, max_tokens=max_tokens, sampling=sampling))


def begin(core: DeviceLoop, path: ThreadPath, prompt: tuple[int, ...], depth: DepthPolicy) -> None:
    core.handle(OpenThread(thread=path, seed=0, depth=depth))
    core.handle(Extend(path, prompt))


def touch_pages(core: DeviceLoop, pages: int) -> None:
    """Has the next tick write every page of the pool: the system gives memory to a process when it is first written."""
    core.scheduler.kv_cache.copies.extend((page, page) for page in range(pages))


def step_to_end(core: DeviceLoop) -> dict[ThreadPath, Finished]:
    """Ticks until there is no work; what finished, by thread. Raises what a thread failed of."""
    finished: dict[ThreadPath, Finished] = {}
    while core.has_work:
        core.step()
        for report in core.journal.take_reports():
            if isinstance(report, Failed):
                raise report.error
            if isinstance(report, Finished):
                finished[report.thread] = report
    return finished


def close(core: DeviceLoop, paths: Iterable[ThreadPath]) -> None:
    for path in paths:
        core.handle(CloseThread(path))
    step_to_end(core)


def answer_all(
    core: DeviceLoop,
    given: Sequence[tuple[int, ...]],
    depth: DepthPolicy,
    max_tokens: int,
    sampling: Sampling,
) -> tuple[float, dict[ThreadPath, Finished]]:
    """Seconds to answer all prompts side by side, and the answers. The threads (0,), (1,), ... are closed again."""
    paths = [(number,) for number in range(len(given))]
    started = time.perf_counter()
    for path, prompt in zip(paths, given, strict=True):
        begin(core, path, prompt, depth)
        ask(core, path, max_tokens, sampling)
    finished = step_to_end(core)
    seconds = time.perf_counter() - started
    close(core, paths)
    return seconds, finished


def fresh_process() -> Executor:
    """One new process, whose memory nothing has used yet."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))
