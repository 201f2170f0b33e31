"""Scenarios over a recorded workload: questions come, wait in line, and are answered by replicas of a device."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import attrgetter

import msgspec

from policies import DepthPolicy, Policy, from_builtins
from runtime import CallWork, EngineSettings, HostWork, ModelSizes, TraceError, VirtualDevice
from runtime.link import Header, ThreadPath, Trace
from traces.reader import TraceReader
from traces.simulation.costs import DeviceCosts, fit_costs
from traces.simulation.replica import PolicyReader, Replica, RunningTree
from traces.simulation.scenario import Percentiles, Prediction, Scenario
from traces.simulation.scripts import Await, Say, Script, ScriptedTree, Start, Step, TakeOver
from traces.simulation.workload import Workload, workload_of

Source = Trace | str | os.PathLike[str]


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """What scenarios would take on a device."""

    costs: DeviceCosts
    is_fitted: bool
    """Whether the costs are those of the trace itself."""
    predictions: tuple[Prediction, ...]
    lost: str | None
    """What is missing at the trace's end, and why."""


def simulate(
    source: Source,
    scenarios: Iterable[Scenario],
    *,
    device: DeviceCosts | None = None,
    depth: DepthPolicy | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    settings: EngineSettings | None = None,
    progress: Callable[[Prediction], None] | None = None,
) -> Simulation:
    """Predicts what each scenario would take, by the engine's own scheduler under a clock of its own.

    `source` is a trace or its file, which is read without being held. Costs are those of `device`, or fitted to the
    trace. `depth` takes the place of the recorded policies: a token is then as deep as it was, or as that bounds it.
    `checkpoint` is where the model is now, if not where the trace says; its weights are not read. `settings` are the
    engine's, if not the recorded ones. `progress` is called after each scenario. Programs answer after the `hop` of the
    costs; what else they did between calls of the engine takes no time.

    Raises `TraceError` for a trace that cannot be read, in which nothing was said, or to whose few calls no costs can
    be fitted, `CheckpointError` where the model's sizes are not to be found, and `PolicyError` for policies that draft:
    what was thrown away was not recorded.
    """
    workload, lost = _read(source)
    name = workload.header.checkpoint if checkpoint is None else os.fspath(checkpoint)
    model = ModelSizes.of(name)
    costs = device or fit_costs(workload.times, machine="as recorded", checkpoint=workload.header.checkpoint)
    own = settings or settings_of(workload.header)
    default = depth or _default_depth(workload.header)
    predictions = []
    for scenario in scenarios:
        run = _Run(workload, scenario, costs, PolicyReader(depth))
        predictions.append(run.predict(partial(VirtualDevice, model, own, default)))
        if progress is not None:
            progress(predictions[-1])
    return Simulation(costs=costs, is_fitted=device is None, predictions=tuple(predictions), lost=lost)


def costs_of(source: Source, *, machine: str) -> DeviceCosts:
    """What the device of a trace takes, fitted to its calls. Raises `TraceError` as `simulate`."""
    workload, _ = _read(source)
    return fit_costs(workload.times, machine=machine, checkpoint=workload.header.checkpoint)


def settings_of(header: Header) -> EngineSettings:
    """Those that a trace was recorded under. Raises `TraceError`."""
    try:
        return msgspec.convert(header.engine, EngineSettings)
    except (msgspec.ValidationError, ValueError) as error:
        raise TraceError(f"The trace's settings cannot be used: {error}") from error


def _read(source: Source) -> tuple[Workload, str | None]:
    if isinstance(source, Trace):
        return workload_of(source.header, source.events), source.lost
    with TraceReader(source) as reader:
        return workload_of(reader.header, reader), reader.lost


def _default_depth(header: Header) -> DepthPolicy:
    try:
        policy = from_builtins(header.policy, Policy)
    except ValueError as error:
        raise TraceError(f"The trace's policy cannot be used ({error}); name one with --depth.") from error
    return policy.depth


class _Watched:
    """Costs, and how far what they were asked for is beyond what they were fitted to."""

    def __init__(self, costs: DeviceCosts) -> None:
        self._costs = costs
        self.calls = self.beyond = 0
        self.seconds = 0.0
        self.ticks = self.in_flight = 0

    def call_seconds(self, work: CallWork) -> float:
        ticks = work.ticks
        self.calls += 1
        self.ticks += len(ticks.in_flight)
        self.in_flight += int(ticks.in_flight.sum())
        self.beyond += not self._costs.covers(int(ticks.in_flight.max()), int(ticks.keys.max()))
        seconds = self._costs.call_seconds(work)
        self.seconds += seconds
        return seconds

    def host_seconds(self, work: HostWork) -> float:
        seconds = self._costs.host_seconds(work)
        self.seconds += seconds
        return seconds


class _Run:
    """One scenario while it is played."""

    def __init__(self, workload: Workload, scenario: Scenario, costs: DeviceCosts, policies: PolicyReader) -> None:
        self._workload = workload
        self._scenario = scenario
        self._costs = _Watched(costs)
        self._hop = costs.hop
        self._policies = policies
        self._answered: list[RunningTree] = []
        self._line: list[tuple[int, int, RunningTree]] = []
        """Those that have come and wait, by order."""
        self._in_progress = 0
        self._pages = self._waiting = 0

    def predict(self, open_device: Callable[[_Watched], VirtualDevice]) -> Prediction:
        scenario = self._scenario
        replicas = [
            Replica(
                open_device(self._costs),
                hop=self._hop,
                halts=self._workload.halts,
                order=scenario.order,
                policies=self._policies,
                ended=self._end,
            )
            for _ in range(scenario.replicas)
        ]
        coming = self._questions()
        asked = len(coming)
        coming.reverse()
        due: list[tuple[float, int]] = []
        while True:
            while due and replicas[due[0][1]].next_time != due[0][0]:
                heapq.heappop(due)
            time = due[0][0] if due else None
            if coming and (time is None or coming[-1].came <= time):
                time = coming[-1].came
                tree = coming.pop()
                rank = -tree.priority if scenario.order == "shortest-first" else 0
                heapq.heappush(self._line, (rank, tree.number, tree))
                touched = self._admit(replicas, time)
            elif time is not None:
                index = heapq.heappop(due)[1]
                replica = replicas[index]
                replica.go_on()
                self._pages = max(self._pages, replica.device.pages_used)
                self._waiting += replica.device.waiting
                touched = {index} | self._admit(replicas, replica.device.now)
            else:
                break
            for index in touched:
                next_time = replicas[index].next_time
                if next_time is not None:
                    heapq.heappush(due, (next_time, index))
        if len(self._answered) < asked:
            missing = asked - len(self._answered)
            raise TraceError(
                f"{missing} of {asked} questions are never answered: threads wait for what does not end in the trace."
            )
        return self._prediction(replicas)

    def _questions(self) -> list[RunningTree]:
        scenario, recorded = self._scenario, self._workload.trees
        trees: Sequence[ScriptedTree] = recorded
        if scenario.questions is not None:
            trees = [recorded[number % len(recorded)] for number in range(scenario.questions)]
        if scenario.as_one_tree:
            trees = [one_tree(trees)]
        times = scenario.arrivals.times(len(trees), scenario.seed)
        return [
            RunningTree(number=number, tree=tree, came=float(time), priority=-tree.tokens, taken_over=tree.taken_over)
            for number, (tree, time) in enumerate(zip(trees, times, strict=True))
        ]

    def _admit(self, replicas: Sequence[Replica], time: float) -> set[int]:
        """Lets trees leave the line while there is room, each to the replica that has the fewest; which those are."""
        chosen: set[int] = set()
        while self._line and self._in_progress < self._scenario.concurrency:
            tree = heapq.heappop(self._line)[2]
            index = min(range(len(replicas)), key=lambda number: (replicas[number].in_progress, number))
            tree.admitted = max(time, tree.came)
            self._in_progress += 1
            replicas[index].ask(tree, tree.admitted)
            chosen.add(index)
        return chosen

    def _end(self, tree: RunningTree) -> None:
        self._in_progress -= 1
        self._answered.append(tree)

    def _prediction(self, replicas: Sequence[Replica]) -> Prediction:
        scenario, costs = self._scenario, self._costs
        trees = sorted(self._answered, key=attrgetter("number"))
        seconds = max(tree.ended for tree in trees) - trees[0].came
        statistics = [replica.device.statistics for replica in replicas]
        tokens = sum(each.generated for each in statistics)
        in_line = scenario.arrivals.rate is not None
        return Prediction(
            scenario=scenario,
            questions=len(trees),
            threads=sum(len(tree.tree.scripts) for tree in trees),
            tokens=tokens,
            iterations=costs.in_flight,
            seconds=seconds,
            tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
            latency=Percentiles.of([tree.ended - (tree.came if in_line else tree.admitted) for tree in trees]),
            queueing=Percentiles.of([tree.admitted - tree.came for tree in trees]),
            busy=costs.seconds / (seconds * len(replicas)) if seconds > 0 else 0.0,
            lanes=costs.in_flight / max(1, costs.ticks),
            waiting=self._waiting / max(1, costs.calls),
            pages=self._pages,
            memory=self._pages * replicas[0].device.page_bytes,
            evictions=sum(replica.device.evictions for replica in replicas),
            preemptions=sum(replica.device.preemptions for replica in replicas),
            recomputed=sum(each.recomputed for each in statistics),
            cached_tokens=sum(each.cached_tokens for each in statistics),
            failed=sum(replica.failed for replica in replicas),
            beyond=costs.beyond / max(1, costs.calls),
        )


def one_tree(trees: Sequence[ScriptedTree]) -> ScriptedTree:
    """A tree whose root says nothing and waits for all of these, which are below it."""
    scripts: dict[ThreadPath, Script] = {}
    roots = []
    for number, tree in enumerate(trees):
        below = partial(_below, number)
        roots.append(below(tree.root))
        for script in tree.scripts.values():
            scripts[below(script.path)] = msgspec.structs.replace(
                script,
                path=below(script.path),
                inherits=None if script.inherits is None else below(script.inherits),
                steps=tuple(_moved(step, below) for step in script.steps),
            )
    first = next(iter(scripts.values()))
    steps: list[Step] = [*(Start(root) for root in roots), Await(tuple(roots), ())]
    root = Script(path=(0,), inherits=None, seed=first.seed, depth=first.depth, steps=tuple(steps))
    return ScriptedTree(root=(0,), scripts={(0,): root, **scripts})


def _below(number: int, path: ThreadPath) -> ThreadPath:
    return (0, number, *path[1:])


def _moved(step: Step, below: Callable[[ThreadPath], ThreadPath]) -> Step:
    match step:
        case Start(child):
            return Start(below(child))
        case Await(ended, cancelled):
            return Await(tuple(map(below, ended)), tuple(map(below, cancelled)))
        case TakeOver(children):
            return TakeOver(tuple(map(below, children)))
        case Say():
            spawns = tuple((at, below(child)) for at, child in step.spawns)
            return msgspec.structs.replace(step, spawns=spawns)
        case _:
            return step
