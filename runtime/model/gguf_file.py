"""A GGUF file as the checkpoint that it is: what the files of a checkpoint directory say, said by one file.

What libraries are needed for is imported when a file is opened: it takes seconds, and `gguf` may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import CheckpointError
from runtime.model.chat_files import ChatTemplates
from runtime.model.generation_file import Generation
from runtime.model.gguf_header import GgufHeader, read_header
from runtime.model.weights import StoredWeights

if TYPE_CHECKING:
    from runtime.model.tokenizer_files import ReadTokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class GgufFile:
    """What a GGUF file holds beside its weights, in the words of transformers."""

    header: GgufHeader
    config: dict[str, Any]
    """The object of a config.json."""
    tokenizer: ReadTokenizer | None
    generation: Generation
    """How its makers sample from it, and the ids that end a text, a turn or a message."""
    chat_templates: ChatTemplates | None

    def weights(self, names: Iterable[str]) -> StoredWeights:
        """Its tensors by transformers' names, of which `names` are the model's; read as float32.

        What is there besides keeps the file's own name, so that it can be refused as what it is.
        """
        from runtime.model.gguf_tensors import find_tensors, read_tensors

        found, header = find_tensors(self.header, names), self.header
        return StoredWeights(
            tensors=found,
            config=header.path,
            file=header.path,
            read=lambda read: read_tensors(header, self.config, {name: found[name] for name in read}),
        )


def open_gguf(path: Path) -> GgufFile:
    """Reads everything of a GGUF file but its weights.

    Raises `CheckpointError`, naming the file, where libraries that it takes are missing, for what is no GGUF file or is
    damaged, and for a model or a tokenizer that transformers does not convert.
    """
    try:
        from runtime.model import gguf_config, gguf_tensors, gguf_tokenizer
    except ImportError as error:
        raise CheckpointError(
            f"{path}: GGUF files are read with gguf and transformers 5.23 or later ({error}). "
            "Install them: pip install 'braid-runtime[gguf]'."
        ) from error
    header = read_header(path, gguf_tensors.BLOCKS)
    parts = header.whole("split.count") or 1
    if parts > 1:
        raise CheckpointError(f"{path}: is one of {parts} parts; join them with llama-gguf-split --merge.")
    return GgufFile(
        header=header,
        config=gguf_config.config_object(header),
        tokenizer=gguf_tokenizer.read_tokenizer(header),
        generation=gguf_config.generation(header),
        chat_templates=gguf_tokenizer.chat_templates(header),
    )
