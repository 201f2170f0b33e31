"""How far a run is, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance = Callable[[int, str], None]
"""`advance(step, text)`: that many steps are done, and what to say of the last."""


@contextmanager
def progress_bar(steps: int, shown: bool = True) -> Iterator[Advance]:
    """A bar on stderr while the block runs; nothing unless stderr is a terminal, or without `shown`."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not (shown and sys.stderr.isatty())) as progress:
        task = progress.add_task("", total=steps)

        def advance(step: int, text: str) -> None:
            progress.update(task, completed=step, description=text)

        yield advance
