"""Asking an engine questions in groups, recorded: the rollouts that reinforcement learning learns from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from policies.training.thread_tokens import ThreadTokens, check_replayable, threads_in
from runtime import Answer, Engine, LimitExceeded, Limits, Sampling, TraceError
from traces import Trace, critical_path, read, thread_tree


@dataclass(frozen=True)
class Question:
    """A prompt, and what an answer to it is worth: 0 for a wrong one, up to 1 for a right one.

    A tree that runs into its limits has no answer to score, and is worth 0.
    """

    prompt: str
    score: Callable[[Answer], float]
    max_tokens: int | None = None
    """Most tokens that a thread may sample; None is what the context holds."""
    limits: Limits | None = None
    """Of the tree. Bound its threads and levels: what is sampled at a temperature may spawn without end, and a tree
    that asks for more is refused rather than ended."""


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What a right answer's reward loses: per thousand token-iterations of its tree, and per thousand tokens of its
    critical path. Wrong answers pay nothing, so that saving never beats solving (P-GRPO, arXiv 2512.07843)."""

    iterations: float = 0.0
    critical_path: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One tree: what was answered, what that was worth, and what was said on the way."""

    answer: Answer
    score: float
    reward: float
    """The score less prices."""
    critical_path: int
    """Sampled tokens on the longest chain of dependent ones."""
    threads: tuple[ThreadTokens, ...]


async def ask_all(engine: Engine, questions: Sequence[Question], sampling: Sampling, at_once: int = 64) -> list[Answer]:
    """One answer a question, in their order; at most `at_once` trees at a time.

    A tree that runs into its limits gives an answer of no text and reason "limit". Raises whatever else `Engine.run`
    raises.
    """
    answers: dict[int, Answer] = {}
    places = anyio.CapacityLimiter(at_once)

    async def ask(number: int, question: Question) -> None:
        async with places:
            try:
                answers[number] = await engine.run(
                    question.prompt, sampling=sampling, max_tokens=question.max_tokens, limits=question.limits
                )
            except LimitExceeded as error:
                if error.answer is None:
                    raise
                answers[number] = error.answer

    async with anyio.create_task_group() as group:
        for number, question in enumerate(questions):
            group.start_soon(ask, number, question)
    return [answers[number] for number in range(len(questions))]


def score_of(question: Question, answer: Answer) -> float:
    """What the answer is worth; 0 where a limit ended its tree.

    Raises `ValueError` for a score that is no finite number.
    """
    if answer.reason == "limit":
        return 0.0
    found = question.score(answer)
    try:
        score = float(found)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(
            f"The score of an answer to {question.prompt!r} is {found!r}; a question's score has to be a finite number."
        )
    return score


async def roll_out(
    engine: Engine,
    questions: Sequence[Question],
    samples: int,
    *,
    sampling: Sampling,
    prices: Prices,
    trace: Path,
    at_once: int = 64,
) -> list[list[Rollout]]:
    """Asks each question `samples` times, at most `at_once` trees at a time; one group of rollouts a question.

    Everything is recorded in the file `trace`, which is replaced. Raises what `ask_all`, `score_of` and `recording`
    raise, and `TraceError` where not everything could be recorded.
    """
    async with engine.recording(trace, overwrite=True):
        asked = [question for question in questions for _ in range(samples)]
        answers = await ask_all(engine, asked, sampling, at_once)
    recorded = await anyio.to_thread.run_sync(read, trace)
    if recorded.lost is not None:
        raise TraceError(f"The rollouts cannot be learned from, since {trace} is not whole: {recorded.lost}.")
    said: dict[int, list[ThreadTokens]] = {}
    for thread in await anyio.to_thread.run_sync(_replayable_threads, recorded):
        said.setdefault(thread.path[0], []).append(thread)
    longest = await anyio.to_thread.run_sync(_critical_paths, recorded)

    def rollout(question: Question, answer: Answer) -> Rollout:
        score, tree = score_of(question, answer), answer.path[0]
        path = longest.get(tree, 0)  # a tree that its limits allowed nothing has no thread
        price = prices.iterations * answer.usage.iterations / 1000 + prices.critical_path * path / 1000
        return Rollout(
            answer=answer,
            score=score,
            reward=score - price if score > 0 else score,
            critical_path=path,
            threads=tuple(said.get(tree, ())),
        )

    return [
        [rollout(question, answer) for answer in answers[number * samples : (number + 1) * samples]]
        for number, question in enumerate(questions)
    ]


def _replayable_threads(trace: Trace) -> list[ThreadTokens]:
    threads = threads_in(trace)
    check_replayable(trace, threads)
    return threads


def _critical_paths(trace: Trace) -> dict[int, int]:
    """By number of the tree."""
    return {root.path[0]: critical_path(root) for root in thread_tree(trace.events)}


def advantages(group: Sequence[Rollout]) -> list[float]:
    """Each rollout's reward, less the group's mean, in standard deviations (GRPO, arXiv 2402.03300, section 4.1.2).

    All 0 where all rewards are the same: there is nothing to learn then.
    """
    rewards = [rollout.reward for rollout in group]
    mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
    return [(reward - mean) / spread if spread > 1e-9 else 0.0 for reward in rewards]
