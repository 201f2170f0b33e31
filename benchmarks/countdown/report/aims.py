"""The aims of the project's headline comparisons, computed from results."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.countdown.report.cells import ALL_CONDITIONS, MAIN_CONDITIONS, WINDOWS, Result, parallel, serial
from benchmarks.countdown.report.curves import Gap, largest_gap, largest_saving
from benchmarks.countdown.report.document import Aim
from benchmarks.countdown.report.results import Results
from benchmarks.countdown.report.sections import depth, latency, learning, tokens
from benchmarks.countdown.report.sections.windows import CONDITIONS
from benchmarks.countdown.report.shown import serial_side, spent
from policies import Fixed

COMPARED_WINDOWS = tuple(window for window in WINDOWS if 128 <= window <= 512)


def aims(results: Results) -> tuple[Aim, ...]:
    """All of them; those whose cells are missing have no measured value. Points are percentage points."""
    return (
        _best(results),
        _size(results),
        *_learning(results),
        _window(results),
        _tokens(results),
        _latency(results),
        _rises(results),
        _adaptive(results),
    )


def _best_result(results: Results) -> Result | None:
    settings = [parallel(condition) for condition in ALL_CONDITIONS]
    full = [parallel(condition, depth=Fixed()) for condition in MAIN_CONDITIONS]
    found = results.of([*settings, *full])
    most = max((result.count for result in found), default=0)
    return max((r for r in found if r.count == most), key=lambda result: result.accuracy, default=None)


def _best(results: Results) -> Aim:
    best = _best_result(results)
    return Aim(
        aim="parallel model at its best setting, % solved",
        measured=None if best is None else 100 * best.accuracy,
        bound=90,
        how="" if best is None else f"{best.cell.setting}, mean depth {best.depth:.2f}",
    )


def _size(results: Results) -> Aim:
    facts = results.checkpoints.get("parallel")
    return Aim(
        aim="its parameters, millions",
        measured=None if facts is None else facts.parameters / 1e6,
        bound=2,
        is_lower_better=True,
    )


def _learning(results: Results) -> tuple[Aim, Aim]:
    before = spent(results, learning.parallel_cells("parallel-supervised"), "iterations")
    # At full depth on both sides, so that only the weights differ.
    after = spent(results, learning.parallel_cells("parallel"), "iterations")
    saving = largest_saving(after, before)
    if before and after:
        best_before = max(before, key=lambda point: point.accuracy)
        best_after = max(after, key=lambda point: point.accuracy)
        gain = 100 * (best_after.accuracy - best_before.accuracy)
        how = f"best settings: {best_before.name} before, {best_after.name} after"
    return (
        Aim(
            aim="RL over the supervised start, points (either this or the next)",
            measured=gain if before and after else None,
            bound=3,
            how=how if before and after else "",
        ),
        Aim(
            aim="RL over the supervised start, % fewer token-iterations at no less accuracy",
            measured=None if saving is None else 100 * saving[0],
            bound=15,
            how=""
            if saving is None
            else f"{saving[1].name} ({saving[1].accuracy:.3f} at {saving[1].cost:,.0f}) against {saving[2].name} "
            f"({saving[2].accuracy:.3f} at {saving[2].cost:,.0f})",
        ),
    )


def _window(results: Results) -> Aim:
    gaps = []
    for window in COMPARED_WINDOWS:
        trees = results.of(parallel(condition, context=window) for condition in CONDITIONS)
        thread = results.get(serial(window))
        if trees and thread is not None:
            best = max(trees, key=lambda result: result.accuracy)
            how = f"window {window}: {best.cell.setting} {best.accuracy:.3f}, serial {thread.accuracy:.3f}"
            gaps.append((100 * (best.accuracy - thread.accuracy), how))
    gain, how = max(gaps, default=(None, ""))
    return Aim(aim="parallel over serial at one window, points", measured=gain, bound=23, how=how)


def _tokens(results: Results) -> Aim:
    """Only where serial can spend as much: at the most that its samples cost, or below."""
    gaps = []
    for window in tokens.COMPARED:
        theirs = serial_side(results, window)
        ours = spent(results, tokens.parallel_cells(window), "sampled")
        gap = largest_gap(ours, theirs, max((point.cost for point in theirs), default=None))
        if gap is not None:
            gaps.append((gap.gain, _told(gap, "tokens", f"window {window}", "cons@n")))
    gain, how = max(gaps, default=(None, ""))
    return Aim(
        aim="parallel over serial cons@n at equal total tokens within that window, points",
        measured=None if gain is None else 100 * gain,
        bound=13,
        how=how,
    )


def _latency(results: Results) -> Aim:
    gap = largest_gap(*latency.latencies(results))
    return Aim(
        aim="parallel over serial at equal latency, points",
        measured=None if gap is None else 100 * gap.gain,
        bound=18,
        how="" if gap is None else _told(gap, "s", "one at a time", "serial"),
    )


def _told(gap: Gap, unit: str, where: str, other: str) -> str:
    cost = f"{gap.ours.cost:,.0f}" if gap.ours.cost >= 10 else f"{gap.ours.cost:.3f}"
    return f"{where}: {gap.ours.name} {gap.ours.accuracy:.3f} at {cost} {unit}, {other} {gap.theirs:.3f}"


def _rises(results: Results) -> Aim:
    facts = results.checkpoints.get("parallel")
    found = [] if facts is None else [r for r in depth.ITERATIONS if r <= facts.mean_recurrence]
    ran = [(r, result.accuracy) for r in found if (result := results.get(depth.fixed(r))) is not None]
    falls = [before - after for (_, before), (_, after) in pairwise(ran)]
    return Aim(
        aim="largest fall of accuracy from one r to the next up to the trained mean, points",
        measured=100 * max(0.0, *falls) if falls else None,
        bound=0.5,
        is_lower_better=True,
        how=", ".join(f"r = {r}: {accuracy:.3f}" for r, accuracy in ran),
    )


def _adaptive(results: Results) -> Aim:
    full = results.get(depth.full_depth())
    if full is None:
        losses = []
    else:
        swept = [cell for cells in depth.sweep_cells().values() for cell in cells]
        losses = [
            (depth.loss(full, result), result)
            for result in results.of([parallel(), depth.by_role(), *swept])
            # On a hundred problems one is a point: too coarse to show half of one.
            if min(depth.LATENT, full.count) <= result.count <= full.count and result.depth <= 0.6 * full.depth
        ]
    least = min(losses, key=lambda pair: (pair[0], -pair[1].count), default=None)
    return Aim(
        aim="adaptive depth at 60 % of the mean iterations or fewer, points lost",
        measured=None if least is None else 100 * least[0],
        bound=0.5,
        is_lower_better=True,
        how="" if least is None else f"{least[1].cell.depth!r}: depth {least[1].depth:.2f}, {least[1].count} problems",
    )
