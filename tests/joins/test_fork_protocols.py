"""Protocols that fork, end to end: a Qwen2 says a script, forks, and goes on behind its branches."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
import msgspec
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from policies import ByEntropy, MaxChildren, Policy
from runtime import NPR, Engine, ForkProtocol, Multiverse, ParallelR1, ProtocolError, ThreadWeaver
from runtime.link.events import Merged
from runtime.model.tokenizer import Tokenizer
from tests.protocol.test_apr_engine import EOS, save_scripted, tokenizer_and_successors
from traces import read, thread_tree
from traces.__main__ import main as traces_command
from traces.context import context_of

pytestmark = pytest.mark.anyio

FORKS = {
    "threadweaver": (ThreadWeaver, "<Outlines><Outline>1 : x</Outline><Outline>2 : y</Outline></Outlines>"),
    "multiverse": (Multiverse, "<Goal><Outline>1 : x</Outline><Outline>2 : y</Outline></Goal>"),
    "npr": (NPR, "<guideline><plan>1 : x</plan><plan>2 : y</plan></guideline>"),
    "parallel r1": (ParallelR1, "thinking<Parallel>"),
}


def scripted(directory: Path, protocol: ForkProtocol, fork: str, nested: str = "") -> Tokenizer:
    """Saves a checkpoint whose head maps each token to its successor."""
    end = protocol.branch_end
    scripts = {"Q": f" let us see {fork}", protocol.joined: " so it is"}
    if nested:
        scripts |= {"1:": f" deeper {nested}", "2:": f" another one{end}", "1.1:": f" deep{end}"}
    elif protocol.branches:
        scripts[protocol.branch] = f" a thought{end}"
    else:
        scripts |= {"1:": f" one{end}", "2:": f" another one{end}"}
    tokenizer, successors = tokenizer_and_successors(scripts)
    eos, width = tokenizer.token_to_id(EOS), -(-tokenizer.vocab_size // 16) * 16
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=eos,
        tie_word_embeddings=False,
        initializer_range=0.002,
    )
    model = Qwen2ForCausalLM(config)
    save_scripted(directory, model, tokenizer, successors)
    (directory / "braid.json").write_bytes(msgspec.json.encode({"protocol": msgspec.to_builtins(protocol)}))
    return tokenizer


@pytest.mark.parametrize("name", FORKS)
async def test_a_model_forks_and_goes_on_behind_its_branches(name: str, tmp_path: Path) -> None:
    protocol, fork = FORKS[name]
    tokenizer = scripted(tmp_path / "model", protocol, fork)
    trace = tmp_path / "run.trace"
    async with Engine.open(tmp_path / "model", trace=trace, page_size=4, num_pages=300) as engine:
        answer = await engine.run("Q")
    assert (answer.usage.threads, answer.usage.spawns_requested, answer.usage.spawns_granted) == (3, 2, 2)
    assert (engine.statistics.pages_used, engine.statistics.open_threads) == (0, 0)

    after, end = protocol.after_fork, protocol.branch_end + protocol.after_branch
    said = (" a thought",) * 2 if protocol.branches else (" one", " another one")
    branches = [protocol.branch.format(name=i + 1) + text + end for i, text in enumerate(said)]
    events = list(read(trace).events)
    (root,) = thread_tree(events)
    expected = f"Q let us see {fork}{after}{''.join(branches)}{protocol.joined} so it is{EOS}"
    assert tokenizer.decode(context_of(root).tokens) == expected
    assert answer.text.endswith(" so it is")
    for child, branch in zip(root.children, branches, strict=True):
        assert tokenizer.decode(context_of(child).tokens) == branch
    merges = [event for event in events if isinstance(event, Merged)]
    assert len(merges) == (protocol.gives == "keys and values")
    for merge in merges:
        longest = max(len(context_of(child).tokens) for child in root.children)
        assert merge.next_position == merge.position + longest
    assert await anyio.to_thread.run_sync(traces_command, ["replay", str(trace), "--verify"]) == 0


async def test_a_branch_forks_in_turn(tmp_path: Path) -> None:
    protocol, fork = FORKS["multiverse"]
    nested = "<Goal><Outline>1.1 : z</Outline></Goal>"
    tokenizer = scripted(tmp_path / "model", protocol, fork, nested)
    trace = tmp_path / "run.trace"
    async with Engine.open(tmp_path / "model", trace=trace, page_size=4, num_pages=300) as engine:
        answer = await engine.run("Q")
    assert answer.usage.threads == 4
    first = f"<Path>\n1: deeper {nested}\n<Path>\n1.1: deep</Path>\n<Conclusion>\n so it is{EOS}</Path>\n"
    (root,) = thread_tree(read(trace).events)
    said = tokenizer.decode(context_of(root).tokens)
    expected = f"Q let us see {fork}\n{first}<Path>\n2: another one</Path>\n<Conclusion>\n so it is{EOS}"
    assert said == expected


async def test_the_spawn_policy_is_asked_for_each_branch(tmp_path: Path) -> None:
    scripted(tmp_path / "model", *FORKS["multiverse"])
    async with Engine.open(tmp_path / "model", policy=Policy(spawn=MaxChildren(1)), num_pages=60) as engine:
        answer = await engine.run("Q")
    assert (answer.usage.threads, answer.usage.spawns_requested, answer.usage.spawns_granted) == (2, 2, 1)
    assert answer.text.endswith(" so it is")


@pytest.mark.parametrize(("threshold", "granted"), [(0.0, 2), (50.0, 0)])
async def test_branches_are_asked_for_with_the_entropy_at_the_fork(
    threshold: float, granted: int, tmp_path: Path
) -> None:
    scripted(tmp_path / "model", *FORKS["multiverse"])
    async with Engine.open(tmp_path / "model", policy=Policy(spawn=ByEntropy(threshold)), num_pages=60) as engine:
        answer = await engine.run("Q")
    assert (answer.usage.spawns_requested, answer.usage.spawns_granted) == (2, granted)


def test_a_declaration_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ProtocolError, match="outline_pattern"):
        ForkProtocol(fork="<f>", branch="<b>", branch_end="</b>")
    with pytest.raises(ProtocolError, match="joined is empty"):
        ForkProtocol(fork="<f>", branch="<b>", branch_end="</b>", branches=("1",), gives="keys and values")
