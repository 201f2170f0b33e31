"""Which of transformers' models can be run, as far as `config.json` and the class say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import CheckpointError, described
from runtime.model.published import shown
from runtime.model.wide.interface import register

OLDEST = 5
"""The first version of transformers whose models all ask for attention through one interface."""

_NOT_OURS = frozenset(
    {
        "attn_implementation",
        "auto_map",
        "dtype",
        "experts_implementation",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Keys about how a model is run, which is for the engine to say, and about code that is not transformers' own."""

_QUANTIZED = ("quantization_config", "compression_config")


class WideDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What `config.json` alone says."""

    vocab_size: int
    max_context: int
    short_context: int | None = None
    exit_gate: bool = False
    exit_threshold: float = 1.0


@dataclass(frozen=True, kw_only=True)
class WideConfig:
    """A `config.json` of transformers, read by transformers."""

    family: str
    specification: WideDescription
    model_class: Any
    """The class of transformers that runs it."""
    published: Any
    """Transformers' configuration object."""
    identity: object
    """What the file says of the model."""


def read_wide(path: Path, raw: Mapping[str, Any], native: str) -> WideConfig:
    """The configuration in the object of a `config.json` that no native family reads.

    `native` names those families, for the error if transformers has no such model either. Raises `CheckpointError`,
    naming file and reason, for what cannot be run. Nothing is downloaded, and no code but transformers' own is run.
    """
    family = raw.get("model_type")
    installed = version("transformers")
    if int(installed.partition(".")[0]) < OLDEST:
        raise CheckpointError(
            f"{path}: model_type is {shown(family)}; supported are {native}, and with transformers {OLDEST} or later "
            f"its causal models too. Installed is {installed}."
        )
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if not isinstance(family, str) or family not in CONFIG_MAPPING:
        code = " Its own code, which auto_map names, is not run." if "auto_map" in raw else ""
        raise CheckpointError(
            f"{path}: model_type is {shown(family)}; supported are {native}, and causal models of transformers, "
            f"of which version {installed} has none of this type.{code}"
        )
    for key in _QUANTIZED:
        if raw.get(key) is not None:
            raise CheckpointError(f"{path}: {key} is given; expected weights that are not quantized.")
    register()
    own = _own(raw)
    try:
        published = CONFIG_MAPPING[family].from_dict(own)
    except Exception as error:
        raise CheckpointError(f"{path}: transformers cannot read it ({_line(error)}). Correct the value.") from error
    if type(published) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        part = " Save its text model by itself with transformers." if "text_config" in raw else ""
        raise CheckpointError(f"{path}: transformers' {family!r} is no causal language model.{part}")
    model_class = _declared_class(path, raw, MODEL_FOR_CAUSAL_LM_MAPPING[type(published)])
    _refuse(path, family, published, model_class)
    return WideConfig(
        family=family,
        specification=WideDescription(
            vocab_size=_count(path, published, "vocab_size"),
            max_context=_count(path, published, "max_position_embeddings"),
            short_context=_short_context(path, published),
        ),
        model_class=model_class,
        published=published,
        identity=(family, own),
    )


def _declared_class(path: Path, raw: Mapping[str, Any], known: Any) -> Any:
    """The class that `architectures` names, among those that transformers has for the model, or else the first."""
    classes = [each for each in (known if isinstance(known, tuple) else (known,)) if each is not None]
    declared = raw.get("architectures")
    for each in classes:
        if declared is None or declared == [each.__name__]:
            return each
    names = " or ".join(repr([each.__name__]) for each in classes)
    raise CheckpointError(f"{path}: architectures is {shown(declared)}; supported is {names}.")


def _refuse(path: Path, family: str, published: Any, model_class: Any) -> None:
    """Raises `CheckpointError` for a kind of model that paged keys and values do not hold all of."""
    reason = None
    if published.is_encoder_decoder or getattr(published, "add_cross_attention", False):
        reason = "it attends to an encoder, or is one"
    elif getattr(model_class, "_is_stateful", False):
        reason = "it keeps a state beside keys and values (a recurrence, a convolution or linear attention)"
    elif not getattr(model_class, "_supports_attention_backend", False):
        reason = "it does not declare _supports_attention_backend, so its attention cannot be replaced"
    if reason is not None:
        raise CheckpointError(
            f"{path}: model_type {family!r}, {model_class.__name__}, cannot be run: {reason}. Convert the model to an "
            "architecture that can."
        )


def _own(value: Any) -> Any:
    """JSON-like data without what is not the model's own, at any level."""
    if isinstance(value, Mapping):
        return {key: _own(each) for key, each in value.items() if key not in _NOT_OURS and not key.startswith("_")}
    return [_own(each) for each in value] if isinstance(value, list) else value


def _count(path: Path, published: Any, key: str) -> int:
    found = getattr(published.get_text_config(decoder=True), key, None)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 < found < 2**31:
        raise CheckpointError(f"{path}: {key} is {shown(found)}; expected a whole number above 0.")
    return found


def _short_context(path: Path, published: Any) -> int | None:
    """The longest context that LongRoPE turns by its short factors; None where none is turned otherwise."""
    lengths = [
        original
        for rope in _ropes(getattr(published.get_text_config(decoder=True), "rope_parameters", None))
        if rope.get("rope_type") == "longrope"
        and isinstance(original := rope.get("original_max_position_embeddings"), int)
    ]
    return min(lengths) if lengths and min(lengths) < _count(path, published, "max_position_embeddings") else None


def _ropes(parameters: Any) -> list[Mapping[str, Any]]:
    """Rotary parameters of the model, or of each type of its layers."""
    if not isinstance(parameters, Mapping):
        return []
    return [parameters, *(each for each in parameters.values() if isinstance(each, Mapping))]


def _line(error: Exception) -> str:
    return described(error).splitlines()[0].removesuffix(".")
