"""The Countdown report's command on a handful of problems, and what it writes."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import get_args

import anyio
import msgspec
import pytest
from rich.console import Console

from benchmarks.countdown.report import command, running
from benchmarks.countdown.report.cells import ModelName, ProblemSet, Result, parallel
from benchmarks.countdown.report.checkpoints import CheckpointFacts, read_facts
from benchmarks.countdown.report.document import Bars, Figure, Report, as_markdown
from benchmarks.countdown.report.oracle import consult
from benchmarks.countdown.report.results import Results, ResultStore
from examples.countdown.problems import Problem
from runtime import PromptError
from tests.countdown.invented import PROBLEM, record

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def small_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """Two sections on three problems, with one checkpoint there and three missing; written twice."""
    directory = tmp_path_factory.mktemp("report")
    four = [PROBLEM, Problem((5, 42, 67, 71), 62), Problem((3, 7, 9, 11), 40)]
    problems: dict[ProblemSet, list[Problem]] = {"four": four, "five": []}
    chosen = ["windows", "slots"]
    paths: dict[ModelName, str] = {
        "parallel": "countdown",
        "serial": str(directory / "serial"),
        "serial-supervised": str(directory / "serial-supervised"),
    }
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
    column = report.cells.columns.index("accuracy")
    accuracies = [accuracy for row in report.cells.rows if isinstance(accuracy := row[column], float)]
    assert len(accuracies) == len(report.cells.rows)
    assert best.measured == pytest.approx(100 * max(accuracies))
    assert size.is_met
    assert [aim.measured for aim in report.aims if "serial" in aim.aim] == [None, None, None]


def test_figures_and_tables_show_every_section(tmp_path: Path) -> None:
    """All sections over invented results: nothing runs, everything is drawn."""
    facts = read_facts("countdown")
    checkpoints: dict[ModelName, CheckpointFacts] = dict.fromkeys(get_args(ModelName), facts)
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
    problems: dict[ProblemSet, list[Problem]] = {"four": [PROBLEM, PROBLEM], "five": []}
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
    problems: dict[ProblemSet, list[Problem]] = {"four": [PROBLEM, PROBLEM], "five": []}
    with pytest.raises(PromptError, match="nonsense") as caught:
        anyio.run(
            command.evaluate_cells,
            [parallel("nonsense")],
            checkpoints,
            problems,
            store,
            Console(quiet=True),
        )
    assert caught.value.__notes__ == ["(Evaluating parallel, nonsense, window 512; checkpoint countdown.)"]
    assert not list(tmp_path.iterdir())


def test_the_documentation_is_what_the_report_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole problems that lie in the repository, which are what is evaluated if nothing else is said."""
    from benchmarks.countdown.report import __main__ as entry

    written = msgspec.json.decode((DOCS / "countdown.json").read_bytes(), type=Report)
    assert (DOCS / "countdown.md").read_text() == as_markdown(written, "figures")
    monkeypatch.setattr("sys.argv", ["report"])
    given = entry.arguments()
    assert written.environment.problems == given.problems.name
    assert written.environment.count == len(entry.problem_sets(given)["four"]) == 1000
    found, missing = command.find_checkpoints(
        {"parallel-supervised": given.parallel_supervised, "serial-supervised": given.serial_supervised}
    )
    assert not missing
    fingerprints = {row.name: row.fingerprint for row in written.checkpoints}
    assert all(fingerprints[name] == facts.fingerprint for name, facts in found.items())
