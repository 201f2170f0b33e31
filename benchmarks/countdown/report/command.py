"""Evaluating all cells of a report, and writing it."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.countdown.report.aims import aims
from benchmarks.countdown.report.cells import Cell, ModelName, in_order
from benchmarks.countdown.report.checkpoints import Checkpoints, read_facts, resolved
from benchmarks.countdown.report.document import CheckpointRow, Environment, Report, Table, as_markdown
from benchmarks.countdown.report.drawing import draw
from benchmarks.countdown.report.oracle import Oracle
from benchmarks.countdown.report.results import ProblemSets, Results, ResultStore
from benchmarks.countdown.report.running import run_cell, widens
from benchmarks.countdown.report.sections import (
    depth,
    five,
    frontier,
    latency,
    learning,
    mistakes,
    slots,
    tokens,
    windows,
)
from benchmarks.countdown.report.shown import COST_COLUMNS, cost_row
from benchmarks.machine import cores, processor
from runtime import BraidError, CheckpointError

SECTIONS = {
    "windows": windows,
    "tokens": tokens,
    "latency": latency,
    "learning": learning,
    "depth": depth,
    "frontier": frontier,
    "slots": slots,
    "five": five,
    "mistakes": mistakes,
}


def cells_of(sections: Iterable[str]) -> list[Cell]:
    """What the sections need, each cell once, in the order in which they should run."""
    return in_order(cell for name in sections for cell in SECTIONS[name].cells())


def find_checkpoints(paths: Mapping[ModelName, str]) -> tuple[Checkpoints, tuple[str, ...]]:
    """Those that are there, and the names of those that are not. Raises `CheckpointError` for damaged ones."""
    found: Checkpoints = {}
    missing: list[str] = []
    for name, path in paths.items():
        try:
            found[name] = read_facts(path)
        except CheckpointError:
            if Path(path).exists():
                raise
            missing.append(f"{name} ({path})")
    return found, tuple(missing)


async def evaluate_cells(
    cells: Iterable[Cell], checkpoints: Checkpoints, problems: ProblemSets, store: ResultStore, console: Console
) -> Results:
    """All cells whose checkpoints are there; finished ones are taken from the store, new ones go there one by one.

    Raises what engines raise, with a note which cell it was, and the cells so far in the store.
    """
    results = Results(checkpoints)
    waiting = [cell for cell in cells if cell.model in checkpoints]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        overall = progress.add_task("cells", total=len(waiting))
        for cell in waiting:
            facts = checkpoints[cell.model]
            chosen = problems[cell.problems][: cell.count]
            result = results.get(cell) or store.load(cell, facts, chosen)
            if result is None:
                full = resolved(cell, facts)
                wider = next((found for found in map(results.get, waiting) if found and widens(found.cell, full)), None)
                bar = progress.add_task(cell.name, total=len(chosen))
                try:
                    result = await run_cell(cell, facts, chosen, wider, partial(progress.advance, bar))
                except BraidError as error:
                    error.add_note(f"(Evaluating {cell.name}; checkpoint {facts.path}.)")
                    raise
                progress.remove_task(bar)
                store.save(result, facts, chosen)
            results.add(result)
            progress.advance(overall)
    return results


def compose(
    sections: Iterable[str],
    results: Results,
    oracle: Oracle,
    problems: ProblemSets,
    file: str,
    limit: int | None,
    missing: tuple[str, ...] = (),
) -> Report:
    """The report of what was evaluated; a pure function but for what it says of the machine."""
    chosen = list(sections)
    found = [(cell, result) for cell in cells_of(chosen) if (result := results.get(cell)) is not None]
    return Report(
        environment=Environment(
            python=platform.python_version(),
            torch=str(torch.__version__),
            processor=processor(),
            cores=cores(),
            problems=file,
            count=len(problems["four"]),
            limit=limit,
        ),
        checkpoints=tuple(
            CheckpointRow(
                name=name,
                fingerprint=facts.fingerprint,
                parameters=facts.parameters,
                megabytes=facts.megabytes,
                depth=repr(facts.depth),
            )
            for name, facts in results.checkpoints.items()
        ),
        missing=missing,
        aims=aims(results),
        sections=tuple(SECTIONS[name].section(results, oracle) for name in chosen),
        cells=Table(
            columns=("cell", *COST_COLUMNS, "seconds of the cell"),
            rows=tuple((cell.name, *cost_row(result), result.seconds) for cell, result in found),
        ),
    )


def write(report: Report, directory: Path) -> None:
    """countdown.json, countdown.md and figures/*.svg into the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "countdown.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    (directory / "countdown.md").write_text(as_markdown(report, "figures"), encoding="utf-8")
    for section in report.sections:
        for figure in section.figures:
            draw(figure, directory / "figures")
