"""The README's first program runs, and what it says to do with the trace can be done."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from traces.__main__ import main as traces_command

README = (Path(__file__).parents[1] / "README.md").read_text()
(PROGRAM,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TRACE_COMMANDS = re.findall(r"python -m traces ([^#\n]*)", README)


def in_loop(program: str, loop: str) -> str:
    start = "anyio.run(main)"
    assert program.count(start) == 1
    return program.replace(start, f"anyio.run(main, backend={loop!r})")


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_first_program_and_its_trace(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(in_loop(PROGRAM, loop), "README.md", "exec"), {})
    orchestrated, programmed = capsys.readouterr().out.splitlines()
    assert orchestrated.startswith("53 - 31 22 22 / 22 1 26 + 1 27 ")
    assert programmed != "nothing found"
    names = [shlex.split(command)[0] for command in TRACE_COMMANDS]
    assert names == ["show", "export", "replay"]
    for command in TRACE_COMMANDS:
        assert traces_command(shlex.split(command)) == 0, command
        assert any(capsys.readouterr())
    assert len(list(tmp_path.iterdir())) == 2, "the trace and what was exported"
