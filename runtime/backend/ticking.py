"""The order of a tick, which is the same for every backend; how each step is computed is a subclass's.

copies -> drops -> entering: prelude, first states -> one core iteration -> exit tests -> coda, head, sampling -> drafts
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import msgspec
import numpy as np
import torch
from torch import Tensor

from policies import DepthPolicy
from runtime.backend.exits import ExitTests, TickExits, check_readable
from runtime.backend.gate_sums import GateSums
from runtime.backend.interface import (
    CARRY_KINDS,
    Bool,
    CacheShape,
    Entering,
    Int32,
    Int64,
    RowHoles,
    Run,
    Tick,
    TickResult,
)
from runtime.backend.lanes import Lanes
from runtime.backend.randomness import SAMPLING_STREAM, initial_noise, uniforms
from runtime.backend.sampler import Sampled, sample, score
from runtime.link.constraints import TokenMask
from runtime.link.sampling import Sampling
from runtime.model.served import Served


class LaneBackend(ABC):
    """Lanes, exit tests and sampling of a backend; a subclass adds the model, its paged cache and the arithmetic.

    `state_std` is the standard deviation of initial latent states, 0 for zeros. See `Backend` for what a tick does.
    """

    def __init__(
        self,
        specification: Served,
        cache: CacheShape,
        device: torch.device,
        dtype: torch.dtype,
        state_std: float,
    ) -> None:
        self._specification = specification
        self._cache = cache
        self._device = device
        self._dtype = dtype
        self._state_std = state_std
        self._table = np.zeros((cache.rows, cache.pages_per_row), np.int32)
        self._holes = RowHoles.none_in(cache)
        self._lanes = Lanes(cache.lanes)
        self._state = self._zeros(cache.lanes, specification.width)
        self._carried = self._zeros(cache.rows, specification.width)
        self._contexts: dict[int, Int32] = {}
        """By lane, for samplings with a repetition penalty."""
        self._masks: dict[int, TokenMask] = {}
        """By lane, for tokens whose successors are constrained."""
        self._exits = ExitTests(cache.lanes, specification.width, specification.vocab_size, device)
        gate_sums = GateSums(*torch.zeros(2, cache.lanes, device=device))
        self._gate_sums = gate_sums if specification.exit_gate else None
        self._before: tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None] | None = None
        """The lanes that iterate in this tick, and their states and what their exit gate has said before it."""

    @property
    def cache(self) -> CacheShape:
        return self._cache

    @property
    def page_table(self) -> Int32:
        return self._table

    @property
    def row_holes(self) -> RowHoles:
        return self._holes

    def register(self, policy: DepthPolicy) -> int:
        check_readable(policy, self._specification)
        return self._exits.register(policy)

    def release(self, index: int) -> None:
        self._exits.release(index)

    @property
    def policies_known(self) -> int:
        """Policies that exits keep `previous` for, for looking in."""
        return len(self._exits)

    @abstractmethod
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See `Backend`."""

    @abstractmethod
    def close(self) -> None:
        """Ends what runs beside the device thread."""

    def run_of(self, lane: int) -> Run | None:
        """None: lanes stop at every token."""
        return None

    def latents(self, lanes: list[int]) -> Tensor:
        """See `Backend`."""
        return self._state[lanes]

    @torch.inference_mode()
    def tick(self, tick: Tick) -> TickResult:
        lanes, age = self._lanes, self._lanes.age.copy()
        self._before = None
        try:
            return self._tick(tick)
        except torch.OutOfMemoryError:
            # The tick never was. What it wrote to the paged cache, it will write again.
            lanes.leave(tick.entering.lane)
            lanes.age[:] = age
            if self._before is not None:
                active, state, gates = self._before
                self._state[active] = state
                if self._gate_sums is not None and gates is not None:
                    self._gate_sums.restore(active, gates)
            raise

    # ---- what a subclass computes -----------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self, copies: Int32) -> None:
        """Makes a tick's page copies [n, 2] and sees the page table as the scheduler has left it."""

    @abstractmethod
    def _prelude(self, lanes: Int64, tokens: Int64) -> None:
        """Embeds the tokens [n] of entering lanes [n] and runs their prelude; keeps what every iteration is given."""

    @abstractmethod
    def _iterate(self, active: Int64) -> None:
        """One core iteration of the active lanes, which are in order of row and position; all of them see the states
        of the iteration before. Lane ages do not count it yet."""

    @abstractmethod
    def _logits(self, lanes: Int64, wanted: Bool) -> Tensor:
        """Runs the coda over lanes and returns the logits [m, vocab] float32 of those wanted."""

    @abstractmethod
    def _first_state(self, lanes: Int64) -> Tensor:
        """Latent states [n, width] of entering lanes whose prelude was run, for models that do not start from zero."""

    @abstractmethod
    def _gates(self, active: Int64) -> Tensor:
        """The exit gate's probabilities [n] float32 at the latent states of lanes [n]; see `Transformer.gate`."""

    @abstractmethod
    def _normed(self, state: Tensor) -> Tensor:
        """The model's final norm of latent states [n, n_embd]."""

    @abstractmethod
    def _settle(self, lanes: Int64) -> None:
        """Called once lanes have done their last iteration, before another token can read what they wrote."""

    # ---- parts of a tick --------------------------------------------------------------------------------------------

    def _tick(self, tick: Tick) -> TickResult:
        lanes = self._lanes
        self._begin(tick.copies)
        lanes.leave(tick.dropped)
        failures = self._enter(tick) if len(tick.entering.lane) else {}
        occupied = lanes.in_flight()
        # In order of place, because where lanes go through the model in pieces, one sees what earlier ones wrote.
        occupied = occupied[np.lexsort((lanes.place[occupied], lanes.row[occupied]))]
        active = occupied[lanes.age[occupied] < lanes.bound[occupied]]
        at = self._on_device(active)
        gates = self._gate_sums
        self._before = at, self._state[at], gates.copy(at) if gates is not None else None
        self._iterate(active)
        lanes.age[occupied] += 1
        if gates is not None:
            gates.add(at, self._gates(active))
        exits = self._exits.run(lanes, active, self._state, self._logits, gates.exit_probability if gates else None)
        exits.failures.update(failures)
        failed = np.array(list(exits.failures), np.int64)
        dropped = lanes.in_groups(occupied, failed)
        leaves = (lanes.age[occupied] >= lanes.until[occupied]) | lanes.in_groups(occupied, exits.done())
        leaving = occupied[leaves & ~dropped]
        self._settle(occupied[(leaves & ~dropped) | (lanes.age[occupied] == lanes.bound[occupied])])
        result = self._leave(leaving, exits, len(active))
        drafting = occupied[(lanes.draft[occupied] > 0) & (lanes.age[occupied] == lanes.draft[occupied]) & ~dropped]
        if len(drafting):
            result = self._draft(drafting, result)
        self._exits.remember(exits)
        # Last, because a tick that fails for want of memory enters the same tokens again.
        self._keep(leaving)
        for lane in leaving.tolist() if self._contexts or self._masks else ():
            self._contexts.pop(lane, None)
            self._masks.pop(lane, None)
        lanes.leave(leaving)
        lanes.leave(occupied[dropped])
        return result

    def _enter(self, tick: Tick) -> dict[int, BaseException]:
        """Puts the entering tokens into their lanes, runs their prelude and sets their initial latent states.

        Returns what policies raised at it, by the last lane of the group that they raised for.
        """
        entering = tick.entering
        self._put_in_lanes(tick)
        lane = entering.lane.astype(np.int64)
        self._prelude(lane, entering.token.astype(np.int64))
        state = self._initial_state(entering)
        self._state[self._on_device(lane)] = state
        if self._gate_sums is not None:
            self._gate_sums.begin(self._on_device(lane))
        failures = self._exits.begin(entering, state)
        self._lanes.tests[lane[np.isin(entering.group, list(failures))]] = False
        return failures

    def _put_in_lanes(self, tick: Tick) -> None:
        """Puts the entering tokens into their lanes."""
        entering, size = tick.entering, self._cache.page_size
        place = entering.position if entering.place is None else entering.place
        page = self._table[entering.row, place // size].astype(np.int64)
        self._lanes.enter(entering, tick.samplings, page * size + place % size)
        self._contexts |= tick.contexts
        # Of lanes that were dropped, some are left.
        for lane in entering.lane.tolist() if self._masks else ():
            self._masks.pop(lane, None)
        self._masks |= tick.masks

    def _initial_state(self, entering: Entering) -> Tensor:
        if self._specification.injection == "state":
            state = self._first_state(entering.lane.astype(np.int64))
        elif self._state_std == 0.0:
            state = self._zeros(len(entering.lane), self._specification.width)
        else:
            key, position = self._on_device(entering.noise_key), self._on_device(entering.position)
            noise = initial_noise(key, position, self._specification.width, self._state_std)
            state = (noise * self._specification.embedding_scale).to(self._dtype)
        carrying = np.flatnonzero(entering.carries)
        if len(carrying):
            carried = self._carried[self._on_device(entering.row[carrying])]
            normed = entering.carries[carrying] == CARRY_KINDS["normed"]
            if normed.any():
                is_normed = torch.from_numpy(normed).to(self._device)[:, None]
                carried = torch.where(is_normed, self._normed(carried), carried)
            state[self._on_device(carrying)] = carried
        return state

    def _leave(self, leaving: Int64, exits: TickExits, in_flight: int) -> TickResult:
        """Coda, head and sampling for lanes that leave, as far as the exit tests have not computed them already."""
        lanes, count = self._lanes, len(leaving)
        wanted = np.array([lanes.sampling[lane] is not None for lane in leaving], np.bool_)
        # Of groups that are scored, the tests have computed the logits of one token alone.
        scored = lanes.group[leaving[lanes.target[leaving] >= 0]]
        has_logits = [
            (tested.logits, tested.lane, np.isin(tested.lane, leaving[wanted]) & ~np.isin(tested.lane, scored))
            for tested in exits.tested
            if tested.logits is not None
        ]
        done = [lane[~np.isin(lane, scored)] for _, lane, _ in has_logits]
        missing = ~lanes.in_groups(leaving, np.concatenate(done or [np.empty(0, np.int64)]))
        token, logprob = np.full(count, -1, np.int32), np.full(count, np.nan, np.float32)
        top: list[dict[int, float]] = [{}] * count
        entropy = np.full(count, np.nan, np.float32)
        logits = [self._logits(leaving[missing], wanted[missing])]
        source = [leaving[missing & wanted]]
        for tested, lane, picked in has_logits:
            logits.append(tested[self._on_device(np.flatnonzero(picked))])
            source.append(lane[picked])
        row_of = np.zeros(self._cache.lanes, np.int64)
        row_of[leaving] = np.arange(count)
        order = row_of[np.concatenate(source)]
        if len(order):
            chosen = self._sample_or_score(leaving[order], torch.cat(logits))
            token[order] = chosen.token.cpu().numpy()
            logprob[order] = chosen.logprob.cpu().numpy()
            if chosen.entropy is not None:
                entropy[order] = np.where(
                    lanes.entropy[leaving[order]], chosen.entropy.cpu().numpy(), np.float32(np.nan)
                )
            for row, likeliest in zip(order.tolist(), chosen.top, strict=False):
                top[row] = likeliest
        return TickResult(
            lane=leaving.astype(np.int32),
            depth=np.minimum(lanes.age[leaving], lanes.bound[leaving]),
            token=token,
            logprob=logprob,
            entropy=entropy,
            top=tuple(top),
            tested=np.concatenate([tested.lane for tested in exits.tested] or [leaving[:0]]).astype(np.int32),
            exit_value=torch.cat([tested.value for tested in exits.tested] or [torch.empty(0)]).float().cpu().numpy(),
            failures=exits.failures,
            in_flight=in_flight,
            iterations=in_flight,
        )

    def _draft(self, drafting: Int64, result: TickResult) -> TickResult:
        """Coda, head and sampling for lanes that go on; what their coda writes is written again when they leave."""
        everyone = np.ones(len(drafting), np.bool_)
        chosen = self._sample(drafting, self._logits(drafting, everyone))
        drafted = chosen.token.cpu().numpy().astype(np.int32)
        return msgspec.structs.replace(result, drafting=drafting.astype(np.int32), drafted=drafted)

    def _sample_or_score(self, lane: Int64, logits: Tensor) -> Sampled:
        """Rows that have a target are scored, all others sampled."""
        target = self._lanes.target[lane]
        if (target < 0).all():
            return self._sample(lane, logits)
        token = torch.empty(len(lane), dtype=torch.int64, device=logits.device)
        logprob = torch.empty(len(lane), device=logits.device)
        entropy: Tensor | None = None
        top: list[dict[int, float]] = [{}] * len(lane)
        for rows in (np.flatnonzero(target < 0), np.flatnonzero(target >= 0)):
            if not len(rows):
                continue
            at = self._on_device(rows)
            own = self._sample(lane[rows], logits[at]) if target[rows[0]] < 0 else self._score(lane[rows], logits[at])
            token[at], logprob[at] = own.token, own.logprob
            if own.entropy is not None:
                entropy = torch.full((len(lane),), torch.nan, device=logits.device)
                entropy[at] = own.entropy
            for row, likeliest in zip(rows.tolist(), own.top, strict=False):
                top[row] = likeliest
        return Sampled(token, logprob, entropy, tuple(top))

    def _score(self, lane: Int64, logits: Tensor) -> Sampled:
        samplings = [self._lanes.sampling[place] for place in lane.tolist()]
        counts = [0 if sampling is None else sampling.logprobs for sampling in samplings]
        return score(logits, self._on_device(self._lanes.target[lane]), counts)

    def _sample(self, lane: Int64, logits: Tensor) -> Sampled:
        lanes = self._lanes
        distinct: dict[Sampling, int] = {}
        which = np.empty(len(lane), np.int32)
        contexts: dict[int, Int32] = {}
        masks = {row: self._masks[place].wait() for row, place in enumerate(lane.tolist()) if place in self._masks}
        for row, place in enumerate(lane.tolist()):
            sampling = lanes.sampling[place]
            assert sampling is not None
            which[row] = distinct.setdefault(sampling, len(distinct))
            if sampling.repetition_penalty != 1.0:
                contexts[row] = self._contexts[place]
        draws = None
        if not all(sampling.is_greedy for sampling in distinct):
            key, position = self._on_device(lanes.sampling_key[lane]), self._on_device(lanes.position[lane])
            draws = uniforms(key, position, 1, SAMPLING_STREAM)[:, 0]
        entropies = bool(lanes.entropy[lane].any())
        rule = self._specification.filter_rule
        return sample(logits, which, tuple(distinct), draws, contexts, entropies, rule=rule, masks=masks)

    def _keep(self, leaving: Int64) -> None:
        """Keeps the last latent states of lanes that leave, where the threads' next tokens start from them."""
        kept = leaving[self._lanes.keeps[leaving]]
        if len(kept):
            self._carried[self._on_device(self._lanes.row[kept])] = self._state[self._on_device(kept)]

    # ---- small parts ------------------------------------------------------------------------------------------------

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _on_device(self, numbers: Int32 | Int64 | Bool) -> Tensor:
        # From pageable memory, a copy that is not waited for has still read all of it when the call returns.
        return torch.from_numpy(numbers.astype(np.int64, copy=False)).to(self._device, non_blocking=True)
