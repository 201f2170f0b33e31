"""Tests that play traces back: run by pytest itself, inside of this one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import anyio
import pytest

from runtime import Engine
from traces import read

ROOT = Path(__file__).parents[2]

TEST = """
import pytest

@pytest.mark.{mark}
async def test_it(braid_trace):
    async with braid_trace("it.trace"{options}) as engine:
        async with engine.thread("{prompt}") as root:
            for _ in range({times}):
                await root.generate({tokens})
    {after}
"""


async def record(path: Path) -> None:
    async with Engine.open("countdown", trace=path) as engine, engine.thread("22 26 31 53 -> 27") as root:
        for _ in range(2):
            await root.generate(4)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Recorded outside of the inner pytest, which forgets the modules that it has loaded."""
    path = tmp_path_factory.mktemp("recorded") / "it.trace"
    anyio.run(record, path)
    return path.read_bytes()


@pytest.fixture
def inner(pytester: pytest.Pytester, trace: bytes, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with a trace; plugins are those that are named, whatever is installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (pytester.path / "it.trace").write_bytes(trace)
    return pytester


def run(
    inner: pytest.Pytester,
    *arguments: str,
    mark: str = "anyio",
    options: str = "",
    prompt: str = "22 26 31 53 -> 27",
    times: int = 2,
    tokens: int = 4,
    after: str = "",
    plugin: str = "anyio",
) -> pytest.RunResult:
    inner.makepyfile(
        test_it=TEST.format(mark=mark, options=options, prompt=prompt, times=times, tokens=tokens, after=after)
    )
    return inner.runpytest_inprocess("-p", plugin, "-p", "traces.pytest_plugin", "-p", "no:cacheprovider", *arguments)


def test_the_entry_point_is_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plugin = import_module(project["entry-points"]["pytest11"]["braid"])
    assert plugin.braid_trace


def test_pytest_starts_without_anything_large() -> None:
    large = "{'torch', 'transformers', 'numpy', 'numba', 'msgspec', 'rich', 'anyio'}"
    program = f"import pytest, sys, traces.pytest_plugin; print(sorted({large} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("mark", "plugin", "tests"), [("anyio", "anyio", 2), ("asyncio", "pytest_asyncio.plugin", 1)])
def test_a_program_that_does_the_same_passes(inner: pytest.Pytester, mark: str, plugin: str, tests: int) -> None:
    """With anyio's plugin, on asyncio and on trio."""
    if mark == "asyncio":
        inner.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    run(inner, mark=mark, plugin=plugin).assert_outcomes(passed=tests)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": "22 26 31 52 -> 27"}, "*Thread 0 differs from the recording: the program appends token * at*"),
        ({"tokens": 3}, "*generate 1 asks for at most 3 tokens; recorded were 4 of at most 4*"),
        ({"times": 3}, "*the program starts generate 3, and only 2 were recorded*"),
        ({"options": ", seed=5"}, "*seed is 5, and was 0*"),
        (
            {"times": 1},
            "*1 recorded generate was not asked for; the first is generate 2 of 2 of thread 0, at position *",
        ),
    ],
)
def test_the_first_difference_is_told(inner: pytest.Pytester, changes: dict[str, str | int], told: str) -> None:
    result = run(inner, "-k", "asyncio", **changes)  # type: ignore[arg-type]
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines([told, "*record it again with: pytest 'test_it.py::test_it?asyncio?' --record-traces*"])


def test_a_difference_that_the_program_hides_is_told(inner: pytest.Pytester) -> None:
    inner.makepyfile("""
        import contextlib, pytest

        @pytest.mark.anyio
        async def test_it(braid_trace):
            async with braid_trace("it.trace") as engine:
                with contextlib.suppress(Exception):
                    await engine.run("1 2 3 4 -> 10")
    """)
    result = inner.runpytest_inprocess("-p", "anyio", "-p", "traces.pytest_plugin", "-k", "trio")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["*TraceMismatch: The program differs from *it.trace. Thread 0 differs*"])


def test_what_failed_anyway_is_told_alone(inner: pytest.Pytester) -> None:
    inner.makepyfile("""
        import pytest

        @pytest.mark.anyio
        async def test_it(braid_trace):
            async with braid_trace("it.trace") as engine:
                assert engine is None, "of its own"
    """)
    result = inner.runpytest_inprocess("-p", "anyio", "-p", "traces.pytest_plugin", "-k", "asyncio")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["*AssertionError: of its own*"])
    result.stdout.no_fnmatch_line("*not asked for*")


def test_a_trace_that_is_not_there_or_not_whole(inner: pytest.Pytester, trace: bytes) -> None:
    path = inner.path / "it.trace"
    path.write_bytes(trace[:-8])
    result = run(inner, "-k", "asyncio")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["*it.trace is not whole: *end mark*Record it again with: pytest *"])
    path.unlink()
    result = run(inner, "-k", "asyncio")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["*There is no trace *it.trace. Record it with: pytest * --record-traces*"])


@pytest.mark.parametrize(
    ("options", "arguments", "told"),
    [
        (", dtpye='float32'", (), "*dtpye*"),
        (", trace='other'", (), "*braid_trace has trace, which its path says*"),
        (
            "",
            ("--record-traces",),
            "*Nothing says which model *it.trace is recorded with; give braid_trace a checkpoint*",
        ),
        (", checkpoint='nowhere'", ("--record-traces",), "*CheckpointError*nowhere*"),
    ],
)
def test_arguments_that_do_not_fit(
    inner: pytest.Pytester, trace: bytes, options: str, arguments: tuple[str, ...], told: str
) -> None:
    result = run(inner, "-k", "asyncio", *arguments, options=options)
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines([told])
    assert [path.name for path in inner.path.glob("*.trace*")] == ["it.trace"]
    assert (inner.path / "it.trace").read_bytes() == trace


def test_a_recording_replaces_the_trace_where_the_test_passes(inner: pytest.Pytester, trace: bytes) -> None:
    recording = {"options": ", checkpoint='countdown', seed=3", "times": 3}
    failing = run(inner, "--record-traces", after="assert not root", **recording)  # type: ignore[arg-type]
    failing.assert_outcomes(failed=2)
    assert (inner.path / "it.trace").read_bytes() == trace
    assert not list(inner.path.glob(".*.new"))
    run(inner, "--record-traces", **recording).assert_outcomes(passed=2)  # type: ignore[arg-type]
    recorded = read(inner.path / "it.trace")
    assert (recorded.lost, recorded.header.seed) == (None, 3)
    assert not list(inner.path.glob(".*.new"))
    run(inner, options=", checkpoint='countdown'", times=3).assert_outcomes(passed=2)


def test_the_example_is_recorded_and_played_back(inner: pytest.Pytester) -> None:
    inner.makepyfile(test_countdown=(ROOT / "examples" / "test_regression.py").read_text())
    arguments = ("-p", "anyio", "-p", "traces.pytest_plugin", "-k", "test_first_solution")
    inner.runpytest_inprocess(*arguments, "--record-traces").assert_outcomes(passed=2)
    assert read(inner.path / "countdown.trace").lost is None
    inner.runpytest_inprocess(*arguments).assert_outcomes(passed=2)


def test_the_engine_is_not_rewritten(pytester: pytest.Pytester) -> None:
    """Though it is installed along with the plugin, whose package pytest would rewrite whole."""
    pytester.makepyfile(
        """
        import importlib.util

        def test_loaders() -> None:
            for name in ("policies.limits", "runtime.engine", "traces.reader"):
                assert type(importlib.util.find_spec(name).loader).__name__ == "SourceFileLoader"
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
