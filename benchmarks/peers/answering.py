"""A side of the comparison as a process of its own: it loads one model once, then answers prompts line by line.

Lines are JSON objects. First comes the job, answered by {"ready": ...} when the model is loaded; then requests
{"prompts": ..., "check": ...}, each answered by {"seconds": ..., "tokens": ..., "depths": ...}. What cannot be done is
answered by {"missing": why}, where something has to be installed, or {"failed": why}, and ends the process.

Only the standard library is needed, because this runs in the interpreters of peers.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True, kw_only=True)
class Exits:
    """When a depth-recurrent model's tokens exit: below a relative change of the latent state, or at a bound."""

    threshold: float
    most: int
    """Iterations."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a side loads, and the largest work that it will be given."""

    checkpoint: str
    """An absolute path."""
    dtype: str
    """Of weights, activations, keys and values: float32 or bfloat16."""
    threads: int
    """Processors that the side may use, and threads that it computes with."""
    batch: int
    """Most prompts of one request."""
    prompt: int
    """Tokens of each prompt."""
    tokens: int
    """Tokens to make for each prompt, greedily, whatever they are."""
    kv_cache_bytes: int
    """Bytes for keys and values, where a side keeps a pool of them."""
    scratch: str
    """A directory for caches, removed after the run."""
    exits: Exits | None = None
    """None for models that are not depth-recurrent."""
    clone: str | None = None
    """Directory of the peer's source code, where the peer is not installed as a package."""


class Answered(NamedTuple):
    """Tokens made for each prompt, and the iterations that each took where the side can tell."""

    tokens: list[list[int]]
    depths: list[list[int]]


Answer = Callable[[list[list[int]]], Answered]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to answer."""

    answer: Answer
    """What is timed."""
    check: Answer | None = None
    """What gives the tokens to compare with, where it is not the same; never timed."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries that compute, by name."""


Load = Callable[[Job], AbstractContextManager[Loaded]]


def serve(load: Load) -> None:
    """Answers on standard output what comes on standard input, until that is closed.

    The process is kept to as many processors as the job has threads. Whatever else is printed goes to standard error.
    `load` raises `ImportError` for what is not installed. Should whoever asks die, this process and what it has
    started end at once, in the middle of an answer too. Without a job on standard input the exit status is 2.
    """
    asker = os.getppid()
    try:
        job = read_job(sys.stdin.readline())
    except (ValueError, TypeError, KeyError):
        print("error: no job on standard input; python -m benchmarks.peers starts its sides itself.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    threading.Thread(target=_end_with, args=(asker,), daemon=True).start()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def reply(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    os.sched_setaffinity(0, processors(job.threads))
    try:
        with load(job) as loaded:
            reply({"ready": {"versions": loaded.versions, "checks": loaded.check is not None}})
            for request in map(json.loads, sys.stdin):
                reply(_answer(loaded, request))
    except ImportError as error:
        reply({"missing": f"{type(error).__name__}: {error}"})
    except Exception as error:
        traceback.print_exc()
        # What was printed is read with the reply.
        sys.stdout.flush()
        reply({"failed": f"{type(error).__name__}: {error}"})


def _end_with(asker: int) -> None:
    """Waits until standard input is closed at its other end, then for the asker to be gone, which closes it too."""
    hung_up = select.poll()
    hung_up.register(sys.stdin.fileno(), 0)
    hung_up.poll()
    while os.getppid() == asker:
        time.sleep(0.1)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def read_job(line: str) -> Job:
    given = json.loads(line)
    if given["exits"] is not None:
        given["exits"] = Exits(**given["exits"])
    return Job(**given)


def processors(count: int) -> list[int]:
    """The first `count` processors that this process may use."""
    return sorted(os.sched_getaffinity(0))[:count]


def _answer(loaded: Loaded, request: dict[str, Any]) -> dict[str, Any]:
    answer = loaded.answer
    if request["check"] and loaded.check is not None:
        answer = loaded.check
    gc.collect()
    started = time.perf_counter()
    answered = answer(request["prompts"])
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": answered.tokens, "depths": answered.depths}
