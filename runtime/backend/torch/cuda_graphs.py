"""Ticks whose arithmetic is captured once in CUDA graphs, by batch size, and replayed: launches cost next to nothing.

A tick of few tokens is many small kernels, and launching them takes longer than running them. So prelude, iteration
and coda are captured for some batch sizes, the buckets, over input buffers that stay in place. A step over n lanes
fills the buffers of the smallest bucket that holds n, the rest with a scratch lane, and replays. What depends on the
host (exit tests, sampling, copies of pages) stays outside, and so do batches beyond the largest bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from enum import IntEnum
from typing import ClassVar, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor

from runtime.backend.attention import PagedAttention, Queries
from runtime.backend.interface import Bool, CacheShape, Int32, Int64, RowHoles
from runtime.backend.torch.backend import TorchBackend
from runtime.model.served import ServedModel
from runtime.model.transformer import Attend, Rotation

LARGEST = 256
"""Largest bucket: beyond it the device, not the host, is what a tick waits for."""

_WARM_UPS = 3
"""Runs before a capture, in which kernels are compiled and libraries set themselves up."""

Step = Callable[[], Tensor]


class Capture(Protocol):
    def __call__(self, step: Step) -> Step:
        """What repeats the work of `step`, over the same tensors, without running its Python again.

        May run `step` any number of times. The result of a replay is one tensor for all replays; it holds until the
        next replay of anything captured.
        """
        ...


class CapturableAttention(PagedAttention, Protocol):
    capturable: ClassVar[bool]
    """Whether a call over queries on the cache's device only launches work: no planning on the host, no waiting."""


class CudaCapture:
    """`Capture` in CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        """Raises `ValueError` for anything but a CUDA device."""
        if device.type != "cuda":
            raise ValueError(
                f"EngineSettings.cuda_graphs is True and the model is on {device}: graphs need a CUDA device. Set it "
                "to False, or open the engine with a CUDA device."
            )
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        with torch.cuda.device(self._device):
            current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    step()
            current.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Whatever else the process does on the device meanwhile is none of this graph's business.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class Field(IntEnum):
    """Rows of a bucket's input buffer."""

    LANE = 0
    ROW = 1
    POSITION = 2
    CELL = 3
    """Where in the paged cache the token is: page * page_size + offset."""
    SLOT = 4
    DEPTH = 5
    """Iterations done, the one under way included."""
    TOKEN = 6
    LONG = 7
    """Whether LongRoPE turns its context by the long factors."""
    PLACE = 8
    """Where in its row the token is: its position, but in rows with holes."""


class Bucket:
    """The input buffer of one batch size, and the captured steps that read it."""

    def __init__(self, size: int, scratch: Int64, device: torch.device) -> None:
        """`scratch` [fields] is what a column without a token holds."""
        self.size = size
        self.steps: dict[str, Step] = {}
        self._scratch = scratch
        self._inputs = torch.from_numpy(np.repeat(scratch[:, None], size, 1)).to(device)

    def __getitem__(self, field: Field) -> Tensor:
        """[size] int64, on the device."""
        return self._inputs[field]

    @property
    def queries(self) -> Queries:
        """What the columns attend as."""
        row, place, slot = (self[field].int() for field in (Field.ROW, Field.PLACE, Field.SLOT))
        return Queries(row, place, slot)

    def replay(self, step: str, inputs: dict[Field, Int32 | Int64], count: int) -> Tensor:
        """Runs a step over `count` tokens; fields [count] that are not given are scratch.

        Rows of the result beyond `count` mean nothing, and the others hold until the next replay.
        """
        filled = np.repeat(self._scratch[:, None], self.size, 1)
        for field, numbers in inputs.items():
            filled[field, :count] = numbers
        # From pageable memory, a copy that is not waited for has still read all of it when the call returns.
        self._inputs.copy_(torch.from_numpy(filled), non_blocking=True)
        return self.steps[step]()


class GraphedBackend(TorchBackend):
    """`TorchBackend` whose steps are captured for some batch sizes when it is made.

    `capture` does the capturing and `buckets`, ascending, are the batch sizes. Raises `ValueError` if the attention
    cannot be captured, because it plans on the host.
    """

    def __init__(
        self,
        model: ServedModel,
        cache: CacheShape,
        attention: PagedAttention | CapturableAttention,
        capture: Capture,
        buckets: tuple[int, ...],
        *,
        state_std: float,
    ) -> None:
        if not getattr(attention, "capturable", False):
            raise ValueError(
                f"EngineSettings.cuda_graphs is True and attention is {type(attention).__name__}, which plans each "
                "call on the host. Graphs need the Triton kernel: install triton and leave EngineSettings.attention "
                "'auto', or set cuda_graphs to False."
            )
        # One more of each, for the rows of a bucket that hold no token: what they write, nobody reads.
        larger = msgspec.structs.replace(cache, lanes=cache.lanes + 1, rows=cache.rows + 1, pages=cache.pages + 1)
        super().__init__(model, larger, attention, state_std=state_std, deterministic=False)
        self._usable = cache
        self._table[cache.rows] = cache.pages
        scratch = np.zeros(len(Field), np.int64)
        scratch[Field.LANE], scratch[Field.ROW] = cache.lanes, cache.rows
        scratch[Field.CELL], scratch[Field.DEPTH] = cache.pages * cache.page_size, 1
        self._sizes = buckets
        self._buckets = [Bucket(size, scratch, self._device) for size in buckets]
        with torch.inference_mode():
            self._begin(np.empty((0, 2), np.int32))
            # The largest first: what it needs in passing is enough for all others.
            for bucket in reversed(self._buckets):
                self._capture(bucket, capture)

    @property
    def cache(self) -> CacheShape:
        return self._usable

    @property
    def page_table(self) -> Int32:
        return self._table[: self._usable.rows]

    @property
    def row_holes(self) -> RowHoles:
        rows = self._usable.rows
        return RowHoles(self._holes.page_parts[:rows], self._holes.has_holes[:rows])

    # ---- what a tick computes ---------------------------------------------------------------------------------------

    def _prelude(self, lanes: Int64, tokens: Int64) -> None:
        bucket = self._bucket_for(len(lanes))
        if bucket is None:
            super()._prelude(lanes, tokens)
        else:
            bucket.replay("prelude", self._places(lanes) | {Field.TOKEN: tokens}, len(lanes))

    def _iterate(self, active: Int64) -> None:
        bucket = self._bucket_for(len(active))
        if bucket is None:
            super()._iterate(active)
        else:
            age = self._lanes.age[active]
            inputs = self._places(active)
            inputs |= {Field.CELL: self._lanes.cell[active], Field.SLOT: age % self._cache.slots}
            inputs |= {Field.DEPTH: age + 1}
            bucket.replay("iterate", inputs, len(active))

    def _logits(self, lanes: Int64, wanted: Bool) -> Tensor:
        if not self._specification.coda_layers:
            lanes, wanted = lanes[wanted], wanted[wanted]
        bucket = self._bucket_for(len(lanes))
        # The captured head runs over all lanes; of a prompt, where few logits are wanted, that is a waste.
        if bucket is None or 2 * np.count_nonzero(wanted) < len(lanes):
            return super()._logits(lanes, wanted)
        return bucket.replay("coda", self._places(lanes), len(lanes))[self._on_device(np.flatnonzero(wanted))]

    # ---- small parts ------------------------------------------------------------------------------------------------

    def _bucket_for(self, count: int) -> Bucket | None:
        """The smallest bucket that holds `count` tokens; None for none, or too many."""
        at = bisect_left(self._sizes, count)
        return self._buckets[at] if count and at < len(self._sizes) else None

    def _places(self, lanes: Int64) -> dict[Field, Int32 | Int64]:
        own = self._lanes
        places = {Field.ROW: own.row[lanes], Field.POSITION: own.position[lanes], Field.PLACE: own.place[lanes]}
        return {Field.LANE: lanes, **places, Field.LONG: own.is_long[lanes].astype(np.int64)}

    def _capture(self, bucket: Bucket, capture: Capture) -> None:
        """Captures every step over the bucket's buffer, which holds nothing but scratch so far."""

        def prelude() -> Tensor:
            rotation = self._rotation(bucket)
            embedded = self._model.prelude(bucket[Field.TOKEN], rotation, self._attend_as(bucket.queries, 1))
            self._embedded[bucket[Field.LANE]] = embedded
            return embedded

        def iterate() -> Tensor:
            self._paged.depths.view(-1)[bucket[Field.CELL]] = bucket[Field.DEPTH].int()
            lane, rotation = bucket[Field.LANE], self._rotation(bucket)
            attend = self._attend_as(bucket.queries, self._cache.slots)
            state = self._model.iterate(self._state[lane], self._embedded[lane], rotation, attend)
            self._state[lane] = state
            return state

        def coda() -> Tensor:
            rotation = self._rotation(bucket)
            return self._model.coda(self._state[bucket[Field.LANE]], rotation, self._attend_as(bucket.queries, 1))

        bucket.steps = {"prelude": capture(prelude), "iterate": capture(iterate), "coda": capture(coda)}

    def _rotation(self, bucket: Bucket) -> Rotation:
        return self._model.rotation(bucket[Field.POSITION], bucket[Field.LONG].bool())

    def _attend_as(self, queries: Queries, slots: int) -> Attend:
        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return self._attention(
                self._paged, queries, self._column(layer), slots, self._rules[layer], query, key, value
            )

        return attend


def batch_buckets(lanes: int) -> tuple[int, ...]:
    """Powers of two up to the number of lanes, and that itself; none beyond `LARGEST`."""
    most = min(lanes, LARGEST)
    powers = [1 << exponent for exponent in range(most.bit_length()) if 1 << exponent < most]
    return (*powers, most)
