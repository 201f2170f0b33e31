"""Numbers at their edges, through the whole engine and on both backends."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Fixed
from runtime import Engine, EngineSettings, NumericalError, ReasoningThread, Sampling
from runtime.link.commands import Extend, Finished, Generate, OpenThread
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model
from tests.llamas import make_llama, save_llama

BACKENDS = ("torch", "native")
SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 64, "max_in_flight": 16, "prefill_chunk": 8}
LAST_GOOD, VOCABULARY = 7, 16


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"), make_llama(3))


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that counts upwards, whose weights are finite and whose logits after `LAST_GOOD` are not."""
    model = make_llama(
        vocab_size=VOCABULARY,
        hidden_size=VOCABULARY,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(VOCABULARY))
        model.model.norm.weight.fill_(1.0)
        for token in range(VOCABULARY - 1):
            model.lm_head.weight[token + 1, token] = 10.0
        model.lm_head.weight[2, LAST_GOOD] = -3e38
    return save_llama(tmp_path_factory.mktemp("counting"), model)


@pytest.mark.anyio
@pytest.mark.parametrize("backend", BACKENDS)
async def test_any_positive_temperature_is_one_that_can_be_drawn_with(llama: Path, backend: Any) -> None:
    async with Engine.open(llama, backend=backend, **SIZES) as engine:

        async def say(sampling: Sampling) -> tuple[tuple[int, ...], tuple[float, ...]]:
            async with engine.thread([1, 2, 3]) as thread:
                said = await thread.generate(4, sampling=sampling)
            return said.tokens, said.logprobs

        greedy, _ = await say(Sampling())
        for top_k in (None, 40):
            for temperature in (5e-324, 1e-46, 1e-45, 1e-38):
                tokens, logprobs = await say(Sampling(temperature=temperature, top_k=top_k))
                assert tokens == greedy
                assert logprobs == (0.0,) * 4
            for temperature in (1e39, 1e300):
                _, logprobs = await say(Sampling(temperature=temperature, top_k=top_k))
                assert logprobs == pytest.approx([-math.log(40)] * 4)


@pytest.mark.anyio
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
async def test_logits_that_are_not_finite_end_their_own_thread(counting: Path, backend: Any, dtype: Any) -> None:
    async def fail(thread: ReasoningThread, sampling: Sampling, is_streamed: bool, shown: list[int]) -> None:
        if not is_streamed:
            await thread.generate(12, sampling=sampling)
        async for chunk in thread.stream(12, sampling=sampling):
            shown.extend(chunk.tokens)

    samplings = (Sampling(), Sampling(temperature=0.1), Sampling(logprobs=2))
    async with Engine.open(counting, backend=backend, dtype=dtype, **SIZES) as engine:
        for sampling, is_streamed in itertools.product(samplings, (False, True)):
            async with engine.thread([LAST_GOOD + 1]) as other, engine.thread([2]) as thread:
                shown: list[int] = []
                position = rf"the logits for the token at position {LAST_GOOD - 1} are not"
                with pytest.raises(NumericalError, match=rf"thread \({thread.path[0]},\): {position}"):
                    await fail(thread, sampling, is_streamed, shown)
                assert shown == (list(range(3, LAST_GOOD + 1)) if is_streamed else [])
                assert thread.tokens == (2, *shown)
                said = await other.generate(4, sampling=sampling)
                assert said.tokens == tuple(range(LAST_GOOD + 2, LAST_GOOD + 6))


@pytest.mark.anyio
@pytest.mark.parametrize("backend", BACKENDS)
async def test_llamas_filters_are_those_of_transformers_unless_asked_otherwise(counting: Path, backend: Any) -> None:
    async with Engine.open(counting, backend=backend, **SIZES) as engine:

        async def says(filters: str) -> int:
            sampling = msgspec.convert({"temperature": 40.0, "top_p": 0.4, "filters": filters}, Sampling)
            async with engine.thread([1]) as thread:
                said = await thread.generate(1, sampling=sampling)
            return said.tokens[0]

        # After token 1, token 2 has a share of 0.154, and each of the fifteen others 0.056.
        rules = ("model", "transformers", "huginn")
        sizes = {filters: len({await says(filters) for _ in range(80)}) for filters in rules}
        assert sizes == {"model": 6, "transformers": 6, "huginn": 5}


def tokens_of(model: Transformer, backend: Any, samplings: list[Sampling]) -> list[tuple[Any, ...]]:
    """Tokens and log-probabilities of threads that run together, one for each sampling."""
    solo = Solo.over(model, EngineSettings(**SIZES | {"backend": backend, "deterministic": True}), Fixed(2))
    for number, sampling in enumerate(samplings):
        solo.send(
            OpenThread(thread=(number,), seed=number, depth=Fixed(2)),
            Extend((number,), (5, 3, number)),
            Generate(thread=(number,), max_tokens=8, sampling=sampling),
        )
    found = {report.thread: report for report in solo.run() if isinstance(report, Finished)}
    return [(found[number,].tokens, found[number,].logprobs) for number in range(len(samplings))]


@settings(max_examples=25)
@given(
    st.sampled_from(BACKENDS),
    st.lists(
        st.builds(
            Sampling,
            temperature=st.sampled_from([0.0, 1e-46, 0.4, 1.0, 5.0, 1e39]),
            top_k=st.sampled_from([None, None, 3]),
            top_p=st.sampled_from([None, None, 0.8]),
            min_p=st.sampled_from([None, None, 0.1]),
            repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
            filters=st.sampled_from(["model", "transformers", "huginn"]),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 50),
)
def test_asking_for_logprobs_changes_nothing(backend: Any, samplings: list[Sampling], count: int) -> None:
    model = tiny_model(3)
    asking = [msgspec.structs.replace(sampling, logprobs=count) for sampling in samplings]
    assert tokens_of(model, backend, asking) == tokens_of(model, backend, samplings)
