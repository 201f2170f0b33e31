"""Supervised training: packing, the depth it trains at, and going on after a kill as if nothing had happened."""

from __future__ import annotations

import copy
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException

from policies import Fixed, Policy
from policies.training import (
    Example,
    SupervisedConfig,
    exactness,
    export_checkpoint,
    initialise_from,
    plot_metrics,
    restore,
    run_processes,
    train,
)
from policies.training.examples import PackedBatch, pack
from policies.training.finite import whole_or_nothing
from policies.training.metrics import drop_metrics_after, read_metrics, write_metrics
from policies.training.resume import save
from policies.training.schedule import learning_rate, sample_iterations
from policies.training.supervised import TrainingRun
from policies.training.teacher_forcing import TeacherForced, initial_state
from runtime import CheckpointError, ProtocolError, TagProtocol
from runtime.model.checkpoint import load_checkpoint
from runtime.model.families.raven import RavenConfig
from runtime.model.parameters import initialise
from runtime.model.tokenizer import Tokenizer
from runtime.model.transformer import Rotation, Transformer
from tests.engine.tiny import tiny_model

CONFIG = SupervisedConfig(
    steps=6,
    tokens_per_step=200,
    tokens_per_batch=120,
    warmup=2,
    log_every=1,
    checkpoint_seconds=0.0,
    compile=False,
    bfloat16=False,
)


def successors(random_source: random.Random) -> Iterator[Example]:
    """After a prompt token, count upwards: a task that a tiny model begins to learn at once."""
    while True:
        start = random_source.randrange(30)
        tokens = [start + step for step in range(8)]
        yield Example(tokens, [0.0] + [1.0] * 7)


def of_length(lengths: list[int], chance: random.Random) -> list[Example]:
    return [Example([chance.randrange(40) for _ in range(length)], [0.0] + [1.0] * (length - 1)) for length in lengths]


def steps_logged(directory: Path) -> list[float]:
    return [metrics["step"] for metrics in read_metrics(directory)]


def differences(model: Transformer, other: Transformer) -> list[str]:
    others = dict(other.named_parameters())
    return [name for name, parameter in model.named_parameters() if not torch.equal(parameter, others[name])]


@given(st.lists(st.integers(2, 60), min_size=1, max_size=12), st.integers(64, 200))
def test_packing_keeps_every_weighted_token_and_pads_the_rest(lengths: list[int], most: int) -> None:
    examples = of_length(lengths, random.Random(0))
    batches = list(pack(examples, tokens_per_batch=most))
    assert all(batch.inputs.numel() <= most for batch in batches)
    assert sum(len(batch.inputs) for batch in batches) == len(examples)
    pairs = Counter(
        (int(a), int(b))
        for batch in batches
        for a, b, weight in zip(batch.inputs.flatten(), batch.targets.flatten(), batch.weights.flatten(), strict=True)
        if weight
    )
    assert pairs == Counter(pair for e in examples for pair in zip(e.tokens, e.tokens[1:], strict=False))


@pytest.mark.parametrize("bad", [Example([1], [1.0]), Example([1, 2, 3], [1.0])])
def test_packing_names_what_is_wrong_with_an_example(bad: Example) -> None:
    with pytest.raises(ValueError, match="a weight for each"):
        list(pack([bad], 100))


@pytest.mark.parametrize("shape", [(0, 1, 0), (1, 2, 1), (2, 1, 3)])
@pytest.mark.parametrize("state_init", ["zero", "like-init"])
def test_threads_do_not_see_each_other_in_models_of_any_shape(shape: tuple[int, int, int], state_init: str) -> None:
    """The loss of a batch is that of its threads alone, whatever else is packed with them."""
    prelude, core, coda = shape
    model = tiny_model(2, prelude=prelude, core=core, coda=coda, state_init=state_init)
    forced = TeacherForced(model, compile_model=False, bfloat16=False)
    first, second = of_length([9, 14], random.Random(4))

    def loss(batch: PackedBatch) -> float:
        return float(forced.loss_sum(batch, 1, 2, torch.Generator().manual_seed(3)).detach())

    def with_second_as(example: Example) -> PackedBatch:
        return next(pack([first, example], 1000))

    together = with_second_as(second)
    silent = with_second_as(Example(second.tokens, [0.0] * 14))
    other = with_second_as(Example(second.tokens[::-1], [0.0] * 14))
    assert loss(silent) == pytest.approx(loss(other), rel=1e-5)
    assert loss(together) > loss(silent)


def test_initial_states_are_drawn_as_the_model_says() -> None:
    embedded = torch.zeros(50, 20, 16)
    assert not initial_state(tiny_model(), embedded).any()
    noisy = tiny_model(state_init="like-init")
    drawn = initial_state(noisy, embedded, torch.Generator().manual_seed(1))
    std = noisy.specification.state_std * noisy.specification.embedding_scale
    assert float(drawn.std()) == pytest.approx(std, rel=0.05)
    assert float(drawn.abs().max()) <= 3 * std * (1 + 1e-6)
    assert torch.equal(drawn, initial_state(noisy, embedded, torch.Generator().manual_seed(1)))


def test_gradients_pass_through_the_last_iterations_only() -> None:
    model = tiny_model(3)
    forced = TeacherForced(model, compile_model=False, bfloat16=False)
    (batch,) = pack(of_length([12], random.Random(1)), 100)
    counted: list[bool] = []

    def iterate(state: Tensor, embedded: Tensor, rotation: Rotation) -> Tensor:
        counted.append(torch.is_grad_enabled())
        return TeacherForced._iterate(forced, state, embedded, rotation)

    forced.iterate = iterate
    forced.loss_sum(batch, 3, 2).backward()
    assert counted == [False] * 3 + [True] * 2
    assert model.get_parameter("adapter.weight").grad is not None


@given(st.floats(1.0, 12.0), st.integers(1, 20), st.integers(1, 8), st.integers(0, 1000))
def test_iterations_stay_within_their_bounds(mean: float, most: int, backprop: int, seed: int) -> None:
    config = SupervisedConfig(steps=1, mean_iterations=mean, most_iterations=most, most_backprop=backprop)
    without, with_gradient = sample_iterations(random.Random(seed), config)
    assert 1 <= with_gradient <= backprop
    assert without >= 0
    assert without + with_gradient <= most
    assert without == 0 or with_gradient == backprop


def test_iterations_spread_around_their_mean() -> None:
    chance = random.Random(1)
    totals = [sum(sample_iterations(chance, CONFIG)) for _ in range(4000)]
    assert min(totals) == 1
    assert max(totals) == CONFIG.most_iterations
    assert sum(totals) / len(totals) == pytest.approx(CONFIG.mean_iterations, abs=0.3)
    uncut = msgspec.structs.replace(CONFIG, mean_iterations=12.0, most_iterations=1000)
    drawn = [sum(sample_iterations(chance, uncut)) for _ in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(12.0, abs=0.4)


def test_the_rate_warms_up_holds_and_decays_to_zero() -> None:
    config = SupervisedConfig(steps=100, warmup=10, hold=0.5)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:51]) == {1.0}
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0.0


@pytest.mark.parametrize("state_init", ["zero", "like-init"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path, state_init: str) -> None:
    def run(directory: Path, *stops: int) -> Transformer:
        for steps in stops:
            model = tiny_model(5, state_init=state_init)
            # Rates that do not decay: a kill is a config that ends early and is otherwise the same.
            train(model, successors, msgspec.structs.replace(CONFIG, steps=steps, hold=1.0), directory, {})
        return model

    whole, resumed = run(tmp_path / "whole", 6), run(tmp_path / "resumed", 3, 6)
    assert not differences(whole, resumed)
    assert steps_logged(tmp_path / "resumed") == [1, 2, 3, 4, 5, 6]


class Killed(Exception):
    pass


@pytest.mark.parametrize("moment", ["before any checkpoint", "after a checkpoint", "inside a line"])
def test_a_kill_neither_doubles_nor_loses_metrics(tmp_path: Path, moment: str) -> None:
    """The process ends while drawing the examples of step 4; the last checkpoint is older than the last line."""

    def until_killed(random_source: random.Random) -> Iterator[Example]:
        if len(read_metrics(tmp_path)) == 4:
            raise Killed
        return successors(random_source)

    slow = msgspec.structs.replace(CONFIG, checkpoint_seconds=1e9)
    model = tiny_model(5)
    if moment != "before any checkpoint":
        train(model, successors, msgspec.structs.replace(CONFIG, steps=2), tmp_path, {})
    with pytest.raises(Killed):
        train(tiny_model(5), until_killed, slow, tmp_path, {})
    assert steps_logged(tmp_path) == [1, 2, 3, 4]
    if moment == "inside a line":
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step":5,"lo')
    train(tiny_model(5), successors, slow, tmp_path, {})
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert restore(tmp_path, tiny_model(0)) == 6


@settings(max_examples=30)
@given(st.integers(0, 8), st.integers(0, 40))
def test_metrics_end_at_a_step_wherever_the_file_was_cut(
    tmp_path_factory: pytest.TempPathFactory, step: int, cut: int
) -> None:
    directory = tmp_path_factory.mktemp("metrics")
    for done in range(1, 7):
        write_metrics(directory, {"step": done, "loss": 1 / done if done != 3 else float("nan")})
    path = directory / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - cut)
    whole = steps_logged(directory)
    kept = [metrics["step"] for metrics in drop_metrics_after(directory, step)]
    assert kept == [done for done in whole if done <= step]
    write_metrics(directory, {"step": 99})
    assert steps_logged(directory) == [*kept, 99]


def test_lines_that_are_no_metrics_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"loss": "low"}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path)


def test_a_run_of_another_model_is_refused_and_nothing_changed(tmp_path: Path) -> None:
    save(tmp_path, 3, tiny_model(0, core=2), [])
    model = tiny_model(1)
    with pytest.raises(CheckpointError, match="another model"):
        restore(tmp_path, model)
    assert not differences(model, tiny_model(1))
    (tmp_path / "training.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="not a training run"):
        restore(tmp_path, model)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example([1] * 65, [1.0] * 65), "65 tokens; the model's context has 64"),
        (Example([1, 40], [0.0, 1.0]), "vocabulary of 40"),
        (Example([1, 2], [1.0, 0.0]), "No example of this step has a loss weight"),
        (None, "must not run out"),
    ],
)
def test_unusable_examples_are_explained(tmp_path: Path, example: Example | None, message: str) -> None:
    examples = [] if example is None else [example]
    with pytest.raises(ValueError, match=message):
        train(tiny_model(), lambda _: examples, CONFIG, tmp_path, {})


def test_training_teaches_and_leaves_a_picture(tmp_path: Path) -> None:
    held_out = [example for example, _ in zip(successors(random.Random("held out")), range(20), strict=False)]
    model = tiny_model(5)
    before = exactness(model, held_out, 3)
    config = msgspec.structs.replace(CONFIG, steps=100, log_every=50, checkpoint_seconds=1e9)
    train(model, successors, config, tmp_path, {"all": held_out})
    lines = read_metrics(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert lines[-1]["all"] == exactness(model, held_out, 3) > before
    picture = (tmp_path / "metrics.svg").read_text()
    assert "<svg" in picture
    assert plot_metrics(tmp_path) == tmp_path / "metrics.svg"
    assert (tmp_path / "metrics.svg").read_text() == picture


def test_a_plot_without_metrics_or_matplotlib_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no metrics to plot"):
        plot_metrics(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_metrics(tmp_path)


PROTOCOL = TagProtocol(spawn_open="<s>", spawn_close="</s>", join="<j>", return_open="<r>", end=("<e>",))


def word_tokenizer(words: list[str]) -> Tokenizer:
    model = tokenizers.models.WordLevel({word: token for token, word in enumerate(words)}, unk_token=words[-1])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(tokenizer)


def test_a_run_starts_from_a_checkpoint_whose_vocabulary_has_grown(tmp_path: Path) -> None:
    tags = [*PROTOCOL.tags, "<unknown>"]
    words = [*(str(number) for number in range(34)), *tags]
    old = tiny_model(1)
    config = old.config
    assert isinstance(config, RavenConfig)
    export_checkpoint(tmp_path, old, word_tokenizer(words), PROTOCOL, Policy(depth=Fixed(2)))
    written = load_checkpoint(tmp_path)
    assert written.stop_tokens == (words.index("<e>"),)
    grown = ["new", *words[:20], "newer", *words[20:]]
    model = Transformer(msgspec.structs.replace(config, vocab_size=len(grown)))
    initialise(model, torch.Generator().manual_seed(9))
    fresh = model.head.weight.detach().clone()
    assert initialise_from(model, tmp_path, word_tokenizer(grown)) == 2
    for place, word in enumerate(grown):
        expected = old.head.weight[words.index(word)] if word in words else fresh[place]
        assert torch.equal(model.head.weight[place], expected), word
    assert torch.equal(model.get_parameter("adapter.weight"), old.get_parameter("adapter.weight"))
    with pytest.raises(CheckpointError, match="only the number of tokens may differ"):
        initialise_from(
            Transformer(msgspec.structs.replace(config, intermediate_size=32)), tmp_path, word_tokenizer(words)
        )
    with pytest.raises(CheckpointError, match="another structure"):
        initialise_from(tiny_model(core=2), tmp_path, word_tokenizer(words))


def test_a_tokenizer_that_cannot_write_the_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError):
        export_checkpoint(tmp_path / "checkpoint", tiny_model(), word_tokenizer(["1", "2", "?"]), PROTOCOL)
    assert not (tmp_path / "checkpoint").exists()


def train_a_share(rank: int, world: int, directory: Path) -> None:
    """For a process of its own: trains, and each rank leaves the model it has."""
    model = tiny_model(5)
    train(model, successors, CONFIG, directory, {}, rank, world)
    save(directory / str(rank), CONFIG.steps, model, [])


def die_at_once(rank: int, world: int, how: str) -> None:
    """Rank 1 fails while rank 0 waits for it."""
    if rank == 1 and how == "exits":
        os._exit(7)
    if rank == 1:
        raise ValueError("rank 1 has had enough")
    torch.distributed.barrier()


def test_processes_train_one_model_on_what_all_of_them_draw(tmp_path: Path) -> None:
    run_processes(train_a_share, 2, tmp_path)
    models = [tiny_model(0), tiny_model(0)]
    for rank, model in enumerate(models):
        restore(tmp_path / str(rank), model)
    assert not differences(*models)
    # One process that draws both shares has the same gradients, and so the same first loss.
    alone = TrainingRun(tiny_model(5), CONFIG, tmp_path / "alone", 0, 1)

    def both(_: random.Random) -> list[Example]:
        drawn = []
        for rank in (0, 1):
            total = 0
            for example in successors(random.Random(f"{CONFIG.seed}/{rank}/0")):
                drawn.append(example)
                total += len(example.tokens)
                if total >= CONFIG.tokens_per_step:
                    break
        return drawn

    alone.config = msgspec.structs.replace(CONFIG, tokens_per_step=2 * CONFIG.tokens_per_step)
    assert alone.train_step(both) == pytest.approx(read_metrics(tmp_path)[0]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [("raises", ValueError, "^rank 1 has had enough$"), ("exits", ProcessExitedException, "exit code 7")],
)
def test_a_process_that_fails_ends_the_others(how: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_processes(die_at_once, 2, how)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in ("steps", "tokens_per_step", "tokens_per_batch", "most_iterations", "most_backprop")),
        *((name, -1) for name in ("seed", "warmup", "log_every")),
        *((name, value) for name in ("muon_rate", "adam_rate", "weight_decay") for value in (-1.0, float("nan"))),
        *((name, value) for name, value in (("hold", 1.5), ("clip", 0.0), ("mean_iterations", 0.5))),
    ],
)
def test_configurations_that_teach_nothing_are_refused(field: str, value: float) -> None:
    changes: dict[str, Any] = {"steps": 1, field: value}
    with pytest.raises(ValueError, match=f"SupervisedConfig: {field} is "):
        SupervisedConfig(**changes)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_loss_weights_that_mean_nothing_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="loss weight that is not finite or below 0"):
        list(pack([Example([1, 2, 3], [0.0, 1.0, weight])], 100))


def test_a_step_that_would_not_be_finite_changes_nothing(tmp_path: Path) -> None:
    model = tiny_model(0)
    with torch.no_grad():
        model.head.weight[3, 0] = float("inf")
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="The loss is"):
        train(model, successors, CONFIG, tmp_path, {})
    assert not differences(model, before)
    assert not (tmp_path / "training.safetensors").exists()


def test_a_step_ends_in_finite_weights_or_in_those_before() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def step_beyond(bias: float) -> None:
        with whole_or_nothing(model, [optimizer]):
            model(torch.ones(2)).backward()
            optimizer.step()
            with torch.no_grad():
                model.bias.fill_(bias)

    step_beyond(1.0)
    before, states = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="makes the weights bias not finite"):
        step_beyond(float("inf"))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), states, rtol=0, atol=0)


def test_weights_that_are_not_finite_are_neither_saved_nor_restored(tmp_path: Path) -> None:
    model = tiny_model(0)
    save(tmp_path, 1, model, [])
    written = (tmp_path / "training.safetensors").read_bytes()
    with torch.no_grad():
        model.head.weight[3, 0] = float("nan")
    with pytest.raises(ValueError, match=r"head\.weight are not finite"):
        save(tmp_path, 2, model, [])
    assert (tmp_path / "training.safetensors").read_bytes() == written
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    save_file(tensors, tmp_path / "training.safetensors", {"step": "2"})
    with pytest.raises(CheckpointError, match=r"model\.head\.weight is not finite"):
        restore(tmp_path, tiny_model(0))


def test_processes_end_when_what_started_them_is_killed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        program = subprocess.Popen([sys.executable, "-m", "tests.training.waiting", str(port)])
        try:
            connections = [server.accept()[0] for _ in range(2)]
        finally:
            program.kill()
            program.wait()
        for connection in connections:
            with connection:
                # A connection ends when the process at its other end does.
                connection.settimeout(60)
                assert connection.recv(1) == b""


def test_one_process_is_this_one(tmp_path: Path) -> None:
    run_processes(train_a_share, 1, tmp_path)
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="give 1 to 256"):
        run_processes(train_a_share, 0, tmp_path)
