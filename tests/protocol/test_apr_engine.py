"""APR's text protocol end to end: a Llama whose weights make it say a script spawns, joins and answers in an engine."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import anyio
import msgspec
import pytest
import torch
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from policies import MaxChildren, Policy
from runtime import Engine
from runtime.link.events import AnyEvent, Received, Sampled, Spawned
from runtime.model.tokenizer import Tokenizer
from runtime.protocol import apr_protocol
from traces import read
from traces.__main__ import main as traces_command

pytestmark = pytest.mark.anyio

ROOT = "Moving to Node #0\nCurrent State: 39:[51, 49, 36, 25], Operations: []"

SEARCH = """
Exploring Operation: 51-49=2, Resulting Numbers: [36, 25, 2]
Generated Node #0,0: 39:[36, 25, 2] Operation: 51-49=2
Exploring Operation: 36-25=11, Resulting Numbers: [51, 49, 11]
Generated Node #0,1: 39:[51, 49, 11] Operation: 36-25=11
Exploring Operation: 51+49=100, Resulting Numbers: [36, 25, 100]
Generated Node #0,2: 39:[36, 25, 100] Operation: 51+49=100
"""

CALL = """<Calling Sub Searches>
<Start Sub Search 0 at level 1> Moving to Node #0,0
<Start Sub Search 1 at level 1> Moving to Node #0,1
<Start Sub Search 2 at level 1> Moving to Node #0,2
<End Calling Sub Searches>"""

CHILDREN = [
    "Moving to Node #0,0\nCurrent State: 39:[36, 25, 2], Operations: ['51-49=2']",
    "Moving to Node #0,1\nCurrent State: 39:[51, 49, 11], Operations: ['36-25=11']",
    "Moving to Node #0,2\nCurrent State: 39:[36, 25, 100], Operations: ['51+49=100']",
]

FAILING = "\nExploring Operation: 36-25=11, Resulting Numbers: [2, 11]\n2,11 unequal: No Solution\n"

PATH = f"""{CHILDREN[1]}
Exploring Operation: 51-11=40, Resulting Numbers: [49, 40]
39,39 equal: Goal Reached"""

FINDING = f"\nExploring Operation: 51-11=40, Resulting Numbers: [49, 40]\n39,39 equal: Goal Reached\n{PATH}\n"

RESULTS = f"""<Sub Searches>
<No Solution in Sub Search 0 at level 1 at Node #0,0>
<Goal Reached in Sub Search 1 at level 1 at Node #0,1>
{PATH}
<No Solution in Sub Search 2 at level 1 at Node #0,2>
<End Sub Searches>
"""

ANSWER = f"{ROOT}\nExploring Operation: 36-25=11, Resulting Numbers: [51, 49, 11]\n{PATH}"

CONCLUSION = f"Goal Reached\n{ANSWER}\n"

SCRIPTS = {
    "[]": SEARCH + CALL,
    "['51-49=2']": FAILING,
    "['36-25=11']": FINDING,
    "['51+49=100']": FAILING,
    "<End Sub Searches>\n": CONCLUSION,
}
"""What a model says, by how its context ends; each ending is one token."""

BOS, EOS = "<s>", "</s>"


def pieces_of(text: str, taken: set[str]) -> list[str]:
    """Cuts a text into tokens that are not taken yet, as short as can be: no tag is a token of its own."""
    pieces: list[str] = []
    while text:
        size = min(3, len(text))
        while text[:size] in taken and size < len(text):
            size += 1
        piece, text = text[:size], text[size:]
        if piece in taken:
            taken.remove(pieces[-1])
            piece = pieces.pop() + piece
        assert piece not in taken
        taken.add(piece)
        pieces.append(piece)
    return pieces


def tokenizer_and_successors(scripts: Mapping[str, str]) -> tuple[Tokenizer, dict[int, int]]:
    """A tokenizer that encodes by characters, and the token that follows each token in what a model is to say."""
    characters = [*map(chr, range(32, 127)), "\n"]
    taken = {*characters, *scripts, BOS, EOS}
    cut = {ending: pieces_of(text, taken) for ending, text in scripts.items()}
    names = [*characters, *(piece for pieces in cut.values() for piece in pieces)]
    library = Library(models.BPE({name: token for token, name in enumerate(names)}, []))
    library.decoder = decoders.Fuse()
    library.add_special_tokens([BOS, EOS])
    library.add_tokens([*scripts])
    tokenizer = Tokenizer(library)

    def token(name: str) -> int:
        found = tokenizer.token_to_id(name)
        assert found is not None
        return found

    successors: dict[int, int] = {}
    for ending, pieces in cut.items():
        said = [token(ending), *map(token, pieces), token(EOS)]
        successors |= dict(pairwise(said))
    return tokenizer, successors


def save_scripted(directory: Path, model: PreTrainedModel, tokenizer: Tokenizer, successors: Mapping[int, int]) -> None:
    """Makes a model's head map each token to its successor, or to the end, and saves it."""
    weights = dict(model.named_parameters())
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    with torch.no_grad():
        embedding.copy_(torch.eye(*embedding.shape))
        for token in range(tokenizer.vocab_size):
            head[successors.get(token, tokenizer.token_to_id(EOS)), token] += 1.0
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(tokenizer.to_json())


def scripted_llama(directory: Path, budget: int | None) -> Tokenizer:
    """Saves a checkpoint whose head maps each token to its successor; its layers add what is too small to matter."""
    tokenizer, successors = tokenizer_and_successors(SCRIPTS)
    eos = tokenizer.token_to_id(EOS)
    width = -(-tokenizer.vocab_size // 16) * 16
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        eos_token_id=eos,
    )
    model = LlamaForCausalLM(config)
    save_scripted(directory, model, tokenizer, successors)
    braid = {"protocol": msgspec.to_builtins(apr_protocol(budget=budget, bos=BOS, eos=EOS))}
    (directory / "braid.json").write_bytes(msgspec.json.encode(braid))
    return tokenizer


def context_of(events: list[AnyEvent], thread: tuple[int, ...]) -> list[int]:
    """A thread's context at the end of a trace."""
    context: list[int] = []
    for event in events:
        if isinstance(event, Received) and event.thread == thread:
            context[event.position :] = event.tokens
        elif isinstance(event, Sampled) and event.thread == thread:
            context[event.position :] = [event.token]
    return context


@pytest.mark.parametrize(("budget", "prefix"), [(None, ""), (10, "Sub Call Budget: 10 ")])
async def test_a_model_searches_with_sub_searches(tmp_path: Path, budget: int | None, prefix: str) -> None:
    tokenizer = scripted_llama(tmp_path / "apr", budget)
    trace = tmp_path / "run.trace"
    async with Engine.open(tmp_path / "apr", trace=trace) as engine:
        answer = await engine.run(ROOT)
    assert (answer.reason, answer.text) == ("returned", ANSWER)
    assert (answer.usage.threads, answer.usage.spawns_requested, answer.usage.spawns_granted) == (4, 3, 3)
    assert (engine.statistics.pages_used, engine.statistics.open_threads) == (0, 0)

    events = list(read(trace).events)
    # The block is cut out of the parent's context, and what the children found takes its place.
    root = f"{BOS}{prefix}{ROOT}{SEARCH}{RESULTS}{CONCLUSION}{EOS}"
    assert tokenizer.decode(context_of(events, (0,))) == root
    # A child has its node alone: no budget, nothing of its parent's search.
    for number, (prompt, text) in enumerate(zip(CHILDREN, (FAILING, FINDING, FAILING), strict=True)):
        assert tokenizer.decode(context_of(events, (0, number))) == f"{BOS}{prompt}{text}{EOS}"
    assert await anyio.to_thread.run_sync(traces_command, ["replay", str(trace), "--verify"]) == 0


async def test_a_policy_refuses_what_the_budget_would_not_have(tmp_path: Path) -> None:
    """The prefix asks the model; a policy makes sure: the refused child counts as one without a solution."""
    tokenizer = scripted_llama(tmp_path / "apr", budget=2)
    trace = tmp_path / "run.trace"
    async with Engine.open(tmp_path / "apr", policy=Policy(spawn=MaxChildren(2)), trace=trace) as engine:
        answer = await engine.run(ROOT)
    assert answer.text == ANSWER
    assert (answer.usage.threads, answer.usage.spawns_requested, answer.usage.spawns_granted) == (3, 3, 2)
    events = list(read(trace).events)
    assert [event.child for event in events if isinstance(event, Spawned)] == [(0, 0), (0, 1), None]
    assert RESULTS in tokenizer.decode(context_of(events, (0,)))


async def test_many_searches_share_an_engine(tmp_path: Path) -> None:
    scripted_llama(tmp_path / "apr", budget=10)
    answers: list[str] = []
    # So few pages that the trees take them from each other.
    async with Engine.open(tmp_path / "apr", num_pages=120, max_in_flight=64, prefill_chunk=32) as engine:

        async def search() -> None:
            answers.append((await engine.run(ROOT)).text)

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(search)
    assert answers == [ANSWER] * 4
    assert (engine.statistics.pages_used, engine.statistics.open_threads) == (0, 0)
