"""Properties of the exit criteria that hold for any states and logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policies import KL, ArgmaxStability, Cosine, DepthPolicy, DepthView, EntropyDiff, LatentDiff, MinPKL

WIDTH, VOCAB = 6, 9
CRITERIA: list[DepthPolicy] = [LatentDiff(), Cosine(), KL(), MinPKL(), EntropyDiff(), ArgmaxStability()]


def view(policy: DepthPolicy, iteration: int, latent: Tensor, logits: Tensor, previous: Tensor) -> DepthView:
    iterations = torch.full((len(latent),), iteration)
    return DepthView(iterations, latent, logits if policy.reads == "logits" else None, previous)


def run(policy: DepthPolicy, latents: Tensor, logits: Tensor, start: Tensor) -> Tensor:
    """Exit values [steps, n] for latents [steps, n, WIDTH] and logits [steps, n, VOCAB] from states [n, WIDTH]."""
    previous, values = policy.begin(start, VOCAB), []
    for step, (latent, seen) in enumerate(zip(latents, logits, strict=True), 1):
        value, previous = policy.measure(view(policy, step, latent, seen, previous))
        values.append(value)
    return torch.stack(values)


@pytest.mark.parametrize("policy", CRITERIA, ids=repr)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 5), steps=st.integers(1, 4))
def test_rows_do_not_see_each_other(policy: DepthPolicy, seed: int, n: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents, logits = (
        torch.randn(steps, n, WIDTH, generator=generator),
        torch.randn(steps, n, VOCAB, generator=generator),
    )
    start = torch.randn(n, WIDTH, generator=generator)
    together = run(policy, latents, logits, start)
    for row in range(n):
        alone = run(policy, latents[:, row : row + 1], logits[:, row : row + 1], start[row : row + 1])
        torch.testing.assert_close(together[:, row : row + 1], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("policy", CRITERIA, ids=repr)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_settled_token_exits_at_its_second_test(policy: DepthPolicy, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    latent, logits = torch.randn(2, WIDTH, generator=generator).to(dtype), torch.randn(2, VOCAB, generator=generator)
    previous = policy.begin(torch.zeros(2, WIDTH, dtype=dtype), VOCAB)
    first, previous = policy.measure(view(policy, 1, latent, logits, previous))
    assert not policy.is_done(first).any()
    done = 0
    while not policy.is_done(first).all():
        first, previous = policy.measure(view(policy, 2 + done, latent, logits, previous))
        done += 1
    assert done == (policy.threshold if isinstance(policy, ArgmaxStability) else 1)
    assert previous.dtype == first.dtype == torch.float32


def test_from_a_zero_state_everything_has_changed_and_no_direction_is_known() -> None:
    latent, start = torch.randn(3, WIDTH), torch.zeros(3, WIDTH)
    values = {type(policy): run(policy, latent[None], torch.zeros(1, 3, VOCAB), start)[0] for policy in CRITERIA}
    assert torch.equal(values[LatentDiff], torch.ones(3))
    assert values[Cosine].isnan().all()
    assert not Cosine(2.0).is_done(values[Cosine]).any()


def test_criteria_of_distributions_start_from_the_references_values() -> None:
    start = torch.zeros(2, WIDTH)
    assert torch.allclose(KL().begin(start, VOCAB).exp(), torch.full((2, VOCAB), 1 / VOCAB))
    assert EntropyDiff().begin(start, VOCAB).tolist() == [[100.0], [100.0]]
    assert ArgmaxStability().begin(start, VOCAB).tolist() == [[-1.0, 0.0], [-1.0, 0.0]]


def test_measuring_keeps_its_inputs() -> None:
    for policy in CRITERIA:
        latent, logits = torch.randn(2, WIDTH), torch.randn(2, VOCAB)
        previous = policy.begin(torch.randn(2, WIDTH), VOCAB)
        kept = latent.clone(), logits.clone(), previous.clone()
        policy.measure(view(policy, 1, latent, logits, previous))
        for before, after in zip(kept, (latent, logits, previous), strict=True):
            assert torch.equal(before, after)


def test_min_p_kl_does_not_see_the_tail() -> None:
    before = torch.tensor([[5.0, 4.5, -3.0, -4.0, -5.0]])
    after = torch.tensor([[5.0, 4.5, -4.0, -3.0, -5.0]])
    _, previous = MinPKL().measure(
        view(MinPKL(), 1, torch.zeros(1, WIDTH), before, MinPKL().begin(torch.zeros(1, 1), 5))
    )
    assert (previous.exp()[0, 2:] == previous.exp()[0, 2]).all()
    value, _ = MinPKL().measure(view(MinPKL(), 2, torch.zeros(1, WIDTH), after, previous))
    assert abs(value.item()) < 1e-6


def test_argmax_stability_counts_repeats_and_starts_over() -> None:
    tokens = torch.tensor([3, 3, 3, 1, 1, 3])
    logits = torch.nn.functional.one_hot(tokens, VOCAB).float()[:, None]
    values = run(ArgmaxStability(2), torch.zeros(6, 1, WIDTH), logits, torch.zeros(1, WIDTH))
    assert values[:, 0].tolist() == [0, 1, 2, 0, 1, 0]
    assert ArgmaxStability(2).is_done(values[:, 0]).tolist() == [False, False, True, False, False, False]


def test_a_policy_that_reads_but_cannot_measure_says_so() -> None:
    class Forgetful(DepthPolicy, frozen=True):
        reads = "latent"

    latent = torch.zeros(1, WIDTH)
    previous = Forgetful().begin(latent, VOCAB)
    assert previous.shape == (1, 0)
    with pytest.raises(TypeError, match=r"Forgetful reads latent but does not define measure\(\)"):
        Forgetful().measure(DepthView(torch.ones(1), latent, None, previous))
