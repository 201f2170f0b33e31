"""The models that are compared on: random weights, written to disk in the format that all sides read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from benchmarks import models
from benchmarks.peers.answering import Exits

Family = Literal["llama", "raven"]


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    family: Family
    """What a peer has to be able to run."""
    vocab: int
    save: Callable[[Path], None]
    """Writes a checkpoint directory with float32 weights."""
    exits: Exits | None = None
    aims: Mapping[str, Mapping[int, float]] = {}
    """By peer and batch, the least ratio of the engine's tokens/s to the peer's that is aimed at."""


def _save_llama(directory: Path, **fields: Any) -> None:
    # Imported here because it takes seconds, and not every run needs it.
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**fields, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)


def _save_raven(directory: Path) -> None:
    # Imported here like the other one.
    from runtime.model import save_checkpoint

    save_checkpoint(directory, models.uneven_with_prelude())


SUBJECTS: dict[str, Subject] = {
    "small": Subject(
        title="a Llama of 4.2M parameters: 5 layers, 256 wide",
        family="llama",
        vocab=512,
        save=partial(
            _save_llama,
            vocab_size=512,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=5,
            num_attention_heads=8,
            max_position_embeddings=512,
        ),
        aims={"vllm": {8: 5.0, 32: 5.0}},
    ),
    "apr": Subject(
        title="a Llama of the shape of APR's models: 18 layers, 1,024 wide, 16 heads, vocabulary of 32,000",
        family="llama",
        vocab=32_000,
        save=partial(
            _save_llama,
            vocab_size=32_000,
            hidden_size=1024,
            intermediate_size=2752,
            num_hidden_layers=18,
            num_attention_heads=16,
            max_position_embeddings=4096,
        ),
        aims={"vllm": {1: 1.0, 8: 1.0, 32: 1.0}},
    ),
    "huginn": Subject(
        title="a Raven of 17.6M parameters whose exit depths spread: 2/4/2 layers, 384 wide, at most 16 iterations",
        family="raven",
        vocab=256,
        save=_save_raven,
        exits=Exits(threshold=0.1, most=16),
        aims={"huginn": {32: 10.0}},
    ),
}
