"""A pytest plugin: the fixture `braid_trace`, and the option `--record-traces`.

It is loaded with every run of pytest, so it imports nothing that takes time: engines come with the first trace.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from traces.regression import BraidTrace

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


@pytest.fixture
def braid_trace(request: pytest.FixtureRequest) -> Iterator[BraidTrace]:
    """Engines that play traces back, or record them: `async with braid_trace("tests/x.trace") as engine: ...`"""
    from traces.regression import BraidTrace

    traces = BraidTrace(
        request.config.rootpath,
        records=bool(request.config.getoption("--record-traces")),
        again=f"pytest {request.node.nodeid!r} --record-traces",
    )
    yield traces
    traces.finish(keep=request.node.stash.get(_HAS_PASSED, False))
