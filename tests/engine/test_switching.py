"""Threads for which two models speak in turns: each says what it would say after the same context by itself, and the
policy alone decides which does."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import EntropySwitch, EvenBudget, Fixed, Policy
from policies.training.thread_tokens import check_replayable, threads_in
from runtime import Engine, PolicyError
from runtime.device.build import build_loop
from runtime.device.settings import EngineSettings
from runtime.link.commands import Extend, Failed, Finished, Generate, Interrupt, OpenThread, ThreadPath
from runtime.link.events import Sampled
from runtime.link.sampling import Sampling
from runtime.model.checkpoint import load_checkpoint
from runtime.model.transformer import Transformer
from tests.engine.recorded_trees import verified
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model
from tests.llamas import make_llama, save_llama
from traces import imbalances, read

PROMPT = (3, 17, 5, 30, 11, 8)
SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 96, "max_in_flight": 48, "prefill_chunk": 16, "cpu_threads": 1}
MIDDLE = 1.8
"""Nats: some of what these models say is clearer, and some is not."""
SWITCH = EntropySwitch(MIDDLE)
SAMPLINGS = [Sampling(), Sampling(temperature=0.9), Sampling(temperature=1.1, top_k=7, logprobs=3)]


class Next(NamedTuple):
    token: int
    logprob: float
    entropy: float


def solo_over(model: Transformer, drafts: Transformer | None, **changes: Any) -> Solo:
    policy = Fixed() if drafts is None else SWITCH
    given = EngineSettings(**SIZES | {"backend": "native"} | changes)
    return Solo(build_loop(model, given, policy, drafts=drafts))


def speaker(model: Transformer, **changes: Any) -> Callable[[ThreadPath, tuple[int, ...], Sampling], Next]:
    """What a model says next, all by itself."""

    @functools.cache
    def after(path: ThreadPath, context: tuple[int, ...], sampling: Sampling) -> Next:
        solo = solo_over(model, None, **changes)
        solo.send(
            OpenThread(thread=path, seed=5, depth=Fixed()),
            Extend(path, context),
            Generate(thread=path, max_tokens=1, sampling=sampling, entropies=True),
        )
        (report,) = [report for report in solo.run() if isinstance(report, Finished)]
        return Next(report.tokens[0], report.logprobs[0], report.entropies[0])

    return after


class Pair(NamedTuple):
    large: Transformer
    small: Transformer

    def spoken(
        self,
        path: ThreadPath,
        context: tuple[int, ...],
        count: int,
        policy: EntropySwitch,
        sampling: Sampling,
        **own: Any,
    ) -> tuple[list[Next], list[bool]]:
        """What is said after a context, and whether the small model says it."""
        models = speaker(self.large, **own), speaker(self.small, **own)
        said, is_small = list[Next](), list[bool]()
        for _ in range(count):
            clear = bool(said) and policy.is_clear([each.entropy for each in said])
            said.append(models[clear](path, context, sampling))
            is_small.append(clear)
            context += (said[-1].token,)
        return said, is_small


@pytest.fixture(scope="module", params=["causal", "recurrent"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if request.param == "recurrent":
        return Pair(tiny_model(1), tiny_model(7))
    directory = tmp_path_factory.mktemp("pair")
    large = save_llama(directory / "large", make_llama(1))
    small = save_llama(directory / "small", make_llama(2, num_hidden_layers=1))
    return Pair(load_checkpoint(large).model, load_checkpoint(small).model)


def open_threads(solo: Solo, count: int, policy: EntropySwitch, sampling: Sampling, tokens: int) -> None:
    for number in range(count):
        solo.send(
            OpenThread(thread=(number,), seed=5, depth=policy),
            Extend((number,), PROMPT[number:]),
            Generate(thread=(number,), max_tokens=tokens, sampling=sampling),
        )


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "filtered"])
@pytest.mark.parametrize("window", [1, 3])
def test_each_model_says_what_it_would_say_by_itself(pair: Pair, backend: str, sampling: Sampling, window: int) -> None:
    own: dict[str, Any] = {"backend": backend, "deterministic": backend == "torch"}
    policy = EntropySwitch(MIDDLE, window)
    solo = solo_over(pair.large, pair.small, **own)
    open_threads(solo, 5, policy, sampling, 14)
    spoken_by_small = list[bool]()
    for report in solo.run():
        assert isinstance(report, Finished)
        said, is_small = pair.spoken(report.thread, PROMPT[report.thread[0] :], 14, policy, sampling, **own)
        assert [*zip(report.tokens, report.logprobs, report.entropies, strict=True)] == said
        assert [depth == 0 for depth in report.depths] == is_small
        assert len(report.top_logprobs) == (14 if sampling.logprobs else 0)
        spoken_by_small += is_small
    assert 5 < sum(spoken_by_small) < len(spoken_by_small) - 10, "both models are to speak"


@pytest.mark.parametrize(("threshold", "small"), [(0.0, 0), (1e9, 11)])
def test_thresholds_at_which_one_model_speaks(pair: Pair, threshold: float, small: int) -> None:
    solo = solo_over(*pair)
    found = solo.generate(list(PROMPT), EntropySwitch(threshold), 12)
    assert sum(depth == 0 for depth in found.depths) == small
    if not small:
        assert found.tokens == solo_over(pair.large, None).generate(list(PROMPT), Fixed(), 12).tokens


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_nothing_else_changes_what_is_said(data: st.DataObject) -> None:
    """Threads that are cut back, sent more, forked, and run out of pages, rows and lanes."""
    pair = Pair(tiny_model(1), tiny_model(7))
    changes: dict[str, Any] = {
        "num_pages": data.draw(st.integers(14, 40)),
        "max_in_flight": data.draw(st.sampled_from([16, 24])),
    }
    policy = EntropySwitch(MIDDLE, data.draw(st.integers(1, 2)))
    sampling = data.draw(st.sampled_from(SAMPLINGS[:2]))
    solo = solo_over(pair.large, pair.small, **changes)
    contexts: dict[ThreadPath, tuple[int, ...]] = {}
    for number in range(data.draw(st.integers(1, 4))):
        contexts[number,] = PROMPT[: data.draw(st.integers(1, 6))]
        solo.send(OpenThread(thread=(number,), seed=5, depth=policy), Extend((number,), contexts[number,]))
    for round_number in range(data.draw(st.integers(1, 3))):
        tokens = data.draw(st.integers(1, 9))
        for path in contexts:
            solo.send(Generate(thread=path, max_tokens=tokens, sampling=sampling))
        for _ in range(data.draw(st.integers(0, 12))):
            if solo.core.has_work:
                solo.core.step()
                solo.core.check_integrity()
        cut, kept = data.draw(st.sampled_from(sorted(contexts))), data.draw(st.integers(0, 3))
        solo.send(Interrupt(cut, keep=kept))
        solo.run()
        for path, context in contexts.items():
            now = tuple(solo.core.threads[path].tokens)
            said, _ = pair.spoken(path, context, len(now) - len(context), policy, sampling)
            assert now == context + tuple(each.token for each in said)
            assert len(said) <= kept if path == cut else len(said) == tokens
            contexts[path] = now
        if more := tuple(data.draw(st.lists(st.integers(0, 39), max_size=3))):
            solo.send(Extend((0,), more))
            contexts[0,] += more
        if data.draw(st.booleans()):
            child = (0, round_number)
            solo.send(OpenThread(thread=child, seed=5, depth=policy, inherits=(0,)))
            contexts[child] = contexts[0,]


def test_a_small_model_that_can_do_no_more_leaves_the_word_to_the_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = load_checkpoint(save_llama(tmp_path / "large", make_llama(1))).model
    short = load_checkpoint(save_llama(tmp_path / "short", make_llama(2, max_position_embeddings=12))).model
    always = EntropySwitch(1e9)
    depths = solo_over(large, short).generate(list(PROMPT), always, 12).depths
    assert depths == (1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1)

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("runtime.device.draft_model.DraftModel.say", fail)
    found = solo_over(large, short).generate(list(PROMPT), always, 12)
    assert set(found.depths) == {1}
    assert found.tokens == solo_over(large, None).generate(list(PROMPT), Fixed(), 12).tokens


def test_stop_tokens_and_limits_hold_for_both(pair: Pair) -> None:
    whole = solo_over(*pair).generate(list(PROMPT), EntropySwitch(1e9), 8).tokens
    ended = solo_over(*pair).generate(list(PROMPT), EntropySwitch(1e9), 8, stop_tokens=frozenset(whole[4:5]))
    assert ended.tokens == whole[: whole.index(whole[4]) + 1]
    assert ended.reason == "stop"


@pytest.mark.parametrize(
    ("policy", "said"),
    [(SWITCH, "there is no second model"), (EvenBudget(SWITCH), "bounds that change")],
)
def test_what_cannot_be_is_refused(policy: Any, said: str) -> None:
    model = tiny_model(1)
    solo = solo_over(model, None if policy is SWITCH else model)
    solo.send(OpenThread(thread=(0,), seed=0, depth=policy), Extend((0,), PROMPT))
    solo.send(Generate(thread=(0,), max_tokens=3, sampling=Sampling()))
    (report,) = solo.run()
    assert isinstance(report, Failed)
    assert isinstance(report.error, PolicyError)
    assert said in str(report.error)


class UndecidedSwitch(EntropySwitch, frozen=True):
    def is_clear(self, entropies: Sequence[float]) -> bool:
        if len(entropies) == 3:
            raise ArithmeticError("no idea")
        return True


def test_a_policy_that_raises_ends_its_thread_alone(pair: Pair) -> None:
    solo = solo_over(*pair)
    for number, policy in enumerate((UndecidedSwitch(), EntropySwitch(1e9))):
        solo.send(OpenThread(thread=(number,), seed=0, depth=policy), Extend((number,), PROMPT))
        solo.send(Generate(thread=(number,), max_tokens=6, sampling=Sampling()))
    reports = {type(report): report for report in solo.run()}
    failed, finished = reports[Failed], reports[Finished]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, PolicyError)
    assert "no idea" in str(failed.error)
    assert failed.work.generated == 3
    assert isinstance(finished, Finished)
    assert len(finished.tokens) == 6


@pytest.mark.anyio
@pytest.mark.parametrize("backend", ["torch", "native"])
async def test_a_trace_says_who_spoke_and_is_executed_again(tmp_path: Path, backend: str) -> None:
    large = save_llama(tmp_path / "large", make_llama(1))
    small = save_llama(tmp_path / "small", make_llama(2, num_hidden_layers=1))
    path = tmp_path / "run.trace"
    given = SIZES | {"backend": backend, "sampling": SAMPLINGS[1], "num_pages": 24}
    async with (
        Engine.open(large, drafts=small, policy=Policy(depth=SWITCH), trace=path, **given) as engine,
        engine.thread(list(PROMPT)) as root,
    ):
        answer = await root.generate(12)
        await root.join([root.fork([number], max_tokens=8) for number in range(3)])
        again = await root.generate(5)
    trace = read(path)
    depths = [event.depth for event in trace.events if isinstance(event, Sampled) and event.thread == (0,)]
    assert depths == [*answer.depths, *again.depths]
    assert 0 in depths
    assert 1 in depths
    assert not imbalances(trace.events)
    assert trace.header.drafts == str(small)
    assert await verified(path) == 0
    shutil.rmtree(small)
    assert await verified(path) == 1, "without the second model, who spoke cannot speak again"
    with pytest.raises(ValueError, match="tokens of a second model"):
        check_replayable(trace, threads_in(trace))
