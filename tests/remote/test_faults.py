"""Answers through a connection that cuts, garbles and stalls: they are the same, and no token is said twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

import traces
from runtime import Engine, RemoteError, RemoteSettings
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import Speaker
from tests.serve.serving import MODEL, Served, served, words_on

from .asking import TREE, transcripts
from .proxy import Fault, Proxy

pytestmark = pytest.mark.anyio

SETTINGS = RemoteSettings(first_pause=0.001, longest_pause=0.01, silence_seconds=0.3, attempts=30)


def following(speaker: Speaker) -> int:
    """A word that depends on the whole context, so that a token lost or said twice changes all that follow."""
    return sum((place + 1) * token for place, token in enumerate(speaker.tokens)) % 90


def through(address: str, words: Path, **options: Any) -> Engine:
    return Engine.open(f"{address}/v1", model=MODEL, tokenizer=words, **{"remote": SETTINGS, **options})


def proxy_of(server: Served, *faults: Fault, seed: int) -> Proxy:
    return Proxy(urlsplit(server.url).port or 0, faults, seed)


async def say(engine: Engine, count: int) -> list[tuple[int, ...]]:
    """What threads say at a time, by streams and at once."""
    said: list[tuple[int, ...]] = [()] * count

    async def ask(number: int) -> None:
        async with engine.thread([number, number + 1]) as root:
            if number % 2:
                said[number] = (await root.generate(40)).tokens
                return
            async with root.stream(40) as stream:
                said[number] = tuple([token async for chunk in stream for token in chunk.tokens])

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(ask, number)
    return said


@pytest.mark.parametrize(
    "faults", [("cut", "none"), ("garble", "none"), ("stall", "none", "none", "none"), ("cut", "garble", "none")]
)
async def test_answers_are_the_same_through_a_broken_connection(
    words: Path, tmp_path: Path, faults: tuple[Fault, ...]
) -> None:
    file = tmp_path / "run.trace"
    async with served(words_on(ScriptedDevice(following))) as server:
        async with through(server.url, words) as engine:
            expected = await say(engine, 12)
        proxy = proxy_of(server, *faults, seed=len(faults))
        async with proxy.running() as address, through(address, words, trace=file) as engine:
            assert await say(engine, 12) == expected
            assert engine.usage.generated == 12 * 40
    assert sum(proxy.done[fault] for fault in faults if fault != "none") > 2
    trace = traces.read(file)
    assert traces.imbalances(trace.events) == []
    async with Engine.playback(trace) as played:
        assert await say(played, 12) == expected


async def test_a_tree_is_the_same_through_a_broken_connection(words: Path) -> None:
    patient = RemoteSettings(first_pause=0.001, longest_pause=0.01, attempts=30)
    async with served(words_on(ScriptedDevice(transcripts(*TREE)))) as server:
        async with through(server.url, words) as engine:
            expected = await engine.run("1")
        proxy = proxy_of(server, "cut", "garble", "none", seed=5)
        async with proxy.running() as address, through(address, words, remote=patient) as engine:
            answer = await engine.run("1")
        assert proxy.done["cut"] + proxy.done["garble"] > 0
        assert (answer.tokens, answer.usage.generated) == (expected.tokens, expected.usage.generated)


async def test_a_server_that_is_gone_ends_the_generate_and_not_the_engine(words: Path) -> None:
    settings = RemoteSettings(first_pause=0.001, attempts=2)
    async with served(words_on(ScriptedDevice(following))) as server:
        proxy = proxy_of(server, "none", seed=0)
        async with proxy.running() as address, through(address, words, remote=settings) as engine:
            assert len((await say(engine, 1))[0]) == 40
            proxy.port, there = 9, proxy.port
            async with engine.thread([1]) as root:
                with pytest.raises(RemoteError, match="2 times in a row"):
                    await root.generate(5)
            proxy.port = there
            assert len((await say(engine, 1))[0]) == 40
