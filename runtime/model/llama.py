"""Llama (arXiv 2302.13971) with grouped-query attention, under the interface of a depth-recurrent model.

Its one iteration runs all layers and ignores the latent state. Parameter names are those of Hugging Face
transformers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.model.llama_config import DynamicScaling, LinearScaling, LlamaConfig
from runtime.model.raven import Attend, RMSNorm


class SelfAttention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.n_embd, config.n_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.n_embd, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.n_embd, config.n_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.n_embd, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, layer: int, attend: Attend) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = attend(layer, rotate_halves(query, rotation), rotate_halves(key, rotation), value)
        return self.o_proj(attended.flatten(-2))


class GatedMLP(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A transformer block with a norm before each of its two halves."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, rotation: Tensor, layer: int, attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, layer, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """The parts with parameters, under the names of the published checkpoints."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.n_embd, config.norm_eps)


class Llama(nn.Module):
    """The whole model; its methods are those of `Raven`. `[...]` below is any leading shape."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        # No buffer, because a model that is cast to another dtype must keep them in float32.
        self._frequencies = {torch.device("cpu"): rotary_frequencies(config)}

    @property
    def core_start(self) -> int:
        """Index of the first core layer."""
        return 0

    @property
    def coda_start(self) -> int:
        """Index of the first coda layer, of which there are none."""
        return self.config.n_layers

    def rotation(self, positions: Tensor) -> Tensor:
        """Cosines and sines for positions [...]: [..., head_dim / 2, 2] float32."""
        frequencies = self._frequencies.get(positions.device)
        if frequencies is None:
            frequencies = rotary_frequencies(self.config).to(positions.device)
            self._frequencies[positions.device] = frequencies
        angles = positions[..., None].float() * frequencies
        return torch.stack([angles.cos(), angles.sin()], dim=-1)

    def prelude(self, tokens: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        """Embeds token ids [...] into [..., n_embd]."""
        return self.model.embed_tokens(tokens)

    def iterate(self, state: Tensor, embedded: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        """All layers over `embedded` [..., n_embd]; `state` has no effect."""
        x = embedded
        for layer, block in enumerate(self.model.layers):
            x = block(x, rotation, layer, attend)
        return x

    def coda(self, state: Tensor, rotation: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Logits [..., vocab] in float32 from what the layers made, [..., n_embd].

        With `rows` [m], indices along the first axis, only those get logits.
        """
        return self.lm_head(self.model.norm(state if rows is None else state[rows])).float()

    def final_norm(self, state: Tensor) -> Tensor:
        """What the layers made, [..., n_embd], as the head is given it."""
        return self.model.norm(state)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draws fresh weights as transformers does: normal, of one standard deviation."""
        for name, parameter in self.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, self.config.init_std, generator=generator)


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """[head_dim / 2] float32: radians a token, scaled as the configuration says."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies = 1.0 / config.rope_base**exponents
    scaling = config.rope_scaling
    if scaling is None or isinstance(scaling, DynamicScaling):
        return frequencies
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    # How often each frequency turns within the context that the model was first trained on.
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return torch.lerp(frequencies / scaling.factor, frequencies, kept.clamp(0.0, 1.0))


def rotate_halves(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary position embedding that pairs element i with i + head_dim / 2, unlike `raven.rotate`.

    `x` is [..., heads, head_dim], `rotation` [..., head_dim / 2, 2].
    """
    first, second = x.float().chunk(2, dim=-1)
    cosine, sine = rotation.unsqueeze(-3).unbind(-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).type_as(x)
