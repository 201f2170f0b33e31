"""Checkpoints as they are published: finding, loading, saving and telling them apart.

A directory holds config.json and model.safetensors (or shards with an index), and may hold generation_config.json,
tokenizer.json and braid.json; a GGUF file holds what it has of these in itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file

from runtime.errors import CheckpointError
from runtime.model.architecture import parse_config, read_described
from runtime.model.assembly import DTYPES, assemble
from runtime.model.chat_files import ChatTemplates, read_chat_templates
from runtime.model.configuration import ModelConfig
from runtime.model.directories import (
    BRAID,
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    shipped_checkpoints,
    shipped_directory,
    tokenizer_file,
)
from runtime.model.families.causal import CausalConfig
from runtime.model.families.raven import RavenConfig
from runtime.model.families.wrapped import text_tensors
from runtime.model.files import replace_file, replacing
from runtime.model.generation_file import Generation, inside_vocabulary, read_generation
from runtime.model.gguf_file import GgufFile, open_gguf
from runtime.model.gguf_header import is_gguf
from runtime.model.parameters import derived_names, published_weights
from runtime.model.published import holds, is_directory, read_bytes
from runtime.model.served import ServedModel
from runtime.model.tokenizer import Tokenizer
from runtime.model.transformer import Transformer
from runtime.model.weights import WEIGHTS, StoredWeights, find_tensors, find_weights, is_pickle, refuse_pickle
from runtime.model.wide.configuration import WideConfig
from runtime.model.wide.loading import load_wide

HUGINN_STOPS = (65504, 65505, 65508)
"""begin_text, end_text and end_turn: Huginn's reference stops at them whatever generation_config.json says."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Description:
    """What a checkpoint directory, or a GGUF file, holds beside its weights."""

    path: Path
    config: ModelConfig | WideConfig
    tokenizer: Tokenizer | None
    """Of tokenizer.json, or of the shipped checkpoint that braid.json names; None without either: prompts are token
    ids then."""
    chat_templates: ChatTemplates | None
    """How messages are written; None where the directory has no chat template."""
    generation: Generation
    """How its makers sample from it."""
    stop_tokens: tuple[int, ...]
    """Ascending ids that end a text: eos_token_id of generation_config.json, or else of config.json, and for a Raven
    those of `HUGINN_STOPS` inside the vocabulary."""
    braid: bytes | None
    """Content of braid.json as it is: the protocol, the default policy, and whose tokenizer it has if it has none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedCheckpoint(Description):
    """What a checkpoint holds, for an engine: a native model, or one of transformers."""

    model: ServedModel
    """In evaluation mode; parameters in the dtype and on the device asked for, a rotary table in float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint(ServedCheckpoint):
    """What a checkpoint of a native family holds."""

    config: ModelConfig
    model: Transformer


def resolve(name_or_path: str | Path) -> Path:
    """The directory or GGUF file of a checkpoint: a shipped one by its name, any other by its path.

    A string that is a shipped name means that checkpoint; write "./name" for a directory of the same name. A `Path`
    means what is at that path first. Raises `CheckpointError` if it is none of them.
    """
    if isinstance(name_or_path, str) and name_or_path in shipped_checkpoints():
        return shipped_directory() / name_or_path
    try:
        path = Path(name_or_path).expanduser()
    except RuntimeError as error:
        raise CheckpointError(f"{name_or_path}: {error} Write the whole path of the checkpoint directory.") from error
    if is_directory(path):
        return path
    if isinstance(name_or_path, Path) and str(path) in shipped_checkpoints():
        return shipped_directory() / path
    if is_gguf(path):
        return path
    if holds(path):
        if is_pickle(path):
            raise CheckpointError(refuse_pickle(path))
        raise CheckpointError(
            f"{path}: is a file; expected a checkpoint directory, with {CONFIG} and {WEIGHTS} in it, or a GGUF file."
        )
    raise CheckpointError(
        f"{name_or_path}: neither a directory nor a shipped checkpoint (shipped: "
        f"{', '.join(shipped_checkpoints()) or 'none'}). Nothing is downloaded: expected a directory with {CONFIG} "
        f"and {WEIGHTS}, or a GGUF file."
    )


def load_checkpoint(
    name_or_path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Loads a checkpoint of a native family by shipped name, directory or GGUF file, converted to `dtype` on `device`.

    A Raven's rotary table stays float32 and is computed where the file has none. Raises `CheckpointError`, naming the
    file, the key and what was expected, for anything that is not a complete checkpoint of such a family, and
    `ValueError` for a dtype other than float32 and bfloat16.
    """
    loaded = _load(name_or_path, dtype, device, is_native=True)
    assert isinstance(loaded, Checkpoint)
    return loaded


def load_served(
    name_or_path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> ServedCheckpoint:
    """Loads any checkpoint that an engine can run: as `load_checkpoint` does, or else a model of transformers."""
    return _load(name_or_path, dtype, device, is_native=False)


def _load(
    name_or_path: str | Path, dtype: torch.dtype, device: torch.device | str, *, is_native: bool
) -> ServedCheckpoint:
    """A checkpoint with its model; with `is_native`, one of a native family or none."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}; supported are {', '.join(map(str, DTYPES))}.")
    description, find = _described(resolve(name_or_path))
    config, place = description.config, torch.device(device)
    if not isinstance(config, WideConfig):
        return Checkpoint(**vars(description), model=assemble(config, find(), dtype, place))
    if is_native:
        raise CheckpointError(
            f"{description.path}: model_type {config.family!r} has no native family. An engine runs it; train and "
            "convert it by transformers."
        )
    return ServedCheckpoint(**vars(description), model=load_wide(config, find(), dtype, place))


def describe(name_or_path: str | Path) -> Description:
    """Everything of a checkpoint but its weights, which are not looked at. Raises `CheckpointError`."""
    return _described(resolve(name_or_path))[0]


def save_checkpoint(
    directory: Path,
    model: Transformer,
    *,
    tokenizer: Tokenizer | None = None,
    eos: Collection[int] = (),
    braid: bytes | None = None,
) -> None:
    """Writes a model so that `load_checkpoint` and the reference implementation read it back the same.

    Makes the directory if need be. Each file is replaced in one move, the weights first; files that are not part of
    the call (a tokenizer.json where none is given) stay as they are. Raises `ValueError` for a model whose dtype is
    neither float32 nor bfloat16.
    """
    dtype = model.dtype
    if dtype not in DTYPES:
        raise ValueError(f"the model's dtype is {dtype}; supported are {', '.join(map(str, DTYPES))}.")
    # Copies, because safetensors refuses tensors that share memory, as the parts of a fused matrix do.
    tensors = {name: tensor.cpu().clone() for name, tensor in published_weights(model).items()}
    tensors |= {name: tensors[name].float() for name in derived_names(model)}
    generation = {"_from_model_config": True, **({"eos_token_id": sorted(eos)} if eos else {})}
    directory.mkdir(parents=True, exist_ok=True)
    # The references' loaders want the format in the metadata.
    with replacing(directory / WEIGHTS) as partial:
        save_file(tensors, partial, {"format": "pt"})
    contents = {
        CONFIG: _json(model.config.as_published(DTYPES[dtype])),
        GENERATION_CONFIG: _json(generation),
        TOKENIZER: None if tokenizer is None else tokenizer.to_json().encode(),
        BRAID: braid,
    }
    for name, content in contents.items():
        if content is not None:
            replace_file(directory / name, content)


def fingerprint(model: ServedModel) -> str:
    """32 hexadecimal digits that tell models apart: a digest of configuration, tensor names, dtypes and weights.

    The same for equal models on any device and after saving and loading; another dtype gives another fingerprint.
    """
    digest = blake2b(msgspec.json.encode(model.config.identity, order="deterministic"), digest_size=16)
    for name, tensor in sorted(published_weights(model).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _described(path: Path) -> tuple[Description, Callable[[], StoredWeights]]:
    """What a directory or a GGUF file holds beside its weights, and how these are found."""
    if is_directory(path):
        description = _description_in(path)
        is_part = isinstance(description.config, CausalConfig) and description.config.wrapper is not None
        return description, lambda: text_tensors(find_weights(path)) if is_part else find_weights(path)
    file = open_gguf(path)
    config = parse_config(path, file.config)
    names = [*(tensor.name for tensor in config.published_tensors()), config.head_name]
    return _description_of(file, config), partial(file.weights, names)


def _description_in(directory: Path) -> Description:
    if not holds(directory / CONFIG) and (files := sorted(directory.glob("*.gguf"))):
        raise CheckpointError(f"{directory}: no {CONFIG}, but GGUF files; open one of them, such as {files[0]}.")
    config = read_described(directory / CONFIG, lambda: find_tensors(directory))
    file = tokenizer_file(directory)
    generation = read_generation(directory, config.specification.vocab_size)
    return Description(
        path=directory,
        config=config,
        tokenizer=None if file is None else _fitting(Tokenizer.from_file(file), config, CONFIG),
        chat_templates=read_chat_templates(directory),
        generation=generation,
        stop_tokens=_stop_tokens(generation, config),
        braid=read_bytes(directory / BRAID) if holds(directory / BRAID) else None,
    )


def _description_of(file: GgufFile, config: ModelConfig) -> Description:
    path = file.header.path
    generation = file.generation
    inside_vocabulary(path, generation.stop_tokens, config.specification.vocab_size, path)
    return Description(
        path=path,
        config=config,
        tokenizer=None if file.tokenizer is None else _fitting(Tokenizer.of(file.tokenizer), config, path.name),
        chat_templates=file.chat_templates,
        generation=generation,
        stop_tokens=_stop_tokens(generation, config),
        braid=None,
    )


def _fitting(tokenizer: Tokenizer, config: ModelConfig | WideConfig, file: str) -> Tokenizer:
    """The tokenizer. Raises `CheckpointError` for one with ids that the model described by `file` does not have."""
    vocab_size = config.specification.vocab_size
    if tokenizer.vocab_size > vocab_size:
        token = tokenizer.id_to_token(tokenizer.vocab_size - 1)
        raise CheckpointError(
            f"{tokenizer.where}: token {token!r} has id {tokenizer.vocab_size - 1}; expected ids below {vocab_size}, "
            f"the vocab_size of {file}."
        )
    return tokenizer


def _stop_tokens(generation: Generation, config: ModelConfig | WideConfig) -> tuple[int, ...]:
    always = HUGINN_STOPS if isinstance(config, RavenConfig) else ()
    known = (token for token in always if token < config.specification.vocab_size)
    return tuple(sorted({*generation.stop_tokens, *known}))


def _json(content: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content, order="sorted"), indent=2) + b"\n"
