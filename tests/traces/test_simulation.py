"""What a trace would take under other loads: the same is said, by the same threads, in another time."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import msgspec
import numpy as np
import pytest

from policies import ByLoad, DepthPolicy, Fixed, LatentDiff, MaxChildren, Policy
from runtime import CheckpointError, Engine, EngineSettings, ReasoningThread, TraceError
from traces import Arrivals, DeviceCosts, Prediction, Scenario, TickDone, Trace, read, read_costs, simulate, totals_of
from traces.__main__ import main
from traces.simulation.call_times import CallTimes
from traces.simulation.costs import FitError, Range, fit_costs
from traces.simulation.workload import workload_of

PROMPTS = ("22 26 31 53 -> 27", "5 42 67 71 -> 62", "3 8 20 31 -> 40", "36 69 74 44 -> 13")
POLICY = Policy(depth=LatentDiff(0.2), spawn=MaxChildren(3))
COSTS = DeviceCosts(
    machine="made up",
    checkpoint="countdown",
    call=1e-4,
    call_entering=0.0,
    tick=1e-4,
    lane_knots=(0,),
    lanes=(1e-6,),
    key_knots=(0,),
    keys=(1e-8,),
    entering=0.0,
    leaving=0.0,
    host_call=5e-5,
    host_stopped=0.0,
    host_entering=0.0,
    host_command=1e-5,
    hop=1e-4,
    calls=100,
    in_flight=Range(1, 500),
    keys_read=Range(1, 1e6),
    call_error=FitError(0, 0),
    host_error=FitError(0, 0),
)


async def _say(thread: ReasoningThread) -> None:
    await thread.generate(max_tokens=9)


async def record(path: Path) -> None:
    opened = Engine.open("countdown", policy=POLICY, trace=path, seed=5, num_pages=400, reuse_prefixes=False)
    async with opened as engine:
        for prompt in PROMPTS:
            await engine.run(prompt)
        # A program's tree: a child that is taken and others that are cancelled, then forks that are merged.
        async with engine.thread(PROMPTS[0]) as root:
            children = [root.spawn(prompt, program=_say) for prompt in PROMPTS[1:]]
            await root.first(children)
            await root.generate(max_tokens=4)
            forks = [root.fork(program=_say) for _ in range(3)]
            await root.join(forks, merge=True)
            root.append("53")
            await root.generate(max_tokens=6)
            await root.score(PROMPTS[1])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulate") / "run.trace"
    anyio.run(record, path)
    return path


def predicted(
    path: Path, scenario: Scenario, depth: DepthPolicy | None = None, settings: EngineSettings | None = None
) -> Prediction:
    return simulate(path, [scenario], device=COSTS, depth=depth, settings=settings).predictions[0]


@pytest.mark.parametrize("concurrency", [1, 2, 100])
@pytest.mark.parametrize("order", ["depth-first", "first-come", "shortest-first"])
def test_the_same_is_said_under_every_load(path: Path, concurrency: int, order: str) -> None:
    totals = totals_of(read(path).events)
    found = predicted(path, msgspec.convert({"concurrency": concurrency, "order": order}, Scenario))
    assert (found.questions, found.threads, found.failed) == (5, totals.threads, 0)
    # What cancelled threads said depends on when they were.
    assert 0.95 * totals.generated <= found.tokens <= totals.generated
    assert found.evictions == found.preemptions == found.recomputed == 0
    assert 0 < found.busy <= 1
    assert found.latency.p50 <= found.latency.p95 <= found.latency.greatest <= found.seconds + 1e-9


def test_alone_it_computes_what_was_computed(path: Path, tmp_path: Path) -> None:
    async def run(file: Path) -> None:
        async with Engine.open("countdown", policy=POLICY, trace=file, num_pages=400) as engine:
            await engine.run(PROMPTS[0])
            await engine.run(PROMPTS[1])

    anyio.run(run, tmp_path / "runs.trace")
    totals = totals_of(read(tmp_path / "runs.trace").events)
    found = predicted(tmp_path / "runs.trace", Scenario(concurrency=1))
    assert (found.tokens, found.iterations) == (totals.generated, totals.iterations)
    assert found.cached_tokens == totals.cached_tokens


def test_more_at_a_time_and_more_replicas_take_less_time(path: Path) -> None:
    alone, beside, spread = (
        predicted(path, Scenario(concurrency=concurrency, replicas=replicas))
        for concurrency, replicas in ((1, 1), (4, 1), (4, 4))
    )
    assert alone.seconds > beside.seconds > spread.seconds
    assert alone.latency.p50 < beside.latency.p50
    assert alone.lanes < beside.lanes
    assert spread.pages < beside.pages
    assert beside.memory == beside.pages * (alone.memory // alone.pages)


def test_questions_that_come_faster_than_they_are_answered_wait(path: Path) -> None:
    slow, fast = (
        predicted(path, Scenario(concurrency=1, arrivals=Arrivals(rate), questions=12)) for rate in (0.5, 500.0)
    )
    assert slow.questions == fast.questions == 12
    assert slow.queueing.p50 == 0 < fast.queueing.p50 < fast.latency.p50
    assert slow.busy < fast.busy
    assert slow.seconds > fast.seconds


def test_few_pages_evict_and_few_lanes_preempt(path: Path) -> None:
    plenty = predicted(path, Scenario(concurrency=4))
    found = predicted(path, Scenario(concurrency=4), settings=EngineSettings(num_pages=16, reuse_prefixes=False))
    assert found.evictions > 0 < found.recomputed
    assert found.pages <= 16 < plenty.pages
    assert found.seconds > plenty.seconds
    narrow = EngineSettings(num_pages=400, max_in_flight=2, prefill_chunk=2)
    found = predicted(path, Scenario(concurrency=4), settings=narrow)
    assert found.waiting > 0
    assert found.lanes <= 2


def test_a_policy_bounds_the_depths_that_were_recorded(path: Path) -> None:
    recorded = predicted(path, Scenario(concurrency=4))
    shallow = predicted(path, Scenario(concurrency=4), depth=Fixed(1))
    assert shallow.seconds < recorded.seconds
    assert shallow.iterations < recorded.iterations
    by_load = ByLoad(criterion=LatentDiff(0.2), calm=0.0, busy=0.1, least=1)
    few_lanes = EngineSettings(num_pages=400, max_in_flight=8, prefill_chunk=8)
    assert predicted(path, Scenario(concurrency=4), depth=by_load, settings=few_lanes).iterations < recorded.iterations


def test_all_questions_as_one_tree(path: Path) -> None:
    apart = predicted(path, Scenario(concurrency=100))
    found = predicted(path, Scenario(concurrency=1, as_one_tree=True))
    assert (found.questions, found.threads) == (1, apart.threads + 1)
    assert found.latency.p50 == pytest.approx(found.seconds)
    assert found.tokens >= 0.95 * apart.tokens


def test_costs_come_from_the_trace_where_no_device_is_given(path: Path) -> None:
    found = simulate(path, [Scenario(concurrency=1)])
    assert found.is_fitted
    ticks = [event.seconds for event in read(path).events if isinstance(event, TickDone)]
    # One after the other, as they were recorded: the same ticks.
    assert found.predictions[0].seconds >= 0.5 * sum(ticks)
    assert msgspec.json.decode(msgspec.json.encode(found.costs), type=DeviceCosts) == found.costs


def test_known_costs_are_found_again() -> None:
    rng = np.random.default_rng(0)
    ticks, calls = 4000, 1000
    first = np.arange(0, ticks, ticks // calls)
    in_flight, keys = rng.integers(1, 200, ticks).astype(float), rng.integers(1, 9000, ticks).astype(float)
    entered, left = rng.integers(0, 9, ticks).astype(float), rng.integers(0, 9, ticks).astype(float)
    entering, stopped = rng.integers(0, 20, calls).astype(float), rng.integers(0, 20, calls).astype(float)
    commands = rng.integers(0, 20, calls).astype(float)
    seconds = (
        2e-5 + 3e-6 * in_flight + 2e-6 * np.maximum(0, in_flight - 64) + 4e-8 * keys + 1e-6 * entered + 5e-6 * left
    )
    seconds[first + 3] += 1e-4 + 7e-6 * entering
    pause = 5e-5 + 1e-6 * stopped + 2e-6 * entering + 3e-6 * commands
    pause[::7] = np.nan
    times = CallTimes(in_flight, entered, left, keys, first, seconds, pause, stopped, entering, commands, 1e-3)
    costs = fit_costs(times, machine="", checkpoint="")
    found = [costs.tick, costs.entering, costs.leaving, costs.call, costs.call_entering, costs.host_call]
    assert found == pytest.approx([2e-5, 1e-6, 5e-6, 1e-4, 7e-6, 5e-5], rel=1e-3)
    assert (costs.host_stopped, costs.host_entering, costs.host_command) == pytest.approx((1e-6, 2e-6, 3e-6))
    steep = dict(zip(costs.lane_knots, np.cumsum(costs.lanes), strict=True))
    assert (steep[0], steep[64]) == pytest.approx((3e-6, 5e-6), rel=1e-3)
    assert sum(costs.keys) == pytest.approx(4e-8, rel=1e-3)
    assert costs.hop == 1e-3
    assert costs.call_error.p90 < 1e-3


def test_arrivals_are_read_and_drawn() -> None:
    assert Arrivals.parse("at-once") == Arrivals()
    assert Arrivals.parse("even:30/min") == Arrivals(0.5, False)
    times = Arrivals.parse("poisson:20/s").times(4000, seed=3)
    assert times[-1] / 4000 == pytest.approx(1 / 20, rel=0.1)
    assert (np.diff(times) > 0).all()
    for wrong in ("poisson:20", "poisson:0/s", "poisson:-1/s", "poisson:inf/s", "at-onc", ""):
        with pytest.raises(ValueError, match="give"):
            Arrivals.parse(wrong)


def test_what_cannot_be_simulated_is_told(path: Path, tmp_path: Path) -> None:
    trace = read(path)
    ticks = [number for number, event in enumerate(trace.events) if isinstance(event, TickDone)]
    with pytest.raises(TraceError, match="nothing can be simulated"):
        workload_of(trace.header, trace.events[:3])
    with pytest.raises(TraceError, match="at least 32"):
        simulate(Trace(trace.header, trace.events[: ticks[20]]), [Scenario(concurrency=1)])
    with pytest.raises(CheckpointError, match="nowhere"):
        simulate(path, [Scenario(concurrency=1)], checkpoint=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="at least 1"):
        Scenario(concurrency=0)
    file = tmp_path / "device.json"
    for content in (b"{}", b"[", msgspec.json.encode(COSTS).replace(b'"tick":0.0001', b'"tick":-1')):
        file.write_bytes(content)
        with pytest.raises(TraceError, match="no device"):
            read_costs(file)


def test_the_command_predicts_and_warns(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device, found = tmp_path / "device.json", tmp_path / "found.json"
    narrow = msgspec.structs.replace(COSTS, in_flight=Range(1, 2))
    device.write_bytes(msgspec.json.encode(narrow))
    arguments = ["simulate", str(path), "--device", str(device), "--json", str(found)]
    options = [
        "--concurrency",
        "1,4",
        "--replicas",
        "1,2",
        "--order",
        "depth-first,first-come",
        "--arrivals",
        "even:90/s",
    ]
    assert main([*arguments, *options, "--pages", "300", "--lanes", "64"]) == 0
    told = capsys.readouterr()
    assert "extrapolated" in told.err
    assert "tokens/s" in told.out
    predictions = json.loads(found.read_text())["predictions"]
    assert [(each["scenario"]["concurrency"], each["scenario"]["replicas"]) for each in predictions] == [
        (concurrency, replicas) for concurrency in (1, 4) for replicas in (1, 2) for _ in range(2)
    ]
    device.write_bytes(msgspec.json.encode(COSTS))
    assert main([*arguments, "--concurrency", "2"]) == 0
    assert "extrapolated" not in capsys.readouterr().err
