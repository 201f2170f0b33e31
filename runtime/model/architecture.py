"""The families of models that the engine runs natively, by the `model_type` of their `config.json`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from runtime.errors import CheckpointError
from runtime.model.configuration import ModelConfig
from runtime.model.families import raven
from runtime.model.families.causal import CausalFamily, read_causal
from runtime.model.families.gemma import GEMMA, GEMMA2, GEMMA3
from runtime.model.families.granite import GRANITE
from runtime.model.families.llama import LLAMA
from runtime.model.families.mistral import MINISTRAL, MISTRAL
from runtime.model.families.olmo import OLMO2, OLMO3
from runtime.model.families.ouro import OURO
from runtime.model.families.phi3 import PHI3
from runtime.model.families.qwen import QWEN2, QWEN3
from runtime.model.families.raven import raven_config
from runtime.model.families.retrofit import kind_of, read_retrofit
from runtime.model.families.smollm3 import SMOLLM3
from runtime.model.families.wrapped import WRAPPERS, text_object
from runtime.model.published import read_object, shown
from runtime.model.wide.configuration import WideConfig, read_wide

CAUSAL: dict[str, CausalFamily] = {
    family.model_type: family
    for family in (
        LLAMA,
        OURO,
        QWEN2,
        QWEN3,
        MISTRAL,
        MINISTRAL,
        SMOLLM3,
        OLMO2,
        OLMO3,
        GEMMA,
        GEMMA2,
        GEMMA3,
        PHI3,
        GRANITE,
    )
}
"""By `model_type`."""

Names = Callable[[], Collection[str]]
"""Names of the tensors beside a `config.json`, for families that it does not tell apart."""


def read_described(path: Path, names: Names = lambda: ()) -> ModelConfig | WideConfig:
    """Reads the `config.json` of any model that can be served: of a native family, or else by transformers itself.

    Raises `CheckpointError` if there is none, or for a model that is neither.
    """
    raw = read_object(path)
    return parse_config(path, raw, names) if raw.get("model_type") in _native() else read_wide(path, raw, _listed())


def read_config(path: Path, names: Names = lambda: ()) -> ModelConfig:
    """Reads a published `config.json`; see `parse_config`. Raises `CheckpointError` if there is none."""
    return parse_config(path, read_object(path), names)


def parse_config(path: Path, raw: Mapping[str, Any], names: Names = lambda: ()) -> ModelConfig:
    """The configuration in the object of a `config.json`; `path` is named in errors.

    Raises `CheckpointError`, naming the file and the key, if it describes a model that is none of those supported, or
    holds a value that is not.
    """
    kind = raw.get("model_type")
    if kind == raven.MODEL_TYPE:
        retrofitted = kind_of(names())
        return raven_config(path, raw) if retrofitted is None else read_retrofit(path, raw, retrofitted)
    if isinstance(kind, str) and kind in CAUSAL:
        return read_causal(path, raw, CAUSAL[kind])
    if isinstance(kind, str) and kind in WRAPPERS:
        text = text_object(path, raw, CAUSAL)
        within = Path(f"{path} (text_config)")
        family = CAUSAL[text["model_type"]]
        text["architectures"] = [family.architecture]
        return msgspec.structs.replace(read_causal(within, text, family), wrapper=kind)
    raise CheckpointError(f"{path}: model_type is {shown(kind)}; supported are {_listed()}.")


def _native() -> tuple[str, ...]:
    return (raven.MODEL_TYPE, *CAUSAL, *WRAPPERS)


def _listed() -> str:
    return ", ".join(map(repr, _native()))
