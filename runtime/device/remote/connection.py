"""The sockets: one client of a server's completions, for whose loop it is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx2
import msgspec

from runtime.device.remote.chunks import BUSY, BrokenStream, Heard, Reader
from runtime.device.remote.settings import RemoteSettings
from runtime.errors import RemoteError

LONGEST_LINE = 2**22
"""Bytes of a chunk: one of a long echo has some hundred thousand."""
LONGEST_ERROR = 4096
"""Bytes of a refusal that are read."""

_OTHER_LINES = (b"", b"event", b"id", b"retry")
"""How lines of an event stream begin that say nothing of a text; b"" of comments and of the ends of chunks."""


class Unavailable(BrokenStream):
    """A server that cannot be reached, or does not answer now."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after
        """Seconds after which it wants to be asked again."""


class Refused(RemoteError):
    """What a server will not do, however often it is asked."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """Belongs to one event loop of asyncio."""

    def __init__(self, address: str, settings: RemoteSettings) -> None:
        self._silence = settings.silence_seconds
        self._client = httpx2.AsyncClient(
            base_url=address + "/",
            headers=settings.headers,
            timeout=timeout_of(settings),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=settings.max_requests),
        )

    async def completion(self, body: dict[str, Any], reader: Reader) -> AsyncGenerator[Heard, None]:
        """What a streamed completion says, until it is over; left early, its connection is closed.

        Raises `BrokenStream` where it ends before it is over, `Unavailable` where it does not begin, `Refused` where
        the server does not take the request, and what the reader raises.
        """
        content = msgspec.json.encode({**body, "stream": True})
        is_over = False
        try:
            request = self._client.stream(
                "POST", "completions", content=content, headers={"Content-Type": "application/json"}
            )
            async with request as response:
                if response.status_code != 200:
                    raise await _refusal(response)
                async with aclosing(_data_of(response)) as lines:
                    while (data := await self._next(lines)) is not None:
                        if data == b"[DONE]" and is_over:
                            # Read on to the end, so that the connection may serve again.
                            continue
                        # Servers that give no reason end like this.
                        heard = Heard(finish="stop") if data == b"[DONE]" else reader.read(data)
                        is_over |= heard.finish is not None
                        yield heard
        except httpx2.TransportError as error:
            if is_over:
                return
            kind = Unavailable if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) else BrokenStream
            raise kind(f"{type(error).__name__}: {error}") from error
        except (httpx2.DecodingError, httpx2.StreamError) as error:
            raise BrokenStream(f"{type(error).__name__}: {error}") from error
        if not is_over:
            raise BrokenStream("the stream ended before its text did")

    async def _next(self, lines: AsyncGenerator[bytes, None]) -> bytes | None:
        """The next line of data, None at the end. Comments that keep a connection open break no silence."""
        try:
            async with asyncio.timeout(self._silence):
                return await anext(lines, None)
        except TimeoutError:
            raise BrokenStream(f"the server said nothing for {self._silence:g} s") from None

    async def aclose(self) -> None:
        await self._client.aclose()


def timeout_of(settings: RemoteSettings) -> httpx2.Timeout:
    return httpx2.Timeout(settings.silence_seconds, connect=settings.connect_seconds, pool=None)


async def _data_of(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """What stands in the lines of data of an event stream."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            name, _, data = line.strip().partition(b":")
            if name == b"data":
                yield data.strip()
            elif name not in _OTHER_LINES:
                raise BrokenStream(f"a line of the stream is garbled: {line[:40]!r}")
        if len(rest) > LONGEST_LINE:
            raise BrokenStream(f"a chunk is longer than {LONGEST_LINE} bytes")


async def _refusal(response: httpx2.Response) -> Exception:
    content = b""
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > LONGEST_ERROR:
            break
    return refusal_of(response.status_code, response.headers.get("retry-after"), content)


def refusal_of(status: int, retry_after: str | None, content: bytes) -> Exception:
    """What an answer that is none means."""
    said = f"the server answers {status}: {_message_in(content)}"
    if status >= 500 or status in BUSY:
        return Unavailable(said, _seconds(retry_after))
    return Refused(said[0].upper() + said[1:], status)


def _message_in(content: bytes) -> str:
    """What an error says; servers write that in several ways."""
    text = content[:LONGEST_ERROR].decode(errors="replace").strip()
    try:
        found = msgspec.json.decode(content)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return text[:500] or "nothing else"
    for key in ("error", "message", "detail"):
        while isinstance(found, dict) and key in found:
            found = found[key]
    return (found if isinstance(found, str) else text)[:500] or "nothing else"


def _seconds(header: str | None) -> float | None:
    """From now, of a Retry-After."""
    if header is None:
        return None
    if header.strip().isdecimal() and header.isascii():
        return float(header.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None
