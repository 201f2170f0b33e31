"""Ouro: dense states, fixed loops and true early exits as the reference and an independent computation have them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from policies import Cosine, DepthPolicy, Fixed, GateExit, LatentDiff, Policy
from runtime import CheckpointError, Engine, PolicyError
from runtime.device.settings import EngineSettings
from runtime.link.commands import Extend, Finished, Generate, OpenThread
from runtime.link.sampling import Sampling
from runtime.model.checkpoint import describe, fingerprint, load_checkpoint, save_checkpoint
from tests.engine.solo import Solo
from tests.engine.tiny import tiny_model
from tests.families.goldens import HOME, Golden, logits_of, run_dense

NAME = "ouro_a"
BACKENDS = ("torch", "native")
PROMPTS = ("p0", "p1", "p2")
LOOPS = 4


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(NAME)


@pytest.mark.parametrize("prompt", PROMPTS)
@torch.no_grad()
def test_every_loop_matches(golden: Golden, prompt: str) -> None:
    _, states = run_dense(golden.model, golden.arrays[f"prompt.{prompt}"], LOOPS)
    torch.testing.assert_close(torch.stack(states), golden.arrays[f"forward.{prompt}.hidden"], atol=1e-4, rtol=0)
    gates = torch.stack([golden.model.gate(state) for state in states])
    torch.testing.assert_close(gates, golden.arrays[f"forward.{prompt}.lambda"], atol=1e-4, rtol=0)
    for loop, state in enumerate(states, 1):
        expected = golden.arrays[f"forward.{prompt}.n{loop}.logits"]
        torch.testing.assert_close(logits_of(golden.model, state), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("loops", range(1, LOOPS + 1))
def test_fixed_loops(golden: Golden, backend: str, prompt: str, loops: int) -> None:
    tag = f"greedy.{prompt}.n{loops}"
    _, finished = golden.answer(Fixed(loops), prompt, backend, golden.new_tokens(prompt, tag))
    golden.check(finished, prompt, tag)


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # A chunk of one token lets every token of a prompt go its own way.
    "early": ({}, {"prefill_chunk": 1}),
    "early.noexitprefill": ({"exit_received": False}, {}),
    "early.group": ({}, {}),
}


# Backends know nothing of the others' prompts: on the slow one, each threshold is tried with one.
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
EARLY = [
    *(("native", threshold, prompt) for threshold in THRESHOLDS for prompt in PROMPTS),
    *(("torch", threshold, "p0") for threshold in THRESHOLDS),
    *(("torch", 0.7, prompt) for prompt in PROMPTS[1:]),
]


@pytest.mark.parametrize(("backend", "threshold", "prompt"), EARLY)
@pytest.mark.parametrize("variant", VARIANTS)
def test_early_exits(golden: Golden, backend: str, prompt: str, threshold: float, variant: str) -> None:
    policy, engine = VARIANTS[variant]
    tag = f"adaptive.q{threshold}.{prompt}.{variant}"
    count = golden.new_tokens(prompt, tag)
    solo, finished = golden.answer(GateExit(threshold, **policy), prompt, backend, count, **engine)
    golden.check(finished, prompt, tag, "new_logits")
    steps = golden.arrays[f"{tag}.steps"].tolist()
    assert list(finished.depths) == steps
    depths = [*golden.arrays[f"{tag}.prompt_depth"].tolist(), *steps[1:]]
    assert finished.work.iterations == sum(depths), "no token computes a loop that it does not need"
    below = [value for value in solo.tests.get((0,), []) if value < threshold]
    assert len(solo.tests[0,]) - len(below) <= len(depths)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("threshold", "loops"), [(0.0, 1), (1.5, LOOPS)])
def test_thresholds_out_of_reach_are_fixed_loops(golden: Golden, backend: str, threshold: float, loops: int) -> None:
    _, finished = golden.answer(GateExit(threshold), "p0", backend, 24)
    golden.check(finished, "p0", f"greedy.p0.n{loops}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", [LatentDiff(0.2), Cosine(0.01), GateExit(0.6, min_iterations=1), GateExit(0.5)])
def test_company_and_want_of_memory_change_nothing(golden: Golden, backend: str, policy: DepthPolicy) -> None:
    alone = [golden.answer(policy, prompt, backend, 12)[1] for prompt in PROMPTS]
    sizes: dict[str, Any] = {"num_pages": 14, "page_size": 4, "max_in_flight": 48, "prefill_chunk": 32}
    together = Solo.over(golden.model, EngineSettings(**sizes | {"backend": backend}), policy)
    for number, prompt in enumerate(PROMPTS):
        together.send(
            OpenThread(thread=(number,), seed=0, depth=policy),
            Extend((number,), tuple(golden.prompt(prompt))),
            Generate(thread=(number,), max_tokens=12, sampling=Sampling()),
        )
    said = {report.thread: report for report in together.run() if isinstance(report, Finished)}
    for number, expected in enumerate(alone):
        assert said[number,].tokens == expected.tokens
        assert said[number,].depths == expected.depths
    assert sum(report.work.recomputed for report in said.values()) > 0, "the pool is to be too small for all"


@pytest.mark.parametrize("content", [{"early_exit_threshold": 0.6}, {"early_exit_threshold": 1.0}])
@pytest.mark.anyio
async def test_a_checkpoint_exits_as_its_file_says(tmp_path: Path, content: dict[str, Any]) -> None:
    copy = change(tmp_path, **content)
    found = []
    for policy in (None, Policy(depth=GateExit(content["early_exit_threshold"]))):
        async with Engine.open(copy, policy=policy) as engine:
            answer = await engine.run([1, 2, 3], max_tokens=5)
        found.append((answer.tokens, answer.usage.iterations))
    assert found[0] == found[1]
    assert (found[0][1] == LOOPS * 7) == (content["early_exit_threshold"] == 1.0)


def change(directory: Path, **changes: Any) -> Path:
    """A copy whose configuration differs."""
    copy = directory / NAME
    shutil.copytree(HOME / NAME, copy, ignore=shutil.ignore_patterns("golden*"), copy_function=shutil.copyfile)
    raw = {**json.loads((copy / "config.json").read_text()), **changes}
    (copy / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not DELETED}))
    return copy


DELETED = object()


def test_what_is_saved_is_read_back(golden: Golden, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, golden.model)
    assert fingerprint(load_checkpoint(tmp_path).model) == fingerprint(golden.model)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(golden.path / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((golden.path / "config.json").read_text())


def test_a_tied_head_needs_no_tensor(tmp_path: Path) -> None:
    copy = change(tmp_path, tie_word_embeddings=True)
    weights = load_file(copy / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    model = load_checkpoint(copy).model
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            ["layer_types", "sliding_attention"],
        ),
        ({"use_sliding_window": True}, ["use_sliding_window is True", "False"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ["rope_scaling"]),
        ({"total_ut_steps": 0}, ["total_ut_steps"]),
        ({"total_ut_steps": DELETED}, ["total_ut_steps"]),
        ({"early_exit_threshold": "always"}, ["early_exit_threshold"]),
        ({"hidden_act": "gelu"}, ["hidden_act is 'gelu'", "'silu'"]),
    ],
)
def test_an_unsupported_configuration_is_named(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(CheckpointError) as raised:
        describe(change(tmp_path, **changes))
    assert all(part in str(raised.value) for part in [str(tmp_path / NAME / "config.json"), *parts]), raised.value


def test_a_gate_that_is_not_there_is_not_read() -> None:
    with pytest.raises(PolicyError, match="exit gate"):
        Solo.over(tiny_model(), EngineSettings(num_pages=8), GateExit())
