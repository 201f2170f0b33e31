"""The comparison with peers: its processes, tables and command with fake sides, and the sides that run here on a
tiny Llama. How fast anything is, is not tested here."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import driving, models
from benchmarks.peers import __main__ as command
from benchmarks.peers import engine_side, huginn_reference, transformers_batching, transformers_generate
from benchmarks.peers.answering import Exits, Job, Load
from benchmarks.peers.comparison import COLUMNS, Contest, Matrix, equal_share
from benchmarks.peers.process import ROOT, SideFailed, SideProcess, Unavailable
from benchmarks.peers.sides import PEERS, Peer, Places, Side
from benchmarks.peers.subjects import SUBJECTS, Subject
from benchmarks.result import Result, Spread
from runtime.model.checkpoint import save_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the comparison needs Linux")

FAKE = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from contextlib import contextmanager
from benchmarks.peers.answering import Answered, Loaded, serve

{{before}}

def answer(prompts):
    return Answered([{{tokens}} for prompt in prompts], [])

@contextmanager
def load(job):
    print("noise on standard output")
    {{loading}}
    yield Loaded(answer=answer, check={{check}}, versions={{{{"fake": "1.0"}}}})

if __name__ == "__main__":
    serve(load)
"""

MakeSide = Callable[..., Side]


@pytest.fixture(autouse=True)
def few_objects() -> Iterator[None]:
    """Garbage is collected before each timing, and what the tests have imported makes that slow."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def fake(tmp_path: Path) -> MakeSide:
    """Makes sides that compute `tokens`, an expression of `prompt`, in processes of their own."""

    def make(
        name: str, *, tokens: str = "prompt[:2]", loading: str = "pass", check: str = "None", before: str = ""
    ) -> Side:
        script = tmp_path / f"{name}.py"
        script.write_text(FAKE.format(tokens=tokens, loading=loading, check=check, before=before))
        return Side(name=name, command=(sys.executable, str(script)))

    return make


def job(directory: Path, *, threads: int = 1, prompt: int = 4, tokens: int = 2, exits: Exits | None = None) -> Job:
    return Job(
        checkpoint=str(directory / "checkpoint"),
        dtype="float32",
        threads=threads,
        batch=3,
        prompt=prompt,
        tokens=tokens,
        memory=2**24,
        scratch=str(directory),
        exits=exits,
    )


def started(side: Side, directory: Path, threads: int = 1) -> SideProcess:
    return SideProcess(side.name, side.command, job(directory, threads=threads), directory / f"{side.name}.log")


def state(pid: int) -> str:
    """One letter that says what the system has a process doing; T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_side_answers_and_is_stopped_in_between(fake: MakeSide, tmp_path: Path) -> None:
    side = fake("side", tokens="[prompt[0], os.getpid()]")
    with started(side, tmp_path) as process:
        assert process.ready.versions == {"fake": "1.0"}
        answer = process.ask([[5, 6], [7, 8]])
        assert [tokens[0] for tokens in answer.tokens] == [5, 7]
        assert answer.seconds > 0
        pid = answer.tokens[0][1]
        assert state(pid) == "T"
        assert process.ask([[9]]).tokens == [[9, pid]], "the process is not the same"
    assert not Path(f"/proc/{pid}").exists()
    assert "noise on standard output" in (tmp_path / "side.log").read_text()


def test_what_a_side_has_started_ends_with_it(fake: MakeSide, tmp_path: Path) -> None:
    worker = "import subprocess; worker = subprocess.Popen(['sleep', '1000'])"
    with started(fake("side", tokens="[0, worker.pid]", before=worker), tmp_path) as process:
        ((_, pid),) = process.ask([[1]]).tokens
        descriptor = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([descriptor], [], [], 10)
    finally:
        os.close(descriptor)
    assert ended


ASKING = """
import sys
from pathlib import Path
from benchmarks.peers.answering import Job
from benchmarks.peers.process import SideProcess, ended_in_order

script, directory = sys.argv[1:]
job = Job(checkpoint="", dtype="float32", threads=1, batch=1, prompt=1, tokens=2, memory=1, scratch="")
with ended_in_order(), SideProcess("side", [sys.executable, script], job, Path(directory, "log")) as side:
    side.ask([[1]])
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -9)])
def test_a_side_does_not_go_on_computing_for_nobody(fake: MakeSide, tmp_path: Path, number: int, status: int) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    endless = f"(open({str(started)!r}, 'w').write(str(os.getpid())), time.sleep(1000))"
    script = fake("side", tokens=endless).command[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asker = subprocess.Popen([sys.executable, "-c", ASKING, script, str(tmp_path)], env=environment)
    descriptor = os.pidfd_open(int(started.read_text()))
    try:
        asker.send_signal(number)
        assert asker.wait(10) == status
        ended, _, _ = select.select([descriptor], [], [], 10)
    finally:
        os.close(descriptor)
    assert ended


@pytest.mark.parametrize("threads", [1, 2])
def test_every_side_gets_the_same_threads(fake: MakeSide, tmp_path: Path, threads: int) -> None:
    if threads > len(os.sched_getaffinity(0)):
        pytest.skip("this machine has not as many processors")
    side = fake("side", tokens="[len(os.sched_getaffinity(0)), int(os.environ['OMP_NUM_THREADS'])]")
    with started(side, tmp_path, threads) as process:
        assert process.ask([[1]]).tokens == [[threads, threads]]


def test_checks_are_answered_by_the_check(fake: MakeSide, tmp_path: Path) -> None:
    check = "lambda prompts: Answered([[0, 0] for _ in prompts], [])"
    with started(fake("side", check=check), tmp_path) as process:
        assert process.ready.checks
        assert process.ask([[5, 6]]).tokens == [[5, 6]]
        assert process.ask([[5, 6]], check=True).tokens == [[0, 0]]


def test_missing_library_is_told_apart_from_failure(fake: MakeSide, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No module named 'no_such_library'"):
        started(fake("missing", loading="import no_such_library"), tmp_path).__enter__()
    with pytest.raises(Unavailable, match="/no/such/python cannot be started"):
        started(Side(name="gone", command=("/no/such/python",)), tmp_path).__enter__()
    with pytest.raises(SideFailed, match=r"failing: ValueError: weights are torn(.|\n)*noise on standard output"):
        started(fake("failing", loading="raise ValueError('weights are torn')"), tmp_path).__enter__()


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ("os.kill(os.getpid(), 9)", "ended without an answer"),
        ("1 / 0", "ZeroDivisionError"),
        ("[1, 2, 3]", r"made \[3\] tokens; 2 each for 1 prompts were due"),
    ],
)
def test_side_that_fails_while_answering(fake: MakeSide, tmp_path: Path, tokens: str, said: str) -> None:
    with started(fake("side", tokens=tokens), tmp_path) as process, pytest.raises(SideFailed, match=said) as caught:
        process.ask([[1]])
    assert caught.value.side == "side"


SUBJECT = Subject(title="no model", family="llama", vocab=50, save=lambda directory: None, aims={"half": {2: 1e9}})
MATRIX = Matrix(dtypes=("float32", "bfloat16"), threads=(1,), batches=(1, 2), prompt=4, tokens=2, rounds=3)


def contest(
    directory: Path, engine: Side, peers: dict[str, Side], matrix: Matrix = MATRIX
) -> tuple[Result | None, list[str]]:
    """The result, and what was said on the way."""
    said: list[str] = []
    result = Contest("none", SUBJECT, matrix, directory, said.append, engine).run(
        {name: (side, f"install {name}") for name, side in peers.items()}
    )
    return result, said


def cells(result: Result, column: str, **case: object) -> list[object]:
    """A column of the rows that have these values in others."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in result.rows]
    return [row[column] for row in rows if all(row[name] == value for name, value in case.items())]


def test_every_case_has_every_side(fake: MakeSide, tmp_path: Path) -> None:
    slow = "(time.sleep(0.02), prompt[:2])[1]"
    half = fake("half", tokens="(time.sleep(0.02), [prompt[0], -1])[1]")
    result, said = contest(tmp_path, fake("engine"), {"equal": fake("equal", tokens=slow), "half": half})
    assert result is not None
    assert [row[:4] for row in result.rows] == [
        (dtype, 1, batch, side)
        for dtype in ("float32", "bfloat16")
        for batch in (1, 2)
        for side in ("engine", "equal", "half")
    ]
    assert cells(result, "equal tokens, %", side="equal") == [100, 100, "", ""]
    assert cells(result, "equal tokens, %", side="half") == [50, 50, "", ""]
    for ratio in cells(result, "engine / side", side="equal"):
        assert isinstance(ratio, Spread)
        assert ratio.least > 1, "the slower side has won"
    for speed in cells(result, "tokens/s", side="half", batch=2):
        assert isinstance(speed, Spread)
        assert 0 < speed.greatest < 2 * 2 / 0.04
    assert [str(aim).rpartition(", ")[2] for aim in result.aims] == ["aim at least 1,000,000,000: NOT MET"] * 2
    assert "engine / half, tokens/s, bfloat16, threads: 1, batch 2" in str(result.aims[1])
    assert "half: fake 1.0." in result.notes
    assert any("batch 2: engine" in line for line in said)


def test_checked_tokens_are_compared_and_not_timed_ones(fake: MakeSide, tmp_path: Path) -> None:
    check = "lambda prompts: Answered([prompt[:2] for prompt in prompts], [])"
    result, _ = contest(tmp_path, fake("engine"), {"peer": fake("peer", tokens="[-1, -1]", check=check)})
    assert result is not None
    assert cells(result, "equal tokens, %", side="peer", dtype="float32") == [100, 100]


def test_peers_that_cannot_take_part_are_left_out(fake: MakeSide, tmp_path: Path) -> None:
    peers = {
        "missing": fake("missing", loading="import no_such_library"),
        "torn": fake("torn", loading="raise ValueError('weights are torn')"),
        "tiring": fake("tiring", tokens="[1, 2 // (len(prompts) < 2)]"),
        "good": fake("good"),
    }
    result, said = contest(tmp_path, fake("engine"), peers)
    assert result is not None
    assert cells(result, "side", batch=1, dtype="float32") == ["engine", "tiring", "good"]
    assert cells(result, "side", batch=2, dtype="float32") == ["engine", "good"]
    assert cells(result, "side", batch=1, dtype="bfloat16") == ["engine", "good"]
    told = "\n".join(said)
    assert told.count("no_such_library'. To have it: install missing.") == 1
    assert told.count("torn is skipped, because it failed. torn: ValueError: weights are torn") == 1
    assert told.count("tiring is left out from here on") == 1


def test_without_a_peer_there_is_no_result(fake: MakeSide, tmp_path: Path) -> None:
    missing = fake("missing", loading="import no_such_library")
    result, said = contest(tmp_path, Side(name="engine", command=("/no/such/engine",)), {"missing": missing})
    assert result is None
    assert not any("into engine" in line for line in said)


def test_engine_that_fails_ends_the_comparison(fake: MakeSide, tmp_path: Path) -> None:
    with pytest.raises(SideFailed, match="engine: ZeroDivisionError"):
        contest(tmp_path, fake("engine", tokens="1 / 0"), {"good": fake("good")})


def test_equal_share_is_over_what_both_answered() -> None:
    assert equal_share([[1, 2], [3, 4], [5, 6]], [[1, 9], [3, 4]]) == 0.75


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


def test_command_prints_a_table_and_writes_json(
    fake: MakeSide, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tokens = "(prompt * 2)[:64]"
    monkeypatch.setattr(command, "ENGINE", fake("engine", tokens=tokens))
    monkeypatch.setattr(command, "SUBJECTS", {"none": SUBJECT})
    monkeypatch.setattr(
        command,
        "PEERS",
        {
            "fake": Peer(title="", family="llama", install="", side=lambda places: fake("fake", tokens=tokens)),
            "away": Peer(title="", family="llama", install="look for it", side=lambda places: None),
            "other": Peer(title="", family="raven", install="not needed", side=lambda places: None),
        },
    )
    found = tmp_path / "found.json"
    command.main(["--rounds", "1", "--batch", "2", "--threads", "1", "--dtype", "float32", "--json", str(found)])
    printed = capsys.readouterr()
    assert "engine / side" in printed.out
    assert "threads: 1" in printed.out
    assert "away is skipped. To have it: look for it." in printed.err
    assert "not needed" not in printed.err
    (result,) = json.loads(found.read_bytes())["results"]
    assert [row[3] for row in result["rows"]] == ["engine", "fake"]
    assert result["rows"][1][6] == 100
    with pytest.raises(ValueError, match="Nothing was compared"):
        command.main(["--peer", "away", "--threads", "1"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peer", "vlm"], "invalid choice: 'vlm'"),
        (["--rounds", "0"], "--rounds: is '0'; give a whole number of at least 1"),
        (["--threads", "0"], "--threads: is '0'; give a whole number of at least 1"),
        (["--threads", "9999"], "--threads: is 9999; this process may use"),
    ],
)
def test_command_refuses(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert said in capsys.readouterr().err


def test_peers_elsewhere_are_found_where_the_user_says() -> None:
    places = Places(vllm_python=Path("env/bin/python"), huginn=Path("clone"))
    vllm, huginn = PEERS["vllm"].side(places), PEERS["huginn"].side(places)
    assert vllm is not None
    assert vllm.command[0] == str(Path.cwd() / "env/bin/python")
    assert huginn is not None
    assert huginn.command[0] == sys.executable
    assert huginn.clone == str(Path.cwd() / "clone")
    assert PEERS["vllm"].side(Places()) is None
    assert PEERS["huginn"].side(Places(vllm_python=Path("env/bin/python"))) is None
