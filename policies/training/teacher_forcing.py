"""The passes of a depth-recurrent model over given threads: its loss, and how often its first choice is right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from policies.training.examples import Example, PackedBatch, on_device, pack
from runtime.model import Rotation, Transformer


class TeacherForced:
    """The loss of a batch, computed on the model's device; parts of the model may be compiled."""

    def __init__(self, model: Transformer, compile_model: bool, bfloat16: bool) -> None:
        self.model = model
        self.bfloat16 = bfloat16
        self.embed: Callable[[Tensor, Rotation], Tensor] = self._embed
        self.iterate: Callable[[Tensor, Tensor, Rotation], Tensor] = self._iterate
        self.score: Callable[[Tensor, Rotation, Tensor, Tensor], Tensor] = self._score
        if compile_model:
            if model.specification.prelude_layers:
                self.embed = torch.compile(self._embed, dynamic=True)
            self.iterate = torch.compile(self._iterate, dynamic=True)
            self.score = torch.compile(self._score, dynamic=True)

    def loss_sum(
        self, batch: PackedBatch, without_gradient: int, with_gradient: int, noise: torch.Generator | None = None
    ) -> Tensor:
        """Sum of weight * cross-entropy over the batch's tokens, in nats: a scalar on the model's device.

        `noise`, on the same device, draws the initial latent states of a model that starts from noise.
        """
        device = self.model.device
        batch = on_device(batch, device)
        rotation = self.model.batch_rotation(batch.inputs.shape[1])
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            embedded = self.embed(batch.inputs, rotation)
            state = initial_state(self.model, embedded, noise)
            with torch.no_grad():
                for _ in range(without_gradient):
                    state = self.iterate(state, embedded, rotation)
            for _ in range(with_gradient):
                state = self.iterate(state, embedded, rotation)
            return self.score(state, rotation, batch.targets, batch.weights)

    def _embed(self, tokens: Tensor, rotation: Rotation) -> Tensor:
        return self.model.prelude(tokens, rotation, self._attend)

    def _iterate(self, state: Tensor, embedded: Tensor, rotation: Rotation) -> Tensor:
        return self.model.iterate(state, embedded, rotation, self._attend)

    def _score(self, state: Tensor, rotation: Rotation, targets: Tensor, weights: Tensor) -> Tensor:
        logits = self.model.coda(state, rotation, self._attend)
        return (F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none") * weights.flatten()).sum()

    def _attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Dense causal attention: in float32 on CPUs, in `value`'s dtype elsewhere.

        On CPUs the backward pass of attention in bfloat16 is several times slower than in float32.
        """
        if value.device.type != "cpu":
            return self.model.attend_causally(layer, query.type_as(value), key.type_as(value), value)
        with torch.autocast("cpu", enabled=False):
            return self.model.attend_causally(layer, query.float(), key.float(), value.float())


def initial_state(model: Transformer, embedded: Tensor, noise: torch.Generator | None = None) -> Tensor:
    """Latent states before the first iteration, of the shape and on the device of `embedded` [..., n_embd]; float32.

    Where the model starts, or noise around that: normal, cut at three standard deviations, times the scale of
    embeddings, as in the reference. `noise` is a generator on that device; without one, PyTorch's own draws.
    """
    std = model.specification.state_std
    if std == 0:
        return model.first_state(embedded).float()
    state = torch.zeros_like(embedded, dtype=torch.float32)
    torch.nn.init.trunc_normal_(state, 0.0, std, -3 * std, 3 * std, generator=noise)
    return state * model.specification.embedding_scale


@torch.no_grad()
def exactness(model: Transformer, examples: list[Example], iterations: int) -> float:
    """Share of threads whose every weighted token is the model's first choice, teacher-forced, in float32.

    Where latent states start from noise, it is the same noise at every call. Raises `ValueError` without examples.
    """
    if not examples:
        raise ValueError("There are no examples to measure exactness on.")
    device = model.device
    noise = torch.Generator(device).manual_seed(0)
    right, threads, longest = 0, 0, max(len(example.tokens) for example in examples) - 1
    for packed in pack(examples, 8192):
        batch = on_device(packed, device)
        rotation = model.batch_rotation(batch.inputs.shape[1], longest)
        embedded = model.prelude(batch.inputs, rotation, model.attend_causally)
        state = initial_state(model, embedded, noise)
        for _ in range(iterations):
            state = model.iterate(state, embedded, rotation, model.attend_causally)
        choices = model.coda(state, rotation, model.attend_causally).argmax(-1)
        right += int(((choices == batch.targets) | (batch.weights == 0)).all(1).sum())
        threads += len(choices)
    return right / threads
