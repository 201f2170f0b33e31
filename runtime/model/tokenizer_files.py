"""Reading a tokenizer from a checkpoint's directory as transformers reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from runtime.errors import CheckpointError

_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
"""Files that may declare tokens, change what a tokenizer does, or use its tokens by name, beside tokenizer.json."""

_IN_RUST = ("_encode_plus", "decode", "_decode")
"""Methods that leave the work to the tokenizers library, unless a class has its own."""


class ReadTokenizer(NamedTuple):
    inner: tokenizers.Tokenizer
    clean_up: Callable[[str], str] | None
    """What is done to every decoded text."""
    where: str
    """The files it is from."""
    special_tokens: Mapping[str, str]
    """By what they are for, such as "bos_token"."""


def read_tokenizer(path: Path) -> ReadTokenizer:
    """Reads `tokenizer.json` and what the files beside it declare.

    Raises `CheckpointError`, naming the files, for a missing one and for what the libraries cannot read or need code
    of the checkpoint's own for.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a tokenizer.json of the tokenizers library.")
    beside = [name for name in _BESIDE if (path.parent / name).is_file()]
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise CheckpointError(
            f"{path}: not a tokenizer.json that tokenizers {tokenizers.__version__} reads ({error})."
        ) from error
    return _read_with_transformers(path, beside) if beside else ReadTokenizer(inner, None, str(path), {})


def is_of_library(error: BaseException) -> bool:
    """Whether an error is one that the tokenizers library raises: an `Exception`, or a panic of its Rust code."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _read_with_transformers(path: Path, beside: list[str]) -> ReadTokenizer:
    # Takes seconds to import, which directories without such files need not wait for.
    import transformers

    where = f"{path}, with {', '.join(beside)} beside it"
    try:
        read = transformers.AutoTokenizer.from_pretrained(
            str(path.parent), local_files_only=True, trust_remote_code=False
        )
    except BaseException as error:
        if not is_of_library(error):
            raise
        raise CheckpointError(
            f"{where}: not a tokenizer that transformers {transformers.__version__} reads ({error})."
        ) from error
    return of_transformers(read, where)


def of_transformers(read: Any, where: str) -> ReadTokenizer:
    """What a tokenizer of transformers leaves to the tokenizers library.

    Raises `CheckpointError`, beginning with `where`, for one that does its work in Python.
    """
    import transformers

    fast = transformers.PreTrainedTokenizerFast
    if not isinstance(read, fast) or any(getattr(type(read), name) is not getattr(fast, name) for name in _IN_RUST):
        raise CheckpointError(
            f"{where}: {type(read).__name__} does its work in Python; supported are tokenizers that leave it to the "
            f"tokenizers library, such as PreTrainedTokenizerFast."
        )
    inner = read.backend_tokenizer
    # Since version 5 transformers cleans up after BPE only where it is forced to.
    is_forced = getattr(read, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True)
    cleans_up = read.clean_up_tokenization_spaces and (is_forced or not isinstance(inner.model, tokenizers.models.BPE))
    clean_up = read.clean_up_tokenization if cleans_up else None
    named = {name: token for name, token in read.special_tokens_map.items() if isinstance(token, str)}
    return ReadTokenizer(inner, clean_up, where, named)
