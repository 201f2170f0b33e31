"""A program that does not end in bounded time: says which, and where everything in the process stands."""

from __future__ import annotations

import faulthandler
import gc
import inspect
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def watched(seconds: float, what: str) -> Iterator[None]:
    """Ends the process with status 1 where the block takes longer; a hang can't be left in any gentler way."""
    over = threading.Event()

    def watch() -> None:
        if not over.wait(seconds):
            print(f"HANGS for {seconds} s: {what}", file=sys.stderr, flush=True)
            for coroutine in _coroutines():
                print("  coroutine " + " < ".join(coroutine), file=sys.stderr)
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            sys.stderr.flush()
            os._exit(1)

    watcher = threading.Thread(target=watch, name="fuzz-watchdog", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _coroutines() -> Iterator[list[str]]:
    """Where each suspended coroutine waits, innermost first; on either loop."""
    outer = [thing for thing in gc.get_objects() if inspect.iscoroutine(thing)]
    awaited = {id(coroutine.cr_await) for coroutine in outer}
    for coroutine in outer:
        if id(coroutine) in awaited:
            continue
        frames: list[str] = []
        waiting: Any = coroutine
        while inspect.iscoroutine(waiting):
            frame = waiting.cr_frame
            frames.append(f"{waiting.__qualname__}:{frame.f_lineno if frame else '-'}")
            waiting = waiting.cr_await
        yield frames[::-1]
