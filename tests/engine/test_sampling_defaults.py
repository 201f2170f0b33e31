"""A checkpoint's generation_config.json samples where callers say nothing, and what they say counts field by field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from policies import Fixed, Policy
from runtime import Engine, Opened, ReasoningThread, Sampling
from runtime.link import Generate
from tests.runtime_loop.scripted import ScriptedDevice
from tests.runtime_loop.scripted_core import counting

pytestmark = pytest.mark.anyio

PUBLISHED = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [3, 5]}
TAKEN = Sampling(temperature=0.6, top_k=20, top_p=0.95)


@pytest.fixture
def published(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    directory = Path(shutil.copytree(tiny_checkpoint, tmp_path / "published"))
    (directory / "generation_config.json").write_text(json.dumps(PUBLISHED))
    return directory


def engine_on(checkpoint: Path, **options: Any) -> Engine:
    return Engine.open(
        checkpoint, policy=Policy(depth=Fixed(2)), num_pages=64, max_in_flight=16, prefill_chunk=8, **options
    )


async def said(engine: Engine, **options: Any) -> tuple[int, ...]:
    async with engine.thread([1, 2, 4]) as root:
        generation = await root.generate(12, **options)
    return generation.tokens


async def test_what_the_file_says_is_visible_and_samples(published: Path, tiny_checkpoint: Path) -> None:
    async with engine_on(published, seed=4) as engine:
        assert engine.sampling == TAKEN
        stops = (await said(engine), await said(engine, sampling=Sampling(temperature=0)))
    async with engine_on(tiny_checkpoint, seed=4) as engine:
        assert engine.sampling == Sampling()
        expected = (await said(engine, sampling=TAKEN, stop=[3, 5]), await said(engine, stop=[3, 5]))
    assert stops == expected


async def test_fields_that_are_given_count_before_the_files(published: Path) -> None:
    async with engine_on(published, sampling=Sampling(temperature=1.2, top_p=None)) as engine:
        assert engine.sampling == Sampling(temperature=1.2, top_k=20)
    async with engine_on(published, sampling=Sampling(logprobs=2)) as engine:
        assert engine.sampling == Sampling(temperature=0.6, top_k=20, top_p=0.95, logprobs=2)
    # A filter of the file is for its sampling, and no token of a greedy one depends on it.
    async with engine_on(published, sampling=Sampling(temperature=0)) as engine:
        assert engine.sampling == Sampling()


async def test_every_call_that_takes_a_sampling_fills_it_in() -> None:
    device = ScriptedDevice(counting)
    opened = Opened(device=device, sampling=TAKEN, max_tokens=3)

    async def work(thread: ReasoningThread) -> None:
        assert (await thread.generate()).reason == "length"

    async with Engine.from_device(opened, sampling=Sampling(top_k=7)) as engine:
        async with engine.thread([1], sampling=Sampling(temperature=1.0)) as root:
            await root.generate()
            await root.generate(2, sampling=Sampling(min_p=0.1))
            await root.join([root.spawn([1], program=work, sampling=Sampling(top_p=0.5))])
            await root.join([root.fork(program=work)])
        await engine.run([1])
    asked = [
        (command.sampling, command.max_tokens) for command in device.core.commands if isinstance(command, Generate)
    ]
    assert asked == [
        (Sampling(temperature=1.0, top_k=20, top_p=0.95), 3),
        (Sampling(temperature=0.6, top_k=20, top_p=0.95, min_p=0.1), 2),
        (Sampling(temperature=0.6, top_k=20, top_p=0.5), 3),
        (Sampling(temperature=1.0, top_k=20, top_p=0.95), 3),
        (Sampling(temperature=0.6, top_k=7, top_p=0.95), 3),
    ]


async def test_ways_of_sampling_that_are_ignored_are_logged_once(
    published: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (published / "generation_config.json").write_text(json.dumps(PUBLISHED | {"num_beams": 4, "typical_p": 0.9}))
    async with engine_on(published) as engine:
        assert engine.sampling == TAKEN
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "generation_config.json" in line
    assert "('num_beams', 'typical_p')" in line


async def test_the_embedded_model_is_greedy_as_it_was() -> None:
    async with Engine.open("countdown") as engine:
        assert engine.sampling == Sampling()
        assert engine.sampling.is_greedy
