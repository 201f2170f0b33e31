"""The Countdown demo: problems, the checkpoint that comes with the package, and the command."""

from __future__ import annotations

import json
import random
from pathlib import Path

import anyio
import pytest

from examples.countdown.problems import Problem, draw_problems, is_solution, reachable, read_problems
from examples.countdown.solve import evaluate
from runtime import Engine
from runtime.model.directories import shipped_directory
from runtime.model.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("expression", "right"),
    [
        ("26 + ((53 - 31) / 22)", True),
        ("26 + (53 - 31) / 22", True),
        ("26 + 1", False),  # not every number
        ("26 + ((53 - 31) / 22) + 22 - 22", False),  # a number twice
        ("27", False),
        ("26 + (53 - 31", False),
        ("26 / (53 - 53)", False),
        ("__import__('os')", False),
        ("26 + ((53 - 31) // 22)", False),
        ("", False),
    ],
)
def test_answers_are_checked_by_evaluating_them(expression: str, right: bool) -> None:
    assert is_solution(Problem((22, 26, 31, 53), 27), expression) == right


def test_drawn_problems_are_as_apr_draws_them() -> None:
    first = next(draw_problems(random.Random(0)))
    drawn = draw_problems(random.Random(0), excluded={first.key})
    for problem, _ in zip(drawn, range(30), strict=False):
        assert problem.key != first.key
        assert len(problem.nums) == 4
        assert all(1 <= number <= 99 for number in problem.nums)
        assert 10 <= problem.target <= 100
        assert problem.target in reachable(problem.key[0], {})


def test_unreadable_problem_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "problems.json"
    path.write_text('[{"numbers": [1, 2]}]')
    with pytest.raises(ValueError, match=r"problems\.json.*nums"):
        read_problems(path)


def test_the_shipped_checkpoint_solves_most_problems() -> None:
    """A sample drawn with a seed of its own; the whole validation set is measured by the command in the model card."""
    drawn = [problem for problem, _ in zip(draw_problems(random.Random("tests")), range(24), strict=False)]

    async def run() -> None:
        async with Engine.open("countdown") as engine:
            evaluation, solutions = await evaluate(engine, drawn)
            assert engine.statistics.open_threads <= 1
        assert engine.statistics.pages_used == 0
        assert evaluation.accuracy >= 0.75
        assert evaluation.longest_thread <= 512
        assert all(is_solution(s.problem, s.expression) == s.is_right for s in solutions if s.expression)

    anyio.run(run)


def test_the_command_answers_and_explains(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from examples.countdown import __main__ as command

    monkeypatch.setattr("sys.argv", ["countdown", "22", "26", "31", "53", "--target", "27", "--json"])
    assert anyio.run(command.main) == 0
    printed = json.loads(capfd.readouterr().out)
    assert is_solution(Problem((22, 26, 31, 53), 27), printed["expression"])
    monkeypatch.setattr("sys.argv", ["countdown", "22", "26"])
    with pytest.raises(SystemExit):
        anyio.run(command.main)
    assert "--target is missing" in capfd.readouterr().err


def test_the_shipped_tokenizer_is_a_standard_one() -> None:
    """transformers reads the same tokenizer.json and splits and joins as the engine does."""
    from transformers import PreTrainedTokenizerFast

    path = shipped_directory() / "countdown" / "tokenizer.json"
    theirs, ours = PreTrainedTokenizerFast(tokenizer_file=str(path)), Tokenizer.from_file(path)
    text = "22 26 31 53 -> 27 Q 27 <spawn> 53 + 31 84 </spawn> <join>"
    assert theirs.encode(text) == ours.encode(text)
    assert ours.decode(ours.encode(text)) == text
