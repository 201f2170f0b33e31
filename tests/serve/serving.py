"""Servers over real sockets, in the loop of the test that talks to them, and official clients of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import openai

from runtime import Engine, Opened
from runtime.link import Device
from runtime.serve.application import Application, Observer
from runtime.serve.listening import Server, bound, server_of
from runtime.serve.live import LiveTrees
from runtime.serve.settings import ServerSettings
from tests.runtime_loop.words import WORDS, bound_protocol, word_tokenizer

MODEL = "model"


class Served:
    """A server that is running."""

    def __init__(self, engine: Engine, application: Application, server: Server, port: int, keys: tuple[str, ...]):
        self.engine = engine
        self.application = application
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.client = openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=keys[0] if keys else "none", max_retries=0, timeout=60
        )

    async def completion(self, prompt: Any, **fields: Any) -> Any:
        """A completion; what is not OpenAI's goes into the body all the same."""
        own = {name: fields.pop(name) for name in list(fields) if name in OWN}
        return await self.client.completions.create(model=MODEL, prompt=prompt, extra_body=own, **fields)

    async def chat(self, messages: Any, **fields: Any) -> Any:
        own = {name: fields.pop(name) for name in list(fields) if name in OWN}
        return await self.client.chat.completions.create(model=MODEL, messages=messages, extra_body=own, **fields)


OWN = (
    *("depth", "spawn", "limits", "priority", "deadline", "tree", "return_token_ids", "json_schema"),
    *("regex", "choices", "grammar"),
    *("top_k", "min_p", "repetition_penalty", "stop_token_ids", "chat_template_kwargs", "sede"),
)


def words_on(device: Device, **options: Any) -> Callable[[Observer], Engine]:
    """An engine on a device whose tokens are words, under their protocol."""
    opened = Opened(device=device, tokenizer=word_tokenizer(), protocol=bound_protocol(), vocab_size=len(WORDS))
    return lambda observer: Engine.from_device(opened, observer=observer, **options)


@asynccontextmanager
async def served(make: Callable[[Observer], Engine], drain: int = 5, **settings: Any) -> AsyncIterator[Served]:
    """A server on an engine, and a client; both are gone at the end."""
    given = ServerSettings(model=MODEL, **settings)
    trees = LiveTrees(given.most_viewers)
    observer = Observer(trees)
    async with make(observer) as engine:
        observer.engine = engine
        application = Application(engine, given, trees)
        server = server_of(application, given, drain)
        with bound("127.0.0.1", 0) as at:
            at.listen()
            found = Served(engine, application, server, at.getsockname()[1], given.keys)
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: server.serve(sockets=[at]))
                while not server.started:
                    await anyio.sleep(0)
                try:
                    async with found.client:
                        yield found
                finally:
                    application.close()
                    server.should_exit = True
        assert application.admission.present == 0
