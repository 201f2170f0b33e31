"""Damaged files: of checkpoints, as directories and as GGUF, and traces; each read and used, or refused, within bounds.

`python -m tests.fuzz --damage --minutes 10` damages one file after another until the time is over.
"""

from __future__ import annotations

import json
import shutil
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, cycle, islice
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from runtime.errors import CheckpointError, PromptError
from runtime.model.checkpoint import load_checkpoint, resolve
from runtime.protocol.declared import read_braid
from tests.damage import bounded, damage
from tests.ggufs import write_gguf
from tests.llamas import make_llama, save_llama
from tests.traces.damage import damaged_trace, recorded, use
from tests.vocabularies import byte_level

SECONDS = 20.0
"""Of computing time, for one file."""

SIZE = 2**30
"""Bytes that may be mapped for one file."""

GGUF = "model.gguf"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "braid.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

_BESIDE: dict[str, object] = {
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "unk_token": "<unknown>",
        "extra_special_tokens": {"marker_token": "<join>"},
        "added_tokens_decoder": {"2": {"content": "2", "lstrip": False, "normalized": False, "special": True}},
        "model_max_length": 64,
        "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
    },
    "special_tokens_map.json": {"eos_token": "<end>", "additional_special_tokens": ["<win>"]},
    "added_tokens.json": {"<join>": 208},
}
"""What may stand beside a tokenizer.json; the words are those of the shipped one."""

Try = Callable[[Random], str]
"""Damages a file, uses it, and says what became of it; raises what is a fault."""


def checkpoints(directory: Path) -> Iterator[Path]:
    """A complete checkpoint of each family."""
    shipped = resolve("countdown")
    raven = directory / "raven"
    shutil.copytree(shipped, raven)
    yield raven
    llama = save_llama(
        directory / "llama", make_llama(vocab_size=load_checkpoint(shipped).model.specification.vocab_size)
    )
    for name in ("braid.json", "tokenizer.json"):
        shutil.copyfile(shipped / name, llama / name)
    for name, content in _BESIDE.items():
        (llama / name).write_text(json.dumps(content))
    # Imports what is not to be counted against the first file.
    _use(llama)
    yield llama


def _use(checkpoint: Path) -> None:
    """Loads a checkpoint, and writes and reads a text with its tokenizer."""
    loaded = load_checkpoint(checkpoint)
    read_braid(loaded)
    if loaded.tokenizer is not None:
        try:
            loaded.tokenizer.decode(loaded.tokenizer.encode("22 26 31 53 -> 27", add_special_tokens=True))
        except PromptError:
            return


def of_checkpoint(whole: Path, path: Path) -> Try:
    """A checkpoint, and the file of it that is damaged."""
    content = path.read_bytes()

    def attempt(random: Random) -> str:
        try:
            damage(path, random)
            with bounded(seconds=SECONDS, size=SIZE):
                _use(whole)
        except CheckpointError as error:
            if str(whole) not in str(error):
                raise AssertionError(f"The refusal of a damaged {path} does not name it.") from error
            return "refused"
        finally:
            path.write_bytes(content)
        return "used"

    return attempt


def of_trace(directory: Path) -> Try:
    payloads, path = recorded(), directory / "damaged.trace"

    def attempt(random: Random) -> str:
        path.write_bytes(damaged_trace(payloads, random))
        with bounded(seconds=SECONDS, size=SIZE), _counting_memory():
            use(path)
        return "used or refused"

    return attempt


@contextmanager
def _counting_memory() -> Iterator[None]:
    """Memory is counted byte by byte, which makes everything else slow."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def damage_files(first: int, most: int | None, minutes: float | None) -> Counter[str]:
    """Damages `most` files, or as many as there is time for; what became of them. Raises the first fault, with the
    command that does it again."""
    counts: Counter[str] = Counter()
    started = time.monotonic()
    with TemporaryDirectory() as name:
        directory = Path(name)
        tries: list[tuple[str, Try]] = [
            (file, of_checkpoint(whole, whole / file))
            for whole in checkpoints(directory)
            for file in FILES
            if (whole / file).exists()
        ]
        gguf = write_gguf(directory / GGUF, make_llama(vocab_size=320), tokenizer=byte_level())
        tries.append((GGUF, of_checkpoint(gguf, gguf)))
        tries += [("trace", of_trace(directory))] * len(tries)
        for seed, (kind, attempt) in zip(islice(count(first), most), cycle(tries), strict=False):
            if minutes is not None and time.monotonic() - started > 60 * minutes:
                break
            try:
                counts[f"{kind}: {attempt(Random(seed))}"] += 1
            except BaseException as error:
                error.add_note(f"A damaged {kind}; again with: python -m tests.fuzz --damage --seed {first}.")
                raise
    return counts
