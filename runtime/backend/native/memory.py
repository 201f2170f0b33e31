"""Makes a `Context`: packs the weights, sizes the memory and the work space."""

from __future__ import annotations

import numpy as np
import torch

from runtime.backend.interface import CacheShape, Int32
from runtime.backend.lanes import Lanes
from runtime.backend.native.crew import Crew
from runtime.backend.native.intrinsics import LANES
from runtime.backend.native.packing import pack
from runtime.backend.native.products import PANEL
from runtime.backend.native.tick_buffers import Context, Numbers
from runtime.model.architecture import Model
from runtime.model.raven import Raven

LONGEST_RUN = 64
"""Most tokens that a lane samples before it stops."""


def make_context(model: Model, cache: CacheShape, lanes: Lanes, page_table: Int32, crew: Crew) -> Context:
    """`lanes` and `page_table` are shared with the context, not copied."""
    config = model.config
    packed = pack(model)
    is_narrow = model.lm_head.weight.dtype is torch.bfloat16

    def stored(count: int) -> Numbers:
        return np.zeros(count, np.uint16) if is_narrow else np.zeros(count, np.float32)

    n, width = cache.lanes, config.n_embd
    head_room = _up(config.head_dim, LANES)
    strips = -(-cache.page_size // LANES)
    blocks = cache.columns(config) * cache.pages * config.n_kv_heads * strips * LANES
    adapts = isinstance(model, Raven)
    stride = _up(width, PANEL)
    gate_stride = _up(config.intermediate_size, PANEL // 2)
    attended_stride = _up(config.n_heads * config.head_dim, 2)
    hidden_stride = 2 * width if adapts else _up(width, 2)
    qkv_stride = _up((config.n_heads + 2 * config.n_kv_heads) * config.head_dim, PANEL)

    def floats(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.zeros(shape, np.float32)

    def integers(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
        return np.zeros(shape, np.int32)

    def longs(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.zeros(shape, np.int64)

    return Context(
        lanes=n,
        pages_per_row=cache.pages_per_row,
        layers=config.n_layers,
        width=width,
        stride=stride,
        heads=config.n_heads,
        kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        head_room=head_room,
        qkv_stride=qkv_stride,
        gate_stride=gate_stride,
        logits_stride=_up(config.vocab_size, PANEL),
        scores_stride=cache.pages_per_row * strips * LANES,
        longest_run=LONGEST_RUN,
        vocab=config.vocab_size,
        prelude_layers=config.n_layers_in_prelude,
        core_layers=config.n_layers_in_recurrent_block,
        coda_layers=config.n_layers_in_coda,
        slots=cache.slots,
        pages=cache.pages,
        page_size=cache.page_size,
        strips=strips,
        sandwich=adapts,
        adapts=adapts,
        eps=float(config.norm_eps),
        embedding_scale=float(config.embedding_scale),
        workers=crew.workers,
        **packed._asdict(),
        keys=stored(blocks * config.head_dim),
        values=stored(blocks * head_room),
        page_table=page_table,
        row=lanes.row,
        position=lanes.position,
        age=lanes.age,
        bound=lanes.bound,
        until=lanes.until,
        group=lanes.group,
        tests=lanes.tests,
        occupied=lanes.occupied,
        cell=lanes.cell,
        sampling_key=lanes.sampling_key,
        token=longs(n),
        wanted=np.zeros(n, np.bool_),
        temperature=floats(n),
        criterion=integers(n),
        threshold=floats(n),
        minimum=integers(n),
        every=np.ones(n, np.int32),
        run=integers(n),
        halts=integers(n),
        run_count=integers(n),
        run_token=integers(n, LONGEST_RUN),
        run_logprob=floats(n, LONGEST_RUN),
        run_depth=integers(n, LONGEST_RUN),
        state=floats(n, width),
        embedded=floats(n, width),
        remembered=floats(n, width),
        exit_value=floats(n),
        exit_sum=floats(n),
        exit_count=longs(n),
        halting=np.zeros((0, config.vocab_size), np.bool_),
        flight=longs(n + 1),
        batch=longs(n),
        fresh=longs(n),
        stopped=longs(n),
        stopped_at=longs(n),
        tested=longs(n),
        chosen=longs(n),
        drawn_token=integers(n),
        drawn_logprob=floats(n),
        x=floats(n, stride),
        hidden=stored(n * hidden_stride),
        hidden_stride=hidden_stride,
        qkv=floats(n, qkv_stride),
        attended=stored(n * attended_stride),
        attended_stride=attended_stride,
        gated=stored(n * gate_stride),
        logits=floats(n, _up(config.vocab_size, PANEL)),
        scores=floats(crew.workers, cache.pages_per_row * strips * LANES),
        sums=floats(crew.workers, head_room),
        shared=crew.shared,
        semaphore=crew.semaphore,
    )


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
