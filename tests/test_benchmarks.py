"""Every benchmark runs at a tiny size and finds finite numbers; how fast anything is, is not tested here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    backends,
    cancelling,
    cluster,
    constrained,
    continuous,
    cuda,
    depthwise,
    device,
    early_exits,
    fork,
    joins,
    models,
    overhead,
    parked,
    peaks,
    recording,
    simulation,
    speculation,
    wide,
)
from benchmarks.answering import Load
from benchmarks.machine import Environment, cores, processor
from benchmarks.result import Aim, Report, Result, Spread
from benchmarks.timing import in_turn, ratios
from examples.countdown.solve import LIMITS
from policies import Fixed, Limits
from runtime.device.settings import EngineSettings
from traces import read_costs


def sound(result: Result) -> Result:
    """The result, if it is a full table of finite numbers."""
    figures = list(result.figures())
    assert figures
    assert all(math.isfinite(figure) for figure in figures), result
    assert all(len(row) == len(result.columns) for row in result.rows)
    assert all(math.isfinite(aim.measured) for aim in result.aims)
    return result


def column(result: Result, name: str) -> list[object]:
    return [row[result.columns.index(name)] for row in result.rows]


def test_clusters_are_measured_beside_an_engine() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'braid-runtime[ray]'")
    result = sound(cluster.measure(cluster.Size(threads=2, prompt=4, tokens=3, children=2), rounds=1))
    assert column(result, "on") == ["an engine", "a cluster of 1", "a cluster of 2"]


def test_constrained_text_is_as_long_as_free_text() -> None:
    size = constrained.Size(threads=(2,), prompt=4, tokens=3, layers=1, width=64)
    assert column(sound(constrained.measure(size, rounds=1)), "threads") == [2]


def test_depthwise_compares_equal_work() -> None:
    size = depthwise.Size(threads=(4,), waves=2, width=16, most=6, tokens=6)
    result = sound(depthwise.measure(size, rounds=1))
    assert column(result, "threads with equal tokens") == ["8 of 8"]
    (bound,), (ticks,) = (
        column(result, "bound: mean of batch maximum / mean depth"),
        column(result, "lockstep / depth-wise, ticks"),
    )
    assert isinstance(bound, float)
    assert isinstance(ticks, float)
    assert bound > 1, "exit depths do not spread"
    assert ticks <= bound + 1e-9, "depth-wise batching beat its bound"


def test_early_exits_spread() -> None:
    size = early_exits.Size(threads=(4,), width=32, layers=1, tokens=8)
    result = sound(early_exits.measure(size, rounds=1))
    ((mean,), (bound,)) = column(result, "mean depth"), column(result, result.columns[2])
    assert isinstance(mean, float)
    assert isinstance(bound, float)
    assert 1 < mean < size.loops
    assert 1 < bound < size.loops / mean, "what is done once a token saves nothing"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_and_eager_ticks_answer_on_a_cuda_device() -> None:
    result = sound(cuda.measure(cuda.Size(threads=(2,), width=64, prompt=5, tokens=4, depth=2), rounds=1))
    assert column(result, "threads") == [2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_benchmark_of_a_device_that_is_not_here_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["cuda"])
    assert "needs a CUDA device" in capsys.readouterr().err


def test_overhead_repeats_the_same_ticks() -> None:
    result = sound(overhead.measure(overhead.Size(threads=(1, 3), prompt=5, tokens=4, depth=2), rounds=1))
    assert column(result, "threads") == [1, 3]


def test_bare_loop_says_when_it_did_other_work() -> None:
    model = models.smallest()
    depth, settings = Fixed(2), EngineSettings(num_pages=8, reuse_prefixes=False, device="cpu")
    prepared = overhead.prepare(model, settings, depth, [(1, 2, 3)], 4)
    assert overhead.replay(prepared) > 0
    prepared.tokens[-1][:] += 1
    with pytest.raises(RuntimeError, match="other tokens"):
        overhead.replay(prepared)


def test_peaks_are_found() -> None:
    size = peaks.Size(threads=(1,), rows=8, width=32, columns=64, read=1000)
    result = sound(peaks.measure(size, rounds=1))
    assert column(result, "threads") == [1]


def test_backends_give_equal_answers() -> None:
    result = sound(backends.measure(backends.Size(threads=(1, 3), prompt=5, tokens=4, depth=2), rounds=1))
    assert column(result, "equal answers") == ["1 of 1", "3 of 3"] * 2


def test_a_model_under_two_names_says_the_same() -> None:
    result = sound(wide.measure(wide.Size(threads=(3,), width=32, layers=2, prompt=5, tokens=6), rounds=1))
    assert column(result, "equal answers") == ["3 of 3"]


def test_trees_fall_at_every_size() -> None:
    result = sound(cancelling.measure(cancelling.Size(wide=(3, 5), deep=(4,)), rounds=1))
    assert column(result, "tree") == ["wide, 3 threads", "wide, 5 threads", "deep, 4 threads"]


def test_traces_and_streams_are_compared_with_neither() -> None:
    result = sound(recording.measure(recording.Size(threads=(2,), answers=4, max_tokens=20), rounds=1))
    assert column(result, "threads") == [2]
    (size,) = column(result, "bytes of trace a token")
    assert isinstance(size, float)
    assert 1 < size < 100


def test_parked_threads_hold_memory() -> None:
    result = sound(parked.measure(parked.Size(parked=40, prompt=4, tokens=2, working=2, working_tokens=3), rounds=1))
    for held in column(result, "traced, bytes a thread"):
        assert isinstance(held, float)
        assert held > 0


def test_a_merged_join_computes_what_nobody_had_needed_and_what_is_appended() -> None:
    result = sound(joins.measure(joins.Size(children=3, tokens=20, context=20, depth=2), rounds=1))
    text, merged, fragmented = column(result, "tokens computed")
    # The parent's last token of each, which was sampled and not computed, and the conclusion.
    assert (merged, fragmented) == (3 + 3, 3 + 3)
    assert text == 3 * 20 + 3 + 1


def test_forks_say_what_fresh_prompts_say_and_compute_less() -> None:
    size = fork.Size(children=4, context=40, depth=2)
    result = sound(fork.measure(size, rounds=1))
    assert column(result, "first tokens as the forks'") == ["4 of 4"] * 4
    forks, no_reuse, reuse, known = column(result, "tokens computed")
    assert (forks, no_reuse) == (4, 4 * 40)
    assert reuse == 40 + 3 * 8, "the first computes what the others wait for"
    assert known == 4 * 8, "two full pages of the prompt are known, and eight tokens are left"


def test_continuous_thought_is_compared_with_full_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, 4, Limits(threads=4, tree_depth=2))
    size = continuous.Size(thresholds=(0.1,), problems=1, threads=4, tokens=24)
    result = sound(continuous.measure(size, rounds=1))
    assert column(result, "carry") == ["full depth", "none", "raw", "normed"]
    depths = column(result, "threshold 0.1: mean depth of sampled tokens, single threads")
    assert depths[0] == 6
    assert all(isinstance(depth, float) and depth < 6 for depth in depths[1:])
    alike = column(result, "threshold 0.1: tokens as at full depth up to the first other one, share")
    assert alike[0] == 1
    assert len(set(alike)) > 2, "carrying is to change what is said"


def test_speculation_says_the_same_in_fewer_ticks() -> None:
    size = speculation.Size(threads=(2,), drafts=(2, 4), tokens=12)
    result = sound(speculation.measure(size, rounds=1))
    for draft in size.drafts:
        assert column(result, f"draft {draft}: equal answers") == ["2 of 2"] * 2
        for figure, least in (("tokens a full-depth pass", 1.2), ("drafts accepted, share", 0.5)):
            found = column(result, f"draft {draft}: {figure}")
            assert all(isinstance(value, float) and value > least for value in found), found


def test_sides_are_timed_in_turn() -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> Callable[[], float]:
        def run() -> float:
            order.append(name)
            return seconds

        return run

    seconds = in_turn({"a": side("a", 1.0), "b": side("b", 2.0)}, rounds=3)
    assert order == [*"ab", *"ab", *"ba", *"ab"]
    assert ratios(seconds["b"], seconds["a"]) == [2.0, 2.0, 2.0]


def test_spread_and_aim() -> None:
    spread = Spread.of([3.0, 1.0, 2.0])
    assert (spread.median, spread.least, spread.greatest) == (2.0, 1.0, 3.0)
    assert Aim(figure="gain", measured=1.5, bound=1.5).is_met
    assert not Aim(figure="memory", measured=101.0, bound=100.0, is_lower_better=True).is_met


def test_command_prints_tables_and_writes_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    size = backends.Size(threads=(2,), prompt=5, tokens=3, wide=False)
    monkeypatch.setitem(command.BENCHMARKS, "backends", (lambda rounds: backends.measure(size, rounds),))
    files = ["--json", str(tmp_path / "found.json"), "--markdown", str(tmp_path / "found.md")]
    assert command.main(["backends", "--rounds", "1", *files]) == 0
    printed = capsys.readouterr().out
    assert "native / PyTorch" in printed
    assert printed.startswith(processor())
    heading, _, title, _, columns, _, *rows = (tmp_path / "found.md").read_text().splitlines()
    assert heading.startswith(f"Measured on {processor()}, {cores()} cores, ")
    assert title == "**backends**: native CPU backend against plain PyTorch."
    assert columns.startswith("| model | threads |")
    assert rows[0].startswith("| countdown | 2 |")
    found = json.loads((tmp_path / "found.json").read_bytes())
    assert found["rounds"] == 1
    assert found["environment"]["torch_threads"] >= 1
    (result,) = found["results"]
    assert result["name"] == "backends"
    assert result["rows"][0][2]["median"] > 0


def test_a_processor_is_named_by_what_tells_it_from_others(tmp_path: Path) -> None:
    information = tmp_path / "cpuinfo"
    first = "cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 avx512f\n"
    information.write_text(f"{first}\n{first.replace('EPYC', 'other')}")
    assert processor(information) == "AMD EPYC (cpu family 26, model 2, avx2, avx512f)"
    assert processor(tmp_path / "none")


SMALL_DEVICE = device.Size(threads=(1, 6), answers=16, max_tokens=(4, 24))


def test_a_device_is_what_a_simulation_reads(tmp_path: Path) -> None:
    result = sound(device.measure(SMALL_DEVICE, rounds=1))
    file = tmp_path / "device.json"
    report = Report(environment=Environment.here(), rounds=1, results=(result,))
    file.write_bytes(msgspec.json.encode(report))
    assert read_costs(file) == result.device
    assert result.device is not None
    assert result.device.in_flight.greatest >= 6


def test_a_simulation_is_held_against_what_it_predicts() -> None:
    size = simulation.Size(threads=(2,), answers=4, max_tokens=8, fitted=SMALL_DEVICE, eight=Load(8, 64, 24))
    result = sound(simulation.measure(size, rounds=2))
    measured, predicted = result.rows[0][1], result.rows[0][4]
    assert isinstance(measured, Spread)
    assert isinstance(predicted, Spread)
    assert measured.median > 0
    assert 0.02 < predicted.median / measured.median < 50
    assert len(result.aims) == 3
