"""Exit rules calibrated on what an engine has said: to a wanted mean depth, or to a price of an iteration.

    full-depth trace -> threads_in -> CalibrationSet -> at_depth / at_price for each criterion -> best
    -> save_default_policy: `Engine.open` of the checkpoint follows it

One dense pass at full depth gives every criterion's exit values, from which the mean depth of any threshold is read
off. That leaves out that exited tokens show shallow keys and values to deeper ones, so a threshold that was read off
is measured in a pass where tokens do exit (`policies.training.adaptive_pass`). Agreement is counted over sampled
tokens, all given the tokens before them: how many are the same as at full depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from torch import Tensor

from policies import KL, ArgmaxStability, Cosine, DepthPolicy, EntropyDiff, LatentDiff, MinPKL, Policy
from policies.training.adaptive_pass import batches, run_full, run_policy
from policies.training.thread_tokens import ThreadTokens
from runtime.model import BRAID, Transformer, describe, parse_braid, replace_file

D = TypeVar("D", bound=DepthPolicy)

CRITERIA: tuple[DepthPolicy, ...] = (LatentDiff(), Cosine(), KL(), MinPKL(), EntropyDiff(), ArgmaxStability())
"""Those that cost least come first."""

_THRESHOLDS = 512
"""Quantiles of the exit values that are tried as thresholds."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """An exit rule, and what it did to the threads that it was measured on."""

    policy: DepthPolicy
    mean_depth: float
    """Iterations a computed token."""
    agreement: float
    """Share of sampled tokens that are the likeliest at the model's mean recurrence too."""
    computed: int
    """Tokens that depths are of."""
    sampled: int
    """Tokens that agreement is of."""

    @property
    def criterion(self) -> str:
        return type(self.policy).__name__

    @property
    def uncertainty(self) -> float:
        """Standard error of the agreement; not 0 where all agree, as the next one may not."""
        share = min(self.agreement, 1 - 1 / (self.sampled + 2))
        return math.sqrt(share * (1 - share) / self.sampled)


class CalibrationSet:
    """Threads that were run at full depth, and what criteria measure of them."""

    def __init__(
        self, model: Transformer, threads: Sequence[ThreadTokens], criteria: Sequence[DepthPolicy] = CRITERIA
    ) -> None:
        """Takes one dense pass. Raises `ValueError` for no threads, for criteria that test nothing, and for a model
        that does not start from zero states: what a dense pass measures of it is not what an engine does."""
        if model.specification.state_std > 0:
            raise ValueError(
                "The model's latent states start from noise; exit rules are calibrated for models that start without."
            )
        if not threads:
            raise ValueError("There are no threads to calibrate on; record some, with Engine.open(..., trace=...).")
        for policy in criteria:
            if policy.reads == "nothing":
                raise ValueError(f"{policy!r} tests nothing, so it has no threshold to choose.")
        self.model = model
        self.batches = list(batches(threads, model.device))
        self._full: list[Tensor] = []
        parts: list[list[Tensor]] = [[] for _ in criteria]
        for batch in self.batches:
            values, full = run_full(model, batch, criteria)
            self._full.append(full)
            is_counted = batch.is_counted[batch.last]
            for part, of_groups in zip(parts, values, strict=True):
                part.append(of_groups[is_counted])
        self._values = {policy: torch.cat(part) for policy, part in zip(criteria, parts, strict=True)}
        sizes = [torch.bincount(batch.group)[batch.is_counted[batch.last]] for batch in self.batches]
        received = [batch.is_received[batch.last][batch.is_counted[batch.last]] for batch in self.batches]
        self._sizes, self._is_received = torch.cat(sizes), torch.cat(received)

    @property
    def criteria(self) -> tuple[DepthPolicy, ...]:
        return tuple(self._values)

    def measure(self, policy: DepthPolicy) -> Calibration:
        """What any policy without budgets or loads does, `ByRole` included: one pass over all threads."""
        depths = agreeing = computed = sampled = 0
        for batch, full in zip(self.batches, self._full, strict=True):
            depth, choice = run_policy(self.model, batch, policy)
            depths += int(depth[batch.is_counted].sum())
            agreeing += int((choice == full)[batch.is_read].sum())
            computed += int(batch.is_counted.sum())
            sampled += int(batch.is_read.sum())
        return Calibration(
            policy=policy,
            mean_depth=depths / computed,
            agreement=agreeing / sampled,
            computed=computed,
            sampled=sampled,
        )

    def depth_of(self, criterion: DepthPolicy, threshold: float) -> float:
        """Mean depth under a threshold, read off the pass at full depth."""
        values = self._values[criterion]
        done = with_threshold(criterion, threshold).is_done(values)
        if not criterion.exit_received:
            done = done & ~self._is_received[:, None]
        first = done.int().argmax(-1) + 1
        depths = torch.where(done.any(-1), first, values.shape[-1])
        return float((depths * self._sizes).sum() / self._sizes.sum())

    def thresholds(self, criterion: DepthPolicy) -> list[float]:
        """Thresholds worth trying, ascending: quantiles of the exit values, whole numbers where the criterion's is one.

        Raises `ValueError` where the criterion never measured a number.
        """
        values = self._values[criterion].flatten()
        values = values[values.isfinite() & (values >= 0)].sort().values
        if not len(values):
            raise ValueError(
                f"{criterion!r} measured nothing on these threads; lower its min_iterations, or raise its bound."
            )
        picked = values[torch.linspace(0, len(values) - 1, _THRESHOLDS, device=values.device).long()].tolist()
        if isinstance(criterion.threshold, int):
            return sorted({max(1, int(value)) for value in picked})
        return sorted({float(f"{value:.3g}") for value in picked})

    def at_depth(self, criterion: D, mean_depth: float, rounds: int = 3) -> Calibration:
        """The threshold whose mean depth is nearest to the one wanted, in iterations a computed token.

        The first of `rounds` passes takes it as it is read off, the others correct that by what was measured. Raises
        `ValueError` for a depth that the criterion's bound does not allow.
        """
        most = self._values[criterion].shape[-1]
        if not 1 <= mean_depth <= most:
            raise ValueError(f"The wanted mean depth is {mean_depth}; {criterion!r} gives between 1 and {most}.")
        depths = {threshold: self.depth_of(criterion, threshold) for threshold in self.thresholds(criterion)}
        measured: dict[float, Calibration] = {}
        aim = mean_depth
        for _ in range(rounds):
            threshold = min(depths, key=lambda each: abs(depths[each] - aim))
            if threshold in measured:
                break
            measured[threshold] = self.measure(with_threshold(criterion, threshold))
            aim += mean_depth - measured[threshold].mean_depth
        return min(measured.values(), key=lambda each: abs(each.mean_depth - mean_depth))

    def frontier(self, criterion: DepthPolicy, step: float = 0.5) -> list[Calibration]:
        """Agreement against mean depth: thresholds whose depths, as read off, are about `step` apart; deepest first."""
        most = self._values[criterion].shape[-1]
        depths = {threshold: self.depth_of(criterion, threshold) for threshold in self.thresholds(criterion)}
        wanted = [most - step * number for number in range(int((most - 1) / step) + 1)]
        chosen = dict.fromkeys(min(depths, key=lambda each: abs(depths[each] - depth)) for depth in wanted)
        return [self.measure(with_threshold(criterion, threshold)) for threshold in chosen]

    def at_price(self, criterion: DepthPolicy, price: float, step: float = 0.5) -> Calibration:
        """The point of the frontier with the least disagreement + `price` * mean depth.

        A price of 0.001 gives up one sampled token in a thousand for one iteration less a token. Raises `ValueError`
        for a negative price.
        """
        if not price >= 0:
            raise ValueError(f"The price of an iteration is {price}; give at least 0.")
        return min(self.frontier(criterion, step), key=lambda each: cost(each, price))


def with_threshold(criterion: D, threshold: float) -> D:
    """The same criterion with another threshold."""
    return msgspec.structs.replace(criterion, threshold=threshold)


def cost(calibration: Calibration, price: float) -> float:
    """Disagreement + `price` * mean depth."""
    return 1 - calibration.agreement + price * calibration.mean_depth


def best(calibrations: Iterable[Calibration], *, price: float = 0.0, mean_depth: float = math.inf) -> Calibration:
    """The first whose cost is least but for the standard error of its agreement: small differences are chance, and
    those that cost least to test come first in `CRITERIA`.

    Those more than 5 % deeper than `mean_depth` are out where any is not: some criteria know few depths. Raises
    `ValueError` for no calibrations.
    """
    listed = list(calibrations)
    if not listed:
        raise ValueError("There are no calibrations to choose from; give at least one.")
    met = [each for each in listed if each.mean_depth <= 1.05 * mean_depth] or listed
    least = min(met, key=lambda each: cost(each, price))
    return next(each for each in met if cost(each, price) <= cost(least, price) + least.uncertainty)


def save_default_policy(directory: Path, depth: DepthPolicy) -> Policy:
    """Makes `depth` the depth policy that `Engine.open(directory)` follows, and returns the whole policy.

    Protocol and spawn policy of an existing braid.json stay. The file is replaced in one move. Raises
    `CheckpointError` for a directory that is no checkpoint and for a braid.json that is none, and `ValueError`, naming
    the file, for a policy there that is not known.
    """
    path = directory / BRAID
    braid = parse_braid(path, describe(directory).braid)
    try:
        own = braid.default_policy() or Policy()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    policy = msgspec.structs.replace(own, depth=depth)
    replace_file(path, braid.with_policy(policy).to_json())
    return policy
