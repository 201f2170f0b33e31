"""Checkpoint directories in the published format: finding, loading, saving and telling them apart.

A directory holds config.json and model.safetensors (or shards with an index), and may hold generation_config.json,
tokenizer.json and braid.json.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from runtime.errors import CheckpointError
from runtime.model.architecture import Model, ModelConfig, build_model, config_as_published, read_config
from runtime.model.chat_files import ChatTemplates, read_chat_templates
from runtime.model.config import RavenConfig
from runtime.model.directories import (
    BRAID,
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    shipped_checkpoints,
    shipped_directory,
    tokenizer_file,
)
from runtime.model.files import replace_file, replacing
from runtime.model.fitting import check_sizes
from runtime.model.published import holds, is_directory, read_bytes, read_object
from runtime.model.tokenizer import Tokenizer
from runtime.model.weights import (
    INDEX,
    WEIGHTS,
    StoredTensor,
    count_not_finite,
    find_tensors,
    is_pickle,
    listed,
    read_tensors,
    refuse_pickle,
)

HUGINN_STOPS = (65504, 65505, 65508)
"""begin_text, end_text and end_turn: Huginn's reference stops at them whatever generation_config.json says."""

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_HEAD, _ROTARY = "lm_head.weight", "freqs_cis"
_RAVEN_TABLE, _LLAMA_TABLE = "transformer.wte.weight", "model.embed_tokens.weight"

_IGNORED = "rotary_emb.inv_freq"
"""Older versions of transformers stored it for every Llama layer; it follows from the configuration."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Description:
    """What a checkpoint directory holds beside its weights."""

    path: Path
    config: ModelConfig
    tokenizer: Tokenizer | None
    """Of tokenizer.json, or of the shipped checkpoint that braid.json names; None without either: prompts are token
    ids then."""
    chat_templates: ChatTemplates | None
    """How messages are written; None where the directory has no chat template."""
    stop_tokens: tuple[int, ...]
    """Ascending ids that end a text: eos_token_id of generation_config.json, or else of config.json, and for a Raven
    those of `HUGINN_STOPS` inside the vocabulary."""
    braid: bytes | None
    """Content of braid.json as it is: the protocol, the default policy, and whose tokenizer it has if it has none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint(Description):
    """What a checkpoint directory holds."""

    model: Model
    """In evaluation mode; parameters in the dtype and on the device asked for, a rotary table in float32."""


class _Generation(msgspec.Struct):
    """What counts of either file that may say which tokens end a text."""

    eos_token_id: int | list[int] | None = None


def resolve(name_or_path: str | Path) -> Path:
    """The directory of a checkpoint: a shipped one by its name, any other by its path.

    A string that is a shipped name means that checkpoint; write "./name" for a directory of the same name. A `Path`
    means a directory first. Raises `CheckpointError` if it is neither.
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
    if holds(path):
        if is_pickle(path):
            raise CheckpointError(refuse_pickle(path))
        raise CheckpointError(f"{path}: is a file; expected a checkpoint directory, with {CONFIG} and {WEIGHTS} in it.")
    raise CheckpointError(
        f"{name_or_path}: neither a directory nor a shipped checkpoint (shipped: "
        f"{', '.join(shipped_checkpoints()) or 'none'}). Nothing is downloaded: expected a directory with {CONFIG} "
        f"and {WEIGHTS}."
    )


def load_checkpoint(
    name_or_path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Loads a checkpoint by shipped name or directory, with weights converted to `dtype` on `device`.

    A Raven's rotary table stays float32 and is computed where the file has none. Raises `CheckpointError`, naming the
    file, the key and what was expected, for anything that is not a complete checkpoint of a supported architecture,
    and `ValueError` for a dtype other than float32 and bfloat16.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype}; supported are {', '.join(map(str, _DTYPES))}.")
    description = describe(name_or_path)
    model = _load_model(description.path, description.config, dtype, torch.device(device))
    return Checkpoint(**vars(description), model=model)


def describe(name_or_path: str | Path) -> Description:
    """Everything of a checkpoint but its weights, which are not looked at. Raises `CheckpointError`."""
    directory = resolve(name_or_path)
    config = read_config(directory / CONFIG)
    file = tokenizer_file(directory)
    tokenizer = None if file is None else Tokenizer.from_file(file)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        token = tokenizer.id_to_token(tokenizer.vocab_size - 1)
        raise CheckpointError(
            f"{tokenizer.where}: token {token!r} has id {tokenizer.vocab_size - 1}; expected ids below "
            f"{config.vocab_size}, the vocab_size of {CONFIG}."
        )
    return Description(
        path=directory,
        config=config,
        tokenizer=tokenizer,
        chat_templates=read_chat_templates(directory),
        stop_tokens=_stop_tokens(directory, config),
        braid=read_bytes(directory / BRAID) if holds(directory / BRAID) else None,
    )


def save_checkpoint(
    directory: Path,
    model: Model,
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
    dtype = model.lm_head.weight.dtype
    if dtype not in _DTYPES:
        raise ValueError(f"the model's dtype is {dtype}; supported are {', '.join(map(str, _DTYPES))}.")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in _own_tensors(model).items()}
    if _ROTARY in tensors:
        tensors[_ROTARY] = tensors[_ROTARY].float()
    generation = {"_from_model_config": True, **({"eos_token_id": sorted(eos)} if eos else {})}
    directory.mkdir(parents=True, exist_ok=True)
    # The references' loaders want the format in the metadata.
    with replacing(directory / WEIGHTS) as partial:
        save_file(tensors, partial, {"format": "pt"})
    contents = {
        CONFIG: _json(config_as_published(model.config, _DTYPES[dtype])),
        GENERATION_CONFIG: _json(generation),
        TOKENIZER: None if tokenizer is None else tokenizer.to_json().encode(),
        BRAID: braid,
    }
    for name, content in contents.items():
        if content is not None:
            replace_file(directory / name, content)


def fingerprint(model: Model) -> str:
    """32 hexadecimal digits that tell models apart: a digest of configuration, tensor names, dtypes and weights.

    The same for equal models on any device and after saving and loading; another dtype gives another fingerprint.
    """
    digest = blake2b(msgspec.json.encode(model.config, order="deterministic"), digest_size=16)
    for name, tensor in sorted(_own_tensors(model).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _Unallocated(TorchFunctionMode):
    """Makes parameters without memory or values, so that nothing is spent before the files are known to fit.

    Unlike `torch.device("meta")` it leaves computed buffers alone and draws nothing: computing without memory
    imports torch's compiler and sympy, which takes 1.5 s.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.ones, torch.zeros):
            kwargs = {**kwargs, "device": "meta"}
        return None if func is nn.init.normal_ else func(*args, **kwargs)


def _load_model(directory: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Model:
    stored = {name: tensor for name, tensor in find_tensors(directory).items() if not name.endswith(_IGNORED)}
    check_sizes(directory / CONFIG, config, stored)
    with _Unallocated():
        model = build_model(config)
    _check_names_and_shapes(directory, config, stored, model)
    tensors = {name: _converted(name, stored[name], tensor, dtype, device) for name, tensor in read_tensors(stored)}
    if isinstance(config, RavenConfig) and _ROTARY not in tensors:
        tensors[_ROTARY] = model.get_buffer(_ROTARY).to(device)
    if config.tie_embeddings:
        table = _table(config)
        if _HEAD not in stored:
            tensors[_HEAD] = tensors[table]
        elif not torch.equal(tensors[_HEAD], tensors[table]):
            raise CheckpointError(
                f"{stored[_HEAD].file}: {_HEAD} differs from {table}; expected equal tensors, or no {_HEAD}, because "
                f"{'tie_embeddings' if isinstance(config, RavenConfig) else 'tie_word_embeddings'} is true in "
                f"{directory / CONFIG}."
            )
    model.load_state_dict(tensors, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.get_parameter(_table(config))
    return model.eval()


def _converted(name: str, stored: StoredTensor, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy, as the model holds it."""
    converted = tensor.to(device, torch.float32 if name == _ROTARY else dtype, copy=True)
    if wrong := count_not_finite(converted):
        raise CheckpointError(
            f"{stored.file}: {name} has {wrong} numbers that are not finite in {converted.dtype}; expected finite ones."
        )
    return converted


def _check_names_and_shapes(
    directory: Path, config: ModelConfig, stored: dict[str, StoredTensor], model: Model
) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    optional = {_ROTARY, _HEAD} if config.tie_embeddings else {_ROTARY}
    where = directory / (WEIGHTS if holds(directory / WEIGHTS) else INDEX)
    if missing := [name for name in expected if name not in stored and name not in optional]:
        raise CheckpointError(
            f"{where}: no tensor {listed(missing)}; expected shape {list(expected[missing[0]])} for "
            f"{missing[0]}, from {CONFIG}."
        )
    if unexpected := [name for name in stored if name not in expected]:
        raise CheckpointError(
            f"{stored[unexpected[0]].file}: unexpected tensor {listed(unexpected)}; {CONFIG} describes a model "
            "without it."
        )
    for name, tensor in stored.items():
        if tensor.shape != expected[name]:
            raise CheckpointError(
                f"{tensor.file}: {name} has shape {list(tensor.shape)}; expected {list(expected[name])}, from {CONFIG}."
            )


def _stop_tokens(directory: Path, config: ModelConfig) -> tuple[int, ...]:
    path, declared = _declared_stops(directory)
    for token in declared:
        if not 0 <= token < config.vocab_size:
            raise CheckpointError(
                f"{path}: eos_token_id has {token}; expected ids from 0 to {config.vocab_size - 1}, the vocabulary of "
                f"{directory / CONFIG}."
            )
    always = HUGINN_STOPS if isinstance(config, RavenConfig) else ()
    return tuple(sorted({*declared, *(token for token in always if token < config.vocab_size)}))


def _declared_stops(directory: Path) -> tuple[Path, list[int]]:
    """The file that says which tokens end a text, the first of those that may, and what it says."""
    for path in (directory / GENERATION_CONFIG, directory / CONFIG):
        if not holds(path):
            continue
        try:
            eos = msgspec.convert(read_object(path), _Generation).eos_token_id
        except msgspec.ValidationError as error:
            raise CheckpointError(f"{path}: {error}.") from error
        if eos is not None:
            return path, [eos] if isinstance(eos, int) else eos
    return directory / CONFIG, []


def _own_tensors(model: Model) -> dict[str, Tensor]:
    """Parameters and buffers by published name; a tied head is not a tensor of its own."""
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del tensors[_HEAD]
    return tensors


def _table(config: ModelConfig) -> str:
    """Name of the embedding table."""
    return _RAVEN_TABLE if isinstance(config, RavenConfig) else _LLAMA_TABLE


def _json(content: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content, order="sorted"), indent=2) + b"\n"
