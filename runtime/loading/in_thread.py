"""What is loaded on a worker thread, so that the event loop goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import anyio.to_thread

from runtime.threads.opened import Opened


async def open_in_thread(make: Callable[[], Opened]) -> Opened:
    """Runs `make` on a worker thread. Cancelled meanwhile, what it opens is closed as soon as it is there."""
    loading: Future[Opened] = Future()

    def run() -> None:
        try:
            loading.set_result(make())
        except BaseException as error:
            loading.set_exception(error)

    try:
        await anyio.to_thread.run_sync(run)
    except BaseException:
        loading.add_done_callback(_close_opened)
        raise
    return loading.result()


def _close_opened(loading: Future[Opened]) -> None:
    if loading.exception() is None and (close := loading.result().close) is not None:
        close()
