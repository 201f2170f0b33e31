"""Models with random weights to measure on; their sizes are what counts."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from runtime.model import ModelConfig, RavenConfig, Transformer, initialise, parse_config, published_weights

VOCABULARY = 215
"""Tokens of the Countdown model."""


def embedded_shape(context: int = 512) -> Transformer:
    """The shape of the Countdown model that comes with the package; `context` is the longest one in tokens."""
    return _drawn(
        RavenConfig(
            n_embd=128,
            n_heads=4,
            intermediate_size=512,
            vocab_size=VOCABULARY,
            block_size=context,
            n_layers_in_prelude=0,
            n_layers_in_recurrent_block=1,
            n_layers_in_coda=0,
            mean_recurrence=6,
            qk_bias=False,
            tie_embeddings=False,
            state_init="zero",
        )
    )


def wider(context: int = 512) -> Transformer:
    """Width 256, with a layer before and after a core of two."""
    return _drawn(
        RavenConfig(
            n_embd=256,
            n_heads=8,
            intermediate_size=1024,
            vocab_size=VOCABULARY,
            block_size=context,
            n_layers_in_prelude=1,
            n_layers_in_recurrent_block=2,
            n_layers_in_coda=1,
            mean_recurrence=6,
            state_init="zero",
        )
    )


def smallest(context: int = 128) -> Transformer:
    """So small that everything but arithmetic shows."""
    return _drawn(
        RavenConfig(
            n_embd=16,
            n_heads=2,
            intermediate_size=24,
            vocab_size=64,
            block_size=context,
            n_layers_in_prelude=0,
            n_layers_in_recurrent_block=1,
            n_layers_in_coda=0,
            mean_recurrence=1,
            state_init="zero",
        )
    )


def uneven(width: int, most: int, context: int = 512) -> Transformer:
    """A model whose latent state settles at very different speeds, by token.

    The input of a token is up to a hundred times stronger than another's, and a state that its input dominates
    settles sooner. (A prelude would norm that away, so there is none.)
    """
    model = _drawn(
        RavenConfig(
            n_embd=width,
            n_heads=4,
            intermediate_size=4 * width,
            vocab_size=VOCABULARY,
            block_size=context,
            n_layers_in_prelude=0,
            n_layers_in_recurrent_block=2,
            n_layers_in_coda=1,
            mean_recurrence=most,
            tie_embeddings=False,
            state_init="zero",
        )
    )
    with torch.no_grad():
        rows = torch.rand(model.specification.vocab_size, 1, generator=torch.Generator().manual_seed(1))
        model.embedding.weight.mul_(0.3 * torch.exp(rows * math.log(100)))
        published_weights(model)["transformer.adapter.weight"][:, :width].mul_(0.5)
    return model


def uneven_with_prelude(most: int = 16, context: int = 256) -> Transformer:
    """17.6M parameters in the layout of the published Huginn, two prelude layers, four core layers and two of coda,
    whose latent state settles at very different speeds, by token.

    The prelude norms its output, so the strength of a token's input lies in its direction: the adapter sees one half
    of the width a hundred times as strongly as the other, and tokens divide themselves unevenly between the two.
    """
    model = _drawn(
        RavenConfig(
            n_embd=384,
            n_heads=6,
            intermediate_size=1344,
            vocab_size=256,
            block_size=context,
            n_layers_in_prelude=2,
            n_layers_in_recurrent_block=4,
            n_layers_in_coda=2,
            mean_recurrence=most,
            tie_embeddings=False,
            state_init="zero",
        )
    )
    width, half = model.specification.width, model.specification.width // 2
    with torch.no_grad():
        angles = torch.rand(model.specification.vocab_size, 1, generator=torch.Generator().manual_seed(1)) * math.pi / 2
        model.embedding.weight[:, :half].mul_(torch.sin(angles))
        model.embedding.weight[:, half:].mul_(torch.cos(angles))
        weights = published_weights(model)
        for name, weight in weights.items():
            if "prelude" in name and name.endswith("proj.weight"):
                weight.mul_(0.1)
        weights["transformer.adapter.weight"][:, :width].mul_(0.5)
        weights["transformer.adapter.weight"][:, width + half :].mul_(0.01)
    return model


def looped(width: int, layers: int, loops: int, context: int = 256) -> Transformer:
    """The layout of Ouro, with an exit gate that says of some tokens that they are done after one loop, of others that
    they never are.

    The embedding is so strong that the latent states of tokens stay apart, and the gate's weights so large that it is
    sure of most.
    """
    model = _drawn(
        parse_config(
            Path("config.json"),
            {
                "model_type": "ouro",
                "hidden_size": width,
                "num_attention_heads": 4,
                "intermediate_size": 11 * width // 4,
                "vocab_size": VOCABULARY,
                "num_hidden_layers": layers,
                "max_position_embeddings": context,
                "total_ut_steps": loops,
                "tie_word_embeddings": False,
            },
        )
    )
    assert model.exit_gate is not None
    with torch.no_grad():
        model.embedding.weight.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(1))
        model.exit_gate.weight.normal_(0.0, 2 * width**-0.5, generator=torch.Generator().manual_seed(2))
        model.exit_gate.bias.fill_(-1.0)
    return model


def published_layout(width: int, context: int = 4096) -> Transformer:
    """The layout of the published Huginn at another width: two layers of prelude, four of core and two of coda."""
    return _drawn(
        RavenConfig(
            n_embd=width,
            n_heads=width // 96 if width % 96 == 0 else width // 64,
            intermediate_size=3 * width,
            vocab_size=VOCABULARY,
            block_size=context,
            n_layers_in_prelude=2,
            n_layers_in_recurrent_block=4,
            n_layers_in_coda=2,
            mean_recurrence=32,
            tie_embeddings=False,
        )
    )


def llama(width: int, layers: int, vocab_size: int, context: int = 512) -> Transformer:
    """A Llama with heads of 64."""
    return _drawn(
        parse_config(
            Path("config.json"),
            {
                "model_type": "llama",
                "hidden_size": width,
                "num_attention_heads": width // 64,
                "intermediate_size": 43 * width // 16,
                "vocab_size": vocab_size,
                "num_hidden_layers": layers,
                "max_position_embeddings": context,
                "tie_word_embeddings": False,
            },
        )
    )


def _drawn(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    initialise(model, torch.Generator().manual_seed(0))
    return model.eval()
