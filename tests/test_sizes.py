"""No file and no function grows beyond what is read in one go, and the runtime's top can be seen at a glance."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("runtime", "policies", "traces", "examples", "benchmarks", "tests")

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 80
MOST_AT_THE_TOP = 17


def files() -> list[Path]:
    return sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))


def long_functions(source: str) -> Iterator[str]:
    """Names and lengths of functions, decorators left out, that have more lines than they may."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > MOST_LINES_OF_A_FUNCTION:
                yield f"{node.name}, {lines} lines"


def test_no_file_is_long() -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in files()}
    assert len(lengths) > 400
    assert {str(file): lines for file, lines in lengths.items() if lines > MOST_LINES_OF_A_FILE} == {}


def test_no_function_is_long() -> None:
    assert [f"{file}: {found}" for file in files() for found in long_functions(file.read_text())] == []


@pytest.mark.parametrize(("lines", "found"), [(80, []), (81, ["inner, 81 lines"])])
def test_long_functions_are_found_wherever_they_stand(lines: int, found: list[str]) -> None:
    body = "        pass\n" * (lines - 1)
    assert list(long_functions(f"class Outer:\n    @property\n    async def inner(self):\n{body}")) == found


def test_the_top_of_the_runtime_is_seen_at_a_glance() -> None:
    entries = [entry.name for entry in (ROOT / "runtime").iterdir() if entry.name != "__pycache__"]
    assert len(entries) <= MOST_AT_THE_TOP, sorted(entries)
