"""A pytest plugin: the fixture `braid_trace`, and the option `--record-traces`.

It is loaded with every run of pytest, so it imports nothing that takes time: engines come with the first trace.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from runtime import Engine
    from traces.regression import Recordings

_HAS_PASSED = pytest.StashKey[bool]()
"""Of a test whose own part is over."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("braid").addoption(
        "--record-traces",
        action="store_true",
        help="record the traces of tests that use braid_trace, in place of those that are there, instead of playing "
        "them back; a test that fails leaves its files as they were",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_HAS_PASSED] = report.passed
    return report


class BraidTrace:
    """What the fixture `braid_trace` gives: engines of one test, each recorded, or played back from its file."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._root = request.config.rootpath
        self._again = f"pytest {request.node.nodeid!r} --record-traces"
        self._records = bool(request.config.getoption("--record-traces"))
        self._recordings: Recordings | None = None

    def __call__(
        self, path: str | Path, *, checkpoint: str | Path | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Engine]:
        """An engine for `async with`: played back from the trace at `path` or, under `--record-traces`, recorded there.

        `path` is relative to pytest's root directory. `checkpoint` and `options` (policy, seed, limits, sampling,
        settings, ...) are as in `Engine.open`; the checkpoint is needed to record, and for playback only where it is
        not where the trace says. What they say of policy, seed, sampling and limits holds in playback too, so that a
        test that changes them differs from its trace.

        Raises `TraceMismatch`, an `AssertionError`: on entry where there is no trace that is whole; and on leaving,
        with the first difference, where the program did something else than was recorded, or less. Raises
        `ValueError`, naming the argument, for one that does not fit, and what opening an engine does.
        """
        from traces import regression

        file = self._root / Path(path).expanduser()
        if not self._records:
            return regression.played(file, checkpoint, options, self._again)
        if self._recordings is None:
            self._recordings = regression.Recordings()
        return self._recordings.recorded(file, checkpoint, options)

    def _finish(self, has_passed: bool) -> None:
        if self._recordings is not None:
            self._recordings.finish(keep=has_passed)


@pytest.fixture
def braid_trace(request: pytest.FixtureRequest) -> Iterator[BraidTrace]:
    """Engines that play traces back, or record them: `async with braid_trace("tests/x.trace") as engine: ...`"""
    traces = BraidTrace(request)
    yield traces
    traces._finish(request.node.stash.get(_HAS_PASSED, False))
