"""Asking the questions of a trace again, on an engine that records, and comparing what comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import msgspec

from policies import Policy, from_builtins
from runtime import BraidError, Engine, EngineSettings, Sampling, Tools, TraceError
from runtime.link import Header, ThreadPath, Trace
from traces.counterfactual.comparing import Comparison, Verify, compare
from traces.counterfactual.questions import Question, questions_of
from traces.counterfactual.tool_results import RecordedTools, called_tools
from traces.reader import read
from traces.totals import TraceTotals, totals_of
from traces.tree import path_name, thread_tree

AT_ONCE = 64
"""Questions that are asked side by side."""


class WhatIf(msgspec.Struct, frozen=True, kw_only=True):
    """What asking again has given."""

    policy: str
    comparisons: tuple[Comparison, ...]
    refused: tuple[str, ...]
    """Why other trees were not asked again, or have given no answer."""
    recorded: TraceTotals
    """Of the whole trace."""
    now: TraceTotals


async def what_if(
    trace: Trace,
    *,
    policy: Policy | None = None,
    sampling: Sampling | None = None,
    checkpoint: str | Path | None = None,
    tools: Tools | None = None,
    limit: int | None = None,
    verify: Verify | None = None,
    progress: Callable[[], object] | None = None,
) -> WhatIf:
    """Asks the questions of a trace again, each as `Engine.run` asks it, and compares the trees.

    What is not given is as it was recorded: the policy, each question's sampling, the checkpoint, settings and seed.
    With all of it, and trees numbered as then, the same is said again. Calls of tools that the recorded tree made give
    what they gave then; others are run by `tools`, and a tree that makes one which these have not is refused. `limit`
    takes the first questions alone; `verify` gets a prompt and an answer; `progress` is called for each question that
    is answered. Cancelled, nothing remains. Raises `TraceError` where no tree can be asked again (a program drove them
    all, say), and what `Engine.open` raises.
    """
    roots = thread_tree(trace.events)
    questions, refused = questions_of(roots, trace.header)
    questions = questions[:limit]
    asked = policy if policy is not None else _policy_of(trace.header)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "again.trace"
        engine = Engine.open(
            checkpoint if checkpoint is not None else trace.header.checkpoint,
            policy=asked,
            trace=path,
            seed=trace.header.seed,
            **_settings_of(trace.header),
        )
        names, given = called_tools(roots), tools if tools is not None else Tools()
        called = {root.path: RecordedTools(root, given, names) for root in roots} if names or given else {}
        paths, failed = await _ask(engine, questions, sampling, called, progress)
        again = read(path)
    recorded = {root.path: root for root in roots}
    now = {root.path: root for root in thread_tree(again.events)}
    return WhatIf(
        policy=repr(asked) if asked is not None else "the checkpoint's",
        comparisons=tuple(
            compare(question, recorded[question.path], now[paths[question.path]], verify)
            for question in questions
            if question.path in paths
        ),
        refused=(*refused, *failed),
        recorded=totals_of(trace.events),
        now=totals_of(again.events),
    )


async def _ask(
    engine: Engine,
    questions: list[Question],
    sampling: Sampling | None,
    tools: Mapping[ThreadPath, Tools],
    progress: Callable[[], object] | None,
) -> tuple[dict[ThreadPath, ThreadPath], list[str]]:
    """Which tree answered each question, and what others failed of. `tools` are each question's."""
    answered: dict[ThreadPath, ThreadPath] = {}
    failed: list[str] = []
    places = anyio.CapacityLimiter(AT_ONCE)

    async def ask(question: Question) -> None:
        choice = sampling if sampling is not None else question.sampling
        try:
            if question.constraint is None:
                answer = await engine.run(
                    question.tokens, sampling=choice, max_tokens=question.max_tokens, tools=tools.get(question.path)
                )
                answered[question.path] = answer.path
            else:
                async with engine.thread(question.tokens, sampling=choice, max_tokens=question.max_tokens) as thread:
                    await thread.generate(**question.constraint.as_given())
                answered[question.path] = thread.path
        except BraidError as error:
            failed.append(f"Tree {path_name(question.path)} has no answer now: {str(error).rstrip('.')}.")
        finally:
            places.release_on_behalf_of(question.path)
        if progress is not None:
            progress()

    async with engine, anyio.create_task_group() as group:
        for question in questions:
            # One after the other, so that trees are numbered in their order.
            await places.acquire_on_behalf_of(question.path)
            group.start_soon(ask, question)
    return answered, failed


def _policy_of(header: Header) -> Policy | None:
    try:
        return None if header.policy is None else from_builtins(header.policy, Policy)
    except ValueError as error:
        raise TraceError(f"The trace's policy cannot be used: {error}") from error


def _settings_of(header: Header) -> dict[str, Any]:
    try:
        return msgspec.structs.asdict(msgspec.convert(header.engine, EngineSettings))
    except (msgspec.ValidationError, ValueError) as error:
        raise TraceError(f"The trace's settings cannot be used: {error}") from error
