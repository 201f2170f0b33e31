"""What is evaluated, as data: a cell says what runs, a record what became of one sample, a result holds a cell's; and
the cells that sections are made of, by the names that the comparison has for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from examples.countdown.vocabulary import CHILDREN, NESTED, WITHIN
from examples.countdown.vocabulary import WINDOWS as TOLD
from policies import DepthPolicy

ModelName = Literal["parallel", "serial", "parallel-supervised", "serial-supervised"]
ProblemSet = Literal["four", "five"]


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation: a model, how it is asked, how deep it thinks, and over what."""

    model: ModelName
    condition: str = ""
    """Appended to the prompt: `children 6`, `nested`, `within 256`; empty is the plain prompt."""
    depth: DepthPolicy | None = None
    """None is the checkpoint's own."""
    context: int
    """The window: most tokens of a thread."""
    slots: int | None = None
    """Iteration slots of keys and values; None is one for every iteration."""
    temperature: float = 0.0
    samples: int = 1
    """How many times every problem is answered."""
    problems: ProblemSet = "four"
    count: int = 1000
    """At most so many problems, the first ones of the set."""
    at_once: int = 16
    """Trees at a time; 1 is an idle engine, as latency wants it."""
    is_traced: bool = False
    """Whether the run is recorded, which slows it down, and the records tell what only a trace knows."""

    @property
    def is_serial(self) -> bool:
        return self.model.startswith("serial")

    @property
    def setting(self) -> str:
        """How the model is asked: "6 children", "unlimited children", "nested", "within 256"."""
        kind, _, number = self.condition.partition(" ")
        if kind == CHILDREN:
            return f"{number} {'child' if number == '1' else 'children'}"
        return self.condition or "unlimited children"

    @property
    def name(self) -> str:
        """What distinguishes it, in words."""
        parts = [self.model, self.setting]
        if self.depth is not None:
            parts.append(repr(self.depth))
        if not self.is_serial:
            parts.append(f"window {self.context}")
        if self.slots is not None:
            parts.append(f"slots {self.slots}")
        if self.samples > 1:
            parts.append(f"{self.samples} samples")
        if self.problems != "four":
            parts.append("five numbers")
        if self.at_once == 1:
            parts.append("one at a time")
        if self.is_traced:
            parts.append("traced")
        return ", ".join(parts)


class Record(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What became of one problem in one sample. Counts are of the whole tree."""

    is_right: bool
    answer: str | None
    """The expression; where the steps make none, the steps; None where nothing was answered."""
    reason: str
    """Why the root ended."""
    sampled: int
    computed: int
    iterations: int
    threads: int
    longest: int
    """Tokens in the longest context."""
    seconds: float
    is_asked: bool = False
    """Whether some child was asked a question that follows from the problem and has a solution."""
    is_found: bool = False
    """Whether some child returned a path that is right."""
    sequential: int | None = None
    """Sampled tokens in the longest causally dependent chain; only of traced cells."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A finished cell: `samples` records a problem, in the order of the problems."""

    cell: Cell
    records: tuple[tuple[Record, ...], ...]
    seconds: float
    """Wall time of the whole cell."""
    depths: dict[str, tuple[int, int]] = {}
    """Sampled tokens and their iterations by kind of token; only of traced cells."""

    @property
    def flat(self) -> list[Record]:
        return [record for records in self.records for record in records]

    @property
    def count(self) -> int:
        """Problems."""
        return len(self.records)

    @property
    def accuracy(self) -> float:
        """Share of samples that are right, 0 to 1."""
        return self.mean("is_right")

    @property
    def depth(self) -> float:
        """Iterations a computed token."""
        return self.mean("iterations") / self.mean("computed")

    def mean(self, field: str) -> float:
        """Mean of one field of the records over samples; NaN where a record lacks it."""
        values = [getattr(record, field) for record in self.flat]
        return math.nan if None in values else sum(values) / len(values)


def standard_error(share: float, count: int) -> float:
    """Of a share that `count` independent problems gave."""
    return math.sqrt(share * (1 - share) / count)


WINDOWS = TOLD[:-1]
"""Most tokens of a thread; the last that a thread can be told is for five numbers."""

WIDE = 512
"""The window where none is compared: longer than any thread of four numbers that the parallel solver writes."""

UNLIMITED = ""


def children(budget: int) -> str:
    """The condition that asks for at most so many children."""
    return f"{CHILDREN} {budget}"


BUDGETS = tuple(children(budget) for budget in (1, 2, 3, 4, 6, 8, 10, 12))
MAIN_CONDITIONS = (children(3), children(6), children(10), UNLIMITED)
ALL_CONDITIONS = (*BUDGETS, UNLIMITED, NESTED)

TEMPERATURE = 1.0
"""Of sampled answers: what the models were trained to say."""
SAMPLES = 8


def parallel(condition: str = UNLIMITED, model: ModelName = "parallel", **changes: Any) -> Cell:
    return Cell(model=model, condition=condition, **{"context": WIDE, **changes})


def serial(window: int, model: ModelName = "serial", **changes: Any) -> Cell:
    """A serial thread that is told its window, and has it."""
    return Cell(model=model, condition=f"{WITHIN} {window}", context=window, **{"at_once": 64, **changes})


def sampled_serial(window: int) -> Cell:
    return serial(window, temperature=TEMPERATURE, samples=SAMPLES)


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """Each once, the long trees of five numbers last; wider windows before narrower ones, which take from them what
    they did not cut."""
    distinct = dict.fromkeys(cells)
    return sorted(distinct, key=lambda cell: (cell.problems == "five", -cell.context))
