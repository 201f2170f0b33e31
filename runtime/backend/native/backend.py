"""The CPU backend that computes whole ticks natively: one call of Numba's code, for many tokens and several ticks.

Where every lane in flight is of a kind that the native code knows (greedy or plain temperature, exit tests by
`LatentDiff`, `Cosine` or none), a call runs ticks until enough lanes have stopped. Otherwise the steps of one tick are
native and their order is `LaneBackend`'s. Both ways give bitwise the same results, whatever else is in the batch.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
import torch
from torch import Tensor

from policies import Bounding, Cosine, DepthPolicy, DepthView, LatentDiff
from runtime.backend.exits import ExitTests
from runtime.backend.interface import Bool, CacheShape, Int32, Int64, Run, Tick, TickResult
from runtime.backend.native.compiled import CODA, HEAD, ITERATE, MEASURE, PRELUDE, SAMPLE, SETTLE, load_entries
from runtime.backend.native.crew import Crew
from runtime.backend.native.memory import LONGEST_RUN, make_context
from runtime.backend.native.packing import pack
from runtime.backend.native.tick_buffers import as_record
from runtime.backend.sampler import Sampled, divisor
from runtime.backend.ticking import LaneBackend
from runtime.model.architecture import Model, ModelConfig
from runtime.model.replacement import replace_weights
from runtime.sampling import Sampling

_CRITERIA: dict[type[DepthPolicy], int] = {LatentDiff: 1, Cosine: 2}
_UNKNOWN = -1
"""The criterion of policies whose exit is tested by themselves."""
_TEST = np.dtype([("criterion", "i4"), ("threshold", "f4"), ("minimum", "i4"), ("every", "i4")])
"""How the exits of a policy's tokens are tested natively."""
_MOST_HALTING = 64
"""Sets of tokens to stop at that are known at a time; lanes with others do not go on by themselves."""


class FusedBackend(LaneBackend):
    """Weights are copied and packed; memory is in the model's dtype, latent states are float32.

    `threads` share each tick.
    """

    def __init__(
        self,
        model: Model,
        cache: CacheShape,
        *,
        state_std: float,
        threads: int,
    ) -> None:
        super().__init__(model.config, cache, torch.device("cpu"), torch.float32, state_std)
        self._model = model
        crew = Crew(threads - 1)
        self._context = context = make_context(model, cache, self._lanes, self._table, crew)
        self._entries = entries = load_entries(context.weights.dtype == np.uint16)
        self._record = record = as_record(context, entries.do_task.address)
        self._state = torch.from_numpy(context.state)
        self._exits = _NativeExits(
            cache.lanes, model.config, self._measured, remembered=torch.from_numpy(context.remembered)
        )
        self._criteria = np.zeros(0, _TEST)
        """By policy."""
        self._halting: dict[frozenset[int], int] = {}
        self._counts = np.zeros(8, np.int64)
        self._plain = np.zeros(cache.lanes, np.bool_)
        """Lanes that the native loop can bring to their end."""
        self._always_plain = state_std == 0.0
        crew.start(lambda number: entries.help_out(record, number, np.zeros(8, np.int64)))
        self._stop_crew = weakref.finalize(self, crew.stop)

    def repeat(self, which: int, rows: int) -> None:
        """One pass over so many rows as they were left, for timing it. See `entries` for the passes."""
        self._entries.perform(self._record, which, rows, self._counts)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        replace_weights(self._model, weights)
        # The native functions know these arrays by their addresses.
        for name, packed in pack(self._model)._asdict().items():
            np.copyto(getattr(self._context, name), packed)

    def close(self) -> None:
        self._stop_crew()

    def register(self, policy: DepthPolicy) -> int:
        index = super().register(policy)
        if index == len(self._criteria):
            self._criteria = np.append(self._criteria, np.zeros(1, _TEST))
        self._criteria[index] = criterion_of(policy), policy.threshold, policy.min_iterations, policy.check_every
        return index

    def run_of(self, lane: int) -> Run | None:
        c = self._context
        count = int(c.run_count[lane])
        if not count:
            return None
        return Run(
            c.run_token[lane, :count].copy(), c.run_logprob[lane, :count].copy(), c.run_depth[lane, :count].copy()
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
        return self._with_runs(result)

    def _advance(self, tick: Tick) -> TickResult:
        """Ticks natively until enough lanes have stopped."""
        c, lanes, counts, entering = self._context, self._lanes, self._counts, tick.entering
        if len(entering.lane):
            self._seat(tick)
            lane = entering.lane.astype(np.int64)
            self._plain[lane] = True
            c.batch[: len(lane)] = lane
            c.state[lane] = 0.0
            c.remembered[lane] = 0.0
            if entering.carries.any():
                with torch.inference_mode():
                    c.state[lane] = c.remembered[lane] = self._initial_state(entering).numpy()
        flight = lanes.in_flight()
        flight = flight[np.lexsort((lanes.position[flight], lanes.row[flight]))]
        c.flight[: len(flight)] = flight
        c.flight[-1] = len(flight)
        self._entries.advance(self._record, len(entering.lane), tick.most_ticks, counts)
        ticks, iterations, in_flight, _, stopped, tested = counts[:6].tolist()
        left = c.stopped[:stopped]
        if lanes.keeps[left].any():
            self._keep(left.astype(np.int64))
        last = np.maximum(c.run_count[left] - 1, 0)
        sampled = c.run_count[left] > 0
        result = TickResult(
            lane=left.astype(np.int32),
            depth=np.minimum(lanes.age[left], lanes.bound[left]),
            token=np.where(sampled, c.run_token[left, last], np.int32(-1)),
            logprob=np.where(sampled, c.run_logprob[left, last], np.float32(np.nan)),
            entropy=np.full(stopped, np.nan, np.float32),
            top=({},) * stopped,
            tested=c.tested[:tested].astype(np.int32),
            exit_value=c.exit_sum[c.tested[:tested]],
            failures={},
            in_flight=in_flight,
            iterations=iterations,
            runs={lane: run for lane in left[c.run_count[left] > 1].tolist() if (run := self.run_of(lane))},
            ticks=ticks,
            left_at=c.stopped_at[:stopped].tolist(),
        )
        return result

    def _with_runs(self, result: TickResult) -> TickResult:
        """Adds what lanes had sampled in native ticks before they left in this one."""
        runs = {}
        for lane, token, logprob, depth in zip(result.lane, result.token, result.logprob, result.depth, strict=True):
            earlier = self.run_of(int(lane))
            if earlier is not None:
                runs[int(lane)] = Run(
                    np.append(earlier.token, token),
                    np.append(earlier.logprob, logprob),
                    np.append(earlier.depth, depth),
                )
        return msgspec.structs.replace(result, runs=runs)

    def _seat(self, tick: Tick) -> None:
        super()._seat(tick)
        c, entering = self._context, tick.entering
        lane = entering.lane
        c.token[lane] = entering.token
        c.wanted[lane] = entering.sample >= 0
        temperatures = np.array([*(divisor(sampling.temperature) for sampling in tick.samplings), 0.0], np.float32)
        c.temperature[lane] = temperatures[entering.sample]
        test = self._criteria[entering.policy]
        c.criterion[lane], c.threshold[lane] = test["criterion"], test["threshold"]
        c.minimum[lane], c.every[lane] = test["minimum"], test["every"]
        c.run_count[lane] = 0
        c.run[lane] = np.minimum(entering.run, LONGEST_RUN - 1)
        if entering.run.any():
            self._set_halts(tick)

    def _set_halts(self, tick: Tick) -> None:
        c, entering = self._context, tick.entering
        for number, tokens in enumerate(tick.halting):
            # One set after the other, so that the next one sees that this one's row is taken.
            row = self._halting_row(tokens)
            lane = entering.lane[(entering.halts == number) & (entering.run > 0)]
            if row < 0:
                c.run[lane] = 0
            else:
                c.halts[lane] = row

    def _halting_row(self, tokens: frozenset[int]) -> int:
        """The row of `halting` for these tokens; -1 if all are taken by lanes in flight."""
        row = self._halting.get(tokens)
        if row is not None:
            return row
        c = self._context
        row = len(self._halting)
        if row == _MOST_HALTING:
            used = set(c.halts[self._lanes.occupied & (c.run > 0)].tolist())
            unused = next((old for old, at in self._halting.items() if at not in used), None)
            if unused is None:
                return -1
            row = self._halting.pop(unused)
        elif row == len(c.halting):
            more = np.zeros((max(4, 2 * row), c.vocab), np.bool_)
            more[:row] = c.halting
            # Only the leading thread reads it, between whose calls this is.
            self._context = c = c._replace(halting=more)
            self._record["halting"] = more.ctypes.data
        c.halting[row] = False
        c.halting[row, [token for token in tokens if 0 <= token < c.vocab]] = True
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
            & (self._criteria["criterion"][entering.policy] != _UNKNOWN)
            & ~entering.entropy
            & (entering.draft == 0)
        )

    def _begin(self, copies: Int32) -> None:
        if len(copies):
            c, cache = self._context, self._cache
            for stored in (c.keys, c.values):
                pages = stored.reshape(cache.columns(self._config), cache.pages, -1)
                pages[:, copies[:, 1]] = pages[:, copies[:, 0]]

    def _perform(self, which: int, lanes: Int64) -> None:
        """A pass over lanes."""
        self._context.batch[: len(lanes)] = lanes
        self._entries.perform(self._record, which, len(lanes), self._counts)

    def _prelude(self, lanes: Int64, tokens: Int64) -> None:
        self._perform(PRELUDE, lanes)

    def _iterate(self, active: Int64) -> None:
        self._perform(ITERATE, active)

    def _logits(self, lanes: Int64, wanted: Bool) -> Tensor:
        c = self._context
        if not self._config.n_layers_in_coda:
            lanes, wanted = lanes[wanted], wanted[wanted]
        self._perform(CODA, lanes)
        chosen = np.flatnonzero(wanted)
        c.chosen[: len(chosen)] = chosen
        self._entries.perform(self._record, HEAD, len(chosen), self._counts)
        return torch.from_numpy(c.logits[: len(chosen), : c.vocab].copy())

    def _settle(self, lanes: Int64) -> None:
        self._perform(SETTLE, lanes)

    def _normed(self, state: Tensor) -> Tensor:
        return self._model.final_norm(state)

    def _measured(self, lanes: Int64) -> Tensor:
        """Exit values of lanes by their native criteria."""
        self._perform(MEASURE, lanes)
        return torch.from_numpy(self._context.exit_value[lanes])

    def _sample(self, lane: Int64, logits: Tensor) -> Sampled:
        """Rows that the native loop could sample are sampled as it would, so that neither company nor what is reported
        of a row changes anything."""
        samplings = [sampling for seat in lane if (sampling := self._lanes.sampling[seat])]
        plain = np.array([is_plain(sampling) for sampling in samplings], np.bool_)
        reports = self._lanes.entropy[lane].any() or any(sampling.logprobs for sampling in samplings)
        if plain.all() and not reports:
            drawn = Sampled(torch.empty(len(lane), dtype=torch.int64), torch.empty(len(lane)), None, ())
        else:
            drawn = super()._sample(lane, logits)
        if not plain.any():
            return drawn
        c, rows = self._context, np.flatnonzero(plain)
        count = len(rows)
        c.logits[:count, : c.vocab] = logits.numpy()[rows]
        c.batch[:count] = lane[rows]
        c.chosen[:count] = np.arange(count)
        self._entries.perform(self._record, SAMPLE, count, self._counts)
        drawn.token[rows] = torch.from_numpy(c.drawn_token[:count].astype(np.int64))
        drawn.logprob[rows] = torch.from_numpy(c.drawn_logprob[:count])
        for row in rows.tolist() if drawn.top else ():
            token = int(drawn.token[row])
            if token in drawn.top[row]:
                # PyTorch's own exponential differs in the last bits.
                drawn.top[row][token] = float(drawn.logprob[row])
        return drawn


class _NativeExits(ExitTests):
    """Exit tests whose native criteria are measured as the native loop does."""

    def __init__(
        self, lanes: int, config: ModelConfig, measured: Callable[[Int64], Tensor], *, remembered: Tensor
    ) -> None:
        super().__init__(lanes, config.n_embd, config.vocab_size, remembered.device)
        self._measured = measured
        self._remembered = remembered

    def _memory_for(self, policy: DepthPolicy) -> Tensor:
        # A lane has one policy, so those that remember a latent state can all keep it in the same place.
        return self._remembered if criterion_of(policy) > 0 else super()._memory_for(policy)

    def _values(self, policy: DepthPolicy, lanes: Int64, view: DepthView) -> tuple[Tensor, Tensor]:
        if criterion_of(policy) <= 0:
            return super()._values(policy, lanes, view)
        at = torch.from_numpy(lanes)
        before = self._remembered[at]
        values = self._measured(lanes)
        after = self._remembered[at]
        # A tick that fails from here on is tried again, and measures from where this one did.
        self._remembered[at] = before
        return values, after


def criterion_of(policy: DepthPolicy) -> int:
    """The native criterion of a policy; 0 where nothing is tested, `_UNKNOWN` where only the policy can."""
    if isinstance(policy, Bounding):
        return criterion_of(policy.criterion) if leaves_test(policy) else _UNKNOWN
    if policy.reads == "nothing":
        return 0
    return _CRITERIA.get(type(policy), _UNKNOWN)


def leaves_test(policy: Bounding) -> bool:
    """Whether a bounding policy leaves the test to its criterion."""
    kind = type(policy)
    return all(getattr(kind, name) is getattr(Bounding, name) for name in ("measure", "begin", "is_done"))


@functools.lru_cache(maxsize=1024)
def is_plain(sampling: Sampling | None) -> bool:
    """Whether the native code draws so: greedily or by temperature alone."""
    if sampling is None:
        return True
    filters = (sampling.top_k, sampling.top_p, sampling.min_p)
    return filters == (None, None, None) and sampling.repetition_penalty == 1.0
