"""The engine's own path (paged, batched, tick by tick) against outputs of the official implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from policies import KL, ArgmaxStability, Cosine, DepthPolicy, EntropyDiff, Fixed, LatentDiff, MinPKL
from runtime.device.settings import EngineSettings
from runtime.link.commands import CloseThread, Extend, Finished, Generate, OpenThread
from runtime.link.sampling import Sampling
from runtime.model.checkpoint import load_checkpoint
from runtime.model.transformer import Transformer
from tests.engine.solo import Solo

GOLDEN = Path(__file__).parent.parent / "golden" / "golden_a"
NEW_TOKENS = 32
MOST = 16
SPEC = json.loads((GOLDEN / "golden.json").read_text())["spec"]["thresholds"]
CRITERIA: dict[str, DepthPolicy] = {
    "latent-diff": LatentDiff(SPEC["latent-diff"], max_iterations=MOST),
    "cosine": Cosine(SPEC["cosine"], max_iterations=MOST),
    "kl": KL(SPEC["kl"], max_iterations=MOST),
    "minp-kl": MinPKL(SPEC["minp-kl"], max_iterations=MOST),
    "entropy-diff": EntropyDiff(SPEC["entropy-diff"], max_iterations=MOST),
    "argmax-stability": ArgmaxStability(SPEC["argmax-stability"], max_iterations=MOST),
}


@pytest.fixture(scope="module")
def model() -> Transformer:
    raven = load_checkpoint(GOLDEN).model
    assert isinstance(raven, Transformer)
    return raven


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


def settings(backend: str = "torch", **changes: Any) -> EngineSettings:
    sizes: dict[str, Any] = {"num_pages": 16, "max_in_flight": 64, "prefill_chunk": 64, "most_iterations": MOST}
    return EngineSettings(**sizes | {"initial_state": "zero", "backend": backend} | changes)


@pytest.fixture(params=["torch", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prompt_of(golden: dict[str, Tensor], name: str) -> list[int]:
    return list(golden[f"prompt.{name}"].tolist())


def assert_logits(finished: Finished, logits: Tensor) -> None:
    """Compares whole distributions: the engine reports log-probabilities of every token."""
    expected = torch.log_softmax(logits, dim=-1)
    for row, top in enumerate(finished.top_logprobs):
        found = torch.full_like(expected[row], -torch.inf)
        found[list(top)] = torch.tensor(list(top.values()))
        torch.testing.assert_close(found, expected[row], atol=2e-4, rtol=0)


FORWARDS = [(prompt, depth) for prompt in ("p0", "p1") for depth in (1, 2, 4, 8, 16)] + [("p2", 4), ("p2", 16)]


@pytest.mark.parametrize(("prompt", "depth"), FORWARDS)
def test_first_logits(model: Transformer, golden: dict[str, Tensor], prompt: str, depth: int) -> None:
    reference = golden[f"forward.{prompt}.n{depth}.logits"]
    solo = Solo.over(model, settings(), Fixed(depth))
    sampling = Sampling(logprobs=model.specification.vocab_size)
    finished = solo.generate(prompt_of(golden, prompt), Fixed(depth), 1, sampling=sampling)
    assert_logits(finished, reference[-1:])
    assert finished.depths == (depth,)


@pytest.mark.parametrize("prompt", ["p0", "p1", "p2"])
def test_latents_after_every_iteration(
    model: Transformer, golden: dict[str, Tensor], prompt: str, backend: str
) -> None:
    solo = Solo.over(model, settings(backend), Fixed(MOST))
    ids = prompt_of(golden, prompt)
    solo.send(
        OpenThread(thread=(0,), seed=0, depth=Fixed(MOST)),
        Extend((0,), tuple(ids)),
        Generate(thread=(0,), max_tokens=1, sampling=Sampling()),
    )
    lanes: list[int] = []
    for iteration in range(MOST):
        solo.core.step()
        lanes = solo.flight_lanes((0,)) or lanes
        latents = solo.backend.latents(lanes)
        torch.testing.assert_close(latents, golden[f"forward.{prompt}.states"][iteration], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("tag", "depth", "slots"),
    [
        ("greedy.p0.n4.full", 4, None),
        ("greedy.p0.n8.full", 8, None),
        ("greedy.p2.n4.full", 4, None),
        ("greedy.p2.n8.full", 8, None),
        ("greedy.p0.n8.latest-m4-compress-s4", 8, 1),
        ("greedy.p0.n8.latest-m4-compress-s8", 8, 2),
    ],
)
def test_greedy(
    model: Transformer, golden: dict[str, Tensor], backend: str, tag: str, depth: int, slots: int | None
) -> None:
    prompt = prompt_of(golden, tag.split(".")[1])
    solo = Solo.over(model, settings(backend, iteration_slots=slots), Fixed(depth))
    sampling = Sampling(logprobs=model.specification.vocab_size)
    finished = solo.generate(prompt, Fixed(depth), NEW_TOKENS, sampling=sampling)
    assert [*prompt, *finished.tokens] == golden[f"{tag}.tokens"].tolist()
    assert_logits(finished, golden[f"{tag}.logits"])
    assert finished.work.iterations == depth * (len(prompt) + NEW_TOKENS - 1)


@pytest.mark.parametrize("depth", [4, 8])
def test_continuous_thought(model: Transformer, golden: dict[str, Tensor], backend: str, depth: int) -> None:
    prompt = prompt_of(golden, "p0")
    policy = Fixed(depth, carry="normed")
    solo = Solo.over(model, settings(backend), policy)
    sampling = Sampling(logprobs=model.specification.vocab_size)
    finished = solo.generate(prompt, policy, NEW_TOKENS, sampling=sampling)
    tag = f"continuous.p0.n{depth}.full"
    assert [*prompt, *finished.tokens] == golden[f"{tag}.tokens"].tolist()
    assert_logits(finished, golden[f"{tag}.logits"])


def assert_adaptive(solo: Solo, policy: DepthPolicy, golden: dict[str, Tensor], prompt: list[int], tag: str) -> None:
    finished = solo.generate(prompt, policy, NEW_TOKENS)
    assert [*prompt, *finished.tokens] == golden[f"{tag}.tokens"].tolist()
    assert list(finished.depths) == golden[f"{tag}.steps"].tolist()
    values = iter(solo.tests[0,])
    for row, checks in enumerate(golden[f"{tag}.num_checks"].tolist()):
        found = torch.tensor([next(values) for _ in range(checks)])
        expected = golden[f"{tag}.exit_values"][row, :checks]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, equal_nan=True)
    assert next(values, None) is None


# Backends know nothing of the others' prompts: on the slow one, each criterion is tried with one.
ADAPTIVE = [
    *(("native", criterion, prompt) for criterion in CRITERIA for prompt in ("p0", "p2")),
    *(("torch", criterion, "p0") for criterion in CRITERIA),
    ("torch", "latent-diff", "p2"),
]


@pytest.mark.parametrize(("backend", "criterion", "prompt"), ADAPTIVE)
def test_adaptive_depth(
    model: Transformer, golden: dict[str, Tensor], backend: str, criterion: str, prompt: str
) -> None:
    policy = CRITERIA[criterion]
    solo = Solo.over(model, settings(backend), policy)
    assert_adaptive(solo, policy, golden, prompt_of(golden, prompt), f"adaptive.{criterion}.{prompt}.latest-m4")


@pytest.mark.parametrize(
    ("variant", "changes", "engine"),
    [
        ("latest-m4.min2every2", {"min_iterations": 2, "check_every": 2}, {}),
        ("latest-m4.noexitprefill", {"exit_received": False}, {}),
        ("latest-m4.continuous", {"carry": "raw"}, {}),
        ("latest-m4-compress-s4", {}, {"iteration_slots": 1}),
    ],
)
def test_adaptive_variants(
    model: Transformer,
    golden: dict[str, Tensor],
    backend: str,
    variant: str,
    changes: dict[str, Any],
    engine: dict[str, Any],
) -> None:
    policy = LatentDiff(SPEC["latent-diff"], max_iterations=MOST, **changes)
    solo = Solo.over(model, settings(backend, **engine), policy)
    assert_adaptive(solo, policy, golden, prompt_of(golden, "p0"), f"adaptive.latent-diff.p0.{variant}")


def test_stop_token_is_kept(model: Transformer, golden: dict[str, Tensor]) -> None:
    stop = json.loads((GOLDEN / "golden.json").read_text())["runs"]["stop.p0.n8.full"]["eos_token_id"]
    solo = Solo.over(model, settings(), Fixed(8))
    prompt = prompt_of(golden, "p0")
    finished = solo.generate(prompt, Fixed(8), NEW_TOKENS, stop_tokens=frozenset({stop}))
    assert [*prompt, *finished.tokens] == golden["stop.p0.n8.full.tokens"].tolist()
    assert finished.reason == "stop"


def test_batched_rows_equal_rows_alone(model: Transformer, golden: dict[str, Tensor], backend: str) -> None:
    """Rows of the reference's batch of three share its depths only where it made all wait; ours never wait."""
    policy, count = CRITERIA["latent-diff"], 12
    rows = golden["prompt.batch3"].tolist()
    together = Solo.over(model, settings(backend), policy)
    for number, row in enumerate(rows):
        together.send(
            OpenThread(thread=(number,), seed=0, depth=policy),
            Extend((number,), tuple(row)),
            Generate(thread=(number,), max_tokens=count, sampling=Sampling()),
        )
    results = {report.thread: report for report in together.run() if isinstance(report, Finished)}
    for number, row in enumerate(rows):
        together.send(CloseThread((number,)))
        alone = Solo.over(model, settings(backend), policy).generate(row, policy, count)
        assert results[number,].tokens == alone.tokens
        assert results[number,].depths == alone.depths
    assert together.core.statistics().pages_used == 0
