"""Models, policies and samplings that random programs choose from by name."""

from __future__ import annotations

import contextlib
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import torch
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers
from torch import Tensor

from policies import (
    KL,
    ByLoad,
    ByRole,
    Cosine,
    DepthPolicy,
    DepthView,
    EntryView,
    EvenBudget,
    Fixed,
    LatentDiff,
    MaxChildren,
    Policy,
    Speculative,
    to_builtins,
)
from policies.depth.base import IntArray
from runtime import Sampling
from runtime.model.checkpoint import load_checkpoint, save_checkpoint
from runtime.model.tokenizer import Tokenizer
from runtime.model.transformer import Transformer
from runtime.protocol.constraints import Matchers
from tests.engine.conftest import PROTOCOL, TAGS
from tests.engine.tiny import tiny_model
from tests.fuzz.tools import TOOL_TAGS
from tests.llamas import make_llama, save_llama

MOST = 4
VOCAB = 40


class FaultyAtTest(DepthPolicy, frozen=True):
    """Raises in its exit test."""

    reads: ClassVar[Literal["latent"]] = "latent"

    def measure(self, view: DepthView) -> tuple[Tensor, Tensor]:
        raise ArithmeticError("no measure")


class FaultyAtBound(DepthPolicy, frozen=True):
    """Raises when asked for a bound."""

    def bound(self, entering: EntryView) -> IntArray:
        raise ArithmeticError("no bound")


class FaultyAtRole(DepthPolicy, frozen=True):
    """Raises on the event loop."""

    def for_thread(self, role: str, tree_depth: int) -> DepthPolicy:
        raise ArithmeticError("no role")


DEPTHS: dict[str, DepthPolicy] = {
    "shallow": Fixed(2),
    "deep": Fixed(MOST),
    "latent": LatentDiff(0.7, max_iterations=MOST),
    "slower": LatentDiff(0.9, max_iterations=3),
    "alone": LatentDiff(0.7, max_iterations=MOST, exit_received=False),
    "cosine": Cosine(0.3, max_iterations=3),
    "divergence": KL(0.3, max_iterations=3),
    "normed": Fixed(3, carry="normed"),
    "raw": LatentDiff(0.8, max_iterations=MOST, carry="raw"),
    "speculative": Speculative(draft_iterations=1, lookahead=3, max_iterations=MOST),
    "roles": ByRole(root=Fixed(MOST), parent=Fixed(3), otherwise=LatentDiff(0.7, max_iterations=MOST)),
    "budget": EvenBudget(LatentDiff(0.8, max_iterations=MOST)),
    "load": ByLoad(Fixed(MOST)),
    "fails at test": FaultyAtTest(max_iterations=MOST),
    "fails at bound": FaultyAtBound(max_iterations=MOST),
    "fails at role": FaultyAtRole(max_iterations=MOST),
}
FAILING = ("fails at test", "fails at bound", "fails at role")
BY_LOAD = ("load",)
"""What threads under these say depends on what else runs."""

HOT = Sampling(temperature=1.2)
SAMPLINGS: dict[str, Sampling] = {
    "greedy": Sampling(),
    "hot": HOT,
    "filtered": Sampling(temperature=1.5, top_k=8, repetition_penalty=1.3),
    "nucleus": Sampling(temperature=0.9, top_p=0.8, logprobs=2),
}
SPAWN = MaxChildren(2)
FORMS = {
    "words": "w[0-9]( w[0-9]{1,2}){0,3}",
    "two": "w5 w6 w7|w5 w8|w30",
    "tag": "(<spawn>|w1[0-9]) w[12]+",
    # Of words that the model does not have.
    "impossible": "w1 elephants",
}
"""Regular expressions."""


def policy_of(depth: str) -> Policy:
    return Policy(depth=DEPTHS[depth], spawn=SPAWN)


MODELS = ("raven", "noisy", "deeper", "llama")


@cache
def _home() -> Path:
    # Kept until the process ends, when the stack is collected.
    return Path(_kept.enter_context(tempfile.TemporaryDirectory(prefix="braid-fuzz-")))


_kept = contextlib.ExitStack()


@cache
def checkpoint_of(model: str) -> Path:
    """A directory with a tiny random model, made at the first call; those of the Raven family have a protocol that
    their tokens speak by accident."""
    directory = _home() / model
    if model == "llama":
        return save_llama(directory, make_llama(5, vocab_size=VOCAB, num_key_value_heads=2, max_position_embeddings=64))
    layers: dict[str, dict[str, Any]] = {
        "raven": {},
        "noisy": {"state_init": "like-init"},
        "deeper": {"prelude": 0, "core": 2, "coda": 0},
    }
    words = [*(f"w{number}" for number in range(VOCAB - 1 - len(TAGS))), *TAGS, "<unknown>"]
    inner = Inner(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    protocol = msgspec.structs.replace(PROTOCOL, tools=TOOL_TAGS)
    braid = {"protocol": msgspec.to_builtins(protocol), "policy": to_builtins(policy_of("latent"))}
    save_checkpoint(
        directory, tiny_model(3, **layers[model]), tokenizer=Tokenizer(inner), braid=msgspec.json.encode(braid)
    )
    return directory


def matchers_of(model: str) -> Matchers:
    """What makes the matchers of a model, for one device."""
    described = load_checkpoint(checkpoint_of(model))
    return Matchers(described.tokenizer, VOCAB, frozenset(described.stop_tokens))


@cache
def model_of(model: str) -> Transformer:
    return load_checkpoint(checkpoint_of(model), dtype=torch.float32, device="cpu").model
