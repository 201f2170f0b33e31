"""Clients that go away, read nothing, or are many."""

from __future__ import annotations

import re
from typing import Any

import anyio
import httpx2
import openai
import pytest

from runtime.link.commands import CloseThread, Generate
from tests.runtime_loop.engines import TREE
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.scripted_core import assert_all_closed, counting, scripts
from tests.runtime_loop.turns import turn

from .hang_ups import Load, measured
from .serving import Served, served, words_on

pytestmark = pytest.mark.anyio


async def until(device: SteppedDevice, kind: type[Any]) -> None:
    while not any(isinstance(command, kind) for command in device.sent):
        await turn()


@pytest.mark.parametrize("fields", [{"stream": True}, {}, {"tree": True}, {"tree": True, "stream": True}])
async def test_who_hangs_up_ends_its_threads_without_another_tick(fields: dict[str, Any]) -> None:
    device = SteppedDevice(counting)
    async with served(words_on(device)) as server:
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                answer = await server.completion("a", max_tokens=10**6, **fields)
                async for _ in answer:
                    pass

            group.start_soon(ask)
            await until(device, Generate)
            if "tree" not in fields:
                device.step(3)
                await turn()
            group.cancel_scope.cancel()
        await until(device, CloseThread)
        assert device.core.threads == {}


async def test_a_whole_tree_goes_with_its_client() -> None:
    device = SteppedDevice(scripts({**TREE, "2": "x " * 50}))
    async with served(words_on(device)) as server:
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                await server.completion("1", max_tokens=1000, tree=True)

            group.start_soon(ask)
            await until(device, Generate)
            while len(device.core.threads) < 3:
                device.step()
                await turn()
            group.cancel_scope.cancel()
        while device.core.threads:
            await turn()
    assert_all_closed(device.core)


async def test_who_does_not_read_is_taken_for_gone() -> None:
    device = ScriptedDevice(counting)
    async with served(words_on(device), send_seconds=0.2) as server:
        async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
            body = b'{"model": "model", "prompt": "a", "max_tokens": 1000000000, "stream": true}'
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            await stream.send(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            while not device.core.threads:
                await turn()
            while server.application.admission.present:
                await anyio.sleep(0.01)
            await stream.aclose()
        assert device.core.threads == {}
        written = await metrics(server)
    assert written['braid_requests_total{path="/v1/completions",status="gone"}'] == 1


async def metrics(server: Served) -> dict[str, float]:
    async with httpx2.AsyncClient() as client:
        text = (await client.get(f"{server.url}/metrics")).text
    return {name: float(value) for name, value in re.findall(r"^(braid\S+) (\S+)$", text, re.MULTILINE)}


async def test_stopping_lets_answers_end() -> None:
    device = SteppedDevice(counting)
    async with served(words_on(device)) as server:
        got: list[str] = []

        async def ask() -> None:
            got.append((await server.completion("a", max_tokens=3)).choices[0].text)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await until(device, Generate)
            server.application.close()
            server.server.should_exit = True
            while not got:
                device.step()
                await turn()
    assert got == [" 0 1 2"]


async def test_stopping_cancels_what_takes_longer() -> None:
    device = ScriptedDevice(counting)
    got = 0
    async with served(words_on(device), drain=0) as server:
        answer = await server.completion("a", max_tokens=10**9, stream=True)

        async def read() -> None:
            nonlocal got
            async for chunk in answer:
                got += len(chunk.choices[0].text)
                server.application.close()
                server.server.should_exit = True

        with pytest.raises((httpx2.TransportError, openai.APIConnectionError)):
            await read()
    assert got
    assert_all_closed(device.core)


async def test_many_streams_of_which_a_third_hang_up() -> None:
    found = await measured(Load(streams=60, seed=1))
    assert found.faults == []
    assert found.hung_up == 20
    assert found.answered == 40
