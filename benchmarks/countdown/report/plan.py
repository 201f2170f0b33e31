"""The cells that sections are made of, by the names that the comparison has for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.countdown.report.cells import Cell, ModelName

WINDOWS = (128, 192, 256, 320, 512, 1024)
"""Most tokens of a thread."""

WIDE = 512
"""The window where none is compared: longer than any thread of four numbers that the parallel solver writes."""

UNLIMITED = ""
NESTED = "nested"


def children(budget: int) -> str:
    """The condition that asks for at most so many children."""
    return f"children {budget}"


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
    return Cell(model=model, condition=f"within {window}", context=window, **{"at_once": 64, **changes})


def sampled_serial(window: int) -> Cell:
    return serial(window, temperature=TEMPERATURE, samples=SAMPLES)


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """Each once, the long trees of five numbers last; wider windows before narrower ones, which take from them what
    they did not cut."""
    distinct = dict.fromkeys(cells)
    return sorted(distinct, key=lambda cell: (cell.problems == "five", -cell.context))
