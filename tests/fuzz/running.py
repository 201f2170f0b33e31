"""Runs one program on an engine and checks all that is promised at its end."""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import msgspec
import trio

from runtime import Engine, EngineClosed, EngineFailed, EngineSettings, Limits, ThreadStateError
from runtime.device.build import build_loop, load_native_code
from runtime.device.loop import ModelDevice
from runtime.link.commands import Statistics
from runtime.threads.results import Usage
from tests.fuzz import program as p
from tests.fuzz.alone import Roomy
from tests.fuzz.faults import Planted, planted
from tests.fuzz.generating import CONTEXT
from tests.fuzz.interpreting import Books, Interpreter
from tests.fuzz.subjects import BY_LOAD, DEPTHS, FAILING, MODELS, MOST, checkpoint_of, matchers_of, model_of, policy_of
from tests.fuzz.tools import add_tools
from tests.fuzz.watchdog import watched
from traces import Trace, read
from traces.totals import imbalances, totals_of
from traces.verification import verify

PATIENCE = 60.0
"""Seconds that a program may take."""
_COUNTED = ("generated", "computed", "iterations", "recomputed", "cached_tokens", "prompt_tokens")


@dataclass
class Outcome:
    """What came of one program."""

    findings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    fired: bool = False
    """Whether the fault in its setup came to pass."""


class Runner:
    """Runs programs one after the other; closes what it keeps between them in `close`."""

    def __init__(self) -> None:
        self._roomy = Roomy()
        self._home = tempfile.TemporaryDirectory(prefix="braid-fuzz-traces-")
        for model in MODELS:
            # Compiling takes longer than a program may, where others compute too.
            load_native_code(model_of(model), EngineSettings())

    def run(self, program: p.Program, how_to_repeat: str) -> Outcome:
        """Ends the process, saying `how_to_repeat` the program, where it hangs."""
        setup = program.setup
        books, outcome = Books(setup), Outcome()
        open_before = _open_files()
        trace = None if setup.trace == "none" else self._fresh_trace()
        with watched(PATIENCE, how_to_repeat), planted(setup.fault) as plant:
            life = _Life(program, books, trace)
            anyio.run(life.run, backend=setup.loop)
            outcome.fired = plant is not None and plant.has_fired
        outcome.findings += books.findings
        outcome.findings += life.left_over(open_before)
        has_failed = bool(books.failed)
        if not has_failed:
            outcome.findings += life.imbalances()
        outcome.findings += _fault_findings(setup, plant, books)
        recorded = None if trace is None or not trace.exists() else read(trace)
        if recorded is not None:
            outcome.findings += _trace_findings(recorded, life.usage, has_failed, life.is_recorded_whole)
        elif life.has_recorded:
            outcome.findings.append("there is no trace")
        with watched(PATIENCE, f"{how_to_repeat} (repeated alone)"):
            if recorded is not None and not has_failed and life.is_recorded_whole and is_repeatable(program, books):
                outcome.findings += _verified(setup, recorded, books)
            outcome.findings += self._differences(setup, books)
            outcome.findings += _driven_differences(setup, books)
        outcome.counts = _counted(setup, books, life.usage, outcome.fired)
        return outcome

    def _fresh_trace(self) -> Path:
        """Where no file is: a program that is cancelled before it records leaves none."""
        trace = Path(self._home.name) / "run.trace"
        trace.unlink(missing_ok=True)
        return trace

    def _differences(self, setup: p.Setup, books: Books) -> list[str]:
        found: list[str] = []
        if setup.backend == "torch" and not setup.deterministic:
            return found
        for said in books.said:
            if said.is_comparable:
                books.counts["threads compared"] += 1
                books.counts["tokens compared"] += sum(len(step.tokens) for step in said.steps)
                found += self._roomy.differences(setup, said)
        return found

    def close(self) -> None:
        self._roomy.close()
        self._home.cleanup()


class _Life:
    """One engine from opening to closing, with a program's trees on it."""

    def __init__(self, program: p.Program, books: Books, trace: Path | None) -> None:
        self._program = program
        self._books = books
        self._trace = trace
        self._seen = 0
        self._tasks_left: list[str] = []
        self.has_recorded = False
        """Whether a trace was begun, so that there has to be one."""
        self.is_recorded_whole = True
        self.engine: Engine | None = None
        self.usage = Usage()
        self.statistics = Statistics()

    async def run(self) -> None:
        """The whole life, cancelled from outside if the program says so."""
        tasks = _tasks()
        after = self._program.setup.cancelled_after
        try:
            with anyio.move_on_after(math.inf if after is None else after / 1000):
                await self._run()
        except Exception as error:
            self._books.judge(error)
        self._tasks_left = sorted(_tasks() - tasks)
        if self.engine is not None:
            self.usage, self.statistics = self.engine.usage, self.engine.statistics
            self._hear_of_failure(self.engine)

    def _hear_of_failure(self, engine: Engine) -> None:
        """What the device failed of when nobody was waiting for it any more."""
        try:
            engine.thread((1,))
        except EngineFailed as error:
            self._books.judge(error)
        except EngineClosed:
            pass

    async def _run(self) -> None:
        setup = self._program.setup
        engine = _open(setup, self._trace, self._observe)
        async with anyio.create_task_group() as trees, engine:
            self.engine = engine
            interpreter = Interpreter(engine, setup, self._books)
            if setup.trace != "recording" or self._trace is None:
                self.has_recorded = self._trace is not None
                await self._grow(interpreter, trees)
                return
            try:
                async with engine.recording(self._trace, overwrite=True):
                    self.has_recorded = True
                    await self._grow(interpreter, trees)
                # Trees may begin between its end and the engine's.
                self.is_recorded_whole = setup.leaves_after is None
            except ThreadStateError:
                # Left while threads were open.
                self.is_recorded_whole = False
                if setup.leaves_after is None:
                    raise
            except BaseException:
                self.is_recorded_whole = False
                raise

    async def _grow(self, interpreter: Interpreter, trees: anyio.abc.TaskGroup) -> None:
        """Starts all trees, and waits until they have ended or the engine is to be left."""
        after = self._program.setup.leaves_after
        if after is not None:
            for root in self._program.roots:
                trees.start_soon(interpreter.root, root)
            await anyio.sleep(after / 1000)
            return
        async with anyio.create_task_group() as own:
            for root in self._program.roots:
                own.start_soon(interpreter.root, root)
        await interpreter.probe()

    def _observe(self, event: object) -> None:
        self._seen += 1
        if self._program.setup.observer == "raises":
            raise ArithmeticError("no observation")

    def left_over(self, open_before: set[str]) -> list[str]:
        """What is still there that should be gone."""
        found = [f"task left: {task}" for task in self._tasks_left]
        found += [
            f"thread of the system left: {thread.name}"
            for thread in threading.enumerate()
            if thread.name.startswith("braid")
        ]
        found += [f"file left open: {name}" for name in sorted(_open_files() - open_before)]
        return found

    def imbalances(self) -> list[str]:
        """Pages and threads that the device still has, and counts that are not the same everywhere."""
        found = []
        for name in ("pages_used", "open_threads", "in_flight", "waiting"):
            if getattr(self.statistics, name):
                found.append(f"the device still has {name} = {getattr(self.statistics, name)}")
        for name in _COUNTED:
            if getattr(self.statistics, name) != getattr(self.usage, name):
                found.append(
                    f"{name}: usage says {getattr(self.usage, name)}, the device {getattr(self.statistics, name)}"
                )
        is_complete = all(root.body is not None for root in self._program.roots)
        for name in ("generated", "computed", "iterations", "threads", "tool_calls") if is_complete else ():
            trees = sum(getattr(root.usage, name) for root in self._books.roots)
            if trees != getattr(self.usage, name):
                found.append(f"{name}: trees say {trees}, the engine {getattr(self.usage, name)}")
        return found


def _open(setup: p.Setup, trace: Path | None, observe: Any) -> Engine:
    engine = Engine.open(
        checkpoint_of(setup.model),
        policy=policy_of("deep"),
        trace=trace if setup.trace == "engine" else None,
        overwrite=True,
        seed=setup.seed,
        limits=setup.limits,
        observer=None if setup.observer == "none" else observe,
        num_pages=setup.pages,
        page_size=setup.page_size,
        max_in_flight=setup.lanes,
        prefill_chunk=setup.chunk,
        iteration_slots=setup.slots,
        most_iterations=MOST,
        cpu_threads=setup.threads,
        backend=setup.backend,
        deterministic=setup.deterministic,
        reuse_prefixes=setup.reuse_prefixes,
        queue_size=setup.queue_size,
    )
    return add_tools(engine)


def _fault_findings(setup: p.Setup, plant: Planted | None, books: Books) -> list[str]:
    if plant is None or setup.fault is None or books.failed or books.hit or not plant.has_fired:
        return []
    if setup.fault.kind == "out of memory" and setup.fault.place in ("tick", "prelude", "core", "coda"):
        return []  # Retried with fewer tokens, which is as if there had been none.
    ends_early = setup.leaves_after is not None or setup.cancelled_after is not None
    return [] if ends_early else [f"nobody heard of the fault {setup.fault}"]


def _trace_findings(trace: Trace, usage: Usage, has_failed: bool, is_whole: bool) -> list[str]:
    if has_failed or not is_whole:
        return []
    found = [f"the trace is not whole: {trace.lost}"] if trace.lost else []
    found += [f"trace: {imbalance}" for imbalance in imbalances(trace.events)]
    recorded = totals_of(trace.events)
    for name in (*_COUNTED, "threads", "tool_calls"):
        if getattr(recorded, name) != getattr(usage, name):
            found.append(f"{name}: the trace says {getattr(recorded, name)}, usage {getattr(usage, name)}")
    return found


def is_repeatable(program: p.Program, books: Books) -> bool:
    """Whether a trace of the program has to verify: nothing in it depends on when something came to pass.

    A limit on iterations counts those of tokens that were evicted and computed again."""
    text = p.to_json(program)
    limits = [root.limits or program.setup.limits or Limits() for root in program.roots]
    if any(limit.iterations is not None for limit in limits):
        return False
    return all(said.is_comparable for said in books.said) and not any(f'"{name}"' in text for name in BY_LOAD)


def _verified(setup: p.Setup, trace: Trace, books: Books) -> list[str]:
    settings = msgspec.convert(trace.header.engine, EngineSettings)
    device = ModelDevice(
        lambda: build_loop(model_of(setup.model), settings, DEPTHS["deep"], matchers=matchers_of(setup.model))
    )
    result = verify(trace, device)
    books.counts["traces verified"] += 1
    return [] if result.divergence is None else [f"the trace does not verify: {result.divergence}"]


def _driven_differences(setup: p.Setup, books: Books) -> list[str]:
    """Trees that models orchestrated, once more and alone."""
    if setup.backend == "torch" and not setup.deterministic:
        return []
    repeated = [
        (root, answer)
        for root, answer in books.driven
        if root.depth not in (*BY_LOAD, *FAILING) and (root.limits or setup.limits) == Limits(tree_depth=1)
    ]
    found: list[str] = []

    async def repeat() -> None:
        pages = 40 * math.ceil(CONTEXT / setup.page_size)
        calm = p.Setup(
            model=setup.model,
            backend=setup.backend,
            slots=setup.slots,
            chunk=setup.chunk,
            page_size=setup.page_size,
            pages=pages,
            lanes=48,
        )
        async with _open(calm, None, None) as engine:
            for root, answer in repeated:
                alone = await engine.run(
                    root.prompt, limits=root.limits, policy=policy_of(root.depth), max_tokens=root.max_tokens
                )
                books.counts["trees compared"] += 1
                if (alone.tokens, alone.reason) != (answer.tokens, answer.reason):
                    found.append(f"tree {root} answered {answer}, alone {alone}")

    if repeated and setup.model != "noisy":
        anyio.run(repeat)
    return found


def _counted(setup: p.Setup, books: Books, usage: Usage, fired: bool) -> Counter[str]:
    counts = books.counts
    counts["programs"] = 1
    for part in (setup.loop, setup.backend, f"model {setup.model}"):
        counts[f"on {part}"] += 1
    counts["traced"] += setup.trace != "none"
    counts["left early"] += setup.leaves_after is not None
    counts["cancelled from outside"] += setup.cancelled_after is not None
    counts["faults that came to pass"] += fired
    counts["engines failed"] += bool(books.failed)
    counts["tokens sampled"] += usage.generated
    counts["tools called"] += usage.tool_calls
    counts["tokens computed again"] += usage.recomputed
    counts["tokens reused"] += usage.cached_tokens
    return counts


def _tasks() -> set[str]:
    """Names of all tasks of the running loop."""
    try:
        return {task.get_name() for task in asyncio.all_tasks()}
    except RuntimeError:
        root = trio.lowlevel.current_root_task()
        return set() if root is None else set(_trio_tasks(root))


def _trio_tasks(task: trio.lowlevel.Task) -> list[str]:
    below = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return [task.name, *(name for child in below for name in _trio_tasks(child))]


def _open_files() -> set[str]:
    """What the process has open, by number and name; empty where the system does not tell."""
    found: set[str] = set()
    directory = Path("/proc/self/fd")
    for entry in os.listdir(directory) if directory.is_dir() else ():
        try:
            found.add(f"{entry} {os.readlink(directory / entry)}")
        except OSError:
            continue
    return found
