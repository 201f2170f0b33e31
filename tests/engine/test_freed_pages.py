"""Where every layer has a window, pages that no window reaches are given back, and nothing is said differently."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import Fixed
from runtime.device.settings import EngineSettings
from runtime.link.commands import Extend, Finished, Generate, Interrupt, OpenThread
from runtime.link.sampling import Sampling
from runtime.model.checkpoint import load_checkpoint
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo
from tests.families.checkpoints import BACKENDS, CONTEXT, WINDOW, make, save
from tests.families.test_parity import run_dense

PAGE, CHUNK = 4, 8
MOST = math.ceil((WINDOW + CHUNK) / PAGE) + 1
"""Pages that a thread needs: those of a chunk and of the window before it, wherever they begin."""


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    return load_checkpoint(save(tmp_path_factory.mktemp("windowed"), make("mistral", "windows"))).model


def solo_over(model: Transformer, backend: str, pages: int, **changes: Any) -> Solo:
    fields = {"num_pages": pages, "page_size": PAGE, "prefill_chunk": CHUNK, "max_in_flight": 16, "cpu_threads": 1}
    return Solo.over(model, EngineSettings(**{**fields, "backend": backend, **changes}), Fixed(1))


def peak(solo: Solo) -> int:
    """Runs until there is no work; the most pages that were in use after a tick."""
    most = 0
    while solo.core.has_work:
        solo.core.step()
        solo.core.check_integrity()
        most = max(most, solo.core.statistics().pages_used)
    return most


def check_said(solo: Solo, model: Transformer) -> int:
    """Compares every sampled token of every open thread with a dense pass; returns how many there are."""
    count = 0
    for thread in solo.core.threads:
        if not thread.tokens:
            continue
        best = run_dense(model, torch.tensor([list(thread.tokens)]))[0].argmax(-1).tolist()
        for span in thread.spans:
            if span.sampled:
                assert list(thread.tokens[span.start : span.end]) == best[span.start - 1 : span.end - 1]
                count += span.end - span.start
    return count


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prompt", [3, 60])
def test_a_context_needs_the_pages_of_its_window(windowed: Transformer, backend: str, prompt: int) -> None:
    """Also in a pool that could not hold the whole of it."""
    solo = solo_over(windowed, backend, MOST)
    tokens = tuple(range(prompt % 7, prompt % 7 + prompt % 40)) + (5,) * (prompt - prompt % 40)
    solo.send(OpenThread(thread=(0,), seed=0, depth=Fixed(1)), Extend((0,), tokens))
    solo.send(Generate(thread=(0,), max_tokens=CONTEXT - prompt, sampling=Sampling()))
    assert peak(solo) <= MOST < CONTEXT // PAGE
    assert check_said(solo, windowed) == CONTEXT - prompt


def test_layers_that_see_all_keep_all(tmp_path: Path) -> None:
    model = load_checkpoint(save(tmp_path, make("qwen2", "layer-types"))).model
    solo = solo_over(model, "torch", 40)
    solo.send(OpenThread(thread=(0,), seed=0, depth=Fixed(1)), Extend((0,), tuple(range(30))))
    solo.send(Generate(thread=(0,), max_tokens=50, sampling=Sampling()))
    assert peak(solo) == math.ceil(79 / PAGE)
    assert check_said(solo, model) == 50


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("reuse", "recomputed", "cached"), [(False, 22, 0), (True, 2, 20)])
def test_a_cancelled_generate_is_rolled_back_beyond_what_was_given_back(
    windowed: Transformer, backend: str, reuse: bool, recomputed: int, cached: int
) -> None:
    """What it was said after is computed again, or found again."""
    solo = solo_over(windowed, backend, 40, reuse_prefixes=reuse)
    solo.send(OpenThread(thread=(0,), seed=0, depth=Fixed(1)), Extend((0,), tuple(range(20))))
    solo.send(Generate(thread=(0,), max_tokens=50, sampling=Sampling()))
    for _ in range(40):
        if solo.core.has_work:
            solo.core.step()
    solo.send(Interrupt((0,), keep=2))
    solo.run()
    thread = solo.core.threads[0,]
    assert (len(thread.tokens), thread.computed, thread.held) == (22, 0, [])
    solo.send(Generate(thread=(0,), max_tokens=30, sampling=Sampling()))
    (finished,) = [report for report in solo.run() if isinstance(report, Finished)]
    assert (finished.work.recomputed, finished.work.cached_tokens) == (recomputed, cached)
    assert check_said(solo, windowed) == 32


def test_a_prompt_is_found_again_though_its_thread_gave_it_back(windowed: Transformer) -> None:
    solo = solo_over(windowed, "torch", 60)
    prompt = tuple(range(32))
    for path in ((0,), (1,)):
        solo.send(OpenThread(thread=path, seed=0, depth=Fixed(1)), Extend(path, prompt))
        solo.send(Generate(thread=path, max_tokens=20, sampling=Sampling()))
        reports = [report for report in solo.run() if isinstance(report, Finished)]
    assert reports[0].work.cached_tokens == 28
    assert check_said(solo, windowed) == 40


WHO = st.integers(0, 3)
ACTIONS = st.one_of(
    st.tuples(st.just("open"), st.integers(1, 30), st.integers(0, 5)),
    st.tuples(st.just("fork"), WHO, st.just(0)),
    st.tuples(st.just("extend"), WHO, st.integers(1, 12)),
    st.tuples(st.just("generate"), WHO, st.integers(20, 40)),
    st.tuples(st.just("generate"), WHO, st.integers(1, 40)),
    st.tuples(st.just("interrupt"), WHO, st.integers(0, 8)),
    st.tuples(st.just("step"), st.integers(1, 40), st.just(0)),
    st.tuples(st.just("step"), st.integers(10, 40), st.just(0)),
    st.tuples(st.just("settle"), st.just(0), st.just(0)),
)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(actions=st.lists(ACTIONS, min_size=4, max_size=30), pages=st.integers(MOST, 3 * MOST))
def test_random_programs_say_what_dense_passes_say(
    windowed: Transformer, backend: str, actions: list[tuple[str, int, int]], pages: int
) -> None:
    """Forks, evictions, roll-backs and shared prompts in a small pool; what cannot be done then is refused."""
    solo = solo_over(windowed, backend, pages, max_in_flight=9)
    opened = 0
    for action, first, second in [("open", 9, 1), ("generate", 0, 20), *actions]:
        path = (first % max(opened, 1),)
        match action:
            case "open" | "fork":
                inherits = path if action == "fork" else None
                solo.send(OpenThread(thread=(opened,), seed=0, depth=Fixed(1), inherits=inherits))
                if action == "open":
                    solo.send(Extend((opened,), tuple((second + 3 * i) % 40 for i in range(first))))
                opened += 1
            case "extend":
                solo.send(Extend(path, tuple((first + 7 * i) % 40 for i in range(second))))
            case "generate":
                solo.send(Generate(thread=path, max_tokens=second, sampling=Sampling()))
            case "interrupt":
                solo.send(Interrupt(path, keep=second))
            case "step":
                for _ in range(first):
                    if solo.core.has_work:
                        solo.core.step()
                        solo.core.check_integrity()
            case "settle":
                solo.run()
    solo.run()
    check_said(solo, windowed)
