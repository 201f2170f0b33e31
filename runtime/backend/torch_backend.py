"""The plain PyTorch backend, for any device: the reference for every other one.

One tick, in tensors: prelude over entering tokens; adapter and core block over all in flight; for policies that read
logits, coda and head over those tested; coda, head and sampling over those leaving.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from policies.depth.base import DepthPolicy
from runtime.backend.attention import PagedAttention, PagedMemory, Queries
from runtime.backend.exits import ExitTests, TickExits
from runtime.backend.interface import Bool, CacheShape, Entering, Int32, Int64, Tick, TickResult
from runtime.backend.lanes import Lanes
from runtime.backend.sampler import Sampled, sample
from runtime.model.raven import Attend, Raven
from runtime.randomness import SAMPLING_STREAM, initial_noise, uniforms
from runtime.sampling import Sampling

TILE = 32
"""Rows of a matrix product in deterministic mode: every product then has one shape, whatever the batch is."""


@dataclass(slots=True)
class Tile:
    """Lanes that go through the model together; padded, in deterministic mode, with copies of the first."""

    lanes: Int64
    """[n] the lanes themselves."""
    index: Tensor
    """[n + padding] int64 lanes, on the device."""
    rotation: Tensor
    """[n + padding, head_dim / 2, 2]."""


class TorchBackend:
    """Weights, paged memory and lanes on one device. See `Backend` for what a tick does.

    `state_std` is the standard deviation of initial latent states, 0 for zeros. `carry_normed` says whether a carried
    state passes the final norm.
    """

    def __init__(
        self,
        model: Raven,
        cache: CacheShape,
        attention: PagedAttention,
        *,
        state_std: float,
        carry_normed: bool,
        deterministic: bool,
    ) -> None:
        config = model.config
        self._model = model
        self._cache = cache
        self._attention = attention
        self._state_std = state_std
        self._carry_normed = carry_normed
        self._deterministic = deterministic
        self._device = model.lm_head.weight.device
        self._dtype = model.lm_head.weight.dtype
        self._table = np.zeros((cache.rows, cache.pages_per_row), np.int32)
        columns = (
            config.n_layers_in_prelude + config.n_layers_in_recurrent_block * cache.slots + config.n_layers_in_coda
        )
        shape = (columns, cache.pages, cache.page_size, config.n_heads, config.head_dim)
        self._memory = PagedMemory(
            keys=self._zeros(*shape),
            values=self._zeros(*shape),
            depths=torch.zeros(cache.pages, cache.page_size, dtype=torch.int32, device=self._device),
            page_table=torch.from_numpy(self._table),
        )
        self._lanes = Lanes(cache.lanes)
        self._state = self._zeros(cache.lanes, config.n_embd)
        self._embedded = self._zeros(cache.lanes, config.n_embd)
        self._carried = self._zeros(cache.rows, config.n_embd)
        self._before: tuple[Tensor, Tensor] | None = None
        """The lanes that iterate in this tick, and their states before it."""
        self._contexts: dict[int, Int32] = {}
        """By lane, for samplings with a repetition penalty."""
        self._exits = ExitTests(cache.lanes, config.n_embd, config.vocab_size, self._device)

    @property
    def cache(self) -> CacheShape:
        return self._cache

    @property
    def page_table(self) -> Int32:
        return self._table

    def register(self, policy: DepthPolicy) -> int:
        return self._exits.register(policy)

    def release(self, index: int) -> None:
        self._exits.release(index)

    @property
    def policies_known(self) -> int:
        """Policies that memory is kept for, for looking in."""
        return len(self._exits)

    def latents(self, lanes: list[int]) -> Tensor:
        """Latent states [n, n_embd] after the last tick, for looking in."""
        return self._state[lanes]

    @torch.inference_mode()
    def tick(self, tick: Tick) -> TickResult:
        lanes, age = self._lanes, self._lanes.age.copy()
        self._before = None
        try:
            return self._tick(tick)
        except torch.OutOfMemoryError:
            # The tick never was. What it wrote to paged memory, it will write again.
            lanes.leave(tick.entering.lane)
            lanes.age[:] = age
            if self._before is not None:
                active, state = self._before
                self._state[active] = state
            raise

    def _tick(self, tick: Tick) -> TickResult:
        lanes = self._lanes
        if self._device.type != "cpu":
            self._memory = self._memory._replace(page_table=torch.from_numpy(self._table).to(self._device))
        if len(tick.copies):
            self._copy_pages(tick.copies)
        lanes.leave(tick.dropped)
        failures = self._enter(tick) if len(tick.entering.lane) else {}
        occupied = lanes.in_flight()
        # In order of position, because in deterministic mode a tile sees only what earlier tiles have written.
        occupied = occupied[np.lexsort((lanes.position[occupied], lanes.row[occupied]))]
        active = occupied[lanes.age[occupied] < lanes.bound[occupied]]
        self._iterate(active)
        lanes.age[occupied] += 1
        exits = self._exits.run(lanes, active, self._state, self._logits)
        exits.failures.update(failures)
        failed = np.array(list(exits.failures), np.int64)
        dropped = lanes.in_groups(occupied, failed)
        leaves = (lanes.age[occupied] >= lanes.until[occupied]) | lanes.in_groups(occupied, exits.done())
        leaving = occupied[leaves & ~dropped]
        result = self._leave(leaving, exits, len(active), tick.entropies)
        self._exits.remember(exits)
        for lane in leaving.tolist() if self._contexts else ():
            self._contexts.pop(lane, None)
        lanes.leave(leaving)
        lanes.leave(occupied[dropped])
        return result

    # ---- parts of a tick --------------------------------------------------------------------------------------------

    def _copy_pages(self, copies: Int32) -> None:
        source, destination = self._on_device(copies[:, 0]), self._on_device(copies[:, 1])
        for stored in (self._memory.keys, self._memory.values):
            stored[:, destination] = stored[:, source]
        self._memory.depths[destination] = self._memory.depths[source]

    def _enter(self, tick: Tick) -> dict[int, Exception]:
        """Embeds the entering tokens, runs their prelude and sets their initial latent states.

        Returns what policies raised at it, by the last lane of the group to blame.
        """
        entering, size = tick.entering, self._cache.page_size
        page = self._table[entering.row, entering.position // size].astype(np.int64)
        self._lanes.enter(entering, tick.samplings, page * size + entering.position % size)
        self._contexts |= tick.contexts
        lane = entering.lane.astype(np.int64)
        token_of = np.zeros(self._cache.lanes, np.int64)
        token_of[lane] = entering.token
        tokens = self._on_device(token_of)
        for tile in self._tiles(lane):
            embedded = self._model.prelude(tokens[tile.index], tile.rotation, self._attend(tile, None))
            self._embedded[tile.index[: len(tile.lanes)]] = embedded[: len(tile.lanes)]
        state = self._initial_state(entering)
        self._state[self._on_device(lane)] = state
        failures = self._exits.begin(entering, state)
        self._lanes.tests[lane[np.isin(entering.group, list(failures))]] = False
        return failures

    def _initial_state(self, entering: Entering) -> Tensor:
        if self._state_std == 0.0:
            state = self._zeros(len(entering.lane), self._model.config.n_embd)
        else:
            key, position = self._on_device(entering.noise_key), self._on_device(entering.position)
            noise = initial_noise(key, position, self._model.config.n_embd, self._state_std)
            state = (noise * self._model.config.embedding_scale).to(self._dtype)
        if entering.carries.any():
            carries = torch.from_numpy(entering.carries).to(self._device)[:, None]
            state = torch.where(carries, self._carried[self._on_device(entering.row)], state)
        return state

    def _iterate(self, active: Int64) -> None:
        """One core iteration of the active lanes; all of them see the states of the iteration before."""
        age, at = self._lanes.age[active], self._on_device(active)
        self._before = at, self._state[at]
        self._memory.depths.view(-1)[self._on_device(self._lanes.cell[active])] = torch.from_numpy(age + 1).to(
            self._device
        )
        for tile in self._tiles(active):
            state, embedded = self._state[tile.index], self._embedded[tile.index]
            state = self._model.iterate(state, embedded, tile.rotation, self._attend(tile, self._lanes.age))
            self._state[tile.index[: len(tile.lanes)]] = state[: len(tile.lanes)]

    def _logits(self, lanes: Int64, wanted: Bool) -> Tensor:
        """Runs the coda over lanes and returns the logits [n, vocab] float32 of those wanted."""
        if not self._model.config.n_layers_in_coda:
            lanes, wanted = lanes[wanted], wanted[wanted]
        found = [torch.empty(0, self._model.config.vocab_size, device=self._device)]
        start = 0
        for tile in self._tiles(lanes):
            rows = self._on_device(np.flatnonzero(wanted[start : start + len(tile.lanes)]))
            start += len(tile.lanes)
            states, attend = self._state[tile.index], self._attend(tile, None)
            if self._deterministic:
                found.append(self._model.coda(states, tile.rotation, attend)[rows])
            else:
                found.append(self._model.coda(states, tile.rotation, attend, rows))
        return torch.cat(found)

    def _leave(self, leaving: Int64, exits: TickExits, in_flight: int, entropies: bool) -> TickResult:
        """Coda, head and sampling for lanes that leave, as far as the exit tests have not computed them already."""
        lanes, count = self._lanes, len(leaving)
        wanted = np.array([lanes.sampling[lane] is not None for lane in leaving], np.bool_)
        has_logits = [tested for tested in exits.tested if tested.logits is not None]
        done = np.concatenate([tested.lane for tested in has_logits] or [np.empty(0, np.int64)])
        missing = ~lanes.in_groups(leaving, done)
        token, logprob = np.full(count, -1, np.int32), np.full(count, np.nan, np.float32)
        top: list[dict[int, float]] = [{}] * count
        entropy = np.full(count, np.nan, np.float32)
        logits = [self._logits(leaving[missing], wanted[missing])]
        source = [leaving[missing & wanted]]
        for tested in has_logits:
            picked = np.isin(tested.lane, leaving[wanted])
            assert tested.logits is not None
            logits.append(tested.logits[self._on_device(np.flatnonzero(picked))])
            source.append(tested.lane[picked])
        place = np.zeros(self._cache.lanes, np.int64)
        place[leaving] = np.arange(count)
        order = place[np.concatenate(source)]
        if len(order):
            chosen = self._sample(leaving[order], torch.cat(logits), entropies)
            token[order] = chosen.token.cpu().numpy()
            logprob[order] = chosen.logprob.cpu().numpy()
            if chosen.entropy is not None:
                entropy[order] = chosen.entropy.cpu().numpy()
            for place, likeliest in zip(order.tolist(), chosen.top, strict=False):
                top[place] = likeliest
        self._carry(leaving)
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
        )

    def _sample(self, lane: Int64, logits: Tensor, entropies: bool) -> Sampled:
        lanes = self._lanes
        distinct: dict[Sampling, int] = {}
        which = np.empty(len(lane), np.int32)
        contexts: dict[int, Int32] = {}
        for row, seat in enumerate(lane.tolist()):
            sampling = lanes.sampling[seat]
            assert sampling is not None
            which[row] = distinct.setdefault(sampling, len(distinct))
            if sampling.repetition_penalty != 1.0:
                contexts[row] = self._contexts[seat]
        draws = None
        if not all(sampling.is_greedy for sampling in distinct):
            key, position = self._on_device(lanes.sampling_key[lane]), self._on_device(lanes.position[lane])
            draws = uniforms(key, position, 1, SAMPLING_STREAM)[:, 0]
        return sample(logits, which, tuple(distinct), draws, contexts, entropies)

    def _carry(self, leaving: Int64) -> None:
        """Keeps the last latent state of each thread whose group leaves, for its next token."""
        last = leaving[self._lanes.group[leaving] == leaving]
        if len(last):
            state = self._state[self._on_device(last)]
            if self._carry_normed:
                state = self._model.transformer.ln_f(state)
            self._carried[self._on_device(self._lanes.row[last])] = state

    # ---- small parts ------------------------------------------------------------------------------------------------

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _on_device(self, numbers: Int32 | Int64) -> Tensor:
        return torch.from_numpy(numbers.astype(np.int64, copy=False)).to(self._device)

    def _tiles(self, lanes: Int64) -> Iterator[Tile]:
        size = TILE if self._deterministic else len(lanes)
        for start in range(0, len(lanes), max(size, 1)):
            own = lanes[start : start + size]
            padded = np.concatenate([own, np.repeat(own[:1], size - len(own))])
            positions = self._on_device(self._lanes.position[padded])
            yield Tile(own, self._on_device(padded), self._model.rotation(positions))

    def _attend(self, tile: Tile, age: Int32 | None) -> Attend:
        """Attention for the lanes of a tile; `age` [lanes] chooses the iteration slot within the core block."""
        count = len(tile.lanes)
        slots = 1 if age is None else self._cache.slots
        slot = np.zeros(count, np.int32) if age is None else (age[tile.lanes] % slots).astype(np.int32)
        queries = Queries(
            torch.from_numpy(self._lanes.row[tile.lanes]),
            torch.from_numpy(self._lanes.position[tile.lanes]),
            torch.from_numpy(slot),
        )
        padding = len(tile.index) - count
        model = self._model

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            column = layer
            if layer >= model.core_start:
                column += min(layer - model.core_start, model.coda_start - model.core_start) * (self._cache.slots - 1)
            attended = self._attention(self._memory, queries, column, slots, query[:count], key[:count], value[:count])
            return torch.nn.functional.pad(attended, (0, 0, 0, 0, 0, padding)) if padding else attended

        return attend
