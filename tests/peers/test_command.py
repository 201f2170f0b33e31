"""The command that compares, and where it finds peers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers.sides import PEERS, Peer, Places
from tests.peers.sides import SUBJECT, MakeSide

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the comparison needs Linux")


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
