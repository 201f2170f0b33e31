"""The sides that run here, on tiny models. How fast anything is, is not tested."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import driving, models
from benchmarks.peers import engine_side, huginn_reference, transformers_batching, transformers_generate
from benchmarks.peers.answering import Exits, Job, Load
from benchmarks.peers.subjects import SUBJECTS
from runtime.model.checkpoint import save_checkpoint
from tests.peers.sides import job

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the comparison needs Linux")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a Llama whose greedy tokens vary."""
    directory = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    model.save_pretrained(directory / "checkpoint")
    return directory


def test_sides_that_run_here_say_the_same(llama: Path) -> None:
    prompts = [list(prompt) for prompt in driving.prompts(40, 3, 8)]
    loads: dict[str, Load] = {
        "engine": engine_side.load,
        "generate": transformers_generate.load,
        "generate_batch": transformers_batching.load,
    }
    said = {}
    for name, load in loads.items():
        with load(job(llama, prompt=8, tokens=12)) as loaded:
            said[name] = [loaded.answer(prompts).tokens, loaded.answer(prompts[:1]).tokens]
            assert "torch" in loaded.versions
    assert said["engine"] == said["generate"] == said["generate_batch"]
    several, alone = said["engine"]
    assert alone == several[:1]
    assert len({tuple(tokens) for tokens in several}) == 3, "the model says the same whatever it is asked"


def test_exit_depths_spread_on_the_model_for_huginn(tmp_path: Path) -> None:
    model = models.uneven_with_prelude()
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(17.6e6, rel=0.005)
    save_checkpoint(tmp_path / "checkpoint", model)
    subject = SUBJECTS["huginn"]
    prompts = [list(prompt) for prompt in driving.prompts(subject.vocab, 3, 16)]
    with engine_side.load(job(tmp_path, prompt=16, tokens=8, exits=subject.exits)) as loaded:
        depths = loaded.answer(prompts).depths
    found = {depth for one in depths for depth in one}
    assert [len(one) for one in depths] == [8] * 3
    assert max(found) - min(found) >= 5
    assert len(found) >= 4


def test_clone_without_the_model_says_so(tmp_path: Path) -> None:
    exits = Exits(threshold=0.1, most=4)
    without = huginn_reference.load(job(tmp_path, exits=exits))
    with pytest.raises(ValueError, match="needs a clone"):
        without.__enter__()
    empty = Job(**{**vars(job(tmp_path, exits=exits)), "clone": str(tmp_path)})
    with pytest.raises(ImportError, match=r"no recpre/raven_modeling_minimal\.py in"):
        huginn_reference.load(empty).__enter__()
