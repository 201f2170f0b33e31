"""The depth-recurrent transformer of arXiv 2502.05171: prelude, iterated core block, coda.

One definition serves training (dense batches) and the engine (tokens in flight over paged memory): the modules
compute everything but attention over the past, which the caller supplies as `attend`. Parameter names are those
of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.model.config import RavenConfig

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`attend(layer, query, key, value)`: attended values of the shape of `query`, [..., heads, head_dim].

`key` and `value` are [..., kv_heads, head_dim]; `query` and `key` are rotated. Key head i serves the query heads from
i * heads / kv_heads on. `layer` counts layers with parameters of their own: prelude, then core block, then coda.
"""


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class SelfAttention(nn.Module):
    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.head_dim
        self.Wqkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.qk_bias = nn.Parameter(torch.zeros(2, 1, config.n_heads, config.head_dim)) if config.qk_bias else None
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, layer: int, attend: Attend) -> Tensor:
        query, key, value = self.Wqkv(x).unflatten(-1, (3, self.n_heads, self.head_dim)).unbind(-3)
        if self.qk_bias is not None:
            query, key = query + self.qk_bias[0, 0], key + self.qk_bias[1, 0]
        attended = attend(layer, rotate(query, rotation), rotate(key, rotation), value)
        return self.proj(attended.flatten(-2))


class GatedMLP(nn.Module):
    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 2 * config.intermediate_size, bias=False)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.fc(x).chunk(2, dim=-1)
        return self.proj(F.silu(gate) * up)


class SandwichBlock(nn.Module):
    """A transformer block with a norm before and after each of its two halves."""

    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(config.n_embd, config.norm_eps)
        self.attn = SelfAttention(config)
        self.norm_2 = RMSNorm(config.n_embd, config.norm_eps)
        self.norm_3 = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = GatedMLP(config)
        self.norm_4 = RMSNorm(config.n_embd, config.norm_eps)

    def forward(self, x: Tensor, rotation: Tensor, layer: int, attend: Attend) -> Tensor:
        x = self.norm_2(self.attn(self.norm_1(x), rotation, layer, attend) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)


class Transformer(nn.Module):
    """The parts with parameters, under the names of the published checkpoints."""

    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.table_rows, config.n_embd)
        self.prelude = nn.ModuleList(SandwichBlock(config) for _ in range(config.n_layers_in_prelude))
        self.adapter = nn.Linear(2 * config.n_embd, config.n_embd, bias=config.bias)
        self.core_block = nn.ModuleList(SandwichBlock(config) for _ in range(config.n_layers_in_recurrent_block))
        self.coda = nn.ModuleList(SandwichBlock(config) for _ in range(config.n_layers_in_coda))
        self.ln_f = RMSNorm(config.n_embd, config.norm_eps)


class Raven(nn.Module):
    """The whole model. `[...]` below is any leading shape: [batch, length] in training, [tokens] in the engine."""

    freqs_cis: Tensor

    def __init__(self, config: RavenConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.n_embd, config.table_rows, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight
        self.register_buffer("freqs_cis", rotary_table(config))

    @property
    def core_start(self) -> int:
        """Index of the first core layer."""
        return self.config.n_layers_in_prelude

    @property
    def coda_start(self) -> int:
        """Index of the first coda layer."""
        return self.config.n_layers_in_prelude + self.config.n_layers_in_recurrent_block

    def rotation(self, positions: Tensor) -> Tensor:
        """Cosines and sines for positions [...]: [..., head_dim / 2, 2]."""
        return self.freqs_cis[0, :, 0][positions]

    def prelude(self, tokens: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        """Embeds token ids [...] into the input [..., n_embd] that every iteration is given."""
        x = self.transformer.wte(tokens) * self.config.embedding_scale
        for layer, block in enumerate(self.transformer.prelude):
            x = block(x, rotation, layer, attend)
        return x

    def iterate(self, state: Tensor, embedded: Tensor, rotation: Tensor, attend: Attend) -> Tensor:
        """One iteration: adapter over (state, embedded), both [..., n_embd], then every core layer."""
        x = self.transformer.adapter(torch.cat([state, embedded], dim=-1))
        for layer, block in enumerate(self.transformer.core_block, self.core_start):
            x = block(x, rotation, layer, attend)
        return x

    def coda(self, state: Tensor, rotation: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Logits [..., vocab] in float32 from latent states [..., n_embd]; the final norm is used twice.

        With `rows` [m], indices along the first axis, every state passes the coda but only those get logits.
        """
        x = self.transformer.ln_f(state)
        for layer, block in enumerate(self.transformer.coda, self.coda_start):
            x = block(x, rotation, layer, attend)
        # Rows that only pad the table are no tokens, and have no part in what is computed of logits.
        head = self.lm_head.weight[: self.config.vocab_size]
        return F.linear(self.transformer.ln_f(x if rows is None else x[rows]), head).float()

    def final_norm(self, state: Tensor) -> Tensor:
        """Latent states [..., n_embd] as the coda is given them."""
        return self.transformer.ln_f(state)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draws fresh weights as the reference does (Takase et al., arXiv 2312.16903)."""
        wide, narrow = self.config.init_std, self.config.out_proj_std

        def draw(parameter: Tensor, std: float) -> None:
            nn.init.trunc_normal_(parameter, 0.0, std, -3 * std, 3 * std, generator=generator)

        for name, parameter in self.named_parameters():
            if "norm" in name or "ln_f" in name:
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("mlp.fc.weight"):
                draw(parameter[: self.config.intermediate_size], wide)
                draw(parameter[self.config.intermediate_size :], narrow)
            else:
                draw(parameter, narrow if name.endswith(("attn.proj.weight", "mlp.proj.weight")) else wide)


def rotary_table(config: RavenConfig) -> Tensor:
    """[1, block_size, 1, head_dim / 2, 2] float32: cosine and sine of position * base^(-2i / head_dim)."""
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    angles = torch.outer(torch.arange(config.block_size).float(), 1.0 / config.rope_base**exponents)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)[None, :, None]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary position embedding of interleaved pairs; x [..., heads, head_dim], rotation [..., head_dim / 2, 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = rotation.unsqueeze(-3).float().unbind(-1)
    turned = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1)
    return turned.flatten(-2).type_as(x)


def attend_causally(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Dense causal attention over [batch, length, heads, head_dim], for training."""
    grouped = query.shape[-2] != key.shape[-2]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    return attended.transpose(1, 2)
