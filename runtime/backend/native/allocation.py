"""Makes `TickBuffers`: packs the weights, sizes the paged cache and the work space."""

from __future__ import annotations

import numpy as np
import torch

from runtime.backend.interface import MOST_TICKS, CacheShape, Int32, RowHoles
from runtime.backend.lanes import Lanes
from runtime.backend.native.crew import Crew
from runtime.backend.native.intrinsics import VECTOR
from runtime.backend.native.packing import pack
from runtime.backend.native.products import PANEL, ROWS
from runtime.backend.native.structure import ACTIVATIONS, INJECTIONS, QUERY_KEY_NORMS
from runtime.backend.native.tick_buffers import (
    Float32,
    Int64,
    NativeLanes,
    SharedLanes,
    Sizes,
    Stored,
    StoredKeyValues,
    TickBuffers,
    WorkSpace,
)
from runtime.model.transformer import Transformer, embedding_scale

LONGEST_RUN = 64
"""Most tokens that a lane samples before it stops."""


def allocate(
    model: Transformer,
    cache: CacheShape,
    lanes: Lanes,
    page_table: Int32,
    holes: RowHoles,
    crew: Crew,
) -> TickBuffers:
    """`lanes` and the tables of pages are shared with the buffers, not copied."""
    sizes = _sizes(model, cache, crew.workers)
    is_narrow = model.dtype is torch.bfloat16
    return TickBuffers(
        sizes=sizes,
        weights=pack(model),
        paged=StoredKeyValues(
            *_keys_and_values(sizes, cache.columns(model.specification), is_narrow), page_table, *holes
        ),
        shared_lanes=SharedLanes(*(getattr(lanes, name) for name in SharedLanes._fields)),
        lanes=_lanes(sizes),
        work=_work_space(sizes, crew, is_narrow),
    )


def _sizes(model: Transformer, cache: CacheShape, workers: int) -> Sizes:
    own = model.specification
    norms, has_output_bias = own.norms, own.output_bias or own.mlp_bias
    blocks_per_page = -(-cache.page_size // VECTOR)
    return Sizes(
        lanes=cache.lanes,
        pages_per_row=cache.pages_per_row,
        layers=len(own.layers),
        width=own.width,
        stride=_up(own.width, PANEL),
        heads=own.heads,
        kv_heads=own.kv_heads,
        head_dim=own.head_dim,
        head_room=_up(own.head_dim, VECTOR),
        qkv_stride=_up(own.projection_rows, PANEL),
        gate_stride=_up(own.mlp_width, PANEL // 2),
        logits_stride=_up(own.vocab_size, PANEL),
        scores_stride=cache.pages_per_row * blocks_per_page * VECTOR,
        hidden_stride=2 * own.width if own.injection == "adapter" else _up(own.width, 2),
        attended_stride=_up(own.heads * own.head_dim, 2),
        longest_run=LONGEST_RUN,
        vocab=own.vocab_size,
        mask_words=-(-own.vocab_size // 32),
        prelude_layers=own.prelude_layers,
        core_layers=own.core_layers,
        coda_layers=own.coda_layers,
        slots=cache.slots,
        pages=cache.pages,
        page_size=cache.page_size,
        blocks_per_page=blocks_per_page,
        norms_before=norms.before,
        norms_branch=norms.branch,
        norms_total=norms.total,
        apart=norms.branch or has_output_bias or own.residual_scale != 1.0,
        has_exit_gate=own.exit_gate,
        norms_iterations=own.norms_iterations,
        norms_coda=own.norms_coda,
        norms_head=own.norms_head,
        has_projection_bias=own.projection_bias != "none",
        query_key_norm=QUERY_KEY_NORMS[own.query_key_norm],
        activation=ACTIVATIONS[own.activation],
        is_plain_gate=own.activation == "silu" and not own.mlp_bias,
        injection=INJECTIONS[own.injection],
        eps=float(own.norm_eps),
        embedding_scale=float(embedding_scale(own, model.dtype)),
        residual_scale=float(own.residual_scale),
        attention_scale=float(own.attention_scale),
        attention_softcap=float(own.attention_softcap or 0.0),
        logits_scale=float(own.logits_scale),
        logits_softcap=float(own.logits_softcap or 0.0),
        short_context=own.short_context or 0,
        workers=workers,
    )


def _keys_and_values(sizes: Sizes, columns: int, is_narrow: bool) -> tuple[Stored, Stored]:
    places = columns * sizes.pages * sizes.kv_heads * sizes.blocks_per_page * VECTOR
    return _stored(places * sizes.head_dim, is_narrow), _stored(places * sizes.head_room, is_narrow)


def _lanes(sizes: Sizes) -> NativeLanes:
    n = sizes.lanes
    return NativeLanes(
        token=_longs(n),
        wanted=np.zeros(n, np.bool_),
        temperature=_floats(n),
        criterion=_integers(n),
        threshold=_floats(n),
        min_iterations=_integers(n),
        check_every=np.ones(n, np.int32),
        run=_integers(n),
        halts=_integers(n),
        run_count=_integers(n),
        run_token=_integers(n, LONGEST_RUN),
        run_logprob=_floats(n, LONGEST_RUN),
        run_depth=_integers(n, LONGEST_RUN),
        run_tick=_longs(n, LONGEST_RUN),
        state=_floats(n, sizes.width),
        embedded=_floats(n, sizes.width),
        starts_embedded=np.zeros(n, np.bool_),
        remembered=_floats(n, sizes.width),
        exit_value=_floats(n),
        exit_mean=_floats(n),
        gate=_floats(n),
        exit_probability=_floats(n),
        going_on=_floats(n),
        exit_count=_longs(n),
        halting=np.zeros((0, sizes.vocab), np.bool_),
        is_masked=np.zeros(n, np.bool_),
        allowed=_integers(0, sizes.mask_words),
    )


def _work_space(sizes: Sizes, crew: Crew, is_narrow: bool) -> WorkSpace:
    n = sizes.lanes
    return WorkSpace(
        flight=_longs(n + 1),
        batch=_longs(n),
        fresh=_longs(n),
        stopped=_longs(n),
        stopped_at=_longs(n),
        tick_end=_longs(MOST_TICKS),
        tick_entered=_longs(MOST_TICKS),
        tick_in_flight=_longs(MOST_TICKS),
        tick_left=_longs(MOST_TICKS),
        tested=_longs(n),
        chosen=_longs(n),
        drawn_token=_integers(n),
        drawn_logprob=_floats(n),
        x=_floats(n, sizes.stride),
        hidden=_stored(n * sizes.hidden_stride, is_narrow),
        made=_floats(n if sizes.apart else 0, sizes.stride),
        qkv=_floats(n, sizes.qkv_stride),
        attended=_stored(n * sizes.attended_stride, is_narrow),
        gated=_stored(n * sizes.gate_stride, is_narrow),
        logits=_floats(n, sizes.logits_stride),
        scores=_floats(sizes.workers, sizes.scores_stride),
        sums=_floats(sizes.workers, sizes.head_room),
        tile=_floats(sizes.workers, ROWS, PANEL),
        shared=crew.shared,
        semaphore=crew.semaphore,
    )


def _stored(count: int, is_narrow: bool) -> Stored:
    return np.zeros(count, np.uint16) if is_narrow else np.zeros(count, np.float32)


def _floats(*shape: int) -> Float32:
    return np.zeros(shape, np.float32)


def _integers(*shape: int) -> Int32:
    return np.zeros(shape, np.int32)


def _longs(*shape: int) -> Int64:
    return np.zeros(shape, np.int64)


def _up(count: int, step: int) -> int:
    """The least multiple of `step` that is at least `count`."""
    return -(-count // step) * step
