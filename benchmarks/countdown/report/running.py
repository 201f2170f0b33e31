"""Running one cell: an engine of its own, every problem answered as often as the cell says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import msgspec

from benchmarks.countdown.report.cells import Cell, ProblemSet, Record, Result
from benchmarks.countdown.report.checkpoints import CheckpointFacts, resolved
from benchmarks.countdown.report.kinds import depths_by_kind
from benchmarks.countdown.report.watching import ChildrenWatch, is_asked, is_found
from examples.countdown.problems import Problem
from examples.countdown.solve import LIMITS, prompt_of, solution_of
from examples.countdown.vocabulary import CHILDREN
from policies import AllChildren, MaxChildren, Policy, SpawnPolicy
from runtime import Answer, Engine, Sampling
from traces import ThreadRecord, critical_path, read, thread_tree, walk_threads

SEED = 0
NUMBERS: dict[ProblemSet, int] = {"four": 4, "five": 5}

TRACED_AT_ONCE = 25
"""Problems in one trace: a trace is read as a whole."""


async def run_cell(
    cell: Cell,
    facts: CheckpointFacts,
    problems: Sequence[Problem],
    wider: Result | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Result:
    """Evaluates a cell on `problems`; `advance` is called for every one that is done.

    `wider` is the result of a greedy cell that differs only in its larger window, on the same problems: those whose
    longest thread stayed inside this cell's window would be answered the same again, and are taken from it. Raises
    what the engine raises; cancelled, nothing is kept.
    """
    cell = resolved(cell, facts)
    started = time.perf_counter()
    kept = {} if wider is None else _untouched(cell, wider)
    left = [index for index in range(len(problems)) if index not in kept]
    for _ in kept:
        advance()
    found: dict[int, tuple[Record, ...]] = dict(kept)
    depths: dict[str, tuple[int, int]] = {}
    size = TRACED_AT_ONCE if cell.is_traced else max(len(left), 1)
    for begin in range(0, len(left), size):
        part = left[begin : begin + size]
        records, spent = await _run(cell, facts, [problems[index] for index in part], advance)
        found.update(zip(part, records, strict=True))
        for kind, (count, iterations) in spent.items():
            before = depths.get(kind, (0, 0))
            depths[kind] = before[0] + count, before[1] + iterations
    return Result(
        cell=cell,
        records=tuple(found[index] for index in range(len(problems))),
        seconds=time.perf_counter() - started,
        depths=depths,
    )


def widens(wider: Cell, cell: Cell) -> bool:
    """Whether `wider` is the same greedy evaluation with a larger window. Both resolved."""
    if cell.temperature > 0 or cell.is_traced or cell.at_once == 1:
        return False
    return wider.context > cell.context and msgspec.structs.replace(wider, context=cell.context) == cell


def _untouched(cell: Cell, wider: Result) -> dict[int, tuple[Record, ...]]:
    return {
        index: records
        for index, records in enumerate(wider.records)
        if all(record.longest < cell.context for record in records)
    }


async def _run(
    cell: Cell, facts: CheckpointFacts, problems: Sequence[Problem], advance: Callable[[], None]
) -> tuple[list[tuple[Record, ...]], dict[str, tuple[int, int]]]:
    assert cell.depth is not None
    watch = ChildrenWatch()
    answers: dict[tuple[int, int], tuple[Record, int]] = {}
    with TemporaryDirectory() as directory:
        trace = Path(directory) / "cell.trace" if cell.is_traced else None
        async with Engine.open(
            facts.path,
            policy=Policy(depth=cell.depth, spawn=_spawn_policy(cell)),
            sampling=Sampling(temperature=cell.temperature),
            trace=trace,
            limits=LIMITS[NUMBERS[cell.problems]],
            observer=watch.observe,
            max_context=cell.context,
            iteration_slots=cell.slots,
            seed=SEED,
        ) as engine:
            if cell.at_once == 1:
                # The first trees of an engine pay for memory and code that is touched for the first time.
                watch.take((await engine.run(prompt_of(problems[0], cell.condition))).path[0])
            places = anyio.CapacityLimiter(cell.at_once)

            async def work(index: int, sample: int) -> None:
                async with places:
                    problem = problems[index]
                    answer = await engine.run(prompt_of(problem, cell.condition))
                    answers[index, sample] = _record(problem, answer, watch), answer.path[0]
                if sample == 0:
                    advance()

            try:
                async with anyio.create_task_group() as group:
                    for index in range(len(problems)):
                        for sample in range(cell.samples):
                            group.start_soon(work, index, sample)
            except ExceptionGroup as errors:
                # All problems are asked in the same way: what is wrong with one is wrong with the others.
                raise _first(errors) from None
        roots = {} if trace is None else {root.path[0]: root for root in thread_tree(read(trace).events)}
    records = [
        tuple(_traced(*answers[index, sample], roots) for sample in range(cell.samples))
        for index in range(len(problems))
    ]
    return records, _depths(roots.values())


def _spawn_policy(cell: Cell) -> SpawnPolicy:
    """The model is told its budget of children, and held to it."""
    kind, _, budget = cell.condition.partition(" ")
    return MaxChildren(int(budget)) if kind == CHILDREN else AllChildren()


def _first(errors: ExceptionGroup) -> Exception:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


def _record(problem: Problem, answer: Answer, watch: ChildrenWatch) -> Record:
    solution, usage, observed = solution_of(problem, answer), answer.usage, watch.take(answer.path[0])
    return Record(
        is_right=solution.is_right,
        answer=solution.expression or answer.text or None,
        reason=answer.reason,
        sampled=usage.generated,
        computed=usage.computed,
        iterations=usage.iterations,
        threads=usage.threads,
        longest=usage.max_context,
        seconds=usage.seconds,
        is_asked=is_asked(problem, observed),
        is_found=is_found(problem, observed),
    )


def _traced(record: Record, tree: int, roots: dict[int, ThreadRecord]) -> Record:
    if tree not in roots:
        return record
    return msgspec.structs.replace(record, sequential=critical_path(roots[tree]))


def _depths(roots: Iterable[ThreadRecord]) -> dict[str, tuple[int, int]]:
    total: dict[str, tuple[int, int]] = {}
    for thread in walk_threads(roots):
        for kind, (count, iterations) in depths_by_kind(thread).items():
            before = total.get(kind, (0, 0))
            total[kind] = before[0] + count, before[1] + iterations
    return total
