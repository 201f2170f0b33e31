"""Calibrated exit rules: dense passes see what the engine sees, wishes are met, checkpoints carry the result."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import torch

from benchmarks.countdown import calibrate as command
from examples.countdown.problems import Problem
from policies import (
    KL,
    ArgmaxStability,
    ByRole,
    Cosine,
    DepthPolicy,
    DepthView,
    EntropyDiff,
    Fixed,
    LatentDiff,
    MaxChildren,
    MinPKL,
    Policy,
    to_builtins,
)
from policies.training.adaptive_pass import batches, run_full, run_policy
from policies.training.calibration import Calibration, CalibrationSet, best, save_default_policy, with_threshold
from policies.training.thread_tokens import ExitGroup, ThreadTokens, threads_in
from runtime import Engine, Sampling
from runtime.errors import CheckpointError
from runtime.model.checkpoint import save_checkpoint
from runtime.model.directories import shipped_directory
from runtime.model.transformer import Transformer
from tests.engine.tiny import tiny_model
from traces import ThreadRecord, Trace, read, thread_tree, walk_threads

MOST = 6
PLAIN = tiny_model(5, coda=0)
WITH_CODA = tiny_model(5)
EXITING: list[DepthPolicy] = [
    LatentDiff(0.7, max_iterations=MOST),
    LatentDiff(0.7, max_iterations=MOST, exit_received=False),
    Cosine(0.25, max_iterations=MOST, min_iterations=1, check_every=2),
    KL(1.0, max_iterations=MOST),
    MinPKL(0.3, max_iterations=MOST),
    EntropyDiff(0.3, max_iterations=MOST),
    ArgmaxStability(1, max_iterations=MOST),
]


async def converse(engine: Engine, policy: Policy, prompts: random.Random) -> None:
    """A root that says something, hears something and says more; and a child of it."""

    def some(count: int) -> list[int]:
        return [prompts.randrange(40) for _ in range(count)]

    async with engine.thread(some(7), policy=policy) as root:
        await root.generate(max_tokens=9)
        child = root.spawn(some(4), max_tokens=9)
        root.append(some(5))
        await root.generate(max_tokens=9)
        await root.join([child], append=False)


def record(
    folder: Path, model: Transformer, policies: list[DepthPolicy], *, trees: int = 1, temperature: float = 0.0
) -> Trace:
    """What an engine on the PyTorch backend says under each of the policies."""
    save_checkpoint(folder / "model", model)
    trace = folder / "run.trace"

    async def main() -> None:
        prompts, sampling = random.Random(1), Sampling(temperature=temperature)
        settings: dict[str, Any] = {"backend": "torch", "prefill_chunk": 4, "page_size": 8, "most_iterations": MOST}
        async with Engine.open(folder / "model", trace=trace, sampling=sampling, **settings) as engine:
            for policy in policies:
                async with anyio.create_task_group() as group:
                    for _ in range(trees):
                        group.start_soon(converse, engine, Policy(depth=policy), prompts)

    anyio.run(main)
    return read(trace)


def records_of(trace: Trace) -> list[list[ThreadRecord]]:
    """The threads of each tree, as `threads_in` orders them."""
    return [list(walk_threads([root])) for root in thread_tree(trace.events)]


def engine_depths(recorded: ThreadRecord, count: int) -> list[int]:
    depths = [0] * count
    for done in recorded.computed:
        depths[done.position : done.position + done.count] = [done.depth] * done.count
    return depths


@pytest.fixture(scope="module")
def exiting(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """One tree under each rule."""
    return record(tmp_path_factory.mktemp("exiting"), PLAIN, EXITING)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> list[ThreadTokens]:
    """Threads of many trees at full depth, sampled warm so that they differ."""
    threads = threads_in(record(tmp_path_factory.mktemp("full"), PLAIN, [Fixed(MOST)], trees=120, temperature=1.0))
    random.Random(0).shuffle(threads)
    return threads


def test_threads_are_read_with_their_groups(exiting: Trace) -> None:
    root, child = threads_in(exiting)[:2]
    assert [len(root.tokens), len(child.tokens)] == [7 + 9 + 5 + 9, 4 + 9]
    assert (root.role, root.tree_depth, child.role, child.tree_depth) == ("root", 0, "child", 1)
    assert root.is_sampled == (False,) * 7 + (True,) * 9 + (False,) * 5 + (True,) * 9
    ends = [group.end for group in root.groups]
    assert ends == [4, 7, *range(8, 17), 20, 21, *range(22, 30)]  # four received tokens enter together
    assert root.groups[0] == ExitGroup(0, 4)


@pytest.mark.parametrize("index", range(len(EXITING)), ids=[repr(policy) for policy in EXITING])
def test_dense_depths_are_the_engines(exiting: Trace, index: int) -> None:
    policy, records = EXITING[index], records_of(exiting)[index]
    threads = threads_in(exiting)[2 * index : 2 * index + 2]
    seen: set[int] = set()
    for thread, recorded in zip(threads, records, strict=True):
        (batch,) = batches([thread])
        depths, choices = run_policy(PLAIN, batch, policy)
        assert depths.tolist() == engine_depths(recorded, len(thread.tokens) - 1)
        # Greedy: what the dense pass likes best is what the engine sampled.
        is_read = torch.tensor(thread.is_sampled[1:])
        assert torch.equal(choices[is_read], torch.tensor(thread.tokens[1:])[is_read])
        seen |= set(depths.tolist())
    assert len(seen) > 1


@pytest.mark.parametrize("kind", [LatentDiff, Cosine, KL, MinPKL, EntropyDiff, ArgmaxStability])
def test_dense_exit_values_are_the_engines(kind: type[DepthPolicy], tmp_path: Path) -> None:
    measured: list[float] = []

    def measure(self: DepthPolicy, view: DepthView) -> tuple[torch.Tensor, torch.Tensor]:
        values, previous = kind.measure(self, view)
        measured.append(values.mean().item())  # one group in flight at a time
        return values, previous

    def is_done(self: DepthPolicy, values: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(values, dtype=torch.bool)

    name, methods = f"Watched{kind.__name__}", {"measure": measure, "is_done": is_done}
    watched = msgspec.defstruct(name, (), bases=(kind,), namespace=methods, frozen=True, tag=name)(max_iterations=MOST)
    assert isinstance(watched, DepthPolicy)

    async def one_thread() -> None:
        save_checkpoint(tmp_path, PLAIN)
        async with (
            Engine.open(
                tmp_path, trace=tmp_path / "run.trace", backend="torch", prefill_chunk=4, most_iterations=MOST
            ) as engine,
            engine.thread(list(range(7)), policy=Policy(depth=watched)) as root,
        ):
            await root.generate(max_tokens=8)
            root.append([3, 1, 2])
            await root.generate(max_tokens=4)

    anyio.run(one_thread)
    (thread,) = threads_in(read(tmp_path / "run.trace"))
    (batch,) = batches([thread])
    (values,), _ = run_full(PLAIN, batch, [kind(max_iterations=MOST)])
    torch.testing.assert_close(torch.tensor(measured).view(-1, MOST), values, atol=1e-5, rtol=1e-4, equal_nan=True)


def test_latent_depths_are_the_engines_with_coda_layers_too(tmp_path: Path) -> None:
    policy = LatentDiff(0.7, max_iterations=MOST)
    trace = record(tmp_path, WITH_CODA, [policy])
    for thread, recorded in zip(threads_in(trace), records_of(trace)[0], strict=True):
        (batch,) = batches([thread])
        depths, choices = run_policy(WITH_CODA, batch, policy)
        assert depths.tolist() == engine_depths(recorded, len(thread.tokens) - 1)
        is_read = torch.tensor(thread.is_sampled[1:])
        assert torch.equal(choices[is_read], torch.tensor(thread.tokens[1:])[is_read])


def test_batches_hold_every_token_once(full: list[ThreadTokens]) -> None:
    made = list(batches(full, tokens_per_batch=100))
    assert all(batch.tokens.numel() <= 100 for batch in made)
    assert sum(int(batch.is_counted.sum()) for batch in made) == sum(len(thread.tokens) - 1 for thread in full)
    assert sum(int(batch.is_read.sum()) for batch in made) == sum(sum(thread.is_sampled) for thread in full)
    whole = CalibrationSet(PLAIN, full[:8], [LatentDiff(0.7, max_iterations=MOST)])
    apart = [CalibrationSet(PLAIN, [thread], [LatentDiff(0.7, max_iterations=MOST)]) for thread in full[:8]]
    together = whole.measure(whole.criteria[0])
    alone = [each.measure(each.criteria[0]) for each in apart]
    assert together.mean_depth == pytest.approx(
        sum(each.mean_depth * each.computed for each in alone) / together.computed
    )


@pytest.mark.parametrize("wanted", [3.0, 4.0])
@pytest.mark.parametrize("kind", [LatentDiff, Cosine, KL, MinPKL, EntropyDiff])
def test_a_wanted_depth_is_met_on_other_threads(
    full: list[ThreadTokens], kind: type[DepthPolicy], wanted: float
) -> None:
    criterion = kind(max_iterations=MOST)
    half = len(full) // 2
    chosen = CalibrationSet(PLAIN, full[:half], [criterion]).at_depth(criterion, wanted)
    assert chosen.mean_depth == pytest.approx(wanted, rel=0.03)
    assert chosen.policy == with_threshold(criterion, chosen.policy.threshold)
    held_out = CalibrationSet(PLAIN, full[half:], [criterion]).measure(chosen.policy)
    assert held_out.mean_depth == pytest.approx(wanted, rel=0.06)


def test_thresholds_that_count_stay_whole_numbers(full: list[ThreadTokens]) -> None:
    criterion = ArgmaxStability(max_iterations=MOST)
    measured = CalibrationSet(PLAIN, full[:20], [criterion])
    assert set(measured.thresholds(criterion)) <= set(range(1, MOST))
    chosen = measured.at_depth(criterion, 3.0).policy
    assert isinstance(chosen.threshold, int)


def test_what_was_read_off_at_the_ends_is_what_happens(full: list[ThreadTokens]) -> None:
    criterion = LatentDiff(max_iterations=MOST)
    measured = CalibrationSet(PLAIN, full[:20], [criterion])
    for threshold, depth in ((0.0, MOST), (1e6, 1)):
        result = measured.measure(with_threshold(criterion, threshold))
        assert result.mean_depth == measured.depth_of(criterion, threshold) == depth


def test_agreement_is_with_the_models_own_depth(full: list[ThreadTokens]) -> None:
    measured = CalibrationSet(PLAIN, full[:20])
    own = measured.measure(Fixed())
    assert (own.mean_depth, own.agreement) == (PLAIN.specification.mean_recurrence, 1.0)
    shallow = measured.measure(Fixed(1))
    assert shallow.mean_depth == 1
    assert shallow.agreement < 1
    roots = sum(len(thread.tokens) - 1 for thread in full[:20] if thread.role == "root")
    mixed = measured.measure(ByRole(root=Fixed(1), otherwise=Fixed(3)))
    assert mixed.mean_depth == pytest.approx(3 - 2 * roots / mixed.computed)


def test_a_price_buys_depth_as_long_as_it_pays(full: list[ThreadTokens]) -> None:
    criterion = LatentDiff()
    measured = CalibrationSet(PLAIN, full[:40], [criterion])
    free, fair, dear = (measured.at_price(criterion, price) for price in (0.0, 0.05, 10.0))
    assert free.agreement == max(each.agreement for each in measured.frontier(criterion))
    assert free.mean_depth >= fair.mean_depth >= dear.mean_depth == 1
    for other in measured.frontier(criterion):
        assert 1 - fair.agreement + 0.05 * fair.mean_depth <= 1 - other.agreement + 0.05 * other.mean_depth


def calibration(agreement: float, depth: DepthPolicy, mean_depth: float = 3.0) -> Calibration:
    return Calibration(policy=depth, mean_depth=mean_depth, agreement=agreement, computed=10_000, sampled=10_000)


def test_the_best_is_the_cheapest_to_test_of_those_that_chance_cannot_tell_apart() -> None:
    latent, kl = calibration(0.9990, LatentDiff()), calibration(0.9992, KL())
    assert best([latent, kl]) == latent
    assert best([calibration(0.99, LatentDiff()), kl]) == kl
    assert best([latent, calibration(0.9989, KL(), mean_depth=2.0)], price=0.01).criterion == "KL"


def test_the_best_is_about_as_deep_as_was_wished() -> None:
    near, deep = calibration(0.95, KL(), mean_depth=3.1), calibration(1.0, ArgmaxStability(), mean_depth=4.0)
    assert best([near, deep], mean_depth=3.0) == near
    assert best([deep], mean_depth=3.0) == deep
    with pytest.raises(ValueError, match="no calibrations to choose from"):
        best([])


def test_what_cannot_be_calibrated_says_why(full: list[ThreadTokens]) -> None:
    with pytest.raises(ValueError, match="no threads to calibrate on"):
        CalibrationSet(PLAIN, [])
    with pytest.raises(ValueError, match=r"Fixed\(\) tests nothing"):
        CalibrationSet(PLAIN, full[:1], [Fixed()])
    with pytest.raises(ValueError, match="start from noise"):
        CalibrationSet(tiny_model(state_init="like-init"), full[:1])
    measured = CalibrationSet(PLAIN, full[:1], [LatentDiff()])
    with pytest.raises(ValueError, match=r"wanted mean depth is 7; LatentDiff\(\) gives between 1 and 3"):
        measured.at_depth(LatentDiff(), 7)
    with pytest.raises(ValueError, match="price of an iteration is -1"):
        measured.at_price(LatentDiff(), -1)
    late = Cosine(min_iterations=2)  # its only test has nothing to compare with
    with pytest.raises(ValueError, match="measured nothing on these threads; lower its min_iterations"):
        CalibrationSet(PLAIN, full[:1], [late]).at_depth(late, 2.0)


async def trace_of_default(directory: Path, trace: Path) -> Trace:
    async with Engine.open(directory, trace=trace, backend="torch") as engine, engine.thread("1 2 3") as root:
        await root.generate(max_tokens=3)
    return read(trace)


def test_the_engine_follows_what_was_saved(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(shipped_directory() / "countdown", directory)
    before = msgspec.json.decode((directory / "braid.json").read_bytes())
    before["policy"] = to_builtins(Policy(spawn=MaxChildren(7)))
    (directory / "braid.json").write_bytes(msgspec.json.encode(before))
    policy = save_default_policy(directory, LatentDiff(0.25, min_iterations=1))
    assert policy == Policy(depth=LatentDiff(0.25, min_iterations=1), spawn=MaxChildren(7))
    after = msgspec.json.decode((directory / "braid.json").read_bytes())
    assert after["protocol"] == before["protocol"]
    assert [path.name for path in directory.glob("*.partial")] == []
    trace = anyio.run(trace_of_default, directory, tmp_path / "run.trace")
    (root,) = thread_tree(trace.events)
    assert trace.header.policy == to_builtins(policy)
    assert root.calls[0].depth == to_builtins(policy.depth)


def test_a_policy_is_saved_only_into_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json"):
        save_default_policy(tmp_path, LatentDiff())
    assert list(tmp_path.iterdir()) == []
    save_checkpoint(tmp_path, PLAIN, braid=b'{"policy": {"type": "Nope"}}')
    with pytest.raises(ValueError, match=r"braid.json: policy: 'Nope' is no known Policy"):
        save_default_policy(tmp_path, LatentDiff())
    (tmp_path / "braid.json").unlink()
    assert save_default_policy(tmp_path, LatentDiff(0.2)) == Policy(depth=LatentDiff(0.2))


def test_the_countdown_command_calibrates_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(shipped_directory() / "countdown", directory)
    (tmp_path / "own.json").write_bytes(msgspec.json.encode([Problem((1, 2, 3, 4), 10)]))
    options = ["--depth", "3.6", "--criteria", "LatentDiff", "--problems", "2", "--exclude", str(tmp_path / "own.json")]
    monkeypatch.setattr("sys.argv", ["calibrate", str(directory), *options, "--write", "--json"])
    assert anyio.run(command.main) == 0
    report = msgspec.json.decode(capsys.readouterr().out)
    assert report["chosen"]["mean_depth"] == pytest.approx(3.6, rel=0.03)
    assert report["adaptive"]["depth"] == pytest.approx(3.6, rel=0.1)
    assert report["full"]["depth"] == 6
    written = msgspec.json.decode((directory / "braid.json").read_bytes())["policy"]["depth"]
    assert written == report["chosen"]["policy"]
    assert written["type"] == "LatentDiff"


def test_the_countdown_command_draws_other_problems_to_check_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["calibrate", "countdown", "--problems", "5"])
    to_calibrate, to_check = command.draw(command.arguments())
    keys = {problem.key for problem in (*to_calibrate, *to_check)}
    assert len(keys) == 10
    (tmp_path / "own.json").write_bytes(msgspec.json.encode(to_calibrate))
    monkeypatch.setattr("sys.argv", ["calibrate", "x", "--problems", "5", "--exclude", str(tmp_path / "own.json")])
    assert not {problem.key for problem in to_calibrate} & {
        problem.key for part in command.draw(command.arguments()) for problem in part
    }
