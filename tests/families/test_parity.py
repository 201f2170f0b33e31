"""Every family runs as transformers runs it: logits, greedy tokens, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from policies import Fixed
from runtime.backend.native.backend import NativeBackend
from runtime.device.settings import EngineSettings
from runtime.link.commands import Extend, Generate, OpenThread
from runtime.link.sampling import Sampling
from runtime.model.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo
from tests.families.checkpoints import ALL, BACKENDS, FIRST, VARIANTS, make, save

PROMPT, NEW = 20, 16
"""Longer together than any window, and than the original contexts of what is scaled."""

SETTINGS: dict[str, Any] = {"num_pages": 40, "page_size": 4, "max_in_flight": 16, "prefill_chunk": 8, "cpu_threads": 1}


@torch.no_grad()
def run_dense(model: Transformer, tokens: Tensor) -> Tensor:
    rotation = model.rotation(torch.arange(tokens.shape[-1]))
    embedded = model.prelude(tokens, rotation, model.attend_causally)
    state = model.iterate(model.first_state(embedded), embedded, rotation, model.attend_causally)
    return model.coda(state, rotation, model.attend_causally)


@torch.no_grad()
def logits_of(model: Any, tokens: Tensor) -> Tensor:
    logits: Tensor = model(tokens).logits
    return logits


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("family", "variant"), ALL)
def test_logits_are_those_of_transformers(tmp_path: Path, family: str, variant: str) -> None:
    reference = make(family, variant)
    loaded = load_checkpoint(save(tmp_path, reference, shards=variant == "plain"))
    tokens = random_tokens(2, loaded.config.specification.max_context)
    assert loaded.config.family == family
    expected = logits_of(reference, tokens)
    assert expected.std() > 0.3, "logits are to differ enough for a comparison"
    torch.testing.assert_close(run_dense(loaded.model, tokens), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "variant"), ALL)
def test_what_is_saved_is_read_back_by_both(tmp_path: Path, family: str, variant: str) -> None:
    reference, tokens = make(family, variant), random_tokens(1, 40)
    model = load_checkpoint(save(tmp_path / "theirs", reference)).model
    save_checkpoint(tmp_path / "ours", model)
    again = load_checkpoint(tmp_path / "ours")
    assert again.config == model.config
    assert fingerprint(again.model) == fingerprint(model)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    torch.testing.assert_close(logits_of(theirs, tokens), logits_of(reference, tokens))


@pytest.mark.parametrize(("family", "variant"), ALL)
def test_greedy_tokens_are_those_of_transformers(tmp_path: Path, family: str, variant: str) -> None:
    """Two threads in one batch, in small pages, past windows and original contexts; on each backend."""
    reference: Any = make(family, variant)
    model = load_checkpoint(save(tmp_path, reference)).model
    prompts = [random_tokens(1, PROMPT).tolist()[0], random_tokens(1, 3).tolist()[0]]
    # Without its cache, in which LongRoPE would leave keys as short contexts turn them.
    expected = [
        reference.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, use_cache=False)[0].tolist()
        for prompt in prompts
    ]
    new = {token for prompt, tokens in zip(prompts, expected, strict=True) for token in tokens[len(prompt) :]}
    assert len(new) > 2, "tokens are to vary"
    for backend in BACKENDS:
        solo = Solo.over(model, EngineSettings(**{**SETTINGS, "backend": backend}), Fixed(1))
        for index, prompt in enumerate(prompts):
            path = (index,)
            solo.send(OpenThread(thread=path, seed=0, depth=Fixed(1)), Extend(path, tuple(prompt)))
            solo.send(Generate(thread=path, max_tokens=NEW, sampling=Sampling()))
        solo.run()
        assert [list(solo.core.threads[(index,)].tokens) for index in range(len(prompts))] == expected, backend


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_scaled_embeddings_are_bit_for_bit_those_of_transformers(tmp_path: Path, family: str) -> None:
    """In bfloat16, in which the square root of a width is another number; the native backend does not round them."""
    reference: Any = make(family, next(iter(VARIANTS[family])))
    model = load_checkpoint(save(tmp_path, reference.to(torch.bfloat16)), dtype=torch.bfloat16).model
    tokens = torch.arange(40)
    expected = reference.model.embed_tokens(tokens)
    nothing = model.rotation(tokens)
    assert torch.equal(model.prelude(tokens, nothing, model.attend_causally), expected)
    solo = Solo.over(model, EngineSettings(**SETTINGS, backend="native", dtype="bfloat16"), Fixed(1))
    solo.send(OpenThread(thread=(0,), seed=0, depth=Fixed(1)), Extend((0,), (7,)))
    solo.send(Generate(thread=(0,), max_tokens=1, sampling=Sampling()))
    solo.core.step()
    assert isinstance(solo.backend, NativeBackend)
    embedded = torch.from_numpy(solo.backend._buffers.lanes.embedded)
    assert (embedded.to(torch.bfloat16) == expected[7]).all(-1).any()


@pytest.mark.parametrize(("family", "variant"), FIRST)
def test_half_precision_is_close(tmp_path: Path, family: str, variant: str) -> None:
    tokens = random_tokens(1, 40)
    reference: Any = make(family, variant)
    directory = save(tmp_path, reference.to(torch.bfloat16))
    model = load_checkpoint(directory, dtype=torch.bfloat16).model
    assert model.dtype is torch.bfloat16
    exact = run_dense(load_checkpoint(directory).model, tokens)
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="eager").eval()
    off, theirs_off = (
        (logits.float() - exact).pow(2).mean().sqrt()
        for logits in (run_dense(model, tokens), logits_of(theirs, tokens))
    )
    assert off < 0.15 * exact.std()
    assert off < 2 * theirs_off, "rounding costs no more than it does there"
