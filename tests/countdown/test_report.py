"""The Countdown report: its pure functions, its cells on disk, and the whole command on a handful of problems."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.countdown.parallel import NestedRoot, RootThread
from benchmarks.countdown.report import command, running
from benchmarks.countdown.report.cells import Record, Result
from benchmarks.countdown.report.checkpoints import CheckpointFacts, read_facts, resolved
from benchmarks.countdown.report.curves import Spent, accuracy_at, best_within, largest_gap, largest_saving, pareto
from benchmarks.countdown.report.document import Aim, Bars, Figure, Report
from benchmarks.countdown.report.kinds import kinds_of
from benchmarks.countdown.report.markdown import as_markdown
from benchmarks.countdown.report.oracle import consult
from benchmarks.countdown.report.plan import WINDOWS, children, in_order, parallel, sampled_serial, serial
from benchmarks.countdown.report.results import Results, ResultStore, cell_key
from benchmarks.countdown.report.running import run_cell, widens
from benchmarks.countdown.report.sections import mistakes, windows
from benchmarks.countdown.report.voting import consensus_at, pass_at
from benchmarks.countdown.report.watching import Heard, is_asked, is_found
from examples.countdown.problems import Problem
from policies import Fixed, LatentDiff
from runtime import PromptError

PROBLEM = Problem((22, 26, 31, 53), 27)

FACTS = CheckpointFacts(
    path="nowhere",
    fingerprint="f",
    parameters=1000,
    megabytes=0.1,
    mean_recurrence=6,
    width=128,
    outer_layers=1,
    core_layers=2,
    depth=Fixed(),
    protocol="null",
)


def record(is_right: bool = True, answer: str | None = "a", **changes: object) -> Record:
    whole = Record(
        is_right=is_right,
        answer=answer,
        reason="returned",
        sampled=100,
        computed=120,
        iterations=720,
        threads=4,
        longest=90,
        seconds=0.5,
    )
    return msgspec.structs.replace(whole, **changes)


samples = st.lists(
    st.sampled_from([record(), record(False, "b"), record(False, "c"), record(False, None)]), min_size=1, max_size=6
)


@settings(max_examples=50)
@given(samples)
def test_pass_is_the_share_of_choices_with_a_right_sample(drawn: list[Record]) -> None:
    for n in range(1, len(drawn) + 1):
        chosen = list(itertools.combinations(drawn, n))
        expected = sum(any(sample.is_right for sample in choice) for choice in chosen) / len(chosen)
        assert pass_at(drawn, n) == pytest.approx(expected)
        assert consensus_at(drawn, n) <= pass_at(drawn, n) + 1e-12
    assert consensus_at(drawn, 1) == pytest.approx(pass_at(drawn, 1))


def test_the_most_frequent_answer_wins_right_or_not() -> None:
    right, wrong, other, silent = record(), record(False, "b"), record(False, "c"), record(False, None)
    assert consensus_at([right, wrong, wrong], 3) == 0.0
    assert consensus_at([right, right, wrong], 3) == 1.0
    assert consensus_at([right, silent, silent], 3) == 1.0  # no answer is no vote
    assert consensus_at([silent], 1) == 0.0
    assert consensus_at([right, wrong], 2) == 0.5  # by lot
    assert consensus_at([right, wrong, other], 3) == pytest.approx(1 / 3)
    assert consensus_at([right, right, wrong, wrong], 3) == 0.5
    for function in (pass_at, consensus_at):
        with pytest.raises(ValueError, match="from 1 to 2"):
            function([right, wrong], 3)


spents = st.lists(st.builds(Spent, st.integers(1, 9).map(float), st.integers(0, 9).map(lambda n: n / 10)), max_size=8)


@settings(max_examples=50)
@given(spents)
def test_the_pareto_curve_holds_what_nothing_beats(points: list[Spent]) -> None:
    front = pareto(points)
    for point in points:
        is_beaten = any(
            other.cost <= point.cost and other.accuracy >= point.accuracy and other[:2] != point[:2] for other in points
        )
        assert (point[:2] in [other[:2] for other in front]) == (not is_beaten)
    for budget in (0.5, 3.0, 9.0):
        best = best_within(points, budget)
        assert (best is None) == all(point.cost > budget for point in points)
        if best is not None:
            assert best.accuracy == max(point.accuracy for point in points if point.cost <= budget)
            mixed = accuracy_at(points, budget)
            assert mixed is not None
            assert best.accuracy <= mixed <= max(point.accuracy for point in points)


def test_gaps_are_taken_at_equal_cost() -> None:
    theirs = [Spent(10, 0.2), Spent(20, 0.4), Spent(15, 0.1)]
    assert accuracy_at(theirs, 9) is None
    assert accuracy_at(theirs, 15) == pytest.approx(0.3)
    assert accuracy_at(theirs, 99) == pytest.approx(0.4)
    ours = [Spent(5, 0.9, "too cheap"), Spent(15, 0.5, "fair"), Spent(50, 0.95, "dear")]
    gap = largest_gap(ours, theirs, most=20)
    assert gap is not None
    assert (gap.ours.name, gap.gain, gap.theirs) == ("fair", pytest.approx(0.2), pytest.approx(0.3))
    unbounded = largest_gap(ours, theirs)
    assert unbounded is not None
    assert unbounded.ours.name == "dear"
    assert largest_gap(ours[:1], theirs) is None


def test_savings_are_taken_at_no_less_accuracy() -> None:
    theirs = [Spent(100, 0.5), Spent(200, 0.8)]
    ours = [Spent(90, 0.5), Spent(120, 0.8), Spent(10, 0.4)]
    saving = largest_saving(ours, theirs)
    assert saving is not None
    assert saving[0] == pytest.approx(0.4)
    assert saving[1:] == (ours[1], theirs[1])
    assert largest_saving(ours, [Spent(100, 0.9)]) is None


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
    assert is_asked(PROBLEM, Heard(asked=["53 - 31 22 Q 27 26 22 22"]))
    for text in (
        "53 - 31 21 Q 27 26 22 21",  # wrong arithmetic
        "53 - 31 22 Q 28 26 22 22",  # another target
        "53 - 31 22 Q 27 26 26 22",  # other numbers
        "53 + 31 84 Q 27 84 26 22 1",
        "P 27 53 31 26 22",
        "53 - 31",
        "",
    ):
        assert not is_asked(PROBLEM, Heard(asked=[text])), text
    assert is_found(PROBLEM, Heard(returned=["", "53 - 31 22 22 / 22 1 26 + 1 27"]))
    assert not is_found(PROBLEM, Heard(returned=["53 - 31 22 26 + 22 48 48 - 22 26", "53 - 31"]))
    assert not is_found(PROBLEM, Heard(asked=["53 - 31 22 Q 27 26 22 22"]))


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
def test_errors_have_one_kind(changes: dict[str, object], solvable: bool, is_serial: bool, kind: str) -> None:
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


def test_aims_say_whether_they_are_met() -> None:
    assert Aim(aim="a", measured=3.0, bound=2.0).is_met
    assert not Aim(aim="a", measured=3.0, bound=2.0, is_lower_better=True).is_met
    assert Aim(aim="a", measured=None, bound=2.0).is_met is None


def test_the_oracle_is_the_solver_itself() -> None:
    oracle = consult([PROBLEM, Problem((1, 1, 1, 1), 99)])
    assert oracle.solvable == (True, False)
    assert oracle.ceiling == 0.5
    shares = [oracle.serial[window] for window in WINDOWS]
    assert shares == sorted(shares)
    assert shares[-1] == 0.5


@pytest.fixture(scope="module")
def small_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """Two sections on three problems, with one checkpoint there and three missing; written twice."""
    directory = tmp_path_factory.mktemp("report")
    problems = {"four": [PROBLEM, Problem((5, 42, 67, 71), 62), Problem((3, 7, 9, 11), 40)], "five": []}
    chosen = ["windows", "slots"]
    paths = {"parallel": "countdown", **{name: str(directory / name) for name in ("serial", "serial-supervised")}}
    checkpoints, missing = command.find_checkpoints(paths)
    cells = [
        cell
        for cell in command.cells_of(chosen)
        if cell.condition == "" and cell.context in (128, 512, 1024) and cell.slots in (None, 1)
    ]

    async def run() -> Results:
        return await command.evaluate_cells(
            [*cells, parallel(is_traced=True)],
            checkpoints,
            problems,
            ResultStore(directory / "cache"),
            Console(quiet=True),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "TRACED_AT_ONCE", 2)
        results = anyio.run(run)
    traced = results.get(parallel(is_traced=True))
    assert traced is not None
    for mine, theirs in zip(traced.flat, (results.get(parallel()) or traced).flat, strict=True):
        assert mine.sequential is not None
        assert mine.longest <= mine.sequential + 20 < mine.sampled
        assert (mine.answer, mine.sampled, mine.iterations) == (theirs.answer, theirs.sampled, theirs.iterations)
    assert sum(count for count, _ in traced.depths.values()) == sum(found.sampled for found in traced.flat)
    oracle = consult(problems["four"])
    report = command.compose(chosen, results, oracle, problems, "three.json", 3, missing)
    command.write(report, directory / "docs")
    # Again: everything is there, so nothing is evaluated, and the same comes out.
    files = {path: path.stat().st_mtime_ns for path in (directory / "cache").iterdir()}
    again = anyio.run(run)
    assert {path: path.stat().st_mtime_ns for path in (directory / "cache").iterdir()} == files
    assert command.compose(chosen, again, oracle, problems, "three.json", 3, missing) == report
    return report, directory


def test_the_report_is_written(small_report: tuple[Report, Path]) -> None:
    report, directory = small_report
    docs = directory / "docs"
    written = msgspec.json.decode((docs / "countdown.json").read_bytes())
    assert written == msgspec.json.decode(msgspec.json.encode(report))
    assert written["missing"] == [f"{name} ({directory / name})" for name in ("serial", "serial-supervised")]
    text = (docs / "countdown.md").read_text()
    assert text == as_markdown(report, "figures")
    assert "--limit 3" in text
    figures = [figure for section in report.sections for figure in section.figures]
    assert figures
    for figure in figures:
        assert f"figures/{figure.name}.svg" in text
        root = ElementTree.parse(docs / "figures" / f"{figure.name}.svg").getroot()
        assert root.tag.endswith("svg")


def test_the_report_tells_what_ran(small_report: tuple[Report, Path]) -> None:
    report, _ = small_report
    assert [row[0] for row in report.cells.rows][:1] == ["parallel, unlimited children, window 1024"]
    plain = report.cells.rows[0]
    accuracy = plain[report.cells.columns.index("accuracy")]
    assert accuracy in (pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
    (table,) = report.sections[0].tables
    by_window = {row[0]: row[table.columns.index("unlimited children")] for row in table.rows}
    assert by_window[1024] == accuracy
    assert by_window[128] == 0.0  # its root alone is longer than that
    assert by_window[256] is None  # was not evaluated
    best, size, *_ = report.aims
    # Of all settings that were evaluated; the plain row is one of them.
    assert best.measured == pytest.approx(
        100 * max(row[report.cells.columns.index("accuracy")] for row in report.cells.rows)
    )
    assert size.is_met
    assert [aim.measured for aim in report.aims if "serial" in aim.aim] == [None, None, None]


def test_figures_and_tables_show_every_section(tmp_path: Path) -> None:
    """All sections over invented results: nothing runs, everything is drawn."""
    facts = read_facts("countdown")
    checkpoints = dict.fromkeys(("parallel", "serial", "parallel-supervised", "serial-supervised"), facts)
    results = Results(checkpoints)
    for number, cell in enumerate(command.cells_of(command.SECTIONS)):
        tokens = (50 if cell.is_serial else 200) + number
        invented = record(number % 3 > 0, sampled=tokens, iterations=6 * tokens, sequential=tokens // 2)
        result = Result(
            cell=cell,
            records=((invented,) * cell.samples, (record(sequential=9),) * cell.samples),
            seconds=1.0,
            depths={"result": (10, 55), "operand": (20, 60)} if cell.is_traced else {},
        )
        results.add(result)
    problems = {"four": [PROBLEM, PROBLEM], "five": []}
    report = command.compose(command.SECTIONS, results, consult(problems["four"]), problems, "p.json", None)
    assert [aim.aim for aim in report.aims if aim.measured is None and "adaptive" not in aim.aim] == []
    assert len(report.sections) == len(command.SECTIONS)
    command.write(report, tmp_path)
    text = (tmp_path / "countdown.md").read_text()
    for section in report.sections:
        assert f"## {section.title}" in text
        assert all(len(row) == len(table.columns) for table in section.tables for row in table.rows)
        assert all(table.rows for table in section.tables)
        for figure in section.figures:
            if isinstance(figure, Bars):
                assert figure.bars == {"operand": 3.0, "result": 5.5}
            else:
                assert isinstance(figure, Figure)
                assert all(math.isfinite(point.y) for series in figure.series for point in series.points)
    assert len(list((tmp_path / "figures").glob("*.svg"))) == sum(len(section.figures) for section in report.sections)


def test_windows_ask_for_each_condition_at_each_window() -> None:
    assert len(windows.cells()) == (len(windows.CONDITIONS) + 1) * len(WINDOWS)


def test_the_command_explains_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.countdown.report import __main__ as entry

    monkeypatch.setattr("sys.argv", ["report", "--problems", "/nowhere.json"])
    with pytest.raises(SystemExit):
        entry.arguments()
    assert "--problems: cannot read" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["report", "--limit", "0"])
    with pytest.raises(SystemExit):
        entry.arguments()
    assert "--limit: is '0'" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_asked_so_is_named(tmp_path: Path) -> None:
    checkpoints, _ = command.find_checkpoints({"parallel": "countdown"})
    store = ResultStore(tmp_path)
    with pytest.raises(PromptError, match="nonsense") as caught:
        anyio.run(
            command.evaluate_cells,
            [parallel("nonsense")],
            checkpoints,
            {"four": [PROBLEM, PROBLEM], "five": []},
            store,
            Console(quiet=True),
        )
    assert caught.value.__notes__ == ["(Evaluating parallel, nonsense, window 512; checkpoint countdown.)"]
    assert not list(tmp_path.iterdir())
