"""From logits to tokens: penalties, filters and the draw, as pure functions over a batch of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.sampling import Sampling

Int32 = NDArray[np.int32]


class Sampled(NamedTuple):
    """One row a token."""

    token: Tensor
    """[n] int64."""
    logprob: Tensor
    """[n] float32: natural log-probability of the token under the distribution it was drawn from; for greedy rows
    that is the softmax of the penalised logits."""
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
) -> Sampled:
    """Chooses one token a row.

    `logits` [n, vocab] float, not changed; `which` [n] indexes `samplings`; `uniforms` [n] float32 in (0, 1), on the
    logits' device, may be None where every sampling is greedy; `contexts` gives by row the token ids so far, for rows
    with a repetition penalty. A row's result depends on its own logits, sampling, uniform and context alone. Ties are
    decided for the lowest id.

    Raises `ValueError` if a row needs a uniform and there are none.
    """
    logits = logits.float()
    entropy = torch.special.entr(torch.softmax(logits, dim=-1)).sum(dim=-1) if entropies else None
    used = np.unique(which)
    if len(used) == 1:
        token, logprob, top = _sample_group(logits, samplings[used[0]], uniforms, contexts)
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
        token[at], logprob[at], top = _sample_group(logits[at], samplings[index], drawn, theirs)
        for row, likeliest in zip(rows.tolist(), top, strict=False):
            top_of[row] = likeliest
    return Sampled(token, logprob, entropy, tuple(top_of) if any(s.logprobs for s in samplings) else ())


def _sample_group(
    logits: Tensor, sampling: Sampling, uniforms: Tensor | None, contexts: Mapping[int, Int32]
) -> tuple[Tensor, Tensor, tuple[dict[int, float], ...]]:
    """Tokens, log-probabilities and likeliest tokens of rows that share one sampling."""
    if sampling.repetition_penalty != 1.0 and contexts:
        logits = penalised(logits, contexts, sampling.repetition_penalty)
    if sampling.is_greedy:
        logprobs = torch.log_softmax(logits, dim=-1)
        token = torch.argmax(logits, dim=-1)
    else:
        if uniforms is None:
            raise ValueError("rows with a temperature above 0 need uniforms to be drawn with; pass one for each row")
        weights = filtered_probabilities(logits, sampling).double()
        cumulative = torch.cumsum(weights, dim=-1)
        token = draw(cumulative, uniforms)
        logprobs = torch.log(weights / cumulative[:, -1:]).float()
    chosen = logprobs.gather(1, token[:, None])[:, 0]
    return token, chosen, _likeliest(logprobs, sampling.logprobs) if sampling.logprobs else ()


def penalised(logits: Tensor, contexts: Mapping[int, Int32], penalty: float) -> Tensor:
    """Logits [n, vocab] with each row's context tokens made less likely (more, for a penalty below 1).

    As in the reference: a negative logit is multiplied by the penalty, any other divided by it, once per token.
    """
    rows = np.repeat(np.fromiter(contexts, np.int64), [len(context) for context in contexts.values()])
    ids = np.concatenate(list(contexts.values())).astype(np.int64)
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    seen[torch.from_numpy(rows).to(logits.device), torch.from_numpy(ids).to(logits.device)] = True
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def filtered_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """[n, vocab] float32 probabilities at the sampling's temperature, 0 where a filter drops the token.

    Rows are not renormalised. The reference's rules: top-k keeps every token at least as likely as the k-th; top-p
    drops a token where the cumulative probability, its own included, exceeds top_p, but never the likeliest; min-p
    drops those below min_p times the likeliest.
    """
    # Subtracting the maximum first keeps tiny temperatures from overflowing.
    probabilities = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature, dim=-1)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
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
