"""Listening at a port, from the first connection to the last answer."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import uvicorn

from runtime.serve.application import Application
from runtime.serve.settings import ServerSettings

_HEADERS = 2**15
"""Bytes of a request's head."""
_BACKLOG = 2048
_UNTAKEN = 60_000
"""Milliseconds for which what was sent may not be taken."""


class Server(uvicorn.Server):
    """One whose process handles signals itself: uvicorn would raise them again, before the engine is closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens soon. Raises `OSError`, naming the address, where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Connections whose clients take nothing more, and are not there any more for all we know.
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNTAKEN)
        found.bind(address)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (--host and --port)", f"{host}:{port}") from error
    return found


def server_of(application: Application, settings: ServerSettings, drain: int) -> Server:
    """A server that, once it is told to stop, gives answers `drain` seconds to end before it cancels them."""
    places = settings.most_requests + settings.most_waiting + settings.most_viewers
    return Server(
        uvicorn.Config(
            application,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            http="h11",
            ws="none",
            h11_max_incomplete_event_size=_HEADERS,
            limit_concurrency=2 * places + 64,
            timeout_graceful_shutdown=drain,
        )
    )


async def listen(application: Application, server: Server, at: socket.socket, told: Callable[[], None]) -> None:
    """Serves until the process is told to stop by SIGINT or SIGTERM; from then on nobody new is let in. A second signal
    cancels what is left at once. `told` is called when the first connection can come."""

    async def stop_when_told() -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            told()
            async for _ in signals:
                if server.should_exit:
                    server.force_exit = True
                application.close()
                server.should_exit = True

    at.listen(_BACKLOG)
    async with anyio.create_task_group() as group:
        group.start_soon(stop_when_told)
        await server.serve(sockets=[at])
        group.cancel_scope.cancel()
