"""Around models that transformers runs: settings, weights, traces, and a process that trains with transformers too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from anyio import to_thread
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from policies import Fixed, LatentDiff, Policy
from runtime import Engine
from runtime.backend.torch.triton_attention import has_kernel
from runtime.device.build import build_loop
from runtime.device.settings import EngineSettings
from runtime.link.commands import Extend, Generate, OpenThread
from runtime.link.sampling import Sampling
from runtime.model.checkpoint import fingerprint, load_served
from runtime.model.wide.interface import RUNNING
from runtime.model.wide.model import WideModel
from runtime.model.wide.probing import WholeCache
from tests.engine.solo import Solo
from tests.families.test_wide import FIRST, REST, generated, prompts, said
from tests.families.wides import make, save
from traces import read
from traces.__main__ import main as traces_command

SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 256, "max_in_flight": 32, "prefill_chunk": 8}


@pytest.mark.parametrize(
    "settings",
    [
        {"num_pages": 256},
        {"num_pages": 256, "deterministic": True},
        {"num_pages": 256, "max_in_flight": 3, "prefill_chunk": 2},
        {"num_pages": 256, "reuse_prefixes": False, "page_size": 7},
        {"num_pages": 256, "most_iterations": 3, "iteration_slots": 1},
    ],
    ids=lambda settings: " ".join(f"{name}={value}" for name, value in settings.items()),
)
def test_settings_change_nothing_that_is_said(tmp_path: Path, settings: dict[str, Any]) -> None:
    reference = make("gpt_oss")
    reference.save_pretrained(tmp_path)
    expected = [generated(reference, prompt) for prompt in prompts()]
    parents, children, _ = anyio.run(lambda: said(tmp_path, **settings))
    assert (parents, children) == (expected, expected)


@pytest.mark.parametrize("model_type", ["cohere2", "gpt_oss", "mixtral", "deepseek_v3"])
def test_logits_in_bfloat16_are_those_of_transformers(tmp_path: Path, model_type: str) -> None:
    save(tmp_path, model_type)
    model = load_served(tmp_path, dtype=torch.bfloat16).model
    assert isinstance(model, WideModel)
    reference: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    tokens = torch.tensor(prompts()[-1])
    with torch.inference_mode():
        expected = reference(tokens[None]).logits[0].float()
    own = dense_logits(model, tokens)
    # Rounding turns some close choices of experts, and what such a token is given is another matter.
    assert (own - expected).abs().amax(1).median() < 0.05 * expected.abs().max()


def dense_logits(model: WideModel, tokens: Tensor) -> Tensor:
    memory = WholeCache([model.specification.attention(layer) for layer in range(len(model.specification.layers))])
    rotation = model.rotation(torch.arange(len(tokens)))
    with torch.inference_mode():
        return model.coda(model.prelude(tokens, rotation, memory.attend), rotation, memory.attend)


def test_what_attention_does_is_found(tmp_path: Path) -> None:
    own = load_served(save(tmp_path / "oss", "gpt_oss")).model.specification
    rules = [own.attention(layer) for layer in range(len(own.layers))]
    assert [rule.window for rule in rules] == [8, None]
    assert all(rule.sinks is not None and rule.sinks.shape == (4,) for rule in rules)
    assert not has_kernel(own)
    own = load_served(save(tmp_path / "gemma", "vaultgemma")).model.specification
    assert [(own.attention(layer).window, own.attention(layer).softcap) for layer in (0, 1)] == [(8, 5.0), (None, 5.0)]
    own = load_served(save(tmp_path / "deepseek", "deepseek_v3")).model.specification
    assert (own.kv_heads, own.head_dim, own.max_context) == (4, 12, 96)


LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", ["phimoe", "minicpm3"])
def test_contexts_that_outgrow_longropes_first_factors(tmp_path: Path, kind: str, deterministic: bool) -> None:
    """Beside others that do not, in small memory; transformers without its cache turns whole contexts too."""
    pairs = {"phimoe": 4, "minicpm3": 2}[kind]
    factors = {"short_factor": [1.0] * pairs, "long_factor": [3.0] * pairs, "short_mscale": 1.0, "long_mscale": 1.1}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 24, **factors}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    reference = make(kind, rope_parameters=rope, **(experts if kind == "phimoe" else LATENT))
    reference.save_pretrained(tmp_path)
    model = load_served(tmp_path).model
    assert (model.specification.short_context, model.specification.max_context) == (24, 96)
    given: dict[str, Any] = {
        "page_size": 4,
        "num_pages": 26,
        "max_in_flight": 24,
        "prefill_chunk": 8,
        "deterministic": deterministic,
    }
    solo = Solo(build_loop(model, EngineSettings(**given), Fixed(1)))
    contexts = [prompts()[-1][:length] for length in (3, 20, 24, 25, 40)]
    for number, context in enumerate(contexts):
        solo.send(OpenThread(thread=(number,), seed=0, depth=Fixed(1)), Extend((number,), tuple(context)))
        solo.send(Generate(thread=(number,), max_tokens=12, sampling=Sampling()))
    solo.run()
    for number, context in enumerate(contexts):
        ids = torch.tensor([context])
        expected = reference.generate(ids, max_new_tokens=12, do_sample=False, use_cache=False)[0].tolist()
        assert solo.core.threads[number,].tokens.tolist() == expected


@pytest.mark.anyio
async def test_experts_do_not_notice_company_in_deterministic_mode(tmp_path: Path) -> None:
    directory = save(tmp_path, "qwen3_moe")

    async def ask(engine: Engine, prompt: list[int], into: dict[int, object], number: int) -> None:
        async with engine.thread(prompt) as thread:
            answer = await thread.generate(max_tokens=6)
            into[number] = answer.tokens, answer.logprobs

    together: dict[int, object] = {}
    alone: dict[int, object] = {}
    some = prompts()[:5]
    async with Engine.open(directory, deterministic=True, **SIZES) as engine, anyio.create_task_group() as group:
        for number, prompt in enumerate(some):
            group.start_soon(ask, engine, prompt, together, number)
    async with Engine.open(directory, deterministic=True, reuse_prefixes=False, **SIZES) as engine:
        for number, prompt in enumerate(some):
            await ask(engine, prompt, alone, number)
    assert together == alone


@pytest.mark.anyio
async def test_weights_are_replaced_by_their_names_in_transformers(tmp_path: Path) -> None:
    old, new = save(tmp_path / "old", "mixtral"), make("mixtral", seed=1)
    new.save_pretrained(tmp_path / "new")
    prompt = prompts()[4]
    async with Engine.open(old, **SIZES) as engine:
        async with engine.thread(prompt) as thread:
            await thread.generate(max_tokens=4)
        await engine.load_weights(new.state_dict())
        async with engine.thread(prompt) as thread:
            assert (await thread.generate(max_tokens=FIRST + REST)).tokens == generated(new, prompt)
        wrong = {**new.state_dict(), "model.norm.weight": torch.full((32,), float("nan"))}
        with pytest.raises(ValueError, match=r"model\.norm\.weight has 32 numbers"):
            await engine.load_weights(wrong)
    fingerprints = [fingerprint(load_served(tmp_path / name).model) for name in ("old", "new", "old")]
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]


@pytest.mark.anyio
async def test_runs_are_recorded_and_replayed(tmp_path: Path) -> None:
    directory = save(tmp_path / "model", "starcoder2")
    trace = tmp_path / "run.trace"
    policy = Policy(depth=LatentDiff(0.01, max_iterations=3))
    async with (
        Engine.open(directory, trace=trace, policy=policy, **SIZES) as engine,
        engine.thread(prompts()[5]) as root,
    ):
        root.fork(max_tokens=6)
        deep = (await root.generate(max_tokens=12)).tokens
        await root.join(append=False)
    once = Policy(depth=Fixed())
    async with Engine.open(directory, policy=once, **SIZES) as engine, engine.thread(prompts()[5]) as thread:
        assert (await thread.generate(max_tokens=12)).tokens == deep, "iterations repeat nothing"
    assert read(trace).header.fingerprint == fingerprint(load_served(directory).model)
    assert await to_thread.run_sync(traces_command, ["replay", str(trace), "--verify"]) == 0


def trained(steps: int = 3) -> list[Tensor]:
    """Parameters of a model of transformers after some steps of training, and what it generates."""
    model = make("gpt_neox", seed=3).train()
    assert model.config._attn_implementation == "sdpa"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.tensor([prompts()[4], prompts()[4][::-1]])
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return [*(parameter.detach().clone() for parameter in model.parameters()), torch.tensor(generated(model, [1, 2]))]


@pytest.mark.anyio
async def test_training_by_transformers_beside_an_engine_sees_nothing(tmp_path: Path) -> None:
    directory = save(tmp_path, "gpt_neox")
    expected = trained()
    prompt = prompts()[4]
    tables = [dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)]
    found: list[Tensor] = []

    async def train() -> None:
        found.extend(await to_thread.run_sync(trained))

    async with Engine.open(directory, dtype="bfloat16", **SIZES) as engine:
        assert torch.get_default_dtype() == torch.float32
        async with engine.thread(prompt) as thread, anyio.create_task_group() as group:
            group.start_soon(train)
            await thread.generate(max_tokens=40)
        inside = [dict(AttentionInterface._global_mapping), dict(AttentionMaskInterface._global_mapping)]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    for before, after in zip(tables, inside, strict=True):
        assert {name: each for name, each in after.items() if "braid" not in name} == {
            name: each for name, each in before.items() if "braid" not in name
        }


def test_the_attention_of_engines_is_of_no_use_elsewhere(tmp_path: Path) -> None:
    load_served(save(tmp_path, "gpt_neox"))
    model = make("gpt_neox")
    model.set_attn_implementation(RUNNING)
    with pytest.raises(RuntimeError, match="for models that an engine runs"):
        model(torch.tensor([[1, 2, 3]]))
