"""Every example script runs and prints what its first lines promise."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from examples import (
    chaos,
    checked,
    custom_policy,
    latents,
    record_replay,
    search,
    self_consistency,
    sharing,
    streaming,
    summary,
)
from examples.countdown.problems import Problem

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_search(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    anyio.run(search.main, Problem((22, 26, 31, 53), 27), backend=backend)
    printed = capsys.readouterr().out
    assert "= 27, right: True" in printed


def test_chaos(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'braid-runtime[ray]'")
    anyio.run(chaos.main, 1)
    *answers, last = capsys.readouterr().out.splitlines()[-4:]
    assert [line.partition(":")[0] for line in answers] == list(chaos.PROBLEMS)
    assert last.startswith("1 replicas were killed, ")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_sharing(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    anyio.run(sharing.main, 2, backend=backend)
    without, with_messages = capsys.readouterr().out.splitlines()
    assert without.startswith("without messages: 2 of 2 solved, ")
    assert with_messages.startswith("with messages: 2 of 2 solved, ")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_checked(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    anyio.run(checked.main, Problem((22, 26, 31, 53), 27), backend=backend)
    printed = capsys.readouterr().out
    assert "27: right\n" in printed
    assert "a way to 27: " in printed


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("steps", "verdict"),
    [
        ("53 - 31 22 22 / 22 1 26 + 1 27", "right"),
        ("53 - 31 23 23 / 22 1 26 + 1 27", "wrong: 53 - 31 is not 23, or uses a number twice"),
        ("53 - 53 0", "wrong: 53 - 53 is not 0, or uses a number twice"),
        ("53 - 31 22", "wrong: it leaves [22, 22, 26]"),
    ],
)
async def test_a_checker_works_steps_out(steps: str, verdict: str) -> None:
    assert await checked.check(steps, [22, 26, 31, 53], 27) == verdict


def test_self_consistency(capsys: pytest.CaptureFixture[str]) -> None:
    anyio.run(self_consistency.main)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("(")[0] for line in lines] == ["SelfConsistency", "MostlyRight"]


def test_custom_policy(capsys: pytest.CaptureFixture[str]) -> None:
    anyio.run(custom_policy.main)
    fixed, eager, careful = capsys.readouterr().out.splitlines()
    depths = [float(line.split("; ")[1].split()[0]) for line in (fixed, eager, careful)]
    assert depths[1] <= depths[2] <= depths[0]


def test_streaming(capsys: pytest.CaptureFixture[str]) -> None:
    anyio.run(streaming.main)
    printed = capsys.readouterr().out
    assert "46 tokens in the context" in printed
    assert "left after" in printed


def test_record_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    anyio.run(record_replay.main, tmp_path / "run.trace")
    assert "equal: True" in capsys.readouterr().out


def test_latents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps get smaller, as where something converges."""
    anyio.run(latents.main, tmp_path / "latents.svg")
    *steps, _ = capsys.readouterr().out.splitlines()
    moved = [float(line.split("moved by ")[1].split()[0]) for line in steps]
    assert len(moved) > 2
    assert moved == sorted(moved, reverse=True)
    assert "log distance to the last state" in (tmp_path / "latents.svg").read_text()


def test_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a real model, with two short paragraphs of the text that comes with it."""
    title, first, second = (EXAMPLES / "beehive.txt").read_text().split("\n\n")[:3]
    sentences = [paragraph.split(". ")[0] + "." for paragraph in (first, second)]
    (tmp_path / "short.txt").write_text("\n\n".join([title, *sentences]))
    anyio.run(summary.main, tmp_path / "short.txt", None)
    printed = capsys.readouterr().out
    assert printed.count("In winter the bees do not sleep") == 1
    assert "└── 0.1  In spring the workers" in printed
    assert "3 threads" in printed


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_scripts_stay_short(script: str) -> None:
    assert len((EXAMPLES / script).read_text().splitlines()) < 80
