"""`generation_config.json`: how a checkpoint's makers sample from it, and where its texts end.

As transformers reads it (`GenerationConfig`), but that what it does not say is not filled in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from policies.conversion import Count
from runtime.errors import CheckpointError
from runtime.link.sampling import Sampling
from runtime.model.directories import CONFIG, GENERATION_CONFIG
from runtime.model.published import holds, read_object

_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_TAKEN = ("do_sample", *_SAMPLING, "repetition_penalty", "max_new_tokens", "eos_token_id")

_OF_OTHERS = (
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "max_length",
    "cache_implementation",
    "transformers_version",
)
"""Keys that are about something else than which tokens are sampled; and so are those that begin with an underscore, or
with "use_", "return_" and "output_"."""

_NEUTRAL: tuple[object, ...] = (None, 0, 1, "", [], {})
"""Values at which a way of sampling does nothing."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """What is taken of the file, or of none."""

    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    """Most tokens of a generate that is given no bound; None where the file has none."""
    stop_tokens: tuple[int, ...] = ()
    """As declared, there or in config.json."""
    ignored: tuple[str, ...] = ()
    """Keys that ask for a way of sampling that the engine has not."""


class _File(msgspec.Struct):
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: Count | None = None


class _Stops(msgspec.Struct):
    """What counts of either file that may say which tokens end a text."""

    eos_token_id: int | list[int] | None = None


def read_generation(directory: Path, vocab_size: int) -> Generation:
    """What a directory's generation_config.json says, and which tokens end a text where config.json says that.

    Raises `CheckpointError`, naming the file and the key, for a value of another type or that cannot be run, and for a
    stop token outside the vocabulary.
    """
    path = directory / GENERATION_CONFIG
    raw = read_object(path) if holds(path) else {}
    try:
        said = msgspec.convert(raw, _File)
        sampling = sampling_of(raw)
    except ValueError as error:
        raise CheckpointError(f"{path}: {str(error).rstrip('.')}.") from error
    return Generation(
        sampling=sampling,
        max_tokens=said.max_new_tokens,
        stop_tokens=_stop_tokens(directory, raw, vocab_size),
        ignored=tuple(sorted(key for key, value in raw.items() if not _is_known(key) and value not in _NEUTRAL)),
    )


def sampling_of(raw: Mapping[str, Any]) -> Sampling:
    """Greedy, unless the file's object asks for sampling. A filter that lets everything pass is none.

    Raises `ValueError` for values of another type, or that cannot be run.
    """
    said = msgspec.convert(raw, _File)
    penalty = 1.0 if said.repetition_penalty is None else said.repetition_penalty
    # Values are looked at whether they count or not.
    whole = Sampling(
        temperature=1.0 if said.temperature is None else said.temperature,
        top_k=said.top_k or None,
        top_p=None if said.top_p == 1 else said.top_p,
        min_p=said.min_p or None,
        repetition_penalty=penalty,
    )
    return whole if said.do_sample and whole.temperature > 0 else Sampling(repetition_penalty=penalty)


def _is_known(key: str) -> bool:
    return key in (*_TAKEN, *_OF_OTHERS) or key.startswith(("_", "use_", "return_", "output_"))


def _stop_tokens(directory: Path, raw: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    path = directory / GENERATION_CONFIG
    declared = _declared(path, raw)
    if declared is None:
        path = directory / CONFIG
        raw = read_object(path)
        declared = _declared(path, raw)
        if declared is None and isinstance(text := raw.get("text_config"), dict):
            declared = _declared(path, text)
    return inside_vocabulary(path, declared or (), vocab_size, directory / CONFIG)


def inside_vocabulary(path: Path, declared: Collection[int], vocab_size: int, sizes: Path) -> tuple[int, ...]:
    """The stop tokens that the file at `path` declares; the file `sizes` has the size of the vocabulary.

    Raises `CheckpointError` for one that is none of its tokens.
    """
    for token in declared:
        if not 0 <= token < vocab_size:
            raise CheckpointError(
                f"{path}: eos_token_id has {token}; expected ids from 0 to {vocab_size - 1}, the vocabulary of {sizes}."
            )
    return tuple(declared)


def _declared(path: Path, raw: Mapping[str, Any]) -> Collection[int] | None:
    try:
        eos = msgspec.convert(raw, _Stops).eos_token_id
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    return [eos] if isinstance(eos, int) else eos
