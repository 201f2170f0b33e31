"""What the Countdown report evaluates and how it reads what threads wrote; its cells on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from benchmarks.countdown.parallel import NestedRoot, RootThread
from benchmarks.countdown.report import command
from benchmarks.countdown.report.cells import WINDOWS, Result, children, in_order, parallel, sampled_serial, serial
from benchmarks.countdown.report.checkpoints import resolved
from benchmarks.countdown.report.kinds import kinds_of
from benchmarks.countdown.report.oracle import consult
from benchmarks.countdown.report.results import ResultStore, cell_key
from benchmarks.countdown.report.running import run_cell, widens
from benchmarks.countdown.report.sections import mistakes, windows
from benchmarks.countdown.report.watching import Observed, is_asked, is_found
from examples.countdown.problems import Problem
from policies import Fixed, LatentDiff
from tests.countdown.invented import FACTS, PROBLEM, record

LETTERS = {"o": "operand", "r": "result", "v": "verdict", "s": "structure", "p": "path"}


@pytest.mark.parametrize(
    ("prompt", "written", "letters"),
    [
        (
            "53 - 31 22 Q 27 26 22 22",
            "26 + 22 48 22 + 70 43 - 26 1 22 + 22 44 26 + 70 43 <win> 53 - 31 22 <end>",
            "o  s o  r  o  s r  v  s r  v o  s o  r  o  s r  v  v     p  s p  p  v",
        ),
        (
            "22 26 31 53 -> 27 within 256",
            "Q 27 53 31 26 22 53 - 31 22 Q 27 26 22 22 26 + 22 48 22 + 70 43 31 - 26 5 Q 27 53 22 5",
            "s o  o  o  o  o  o  s o  r  s o  o  o  o  o  s o  r  o  s r  v  o  s o  r s o  o  o  o",
        ),
        (
            "22 26 31 53 -> 27 children 2",
            "Q 27 53 31 26 22 2 <spawn> 53 - 31 22 Q 27 26 22 22 </spawn> 1 <spawn> 31 - 26 5 Q 27 53 22 5 </spawn>",
            "s o  o  o  o  o  s s       o  s o  r  s o  o  o  o  s        s s       o  s o  r s o  o  o  o s",
        ),
        (
            "8 - 3 5 Q 27 53 31 26 5",
            "<spawn> 8 - 3 5 53 - 31 22 Q 27 26 22 5 </spawn> <join> <end>",
            "s       o s o r o  s o  r  s o  o  o  o s        s      v",
        ),
    ],
)
def test_kinds_of_tokens(prompt: str, written: str, letters: str) -> None:
    words = prompt.split()
    assert kinds_of([*words, *written.split()], len(words)) == [LETTERS[letter] for letter in letters.split()]


def test_kinds_of_what_the_solvers_write() -> None:
    root = RootThread(PROBLEM)
    kinds = kinds_of([*root.prompt, *root.written], len(root.prompt))
    results = [word for word, kind in zip(root.written, kinds, strict=True) if kind == "result"]
    assert results == [str(step.result) for step, _ in root.branches]
    nested = NestedRoot(PROBLEM)
    assert set(kinds_of([*nested.prompt, *nested.written], len(nested.prompt))) == {"operand", "structure"}
    for child in root.searching():
        kinds = kinds_of([*child.prompt, *child.written], len(child.prompt))
        for place, (word, kind) in enumerate(zip(child.written, kinds, strict=True)):
            assert (kind == "structure") == (word in "+-*/")
            if kind == "verdict" and word.isdigit():
                assert kinds[place - 1] == "result"
                assert int(word) == abs(int(child.written[place - 1]) - PROBLEM.target)


def test_what_children_were_asked_and_found() -> None:
    assert is_asked(PROBLEM, Observed(asked=["53 - 31 22 Q 27 26 22 22"]))
    for text in (
        "53 - 31 21 Q 27 26 22 21",  # wrong arithmetic
        "53 - 31 22 Q 28 26 22 22",  # another target
        "53 - 31 22 Q 27 26 26 22",  # other numbers
        "53 + 31 84 Q 27 84 26 22 1",
        "P 27 53 31 26 22",
        "53 - 31",
        "",
    ):
        assert not is_asked(PROBLEM, Observed(asked=[text])), text
    assert is_found(PROBLEM, Observed(returned=["", "53 - 31 22 22 / 22 1 26 + 1 27"]))
    assert not is_found(PROBLEM, Observed(returned=["53 - 31 22 26 + 22 48 48 - 22 26", "53 - 31"]))
    assert not is_found(PROBLEM, Observed(asked=["53 - 31 22 Q 27 26 22 22"]))


@pytest.mark.parametrize(
    ("changes", "solvable", "is_serial", "kind"),
    [
        ({}, False, False, mistakes.UNSOLVABLE),
        ({"reason": "context"}, True, False, mistakes.CUT),
        ({"is_found": True, "answer": None}, True, False, mistakes.FORGOTTEN),
        ({"is_found": True, "is_asked": True}, True, False, mistakes.CONFUSED),
        ({"is_asked": True}, True, False, mistakes.NOT_FOUND),
        ({}, True, False, mistakes.NOT_ASKED),
        ({}, True, True, mistakes.WRONG),
        ({"answer": None}, True, True, mistakes.GAVE_UP),
    ],
)
def test_errors_have_one_kind(changes: dict[str, Any], solvable: bool, is_serial: bool, kind: str) -> None:
    assert mistakes.mistake(record(False, **changes), solvable, is_serial) == kind


def test_cells_that_do_the_same_are_one() -> None:
    same = [parallel(), parallel(depth=Fixed()), parallel(depth=Fixed(6)), parallel(slots=6), parallel(slots=9)]
    assert len({resolved(cell, FACTS) for cell in same}) == 1
    assert len({cell_key(cell, FACTS, [PROBLEM]) for cell in same}) == 1
    others = [
        cell_key(parallel(), FACTS, [PROBLEM, PROBLEM]),
        cell_key(parallel(), msgspec.structs.replace(FACTS, fingerprint="g"), [PROBLEM]),
        cell_key(parallel(), msgspec.structs.replace(FACTS, depth=LatentDiff(0.1)), [PROBLEM]),
        *(
            cell_key(cell, FACTS, [PROBLEM])
            for cell in (
                parallel(depth=Fixed(4)),
                parallel(children(3)),
                parallel(slots=2),
                serial(128),
                parallel(context=9),
            )
        ),
    ]
    assert len({*others, cell_key(parallel(), FACTS, [PROBLEM])}) == len(others) + 1
    # The path that a checkpoint lies at is no part of what it does.
    moved = msgspec.structs.replace(FACTS, path="elsewhere")
    assert cell_key(parallel(), moved, [PROBLEM]) == cell_key(parallel(), FACTS, [PROBLEM])


def test_finished_cells_come_back_from_disk(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    cell = resolved(sampled_serial(128), FACTS)
    result = Result(cell=cell, records=((record(), record(False, None)),), seconds=2.0, depths={"result": (3, 9)})
    assert store.load(cell, FACTS, [PROBLEM]) is None
    store.save(result, FACTS, [PROBLEM])
    assert store.load(sampled_serial(128), FACTS, [PROBLEM]) == result
    assert store.load(sampled_serial(256), FACTS, [PROBLEM]) is None
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert store.load(cell, FACTS, [PROBLEM]) is None


def test_wider_windows_come_first_and_are_reused_only_where_nothing_was_cut() -> None:
    cells = command.cells_of(command.SECTIONS)
    assert len(cells) == len(set(cells))
    for cell in cells:
        if cell.context < 512 and not cell.is_serial:
            assert msgspec.structs.replace(cell, context=512) in cells[: cells.index(cell)]
    wide, narrow = resolved(parallel(), FACTS), resolved(parallel(context=100), FACTS)
    assert widens(wide, narrow)
    assert not widens(narrow, wide)
    assert not widens(resolved(parallel(children(3)), FACTS), narrow)
    assert not widens(msgspec.structs.replace(wide, temperature=1.0), msgspec.structs.replace(narrow, temperature=1.0))
    # Nothing is left to run: the checkpoint, which does not exist, is not opened.
    short = Result(cell=wide, records=((record(longest=99),), (record(False, longest=80),)), seconds=1.0)
    taken = anyio.run(run_cell, narrow, FACTS, [PROBLEM, PROBLEM], short)
    assert taken.records == short.records
    assert in_order([narrow, wide]) == [wide, narrow]


def test_the_oracle_is_the_solver_itself() -> None:
    oracle = consult([PROBLEM, Problem((1, 1, 1, 1), 99)])
    assert oracle.solvable == (True, False)
    assert oracle.ceiling == 0.5
    shares = [oracle.serial[window] for window in WINDOWS]
    assert shares == sorted(shares)
    assert shares[-1] == 0.5


def test_windows_ask_for_each_condition_at_each_window() -> None:
    assert len(windows.cells()) == (len(windows.CONDITIONS) + 1) * len(WINDOWS)
