"""The shape of a Raven/Huginn model, read from and written to a published `config.json`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import CheckpointError
from runtime.model.published import expect, shown
from runtime.sampling import FilterRule

MODEL_TYPE = "huginn_raven"

_SUPPORTED = {
    "architecture_class_name": "RecurrentGPT",
    "block_class_name": "SandwichBlock",
    "norm_class_name": "RMSNorm_llama",
    "mlp_class_name": "GatedMLP",
    "nonlin_name": "SiLU",
    "injection_type": "linear",
}
"""Values of `config.json` that name a structure; any other value is a model this code does not implement."""

_LARGEST = 2**31 - 1
"""Above it no size is one, and arithmetic with sizes would overflow."""

_STATE_INITS = ("like-init", "zero")


class RavenConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Architecture of a depth-recurrent transformer (arXiv 2502.05171, section 2).

    `embedding_scale` multiplies token embeddings; `state_std` is the standard deviation of the random initial
    latent state before that scale (0 for a zero initial state).
    """

    n_embd: int
    n_heads: int
    intermediate_size: int
    vocab_size: int
    """Token ids, and columns of the logits."""
    block_size: int
    """Longest context in tokens."""
    n_layers_in_prelude: int
    n_layers_in_recurrent_block: int
    n_layers_in_coda: int
    mean_recurrence: int
    mean_backprop_depth: int = 8
    norm_eps: float = 1e-6
    rope_base: float = 50_000.0
    qk_bias: bool = True
    bias: bool = False
    """Whether the adapter has a bias; no other linear layer has one."""
    tie_embeddings: bool = True
    state_init: str = "like-init"
    padded_vocab_size: int | None = None
    """Rows of the embedding table and of the head, where that is more than `vocab_size`; no token has those beyond."""

    @property
    def filter_rule(self) -> FilterRule:
        """Whose rules top-k, top-p and min-p follow unless a sampling says otherwise."""
        return "huginn"

    @property
    def table_rows(self) -> int:
        """Rows of the embedding table and of the head."""
        return self.padded_vocab_size or self.vocab_size

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Heads that keys and values have."""
        return self.n_heads

    @property
    def n_layers(self) -> int:
        """Layers with parameters of their own: prelude, one core block and coda."""
        return self.n_layers_in_prelude + self.n_layers_in_recurrent_block + self.n_layers_in_coda

    @property
    def init_std(self) -> float:
        return math.sqrt(2 / (5 * self.n_embd))

    @property
    def effective_depth(self) -> int:
        """Layers a token passes at the mean recurrence; scales the initial output projections."""
        core = self.n_layers_in_recurrent_block * self.mean_recurrence
        return self.n_layers_in_prelude + core + self.n_layers_in_coda

    @property
    def out_proj_std(self) -> float:
        return self.init_std / math.sqrt(2 * self.effective_depth)

    @property
    def embedding_scale(self) -> float:
        return math.sqrt(self.n_embd)

    @property
    def state_std(self) -> float:
        return 0.0 if self.state_init == "zero" else self.init_std


def raven_config(path: Path, raw: dict[str, Any]) -> RavenConfig:
    """The configuration in the object of a published `config.json`; `path` is named in errors.

    Raises `CheckpointError`, naming the file and the key, for a value that this implementation does not support.
    """
    for key, supported in _SUPPORTED.items():
        expect(path, raw, key, supported)
    expect(path, raw, "test_time_noise", 0)
    fields = {name: raw[name] for name in RavenConfig.__struct_fields__ if name in raw}
    if raw.get("padded_vocab_size") is not None:
        fields.setdefault("vocab_size", raw["padded_vocab_size"])
    # The reference has no other way to say that the state starts from zero: it ignores state_init.
    init_values = raw.get("init_values") or {}
    if isinstance(init_values, dict) and init_values.get("std") == 0:
        fields["state_init"] = "zero"
    try:
        config = msgspec.convert(fields, RavenConfig)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    if config.padded_vocab_size is not None:
        # As the reference reads it, no token is beyond the table.
        vocab_size = min(config.vocab_size, config.padded_vocab_size)
        padded = None if vocab_size == config.padded_vocab_size else config.padded_vocab_size
        config = msgspec.structs.replace(config, vocab_size=vocab_size, padded_vocab_size=padded)
    _check(path, config)
    _check_derived(path, raw, config)
    return config


def _check(path: Path, config: RavenConfig) -> None:
    least = {
        "n_embd": 1,
        "n_heads": 1,
        "intermediate_size": 1,
        "vocab_size": 1,
        "block_size": 1,
        "n_layers_in_prelude": 0,
        "n_layers_in_recurrent_block": 1,
        "n_layers_in_coda": 0,
        "mean_recurrence": 1,
        "mean_backprop_depth": 0,
    }
    for key, bound in least.items():
        value = getattr(config, key)
        if value < bound:
            raise CheckpointError(f"{path}: {key} is {value}; expected at least {bound}.")
        if value > _LARGEST:
            raise CheckpointError(f"{path}: {key} is {value}; expected at most {_LARGEST}.")
    if config.table_rows > _LARGEST:
        raise CheckpointError(f"{path}: padded_vocab_size is {config.table_rows}; expected at most {_LARGEST}.")
    for key in ("norm_eps", "rope_base"):
        if not 0 < getattr(config, key) < math.inf:
            raise CheckpointError(f"{path}: {key} is {getattr(config, key)}; expected a positive number.")
    if config.n_embd % (2 * config.n_heads):
        raise CheckpointError(
            f"{path}: n_embd {config.n_embd} with n_heads {config.n_heads} gives no even head width; "
            "n_embd must be a multiple of 2 * n_heads."
        )
    if config.state_init not in _STATE_INITS:
        raise CheckpointError(
            f"{path}: state_init is {shown(config.state_init)}; supported are {', '.join(_STATE_INITS)}."
        )


def _check_derived(path: Path, raw: dict[str, Any], config: RavenConfig) -> None:
    """Values that the reference lets a file override, but that only make sense as derived from the others."""
    expect(path, raw, "num_key_value_heads", config.n_heads)
    expect(path, raw, "head_dim", config.head_dim)
    expect(path, raw, "tie_word_embeddings", config.tie_embeddings)
    init_values = raw.get("init_values") or {}
    if not isinstance(init_values, dict):
        raise CheckpointError(f"{path}: init_values is {shown(init_values)}; expected a JSON object.")
    for key, expected in (("embed_scale", config.embedding_scale), ("std", config.state_std)):
        value = init_values.get(key, expected)
        if key == "std" and config.state_init == "zero":
            continue
        if not isinstance(value, int | float) or not math.isclose(value, expected, rel_tol=1e-4):
            raise CheckpointError(f"{path}: init_values.{key} is {shown(value)}; supported is {expected!r}.")


def raven_as_published(config: RavenConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` object that the reference implementation reads back as the same model.

    A zero initial state is published as `init_values.std` 0 as well: the reference knows it by that alone.
    """
    return {
        **_SUPPORTED,
        **msgspec.structs.asdict(config),
        "activation_checkpoint_impl": "per-iteration",
        "architectures": ["RavenForCausalLM"],
        "auto_map": {
            "AutoConfig": "raven_config_minimal.RavenConfig",
            "AutoModelForCausalLM": "raven_modeling_minimal.RavenForCausalLM",
        },
        "effective_expected_depth": config.effective_depth,
        "head_dim": config.head_dim,
        "init_orthogonal": False,
        "init_strategy": "takase",
        "init_values": {
            "embed_scale": config.embedding_scale,
            "embedding": config.init_std,
            "out_proj": config.out_proj_std,
            "std": config.state_std,
        },
        "model_type": MODEL_TYPE,
        "n_layers": config.n_layers,
        "num_key_value_heads": config.n_heads,
        "padded_vocab_size": config.table_rows,
        "padding_multiple": config.table_rows,
        "sampling_scheme": "poisson-lognormal-filling",
        "test_time_noise": 0,
        "test_time_noise_type": "fixed",
        "torch_dtype": dtype,
    }
