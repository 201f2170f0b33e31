"""Llama checkpoints through the whole engine: greedy tokens are those that transformers generates."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch

from policies import DepthPolicy, Fixed, LatentDiff, Policy
from runtime import Engine, EngineSettings, Sampling
from runtime.link.commands import CloseThread, Extend, Finished, Generate, OpenThread
from runtime.model.checkpoint import fingerprint, load_checkpoint
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo
from tests.llamas import VARIANTS, make_llama, save_llama
from traces import read
from traces.__main__ import main as traces_command

BACKENDS = ("torch", "native")
SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 256, "max_in_flight": 48, "prefill_chunk": 8}
LENGTHS = (1, 3, 8, 9, 16, 21, 50)
"""Of prompts: shorter than a chunk, whole chunks, and several with a rest."""
NEW = 24


def prompts() -> list[list[int]]:
    chance = random.Random(5)
    return [[chance.randrange(40) for _ in range(length)] for length in LENGTHS]


def generated(model: Any, prompt: list[int], count: int = NEW) -> tuple[int, ...]:
    """The greedy tokens after a prompt of a model of transformers, whose `generate` is annotated as a method of more
    than its own models are."""
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return tuple(out[0, len(prompt) :].tolist())


def said(model: Transformer, depth: DepthPolicy | None = None, **changes: Any) -> list[tuple[int, ...]]:
    """Greedy tokens of threads that are all served at once, one for each prompt."""
    depth = depth or Fixed()
    solo = Solo.over(model, EngineSettings(**{**SIZES, **changes}), depth)
    for number, prompt in enumerate(prompts()):
        solo.send(
            OpenThread(thread=(number,), seed=0, depth=depth),
            Extend((number,), tuple(prompt)),
            Generate(thread=(number,), max_tokens=NEW, sampling=Sampling()),
        )
    finished = {report.thread: report.tokens for report in solo.run() if isinstance(report, Finished)}
    solo.send(*(CloseThread(path) for path in finished))
    solo.run()
    assert solo.core.scheduler.kv_cache.pool.used == 0
    return [finished[number,] for number in range(len(LENGTHS))]


@cache
def answers(variant: str) -> list[tuple[int, ...]]:
    """Of transformers' model, to each prompt."""
    reference = make_llama(**VARIANTS[variant])
    return [generated(reference, prompt) for prompt in prompts()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_threads_together_say_what_transformers_generates(tmp_path: Path, variant: str) -> None:
    expected = answers(variant)
    assert len({token for tokens in expected for token in tokens}) > 10, "what is said is to vary"
    model = load_checkpoint(save_llama(tmp_path, make_llama(**VARIANTS[variant]))).model
    for backend in BACKENDS:
        assert said(model, backend=backend) == expected, backend


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "torch", "attention": "torch"},
        {"backend": "torch", "attention": "torch", "deterministic": True},
        {"backend": "torch", "deterministic": True},
        {"num_pages": 32},  # threads are evicted and computed again
        {"max_in_flight": 3, "prefill_chunk": 2},
        {"reuse_prefixes": False},
        {"most_iterations": 3, "iteration_slots": 1},
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()),
)
def test_settings_change_nothing_that_is_said(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = load_checkpoint(save_llama(tmp_path, make_llama(**VARIANTS["grouped"]))).model
    assert said(model, **changes) == answers("grouped")


def test_a_deeper_policy_only_repeats(tmp_path: Path) -> None:
    """Every iteration runs the same layers over the same input."""
    model = load_checkpoint(save_llama(tmp_path, make_llama(**VARIANTS["grouped"]))).model
    expected = answers("grouped")
    for backend in BACKENDS:
        assert said(model, LatentDiff(0.01, max_iterations=3), backend=backend) == expected


def test_a_page_holds_the_heads_of_keys_alone(tmp_path: Path) -> None:
    """Four heads of queries on one of keys: a quarter of the memory."""
    pages = []
    for heads in (4, 1):
        model = load_checkpoint(save_llama(tmp_path / str(heads), make_llama(num_key_value_heads=heads))).model
        solo = Solo.over(
            model, EngineSettings(page_size=4, max_in_flight=8, prefill_chunk=8, kv_cache_bytes=2**18), Fixed()
        )
        pages.append(solo.core.backend.cache.pages)
    # Keys and values, float32, two layers, eight numbers a head.
    assert pages == [2**18 // (2 * 4 * 2 * 4 * heads * 8) for heads in (4, 1)]


@pytest.mark.anyio
async def test_an_engine_opens_what_transformers_saved(tmp_path: Path) -> None:
    reference = make_llama(eos_token_id=[7, 9], **VARIANTS["llama3"])
    directory = save_llama(tmp_path / "model", reference, shards=True)
    trace = tmp_path / "run.trace"
    found: dict[int, tuple[int, ...]] = {}
    async with Engine.open(directory, trace=trace, **SIZES) as engine:

        async def ask(number: int, prompt: list[int]) -> None:
            async with engine.thread(prompt) as thread:
                found[number] = (await thread.generate(max_tokens=NEW)).tokens

        async with anyio.create_task_group() as group:
            for number, prompt in enumerate(prompts()):
                group.start_soon(ask, number, prompt)
    assert (engine.statistics.pages_used, engine.statistics.open_threads) == (0, 0)
    expected = [generated(reference, prompt) for prompt in prompts()]
    assert [found[number] for number in range(len(LENGTHS))] == expected
    assert any(tokens[-1] in (7, 9) for tokens in expected), "a stop token is to be met"
    # One iteration a token, and the trace knows it.
    assert engine.statistics.iterations == engine.statistics.computed
    header = read(trace).header
    assert (header.checkpoint, header.fingerprint) == (str(directory), fingerprint(load_checkpoint(directory).model))
    assert await anyio.to_thread.run_sync(traces_command, ["replay", str(trace), "--verify"]) == 0


@pytest.mark.anyio
async def test_carried_thought_is_of_no_use_to_a_model_without_state(tmp_path: Path) -> None:
    reference = make_llama()
    directory = save_llama(tmp_path, reference)
    prompt = prompts()[3]
    for carry in ("raw", "normed"):
        policy = Policy(depth=Fixed(carry=carry))
        async with Engine.open(directory, policy=policy, **SIZES) as engine, engine.thread(prompt) as thread:
            assert (await thread.generate(max_tokens=NEW)).tokens == generated(reference, prompt)
