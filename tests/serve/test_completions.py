"""Answers over real sockets, as the official client of the OpenAI API reads them."""

from __future__ import annotations

from functools import partial
from typing import Any

import openai
import pytest

from policies import Fixed, to_builtins
from runtime import Engine, Limits, Sampling
from tests.runtime_loop.engines import TREE
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import assert_all_closed, counting, scripts

from .serving import MODEL, served, words_on

pytestmark = pytest.mark.anyio


async def streamed(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


async def test_a_completion_is_what_the_engine_says() -> None:
    prompt = "22 26 31 53 -> 27"
    async with served(lambda observer: Engine.open("countdown", observer=observer)) as server:
        async with server.engine.thread(prompt) as thread:
            said = await thread.generate(12, sampling=Sampling(temperature=0.0, logprobs=2))
            context = thread.tokens
        asked = {"max_tokens": 12, "temperature": 0.0, "logprobs": 2, "return_token_ids": True}
        whole = await server.completion(prompt, **asked)
        chunks = await streamed(await server.completion(prompt, stream=True, **asked))
        by_ids = await server.completion(list(context[: -len(said.tokens)]), **asked)
    choice = whole.choices[0]
    assert choice.text == said.text == "".join(chunk.choices[0].text for chunk in chunks) == by_ids.choices[0].text
    assert choice.finish_reason == chunks[-1].choices[0].finish_reason == "length"
    assert tuple(choice.token_ids) == said.tokens
    assert choice.prompt_token_ids == list(context[: -len(said.tokens)]) == chunks[0].choices[0].prompt_token_ids
    assert choice.logprobs.token_logprobs == pytest.approx(said.logprobs, abs=1e-6)
    assert [len(top) for top in choice.logprobs.top_logprobs] == [2] * 12
    assert "".join(choice.logprobs.tokens).replace(" ", "") == said.text.replace(" ", "")
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [each for part in parts for each in part.token_logprobs] == choice.logprobs.token_logprobs
    assert [each for part in parts for each in part.text_offset] == choice.logprobs.text_offset
    assert whole.usage.prompt_tokens == 6
    assert whole.usage.completion_tokens == 12


async def test_a_prompt_is_scored_by_echo() -> None:
    async with served(lambda observer: Engine.open("countdown", observer=observer)) as server:
        async with server.engine.thread("22 26 31 53 -> 27") as thread:
            ids = thread.tokens
        async with server.engine.thread(ids[:1]) as thread:
            score = await thread.score(ids[1:])
        answer = await server.completion(list(ids), max_tokens=0, echo=True, logprobs=1)
        going_on = await server.completion(list(ids), max_tokens=2, echo=True, logprobs=1)
    found = answer.choices[0].logprobs
    assert found.token_logprobs[0] is None
    assert tuple(found.token_logprobs[1:]) == pytest.approx(score.logprobs, abs=1e-5)
    assert found.top_logprobs[0] is None
    assert answer.choices[0].text == "22 26 31 53 -> 27"
    assert answer.usage.completion_tokens == 0
    assert len(going_on.choices[0].logprobs.tokens) == len(ids) + 2
    assert going_on.choices[0].text.startswith("22 26 31 53 -> 27")


async def test_prompts_and_samples_are_choices() -> None:
    device = ScriptedDevice(scripts({"a": "1 2 3", "b": "4 5 6"}))
    async with served(words_on(device)) as server:
        answer = await server.completion(["a", "b"], n=2, max_tokens=3)
        chunks = await streamed(await server.completion(["a", "b"], n=2, max_tokens=3, stream=True))
    assert [choice.text for choice in answer.choices] == [" 1 2 3", " 1 2 3", " 4 5 6", " 4 5 6"]
    assert answer.usage.prompt_tokens == 2
    assert answer.usage.completion_tokens == 12
    texts: dict[int, str] = {}
    for chunk in chunks:
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {index: choice.text for index, choice in enumerate(answer.choices)}
    assert_all_closed(device.core)


async def test_stops_end_an_answer() -> None:
    device = ScriptedDevice(counting)
    async with served(words_on(device)) as server:
        by_text = await server.completion("a", max_tokens=20, stop=[" 4", "z"])
        by_id = await server.completion("a", max_tokens=20, stop_token_ids=[4], stream=True)
        text = "".join([chunk.choices[0].text async for chunk in by_id])
    assert by_text.choices[0].text == text.rstrip() == " 0 1 2 3"
    assert by_text.choices[0].finish_reason == "stop"


async def test_usage_comes_with_a_stream_that_asks_for_it() -> None:
    device = ScriptedDevice(counting)
    async with served(words_on(device)) as server:
        chunks = await streamed(
            await server.completion("a b", max_tokens=3, stream=True, stream_options={"include_usage": True})
        )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("asked", [{"tree": True}, {"spawn": 10}, {"spawn": {"type": "MaxChildren", "children": 10}}])
async def test_the_model_orchestrates_where_it_is_asked_to(asked: dict[str, Any]) -> None:
    device = ScriptedDevice(scripts(TREE))
    async with served(words_on(device)) as server:
        answer = await server.completion("1", max_tokens=100, **asked)
    assert answer.choices[0].text == "9 9"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.braid["threads"] == 5
    if "tree" in asked:
        assert [event["type"] for event in answer.events].count("ended") == 5
    assert_all_closed(device.core)


async def test_what_a_tree_does_is_streamed() -> None:
    device = ScriptedDevice(scripts(TREE))
    async with served(words_on(device)) as server:
        chunks = await streamed(await server.completion("1", max_tokens=100, tree=True, stream=True))
    events = [chunk.event for chunk in chunks if not chunk.choices]
    assert events[0] == {"type": "started", "thread": [0], "text": "1"}
    spawned = [event for event in events if event["type"] == "spawned"]
    assert [event["child"] for event in spawned if len(event["child"]) == 2] == [[0, 0], [0, 1], [0, 2]]
    ended = {tuple(event["thread"]): event["text"] for event in events if event["type"] == "ended"}
    assert ended == {(0,): "9 9", (0, 0): "7", (0, 1): "8", (0, 1, 0): "7", (0, 2): "7"}
    assert sum(event["type"] == "joined" for event in events) == 3
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "9 9"


async def test_children_are_bounded() -> None:
    device = ScriptedDevice(scripts(TREE))
    async with served(words_on(device)) as server:
        answer = await server.completion("1", max_tokens=100, tree=True, spawn={"type": "NoChildren"})
    assert {event["type"] for event in answer.events} == {"started", "refused", "joined", "ended"}
    assert answer.usage.braid["threads"] == 1


async def test_two_trees_at_once_are_told_apart() -> None:
    device = ScriptedDevice(scripts(TREE))
    async with served(words_on(device)) as server:
        answer = await server.completion(["1", "3"], max_tokens=100, tree=True)
        alone = await server.completion("3", max_tokens=100, tree=True)
    assert [choice.text for choice in answer.choices] == ["9 9", "8"]
    assert {event["thread"][0] for event in answer.events} == {0, 1}
    assert {event["thread"][0] for event in alone.events} == {2}


async def test_depth_is_asked_for() -> None:
    async with served(lambda observer: Engine.open("countdown", observer=observer)) as server:
        ask = partial(server.completion, "22 26 31 53 -> 27", max_tokens=8)
        shallow, deep = await ask(depth=1), await ask(depth=to_builtins(Fixed(6)))
    assert shallow.usage.braid["iterations"] == shallow.usage.braid["computed"]
    assert deep.usage.braid["iterations"] == 6 * deep.usage.braid["computed"]


@pytest.mark.parametrize("stream", [False, True])
async def test_limits_end_an_answer_which_keeps_what_was_said(stream: bool) -> None:
    device = ScriptedDevice(counting)
    async with served(words_on(device), limits=Limits(tokens=7)) as server:
        answer = await server.completion("a", max_tokens=50, stream=stream, limits={"tokens": 9})
        chunks = await streamed(answer) if stream else [answer]
        assert "".join(chunk.choices[0].text for chunk in chunks) == " 0 1 2 3 4 5 6"
        assert (chunks[-1].choices[0].finish_reason, chunks[-1].choices[0].stop_reason) == ("length", "limit")


async def test_a_deadline_ends_an_answer_which_keeps_what_was_said() -> None:
    device = ScriptedDevice(counting)
    async with served(words_on(device)) as server:
        answer = await server.completion("a", max_tokens=2**30, deadline=0.2)
        assert answer.choices[0].stop_reason == "limit"
        assert answer.choices[0].text.startswith(" 0 1 2 3")
        tree = await server.completion("a", max_tokens=2**30, deadline=0.2, tree=True)
        assert (tree.choices[0].text, tree.choices[0].stop_reason) == ("", "limit")
    assert_all_closed(device.core)


async def test_models_are_listed() -> None:
    async with served(words_on(ScriptedDevice(counting))) as server:
        assert [model.id async for model in server.client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError, match="There is no model 'other' here; there is 'model'"):
            await server.client.completions.create(model="other", prompt="a")
