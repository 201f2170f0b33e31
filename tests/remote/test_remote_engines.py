"""Engines whose model our own server runs: the same programs, the same answers, the same costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

import traces
from policies import Fixed, Limits, Policy
from runtime import (
    Chunk,
    ConstraintError,
    Engine,
    EngineClosed,
    LimitExceeded,
    ReasoningThread,
    RemoteError,
    RemoteSettings,
    Sampling,
)
from runtime.link import CloseThread, Generate, OpenThread
from tests.runtime_loop.engines import engine_under
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.scripted_core import counting
from tests.runtime_loop.turns import turn
from tests.serve.serving import MODEL, served, words_on

from .asking import TREE, asking, served_words, transcripts, until

pytestmark = pytest.mark.anyio

PROMPT = "22 26 31 53 -> 27"
GREEDY = Sampling(temperature=0.0)


def costs(usage: Any) -> tuple[int, ...]:
    return (usage.generated, usage.computed, usage.iterations, usage.threads, usage.max_context, usage.spawns_granted)


async def test_a_tree_is_what_a_local_engine_makes_of_it_and_costs_as_much(tmp_path: Path) -> None:
    file = tmp_path / "run.trace"
    async with Engine.open("countdown", reuse_prefixes=False) as local:
        expected = await local.run(PROMPT, sampling=GREEDY)
    async with (
        served(lambda observer: Engine.open("countdown", observer=observer)) as server,
        Engine.open(f"{server.url}/v1", tokenizer="countdown", trace=file) as engine,
    ):
        answer = await engine.run(PROMPT, sampling=GREEDY)
        assert engine.max_context == 512
        assert engine.usage.generated == engine.statistics.generated
        assert engine.usage.iterations == engine.statistics.iterations
    assert answer.tokens == expected.tokens
    assert costs(answer.usage) == costs(expected.usage)
    trace = traces.read(file)
    assert trace.lost is None
    assert traces.imbalances(trace.events) == []
    assert trace.header.engine["remote"]["offer"]["token_ids"] is True
    async with Engine.playback(trace) as played:
        again = await played.run(PROMPT, sampling=GREEDY)
    assert again.tokens == answer.tokens
    assert costs(again.usage) == costs(answer.usage)


async def test_tokens_come_with_log_probabilities_and_depths() -> None:
    sampling = Sampling(temperature=0.0, logprobs=2)
    # Of tokens that are tested together all go equally deep: a server reads in one what was said one by one.
    policy = Policy(depth=Fixed(4))

    async def found(engine: Engine) -> tuple[Any, ...]:
        async with engine.thread(PROMPT) as thread:
            said = await thread.generate(9, sampling=sampling)
            score = await thread.score([7, 8, 9], top=2)
            async with thread.stream(5, sampling=sampling, depth=Fixed(3)) as stream:
                chunks = [chunk async for chunk in stream]
        return said, chunks, score, thread.tokens

    async with (
        served(lambda observer: Engine.open("countdown", policy=policy, observer=observer)) as server,
        Engine.open(f"{server.url}/v1", model=MODEL, tokenizer="countdown", policy=policy) as engine,
    ):
        local, remote = await found(server.engine), await found(engine)
    (expected, local_chunks, local_score, whole), (said, chunks, score, tokens) = local, remote
    assert said.tokens == expected.tokens
    assert said.depths == (4,) * 9
    assert said.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert [list(top) for top in said.top_logprobs] == [list(top) for top in expected.top_logprobs]
    assert tokens == whole
    assert [depth for chunk in chunks for depth in chunk.depths] == [3] * 5
    assert "".join(chunk.text for chunk in chunks) == "".join(chunk.text for chunk in local_chunks)
    assert score.tokens == local_score.tokens
    assert score.logprobs == pytest.approx(local_score.logprobs, rel=1e-5)
    assert score.depths == local_score.depths
    assert [list(top) for top in score.top_logprobs] == [list(top) for top in local_score.top_logprobs]


async def test_a_tree_is_driven_from_here(words: Path) -> None:
    device = ScriptedDevice(transcripts(*TREE))
    here = ScriptedDevice(transcripts(*TREE))
    async with engine_under(here) as local:
        expected = await local.run("1")
    async with served_words(device, words) as (_, engine):
        answer = await engine.run("1")
    assert (answer.tokens, answer.text) == (expected.tokens, expected.text)
    assert answer.usage.generated == expected.usage.generated
    assert answer.usage.iterations == expected.usage.iterations
    assert answer.usage.threads == 5
    assert device.core.threads == {}


async def test_children_start_while_their_parent_is_still_streaming(words: Path) -> None:
    parent_says = "1 <spawn> 2 </spawn> a b c <join> <message> 7 </message> <return> 9 <end>"
    device = SteppedDevice(transcripts(parent_says, "2 <return> 7 <end>"))
    async with served_words(device, words) as (_, engine), anyio.create_task_group() as group:
        answers = []

        async def ask() -> None:
            answers.append(await engine.run("1"))

        group.start_soon(ask)
        await until(device, Generate)
        device.step(3)
        parent, child = await until(device, Generate, 2)
        device.take_commands()
        assert device.core.threads[parent.thread].work is not None
        assert device.core.threads[child.thread].tokens == [2]
        while not answers:
            device.step()
            await turn()
    assert answers[0].text == "9"


async def test_cancelled_calls_close_their_requests(words: Path) -> None:
    device = SteppedDevice(counting)
    async with served_words(device, words) as (_, engine), engine.thread("a") as root:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(root.generate, 10**6)
                await until(device, Generate)
                device.step(3)
                await turn()
                scope.cancel()
        await until(device, CloseThread)
        assert device.core.threads == {}
        assert root.text == "a"
        async with root.stream(100) as stream:
            async with anyio.create_task_group() as group:
                chunks = list[Chunk]()

                async def take() -> None:
                    chunks.append(await anext(stream))

                group.start_soon(take)
                await until(device, Generate, 2)
                device.step()
            (chunk,) = chunks
        assert root.text == f"a {chunk.text.strip()}"
        await until(device, CloseThread, 2)


async def test_an_engine_that_is_left_closes_its_requests(words: Path) -> None:
    device = SteppedDevice(counting)
    async with anyio.create_task_group() as group, served_words(device, words) as (_, engine):

        async def ask() -> None:
            with pytest.raises(EngineClosed):
                async with engine.thread("a") as root:
                    await root.generate(10**6)

        group.start_soon(ask)
        await until(device, Generate)
        device.step(2)
    assert device.core.threads == {}


async def test_limits_hold_as_everywhere(words: Path) -> None:
    device = ScriptedDevice(counting)
    async with served_words(device, words) as (_, engine):
        async with engine.thread("a", limits=Limits(tokens=7)) as root:
            assert (await root.generate(5)).reason == "length"
            cut = await root.generate(5)
            assert (len(cut.tokens), cut.limit) == (2, "tokens")
            with pytest.raises(LimitExceeded):
                await root.generate(1)
        assert root.usage.generated == 7
        async with engine.thread("a", limits=Limits(iterations=12)) as root:
            cut = await root.generate(50)
            assert (cut.limit, len(cut.tokens)) == ("iterations", 4)
        async with engine.thread("a") as root:
            stopped = await root.generate(50, stop=["3"])
            assert (stopped.text.split(), stopped.reason) == (["0", "1", "2"], "stop")
            stopped = await root.generate(50, stop=[6])
            assert (stopped.tokens[-1], stopped.reason) == (6, "stop")


async def say_three(thread: ReasoningThread) -> None:
    await thread.generate(3)


async def test_forks_begin_with_what_their_parent_has(words: Path) -> None:
    async with served_words(ScriptedDevice(counting), words) as (_, engine), engine.thread("a b") as root:
        await root.generate(2)
        first, second = (root.fork(seed, program=say_three) for seed in "cd")
        await root.join([first, second])
        assert root.text.startswith("a b 0 1")
        with pytest.raises(RemoteError, match="merge=False"):
            await root.join([root.fork("e", program=say_three)], merge=True)


async def test_priority_decides_who_is_asked_for_first(words: Path) -> None:
    device = SteppedDevice(counting)
    settings = RemoteSettings(max_requests=1)
    async with served_words(device, words, remote=settings) as (_, engine), anyio.create_task_group() as group:
        for number, priority in enumerate((0, 1, 2)):

            async def ask(name: str = "abc"[number], priority: int = priority) -> None:
                async with engine.thread(name, priority=priority) as root:
                    await root.generate(1)

            group.start_soon(ask)
            if number == 0:
                await until(device, Generate)
        while engine.statistics.waiting < 2:
            await turn()
        for count in (1, 2, 3):
            await until(device, Generate, count)
            device.step()
    opened = [
        device.core.commands[index + 1]
        for index, each in enumerate(device.core.commands)
        if isinstance(each, OpenThread)
    ]
    assert [each.tokens for each in opened] == [(100,), (102,), (101,)]  # type: ignore[union-attr]


async def test_what_a_server_cannot_do_is_refused(words: Path, tmp_path: Path) -> None:
    async with served_words(ScriptedDevice(counting), words) as (server, engine):
        with pytest.raises(RemoteError, match="server's"):
            await engine.load_weights({})
        async with engine.thread("a") as root:
            with pytest.raises(ConstraintError, match="server"):
                await root.generate(5, regex="[ab]+")
            with pytest.raises(RemoteError, match="400"):
                await root.generate(5, sampling=Sampling(logprobs=1000))
            assert len((await root.generate(2)).tokens) == 2
        file = tmp_path / "later.trace"
        async with engine.recording(file):
            await engine.run("a", max_tokens=3)
        assert traces.totals_of(traces.read(file).events).generated == 3
        with pytest.raises(RemoteError, match=r"no completion of 'other'.*'model'"):
            async with Engine.open(f"{server.url}/v1", model="other"):
                pass


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dtype": "bfloat16"}, "dtype"),
        ({"drafts": "countdown"}, "drafts"),
        ({"model": 3}, "model"),
        ({"remote": 3}, "remote"),
        ({"remote": RemoteSettings(token_ids=True)}, "token_ids"),
    ],
)
def test_arguments_of_other_engines_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Engine.open("http://127.0.0.1:1/v1", **options)


@pytest.mark.parametrize(
    "address", ["http://", "http://host:99999/v1", "https://me:secret@host/v1", "http://host/v1?a=b"]
)
def test_addresses_are_looked_at_before_anybody_is_asked(address: str) -> None:
    with pytest.raises(ValueError, match=r"is no address|goes on after the path|has a user or a password") as refused:
        Engine.open(address)
    assert "secret" not in str(refused.value)


def test_arguments_of_servers_are_refused_elsewhere() -> None:
    with pytest.raises(ValueError, match="are for servers"):
        Engine.open("countdown", model="a")


@pytest.mark.parametrize("field", ["attempts", "max_requests", "first_pause", "silence_seconds"])
def test_settings_are_positive(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        RemoteSettings(**{field: 0})  # type: ignore[arg-type]


async def test_nobody_answers() -> None:
    with pytest.raises(RemoteError, match="3 times in a row"):
        async with Engine.open("http://127.0.0.1:9/v1", remote=RemoteSettings(attempts=3, first_pause=0.001)):
            pass


async def test_a_server_of_texts_is_spoken_to_in_texts(words: Path) -> None:
    async with served(words_on(ScriptedDevice(transcripts(*TREE)))) as server:
        async with asking(server, words) as engine:
            expected = await engine.run("1")
        async with asking(server, words, remote=RemoteSettings(token_ids=False)) as engine:
            answer = await engine.run("1")
            async with engine.thread("2") as root:
                said = await root.generate(1)
    assert (answer.text, answer.tokens) == (expected.text, expected.tokens)
    assert answer.usage.threads == expected.usage.threads
    assert said.text.strip() == "x"
