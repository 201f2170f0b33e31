"""Reference outputs, and how an engine's answers are compared with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from policies import DepthPolicy
from runtime.device.settings import EngineSettings
from runtime.link.commands import Finished
from runtime.link.sampling import Sampling
from runtime.model.checkpoint import load_checkpoint
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo

HOME = Path(__file__).parent.parent / "golden"


class Golden:
    """A checkpoint and what the reference made of it."""

    def __init__(self, name: str) -> None:
        self.path = HOME / name
        self.model: Transformer = load_checkpoint(self.path).model
        self.arrays: dict[str, Tensor] = load_file(self.path / "golden.safetensors")
        self.about: dict[str, Any] = json.loads((self.path / "golden.json").read_text())

    def prompt(self, name: str) -> list[int]:
        return list(self.arrays[f"prompt.{name}"].tolist())

    def answer(
        self, policy: DepthPolicy, prompt: str, backend: str, tokens: int, **changes: Any
    ) -> tuple[Solo, Finished]:
        """What the engine says after a prompt, with log-probabilities of the whole vocabulary."""
        sizes: dict[str, Any] = {"num_pages": 64, "max_in_flight": 64, "prefill_chunk": 64, "initial_state": "zero"}
        solo = Solo.over(self.model, EngineSettings(**sizes | {"backend": backend} | changes), policy)
        sampling = Sampling(logprobs=self.model.specification.vocab_size)
        return solo, solo.generate(self.prompt(prompt), policy, tokens, sampling=sampling)

    def check(self, finished: Finished, prompt: str, tag: str, logits: str = "logits") -> None:
        """Tokens exactly, and distributions where the reference has them."""
        assert [*self.prompt(prompt), *finished.tokens] == self.arrays[f"{tag}.tokens"].tolist()
        reference = self.arrays.get(f"{tag}.{logits}")
        if reference is None:
            return
        expected = torch.log_softmax(reference, dim=-1)
        for row, top in enumerate(finished.top_logprobs):
            found = torch.full_like(expected[row], -torch.inf)
            found[list(top)] = torch.tensor(list(top.values()))
            torch.testing.assert_close(found, expected[row], atol=2e-4, rtol=0)

    def new_tokens(self, prompt: str, tag: str) -> int:
        return len(self.arrays[f"{tag}.tokens"]) - len(self.prompt(prompt))


@torch.no_grad()
def run_dense(model: Transformer, tokens: Tensor, iterations: int) -> tuple[Tensor, list[Tensor]]:
    """What every iteration is given [length, width], and the states after each of them."""
    rotation = model.rotation(torch.arange(len(tokens))[None])
    embedded = model.prelude(tokens[None], rotation, model.attend_causally)
    states = [model.first_state(embedded)]
    for _ in range(iterations):
        states.append(model.iterate(states[-1], embedded, rotation, model.attend_causally))
    return embedded[0], [state[0] for state in states[1:]]


@torch.no_grad()
def logits_of(model: Transformer, state: Tensor) -> Tensor:
    """[length, vocab] from states [length, width]."""
    rotation = model.rotation(torch.arange(len(state))[None])
    return model.coda(state[None], rotation, model.attend_causally)[0]
