"""The CPU backend that computes whole ticks natively: one call of Numba's code, for many tokens and several ticks.

Where every lane in flight is of a kind that the native code knows (greedy or plain temperature, exit tests by
`LatentDiff`, `Cosine`, `GateExit` or none), a call runs ticks until enough lanes have stopped. Otherwise the steps of
one tick are native and their order is `LaneBackend`'s. Both ways give bitwise the same results, whatever else is in the
batch.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
import torch
from torch import Tensor

from policies import DepthPolicy, DepthView
from runtime.backend.exits import ExitTests
from runtime.backend.gate_sums import GateSums
from runtime.backend.interface import (
    CARRY_KINDS,
    MOST_TICKS,
    Bool,
    CacheShape,
    Int32,
    Int64,
    Run,
    Tick,
    TickResult,
    TickTimes,
)
from runtime.backend.native.allocation import LONGEST_RUN, allocate
from runtime.backend.native.compiled import (
    CODA,
    HEAD,
    ITERATE,
    JUDGE,
    MEASURE,
    PRELUDE,
    SAMPLE,
    SETTLE,
    load_native_functions,
)
from runtime.backend.native.crew import Crew
from runtime.backend.native.criteria import BY_POLICY, GATE, criterion_of
from runtime.backend.native.lane_masks import LaneMasks
from runtime.backend.native.packing import pack
from runtime.backend.native.tick_buffers import as_record
from runtime.backend.sampler import Sampled, divisor
from runtime.backend.ticking import LaneBackend
from runtime.link.sampling import Sampling
from runtime.model.replacement import replace_weights
from runtime.model.specification import Specification
from runtime.model.transformer import Transformer

_TEST = np.dtype([("criterion", "i4"), ("threshold", "f4"), ("min_iterations", "i4"), ("check_every", "i4")])
"""How the exits of a policy's tokens are tested natively."""
_MOST_HALTING_SETS = 64
"""Sets of tokens to stop at that are known at a time; lanes with others do not go on by themselves."""


class NativeBackend(LaneBackend):
    """Weights are copied and packed; the paged cache is in the model's dtype, latent states are float32.

    `cpu_threads` share each tick.
    """

    def __init__(
        self,
        model: Transformer,
        cache: CacheShape,
        *,
        state_std: float,
        cpu_threads: int,
    ) -> None:
        super().__init__(model.specification, cache, torch.device("cpu"), torch.float32, state_std)
        self._model = model
        crew = Crew(cpu_threads - 1)
        self._buffers = buffers = allocate(model, cache, self._lanes, self._table, self._holes, crew)
        self._native = native = load_native_functions(buffers.weights.weights.dtype == np.uint16)
        self._record = record = as_record(buffers, native.do_task.address)
        self._shown_masks = LaneMasks(buffers, record, self._lanes)
        self._state = torch.from_numpy(buffers.lanes.state)
        if self._gate_sums is not None:
            own = buffers.lanes
            self._gate_sums = GateSums(torch.from_numpy(own.exit_probability), torch.from_numpy(own.going_on))
        self._starts_embedded = model.specification.injection == "state"
        self._exits = _NativeExits(
            cache.lanes, model.specification, self._measured, remembered=torch.from_numpy(buffers.lanes.remembered)
        )
        self._tests = np.zeros(0, _TEST)
        """By policy."""
        self._halting: dict[frozenset[int], int] = {}
        self._counts = np.zeros(8, np.int64)
        self._plain = np.zeros(cache.lanes, np.bool_)
        """Lanes that the native loop can bring to their end."""
        self._always_plain = state_std == 0.0 or self._starts_embedded
        crew.start(lambda number: native.help_out(record, number, np.zeros(8, np.int64)))
        self._stop_crew = weakref.finalize(self, crew.stop)

    def repeat(self, which: int, rows: int) -> None:
        """One pass over so many rows as they were left, for timing it. See `compiled` for the passes."""
        self._native.perform(self._record, which, rows, self._counts)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        replace_weights(self._model, weights)
        # The native functions know these arrays by their addresses.
        for array, packed in zip(self._buffers.weights, pack(self._model), strict=True):
            np.copyto(array, packed)

    def close(self) -> None:
        self._stop_crew()

    def register(self, policy: DepthPolicy) -> int:
        index = super().register(policy)
        if index == len(self._tests):
            self._tests = np.append(self._tests, np.zeros(1, _TEST))
        self._tests[index] = criterion_of(policy), policy.threshold, policy.min_iterations, policy.check_every
        return index

    def run_of(self, lane: int) -> Run | None:
        own = self._buffers.lanes
        count = int(own.run_count[lane])
        if not count:
            return None
        return Run(
            own.run_token[lane, :count].copy(),
            own.run_depth[lane, :count].copy(),
            own.run_logprob[lane, :count].copy(),
            own.run_tick[lane, :count].copy(),
        )

    # ---- what a tick computes ---------------------------------------------------------------------------------------

    def tick(self, tick: Tick) -> TickResult:
        lanes, entering = self._lanes, tick.entering
        plain = self._are_plain(tick)
        self._begin(tick.copies)
        lanes.leave(tick.dropped)
        if plain.all() and self._plain[lanes.occupied].all():
            return self._advance(tick)
        result = super().tick(msgspec.structs.replace(tick, copies=tick.copies[:0], dropped=tick.dropped[:0]))
        self._plain[entering.lane] = plain
        return self._with_runs(result, tick.number)

    def _advance(self, tick: Tick) -> TickResult:
        """Ticks natively until enough lanes have stopped."""
        own, work = self._buffers.lanes, self._buffers.work
        lanes, counts, entering = self._lanes, self._counts, tick.entering
        if len(entering.lane):
            self._put_in_lanes(tick)
            lane = entering.lane.astype(np.int64)
            self._plain[lane] = True
            work.batch[: len(lane)] = lane
            # Latent states that start as the embedded token are set by the prelude.
            own.state[lane] = 0.0
            own.remembered[lane] = 0.0
            if self._gate_sums is not None:
                self._gate_sums.begin(torch.from_numpy(lane))
            if entering.carries.any():
                with torch.inference_mode():
                    own.state[lane] = own.remembered[lane] = self._initial_state(entering).numpy()
        flight = lanes.in_flight()
        flight = flight[np.lexsort((lanes.place[flight], lanes.row[flight]))]
        work.flight[: len(flight)] = flight
        work.flight[-1] = len(flight)
        counts[6] = tick.number
        most_ticks = 1 if self._shown_masks.await_due(self._masks, flight) else min(tick.most_ticks, MOST_TICKS)
        self._native.advance(self._record, len(entering.lane), most_ticks, counts)
        ticks, iterations, in_flight, _, stopped, tested = counts[:6].tolist()
        left = work.stopped[:stopped]
        for lane in self._masks.keys() & left.tolist() if self._masks else ():
            del self._masks[lane]
        if lanes.keeps[left].any():
            self._keep(left.astype(np.int64))
        last = np.maximum(own.run_count[left] - 1, 0)
        sampled = own.run_count[left] > 0
        result = TickResult(
            lane=left.astype(np.int32),
            depth=np.minimum(lanes.age[left], lanes.bound[left]),
            token=np.where(sampled, own.run_token[left, last], np.int32(-1)),
            logprob=np.where(sampled, own.run_logprob[left, last], np.float32(np.nan)),
            entropy=np.full(stopped, np.nan, np.float32),
            top=({},) * stopped,
            tested=work.tested[:tested].astype(np.int32),
            exit_value=own.exit_mean[work.tested[:tested]],
            failures={},
            in_flight=in_flight,
            iterations=iterations,
            runs={lane: run for lane in left[own.run_count[left] > 1].tolist() if (run := self.run_of(lane))},
            ticks=ticks,
            left_at=work.stopped_at[:stopped].tolist(),
            times=TickTimes(
                work.tick_end[:ticks].astype(np.float64) * 1e-9,
                work.tick_entered[:ticks].copy(),
                work.tick_in_flight[:ticks].copy(),
                work.tick_left[:ticks].copy(),
            )
            if ticks > 1
            else None,
        )
        return result

    def _with_runs(self, result: TickResult, number: int) -> TickResult:
        """Adds what lanes had sampled in native ticks before they left in this one."""
        runs = {}
        for lane, token, logprob, depth in zip(result.lane, result.token, result.logprob, result.depth, strict=True):
            earlier = self.run_of(int(lane))
            if earlier is not None:
                runs[int(lane)] = Run(
                    np.append(earlier.token, token),
                    np.append(earlier.depth, depth),
                    np.append(earlier.logprob, logprob),
                    np.append(earlier.tick, number),
                )
        return msgspec.structs.replace(result, runs=runs)

    def _put_in_lanes(self, tick: Tick) -> None:
        super()._put_in_lanes(tick)
        own, entering = self._buffers.lanes, tick.entering
        lane = entering.lane
        own.token[lane] = entering.token
        own.wanted[lane] = entering.sample >= 0
        own.starts_embedded[lane] = self._starts_embedded & (entering.carries == CARRY_KINDS["none"])
        temperatures = np.array([*(divisor(sampling.temperature) for sampling in tick.samplings), 0.0], np.float32)
        own.temperature[lane] = temperatures[entering.sample]
        test = self._tests[entering.policy]
        own.criterion[lane], own.threshold[lane] = test["criterion"], test["threshold"]
        own.min_iterations[lane], own.check_every[lane] = test["min_iterations"], test["check_every"]
        own.is_masked[lane] = False
        own.run_count[lane] = 0
        own.run[lane] = np.minimum(entering.run, LONGEST_RUN - 1)
        if entering.run.any():
            self._set_halts(tick)

    def _set_halts(self, tick: Tick) -> None:
        own, entering = self._buffers.lanes, tick.entering
        for number, tokens in enumerate(tick.halting):
            # One set after the other, so that the next one sees that this one's row is taken.
            row = self._halting_row(tokens)
            lane = entering.lane[(entering.halts == number) & (entering.run > 0)]
            if row < 0:
                own.run[lane] = 0
            else:
                own.halts[lane] = row

    def _halting_row(self, tokens: frozenset[int]) -> int:
        """The row of `halting` for these tokens; -1 if all are taken by lanes in flight."""
        row = self._halting.get(tokens)
        if row is not None:
            return row
        own = self._buffers.lanes
        row = len(self._halting)
        if row == _MOST_HALTING_SETS:
            used = set(own.halts[self._lanes.occupied & (own.run > 0)].tolist())
            unused = next((old for old, at in self._halting.items() if at not in used), None)
            if unused is None:
                return -1
            row = self._halting.pop(unused)
        elif row == len(own.halting):
            more = np.zeros((max(4, 2 * row), self._specification.vocab_size), np.bool_)
            more[:row] = own.halting
            # Only the leading thread reads it, between whose calls this is.
            own = own._replace(halting=more)
            self._buffers = self._buffers._replace(lanes=own)
            self._record["halting"] = more.ctypes.data
        own.halting[row] = False
        own.halting[row, [token for token in tokens if 0 <= token < self._specification.vocab_size]] = True
        self._halting[tokens] = row
        return row

    def _are_plain(self, tick: Tick) -> Bool:
        """Which entering tokens the native loop can bring to their end."""
        entering = tick.entering
        if not len(entering.lane):
            return np.ones(0, np.bool_)
        if not self._always_plain:
            return np.zeros(len(entering.lane), np.bool_)
        simple = np.array([*(is_plain(each) and not each.logprobs for each in tick.samplings), True], np.bool_)
        return (
            simple[entering.sample]
            & (self._tests["criterion"][entering.policy] != BY_POLICY)
            & ~entering.entropy
            & (entering.draft == 0)
            & (True if entering.target is None else entering.target < 0)
        )

    def _begin(self, copies: Int32) -> None:
        if len(copies):
            paged, cache = self._buffers.paged, self._cache
            for stored in (paged.keys, paged.values):
                pages = stored.reshape(cache.columns(self._specification), cache.pages, -1)
                pages[:, copies[:, 1]] = pages[:, copies[:, 0]]

    def _perform(self, which: int, lanes: Int64) -> None:
        """A pass over lanes."""
        self._buffers.work.batch[: len(lanes)] = lanes
        self._native.perform(self._record, which, len(lanes), self._counts)

    def _prelude(self, lanes: Int64, tokens: Int64) -> None:
        self._perform(PRELUDE, lanes)

    def _iterate(self, active: Int64) -> None:
        self._perform(ITERATE, active)

    def _logits(self, lanes: Int64, wanted: Bool) -> Tensor:
        work = self._buffers.work
        if not self._specification.coda_layers:
            lanes, wanted = lanes[wanted], wanted[wanted]
        self._perform(CODA, lanes)
        chosen = np.flatnonzero(wanted)
        work.chosen[: len(chosen)] = chosen
        self._native.perform(self._record, HEAD, len(chosen), self._counts)
        return torch.from_numpy(work.logits[: len(chosen), : self._specification.vocab_size].copy())

    def _settle(self, lanes: Int64) -> None:
        self._perform(SETTLE, lanes)

    def _first_state(self, lanes: Int64) -> Tensor:
        return torch.from_numpy(self._buffers.lanes.embedded[lanes])

    def _gates(self, active: Int64) -> Tensor:
        self._perform(JUDGE, active)
        return torch.from_numpy(self._buffers.lanes.gate[active])

    def _normed(self, state: Tensor) -> Tensor:
        return self._model.final_norm(state)

    def _measured(self, lanes: Int64) -> Tensor:
        """Exit values of lanes by their native criteria."""
        self._perform(MEASURE, lanes)
        return torch.from_numpy(self._buffers.lanes.exit_value[lanes])

    def _sample(self, lane: Int64, logits: Tensor) -> Sampled:
        """Rows that the native loop could sample are sampled as it would, so that neither company nor what is reported
        of a row changes anything."""
        samplings = [sampling for place in lane if (sampling := self._lanes.sampling[place])]
        plain = np.array([is_plain(sampling) for sampling in samplings], np.bool_)
        reports = self._lanes.entropy[lane].any() or any(sampling.logprobs for sampling in samplings)
        if plain.all() and not reports:
            drawn = Sampled(torch.empty(len(lane), dtype=torch.int64), torch.empty(len(lane)), None, ())
        else:
            drawn = super()._sample(lane, logits)
        if not plain.any():
            return drawn
        work, rows = self._buffers.work, np.flatnonzero(plain)
        count = len(rows)
        for masked in self._masks.keys() & lane[rows].tolist() if self._masks else ():
            self._shown_masks.show(masked, self._masks[masked])
        work.logits[:count, : self._specification.vocab_size] = logits.numpy()[rows]
        work.batch[:count] = lane[rows]
        work.chosen[:count] = np.arange(count)
        self._native.perform(self._record, SAMPLE, count, self._counts)
        drawn.token[rows] = torch.from_numpy(work.drawn_token[:count].astype(np.int64))
        drawn.logprob[rows] = torch.from_numpy(work.drawn_logprob[:count])
        for row in rows.tolist() if drawn.top else ():
            token = int(drawn.token[row])
            if token in drawn.top[row]:
                # PyTorch's own exponential differs in the last bits.
                drawn.top[row][token] = float(drawn.logprob[row])
        return drawn


class _NativeExits(ExitTests):
    """Exit tests whose native criteria are measured as the native loop does."""

    def __init__(
        self, lanes: int, specification: Specification, measured: Callable[[Int64], Tensor], *, remembered: Tensor
    ) -> None:
        super().__init__(lanes, specification.width, specification.vocab_size, remembered.device)
        self._measured = measured
        self._remembered = remembered

    def _previous_for(self, policy: DepthPolicy) -> Tensor:
        # A lane has one policy, so those that remember a latent state can all keep it in the same place.
        return self._remembered if criterion_of(policy) > GATE else super()._previous_for(policy)

    def _values(self, policy: DepthPolicy, lanes: Int64, view: DepthView) -> tuple[Tensor, Tensor]:
        if criterion_of(policy) <= GATE:
            return super()._values(policy, lanes, view)
        at = torch.from_numpy(lanes)
        before = self._remembered[at]
        values = self._measured(lanes)
        after = self._remembered[at]
        # A tick that fails from here on is tried again, and measures from where this one did.
        self._remembered[at] = before
        return values, after


@functools.lru_cache(maxsize=1024)
def is_plain(sampling: Sampling | None) -> bool:
    """Whether the native code draws so: greedily or by temperature alone."""
    if sampling is None:
        return True
    filters = (sampling.top_k, sampling.top_p, sampling.min_p)
    return filters == (None, None, None) and sampling.repetition_penalty == 1.0
