"""Threads for which a smaller model guesses: they say what they say without it, and nothing of its guesses stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import DepthPolicy, Fixed, Policy, Speculative
from runtime import CheckpointError, Engine
from runtime.backend.interface import Tick, TickResult
from runtime.device.build import build_loop
from runtime.device.settings import EngineSettings
from runtime.link.commands import CloseThread, Extend, Finished, Generate, Interrupt, OpenThread, ThreadPath
from runtime.link.events import GenerateFinished
from runtime.link.sampling import Sampling
from runtime.model.checkpoint import load_checkpoint, save_checkpoint
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model
from tests.llamas import make_llama, save_llama
from traces import imbalances, read

PROMPT = (3, 17, 5, 30, 11, 8)
SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 96, "max_in_flight": 48, "prefill_chunk": 16}
GUESSED = Speculative(drafts="model", lookahead=4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("large") / "llama", make_llama(1))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same vocabulary, which is seldom right."""
    return save_llama(tmp_path_factory.mktemp("small") / "llama", make_llama(2, num_hidden_layers=1))


def solo_over(model: Transformer, drafts: Transformer | None, policy: DepthPolicy, **changes: Any) -> Solo:
    return Solo(build_loop(model, EngineSettings(**SIZES | changes), policy, drafts=drafts))


def said(solo: Solo, policy: DepthPolicy, sampling: Sampling, **changes: Any) -> dict[ThreadPath, Finished]:
    """What five threads say that run together, one of them after another message."""
    for number in range(5):
        solo.send(
            OpenThread(thread=(number,), seed=number, depth=policy),
            Extend((number,), PROMPT[number:]),
            Generate(thread=(number,), max_tokens=12, sampling=sampling, **changes),
        )
    found = {report.thread: report for report in solo.run() if isinstance(report, Finished)}
    solo.send(Extend((0,), (4, 4)), Generate(thread=(0,), max_tokens=9, sampling=sampling))
    (again,) = [report for report in solo.run() if isinstance(report, Finished)]
    return found | {(0, 0): again}


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.9),
    Sampling(temperature=1.1, top_k=7, repetition_penalty=1.3, logprobs=3),
]


# On the slow backend, the sampling that has all the others' parts.
SAID = [
    *(("native", depth, sampling) for depth in (1, 3) for sampling in SAMPLINGS),
    *(("torch", depth, SAMPLINGS[2]) for depth in (1, 3)),
]


@pytest.mark.parametrize(("backend", "depth", "sampling"), SAID)
def test_what_is_said_is_the_same(backend: str, depth: int, sampling: Sampling) -> None:
    model, drafts = tiny_model(1), tiny_model(7)
    changes = {"backend": backend, "deterministic": backend == "torch", "most_iterations": 3}
    plain = said(solo_over(model, None, Fixed(depth), **changes), Fixed(depth), sampling)
    policy = Speculative(max_iterations=depth, drafts="model", lookahead=3)
    for guesser in (model, drafts):
        solo = solo_over(model, guesser, policy, **changes)
        found = said(solo, policy, sampling)
        for path, expected in plain.items():
            assert found[path].tokens == expected.tokens
            assert found[path].logprobs == expected.logprobs
            assert found[path].depths == expected.depths
        work, journal = solo.core.journal.work, solo.core.journal
        assert work.iterations == sum(report.work.iterations for report in found.values())
        assert work.computed == sum(report.work.computed for report in found.values())
        assert 0 < journal.accepted <= journal.drafted or guesser is drafts
        for number in range(5):
            solo.send(CloseThread((number,)))
        assert solo.core.statistics().pages_used == 0


def test_guesses_of_the_model_itself_save_ticks() -> None:
    model = tiny_model(1)
    ticks = []
    for policy in (Fixed(3), Speculative(max_iterations=3, drafts="model", lookahead=4)):
        solo = solo_over(model, model, policy, backend="torch", most_iterations=3)
        finished = solo.generate(list(PROMPT), policy, 25)
        assert len(finished.tokens) == 25
        ticks.append(solo.core.journal.ticks)
    # Each round says the four tokens that were guessed and one more.
    assert ticks == [75, 15]
    assert solo.core.journal.accepted == solo.core.journal.drafted == 20


def test_without_a_draft_model_nothing_is_guessed() -> None:
    solo = solo_over(tiny_model(1), None, GUESSED)
    assert solo.generate(list(PROMPT), GUESSED, 8).tokens == (
        solo_over(tiny_model(1), None, Fixed()).generate(list(PROMPT), Fixed(), 8).tokens
    )
    assert solo.core.journal.drafted == 0


@given(st.data())
@settings(max_examples=25)
def test_interrupts_evictions_and_small_pools_change_nothing(data: st.DataObject) -> None:
    """Threads that are cut back, sent more, run out of pages and lanes, with guesses right and wrong."""
    model, drafts = tiny_model(1), tiny_model(data.draw(st.sampled_from([1, 7])))
    changes: dict[str, Any] = {
        "num_pages": data.draw(st.integers(14, 40)),
        "max_in_flight": data.draw(st.sampled_from([16, 18, 24])),
        "backend": "native",
        "most_iterations": 3,
    }
    policy = Speculative(drafts="model", lookahead=data.draw(st.integers(1, 5)), adaptive=data.draw(st.booleans()))
    sampling = data.draw(st.sampled_from(SAMPLINGS[:2]))
    solo = solo_over(model, drafts, policy, **changes)
    count = data.draw(st.integers(1, 4))
    contexts: dict[ThreadPath, list[int]] = {}
    for number in range(count):
        contexts[number,] = list(PROMPT[: data.draw(st.integers(1, 6))])
        solo.send(OpenThread(thread=(number,), seed=3, depth=policy), Extend((number,), tuple(contexts[number,])))
    for _ in range(data.draw(st.integers(1, 3))):
        tokens = data.draw(st.integers(1, 9))
        for path in contexts:
            solo.send(Generate(thread=path, max_tokens=tokens, sampling=sampling))
        for _ in range(data.draw(st.integers(0, 12))):
            if solo.core.has_work:
                solo.core.step()
                solo.core.check_integrity()
        cut = data.draw(st.sampled_from(sorted(contexts)))
        kept = data.draw(st.integers(0, 3))
        solo.send(Interrupt(cut, keep=kept))
        done = {report.thread: report for report in solo.run() if isinstance(report, Finished)}
        for path, context in contexts.items():
            said_now = list(done[path].tokens) if path in done else []
            context += said_now[:kept] if path == cut else said_now
        more = tuple(data.draw(st.lists(st.integers(0, 39), max_size=3)))
        if more:
            solo.send(Extend((0,), more))
            contexts[0,] += more
    for path, context in contexts.items():
        assert solo.core.threads[path].tokens.tolist() == context
        solo.send(Generate(thread=path, max_tokens=4, sampling=sampling))
    last = {report.thread: report.tokens for report in solo.run() if isinstance(report, Finished)}
    for path, context in contexts.items():
        alone = solo_over(model, None, Fixed(), backend="native", most_iterations=3)
        alone.send(
            OpenThread(thread=path, seed=3, depth=Fixed()),
            Extend(path, tuple(context)),
            Generate(thread=path, max_tokens=4, sampling=sampling),
        )
        (expected,) = [report for report in alone.run() if isinstance(report, Finished)]
        assert last[path] == expected.tokens


def test_a_tick_that_does_not_fit_is_retried_without_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(1)
    plain = said(solo_over(model, None, Fixed(), backend="torch"), Fixed(), Sampling())
    solo = solo_over(model, model, GUESSED, backend="torch")
    tick_of, refused = solo.backend.tick, [0]

    def tick(given: Tick) -> TickResult:
        if len(given.entering.lane) > 6:
            refused[0] += 1
            raise torch.OutOfMemoryError
        return tick_of(given)

    monkeypatch.setattr(solo.core.backend, "tick", tick)
    found = said(solo, GUESSED, Sampling())
    assert refused[0] > 0
    assert {path: report.tokens for path, report in found.items()} == {
        path: report.tokens for path, report in plain.items()
    }


def test_a_draft_model_that_fails_costs_guesses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(1)
    solo = solo_over(model, model, GUESSED)

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("runtime.device.draft_model.DraftModel.draft", fail)
    expected = solo_over(model, None, Fixed()).generate(list(PROMPT), Fixed(), 8)
    assert solo.generate(list(PROMPT), GUESSED, 8).tokens == expected.tokens
    assert solo.core.journal.drafted == 0


@pytest.mark.anyio
async def test_an_engine_is_opened_with_a_draft_model(llama: Path, other: Path, tmp_path: Path) -> None:
    answers = []
    for number, drafts in enumerate((None, llama, other)):
        trace = tmp_path / f"{number}.trace"
        async with Engine.open(llama, drafts=drafts, trace=trace, **SIZES) as engine:
            answers.append(await engine.run(list(PROMPT), max_tokens=20))
        recorded = read(trace)
        assert not imbalances(recorded.events)
        (ended,) = [event for event in recorded.events if isinstance(event, GenerateFinished)]
        assert (ended.drafted > 0) == (drafts is not None)
        assert (ended.accepted > 0) == (drafts is llama) or drafts is other
    assert answers[0].tokens == answers[1].tokens == answers[2].tokens


@pytest.mark.anyio
async def test_a_policy_that_is_given_counts(llama: Path) -> None:
    async with Engine.open(llama, drafts=llama, policy=Policy(depth=Fixed()), **SIZES) as engine:
        assert len((await engine.run(list(PROMPT), max_tokens=5)).tokens) == 5


def test_another_vocabulary_is_refused(llama: Path, tmp_path: Path) -> None:
    async def opened(drafts: Path) -> None:
        async with Engine.open(llama, drafts=drafts, **SIZES):
            raise AssertionError("not to be opened")

    larger = save_llama(tmp_path / "larger", make_llama(1, vocab_size=41))
    with pytest.raises(CheckpointError, match=r"has 41 tokens, and .* has 40; a draft model needs the same vocabulary"):
        anyio.run(opened, larger)
    with pytest.raises(CheckpointError, match="nowhere"):
        anyio.run(opened, tmp_path / "nowhere")


def test_a_draft_model_may_have_a_shorter_context(tmp_path: Path) -> None:
    model = load_checkpoint(save_llama(tmp_path / "large", make_llama(1))).model
    short = load_checkpoint(save_llama(tmp_path / "short", make_llama(1, max_position_embeddings=12))).model
    save_checkpoint(tmp_path / "again", short)
    expected = solo_over(model, None, Fixed()).generate(list(PROMPT), Fixed(), 30)
    solo = solo_over(model, short, GUESSED)
    assert solo.generate(list(PROMPT), GUESSED, 30).tokens == expected.tokens
    assert 0 < solo.core.journal.drafted < 20
