"""The engine and its peers in turn on the same weights and prompts, case by case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import driving
from benchmarks.peers.answering import Job
from benchmarks.peers.process import Answer, SideFailed, SideProcess, Unavailable
from benchmarks.peers.sides import Side
from benchmarks.peers.subjects import Subject
from benchmarks.result import Aim, Cell, Result, Spread
from benchmarks.timing import in_turn, ratios

COLUMNS = ("dtype", "threads", "batch", "side", "tokens/s", "engine / side", "equal tokens, %")
_CHECKED = 2
"""Prompts answered once more by sides whose timed tokens cannot be compared; one at a time, which is slow."""

Tokens = Sequence[Sequence[int]]


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """Cases: every dtype with every number of threads and every batch."""

    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    threads: tuple[int, ...] = (1, 2)
    batches: tuple[int, ...] = (1, 8, 32)
    prompt: int = 64
    tokens: int = 64
    rounds: int = 5
    kv_cache_bytes: int = 2 * 2**30
    """Bytes for keys and values, for sides that keep a pool of them."""


class Contest:
    """One model. Sides that cannot take part are told of once, and left out from then on."""

    def __init__(
        self,
        name: str,
        subject: Subject,
        matrix: Matrix,
        directory: Path,
        say: Callable[[str], None],
        engine: Side,
    ) -> None:
        """`directory` gets the checkpoint, logs and caches; `say` gets a line at a time on how it goes."""
        self._name = name
        self._subject = subject
        self._matrix = matrix
        self._directory = directory
        self._say = say
        self._engine = engine
        self._prompts = driving.prompts(subject.vocab, max(matrix.batches), matrix.prompt)
        self._versions: dict[str, dict[str, str]] = {}
        self._depths: list[list[int]] = []

    def run(self, peers: Mapping[str, tuple[Side, str]]) -> Result | None:
        """The table, or None if no peer takes part. With each peer goes what to do where something is missing.

        Raises `SideFailed` if the engine fails.
        """
        peers = dict(peers)
        checkpoint = self._directory / self._name
        self._subject.save(checkpoint)
        rows: list[tuple[Cell, ...]] = []
        aims: list[Aim] = []
        for dtype in self._matrix.dtypes:
            for threads in self._matrix.threads:
                with ExitStack() as stack:
                    running = self._start(stack, peers, self._job(checkpoint, dtype, threads))
                    if len(running) < 2:
                        break
                    for new_rows, new_aims in self._cases(running, peers, dtype, threads):
                        rows.extend(new_rows)
                        aims.extend(new_aims)
        if not rows:
            return None
        title = f"{self._subject.title}; prompts of {self._matrix.prompt} tokens, {self._matrix.tokens} new ones each"
        return Result(
            name=self._name,
            title=title,
            columns=COLUMNS,
            rows=tuple(rows),
            aims=tuple(aims),
            notes=tuple(self._notes()),
        )

    def _job(self, checkpoint: Path, dtype: str, threads: int) -> Job:
        return Job(
            checkpoint=str(checkpoint),
            dtype=dtype,
            threads=threads,
            batch=max(self._matrix.batches),
            prompt=self._matrix.prompt,
            tokens=self._matrix.tokens,
            kv_cache_bytes=self._matrix.kv_cache_bytes,
            scratch=str(self._directory),
            exits=self._subject.exits,
        )

    def _start(self, stack: ExitStack, peers: dict[str, tuple[Side, str]], job: Job) -> dict[str, SideProcess]:
        """Processes by name, the engine's first. The engine is started last, and only if there is a peer."""
        running: dict[str, SideProcess] = {}
        for name, (side, install) in list(peers.items()):
            try:
                running[name] = self._enter(stack, side, job)
            except Unavailable as error:
                self._say(f"{name} is skipped: {error}. To have it: {install}.")
                del peers[name]
            except SideFailed as error:
                self._say(f"{name} is skipped, because it failed. {error}")
                del peers[name]
        if not running:
            return {}
        return {self._engine.name: self._enter(stack, self._engine, job), **running}

    def _enter(self, stack: ExitStack, side: Side, job: Job) -> SideProcess:
        self._say(f"loading {self._name} into {side.name}: {job.dtype}, threads: {job.threads}")
        log = self._directory / f"{self._name}-{side.name}-{job.dtype}-{job.threads}.log"
        job = Job(**{**vars(job), "clone": side.clone})
        process = stack.enter_context(SideProcess(side.name, side.command, job, log))
        self._versions[side.name] = process.ready.versions
        return process

    def _cases(
        self, running: dict[str, SideProcess], peers: dict[str, tuple[Side, str]], dtype: str, threads: int
    ) -> Iterator[tuple[list[tuple[Cell, ...]], list[Aim]]]:
        """Rows and aims, batch by batch. A peer that fails is taken out of `running` and `peers`."""
        checked = self._checked(running) if dtype == "float32" else {}
        batches = list(self._matrix.batches)
        while batches and len(running) > 1:
            try:
                seconds, answers = self._time(running, batches[0])
            except SideFailed as error:
                if error.side == self._engine.name:
                    raise
                self._say(f"{error.side} is left out from here on, because it failed. {error}")
                del running[error.side], peers[error.side]
                continue
            yield self._table(dtype, threads, batches.pop(0), seconds, answers, checked)

    def _checked(self, running: Mapping[str, SideProcess]) -> dict[str, Tokens]:
        few = self._prompts[:_CHECKED]
        return {name: process.ask(few, check=True).tokens for name, process in running.items() if process.ready.checks}

    def _time(self, running: Mapping[str, SideProcess], batch: int) -> tuple[dict[str, list[float]], dict[str, Answer]]:
        """Seconds of every round, and the last answers, by side."""
        given = self._prompts[:batch]
        answers: dict[str, Answer] = {}

        def side(name: str) -> float:
            answers[name] = running[name].ask(given)
            return answers[name].seconds

        return in_turn({name: partial(side, name) for name in running}, self._matrix.rounds), answers

    def _table(
        self,
        dtype: str,
        threads: int,
        batch: int,
        seconds: Mapping[str, list[float]],
        answers: Mapping[str, Answer],
        checked: Mapping[str, Tokens],
    ) -> tuple[list[tuple[Cell, ...]], list[Aim]]:
        rows: list[tuple[Cell, ...]] = []
        aims: list[Aim] = []
        ours, answer = seconds[self._engine.name], answers[self._engine.name]
        if dtype == "float32":
            self._depths = answer.depths
        for name, taken in seconds.items():
            speed = Spread.of(batch * self._matrix.tokens / one for one in taken)
            ratio: Cell = ""
            equal: Cell = ""
            if name != self._engine.name:
                ratio = Spread.of(ratios(taken, ours))
                if dtype == "float32":
                    equal = 100 * equal_share(answer.tokens, checked.get(name, answers[name].tokens))
                bound = self._subject.aims.get(name, {}).get(batch)
                if bound is not None:
                    figure = f"engine / {name}, tokens/s, {dtype}, threads: {threads}, batch {batch}"
                    aims.append(Aim(figure=figure, measured=ratio.median, bound=bound))
            rows.append((dtype, threads, batch, name, speed, ratio, equal))
        said = ", ".join(f"{name} {speed.median:,.0f}" for name, speed in _speeds(rows))
        self._say(f"{self._name}, {dtype}, threads: {threads}, batch {batch}: {said} tokens/s")
        return rows, aims

    def _notes(self) -> Iterator[str]:
        for name, versions in self._versions.items():
            yield f"{name}: {', '.join(f'{library} {version}' for library, version in versions.items())}."
        if self._subject.exits is not None and self._depths:
            most = self._subject.exits.most
            counts = np.bincount(np.array(list(chain.from_iterable(self._depths))), minlength=most + 1)[1:]
            said = " ".join(map(str, counts.tolist()))
            yield f"Tokens of depth 1, 2, ... {most} on the engine, last batch in float32: {said}."


def equal_share(some: Tokens, others: Tokens) -> float:
    """Share of equal tokens at equal places, over the prompts that both have answered; 1 if there are none."""
    answers = list(zip(some, others, strict=False))
    equal = sum(one == other for mine, theirs in answers for one, other in zip(mine, theirs, strict=True))
    count = sum(len(mine) for mine, _ in answers)
    return equal / count if count else 1.0


def _speeds(rows: Sequence[tuple[Cell, ...]]) -> Iterator[tuple[Cell, Spread]]:
    for row in rows:
        if isinstance(row[4], Spread):
            yield row[3], row[4]
