"""GGUF files through the whole engine: tokens, texts and logits are those of transformers' `from_pretrained`."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
import torch
from gguf import GGMLQuantizationType as Encoding
from transformers import AutoModelForCausalLM, AutoTokenizer

from runtime import CheckpointError, Engine, Sampling
from runtime.model.architecture import CAUSAL
from runtime.model.checkpoint import describe, fingerprint, load_checkpoint, save_checkpoint
from runtime.model.parameters import published_weights
from tests.damage import bounded, damage
from tests.ggufs import FAMILIES, OWN_FAMILIES, make, write_gguf
from tests.llamas import make_llama
from tests.vocabularies import LINES, byte_level

NEW = 24

Backend = Literal["auto", "torch", "native"]
BACKENDS: tuple[Backend, ...] = ("torch", "auto")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with grouped queries, a vocabulary and a chat template; its matrices are written as Q8_0."""
    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}
    return write_gguf(
        tmp_path_factory.mktemp("gguf") / "model.gguf",
        make_llama(max_position_embeddings=128, **sizes),
        encoding=Encoding.Q8_0,
        tokenizer=byte_level(),
        metadata={
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.chat_template": "{% for message in messages %}<s>{{ message.content }}</s>{% endfor %}",
        },
    )


@pytest.fixture(scope="module")
def reference(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True
    )


def prompts() -> list[list[int]]:
    chance = random.Random(5)
    return [[chance.randrange(2, 290) for _ in range(length)] for length in (1, 8, 21, 60)]


def generated(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)[0].tolist()


async def said(path: Path, backend: Backend, begun: Sequence[str | list[int]]) -> list[list[int]]:
    """Contexts that begin with each of some prompts, with the greedy tokens that follow; all at once."""
    found: dict[int, list[int]] = {}

    async def say(engine: Engine, number: int) -> None:
        async with engine.thread(begun[number]) as thread:
            await thread.generate(max_tokens=NEW)
            found[number] = list(thread.tokens)

    async with Engine.open(path, backend=backend) as engine, anyio.create_task_group() as group:
        for number in range(len(begun)):
            group.start_soon(say, engine, number)
    return [found[number] for number in range(len(begun))]


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_tokens_are_those_of_transformers(path: Path, reference: Any, backend: Backend) -> None:
    """Of prompts that are token ids and of texts, which begin with the token that the file puts first."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    begun: list[str | list[int]] = [*prompts(), *LINES]
    expected = [generated(reference, tokenizer.encode(each) if isinstance(each, str) else each) for each in begun]
    assert anyio.run(said, path, backend, begun) == expected


@pytest.mark.parametrize("family", [family for family in FAMILIES if family in CAUSAL])
def test_every_native_family_is_read(tmp_path: Path, family: str) -> None:
    path = write_gguf(
        tmp_path / "model.gguf",
        make(family, **FAMILIES[family]),
        encoding=Encoding.Q8_0,
        metadata={f"tokenizer.ggml.{kind}_token_id": 0 for kind in ("padding", "bos", "eos")},
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    expected = [generated(model, prompt) for prompt in prompts()]
    for backend in BACKENDS:
        assert anyio.run(said, path, backend, prompts()) == expected, backend


@pytest.mark.parametrize("family", OWN_FAMILIES)
def test_families_that_transformers_does_not_convert(tmp_path: Path, family: str) -> None:
    """The model itself is the reference: what llama.cpp's converter writes of it is undone."""
    model = make(family, **OWN_FAMILIES[family])
    ids = {f"tokenizer.ggml.{kind}_token_id": 0 for kind in ("bos", "eos")}
    path = write_gguf(tmp_path / "model.gguf", model, metadata=ids)
    loaded = load_checkpoint(path)
    assert loaded.config.family == family
    own = published_weights(loaded.model)
    for name, tensor in model.state_dict().items():
        # One was added to norms, and taken away again.
        torch.testing.assert_close(own.get(name, own["model.embed_tokens.weight"]), tensor, atol=1e-6, rtol=0)
    expected = [generated(model, prompt) for prompt in prompts()]
    for backend in BACKENDS:
        assert anyio.run(said, path, backend, prompts()) == expected, backend


def test_another_model_of_an_architecture_is_refused(tmp_path: Path) -> None:
    """OLMo 3 is written as OLMo 2 with windows."""
    path = write_gguf(tmp_path / "model.gguf", make("olmo2"), metadata={"olmo2.attention.sliding_window": 16})
    with pytest.raises(CheckpointError, match=r"olmo2\.attention\.sliding_window is given"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("given", "sampling", "ignored"),
    [
        ({}, Sampling(), ()),
        ({"temp": 0.7, "top_p": 0.9, "top_k": 40}, Sampling(temperature=0.7, top_p=0.9, top_k=40), ()),
        ({"min_p": 0.125, "top_k": 0, "top_p": 1.0}, Sampling(temperature=1.0, min_p=0.125), ()),
        ({"temp": 0.0, "top_k": 5}, Sampling(), ()),
        ({"penalty_repeat": 1.25, "penalty_last_n": -1}, Sampling(repetition_penalty=1.25), ()),
        ({"penalty_repeat": 1.25, "penalty_last_n": 64}, Sampling(), ("penalty_repeat",)),
        ({"mirostat": 2, "xtc_probability": 0.5, "penalty_repeat": 1.0}, Sampling(), ("mirostat", "xtc_probability")),
    ],
)
def test_sampling_that_a_file_asks_for_is_the_default(
    tmp_path: Path, given: dict[str, Any], sampling: Sampling, ignored: tuple[str, ...]
) -> None:
    metadata = {f"general.sampling.{key}": value for key, value in given.items()}
    found = describe(write_gguf(tmp_path / "model.gguf", make(), metadata=metadata)).generation
    expected = {name: pytest.approx(getattr(sampling, name)) for name in ("temperature", "top_p", "min_p")}
    assert {name: getattr(found.sampling, name) for name in expected} == expected
    assert found.sampling.top_k == sampling.top_k
    assert found.sampling.repetition_penalty == sampling.repetition_penalty
    assert found.ignored == tuple(f"general.sampling.{key}" for key in ignored)


@pytest.mark.parametrize("given", [{"temp": "warm"}, {"temp": -1.0}, {"top_p": 3.0}, {"top_k": True}])
def test_sampling_that_cannot_be_is_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    metadata = {f"general.sampling.{key}": value for key, value in given.items()}
    with pytest.raises(CheckpointError, match=r"model\.gguf: general\.sampling: "):
        describe(write_gguf(tmp_path / "model.gguf", make(), metadata=metadata))


@torch.no_grad()
def test_logits_are_those_of_transformers(path: Path, reference: Any) -> None:
    model = load_checkpoint(path).model
    tokens = torch.tensor([prompts()[-1]])
    rotation = model.rotation(torch.arange(tokens.shape[-1]))
    embedded = model.prelude(tokens, rotation, model.attend_causally)
    state = model.iterate(torch.zeros_like(embedded), embedded, rotation, model.attend_causally)
    logits = model.coda(state, rotation, model.attend_causally)
    torch.testing.assert_close(logits, reference(tokens).logits, atol=2e-4, rtol=2e-4)


def test_a_file_saved_as_a_directory_is_the_same_checkpoint(path: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(path)
    save_checkpoint(tmp_path / "model", loaded.model, tokenizer=loaded.tokenizer, eos=loaded.stop_tokens)
    again = load_checkpoint(tmp_path / "model")
    assert fingerprint(again.model) == fingerprint(loaded.model)
    assert again.stop_tokens == loaded.stop_tokens
    assert again.tokenizer is not None
    assert loaded.tokenizer is not None
    assert again.tokenizer.encode(LINES[0]) == loaded.tokenizer.encode(LINES[0])


def test_weights_are_converted_to_the_dtype_asked_for(path: Path) -> None:
    wide, narrow = load_checkpoint(path).model, load_checkpoint(path, dtype=torch.bfloat16).model
    for name, parameter in narrow.named_parameters():
        assert torch.equal(parameter, wide.get_parameter(name).bfloat16())


def test_a_file_without_its_ending_is_known_by_its_content(path: Path, tmp_path: Path) -> None:
    shutil.copyfile(path, tmp_path / "sha256-0")
    assert describe(tmp_path / "sha256-0").config.specification == describe(path).config.specification


def test_a_directory_of_gguf_files_is_told_which_to_open(path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        describe(path.parent)
    assert str(raised.value).endswith(f"open one of them, such as {path}.")


@pytest.mark.parametrize(
    ("tensors", "part"),
    [
        ({"blk.0.attn_q.bias": torch.zeros(64).numpy()}, "unexpected tensor blk.0.attn_q.bias"),
        ({"blk.2.attn_q.weight": torch.zeros(64, 64).numpy()}, "unexpected tensor blk.2.attn_q.weight"),
    ],
)
def test_tensors_of_another_model_are_refused(tmp_path: Path, tensors: Any, part: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", make_llama(), tensors=tensors)
    with pytest.raises(CheckpointError, match=part):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("llama.block_count", 1, "unexpected tensor blk.1"),
        ("llama.block_count", 2**31, "llama.block_count"),
        ("llama.block_count", 3, "no tensor model.layers.2"),
        ("llama.embedding_length", 2**31 - 8, "too large"),
        ("llama.feed_forward_length", 2**32 - 1, "intermediate_size"),
        ("llama.attention.head_count", 0, "no configuration"),
        ("llama.attention.head_count_kv", 3, "num_key_value_heads"),
        ("llama.context_length", 2**31 - 1, "table of rotations"),
        ("llama.vocab_size", 41, "has shape [40, 32]; expected [41, 32]"),
        ("tokenizer.ggml.eos_token_id", 40, "eos_token_id has 40"),
    ],
)
def test_metadata_of_another_model_is_refused(tmp_path: Path, key: str, value: int, part: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", make_llama(num_key_value_heads=2), metadata={key: value})
    with bounded(seconds=20, size=2**30), pytest.raises(CheckpointError) as raised:
        load_checkpoint(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert part in str(raised.value)


def test_damaged_files_load_or_are_named(path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "model.gguf"
    for seed in range(120):
        shutil.copyfile(path, damaged)
        damage(damaged, random.Random(seed))
        message = str(damaged)
        with bounded(seconds=20, size=2**30):
            try:
                load_checkpoint(damaged)
            except CheckpointError as error:
                message = str(error)
        assert str(damaged) in message


def test_what_is_missing_is_told_with_what_to_install(path: Path) -> None:
    program = f"""
import sys
sys.modules["gguf"] = None
from runtime.model import describe
describe({str(path)!r})
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stderr
    assert f"{path}: GGUF files are read with gguf" in told
    assert "pip install 'braid-runtime[gguf]'" in told
