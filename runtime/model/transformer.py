"""The transformer that a `Specification` describes: prelude, iterated core block, coda (arXiv 2502.05171).

One definition serves training (dense batches) and the engine (tokens in flight over the paged cache): the modules
compute everything but attention over the past, which the caller supplies as `attend`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.model.configuration import ModelConfig
from runtime.model.rotary import Rotary, RotaryEmbedding, rotate
from runtime.model.specification import Activation, AttentionRule, NormPlaces, Specification

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`attend(layer, query, key, value)`: attended values of the shape of `query`, [..., heads, head_dim].

`key` and `value` are [..., kv_heads, head_dim]; `query` and `key` are rotated. Key head i serves the query heads from
i * heads / kv_heads on. `layer` counts layers with parameters of their own: prelude, then core block, then coda; its
`AttentionRule` holds.
"""

Rotation = Sequence[Tensor]
"""Cosines and sines of a batch, [..., width / 2, 2] float32 for each of the specification's rotary embeddings."""

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class RMSNorm(nn.Module):
    """`offset` is added to the weights, and then in float32 (as Gemma does)."""

    def __init__(self, width: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.offset:
            return (normed * (self.offset + self.weight.float())).type_as(x)
        return normed.type_as(x) * self.weight


class SelfAttention(nn.Module):
    def __init__(self, specification: Specification, rotary: Rotary | None) -> None:
        super().__init__()
        own = specification
        self._split = tuple(heads * own.head_dim for heads in (own.heads, own.kv_heads, own.kv_heads))
        self._head_dim, self._rotary, self._is_whole = own.head_dim, rotary, own.query_key_norm == "whole"
        self.query_key_value = nn.Linear(own.width, own.projection_rows, bias=False)
        self.bias = nn.Parameter(torch.zeros(own.biased_rows)) if own.biased_rows else None
        self.query_norm, self.key_norm = (_query_key_norm(own, heads) for heads in (own.heads, own.kv_heads))
        self.output = nn.Linear(own.heads * own.head_dim, own.width, bias=own.output_bias)

    def forward(self, x: Tensor, rotation: Rotation, layer: int, rotary: int | None, attend: Attend) -> Tensor:
        projected = self.query_key_value(x)
        if self.bias is not None:
            projected = projected + F.pad(self.bias, (0, projected.shape[-1] - len(self.bias)))
        query, key, value = projected.split(self._split, -1)
        if self._is_whole:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = (each.unflatten(-1, (-1, self._head_dim)) for each in (query, key, value))
        if not self._is_whole:
            query, key = self.query_norm(query), self.key_norm(key)
        if self._rotary is not None and rotary is not None:
            query, key = (rotate(each, rotation[rotary], self._rotary) for each in (query, key))
        return self.output(attend(layer, query, key, value).flatten(-2))


class GatedMLP(nn.Module):
    def __init__(self, specification: Specification) -> None:
        super().__init__()
        width, inner, bias = specification.width, specification.mlp_width, specification.mlp_bias
        self.gate_up = nn.Linear(width, 2 * inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)
        self._activation = ACTIVATIONS[specification.activation]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self._activation(gate) * up)


class HalfNorms(nn.Module):
    """The norms of one half of a layer; identities where there is none."""

    def __init__(self, places: NormPlaces, specification: Specification) -> None:
        super().__init__()
        self.before, self.branch, self.total = (
            _norm(specification, specification.width) if is_there else nn.Identity()
            for is_there in (places.before, places.branch, places.total)
        )
        self._scale = specification.residual_scale

    def add(self, x: Tensor, half: Callable[[Tensor], Tensor]) -> Tensor:
        """x [..., width] with what `half` makes of it added."""
        made: Tensor = self.branch(half(self.before(x)))
        total: Tensor = self.total((made if self._scale == 1.0 else made * self._scale) + x)
        return total


class Layer(nn.Module):
    def __init__(self, specification: Specification, number: int) -> None:
        super().__init__()
        self._number, self._rotary = number, specification.layers[number].rotary
        rotary = None if self._rotary is None else specification.rotaries[self._rotary]
        self.attention = SelfAttention(specification, rotary)
        self.mlp = GatedMLP(specification)
        self.attention_norms = HalfNorms(specification.norms, specification)
        self.mlp_norms = HalfNorms(specification.norms, specification)

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        x = self.attention_norms.add(x, lambda y: self.attention(y, rotation, self._number, self._rotary, attend))
        return self.mlp_norms.add(x, self.mlp)


class Transformer(nn.Module):
    """The whole model. `[...]` below is any leading shape: [batch, length] in training, [tokens] in the engine."""

    tile_rows = 32
    """Rows of matrix products in deterministic mode: each then has one shape, whatever the batch is."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.specification = own = config.specification
        self.embedding = nn.Embedding(own.table_rows, own.width)
        self.layers = nn.ModuleList(Layer(own, number) for number in range(len(own.layers)))
        self.adapter = (
            nn.Linear(2 * own.width, own.width, bias=own.adapter_bias) if own.injection == "adapter" else None
        )
        self.exit_gate = nn.Linear(own.width, 1) if own.exit_gate else None
        self.final_norm = _norm(own, own.width)
        self.head = nn.Linear(own.width, own.table_rows, bias=False)
        if own.tied:
            self.head.weight = self.embedding.weight
        self.rotaries = nn.ModuleList(RotaryEmbedding(rotary, own.max_context) for rotary in own.rotaries)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    def rotation(self, positions: Tensor, is_long: Tensor | None = None) -> Rotation:
        """Cosines and sines for positions [...].

        LongRoPE turns all positions of a context by its long factors once that has more than `short_context` tokens.
        Bool `is_long` [...] says whether that of each position has; None takes them for one batch of transformers,
        all of whose positions are turned as the largest is.
        """
        return [rotary(positions, is_long) for rotary in self.rotaries]

    def batch_rotation(self, length: int, longest: int = 0) -> Rotation:
        """For positions 0 .. length - 1 of a padded batch of contexts, of which the longest has so many tokens, if it
        may have more than `short_context`.

        Raises `ValueError` where it has: its tokens would be turned otherwise than others.
        """
        short = self.specification.short_context
        if short is not None and longest > short:
            raise ValueError(
                f"A context has {longest} tokens; beyond {short}, LongRoPE turns contexts by other factors, and "
                "training takes none."
            )
        positions = torch.arange(length, device=self.device)[None]
        return self.rotation(positions, torch.zeros_like(positions, dtype=torch.bool))

    def prelude(self, tokens: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """Embeds token ids [...] into the input [..., width] that every iteration is given."""
        x = self.embedding(tokens)
        scale = embedding_scale(self.specification, x.dtype)
        if scale != 1.0:
            x = x * scale
        return self._through(range(self.specification.core_start), x, rotation, attend)

    def first_state(self, embedded: Tensor) -> Tensor:
        """The latent state [..., width] before the first iteration, without noise."""
        return embedded if self.specification.injection == "state" else torch.zeros_like(embedded)

    def iterate(self, state: Tensor, embedded: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """One iteration: from `state` and `embedded`, both [..., width], to the next state."""
        own = self.specification
        if self.adapter is not None:
            x = self.adapter(torch.cat([state, embedded], dim=-1))
        else:
            x = embedded if own.injection == "embedded" else state
        x = self._through(range(own.core_start, own.coda_start), x, rotation, attend)
        return self.final_norm(x) if own.norms_iterations else x

    def gate(self, state: Tensor) -> Tensor:
        """The probability [...] float32 with which a token exits after the iteration that made `state` [..., width],
        if it has come so far. Raises `TypeError` for a model without an exit gate."""
        if self.exit_gate is None:
            raise TypeError("The model has no exit gate.")
        return self.exit_gate(state)[..., 0].float().sigmoid()

    def coda(self, state: Tensor, rotation: Rotation, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Logits [..., vocab] in float32 from latent states [..., width].

        With `rows` [m], indices along the first axis, every state passes the coda but only those get logits.
        """
        own = self.specification
        x = self.final_norm(state) if own.norms_coda else state
        x = self._through(range(own.coda_start, len(own.layers)), x, rotation, attend)
        x = x if rows is None else x[rows]
        if own.norms_head:
            x = self.final_norm(x)
        # Rows that only pad the table are no tokens, and have no part in what is computed of logits.
        logits = F.linear(x, self.head.weight[: own.vocab_size]).float()
        if own.logits_scale != 1.0:
            logits = logits * own.logits_scale
        return logits if own.logits_softcap is None else (logits / own.logits_softcap).tanh() * own.logits_softcap

    def attend_causally(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Dense causal attention over [batch, length, heads, head_dim], for training: an `Attend`."""
        rule, length = self.specification.attention(layer), query.shape[1]
        visible = None
        if rule.softcap is not None or (rule.window is not None and rule.window < length):
            visible = _visible(length, rule.window or length, query.device)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        return attend_densely(query, key, value, rule, visible).transpose(1, 2)

    def _through(self, numbers: range, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        for number in numbers:
            x = self.layers[number](x, rotation, attend)
        return x


def attend_densely(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule, visible: Tensor | None) -> Tensor:
    """Attended values [batch, heads, queries, head_dim] of keys and values [batch, kv_heads, length, head_dim].

    `visible`, a bool mask that broadcasts to [batch, heads, queries, length], says what is seen; None means causally.
    A window is the mask's affair.
    """
    grouped = query.shape[1] != key.shape[1]
    if rule.softcap is None and rule.sinks is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, is_causal=visible is None, scale=rule.scale, enable_gqa=grouped
        )
    assert visible is not None
    if grouped:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    scores = query @ key.transpose(-1, -2) * rule.scale
    if rule.softcap is not None:
        scores = (scores / rule.softcap).tanh() * rule.softcap
    scores = scores.masked_fill(~visible, -torch.inf).float()
    if rule.sinks is not None:
        sinks = rule.sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], -1)
    shares = scores.softmax(-1)[..., : key.shape[-2]]
    return shares.type_as(value) @ value


def embedding_scale(own: Specification, dtype: torch.dtype) -> float:
    """What embedded tokens are multiplied by, where weights are of `dtype`."""
    return torch.tensor(own.embedding_scale, dtype=dtype).item() if own.rounds_embedding_scale else own.embedding_scale


def _visible(length: int, window: int, device: torch.device) -> Tensor:
    """[length, length] bool: whether the query (row) sees the key (column)."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (distance >= 0) & (distance < window)


def _norm(specification: Specification, width: int) -> RMSNorm:
    return RMSNorm(width, specification.norm_eps, specification.norm_offset)


def _query_key_norm(specification: Specification, heads: int) -> nn.Module:
    match specification.query_key_norm:
        case "none":
            return nn.Identity()
        case "heads":
            return _norm(specification, specification.head_dim)
        case "whole":
            return _norm(specification, heads * specification.head_dim)
