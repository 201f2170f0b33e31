"""What an exit rule does to threads whose tokens are known, by dense passes: cheaper than decoding them again.

The tokens are given, so all of a batch iterate together. A token that has exited keeps the keys and values of its last
iteration, which is what the engine's cache shows to deeper readers. So exit values and depths are those of an engine
that keeps every iteration and samples these very tokens. One thing differs: in models with coda layers, rules that
read logits see other tokens' coda at the same iteration, where the engine has it at their last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policies import DepthPolicy, DepthView, Role, exit_rule
from policies.training.batching import by_length
from policies.training.last_written import LastWritten
from policies.training.thread_tokens import ThreadTokens
from runtime.model import Transformer


@dataclass(frozen=True, kw_only=True, eq=False)
class ThreadBatch:
    """Threads of one role and tree depth, padded at the end to one length; n is batch * length, padding included."""

    role: Role
    tree_depth: int
    tokens: Tensor
    """[batch, length] int64."""
    is_counted: Tensor
    """[n] bool: False for padding, and for what is counted with an earlier context of the thread."""
    is_read: Tensor
    """[n] bool: whether the token after this one was sampled, from this one's logits, and is counted."""
    is_received: Tensor
    """[n] bool."""
    group: Tensor
    """[n] int64: number of the token's group; every padding is a group of its own, after all others."""
    last: Tensor
    """[groups] int64: the last token of each group."""


def batches(
    threads: Sequence[ThreadTokens], device: torch.device | str = "cpu", tokens_per_batch: int = 8192
) -> Iterator[ThreadBatch]:
    """Threads of one kind and like length together, padding included in `tokens_per_batch`."""
    kinds = sorted({(thread.tree_depth, thread.role) for thread in threads})
    for kind in kinds:
        same = [thread for thread in threads if (thread.tree_depth, thread.role) == kind]
        for group in by_length(same, lambda thread: len(thread.tokens) - 1, tokens_per_batch):
            yield _batch(group, torch.device(device))


def _batch(threads: Sequence[ThreadTokens], device: torch.device) -> ThreadBatch:
    shape = len(threads), len(threads[-1].tokens) - 1
    tokens, group = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    is_token, is_counted, is_read, is_received = (torch.zeros(shape, dtype=torch.bool) for _ in range(4))
    last: list[int] = []
    for row, thread in enumerate(threads):
        count = len(thread.tokens) - 1
        sampled = torch.tensor(thread.is_sampled)
        tokens[row, :count] = torch.tensor(thread.tokens[:-1])
        is_token[row, :count], is_received[row, :count] = True, ~sampled[:-1]
        is_counted[row, thread.counted_from : count] = True
        is_read[row, :count] = sampled[1:] & (torch.arange(1, count + 1) >= thread.counted_from)
        for each in thread.groups:
            group[row, each.start : each.end] = len(last)
            last.append(row * shape[1] + each.end - 1)
    padding = (~is_token).flatten().nonzero()[:, 0]
    group.view(-1)[padding] = torch.arange(len(padding)) + len(last)
    return ThreadBatch(
        role=threads[0].role,
        tree_depth=threads[0].tree_depth,
        tokens=tokens.to(device),
        is_counted=is_counted.flatten().to(device),
        is_read=is_read.flatten().to(device),
        is_received=is_received.flatten().to(device),
        group=group.flatten().to(device),
        last=torch.cat([torch.tensor(last, dtype=torch.int64), padding]).to(device),
    )


class AdaptivePass:
    """The iterations of one batch, one at a time, from zero states. Stopped tokens rest in their last state."""

    def __init__(self, model: Transformer, batch: ThreadBatch) -> None:
        self.model, self.batch = model, batch
        length = batch.tokens.shape[1]
        self._rotation = model.batch_rotation(length, length)
        self._embedded = model.prelude(batch.tokens, self._rotation, model.attend_causally)
        self._state = model.first_state(self._embedded)
        self._stopped = torch.zeros_like(batch.is_counted)
        self._written = LastWritten(model)
        self.depths = torch.zeros_like(batch.group)
        """[n] int64: iterations done."""

    @property
    def latent(self) -> Tensor:
        """Present states, [n, width]."""
        return self._state.flatten(0, 1)

    def logits(self) -> Tensor:
        """[n, vocab] float32, from the present states."""
        return self.model.coda(self._state, self._rotation, self.model.attend_causally).flatten(0, 1)

    def iterate(self) -> None:
        """One more iteration of every token that is not stopped."""
        goes_on = ~self._stopped.view_as(self.batch.tokens)
        state = self.model.iterate(self._state, self._embedded, self._rotation, self._written.attending(goes_on))
        self._state = torch.where(goes_on[..., None], state, self._state)
        self.depths += ~self._stopped

    def stop(self, done: Tensor) -> None:
        """Stops the tokens of a mask [n] for good."""
        self._stopped = self._stopped | done


class ExitTest:
    """One rule's exit values over the iterations of a batch, as the engine's backends take them."""

    def __init__(self, policy: DepthPolicy, run: AdaptivePass) -> None:
        self.policy, self._run = policy, run
        self._vocab = run.model.specification.vocab_size
        self._previous = policy.begin(self._rows(run.latent).float(), self._vocab)
        self._sizes = torch.bincount(run.batch.group)

    def is_due(self, iteration: int) -> bool:
        return self.policy.reads != "nothing" and exit_rule.is_due(
            iteration, self.policy.min_iterations, self.policy.check_every
        )

    def values(self, iteration: int, logits: Tensor | None) -> Tensor:
        """[groups] float32 after `iteration`, from logits [n, vocab] where the policy reads them."""
        seen = None if self.policy.reads == "latent" or logits is None else self._rows(logits)
        latent = self._rows(self._run.latent)
        iterations = latent.new_full((len(latent),), iteration, dtype=torch.int64)
        values, self._previous = self.policy.measure(DepthView(iterations, latent.float(), seen, self._previous))
        return (
            values
            if exit_rule.is_by_last_token(self.policy)
            else exit_rule.group_means(values, self._run.batch.group, self._sizes)
        )

    def _rows(self, of_tokens: Tensor) -> Tensor:
        return of_tokens[self._run.batch.last] if exit_rule.is_by_last_token(self.policy) else of_tokens


@torch.no_grad()
def run_policy(model: Transformer, batch: ThreadBatch, policy: DepthPolicy) -> tuple[Tensor, Tensor]:
    """Depths [n] int64 and likeliest next tokens [n] int64 of a batch that follows `policy`."""
    policy = policy.for_thread(batch.role, batch.tree_depth)
    run = AdaptivePass(model, batch)
    test = ExitTest(policy, run)
    may_exit = ~batch.is_received | policy.exit_received
    for iteration in range(1, policy.deepest(model.specification.mean_recurrence) + 1):
        run.iterate()
        if test.is_due(iteration):
            done = policy.is_done(test.values(iteration, run.logits() if policy.reads == "logits" else None))
            run.stop(done[batch.group] & may_exit)
    return run.depths, run.logits().argmax(-1)


@torch.no_grad()
def run_full(model: Transformer, batch: ThreadBatch, policies: Sequence[DepthPolicy]) -> tuple[list[Tensor], Tensor]:
    """What the policies would see where no token exits: exit values [groups, iterations] of each, NaN where it does not
    test, and the likeliest next token [n] at the model's mean recurrence."""
    run = AdaptivePass(model, batch)
    tests = [ExitTest(policy, run) for policy in policies]
    most = model.specification.mean_recurrence
    last = [policy.deepest(most) for policy in policies]
    columns: list[list[Tensor]] = [[] for _ in policies]
    full = torch.zeros_like(batch.group)
    for iteration in range(1, max(most, *last) + 1):
        run.iterate()
        logits = run.logits()
        if iteration == most:
            full = logits.argmax(-1)
        for column, test, end in zip(columns, tests, last, strict=True):
            if test.is_due(iteration) and iteration <= end:
                column.append(test.values(iteration, logits))
            elif iteration <= end:
                column.append(torch.full((len(batch.last),), torch.nan, device=logits.device))
    return [torch.stack(column, -1) for column in columns], full
