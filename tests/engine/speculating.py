"""A thread that speculates, one that does not, and what drafts the first one makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from policies import DepthPolicy, Fixed, Speculative
from runtime.backend.interface import Tick, TickResult
from runtime.device.settings import EngineSettings
from runtime.link.commands import (
    Extend,
    Failed,
    Finished,
    Generate,
    OpenThread,
    ThreadPath,
)
from runtime.link.sampling import Sampling
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model

ROOMY = EngineSettings(
    num_pages=128, page_size=4, max_in_flight=64, prefill_chunk=16, most_iterations=6, deterministic=True
)

PROMPT = (3, 17, 5, 30, 11, 8)

PLAIN = Fixed(6)


@dataclass
class Drafts:
    """Every draft that a backend makes, by the position that it guesses; the last of several."""

    at: dict[int, int] = field(default_factory=dict)
    position: dict[int, int] = field(default_factory=dict)
    """Of the token in each lane."""

    def watch(self, solo: Solo) -> None:
        tick_of = solo.backend.tick

        def tick(tick: Tick) -> TickResult:
            entering = tick.entering
            self.position |= zip(entering.lane.tolist(), entering.position.tolist(), strict=True)
            result = tick_of(tick)
            for lane, token in zip(result.drafting.tolist(), result.drafted.tolist(), strict=True):
                self.at[self.position[lane] + 1] = token
            return result

        pytest.MonkeyPatch().setattr(solo.core.backend, "tick", tick)

    def rounds(self, tokens: list[int], start: int, look: int) -> list[int]:
        """Tokens appended in each round of draft and verification, as the reference does it from position `start`."""
        found = []
        while start < len(tokens):
            right = 0
            while right < look and self.at.get(start + right) == tokens[start + right]:
                right += 1
            found.append(min(right + 1, look))
            start += found[-1]
        return found


def solo_over(seed: int = 1, engine: EngineSettings = ROOMY, coda: int = 1) -> Solo:
    return Solo.over(tiny_model(seed, coda=coda), engine, PLAIN)


def ask(solo: Solo, policy: DepthPolicy, tokens: int, path: ThreadPath = (0,), **changes: Any) -> None:
    solo.send(
        OpenThread(thread=path, seed=5, depth=policy),
        Extend(path, PROMPT),
        Generate(thread=path, max_tokens=tokens, **{"sampling": Sampling(), **changes}),
    )


def only(solo: Solo) -> Finished:
    (finished,) = [report for report in solo.run() if isinstance(report, Finished | Failed)]
    assert isinstance(finished, Finished), finished
    return finished


def step_until_drafts_fly(solo: Solo) -> None:
    before = solo.core.journal.drafted
    while solo.core.journal.drafted < before + 2:
        solo.core.step()
        solo.core.check_integrity()


SPECULATIVE = Speculative(2, 4, max_iterations=6, adaptive=False)


def plain_tokens(count: int, **changes: Any) -> tuple[int, ...]:
    solo = solo_over()
    ask(solo, PLAIN, count, **changes)
    return only(solo).tokens
