"""Finished cells: on disk, so that a killed report goes on where it was, and in memory, to be looked up by cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from benchmarks.countdown.report.cells import Cell, ProblemSet, Record, Result
from benchmarks.countdown.report.checkpoints import CheckpointFacts, Checkpoints, resolved
from examples.countdown.problems import Problem
from runtime.model import replace_file

ProblemSets = dict[ProblemSet, list[Problem]]

_FORMAT = 1
"""Raised when records mean something else, so that older ones are evaluated again."""


class _Finished(msgspec.Struct, frozen=True, kw_only=True):
    """What a file holds: a result but for its cell, which is known from where the file lies."""

    records: tuple[tuple[Record, ...], ...]
    seconds: float
    depths: dict[str, tuple[int, int]]


class ResultStore:
    """A directory with a file a finished cell, named by a hash of everything that its records depend on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, cell: Cell, facts: CheckpointFacts, problems: Sequence[Problem]) -> Result | None:
        """None for a cell that is not finished, or whose file is damaged."""
        try:
            content = self._path(cell, facts, problems).read_bytes()
            finished = msgspec.msgpack.decode(content, type=_Finished)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return Result(
            cell=resolved(cell, facts), records=finished.records, seconds=finished.seconds, depths=finished.depths
        )

    def save(self, result: Result, facts: CheckpointFacts, problems: Sequence[Problem]) -> None:
        """Whole or not at all, whenever it is killed."""
        path = self._path(result.cell, facts, problems)
        path.parent.mkdir(parents=True, exist_ok=True)
        finished = _Finished(records=result.records, seconds=result.seconds, depths=result.depths)
        replace_file(path, msgspec.msgpack.encode(finished))

    def _path(self, cell: Cell, facts: CheckpointFacts, problems: Sequence[Problem]) -> Path:
        return self._directory / f"{cell_key(cell, facts, problems)}.msgpack"


def cell_key(cell: Cell, facts: CheckpointFacts, problems: Sequence[Problem]) -> str:
    """Hex digest of the resolved cell, the checkpoint's weights and protocol, and the problems it is evaluated on."""
    content = (_FORMAT, resolved(cell, facts), facts.fingerprint, facts.protocol, list(problems))
    return blake2b(msgspec.json.encode(content, order="sorted"), digest_size=16).hexdigest()


class Results:
    """Of the cells that were evaluated; those of checkpoints that are missing are not there."""

    def __init__(self, checkpoints: Checkpoints, results: Iterable[Result] = ()) -> None:
        self.checkpoints = checkpoints
        self._by_cell: dict[Cell, Result] = {}
        for result in results:
            self.add(result)

    def add(self, result: Result) -> None:
        self._by_cell[self._resolved(result.cell)] = result

    def get(self, cell: Cell) -> Result | None:
        return self._by_cell.get(self._resolved(cell)) if cell.model in self.checkpoints else None

    def of(self, cells: Iterable[Cell]) -> list[Result]:
        """Those of the cells that are there."""
        return [result for result in map(self.get, cells) if result is not None]

    def _resolved(self, cell: Cell) -> Cell:
        return resolved(cell, self.checkpoints[cell.model])
