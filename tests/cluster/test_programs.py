"""Programs on clusters: as on one engine, whichever replicas are lost meanwhile."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import anyio
import pytest

from policies import Limits
from runtime import (
    BraidError,
    Cluster,
    Engine,
    Generation,
    LimitExceeded,
    ReasoningThread,
    Sampling,
    ThreadStateError,
    TraceError,
)
from runtime.model.checkpoint import load_checkpoint
from runtime.model.parameters import published_weights
from tests.cluster.local import Dies, local_cluster, never
from tests.engine.recorded_trees import POLICY, WARM, prompt, verified, work
from tests.engine.tiny import tiny_model
from traces import imbalances, read

SIZES: dict[str, Any] = {
    "page_size": 4,
    "num_pages": 128,
    "max_in_flight": 64,
    "prefill_chunk": 16,
    "most_iterations": 4,
    "cpu_threads": 1,
}
# No limit that threads share: who comes to its end first is a matter of time.
OPTIONS: dict[str, Any] = {"policy": POLICY, "sampling": WARM, "limits": Limits(tree_depth=2), "seed": 7}

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Starts tasks in order, so that trees have the same numbers everywhere."""
    return "asyncio"


def cluster(checkpoint: Path, dies: Dies = never, trace: Path | None = None, **changes: Any) -> Cluster:
    return local_cluster(checkpoint, dies=dies, trace=trace, settings=SIZES, **{**OPTIONS, **changes})


def engine(checkpoint: Path, **changes: Any) -> Engine:
    return Engine.open(checkpoint, **{**SIZES, **OPTIONS, **changes})


class LostAt:
    """Loses the replica that says one of these words, counted over all of them."""

    def __init__(self, *words: int) -> None:
        self._words = set(words)
        self._said = 0
        self.lost = 0

    def __call__(self, name: str, number: int) -> bool:
        self._said += 1
        is_lost = self._said in self._words
        self.lost += is_lost
        return is_lost


def unexplained(trace: Path) -> list[str]:
    """Where a trace contradicts itself, but for ticks that did again what is in it once."""
    return [found for found in imbalances(read(trace).events) if "all ticks did" not in found]


async def everything(on: Engine) -> dict[str, object]:
    """A program with a bit of each, as what came of it."""
    found: dict[str, object] = {
        "trees": [answer and (answer.tokens, answer.usage.generated) for answer in await work(on, 0, 1, 2)]
    }
    async with on.thread(prompt(3), limits=Limits()) as root:
        children = [root.spawn(prompt(number), max_tokens=7) for number in range(3)]
        found["said"] = (await root.generate(max_tokens=5)).tokens
        forks = [root.fork("w1", max_tokens=6), root.fork("w2 w3", max_tokens=6)]
        streamed: list[int] = []
        depths: list[int] = []
        async with root.stream(max_tokens=9) as chunks:
            async for chunk in chunks:
                streamed += chunk.tokens
                depths += chunk.depths
        found["streamed"] = tuple(streamed)
        found["depths of the stream"] = tuple(depths)
        assert len(depths) == len(streamed)
        root.append(prompt(4))
        found["score"] = (await root.score(prompt(5), top=2)).logprobs
        found["children"] = [answer.tokens for answer in await root.join(children)]
        found["forks"] = [answer.tokens for answer in await root.join(forks, append=False)]
        with anyio.move_on_after(0):
            await root.generate(max_tokens=20)
        after = await root.generate(max_tokens=5, sampling=Sampling(temperature=2.0, logprobs=2))
        found["after"] = after.tokens, after.logprobs, after.top_logprobs
    async with on.thread(prompt(6), limits=Limits()) as root:
        branches = [root.fork(f"w{number}", max_tokens=4) for number in range(3)]
        await root.join(branches, merge=True)
        root.append("w9")
        found["merged"] = (await root.generate(max_tokens=6)).tokens
    return found


async def test_a_program_on_a_cluster_is_as_on_one_engine(tiny_checkpoint: Path, tmp_path: Path) -> None:
    async with engine(tiny_checkpoint) as alone:
        expected, spent = await everything(alone), alone.usage
    trace = tmp_path / "run.trace"
    async with cluster(tiny_checkpoint, trace=trace) as many:
        assert await everything(many) == expected
        assert many.usage.generated == spent.generated
        assert sum(replica.statistics.generated > 0 for replica in many.replicas) == 2
    assert unexplained(trace) == []
    assert await verified(trace) == 0


@pytest.mark.parametrize("seed", range(6))
async def test_replicas_that_are_lost_change_nothing(tiny_checkpoint: Path, tmp_path: Path, seed: int) -> None:
    async with engine(tiny_checkpoint) as alone:
        expected = await everything(alone)
    trace = tmp_path / "run.trace"
    dies = LostAt(*random.Random(seed).sample(range(8, 80), 6))
    async with cluster(tiny_checkpoint, dies, trace) as many:
        assert await everything(many) == expected
    assert dies.lost
    assert read(trace).lost is None
    assert await verified(trace) == 0


async def test_forks_of_what_was_said_are_made_again_where_their_parent_is_not(tiny_checkpoint: Path) -> None:
    async def program(on: Engine, lose: Any = None) -> list[tuple[int, ...]]:
        async with on.thread(prompt(0), limits=Limits()) as root:
            await root.generate(max_tokens=6)
            root.append("w5")
            said = await root.generate(max_tokens=6)
            forks = [root.fork(f"w{number}", max_tokens=5) for number in range(3)]
            if lose is not None:
                await lose()
            answers = await root.join(forks)
        return [said.tokens, *(answer.tokens for answer in answers)]

    async with engine(tiny_checkpoint) as alone:
        expected = await program(alone)
    async with cluster(tiny_checkpoint, replicas=1) as many:

        async def lose() -> None:
            await many.resize(2)
            await many.resize(1)

        assert await program(many, lose) == expected


async def test_limits_hold_over_replicas(tiny_checkpoint: Path) -> None:
    said: list[Generation] = []

    async def program(thread: ReasoningThread) -> None:
        said.append(await thread.generate(max_tokens=50, stop=[-1]))

    async with cluster(tiny_checkpoint) as many:
        async with many.thread(prompt(0), limits=Limits(tokens=60)) as root:
            children = [root.spawn(prompt(number), program=program) for number in range(4)]
            await root.join(children, append=False)
            assert 60 <= sum(len(each.tokens) for each in said) <= 64
            assert {each.limit for each in said if len(each.tokens) < 50} == {"tokens"}
            with pytest.raises(LimitExceeded):
                await root.generate(max_tokens=5)
        said.clear()
        async with many.thread(prompt(0), limits=Limits(iterations=100)) as root:
            children = [root.spawn(prompt(number), program=program) for number in range(4)]
            await root.join(children, append=False)
            assert root.usage.iterations >= 100
            assert "iterations" in {each.limit for each in said}


async def test_weights_reach_all_replicas_or_none(tiny_checkpoint: Path) -> None:
    new = {name: tensor.clone() for name, tensor in published_weights(tiny_model(4)).items()}
    old = published_weights(load_checkpoint(tiny_checkpoint).model)

    async def says(on: Engine) -> list[tuple[int, ...]]:
        said = []
        for number in range(6):
            async with on.thread(prompt(number)) as root:
                said.append((await root.generate(max_tokens=6)).tokens)
        return said

    async with engine(tiny_checkpoint) as alone:
        await alone.load_weights(new)
        expected = await says(alone)
    async with cluster(tiny_checkpoint) as many:
        await many.load_weights(new)
        assert await says(many) == expected
        await many.resize(3)
        broken = {**old, "transformer.wte.weight": old["transformer.wte.weight"][:3]}
        with pytest.raises(ValueError, match=r"transformer\.wte\.weight"):
            await many.load_weights(broken)
        async with many.thread(prompt(0)):
            with pytest.raises(ThreadStateError, match="between trees"):
                await many.load_weights(new)


async def test_recordings_of_blocks_verify(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "block.trace"
    async with cluster(tiny_checkpoint) as many:
        await work(many, 0)
        async with many.recording(path):
            await work(many, 1, 2)
            with pytest.raises(TraceError, match="records already"):
                async with many.recording(tmp_path / "other.trace"):
                    pass
        await work(many, 3)
    assert read(path).lost is None
    assert unexplained(path) == []
    assert await verified(path) == 0


async def test_replicas_join_and_leave_while_trees_run(tiny_checkpoint: Path) -> None:
    async with engine(tiny_checkpoint) as alone:
        expected = [answer and answer.tokens for answer in await work(alone, *range(8))]
    async with cluster(tiny_checkpoint, replicas=1) as many:
        found: list[object] = []

        async def run() -> None:
            found.extend(answer and answer.tokens for answer in await work(many, *range(8)))

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await many.resize(3)
            assert [replica.state for replica in many.replicas] == ["serving"] * 3
            await many.resize(1)
        assert found == expected
        assert len(many.replicas) == 1


async def test_what_replicas_always_end_of_is_given_up(tiny_checkpoint: Path) -> None:
    said = 0

    def dies(name: str, number: int) -> bool:
        nonlocal said
        said += 1
        return True

    async with cluster(tiny_checkpoint, dies, replicas=1) as many, many.thread(prompt(0)) as root:
        with pytest.raises(BraidError, match="17 replicas were lost"):
            await root.generate(max_tokens=4)
    assert said == 17


async def test_replicas_that_cannot_be_opened_are_told_of(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(BraidError, match="pages"):
        async with local_cluster(tiny_checkpoint, settings={"num_pages": 2**40}):
            pass


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": "two"}, "replicas"),
        ({"ray_options": {"num_cpus": "many"}}, "num_cpus"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
async def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], names: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'braid-runtime[ray]'")
    with pytest.raises(ValueError, match=names):
        Cluster.open("countdown", **arguments)


async def test_a_cluster_without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.import_module", _no_ray)
    with pytest.raises(ImportError, match=r"pip install 'braid-runtime\[ray\]'"):
        Cluster.open("countdown")


def _no_ray(name: str) -> object:
    raise ImportError(name)
