"""What is drawn of latent states, and what is told where nothing can be."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import anyio
import numpy as np
import pytest

from policies import LatentDiff, Policy
from runtime import Engine, Latents, TraceError
from traces import TokenStates, latents_svg, read, read_latents
from traces.__main__ import main
from traces.latents import log_distances, principal_coordinates


async def record(path: Path) -> None:
    policy = Policy(depth=LatentDiff(0.05))
    asked = Latents(threads=("0", "0.0"), dimensions=16)
    async with Engine.open("countdown", policy=policy, trace=path, record_latents=asked) as engine:
        await engine.run("22 26 31 53 -> 27")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("states") / "run.trace"
    anyio.run(record, path)
    return path


def test_the_command_draws_a_thread(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latents", str(path)]) == 0
    assert "of thread 0." in capsys.readouterr().err
    written = path.with_name("run.trace.latents.svg")
    text = "".join(ElementTree.fromstring(written.read_text()).itertext())
    for words in (
        "log distance to the last state",
        "principal directions",
        "surprise (nats)",
        "thread 0, positions 0 to",
    ):
        assert words in text
    tokenizer = str(Path(__file__).parents[2] / "runtime" / "checkpoints" / "countdown")
    assert main(["latents", str(path), "--count", "20", "--tokenizer", tokenizer]) == 0
    texts = {element.text for element in ElementTree.fromstring(written.read_text()).iter() if element.text}
    assert {"22", "26", "31", "53", "27"} <= {text.strip() for text in texts}
    other = tmp_path / "other.svg"
    assert main(["latents", str(path), "--thread", "0.0", "--first", "3", "--count", "5", "-o", str(other)]) == 0
    assert "thread 0.0, positions 3 to 7" in other.read_text()
    again = tmp_path / "again.svg"
    assert main(["latents", str(path), "--thread", "0.0", "--first", "3", "--count", "5", "-o", str(again)]) == 0
    assert again.read_bytes() == other.read_bytes()


def test_what_cannot_be_drawn_is_told(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latents", str(path), "--thread", "0.1"]) == 2
    assert "has no states of thread 0.1; it has those of 0, 0.0" in capsys.readouterr().err
    assert main(["latents", str(path), "--first", "5000"]) == 2
    assert "no states from position 5000 on" in capsys.readouterr().err
    alone = tmp_path / "alone.trace"
    alone.write_bytes(path.read_bytes())
    assert main(["latents", str(alone)]) == 2
    assert "Cannot read the latent states" in capsys.readouterr().err
    states = tmp_path / "alone.trace.latents.safetensors"
    states.write_bytes(path.with_name("run.trace.latents.safetensors").read_bytes()[:-100])
    assert main(["latents", str(alone)]) == 2
    assert "Cannot read the latent states" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = read_latents(path.with_name("run.trace.latents.safetensors"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'braid-runtime\[figures\]'"):
        latents_svg(read(path), latents, "0")


def test_hostile_tokens_are_text(path: Path) -> None:
    latents = read_latents(path.with_name("run.trace.latents.safetensors"))
    hostile = "<script>alert(1)</script>$x^{$\x1b[2J"
    figure = latents_svg(read(path), latents, "0", count=4, decode=lambda tokens: hostile)
    assert "<script" not in figure
    assert "\x1b" not in figure
    ElementTree.fromstring(figure)


def test_other_files_have_no_states(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"states": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(TraceError, match="has no latent states of a trace"):
        read_latents(tmp_path / "other.safetensors")


def test_numbers_that_are_drawn() -> None:
    """States on a line, each half as far from the last one as the one before."""
    direction = np.array([3.0, 4.0], np.float32)
    tokens = [
        TokenStates(
            at, at, np.array([direction * (0.0 if r == depth - 1 else 0.5**r) for r in range(depth)], np.float32)
        )
        for at, depth in enumerate((4, 2))
    ]
    distances = log_distances(tokens)
    assert distances.shape == (2, 3)
    np.testing.assert_allclose(distances[0], np.log([5.0, 2.5, 1.25]), rtol=1e-6)
    assert np.isnan(distances[1]).tolist() == [False, True, True]
    first, second = principal_coordinates(tokens, 3)
    assert (first.shape, second.shape) == ((4, 3), (2, 3))
    np.testing.assert_allclose(first[0, 0] - first[1, 0], 2.5, rtol=1e-6)
    np.testing.assert_allclose(first[:, 1:], 0.0, atol=1e-6)
