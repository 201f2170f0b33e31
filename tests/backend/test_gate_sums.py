"""What an exit gate has said of tokens in flight is not lost, and not doubled, where a tick does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from policies import GateExit
from runtime.device.settings import EngineSettings
from runtime.link.commands import Extend, Finished, Generate, OpenThread
from runtime.link.sampling import Sampling
from runtime.model.checkpoint import load_checkpoint
from tests.engine.solo import Solo
from tests.families.goldens import HOME

POLICY = GateExit(0.5)


def said(failing: str | None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Tokens, depths and exit values of two threads, the second of which enters while the first has tokens in flight;
    `failing` is a step of the backend that lacks memory once in that tick."""
    settings = EngineSettings(
        num_pages=16, max_in_flight=16, prefill_chunk=8, most_iterations=4, backend="torch", deterministic=True
    )
    solo = Solo.over(load_checkpoint(HOME / "ouro_a").model, settings, POLICY)
    for number in range(2):
        solo.send(
            OpenThread(thread=(number,), seed=0, depth=POLICY),
            Extend((number,), (3 + number, 5, 7)),
            Generate(thread=(number,), max_tokens=6, sampling=Sampling()),
        )
        if number == 0:
            solo.core.step()
    if failing is not None:
        step, failures = getattr(solo.backend, failing), [1]

        def lack_memory(*given: Any) -> Any:
            if failures:
                failures.pop()
                raise torch.OutOfMemoryError
            return step(*given)

        monkeypatch.setattr(solo.backend, failing, lack_memory)
    finished = sorted((each for each in solo.run() if isinstance(each, Finished)), key=lambda each: each.thread)
    return [(each.tokens, each.depths, tuple(solo.tests[each.thread])) for each in finished]


@pytest.mark.parametrize("failing", ["_prelude", "_iterate", "_gates", "_logits"])
def test_a_tick_that_does_not_fit_counts_once(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(failing, monkeypatch) == said(None, monkeypatch)
