"""From logits to tokens: penalties, filters and the draw, as pure functions over a batch of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.link.constraints import Words
from runtime.link.sampling import FilterRule, Sampling

Int32 = NDArray[np.int32]

_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""The least positive float32 of full precision, and the largest."""


class Sampled(NamedTuple):
    """One row a token."""

    token: Tensor
    """[n] int64."""
    logprob: Tensor
    """[n] float32: natural log-probability of the token under the distribution it was drawn from; for greedy rows
    that is the softmax of the penalised logits. NaN in rows whose logits are not all finite."""
    entropy: Tensor | None
    """[n] float32, nats, of softmax(logits): the model's own distribution. None where not asked for."""
    top: tuple[dict[int, float], ...]
    """Per row, the likeliest tokens of the distribution drawn from, likeliest first; empty if no row asked."""


def sample(
    logits: Tensor,
    which: Int32,
    samplings: Sequence[Sampling],
    uniforms: Tensor | None,
    contexts: Mapping[int, Int32],
    entropies: bool = False,
    *,
    rule: FilterRule = "transformers",
    masks: Mapping[int, Words] | None = None,
) -> Sampled:
    """Chooses one token a row.

    `logits` [n, vocab] float, not changed; `which` [n] indexes `samplings`; `uniforms` [n] float32 in (0, 1), on the
    logits' device, may be None where every sampling is greedy; `contexts` gives by row the token ids so far, for rows
    with a repetition penalty; `rule` is that of samplings whose filters are the model's; `masks` gives by row which
    tokens may be drawn, for rows that are constrained: all others are dropped before temperature and filters. A row's
    result depends on its own logits, sampling, uniform, context and mask alone. Ties are decided for the lowest id.

    Raises `ValueError` if a row needs a uniform and there are none.
    """
    logits = logits.float()
    entropy = torch.special.entr(torch.softmax(logits, dim=-1)).sum(dim=-1) if entropies else None
    allowed = _allowed(masks, logits) if masks else None
    used = np.unique(which)
    if len(used) == 1:
        token, logprob, top = _sample_group(logits, samplings[used[0]], uniforms, contexts, rule, allowed)
        return Sampled(token, logprob, entropy, top)
    n = logits.shape[0]
    token = torch.empty(n, dtype=torch.int64, device=logits.device)
    logprob = torch.empty(n, dtype=torch.float32, device=logits.device)
    top_of: list[dict[int, float]] = [{} for _ in range(n)]
    for index in used:
        rows = np.flatnonzero(which == index)
        at = torch.from_numpy(rows).to(logits.device)
        theirs = {new: contexts[old] for new, old in enumerate(rows.tolist()) if old in contexts} if contexts else {}
        drawn = None if uniforms is None else uniforms[at]
        mask = None if allowed is None else allowed[at]
        token[at], logprob[at], top = _sample_group(logits[at], samplings[index], drawn, theirs, rule, mask)
        for row, likeliest in zip(rows.tolist(), top, strict=False):
            top_of[row] = likeliest
    return Sampled(token, logprob, entropy, tuple(top_of) if any(s.logprobs for s in samplings) else ())


def _allowed(masks: Mapping[int, Words], logits: Tensor) -> Tensor:
    """[n, vocab] bool: which tokens rows may be given."""
    n, vocab = logits.shape
    allowed = torch.ones(n, vocab, dtype=torch.bool, device=logits.device)
    words = np.stack([mask[: -(-vocab // 32)] for mask in masks.values()]).view(np.int32)
    bits = torch.from_numpy(words).to(logits.device)[:, :, None] >> torch.arange(32, device=logits.device)
    rows = torch.tensor(list(masks), device=logits.device)
    allowed[rows] = (bits & 1).bool().flatten(1)[:, :vocab]
    return allowed


def _sample_group(
    logits: Tensor,
    sampling: Sampling,
    uniforms: Tensor | None,
    contexts: Mapping[int, Int32],
    rule: FilterRule,
    allowed: Tensor | None,
) -> tuple[Tensor, Tensor, tuple[dict[int, float], ...]]:
    """Tokens, log-probabilities and likeliest tokens of rows that share one sampling."""
    # Sums of float64 stay finite for finite float32, and do not for anything else.
    is_finite = torch.isfinite(logits.sum(dim=-1, dtype=torch.float64))
    if sampling.repetition_penalty != 1.0 and contexts:
        logits = penalised(logits, contexts, sampling.repetition_penalty)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    if sampling.is_greedy:
        logprobs = torch.log_softmax(logits, dim=-1)
        token = torch.argmax(logits, dim=-1)
    else:
        if uniforms is None:
            raise ValueError("rows with a temperature above 0 need uniforms to be drawn with; pass one for each row.")
        weights = filtered_probabilities(logits, sampling, rule).double()
        cumulative = torch.cumsum(weights, dim=-1)
        token = draw(cumulative, uniforms)
        logprobs = torch.log(weights / cumulative[:, -1:]).float()
    chosen = torch.where(is_finite, logprobs.gather(1, token[:, None])[:, 0], torch.nan)
    return token, chosen, _likeliest(logprobs, sampling.logprobs) if sampling.logprobs else ()


def score(logits: Tensor, targets: Tensor, counts: Sequence[int]) -> Sampled:
    """What given tokens are worth: their log-probabilities under the model's own distribution.

    `logits` [n, vocab] float; `targets` [n] int64, on the logits' device; `counts` [n] is how many likeliest tokens are
    reported of each row. A row's result depends on its own logits alone.
    """
    logits = logits.float()
    is_finite = torch.isfinite(logits.sum(dim=-1, dtype=torch.float64))
    logprobs = torch.log_softmax(logits, dim=-1)
    logprob = torch.where(is_finite, logprobs.gather(1, targets[:, None])[:, 0], torch.nan)
    most = max(counts, default=0)
    top = _likeliest(logprobs, most) if most else ()
    return Sampled(
        targets, logprob, None, tuple(dict(islice(each.items(), n)) for each, n in zip(top, counts, strict=False))
    )


def penalised(logits: Tensor, contexts: Mapping[int, Int32], penalty: float) -> Tensor:
    """Logits [n, vocab] with each row's context tokens made less likely (more, for a penalty below 1).

    As in the references: a negative logit is multiplied by the penalty, any other divided by it, once per token. What
    would be infinite is the largest there is.
    """
    penalty = min(max(penalty, _LEAST), _MOST)
    rows = np.repeat(np.fromiter(contexts, np.int64), [len(context) for context in contexts.values()])
    ids = np.concatenate(list(contexts.values())).astype(np.int64)
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    seen[torch.from_numpy(rows).to(logits.device), torch.from_numpy(ids).to(logits.device)] = True
    changed = torch.where(logits < 0, logits * penalty, logits / penalty).clamp(-_MOST, _MOST)
    return torch.where(seen, changed, logits)


def divisor(temperature: float) -> float:
    """What logits are divided by in float32: positive and finite for every positive temperature, and 0 for 0."""
    return min(max(temperature, _LEAST), _MOST) if temperature > 0 else 0.0


def filtered_probabilities(logits: Tensor, sampling: Sampling, rule: FilterRule) -> Tensor:
    """[n, vocab] float32 weights at the sampling's temperature, which must be positive; 0 where a filter drops the
    token. Rows need not add up to 1.

    `rule` holds where the sampling's filters are the model's; see `Sampling.filters`.
    """
    # Subtracting the maximum first keeps tiny temperatures from overflowing.
    scores = (logits - logits.amax(dim=-1, keepdim=True)) / divisor(sampling.temperature)
    if (rule if sampling.filters == "model" else sampling.filters) == "huginn":
        return _filtered_as_huginn(torch.softmax(scores, dim=-1), sampling)
    return torch.softmax(_filtered_as_transformers(scores, sampling), dim=-1)


def _filtered_as_transformers(scores: Tensor, sampling: Sampling) -> Tensor:
    """Scores [n, vocab], minus infinity where dropped.

    Top-k keeps every token at least as likely as the k-th; top-p the smallest set of likeliest ones that reaches
    `top_p` (of equally likely tokens the highest ids); min-p those at least `min_p` times as likely as the likeliest.
    """
    if sampling.top_k is not None and sampling.top_k < scores.shape[-1]:
        kth = torch.topk(scores, sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ascending, order = torch.sort(scores, stable=True, dim=-1)
        dropped = torch.softmax(ascending, dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        dropped[:, -1] = False
        scores = scores.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), -torch.inf)
    if sampling.min_p is not None:
        probabilities = torch.softmax(scores, dim=-1)
        threshold = sampling.min_p * probabilities.amax(dim=-1, keepdim=True)
        scores = scores.masked_fill(probabilities < threshold, -torch.inf)
    return scores


def _filtered_as_huginn(probabilities: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [n, vocab], 0 where dropped, not renormalised.

    Top-k keeps every token at least as likely as the k-th; top-p drops a token where the cumulative probability, its
    own included, exceeds `top_p`, but never the likeliest (of equally likely tokens it keeps the lowest ids); min-p
    drops those below `min_p` times the likeliest.
    """
    if sampling.top_k is not None and sampling.top_k < probabilities.shape[-1]:
        kth = torch.topk(probabilities, sampling.top_k, dim=-1).values[:, -1:]
        probabilities = torch.where(probabilities < kth, 0.0, probabilities)
    if sampling.top_p is not None and sampling.top_p < 1:
        descending, order = torch.sort(probabilities, descending=True, stable=True, dim=-1)
        dropped = torch.cumsum(descending, dim=-1) > sampling.top_p
        dropped[:, 0] = False
        probabilities = probabilities.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), 0.0)
    if sampling.min_p is not None:
        threshold = sampling.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = torch.where(probabilities < threshold, 0.0, probabilities)
    return probabilities


def draw(cumulative: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [n] int64 by inverse cumulative distribution, in order of id.

    `cumulative` [n, vocab] float64 are running sums of weights that are at least 0 and not all 0; `uniforms` [n] in
    [0, 1]. The chosen token's weight is positive for every uniform: it is the first token at which the running sum
    exceeds uniform * total, or the last one with a weight where rounding lets none exceed it.
    """
    total = cumulative[:, -1:]
    below_total = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniforms.double()[:, None] * total, below_total)
    # Where the logits are not numbers nothing exceeds the target; that row gets a token, the others are unharmed.
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_(max=cumulative.shape[-1] - 1)


def _likeliest(logprobs: Tensor, count: int) -> tuple[dict[int, float], ...]:
    values, ids = torch.topk(logprobs, min(count, logprobs.shape[-1]), dim=-1)
    return tuple(
        {token: value for token, value in zip(row_ids, row_values, strict=True) if value > -torch.inf}
        for row_ids, row_values in zip(ids.tolist(), values.tolist(), strict=True)
    )
