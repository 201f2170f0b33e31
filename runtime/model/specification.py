"""What a transformer is, declared: everything that its arithmetic depends on but the weights.

A family of models (`runtime.model.families`) reads its `config.json` into a `Specification`. The model, both backends
and the trainers read nothing else.

    embedded = scale * table[tokens]             layers of the prelude
    state    = zero, noise, or embedded
    iterate: x = injection(state, embedded)      layers of the core block, again and again
             x = final norm of x                 where `norms_iterations`
    x        = final norm of state               where `norms_coda`
                                                 layers of the coda
    logits   = head(final norm of x)             where `norms_head`

A model that is not recurrent has all its layers in a core block that runs once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from runtime.link.sampling import FilterRule
from runtime.model.rotary import Rotary, short_context_of

if TYPE_CHECKING:
    from torch import Tensor

MOST_LAYERS = 4096
"""Each is written down, so that a configuration of more would take memory before anything else is looked at."""

Count = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
Layers = Annotated[int, msgspec.Meta(ge=1, le=MOST_LAYERS)]
LayersOrNone = Annotated[int, msgspec.Meta(ge=0, le=MOST_LAYERS)]
Positive = Annotated[float, msgspec.Meta(gt=0)]

Injection = Literal["adapter", "embedded", "state"]
"""What an iteration starts from: a linear map of the latent state and the embedded token, side by side; the embedded
token alone; or the latent state, which starts as the embedded token."""

QueryKeyNorm = Literal["none", "heads", "whole"]
"""RMSNorm of queries and keys before they are rotated: none, one of each head's width for all heads, or one over all
heads at once."""

ProjectionBias = Literal["none", "query_key", "query_key_value"]
Activation = Literal["silu", "gelu", "gelu_tanh"]


class LayerSpecification(msgspec.Struct, frozen=True, kw_only=True):
    """What may differ from layer to layer."""

    rotary: int | None = 0
    """Which of the specification's rotary embeddings; None for none."""
    window: Count | None = None
    """A token sees so many positions, its own included; None for all before it."""


class NormPlaces(msgspec.Struct, frozen=True, kw_only=True):
    """Where a half of a layer (attention, or MLP) is normed: x = total(x + branch(half(before(x))))."""

    before: bool = True
    branch: bool = False
    total: bool = False


class AttentionRule(msgspec.Struct, frozen=True, kw_only=True):
    """How a layer's queries see keys."""

    scale: float
    """Of the product of query and key."""
    window: int | None = None
    softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap)."""
    sinks: Tensor | None = None
    """[heads]: a score of each head that takes its share of attention and gives no value; a parameter, as it is."""


class Specification(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes count numbers, layers or tokens."""

    width: Count
    heads: Count
    kv_heads: Count
    """Heads that keys and values have; each serves heads / kv_heads query heads that follow each other."""
    head_dim: Count
    """Even."""
    mlp_width: Count
    vocab_size: Count
    """Token ids, and columns of the logits."""
    table_rows: Count
    """Rows of the embedding table and of the head; no token has those beyond `vocab_size`."""
    max_context: Count
    """Longest context in tokens."""
    prelude_layers: LayersOrNone = 0
    core_layers: Layers
    coda_layers: LayersOrNone = 0
    layers: tuple[LayerSpecification, ...]
    """Of prelude, core block and coda, in this order."""
    rotaries: tuple[Rotary, ...]

    norms: NormPlaces = NormPlaces()
    norm_eps: Positive
    norm_offset: float = 0.0
    """Added to the weights of norms."""
    query_key_norm: QueryKeyNorm = "none"
    projection_bias: ProjectionBias = "none"
    output_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    attention_scale: Positive
    attention_softcap: Positive | None = None
    logits_softcap: Positive | None = None
    embedding_scale: Positive = 1.0
    rounds_embedding_scale: bool = False
    """Whether that is rounded to the dtype of the weights first."""
    residual_scale: Positive = 1.0
    """Of what a half of a layer adds."""
    logits_scale: Positive = 1.0
    tied: bool
    """Whether the head is the embedding table."""

    injection: Injection = "embedded"
    adapter_bias: bool = False
    state_std: float = 0.0
    """Standard deviation of random initial states, before `embedding_scale`; 0 for a start from zero."""
    norms_iterations: bool = False
    norms_coda: bool = False
    norms_head: bool = True
    exit_gate: bool = False
    """Whether a linear map of the state after each iteration gives the probability to exit there."""
    exit_threshold: float = 1.0
    """The cumulative probability to exit, after which a token does so if nothing else is said."""
    mean_recurrence: Count = 1
    """Iterations that a token gets if nothing else is said."""
    filter_rule: FilterRule = "transformers"
    """Whose rules top-k, top-p and min-p follow unless a sampling says otherwise."""

    @property
    def short_context(self) -> int | None:
        """Most tokens of a context that LongRoPE turns by its short factors; None where none is turned otherwise."""
        return short_context_of(self.rotaries, self.max_context)

    @property
    def core_start(self) -> int:
        """Index of the first core layer."""
        return self.prelude_layers

    @property
    def coda_start(self) -> int:
        """Index of the first coda layer."""
        return self.prelude_layers + self.core_layers

    @property
    def projection_rows(self) -> int:
        """Rows of the matrix that makes queries, keys and values."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def biased_rows(self) -> int:
        """How many of those, from the first, have a bias."""
        heads = {"none": 0, "query_key": self.heads + self.kv_heads, "query_key_value": self.heads + 2 * self.kv_heads}
        return heads[self.projection_bias] * self.head_dim

    def attention(self, layer: int) -> AttentionRule:
        return AttentionRule(
            scale=self.attention_scale, window=self.layers[layer].window, softcap=self.attention_softcap
        )
