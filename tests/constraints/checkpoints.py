"""Random models that write text: any weights will do where what they say is constrained."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers

from runtime.model.checkpoint import save_checkpoint
from runtime.model.families.raven import RavenConfig
from runtime.model.parameters import initialise
from runtime.model.tokenizer import Tokenizer
from runtime.model.transformer import Transformer


def words(*of: str) -> Inner:
    """A token a word."""
    inner = Inner(models.WordLevel({word: number for number, word in enumerate(of)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return inner


def save_random(directory: Path, inner: Inner, seed: int, *, stops: bool = True) -> Path:
    """A tiny model with random weights over a tokenizer's vocabulary, and a few ids more, as published ones have.

    With `stops`, token 0 ends texts.
    """
    vocab_size = inner.get_vocab_size() + 5
    config = RavenConfig(
        n_embd=16,
        n_heads=2,
        intermediate_size=24,
        vocab_size=vocab_size,
        block_size=160,
        n_layers_in_prelude=1,
        n_layers_in_recurrent_block=1,
        n_layers_in_coda=1,
        mean_recurrence=3,
        state_init="zero",
        tie_embeddings=False,
    )
    model = Transformer(config)
    initialise(model, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.head.weight.mul_(4.0)
    save_checkpoint(directory, model.eval(), tokenizer=Tokenizer(inner))
    if stops:
        (directory / "generation_config.json").write_text('{"eos_token_id": 0}')
    return directory
