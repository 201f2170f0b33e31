"""The tokenizer and the chat template of a GGUF file, by transformers' own conversion."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

from runtime.errors import CheckpointError
from runtime.model.chat_files import DEFAULT, ChatTemplate, ChatTemplates
from runtime.model.gguf_architectures import architecture_of
from runtime.model.gguf_header import GgufHeader
from runtime.model.published import shown
from runtime.model.tokenizer_files import ReadTokenizer, is_of_library, of_transformers

_NONE = (None, "none", "no_vocab")
"""What tokenizer.ggml.model says where there is no tokenizer."""

_TEMPLATE = "tokenizer.chat_template"

_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Kinds of special tokens: transformers' word, and GGUF's."""


def read_tokenizer(header: GgufHeader) -> ReadTokenizer | None:
    """The tokenizer that transformers makes of the file's vocabulary; None where the file has none.

    Raises `CheckpointError`, naming the file, for one that it cannot make.
    """
    if header.metadata.get("tokenizer.ggml.model") in _NONE:
        return None
    grouped = {
        group: {
            name: value for key, name in names.items() if (value := header.metadata.get(f"tokenizer.{key}")) is not None
        }
        for group, names in GGUF_TOKENIZER_MAPPING.items()
    }
    try:
        inner, _ = convert_gguf_tokenizer(architecture_of(header).name, grouped["tokenizer"])
        read = PreTrainedTokenizerFast(tokenizer_object=inner, **_settings(header, grouped["tokenizer_config"]))
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise CheckpointError(
            f"{header.path}: its vocabulary makes no tokenizer of transformers ({shown(str(error))})."
        ) from error
    return of_transformers(read, str(header.path))


def chat_templates(header: GgufHeader) -> ChatTemplates | None:
    """The file's chat templates; None where it has none. Raises `CheckpointError` for one that is no text."""
    found = {}
    for key in header.metadata:
        if (key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")) and (source := header.text(key)) is not None:
            name = key.removeprefix(_TEMPLATE).removeprefix(".") or DEFAULT
            found[name] = ChatTemplate(source=source, where=f"{header.path}, {key}")
    return ChatTemplates(by_name=found) if found else None


def _settings(header: GgufHeader, given: dict[str, Any]) -> dict[str, Any]:
    """What transformers' `get_gguf_tokenizer` makes of the metadata beside the vocabulary."""
    tokens = header.metadata["tokenizer.ggml.tokens"]
    if not isinstance(tokens, list):
        raise ValueError("tokenizer.ggml.tokens is no list")
    ids = {kind: header.whole(f"tokenizer.ggml.{key}_token_id") for kind, key in _SPECIAL.items()}
    return {
        # Files without the key are older than it; llama.cpp leads texts of SentencePiece so unless told otherwise.
        **({"add_bos_token": True} if header.metadata["tokenizer.ggml.model"] == "llama" else {}),
        **given,
        **{f"{kind}_token": None if token is None else tokens[token] for kind, token in ids.items()},
    }
