"""The plain PyTorch backend, for any device: the reference for every other one.

Lanes go through the modules of the model in one tile, or in tiles of one shape in deterministic mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runtime.backend.attention import Holes, PagedAttention, PagedCache, Queries
from runtime.backend.interface import Bool, CacheShape, Int32, Int64
from runtime.backend.ticking import LaneBackend
from runtime.model.replacement import replace_weights
from runtime.model.served import ServedModel
from runtime.model.transformer import Attend, Rotation


@dataclass(slots=True)
class Tile:
    """Lanes that go through the model together; padded, in deterministic mode, with copies of the first."""

    lanes: Int64
    """[n] the lanes themselves."""
    index: Tensor
    """[n + padding] int64 lanes, on the device."""
    rotation: Rotation
    """Of the n + padding positions."""


class TorchBackend(LaneBackend):
    """Weights and the paged cache on one device."""

    def __init__(
        self,
        model: ServedModel,
        cache: CacheShape,
        attention: PagedAttention,
        *,
        state_std: float,
        deterministic: bool,
    ) -> None:
        specification = model.specification
        super().__init__(specification, cache, model.device, model.dtype, state_std)
        self._model = model
        self._attention = attention
        self._deterministic = deterministic
        self._rules = [specification.attention(layer) for layer in range(len(specification.layers))]
        shape = (
            cache.columns(specification),
            cache.pages,
            cache.page_size,
            specification.kv_heads,
            specification.head_dim,
        )
        self._paged = PagedCache(
            keys=self._zeros(*shape),
            values=self._zeros(*shape),
            depths=torch.zeros(cache.pages, cache.page_size, dtype=torch.int32, device=self._device),
            page_table=torch.from_numpy(self._table).to(self._device),
            holes=self._holes_on_device(),
        )
        self._had_holes = False
        self._embedded = self._zeros(cache.lanes, specification.width)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        # Captured ticks read the parameters where they lie, too.
        replace_weights(self._model, weights)

    def close(self) -> None:
        """Nothing runs beside the device thread."""

    # ---- what a tick computes ---------------------------------------------------------------------------------------

    def _begin(self, copies: Int32) -> None:
        if self._device.type != "cpu":
            self._paged.page_table.copy_(torch.from_numpy(self._table), non_blocking=True)
        self._copy_holes()
        if len(copies):
            source, destination = self._on_device(copies[:, 0]), self._on_device(copies[:, 1])
            for stored in (self._paged.keys, self._paged.values):
                stored[:, destination] = stored[:, source]
            self._paged.depths[destination] = self._paged.depths[source]

    def _prelude(self, lanes: Int64, tokens: Int64) -> None:
        token_of = np.zeros(self._cache.lanes, np.int64)
        token_of[lanes] = tokens
        by_lane = self._on_device(token_of)
        for tile in self._tiles_alike(lanes):
            embedded = self._model.prelude(by_lane[tile.index], tile.rotation, self._attend(tile, None))
            self._embedded[tile.index[: len(tile.lanes)]] = embedded[: len(tile.lanes)]

    def _iterate(self, active: Int64) -> None:
        age = self._lanes.age[active]
        cell = self._on_device(self._lanes.cell[active])
        self._paged.depths.view(-1)[cell] = self._on_device(age + 1).int()
        for tile in self._tiles(active):
            state, embedded = self._state[tile.index], self._embedded[tile.index]
            state = self._model.iterate(state, embedded, tile.rotation, self._attend(tile, self._lanes.age))
            self._state[tile.index[: len(tile.lanes)]] = state[: len(tile.lanes)]

    def _logits(self, lanes: Int64, wanted: Bool) -> Tensor:
        if not self._specification.coda_layers:
            lanes, wanted = lanes[wanted], wanted[wanted]
        found = [torch.empty(0, self._specification.vocab_size, device=self._device)]
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

    def _first_state(self, lanes: Int64) -> Tensor:
        return self._model.first_state(self._embedded[self._on_device(lanes)])

    def _gates(self, active: Int64) -> Tensor:
        found = [torch.empty(0, device=self._device)]
        for own, padded in self._padded(active):
            found.append(self._model.gate(self._state[self._on_device(padded)])[: len(own)])
        return torch.cat(found)

    def _normed(self, state: Tensor) -> Tensor:
        normed: Tensor = self._model.final_norm(state)
        return normed

    def _settle(self, lanes: Int64) -> None:
        """Nothing: attention looks up how deep each token went."""

    # ---- small parts ------------------------------------------------------------------------------------------------

    def _holes_on_device(self) -> Holes:
        parts, has_holes = (torch.from_numpy(each) for each in self._holes)
        return Holes(parts.to(self._device), has_holes.to(self._device, torch.int32), has_holes)

    def _copy_holes(self) -> None:
        """As they are now; where there are none and were none in the tick before, there is nothing to do."""
        holes = self._paged.holes
        has_holes = bool(self._holes.has_holes.any())
        if holes is not None and (has_holes or self._had_holes):
            holes.page_parts.copy_(torch.from_numpy(self._holes.page_parts), non_blocking=True)
            holes.has_holes.copy_(holes.on_host, non_blocking=True)
        self._had_holes = has_holes

    def _padded(self, lanes: Int64) -> Iterator[tuple[Int64, Int64]]:
        """Lanes [n] of each tile, and the same with its padding."""
        size = self._model.tile_rows if self._deterministic else len(lanes)
        for start in range(0, len(lanes), max(size, 1)):
            own = lanes[start : start + size]
            yield own, np.concatenate([own, np.repeat(own[:1], size - len(own))])

    def _tiles(self, lanes: Int64) -> Iterator[Tile]:
        for own, padded in self._padded(lanes):
            position, is_long = (self._on_device(each[padded]) for each in (self._lanes.position, self._lanes.is_long))
            yield Tile(own, self._on_device(padded), self._model.rotation(position, is_long))

    def _tiles_alike(self, lanes: Int64) -> Iterator[Tile]:
        """The same, each of lanes on one side of the model's short context, where it has one."""
        if self._specification.short_context is None:
            yield from self._tiles(lanes)
            return
        for is_long in (False, True):
            yield from self._tiles(lanes[self._lanes.is_long[lanes] == is_long])

    def _attend(self, tile: Tile, age: Int32 | None) -> Attend:
        """Attention for the lanes of a tile; `age` [lanes] chooses the iteration slot within the core block."""
        count = len(tile.lanes)
        slots = 1 if age is None else self._cache.slots
        slot = np.zeros(count, np.int32) if age is None else (age[tile.lanes] % slots).astype(np.int32)
        queries = Queries(
            torch.from_numpy(self._lanes.row[tile.lanes]),
            torch.from_numpy(self._lanes.place[tile.lanes]),
            torch.from_numpy(slot),
        )
        padding = len(tile.index) - count

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            column = self._column(layer)
            rule = self._rules[layer]
            own = query[:count], key[:count], value[:count]
            attended = self._attention(self._paged, queries, column, slots, rule, *own)
            return torch.nn.functional.pad(attended, (0, 0, 0, 0, 0, padding)) if padding else attended

        return attend

    def _column(self, layer: int) -> int:
        """The first column of a layer; see `CacheShape`."""
        core_layers_before = min(layer, self._specification.coda_start) - self._specification.core_start
        return layer + max(core_layers_before, 0) * (self._cache.slots - 1)
