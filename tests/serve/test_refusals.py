"""What a server refuses: requests that make no sense, too many, too large, and those without a key."""

from __future__ import annotations

import json
from typing import Any

import anyio
import httpx2
import openai
import pytest

from runtime.link.commands import CloseThread, OpenThread
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.scripted_core import counting
from tests.runtime_loop.turns import turn

from .serving import MODEL, Served, served, words_on

pytestmark = pytest.mark.anyio

BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"n": 0}, "`$.n`"),
    ({"n": 129}, "129 answers"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 1e400}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"seed": 1}, "seed"),
    ({"frequency_penalty": 1}, "frequency_penalty"),
    ({"logit_bias": {"1": 2}}, "logit_bias"),
    ({"suffix": "b"}, "suffix"),
    ({"best_of": 3}, "best_of"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 65}, "64 stops"),
    ({"json_schema": {"type": "strin"}}, "json_schema is no schema that can be followed"),
    ({"json_schema": {}, "regex": "a"}, "json_schema and regex are given together"),
    ({"regex": "("}, "regex is no regular expression"),
    ({"choices": []}, "choices is"),
    ({"grammar": "start: nothing_of_it"}, "grammar is none"),
    ({"grammar": 5}, "grammar"),
    ({"regex": "a", "stop": "b"}, "leave stop out"),
    ({"regex": "a", "tree": True}, "leave regex out"),
    ({"sede": 1}, "sede"),
    ({"prompt": []}, "prompt is empty"),
    ({"prompt": ""}, "prompt is empty"),
    ({"prompt": "unknown"}, "'unknown'"),
    ({"prompt": [1, 10**6]}, "token id"),
    ({"prompt": [1, "a"]}, "token ids beside"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"depth": 0}, "depth"),
    ({"depth": {"type": "Nothing"}}, "Nothing"),
    ({"depth": {"type": "MaxChildren", "children": 1}}, "depth"),
    ({"depth": "__import__('os')"}, "depth"),
    ({"spawn": {"type": "MaxChildren"}}, "children"),
    ({"spawn": -1}, "spawn"),
    ({"limits": {"tokens": -1}}, "tokens"),
    ({"limits": {"token": 1}}, "'token'"),
    ({"priority": 11}, "priority"),
    ({"deadline": 0}, "deadline"),
    ({"tree": True, "logprobs": 1}, "logprobs"),
    ({"tree": True, "stop": "a"}, "stop"),
]


async def raw(server: Served, content: bytes, path: str = "/v1/completions", **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=30) as client:
        kind = {"content-type": "application/json", **{name.replace("_", "-"): it for name, it in headers.items()}}
        return await client.post(server.url + path, content=content, headers=kind)


async def test_what_makes_no_sense_is_told() -> None:
    device = ScriptedDevice(counting)
    async with served(words_on(device)) as server:
        for fields, named in BAD:
            for stream in (False, True):
                body = json.dumps({"model": MODEL, "prompt": "a", "stream": stream, **fields})
                answer = await raw(server, body.replace("Infinity", "1e400").encode())
                assert answer.status_code == 400, (fields, answer.text)
                assert named in answer.json()["error"]["message"], (fields, answer.text)
    assert [c.thread for c in device.sent if isinstance(c, OpenThread)] == [
        c.thread for c in device.sent if isinstance(c, CloseThread)
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": "\\ud800", "prompt": "a"}',
        b'{"model":' * 100_000,
        b"[" * 10**5,
    ],
)
async def test_bodies_that_are_none_are_told(content: bytes) -> None:
    async with served(words_on(ScriptedDevice(counting))) as server:
        answer = await raw(server, content)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_bodies_are_bounded() -> None:
    async with served(words_on(ScriptedDevice(counting)), largest_body=1000) as server:
        declared = await raw(server, b" " * 1001)

        async def chunked() -> Any:
            for _ in range(100):
                yield b" " * 100

        async with httpx2.AsyncClient() as client:
            headers = {"content-type": "application/json"}
            sent = await client.post(f"{server.url}/v1/completions", content=chunked(), headers=headers)
        other = await raw(server, b"{}", content_type="text/plain")
        well = await server.completion("a", max_tokens=1)
    assert (declared.status_code, sent.status_code, other.status_code) == (413, 413, 415)
    assert well.choices[0].text == " 0"


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    async with (
        served(words_on(ScriptedDevice(counting)), body_seconds=0.05) as server,
        await anyio.connect_tcp("127.0.0.1", server.port) as stream,
    ):
        await stream.send(head + b"content-length: 100\r\n\r\n{")
        assert (await stream.receive()).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/completions", 405), ("POST", "/health", 405), ("GET", "/nothing", 404), ("GET", "/../x", 404)],
)
async def test_paths_that_are_none_are_told(method: str, path: str, status: int) -> None:
    async with served(words_on(ScriptedDevice(counting))) as server, httpx2.AsyncClient() as client:
        assert (await client.request(method, server.url + path)).status_code == status


async def test_keys_are_asked_for() -> None:
    async with served(words_on(ScriptedDevice(counting)), keys=("secret", "other")) as server:
        assert (await server.completion("a", max_tokens=1)).choices[0].text == " 0"
        async with httpx2.AsyncClient() as client:
            for path in ("/v1/models", "/metrics", "/", "/events"):
                for headers in ({}, {"authorization": "Bearer nothing"}, {"authorization": "Basic !"}):
                    assert (await client.get(server.url + path, headers=headers)).status_code == 401
            assert (await client.get(f"{server.url}/v1/models", auth=("", "other"))).status_code == 200
            assert (await client.get(f"{server.url}/health")).status_code == 200
        stranger = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="nothing")
        with pytest.raises(openai.AuthenticationError):
            await stranger.completions.create(model=MODEL, prompt="a")
        await stranger.close()


async def test_who_finds_no_place_is_told_when_to_come_again() -> None:
    device = SteppedDevice(counting)
    async with served(words_on(device), most_requests=1, most_waiting=1) as server:
        answers: list[str] = []

        async def ask() -> None:
            answers.append((await server.completion("a", max_tokens=1)).choices[0].text)

        async with anyio.create_task_group() as group:
            for present in (1, 2):
                group.start_soon(ask)
                while server.application.admission.present < present:
                    await turn()
            with pytest.raises(openai.RateLimitError) as refused:
                await server.completion("a", max_tokens=1)
            assert refused.value.response.headers["retry-after"] == "1"
            while len(answers) < 2:
                device.step()
                await turn()
        assert answers == [" 0", " 0"]


async def test_one_client_does_not_take_all_places() -> None:
    device = SteppedDevice(counting)
    async with served(words_on(device), most_per_client=1, keys=("a", "b")) as server:
        other = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="b", max_retries=0)
        answers = []

        async def ask(client: openai.AsyncOpenAI) -> None:
            answers.append(await client.completions.create(model=MODEL, prompt="a", max_tokens=1))

        async with other, anyio.create_task_group() as group:
            for client, present in ((server.client, 1), (other, 2)):
                group.start_soon(ask, client)
                while server.application.admission.present < present:
                    await turn()
                with pytest.raises(openai.RateLimitError, match="You have 1 requests here"):
                    await client.completions.create(model=MODEL, prompt="a", max_tokens=1)
            while len(answers) < 2:
                device.step()
                await turn()


async def test_an_engine_that_has_failed_is_told() -> None:
    device = SteppedDevice(counting)
    async with served(words_on(device)) as server, httpx2.AsyncClient() as client:
        assert (await client.get(f"{server.url}/health")).status_code == 200
        device.fail(RuntimeError("secret inside"))
        await turn()
        health = await client.get(f"{server.url}/health")
        assert health.status_code == 503
        with pytest.raises(openai.InternalServerError) as refused:
            await server.completion("a")
        assert "secret" not in str(refused.value) + health.text
