"""Streams as other servers write them, from a server that says what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime import Engine, RemoteError, RemoteSettings

pytestmark = pytest.mark.anyio

SETTINGS = RemoteSettings(first_pause=0.001, longest_pause=0.01, silence_seconds=0.5, attempts=2, token_ids=False)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nConnection: close\r\n\r\n"
MODELS = b'{"object": "list", "data": [{"id": "m"}]}'
PROBE = b'{"choices": [{"index": 0, "text": "a"}]}'
DONE = b"data: [DONE]\n\n"
STOP = b'"stop"'


class Teller:
    """Answers each stream with the next of its texts; one that `keeps_alive` goes on with comments."""

    def __init__(self, *streams: bytes, keeps_alive: bool = False) -> None:
        self.streams = list(streams)
        self.asked = 0
        self._keeps_alive = keeps_alive

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"), 0)
        body = await reader.readexactly(length)
        if b'"stream":true' not in body:
            writer.write(HEAD % b"application/json" + (MODELS if head.startswith(b"GET") else PROBE))
        else:
            self.asked += 1
            writer.write(HEAD % b"text/event-stream" + self.streams.pop(0))
            while self._keeps_alive and not writer.is_closing():
                writer.write(b": ping\n\n")
                await asyncio.sleep(0.02)
        writer.close()


@asynccontextmanager
async def asking(teller: Teller) -> AsyncIterator[Engine]:
    server = await asyncio.start_server(teller.answer, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        async with Engine.open(f"http://127.0.0.1:{port}/v1", remote=SETTINGS) as engine:
            yield engine
    finally:
        server.close()


def said(text: bytes, finish: bytes = b"null") -> bytes:
    return b'data: {"choices": [{"index": 0, "text": "%b", "finish_reason": %b}]}\n\n' % (text, finish)


WHOLE = said(b"ab") + said(b"c", STOP)


@pytest.mark.parametrize(
    "stream",
    [
        WHOLE + DONE,
        said(b"ab") + said(b"c") + DONE,
        (WHOLE + DONE).replace(b"\n", b"\r\n"),
        b": hello\n\nevent: text\nid: 1\n" + WHOLE + b'data: {"choices": [], "usage": {}}\n\n',
    ],
    ids=["with a reason", "without one", "lines of Windows", "comments, names and usage"],
)
async def test_a_stream_is_over_where_its_server_says_so(stream: bytes) -> None:
    teller = Teller(stream)
    async with asking(teller) as engine, engine.thread("x") as root:
        answer = await root.generate(50)
    assert (answer.text, answer.reason, teller.asked) == ("abc", "stop", 1)


@pytest.mark.parametrize(
    "error",
    [
        b'{"error": {"message": "too long", "type": "invalid_request_error"}}',
        b'{"error": {"message": "too long", "type": "BadRequestError", "code": 400}}',
        b'{"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}',
    ],
)
async def test_an_error_that_stays_is_told_at_once(error: bytes) -> None:
    teller = Teller(said(b"ab") + b"data: " + error + b"\n\n")
    async with asking(teller) as engine, engine.thread("x") as root:
        with pytest.raises(RemoteError, match="too long"):
            await root.generate(50)
    assert teller.asked == 1


async def test_what_may_pass_is_asked_again() -> None:
    busy = b'data: {"object": "error", "message": "busy", "code": 503}\n\n'
    teller = Teller(said(b"ab") + busy, said(b"c", STOP))
    async with asking(teller) as engine, engine.thread("x") as root:
        assert (await root.generate(50)).text == "abc"
    assert teller.asked == 2


async def test_comments_break_no_silence() -> None:
    teller = Teller(b"", b"", keeps_alive=True)
    async with asking(teller) as engine, engine.thread("x") as root:
        with pytest.raises(RemoteError, match=r"said nothing for 0.5 s"):
            await root.generate(50)
