"""Connections: bodies that are bounded, answers that are sent piece by piece, and clients that go away meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import msgspec
from starlette.requests import Request
from starlette.types import Message, Receive, Send

from runtime.serve.refusals import Gone, Refusal
from runtime.serve.settings import ServerSettings

JSON = b"application/json"
_DISCARDED, _DISCARDED_SECONDS = 2**24, 2.0
"""Bytes of a body that is too large, and seconds."""

EVENTS = b"text/event-stream; charset=utf-8"


async def read_body(request: Request, settings: ServerSettings) -> bytes:
    """The whole body. Raises `Refusal` for one that is too large, comes too slowly, or is not declared as JSON."""
    # A page of another site cannot send this kind without asking first, so that none uses a browser's way to a server.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "The body is to be JSON, with the header content-type: application/json.")
    declared = request.headers.get("content-length", "0")
    too_large = Refusal(413, f"The body is larger than {settings.largest_body} bytes, which this server allows.")
    is_too_large = declared.isdecimal() and int(declared) > settings.largest_body
    body = bytearray()
    with anyio.move_on_after(settings.body_seconds) as waited:
        async for part in _parts(request):
            body += part
            if is_too_large or len(body) > settings.largest_body:
                await _discard(request)
                raise too_large
    if waited.cancelled_caught:
        raise Refusal(408, f"The body did not come within {settings.body_seconds:g} seconds.")
    return bytes(body)


async def _parts(request: Request) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def _discard(request: Request) -> None:
    """Lets much of a body come that nobody reads: many clients look for an answer only when they have sent it."""
    discarded = 0
    with anyio.move_on_after(_DISCARDED_SECONDS):
        async for part in _parts(request):
            discarded += len(part)
            if discarded > _DISCARDED:
                return


async def while_connected(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Does the work of an answer, or as much of it as the client waits for. Raises what it raises, and `Gone`."""
    error: BaseException | None = None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        try:
            await work()
        except Exception as raised:
            error = raised
        group.cancel_scope.cancel()
    if is_gone:
        raise Gone
    if error is not None:
        raise error


class Reply:
    """One answer on its way. A client that does not take what is sent for too long is taken for gone."""

    def __init__(self, send: Send, settings: ServerSettings) -> None:
        self._send = send
        self._seconds = settings.send_seconds
        self.has_begun = False
        self.status = 0

    async def begin(self, status: int, kind: bytes, headers: dict[str, str] | None = None) -> None:
        self.has_begun, self.status = True, status
        given = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        await self._sent(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", kind),
                    (b"cache-control", b"no-store"),
                    (b"x-content-type-options", b"nosniff"),
                    *given,
                ],
            }
        )

    async def body(self, data: bytes, *, more: bool = False) -> None:
        await self._sent({"type": "http.response.body", "body": data, "more_body": more})

    async def json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        """A whole answer."""
        data = msgspec.json.encode(content)
        await self.begin(status, JSON, {"content-length": str(len(data)), **(headers or {})})
        await self.body(data)

    async def event(self, content: Any) -> None:
        """One server-sent event; the first begins the answer. JSON has no line breaks, so that it is one line."""
        if not self.has_begun:
            await self.begin(200, EVENTS)
        await self.body(b"data: " + msgspec.json.encode(content) + b"\n\n", more=True)

    async def refuse(self, refusal: Refusal) -> None:
        """As an answer of its own, or in a stream that has begun."""
        if self.has_begun:
            await self.event(refusal.body)
            await self.body(b"", more=False)
            return
        headers = {"retry-after": str(refusal.retry_after)} if refusal.retry_after else {}
        if refusal.status == 401:
            headers["www-authenticate"] = 'Basic realm="braid", charset="UTF-8"'
        if refusal.status in (408, 413, 415):
            # What is left of the body is not read.
            headers["connection"] = "close"
        await self.json(refusal.status, refusal.body, headers)

    async def _sent(self, message: Message) -> None:
        try:
            with anyio.fail_after(self._seconds):
                await self._send(message)
        except (TimeoutError, OSError) as error:
            raise Gone from error
