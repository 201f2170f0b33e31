"""The log-probabilities of what an engine sampled, computed again in dense passes, and with gradients.

Tokens of a thread iterate together, each as often as it did then. A token that has done its iterations keeps its latent
state, and deeper tokens see the keys and values of its last iteration: the engine's lookup where every iteration is
kept. So whatever depth policy made a rollout, the trainer computes the probabilities that it was sampled with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.training.batching import LENGTH_STEP, by_length, rounded
from policies.training.last_written import LastWritten
from policies.training.thread_tokens import ThreadTokens
from runtime.model import Rotation, Transformer


@dataclass(frozen=True, kw_only=True, eq=False)
class ReplayBatch:
    """Threads padded at the end to one length, all tensors [batch, length] and on one device.

    Position i is about reading token i and having sampled token i + 1.
    """

    inputs: Tensor
    """int64."""
    depths: Tensor
    """int64: iterations of each input; 0 for padding."""
    targets: Tensor
    """int64: the next token."""
    is_sampled: Tensor
    """float32: 1 where the target was sampled by the thread, and not counted with an earlier context of it, else 0."""
    logprobs: Tensor
    """float32, nats: at which the target was sampled; 0 where it was not."""
    advantages: Tensor
    """float32: of the tree that the thread belongs to."""


def replay_batches(
    rollouts: Sequence[tuple[ThreadTokens, float]], tokens_per_batch: int, device: torch.device
) -> Iterator[ReplayBatch]:
    """Packs threads, each with its advantage, into batches of at most `tokens_per_batch` tokens, padding included.

    Threads of like length go together, except that one longer than that has a batch of its own.
    """
    for group in by_length(rollouts, lambda rollout: len(rollout[0].tokens) - 1, tokens_per_batch, LENGTH_STEP):
        yield _batch(group, device)


def _batch(rollouts: Sequence[tuple[ThreadTokens, float]], device: torch.device) -> ReplayBatch:
    length = rounded(len(rollouts[-1][0].tokens) - 1, LENGTH_STEP)

    def padded(rows: list[Sequence[float]], dtype: torch.dtype) -> Tensor:
        table = torch.zeros(len(rows), length, dtype=dtype)
        for number, row in enumerate(rows):
            table[number, : len(row)] = torch.tensor(row, dtype=dtype)
        return table.to(device)

    threads = [thread for thread, _ in rollouts]
    return ReplayBatch(
        inputs=padded([thread.tokens[:-1] for thread in threads], torch.int64),
        depths=padded([thread.depths for thread in threads], torch.int64),
        targets=padded([thread.tokens[1:] for thread in threads], torch.int64),
        is_sampled=padded([_is_counted(thread)[1:] for thread in threads], torch.float32),
        logprobs=padded([thread.logprobs[1:] for thread in threads], torch.float32),
        advantages=torch.tensor([advantage for _, advantage in rollouts], device=device)[:, None].expand(-1, length),
    )


def _is_counted(thread: ThreadTokens) -> list[bool]:
    return [is_sampled and at >= thread.counted_from for at, is_sampled in enumerate(thread.is_sampled)]


class Replay:
    """Log-probabilities of batches under a model that starts from zero states; its iteration may be compiled."""

    def __init__(self, model: Transformer, *, temperature: float = 1.0, compile_model: bool = False) -> None:
        """Raises `ValueError` for a model that starts from noise, of which a trace tells nothing."""
        if model.specification.state_std > 0:
            raise ValueError("The model's latent states start from noise; rollouts need a start without.")
        self.model, self.temperature = model, temperature
        self._together: Callable[[Tensor, Tensor, Rotation], Tensor] = self._iterate
        self._score: Callable[[Tensor, Rotation, Tensor], Tensor] = self._target_logprobs
        if compile_model:
            self._together = torch.compile(self._iterate, dynamic=True)
            self._score = torch.compile(self._target_logprobs, dynamic=True)

    def logprobs(self, batch: ReplayBatch) -> Tensor:
        """[batch, length] float32, nats: of every target given what is before it; meaningless where padded."""
        length = batch.inputs.shape[1]
        rotation = self.model.batch_rotation(length, int((batch.depths > 0).sum(1).max()))
        embedded = self.model.prelude(batch.inputs, rotation, self.model.attend_causally)
        state = self.model.first_state(embedded)
        written = LastWritten(self.model)
        deepest = int(batch.depths.max())
        # Padding is behind everything that is real, so it may iterate as deep as anything.
        shallowest = int(torch.where(batch.depths > 0, batch.depths, deepest).min())
        for iteration in range(1, deepest + 1):
            if shallowest == deepest:
                state = self._together(state, embedded, rotation)
                continue
            goes_on = batch.depths >= iteration
            stepped = self.model.iterate(state, embedded, rotation, written.attending(goes_on))
            state = torch.where(goes_on[..., None], stepped, state)
        return self._score(state, rotation, batch.targets)

    def _iterate(self, state: Tensor, embedded: Tensor, rotation: Rotation) -> Tensor:
        return self.model.iterate(state, embedded, rotation, self.model.attend_causally)

    def _target_logprobs(self, state: Tensor, rotation: Rotation, targets: Tensor) -> Tensor:
        logits = self.model.coda(state, rotation, self.model.attend_causally) / self.temperature
        return logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
