"""The server's paths, and what all requests have in common: who asks, whether there is a place, and how they end."""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from hashlib import blake2b
from importlib import resources

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from runtime.console.logs import logger
from runtime.engine import Engine
from runtime.errors import BraidError
from runtime.link.events import Event
from runtime.serve.admission import Admission
from runtime.serve.answering import answer_job, listening, told
from runtime.serve.connections import Reply, read_body, while_connected
from runtime.serve.live import LiveTrees
from runtime.serve.metrics import CONTENT_TYPE, Clock, Metrics
from runtime.serve.openai_format import Form, Json
from runtime.serve.refusals import Gone, Refusal, first_of, refusal_of
from runtime.serve.requests import Job, chat_job, completion_job
from runtime.serve.settings import ServerSettings

_log = logger("runtime.serve")

GONE = "gone"
"""In metrics, instead of a status: the client went away."""

_PAGE = {
    "/": ("live.html", b"text/html; charset=utf-8"),
    "/live.js": ("live.js", b"text/javascript; charset=utf-8"),
    "/live.css": ("live.css", b"text/css; charset=utf-8"),
}
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}

_JOBS: dict[str, Callable[[bytes, ServerSettings], Job]] = {
    "/v1/completions": completion_job,
    "/v1/chat/completions": chat_job,
}


class Observer:
    """Takes events of an engine's trees to who asked for the tree, and to all who watch. Give it to `Engine.open`."""

    def __init__(self, trees: LiveTrees) -> None:
        self._trees = trees
        self.engine: Engine | None = None
        """Whose events they are, once it is open."""

    def __call__(self, event: Event) -> None:
        if self.engine is None or (content := told(event, self.engine)) is None:
            return
        self._trees.add(content)
        if (events := listening.get()) is not None:
            events.add(content)


class Application:
    """An ASGI application over an open engine, whose observer is an `Observer` of the same trees."""

    def __init__(self, engine: Engine, settings: ServerSettings, trees: LiveTrees) -> None:
        self._engine = engine
        self._settings = settings
        self._trees = trees
        self.admission = Admission(settings)
        self._metrics = Metrics(engine, self.admission)
        self._started = int(time.time())
        self._files = {
            path: (resources.files("runtime.serve") / "page" / name).read_bytes() for path, (name, _) in _PAGE.items()
        }
        self._paths: dict[str, tuple[str, Callable[[Request, Reply], Awaitable[None]]]] = {
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._write_metrics),
            "/v1/models": ("GET", self._models),
            "/events": ("GET", self._watch),
            **dict.fromkeys(_PAGE, ("GET", self._page)),
        }

    def close(self) -> None:
        """Lets nobody new in, and those who watch go; what is being answered goes on."""
        self.admission.is_closing = True
        self._trees.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        request, answer, clock = Request(scope, receive), Reply(send, self._settings), Clock(self._metrics)
        path = request.url.path
        status = GONE
        try:
            try:
                await self._answer(request, answer, clock)
            except Exception as raised:
                error = first_of(raised)
                if isinstance(error, Gone):
                    raise error from None
                refusal = refusal_of(error)
                if refusal.status >= 500 and error is not refusal:
                    _log.error("request failed", path=path, exc_info=error)
                await answer.refuse(refusal)
            status = str(answer.status)
        except Gone:
            pass
        finally:
            clock.ended(path if path in self._paths or path in _JOBS else "other", status)

    async def _answer(self, request: Request, answer: Reply, clock: Clock) -> None:
        path, method = request.url.path, request.method
        wanted, respond = ("POST", None) if path in _JOBS else self._paths.get(path, ("", None))
        if not wanted:
            raise Refusal(404, f"There is nothing at {path[:200]}.")
        if method != wanted and not (method == "HEAD" and wanted == "GET"):
            raise Refusal(405, f"{path} is asked by {wanted}.")
        client = self._client(request, is_open=path == "/health")
        if respond is not None:
            await respond(request, answer)
            return
        body = await read_body(request, self._settings)
        job = _JOBS[path](body, self._settings)
        form = Form(job, self._settings.model, self._engine.decode)

        async def work() -> None:
            async with self.admission.place(client):
                await answer_job(self._engine, job, form, answer, clock)

        await while_connected(request.receive, work)

    def _client(self, request: Request, *, is_open: bool) -> str:
        """Who asks: by a digest of the key, or by the address. Raises `Refusal` for a key that is none."""
        keys = self._settings.keys
        if not keys or is_open:
            return request.client.host if request.client else ""
        given = _key_of(request.headers.get("authorization", ""))
        if not sum(hmac.compare_digest(given.encode(), key.encode()) for key in keys):
            raise Refusal(401, "There is no key that this server knows; send it as 'Authorization: Bearer KEY'.")
        return blake2b(given.encode(), digest_size=8).hexdigest()

    async def _health(self, request: Request, answer: Reply) -> None:
        try:
            self._engine.check()
        except BraidError as error:
            raise refusal_of(error) from error
        if self.admission.is_closing:
            raise Refusal(503, "The server is about to stop.")
        await answer.json(200, {"status": "ok"})

    async def _write_metrics(self, request: Request, answer: Reply) -> None:
        await answer.begin(200, CONTENT_TYPE.encode())
        await answer.body(self._metrics.written())

    async def _models(self, request: Request, answer: Reply) -> None:
        model: Json = {"id": self._settings.model, "object": "model", "created": self._started, "owned_by": "braid"}
        if (most := self._engine.max_context) is not None:
            model["max_model_len"] = most
        await answer.json(200, {"object": "list", "data": [model]})

    async def _page(self, request: Request, answer: Reply) -> None:
        kind = _PAGE[request.url.path][1]
        await answer.begin(200, kind, _PAGE_HEADERS)
        await answer.body(self._files[request.url.path])

    async def _watch(self, request: Request, answer: Reply) -> None:
        async def work() -> None:
            async with aclosing(self._trees.watch()) as batches:
                async for events in batches:
                    await answer.event(events)
            await answer.body(b"")

        await while_connected(request.receive, work)


def _key_of(header: str) -> str:
    """The key of a bearer, or the password that a browser was given."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
