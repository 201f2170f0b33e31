"""The models that the engine runs, as one type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.errors import CheckpointError
from runtime.model import config as raven
from runtime.model import llama_config as llama
from runtime.model.config import RavenConfig
from runtime.model.llama import Llama
from runtime.model.llama_config import LlamaConfig
from runtime.model.published import read_object, shown
from runtime.model.raven import Raven

Model = Raven | Llama
ModelConfig = RavenConfig | LlamaConfig


def read_config(path: Path) -> ModelConfig:
    """Reads a published `config.json`.

    Raises `CheckpointError`, naming the file and the key, if the file is missing, is no JSON object, describes
    a model that is none of those supported, or holds a value that is not.
    """
    raw = read_object(path)
    match raw.get("model_type"):
        case raven.MODEL_TYPE:
            return raven.raven_config(path, raw)
        case llama.MODEL_TYPE:
            return llama.llama_config(path, raw)
        case other:
            raise CheckpointError(
                f"{path}: model_type is {shown(other)}; supported are {raven.MODEL_TYPE!r} (depth-recurrent models, as "
                f"Huginn) and {llama.MODEL_TYPE!r} (LlamaForCausalLM of transformers)."
            )


def config_as_published(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` object that the reference implementation of the model reads back as the same."""
    if isinstance(config, LlamaConfig):
        return llama.llama_as_published(config, dtype)
    return raven.raven_as_published(config, dtype)


def build_model(config: ModelConfig) -> Model:
    """A model of that shape, its weights as its modules happen to start."""
    return Llama(config) if isinstance(config, LlamaConfig) else Raven(config)
