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


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    _leave_alone(pluginmanager.rewrite_hook)
    parser.getgroup("braid").addoption(
        "--record-traces",
        action="store_true",
        help="record the traces of tests that use braid_trace, in place of those that are there, instead of playing "
        "them back; a test that fails leaves its files as they were",
    )


def _leave_alone(rewriting: object) -> None:
    """Has pytest not rewrite the assertions of all that is installed along with a plugin, the engine in this case: that
    takes time, and `python -m` and whoever asks a module for its source do not know what is left.

    There is no public way; where pytest has changed, it rewrites."""
    marked, known = (getattr(rewriting, name, None) for name in ("_must_rewrite", "_marked_for_rewrite_cache"))
    if isinstance(marked, set) and isinstance(known, dict):
        marked -= {"policies", "runtime", "traces"}
        known.clear()


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
