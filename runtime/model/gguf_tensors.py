"""The tensors of a GGUF file by the names, and in the layout, that transformers gives them.

Which name of the file is which of transformers' is asked of the `gguf` package; what llama.cpp changes in tensors when
it writes them (rows of queries and keys put in another order, one added to norms) is undone by transformers itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.errors import CheckpointError
from runtime.model.gguf_architectures import KINDS, architecture_of
from runtime.model.gguf_header import GgufHeader, TensorPlace
from runtime.model.weights import StoredTensor

BLOCKS: Mapping[int, tuple[int, int]] = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
"""Numbers in a block, and its bytes, by encoding."""

ROTARY_FACTORS = "rope_freqs.weight"
"""What rotary frequencies are divided by; in transformers that is a part of the configuration."""


class GgufTensor(StoredTensor, frozen=True, kw_only=True):
    """A tensor of a GGUF file under transformers' name."""

    place: TensorPlace


def find_tensors(header: GgufHeader, names: Iterable[str]) -> dict[str, GgufTensor]:
    """Every tensor of the file that is one of a model's, by transformers' names.

    `names` are those of the model's tensors. What the file has besides keeps its own name, so that it can be refused
    as what it is.
    """
    published = _published_names(header, names)
    return {
        published.get(place.name, place.name): GgufTensor(file=header.path, shape=place.shape, place=place)
        for place in header.tensors.values()
        if place.name != ROTARY_FACTORS
    }


def read_tensors(
    header: GgufHeader, config: Mapping[str, Any], stored: Mapping[str, GgufTensor]
) -> Iterator[tuple[str, Tensor]]:
    """Reads tensors one after the other, as float32 on the CPU, in transformers' layout.

    `config` is what `config_object` gives. Raises `CheckpointError` for what cannot be read or decoded.
    """
    processor = architecture_of(header).processor(config=dict(config))
    for name, tensor in stored.items():
        numbers = read_numbers(header, tensor.place)
        laid_out = processor.process(numbers, tensor.place.name, tensor_key_mapping={}, parsed_parameters={})
        yield name, torch.from_numpy(laid_out.weights)


def read_numbers(header: GgufHeader, place: TensorPlace) -> NDArray[np.float32]:
    """A tensor's numbers in its shape, as float32.

    Raises `CheckpointError` for an encoding that the `gguf` package cannot decode, and for a file that became shorter.
    """
    encoding = gguf.GGMLQuantizationType(place.encoding)
    try:
        stored = np.fromfile(header.path, np.uint8, place.size, offset=place.start)
    except OSError as error:
        raise CheckpointError(f"{header.path}: cannot be read ({error}). Check its permissions and disk.") from error
    if stored.size != place.size:
        raise CheckpointError(f"{header.path}: became shorter while it was read; copy it again.")
    if not place.size:
        # A damaged file may say so; what needs the tensor refuses its shape.
        return np.zeros(place.shape, np.float32)
    rows = stored.reshape(*place.shape[:-1], -1)
    try:
        # Numbers that are not finite are refused where all weights are looked at.
        with np.errstate(all="ignore"):
            numbers: NDArray[np.float32] = gguf.dequantize(rows, encoding)
    except NotImplementedError as error:
        raise CheckpointError(
            f"{header.path}: {place.name} is written as {encoding.name}, which gguf cannot decode; "
            "quantize the model otherwise."
        ) from error
    return numbers.reshape(place.shape)


def _published_names(header: GgufHeader, names: Iterable[str]) -> dict[str, str]:
    """Transformers' names of tensors by the file's."""
    architecture = architecture_of(header).name
    layers = header.whole(f"{architecture}.block_count") or 0
    known = gguf.get_tensor_name_map(KINDS[architecture], layers)
    published = {}
    for name in names:
        stem, dot, suffix = name.rpartition(".")
        if (own := known.get_name(stem)) is not None:
            published[f"{own}{dot}{suffix}"] = name
    return published
