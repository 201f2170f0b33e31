"""Commands to a core as the event loop sends them, what ends then, and a thread that must not notice."""

from __future__ import annotations

from typing import Any

from policies import DepthPolicy, LatentDiff
from runtime.device.settings import EngineSettings
from runtime.link.commands import (
    Command,
    Extend,
    Failed,
    Finished,
    Generate,
    OpenThread,
    ThreadPath,
)
from runtime.link.sampling import Sampling
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo

POLICY = LatentDiff(0.7, max_iterations=6)


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(
        **{"num_pages": 128, "page_size": 4, "max_in_flight": 64, "prefill_chunk": 16, "most_iterations": 6, **changes}
    )


def prompt_for(number: int, length: int = 7) -> tuple[int, ...]:
    return tuple((number * 17 + position * 5 + position * position) % 40 for position in range(length))


def opening(path: ThreadPath, policy: DepthPolicy = POLICY, **changes: Any) -> OpenThread:
    return OpenThread(thread=path, seed=5, depth=policy, **changes)


def asking(path: ThreadPath, tokens: int = 4, **changes: Any) -> Generate:
    return Generate(thread=path, max_tokens=tokens, **{"sampling": Sampling(), **changes})


def beginning(path: ThreadPath, prompt: tuple[int, ...], tokens: int = 4, **changes: Any) -> list[Command]:
    policy = changes.pop("policy", POLICY)
    priority = changes.pop("priority", 0)
    return [opening(path, policy, priority=priority), Extend(path, prompt), asking(path, tokens, **changes)]


def ended(solo: Solo) -> dict[ThreadPath, list[Finished | Failed]]:
    """Ends of calls by thread, once there is nothing left to do."""
    found: dict[ThreadPath, list[Finished | Failed]] = {}
    ticks = 0
    while solo.core.has_work:
        solo.core.step()
        solo.core.check_integrity()
        ticks += 1
        assert ticks < 3000, "the engine does not come to an end"
    for report in solo.core.journal.take_reports():
        if isinstance(report, Finished | Failed):
            found.setdefault(report.thread, []).append(report)
    return found


def said(solo: Solo, path: ThreadPath = (0,)) -> Finished:
    (report,) = ended(solo)[path]
    assert isinstance(report, Finished), report
    return report


def bystander(model: Transformer, **changes: Any) -> tuple[Solo, tuple[int, ...]]:
    """A core with thread (9,) in flight, and what that will have said at the end."""
    solos = [Solo.over(model, settings(**changes), POLICY) for _ in range(2)]
    for solo in solos:
        solo.send(*beginning((9,), prompt_for(9), 6))
    expected = said(solos[0], (9,)).tokens
    for _ in range(3):
        solos[1].core.step()
    return solos[1], expected
