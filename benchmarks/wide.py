"""Transformers' own code in the engine against the engine's: one model, called a Llama and called a Seed-OSS."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import driving
from benchmarks.result import Cell, Result, Spread
from benchmarks.timing import in_turn, ratios
from policies import Fixed
from runtime import EngineSettings, Sampling
from runtime.device.build import build_loop
from runtime.device.loop import DeviceLoop
from runtime.link import Finished, ThreadPath
from runtime.model import load_served

SEED = {
    "model_type": "seed_oss",
    "architectures": ["SeedOssForCausalLM"],
    "attention_bias": False,
    "attention_out_bias": False,
}
"""What makes of a Llama's `config.json` that of a model of the same tensors and arithmetic without a native family."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    threads: tuple[int, ...] = (1, 8, 32)
    width: int = 256
    layers: int = 4
    prompt: int = 32
    tokens: int = 32
    """Sampled by each thread."""


def measure(size: Size, rounds: int) -> Result:
    with TemporaryDirectory() as directory:
        native, wide = _saved(Path(directory), size)
        loops = {
            "native": _loop(native, "native"),
            "PyTorch": _loop(native, "torch"),
            "wide": _loop(wide, "auto"),
        }
    rows = tuple(_compare(loops, size, threads, rounds) for threads in size.threads)
    for loop in loops.values():
        loop.close()
    return Result(
        name="wide",
        title="a native family against transformers' own code",
        columns=(
            "threads",
            "PyTorch / wide, tokens/s",
            "native, tokens/s",
            "PyTorch, tokens/s",
            "wide, tokens/s",
            "equal answers",
        ),
        rows=rows,
    )


def _saved(directory: Path, size: Size) -> tuple[Path, Path]:
    """One model under both names."""
    native, wide = directory / "native", directory / "wide"
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=size.width // 8,
        max_position_embeddings=256,
        initializer_range=0.1,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(native)
    shutil.copytree(native, wide)
    written = wide / "config.json"
    written.write_text(json.dumps({**json.loads(written.read_text()), **SEED}))
    return native, wide


def _loop(directory: Path, backend: str) -> DeviceLoop:
    settings = msgspec.convert({"device": "cpu", "backend": backend, "kv_cache_bytes": 2**26}, EngineSettings)
    return build_loop(load_served(directory).model, settings, Fixed())


def _compare(loops: Mapping[str, DeviceLoop], size: Size, threads: int, rounds: int) -> tuple[Cell, ...]:
    given = driving.prompts(512, threads, size.prompt)
    answers: dict[str, dict[ThreadPath, Finished]] = {}

    def side(which: str, loop: DeviceLoop) -> float:
        seconds, answers[which] = driving.answer_all(loop, given, Fixed(), size.tokens, Sampling())
        return seconds

    seconds = in_turn({which: partial(side, which, loop) for which, loop in loops.items()}, rounds)
    equal = sum(answers["wide"][path].tokens == answers["PyTorch"][path].tokens for path in answers["wide"])
    count = threads * size.tokens
    return (
        threads,
        Spread.of(ratios(seconds["wide"], seconds["PyTorch"])),
        *(Spread.of(count / taken for taken in seconds[which]) for which in ("native", "PyTorch", "wide")),
        f"{equal} of {threads}",
    )
