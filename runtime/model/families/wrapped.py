"""Text models inside models of text and images: which part of a `config.json`, and which tensors, are the text's.

Without images, each is the causal model that its `text_config` describes; the encoder of images is not read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from runtime.errors import CheckpointError
from runtime.model.published import shown
from runtime.model.weights import StoredWeights

WRAPPERS = (
    "gemma3",
    "mistral3",
    "llava",
    "llava_next",
    "llava_onevision",
    "vipllava",
    "internvl",
    "idefics3",
    "smolvlm",
    "got_ocr2",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
)
"""By `model_type`."""

_TEXTS = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
"""Text models of a type of their own that are, without images, one of a family."""

_FLAT = {"qwen2_vl": "qwen2_vl_text", "qwen2_5_vl": "qwen2_5_vl_text"}
"""Wrappers whose older files have the keys of the text beside those of the images, and its type."""

_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_SIZES = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "intermediate_size": 14336},
    "gemma3_text": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
    },
}
"""Sizes that published files leave out within `text_config`, as transformers fills them in."""

_PLACES = (
    ("language_model.model.", "language_model.lm_head.weight"),
    ("model.language_model.", "lm_head.weight"),
    ("model.text_model.", "lm_head.weight"),
    ("model.", "lm_head.weight"),
)
"""What names of the text's tensors begin with, and what its head is called, in older files and in those of
transformers 5."""


def text_object(path: Path, raw: Mapping[str, Any], families: Collection[str]) -> dict[str, Any]:
    """The object of the text model's own `config.json`, out of a wrapper's at `path`.

    `families` are the types that are read natively. Raises `CheckpointError`, naming the file and the key, where it is
    of none of them.
    """
    wrapper = raw["model_type"]
    text = raw.get("text_config")
    if text is None and wrapper in _FLAT:
        text = {**raw, "model_type": _FLAT[wrapper]}
    if not isinstance(text, dict):
        raise CheckpointError(f"{path}: text_config is {shown(text)}; expected the JSON object of the text model.")
    kind = text.get("model_type")
    family = _TEXTS.get(kind, kind) if isinstance(kind, str) else None
    if family is None or family not in families:
        raise CheckpointError(
            f"{path}: model_type is {wrapper!r}, whose text_config has the model_type {shown(kind)}; of models with "
            f"images, text of {', '.join(sorted(families))} runs. Save the text model by itself with transformers."
        )
    own = {key: value for key, value in text.items() if key not in ("architectures", "vision_config", "text_config")}
    rotary = {key: _without_axes(own[key]) for key in ("rope_parameters", "rope_scaling") if key in own}
    tied = next((each["tie_word_embeddings"] for each in (raw, text) if "tie_word_embeddings" in each), None)
    said = {} if tied is None else {"tie_word_embeddings": tied}
    return {**_SIZES.get(family, {}), **own, **rotary, **said, "model_type": family}


def text_tensors(weights: StoredWeights) -> StoredWeights:
    """The text's tensors of a wrapper's, by the names that they have without it."""
    stored = weights.tensors
    start, head = next((place for place in _PLACES if f"{place[0]}embed_tokens.weight" in stored), _PLACES[0])
    names = {name: f"model.{name.removeprefix(start)}" for name in stored if name.startswith(start)}
    if start == "model.":
        names = {name: own for name, own in names.items() if name.split(".")[1] in ("embed_tokens", "layers", "norm")}
    if head in stored:
        names[head] = "lm_head.weight"
    theirs = {own: name for name, own in names.items()}

    def read(wanted: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights.read([theirs[own] for own in wanted]):
            yield names[name], tensor

    return replace(weights, tensors={own: stored[name] for own, name in theirs.items()}, read=read)


def _without_axes(rotary: Any) -> Any:
    """Rotary parameters, which for text are the same on each axis of an image."""
    if not isinstance(rotary, dict):
        return rotary
    kept = {key: value for key, value in rotary.items() if key not in ("mrope_section", "mrope_interleaved")}
    return {key: "default" if value == "mrope" else value for key, value in kept.items()}
