"""What the metadata of a GGUF file says about its model, as transformers' `config.json` would say it.

Names and defaults are transformers' own: its `integrations/ggml.py` and its configuration classes. What a file says of
scaled rotary positions and of the width of heads is read for every architecture, which transformers does not do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig

from runtime.errors import CheckpointError
from runtime.model.generation_file import Generation, sampling_of
from runtime.model.gguf_architectures import architecture_of
from runtime.model.gguf_header import GgufHeader, Value
from runtime.model.gguf_tensors import ROTARY_FACTORS, read_numbers
from runtime.model.published import shown

_ORIGINAL = "original_max_position_embeddings"
_SCALINGS: Mapping[str, Mapping[str, str]] = {
    "none": {"factor": "factor"},
    "linear": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original_context_length": _ORIGINAL,
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    },
}
"""Keys below rope.scaling that a type has, and transformers' names of them."""

_SAMPLING = "general.sampling."
_TAKEN = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""Keys below it that are taken, and transformers' names of them."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "penalty_repeat": (1, 1.0),
    "xtc_threshold": (0.1, 0.5),
}
"""Values of others that change nothing by themselves, besides 0."""

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, _ORIGINAL: 8192}
"""Of all models published with rope_type llama3. GGUF has only the factors that follow from them."""


def config_object(header: GgufHeader) -> dict[str, Any]:
    """The object of the `config.json` that transformers would write for the model.

    Raises `CheckpointError`, naming the file, for an architecture that is not converted, for values that no
    configuration of transformers has, and for more layers than there are tensors.
    """
    architecture, model_type, names, *_ = architecture_of(header)
    layers = header.whole(f"{architecture}.block_count")
    if layers is None or not 0 < layers <= len(header.tensors):
        raise CheckpointError(
            f"{header.path}: {architecture}.block_count is {layers}, but there are {len(header.tensors)} tensors."
        )
    values: dict[str, Any] = {
        "vocab_size": vocabulary_size(header),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **{f"{kind}_token_id": header.whole(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "padding")},
        **_named(header, f"{architecture}.", {"attention.key_length": "head_dim", **names}),
    }
    values["pad_token_id"] = values.pop("padding_token_id")
    if header.metadata.get(f"{architecture}.attention.causal") is False:
        values["is_causal"] = False
    if scaling := _scaling(header, f"{architecture}.rope.scaling.", values):
        values["rope_scaling"] = scaling
    try:
        config = AutoConfig.for_model(model_type, **values)
        return msgspec.json.decode(config.to_json_string(), type=dict[str, Any])
    except Exception as error:
        # Its configuration classes raise what they like for what they cannot take.
        raise CheckpointError(f"{header.path}: no configuration of transformers ({shown(str(error))}).") from error


def vocabulary_size(header: GgufHeader) -> int:
    """Tokens of its vocabulary, or rows of the embedding table where the file has no tokenizer."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        return len(tokens)
    table = header.tensors.get("token_embd.weight")
    return 0 if table is None else table.shape[0]


def stop_tokens(header: GgufHeader) -> list[int]:
    """Ids that end a text, a turn or a message, as far as the file names them."""
    keys = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
    return [token for key in keys if (token := header.whole(key)) is not None]


def generation(header: GgufHeader) -> Generation:
    """How the file's makers sample from the model, and the tokens that end a text.

    Raises `CheckpointError`, naming the file, for values that cannot be.
    """
    said = {key.removeprefix(_SAMPLING): value for key, value in header.metadata.items() if key.startswith(_SAMPLING)}
    raw = {name: said.pop(key) for key, name in _TAKEN.items() if key in said}
    if said.pop("penalty_last_n", 64) != -1 and "repetition_penalty" in raw:
        # Of the last tokens alone, the last 64 where nothing is said.
        said["penalty_repeat"] = raw.pop("repetition_penalty")
    raw["do_sample"] = bool(raw.keys() - {"repetition_penalty"}) and raw.get("temperature") not in (0, 0.0)
    try:
        sampling = sampling_of(raw)
    except ValueError as error:
        raise CheckpointError(f"{header.path}: general.sampling: {str(error).rstrip('.')}.") from error
    ignored = (f"{_SAMPLING}{key}" for key, value in said.items() if value not in _NEUTRAL.get(key, (0, 0.0)))
    return Generation(sampling=sampling, stop_tokens=tuple(stop_tokens(header)), ignored=tuple(sorted(ignored)))


def _named(header: GgufHeader, prefix: str, names: Mapping[str, str | None]) -> dict[str, Value]:
    """Values of the keys below a prefix that have a name, by their names."""
    found: dict[str, Value] = {}
    for key, name in names.items():
        value = header.metadata.get(prefix + key)
        if name is None or value is None:
            continue
        if isinstance(value, list):
            raise CheckpointError(f"{header.path}: {prefix}{key} is a list; supported are layers that are all alike.")
        if isinstance(value, float) and not math.isfinite(value):
            raise CheckpointError(f"{header.path}: {prefix}{key} is {value}; expected a finite number.")
        found[name] = value
    return found


def _scaling(header: GgufHeader, prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary scaling as transformers writes it; empty if there is none."""
    if ROTARY_FACTORS in header.tensors:
        return _llama3(header, values)
    # As llama.cpp takes it where a file says nothing.
    kind = header.metadata.get(f"{prefix}type", "linear")
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise CheckpointError(f"{header.path}: {prefix}type is {shown(kind)}; supported are {', '.join(_SCALINGS)}.")
    known = {f"{prefix}{key}" for key in ("type", "finetuned", *_SCALINGS[kind])}
    if strange := [key for key in header.metadata if key.startswith(prefix) and key not in known]:
        raise CheckpointError(f"{header.path}: {strange[0]} is not supported beside {prefix}type {kind!r}.")
    scaling = _named(header, prefix, _SCALINGS[kind])
    is_scaled = kind != "none" and scaling.get("factor", 1.0) != 1.0
    return {"rope_type": kind, **scaling} if is_scaled else {}


def _llama3(header: GgufHeader, values: Mapping[str, Any]) -> dict[str, Any]:
    """The scaling whose factors the file has; `values` are those of the configuration so far."""
    factors = read_numbers(header, header.tensors[ROTARY_FACTORS]).reshape(-1)
    scaling = {"rope_type": "llama3", "factor": float(factors.max(initial=1.0)), **_LLAMA3}
    width, base = 2 * factors.size, float(values.get("rope_theta", 10_000.0))
    if not np.allclose(factors, _llama3_factors(scaling, width, base), rtol=1e-3):
        raise CheckpointError(
            f"{header.path}: {ROTARY_FACTORS} are not the factors of rope_type llama3 over {_LLAMA3[_ORIGINAL]} "
            "positions; no other is supported."
        )
    return scaling if scaling["factor"] != 1.0 else {}


def _llama3_factors(scaling: Mapping[str, Any], width: int, base: float) -> NDArray[np.float64]:
    """What each frequency is divided by: 1 for short wavelengths, the factor for long ones, between them between."""
    wavelengths = 2 * math.pi * base ** (np.arange(0, width, 2) / width)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = np.clip((scaling[_ORIGINAL] / wavelengths - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - share) / scaling["factor"] + share)
