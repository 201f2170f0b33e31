"""Countdown problems: what they are, how they are drawn, how an answer is checked."""

from __future__ import annotations

import argparse
import ast
import operator
import random
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path

import msgspec

from runtime.console import input_file

OPERATORS = ("+", "-", "*", "/")
LARGEST_VALUE = 199
"""Results above this are not written: the model has one token per number up to it."""

SIZES = (4, 5)
"""Numbers of the problems that the models were trained on: mostly four, and some of five."""


Key = tuple[tuple[int, ...], int]
"""Numbers, descending, and target: equal for problems that differ only in the order of their numbers."""


class Problem(msgspec.Struct, frozen=True):
    """Reach `target` with every number of `nums` used exactly once.

    Raises `ValueError` for numbers that the models have no words for.
    """

    nums: tuple[int, ...]
    target: int

    def __post_init__(self) -> None:
        for value in (*self.nums, self.target):
            if not 0 <= value <= LARGEST_VALUE:
                raise ValueError(f"{value} is outside of 0..{LARGEST_VALUE}, the numbers that the models read")

    @property
    def prompt(self) -> str:
        return f"{' '.join(map(str, self.nums))} -> {self.target}"

    @property
    def key(self) -> Key:
        return tuple(sorted(self.nums, reverse=True)), self.target


class Step(msgspec.Struct, frozen=True):
    """One operation: `left operator right = result`, the larger operand first where order matters."""

    left: int
    operator: str
    right: int
    result: int


def apply(symbol: str, larger: int, smaller: int) -> int | None:
    """The result of one operation, or None where it is not allowed: negative, fractional or above the cap."""
    if symbol == "+":
        result = larger + smaller
    elif symbol == "-":
        result = larger - smaller
    elif symbol == "*":
        result = larger * smaller
    elif smaller == 0 or larger % smaller:
        return None
    else:
        result = larger // smaller
    return result if 0 <= result <= LARGEST_VALUE else None


def steps(first: int, second: int) -> list[Step]:
    """All allowed operations on two numbers, in the order in which a thread tries them."""
    larger, smaller = max(first, second), min(first, second)
    found = []
    for symbol in OPERATORS:
        result = apply(symbol, larger, smaller)
        if result is not None:
            found.append(Step(larger, symbol, smaller, result))
    return found


def reachable(numbers: tuple[int, ...], memo: dict[tuple[int, ...], frozenset[int]]) -> frozenset[int]:
    """Every value that uses all of `numbers` (sorted descending) exactly once, under the cap."""
    if len(numbers) == 1:
        return frozenset(numbers)
    known = memo.get(numbers)
    if known is not None:
        return known
    values: set[int] = set()
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for step in steps(numbers[i], numbers[j]):
                values |= reachable(tuple(sorted((*rest, step.result), reverse=True)), memo)
    memo[numbers] = frozenset(values)
    return memo[numbers]


def draw_problems(random_source: random.Random, count: int = 4, excluded: Collection[Key] = ()) -> Iterator[Problem]:
    """APR's distribution (arXiv 2504.15466): numbers uniform in 1..99, target uniform in 10..100, solvable.

    Endless. Problems whose `key` is in `excluded` are never drawn.
    """
    while True:
        nums = tuple(random_source.randint(1, 99) for _ in range(count))
        problem = Problem(nums, random_source.randint(10, 100))
        if problem.key not in excluded and problem.target in reachable(problem.key[0], {}):
            yield problem


def read_problems(path: Path) -> list[Problem]:
    """Reads a JSON list of `{"nums": [...], "target": n}`; at least one.

    Raises `ValueError`, naming the file, if it is not one, and `OSError` for a file that cannot be read.
    """
    try:
        problems = msgspec.json.decode(path.read_bytes(), type=list[Problem])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f'{path}: expected a JSON list of {{"nums": [...], "target": n}}; {error}.') from error
    if not problems:
        raise ValueError(f"{path}: has no problems.")
    for number, problem in enumerate(problems):
        if len(problem.nums) not in SIZES:
            raise ValueError(f"{path}: problem {number} has {len(problem.nums)} numbers; give four or five.")
    return problems


def problems_of(text: str) -> list[Problem]:
    """An argparse type: the problems in a file."""
    try:
        return read_problems(input_file(text))
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def is_solution(problem: Problem, expression: str) -> bool:
    """Whether `expression` uses every number exactly once and evaluates to the target, in exact arithmetic."""
    used: list[int] = []

    def evaluate(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return Fraction(_ARITHMETIC[type(node.op)](evaluate(node.left), evaluate(node.right)))
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        raise ValueError(f"{ast.dump(node)} is not Countdown arithmetic")

    try:
        value = evaluate(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return False
    return value == problem.target and sorted(used) == sorted(problem.nums)


def expression_of(path: list[Step], nums: tuple[int, ...]) -> str | None:
    """The expression that a chain of steps writes, or None if a step uses a number that is not there.

    Results are recomputed by whoever evaluates the expression: a step's own `result` only links it to later steps.
    """
    available: list[tuple[int, str]] = [(number, str(number)) for number in nums]
    for step in path:
        parts = []
        for operand in (step.left, step.right):
            # A result is preferred to a given number of the same value, so that chains close.
            position = next((i for i in range(len(available) - 1, -1, -1) if available[i][0] == operand), None)
            if position is None:
                return None
            parts.append(available.pop(position)[1])
        available.append((step.result, f"({parts[0]} {step.operator} {parts[1]})"))
    return available[0][1].removeprefix("(").removesuffix(")") if len(available) == 1 and path else None
