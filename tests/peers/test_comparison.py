"""The comparison with peers on fake sides: who takes part, what is compared, and its tables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.peers.comparison import COLUMNS, Contest, Matrix, equal_share
from benchmarks.peers.process import SideFailed
from benchmarks.peers.sides import Side
from benchmarks.result import Result, Spread
from tests.peers.sides import SUBJECT, MakeSide

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the comparison needs Linux")

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
